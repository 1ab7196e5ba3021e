"""Tasks of the supervised loop.

task       what every task provides: batches, loss terms, an evaluation
documents  next-token prediction
verdicts   a judge, from labels
rewrites   a rewriter, from the ground truth's rewrites
"""
