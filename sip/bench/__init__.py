"""Benchmarks: `python -m sip.bench schedules|sharing|int8|reader`.

schedules           agreement of fewer comparisons with all pairs
sharing             a trunk and its branches against a prompt per comparison
int8                verdicts in int8 against float32
factuality_ceiling  the most that a judge can tell from what it is shown (`reader`)
trained_judge       labelled prompts of a trained judge
flags, __main__     the command
"""
