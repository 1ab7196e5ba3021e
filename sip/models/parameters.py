"""What the parameters of a layer are, by name and letters: the one table of them."""

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
NORMS = {"attention_norm": "D", "q_norm": "H", "k_norm": "H", "mlp_norm": "D"}
