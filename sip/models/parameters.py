"""What the parameters of a layer are, by name and letters: the one table of them."""

import jax

# A matrix: the letters that it reads and those it writes. Layers, or experts, stand before both.
MATRICES = {
    "wq": ("D", "GQH"),
    "wk": ("D", "GH"),
    "wv": ("D", "GH"),
    "wo": ("GQH", "D"),
    "w_router": ("D", "E"),
    "w_gate": ("D", "F"),
    "w_up": ("D", "F"),
    "w_down": ("F", "D"),
}
BIASES = {
    "bq": "GQH",
    "bk": "GH",
    "bv": "GH",
    "bo": "D",
    "sinks": "GQ",
    "b_router": "E",
    "b_gate": "F",
    "b_up": "F",
    "b_down": "D",
}
COARSE = tuple(name for name in MATRICES if name != "w_router")  # may be in int8, have factors
FACTORS = {  # what training of low rank adds to a matrix: its product, by way of Z
    **{f"{name}_a": (MATRICES[name][0], "Z") for name in COARSE},
    **{f"{name}_b": ("Z", MATRICES[name][1]) for name in COARSE},
}
OUTER = {"embed": "VD", "unembed": "DV", "final_norm": "D"}  # of no layer
NORMS = {"attention_norm": "D", "q_norm": "H", "k_norm": "H", "mlp_norm": "D"}
# Where there are experts, each has its own of these.
EXPERTS = ("w_gate", "w_up", "w_down", "b_gate", "b_up", "b_down")
RESIDUAL = ("wo", "bo", "w_down", "b_down")  # what a layer adds is zero where these are


def letters(name: str, experts: int) -> str:
    """Of a layer's parameter, without the layers'."""
    vectors, matrices = BIASES | NORMS, MATRICES | FACTORS
    own = vectors[name] if name in vectors else "".join(matrices[name])
    return ("E" if experts and name in EXPERTS else "") + own


def is_vector(name: str) -> bool:
    """Whether it scales or shifts, of a layer or after the last; all others are matrices."""
    return "norm" in name or name in BIASES


def held(params, dtype):
    """Parameters, boxed or not, with their matrices and embeddings in `dtype`."""

    def one(path, x):
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        return x if any(map(is_vector, names)) else x.astype(dtype)

    return jax.tree_util.tree_map_with_path(one, params)
