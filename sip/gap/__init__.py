"""The generation-verification gap, and the pre-flight of a judge (`python -m sip.gap`).

settings    the section `gap` of a config
utility     utilities of answers: by the ground truth, by the check of problems, or by a judge
verify      verdicts of judges on answers: scores and tournaments
costs       FLOPs of writing and of verifying
measure     answers of policies, gaps of all pairs of policy and judge, their comparison
preflight   predicts what a judge is worth to a self-improving run
show        tables for the terminal and Markdown
"""
