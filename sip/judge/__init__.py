"""The judge: prompts as data, verdicts read from probabilities, comparisons, scores, labels."""
