"""Labelled examples to train and evaluate a judge.

ground_truth     labels from a corpus's ground truth, as trees to train on; accuracy
file             labels from a JSON Lines file
synthesis        labels without a ground truth: corrupted suffixes, unanimous votes
corruptions      functions that make a text worse in one respect
sentence_grades  labels of single sentences
"""
