"""The evaluations of arXiv 2601.21343 on any checkpoints, by any judge.

sets       prompts of files in their published formats
choices    TruthfulQA and HaluEval: choices by likelihood
writing    greedy continuations of texts
asking     verdicts of a judge or of a corpus's ground truth on the continuations
graders    what grades texts without a judge: libraries, repetition, likelihood
measure    all of it: checkpoints in, figures out
table      the figures as tables: terminal, Markdown
"""
