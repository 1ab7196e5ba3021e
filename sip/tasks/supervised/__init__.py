"""Tasks of the supervised loop.

task          the interface of a task: batches, loss terms, evaluation
documents     next-token prediction
conversations instruction tuning
self_made     a model's own answers to problems that pass a filter
verdicts      trains a judge on labels
thoughts      next-token prediction on texts with thoughts
rewrites      trains a rewriter on the ground truth's rewrites
preferences   learns from chosen and rejected answers: offline DPO
reward_model  scores answers as pairs of them were preferred
"""
