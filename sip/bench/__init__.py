"""Benchmarks: `python -m sip.bench NAME`.

schedules           agreement of cheaper comparison schedules with all pairs
sharing             cost of one trunk with branches, compared with one prompt per comparison
int8                verdicts of a judge stored in int8, compared with float32
factuality_ceiling  upper bound on a judge's factuality accuracy, given its prompts (`reader`)
trained_judge       labelled prompts of a trained judge
speed               rows of the speed benchmarks (`step`, `rollout`, `update`, `judge`), their bars
ways                our ways, plain ways and the peer's ways of the work of a row
setup               model, sizes, peer and ceilings of the speed benchmarks
turns               ways take turns; the peer's process; ceilings of the machine
peer                the peer: transformers and torch, a program of its own
host                the host's part of a step
compiling           CPU seconds of a small job, with an empty and a filled cache (`compile`)
flags, __main__     the command
"""
