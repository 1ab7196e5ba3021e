"""Rewards of sampled answers, for policy-gradient training.

verdicts  for a judge: 1 for a right verdict, else 0
rewrites  for a rewriter: copies of safe suffixes, better versions of unsafe ones
reward_model  a model's score of an answer
functions  a Python function of your own
answers    right or wrong answers to problems
majority   votes of a model's answers to problems, without labels
checking   the script of the processes that compare answers by math-verify
"""
