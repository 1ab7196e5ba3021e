"""Three loops, each read from top to bottom; stages chain as runs."""
