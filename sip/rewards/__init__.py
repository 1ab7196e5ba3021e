"""Rewards of sampled answers.

verdicts  a judge in training: 1 for a right verdict
rewrites  a rewriter in training: copies of safe suffixes, better versions of unsafe ones
"""
