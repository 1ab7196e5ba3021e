"""Hugging Face checkpoints in and out.

configs            config.json <-> ModelConfig
names, shards      tensor names; the slices that each device reads
reading, writing   safetensors
tokens, spelling   published tokenizers
mxfp4, hub         MXFP4 weights; hf:// names
"""
