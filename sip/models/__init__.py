"""The decoder.

config, presets   ModelConfig and published sizes
decoder           init and apply over trunk and branches
layers, rope, moe, visibility   its parts
parameters        names, letters and groups of the parameters
lora, int8        low-rank factors; matrices in int8
gathering         weights gathered once for many decoding steps
"""
