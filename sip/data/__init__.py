"""Corpora: reading documents, cutting them into prefix and suffix, batching.

documents     reading documents: files, TFDS, Hugging Face, micro-world, mixtures of them
files         files that a path names (folder, glob, gs://), decompressed; wrong ones are refused
questions     a question about a generated world
records       records of a file: .txt, JSON Lines, Parquet, array_record; rules for odd contents
huggingface   Hugging Face data sets, of the hub or a directory
contamination overlap of documents with evaluation sets
corpus        the documents of one split, tokenised and cut
conversations dialogues in JSON Lines, as token ids with the answers to learn
chunks        cutting documents into prefix and suffix
control       control tokens between prefix and suffix
packing       whole texts in rows of a fixed length, as segments
pipeline      batches by position: shuffled epochs that resume anywhere; mixtures by weight
preferences   preference pairs of a file as token ids
problems      problems with answers: of files, generated, of the micro-world
prompts       prompts of a file as token ids
screening     selecting documents by a judge's scores
thoughts      thoughts in texts: accepting, reading, encoding annotated texts
show          printing examples as the model sees them
microworld/   the generated world with exact ground truth
__main__      `python -m sip.data`
"""
