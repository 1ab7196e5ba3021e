"""Judges score candidate texts for a prefix.

prompts        aspects of judging; their prompt files are in sip/templates/judge
verdicts       verdicts from log-probabilities or from the text of an answer
voting         several sampled answers to one question, counted as votes
compare        tables of pairwise outcomes and mean wins
schedules, adaptive, bradley_terry   which pairs are compared; scores from a subset of the pairs
scoring        TextJudge and TruthJudge: texts in, scores and validity out
judged         the Judge protocol and its result
proofread      marks unlikely words in the texts shown to a judge
diagnostics    reliability of a judge's verdicts, by source of the candidates
audit          a second, held-out judge, and early stopping when the two diverge
build          the `judge` config section and the judge built from it
chunk_scores   scores of the documents' own suffixes: filtering and control tokens
labels/        labelled examples to train and evaluate judges
__main__       `python -m sip.judge`
"""
