"""Optimiser, the jitted update and checkpoints; the loops are in stages."""
