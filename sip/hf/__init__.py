"""Import and export of Hugging Face checkpoints.

configs    config.json <-> ModelConfig
family     the families and their settings of the decoder
rotary     rotary positions in config.json
fields     single fields of config.json
harmless   fields of config.json that change no logits
names      tensor names and layouts, theirs and ours
shards     opens and checks safetensors files
reading    import: tensors onto a mesh
writing    export: safetensors, config.json
tokens     tokenizer files
spelling   encoding of texts as transformers does it
mxfp4      MXFP4 weights
hub        downloads hf:// names
"""
