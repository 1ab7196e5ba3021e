"""Post-trained models that are asked in text.

protocol   the TextGenerator protocol: option log-probabilities, generated answers
local      our own decoder on a mesh
remote     an OpenAI-compatible server
transport  HTTP requests of `remote`: retries, errors, a cache on disk
scripted   functions and rules in a model's place
cached     answers of another generator, kept on disk
"""
