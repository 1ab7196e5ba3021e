"""Training steps and their state.

step         the jitted update: microbatches, (total, denom), donation
losses       loss terms of each objective on a tree
optim        AdamW, Muon, schedules
checkpoints  saving and restoring with Orbax
loop         stopping, logging and profiling of a training loop
"""
