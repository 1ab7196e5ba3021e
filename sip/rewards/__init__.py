"""Rewards of sampled answers, for policy-gradient training.

verdicts  for a judge: 1 for a right verdict, else 0
rewrites  for a rewriter: copies of safe suffixes, better versions of unsafe ones
reward_model  a model's score of an answer
suffix_match  for a thinking policy: 1 if its continuation matches the true one, by a rule
information_gain  for a thinking policy: the likelihood that a thought adds to the true continuation
functions  a Python function of your own
answers    right or wrong answers to problems
majority   votes of a model's answers to problems, without labels
checking   the script of the processes that compare answers by math-verify
"""
