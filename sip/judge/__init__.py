"""Judges: verdicts of a post-trained model on candidates.

prompts        aspects of judging and their prompt files (templates/)
verdicts       verdicts from log-probabilities or from an answer's words
voting         several votes on one question
compare        tables of pairwise outcomes and their mean wins
schedules, adaptive, bradley_terry   which pairs are compared, and scores from some pairs
scoring        TextJudge and TruthJudge: texts in, scores and validity out
judged         the Judge protocol and its result
proofread      marks in the texts that a judge is shown
diagnostics, audit   a judge's health by source; a second, held-out judge
build          the `judge` section and the judge that it names
labels/        labelled examples to train and grade judges
__main__       `python -m sip.judge`
"""
