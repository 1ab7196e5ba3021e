"""Text and tokens: tokenizers, prompt templates and chat templates.

lines           the line reader of every text input
tokenizer       the Tokenizer protocol; SentencePiece, Hugging Face and byte tokenizers
tokenizer_json  reading a Hugging Face tokenizer.json
classes         tokenizer classes of transformers that replace parts of a file
special         special tokens: BOS, EOS, pad, stops; files beside a tokenizer
segments        prompts as segments that are encoded separately
template        prompt files with {fields}
chat            chat templates: a prompt as a user message
rendering, sandbox   chat templates are rendered in a process of their own
ngrams          words in a row
untrusted       breaking up special strings in text under judgement
"""
