"""Documents and what is made of them.

documents   reading documents: micro-world, .txt, JSON Lines, TFDS
corpus      the documents of one split, tokenised and cut
chunks      cutting documents into prefix and suffix
pipeline    batches by position: shuffled epochs that resume anywhere
screening   choosing documents by a judge's verdicts
microworld/ the generated world with exact ground truth
__main__    `python -m sip.data`
"""
