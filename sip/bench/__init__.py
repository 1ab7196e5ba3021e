"""Benchmarks: `python -m sip.bench schedules|sharing|int8|reader`.

schedules           agreement of cheaper comparison schedules with all pairs
sharing             cost of one trunk with branches, compared with one prompt per comparison
int8                verdicts of a judge stored in int8, compared with float32
factuality_ceiling  upper bound on a judge's factuality accuracy, given its prompts (`reader`)
trained_judge       labelled prompts of a trained judge
flags, __main__     the command
"""
