"""Self-improving pretraining in JAX: a language model pretrained with a judge in the loop (arXiv 2601.21343)."""
