"""Evaluations: what a model writes, and what is true of it."""
