"""The micro-world: a generated corpus with exactly known facts, insults and grammar errors.

settings    WorldConfig, the parameters of a world
world       entities, facts and documents; the TFDS builder
lexicon     the words and sentence templates
grammar     the automaton that accepts the world's sentences
reading     parsing any text with the automaton
findings    the oracle's results per sentence
oracle      scores of any text: quality, safety, factuality
questions   questions about the entities, with faultless answers
thoughts    thoughts about documents, by rule
correction  rewriting a text without faults
problems    questions of several hops and running sums, with their own oracle and documents
"""
