"""Evaluations of a model.

continuations  held-out prompts, greedy and sampled continuations, NLL of suffixes
ground_truth   metrics of continuations by a corpus's ground truth
judged         win rates by a judge
thoughts       the probe of thoughts: rewards after own, constant, swapped and the teacher's ones
rewrites       metrics of a rewriter
likelihoods    log-likelihoods of continuations after contexts, for lm_eval
harness        the adapter for lm-evaluation-harness; tasks/ has its task files
"""
