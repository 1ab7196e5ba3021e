"""Tasks of the policy-gradient loop.

task      what every task provides: prompts, rewards, an evaluation; sampling of answers
verdicts  a judge, rewarded for right verdicts
rewrites  a rewriter, rewarded by a judge
"""
