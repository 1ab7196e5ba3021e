"""Corpora: reading documents, cutting them into prefix and suffix, batching.

documents     reading documents: micro-world, .txt, JSON Lines, TFDS
corpus        the documents of one split, tokenised and cut
conversations dialogues in JSON Lines, as token ids with the answers to learn
chunks        cutting documents into prefix and suffix
pipeline      batches by position: shuffled epochs that resume anywhere
preferences preference pairs of a file as token ids
prompts     prompts of a file as token ids
screening     selecting documents by a judge's scores
microworld/   the generated world with exact ground truth
__main__      `python -m sip.data`
"""
