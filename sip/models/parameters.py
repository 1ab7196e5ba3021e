"""What the parameters of a layer are, by name and letters: the one table of them."""

import jax

# A matrix: the letters that it reads and those it writes. Layers, or experts, stand before both.
MATRICES = {
    "wq": ("D", "GQH"),
    "wk": ("D", "GH"),
    "wv": ("D", "GH"),
    "wo": ("GQH", "D"),
    "w_gate": ("D", "F"),
    "w_up": ("D", "F"),
    "w_down": ("F", "D"),
}
BIASES = {"bq": "GQH", "bk": "GH", "bv": "GH"}
FACTORS = {  # what training of low rank adds to a matrix: its product, by way of Z
    **{f"{name}_a": (reads, "Z") for name, (reads, _) in MATRICES.items()},
    **{f"{name}_b": ("Z", writes) for name, (_, writes) in MATRICES.items()},
}
NORMS = {"attention_norm": "D", "q_norm": "H", "k_norm": "H", "mlp_norm": "D"}


def is_vector(name: str) -> bool:
    """Whether it scales or shifts, of a layer or after the last; all others are matrices."""
    return "norm" in name or name in BIASES


def held(params, dtype):
    """Parameters, boxed or not, with their matrices and embeddings in `dtype`."""

    def one(path, x):
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        return x if any(map(is_vector, names)) else x.astype(dtype)

    return jax.tree_util.tree_map_with_path(one, params)
