"""What the parameters of a layer are, by name and letters: the one table of them."""

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
NORMS = {"attention_norm": "D", "q_norm": "H", "k_norm": "H", "mlp_norm": "D"}
# Where there are experts, each has its own of these.
EXPERTS = ("w_gate", "w_up", "w_down", "b_gate", "b_up", "b_down")
RESIDUAL = ("wo", "bo", "w_down", "b_down")  # what a layer adds is zero where these are


def letters(name: str, experts: int) -> str:
    """Of a matrix or a bias, without the layers'."""
    own = BIASES[name] if name in BIASES else "".join(MATRICES[name])
    return ("E" if experts and name in EXPERTS else "") + own
