"""Objectives: arrays in, (total, denom, metrics) out.

logprobs     log-probabilities of tokens without logits of [.., T, V]
likelihood   cross-entropy, RF-NLL
preference   DPO
policy       advantages, clipped surrogate, KL
"""
