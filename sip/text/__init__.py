"""Text as tokens.

tokenizer       the Tokenizer protocol; SentencePiece, Hugging Face and byte tokenizers
tokenizer_json  reading a Hugging Face tokenizer.json
segments        prompts as segments: markup and plain text
template        prompt files with {fields}
chat            chat templates: a prompt as a turn of a chat
untrusted       text that must not become special tokens
"""
