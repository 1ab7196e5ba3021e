"""Losses and the log-probabilities they are made of: arrays in, (total, denom, metrics) out."""
