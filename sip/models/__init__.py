"""The decoder.

config, presets   ModelConfig and published sizes
decoder           init and apply on trunk and branches
layers, rope, moe, visibility   parts of the decoder
parameters        names, axes and groups of the parameters
lora, int8        low-rank factors, int8 matrices
gathering         parameters gathered once per decoding loop
"""
