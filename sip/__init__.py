"""Self-improving pretraining in JAX: pretraining with a judge in the loop (arXiv 2601.21343)."""
