"""Breaks up special strings in text under judgement, for servers that encode prompts as one text.

Such a server parses special tokens anywhere in the prompt: a candidate that contains `<|eot_id|>`
would end its own turn. So each special string in text under judgement gets a space after its first
character. An invisible character would not do: normalisers that remove invisible characters would
restore the string, and the change should be visible to a reader.
"""

import functools
import unicodedata
from collections.abc import Sequence

from sip.structs import UserError

BREAK = " "
SPECIALS = (  # special tokens, or their beginnings, in the tokenizers of open models
    "<|",  # Llama 3, Qwen and others with ChatML, gpt-oss (harmony), Phi, DeepSeek
    "|>",
    "<s>",  # Llama 2, Mistral
    "</s>",
    "<unk>",
    "<pad>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "<</SYS>>",
    "[SYSTEM_PROMPT]",  # later Mistral models
    "[/SYSTEM_PROMPT]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_",
    "[/TOOL_",
    "[IMG",
    "[THINK]",
    "[/THINK]",
    "<bos>",  # Gemma
    "<eos>",
    "<start_of_",
    "<end_of_",
    "<unused",
    "<think>",  # Qwen 3
    "</think>",
    "<tool_",
    "</tool_",
    "<SPECIAL_",  # Apertus, Nemotron
    "<extra_id_",  # Nemotron 4, T5
    "<seed:",  # Seed-OSS
    "</seed:",
    "]~b]",  # MiniMax
    "]~!b[",
    "[e~[",
    "]!p~[",
    "]!d~[",
    "<beginning_of_",
    "[gMASK]",  # GLM
    "[sMASK]",
    "<sop>",
    "<eop>",
    "[|",  # EXAONE
    "|]",
    "[BOS]",  # Kimi, Grok
    "[EOS]",
    "[EOT]",
    "[PAD]",
    "[UNK]",
    "[CLS]",  # BERT and its kin
    "[SEP]",
    "[MASK]",
    "[start_header_id]",
    "[end_header_id]",
    "<BOS_TOKEN>",  # Cohere
    "<EOS_TOKEN>",
    "<PAD>",
    "<UNK>",
    "<CLS>",
    "<SEP>",
    "<MASK_TOKEN>",
    "<cls>",  # ERNIE, Reka
    "<sep>",
    "<mask",
    "<eot>",
    "<eod>",
    "<eoh>",  # InternLM
    "<eoa>",
    "[UNUSED_TOKEN_",
    "<TOKENS_UNUSED_",
    "<reserved_",  # Baichuan
    "<role>",  # Ling
    "</role>",
    "[unused",  # Pangu
    "[USER]",  # Skywork
    "[BOT]",
    "<_user>",  # TeleChat
    "<_bot>",
    "<_system>",
    "<_end>",
    "<_start>",
    "<_pad>",
    "<\u7528\u6237>",  # MiniCPM
    "<AI>",
    ">>QUESTION<<",  # Falcon
    ">>ANSWER<<",
    "|ENDOFTEXT|",  # Persimmon
    "[PREFIX]",  # Mistral: code, audio, tools
    "[MIDDLE]",
    "[SUFFIX]",
    "[AUDIO]",
    "[BEGIN_",
    "[TRANSCRIBE]",
    "[ARGS]",
    "[CALL_ID]",
    "[MODEL_SETTINGS]",
    "<fim_",  # StarCoder, Granite code
    "<file_sep>",
    "<filename>",
    "<repo_name>",
    "<reponame>",
    "<issue_",
    "<jupyter_",
    "<commit_",
    "<gh_stars>",
    "<image>",  # models with pictures and sound
    "<image_soft_token>",
    "<video>",
    "<audio>",
)


def check(specials: Sequence[str]) -> None:
    """Raises UserError unless a space breaks each of `specials` for good.

    A special must have two or more visible characters and no white space.
    """
    for special in specials:
        if len(_folded(special)) < 2 or any(map(str.isspace, _folded(special))):
            raise UserError(f"specials: {special!r} must be two or more characters without a space")


def encodable(text: str) -> str:
    """Returns the text with "?" for each lone surrogate, which UTF-8 cannot encode."""
    return text.encode(errors="replace").decode()


def join(segments: Sequence[str], specials: Sequence[str]) -> str:
    """Joins a prompt's segments and breaks up specials in those at odd places (under judgement).

    A special is also broken if only a part of it is under judgement, or if it appears only after
    Unicode compatibility folding (NFKC) or after removal of invisible characters. No special
    contains a space, so no special in the result overlaps text under judgement.
    """
    segments = [encodable(segment) for segment in segments]
    text = "".join(segments)
    folded = _folded(text)
    found = [(i, len(one)) for one in map(_folded, specials) for i in _places(folded, one)]
    if not found:
        return text
    judged = [i % 2 == 1 for i, segment in enumerate(segments) for _ in segment]
    # origin[index in the folded text] -> index in `text`; folding changes lengths.
    origin = [i for i, character in enumerate(text) for _ in _fold(character)]
    spans = [(origin[i], origin[i + size - 1]) for i, size in found]
    # Break after the first character of each special that overlaps text under judgement.
    breaks = sorted({first + 1 for first, last in spans if any(judged[first : last + 1])})
    return BREAK.join(text[i:j] for i, j in zip([0, *breaks], [*breaks, len(text)], strict=True))


def _places(text: str, part: str):
    """Yields the indices at which `part` occurs, overlapping occurrences included."""
    at = text.find(part)
    while at >= 0:
        yield at
        at = text.find(part, at + 1)


@functools.lru_cache(maxsize=1 << 16)
def _fold(character: str) -> str:
    """Returns a character as a normaliser might: NFKC, control and invisible characters removed."""
    if unicodedata.category(character) in ("Cc", "Cf"):
        return ""
    return unicodedata.normalize("NFKC", character)


def _folded(text: str) -> str:
    # A translation table is the fast path for ASCII; only control characters change there.
    return text.translate(_ASCII) if text.isascii() else "".join(map(_fold, text))


_ASCII = {code: _fold(chr(code)) for code in range(128)}
