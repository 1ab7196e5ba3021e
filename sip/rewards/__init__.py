"""Rewards: texts in, (reward_BK, valid_BK, metrics) out, on the host and without a model."""
