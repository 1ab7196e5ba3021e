"""`python -m sip.annotate` inserts thoughts into raw texts.

teachers  a model or a rule that annotates texts, and the counts of what is accepted
asking    flags of the corpus and the model, for `python -m sip.label` too
output    the file of a shard, which a stopped command continues
__main__  the command line
"""
