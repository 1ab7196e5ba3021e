"""Tables of a layer's parameters: their names and the letters of their axes."""

import jax

# name: (input axes, output axes). In the parameter tree the axes L and E come before both.
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
# Matrices that may be stored in int8 and may have LoRA factors. The router is left out: a small
# error in its logits selects other experts.
COARSE = tuple(name for name in MATRICES if name != "w_router")
FACTORS = {  # LoRA factors: A maps a matrix's input axes to Z, B maps Z to its output axes
    **{f"{name}_a": (MATRICES[name][0], "Z") for name in COARSE},
    **{f"{name}_b": ("Z", MATRICES[name][1]) for name in COARSE},
}
# Outside the layers. `score`, O = 1, takes the place of the unembedding in a reward model.
OUTER = {"embed": "VD", "unembed": "DV", "score": "DO", "final_norm": "D"}
NORMS = {
    "attention_norm": "D",
    "q_norm": "H",
    "k_norm": "H",
    "whole_q_norm": "GQH",
    "whole_k_norm": "GH",
    "attention_post_norm": "D",
    "mlp_norm": "D",
    "mlp_post_norm": "D",
}
# With experts, each expert has its own of these: their axes begin with E.
EXPERTS = ("w_gate", "w_up", "w_down", "b_gate", "b_up", "b_down")
# Outputs to the residual stream: a layer with zeros here is the identity (decoder.deepen).
RESIDUAL = ("wo", "bo", "w_down", "b_down")


def letters(name: str, experts: int) -> str:
    """Returns the axis letters of a layer's parameter without L, e.g. "DGQH" for "wq"."""
    vectors, matrices = BIASES | NORMS, MATRICES | FACTORS
    own = vectors[name] if name in vectors else "".join(matrices[name])
    return ("E" if experts and name in EXPERTS else "") + own


def is_vector(name: str) -> bool:
    """True for a norm scale or a bias; all other parameters are matrices or embeddings."""
    return "norm" in name or name in BIASES


def held(params, dtype):
    """Casts matrices and embeddings to `dtype`; norms and biases keep theirs.

    Works on plain trees and on trees of flax boxes.
    """

    def one(path, x):
        # A box adds a component to the path, so the name may be any component, not only the last.
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        return x if any(map(is_vector, names)) else x.astype(dtype)

    return jax.tree_util.tree_map_with_path(one, params)
