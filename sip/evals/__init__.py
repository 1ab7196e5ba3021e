"""Evaluations of a model.

continuations  held-out prompts, greedy and sampled continuations, NLL of suffixes
ground_truth   metrics of continuations by a corpus's ground truth
answers        answers to held-out questions: likelihood, and scores by a ground truth
judged         win rates by a judge, at the end of a run
thoughts       the probe of thoughts: rewards after own, constant, swapped and the teacher's ones
rewrites       metrics of a rewriter
likelihoods    log-likelihoods of continuations after contexts, for lm_eval
problems       mean@n, maj@n and pass@k of sampled answers to problems, diversity, difficulty
generation_verification_gap   arithmetic of the gap: filters, gaps, best of k, correlations
collapse       sees the collapse of self-training by reward and KL
intervals      confidence intervals of means, by the bootstrap
comparisons    estimates of several parts, paired comparisons of two checkpoints
paper/         the paper's evaluations of any checkpoint by any judge
grids          tables of texts, for the terminal and as Markdown
harness        the adapter for lm-evaluation-harness; tasks/ has its task files
"""
