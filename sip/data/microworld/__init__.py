"""The micro-world: a generated corpus whose facts, insults and bad grammar are known exactly.

world       entities, facts and documents; the TFDS builder
lexicon     the words
grammar     the sentences that the world can say
reading     parsing any text of the world
findings    what the oracle finds in each sentence
oracle      scores of any text: quality, safety, factuality
correction  rewriting a text so that it is right
"""
