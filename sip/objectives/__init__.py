"""Objectives: pure functions from arrays to (total, denom, metrics).

logprobs     log-probabilities of tokens, without logits for all positions
likelihood   cross-entropy, RF-NLL
preference   DPO
policy       advantages, clipped surrogate, KL
"""
