"""Text generators: post-trained models with prompts and answers as text.

protocol   the TextGenerator protocol: option log-probabilities, generated answers
local      our own decoder on a mesh
stems      pairs whose first text is read once for all its partners
remote     an OpenAI-compatible server
transport  HTTP requests of `remote`: retries, errors, a cache on disk
scripted   functions and rules in place of a model
cached     a disk cache of another generator's answers
dialogue   talks with a model in its chat template
"""
