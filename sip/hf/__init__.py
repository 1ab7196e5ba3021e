"""Hugging Face's checkpoints, in and out: configs, names of tensors, shards, tokenizer files."""
