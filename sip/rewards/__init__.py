"""Rewards of verifiable tasks: arrays in, (reward, valid) out."""
