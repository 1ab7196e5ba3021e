"""Training steps and state.

step         the jitted update: microbatches, (total, denom), donation
losses       loss terms of each objective on a tree
optim        AdamW, Muon, schedules
checkpoints  saving and restoring with orbax
loop         stopping, logging, profiling around a loop
"""
