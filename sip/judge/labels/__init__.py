"""Labelled examples for training and grading a judge.

ground_truth     labels by a corpus's ground truth, as trees to train on; accuracy
file             labels from a JSON Lines file
synthesis        labels without a ground truth: corrupted suffixes, unanimous votes
corruptions      ways to make a text worse in one respect
sentence_grades  labels of single sentences
"""
