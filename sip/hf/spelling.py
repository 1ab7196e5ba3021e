"""Encodes prompts and texts of standard evaluations, as transformers encodes them.

Results of standard evaluations are compared between libraries. So texts are encoded as the
checkpoint's published tokenizer does: with a leading space or BOS if it adds them, and with strings
of special tokens read as special tokens. Texts for training and judging are never encoded this way.
"""

from collections.abc import Callable
from dataclasses import dataclass

from etils import epath

from sip.text.special import settings
from sip.text.tokenizer import SentencePiece, Tokenizer
from sip.text.tokenizer_json import HuggingFace


@dataclass(frozen=True)
class Spelling:
    """An encoding of texts, and the token before them."""

    encode: Callable[[str], list[int]]  # ids of a text, without BOS
    begins: bool  # `whole` puts `prefix` before a text
    prefix: int  # first token of an empty context: BOS, or EOS for a tokenizer without BOS
    mark: str = ""  # string of BOS; a text that starts with it gets no second BOS

    def whole(self, text: str) -> list[int]:
        """Returns the ids of a whole text, with BOS if the tokenizer adds it."""
        already = bool(self.mark) and text.startswith(self.mark)
        return [*([self.prefix] if self.begins and not already else []), *self.encode(text)]


def own(tokenizer: Tokenizer) -> Spelling:
    """Returns the encoding of a run trained here: BOS, then the unchanged text."""
    return Spelling(tokenizer.encode, True, tokenizer.bos)


def published(tokenizer: Tokenizer, directory: epath.PathLike) -> Spelling:
    """Returns the encoding of the published checkpoint in `directory`, which has this tokenizer.

    For tokenizer.json, the file's post-processor decides about BOS, as in transformers 5. For a
    tokenizer.model it is added only if add_bos_token in tokenizer_config.json is true.
    """
    if isinstance(tokenizer, SentencePiece):
        return Spelling(tokenizer.published, tokenizer.begins, tokenizer.bos)
    assert isinstance(tokenizer, HuggingFace)
    names = settings(directory).names
    if "bos_token" not in names:
        return Spelling(tokenizer.published, False, tokenizer.eos)
    return Spelling(tokenizer.published, tokenizer.begins, tokenizer.bos, names["bos_token"])


def prompt(tokenizer: Tokenizer, text: str, *, as_published: bool) -> list[int]:
    """Returns the ids of a prompt, at least one; a published checkpoint's as in transformers."""
    if as_published:
        assert isinstance(tokenizer, SentencePiece | HuggingFace)
        return tokenizer.prompt(text) or [tokenizer.bos]
    return [tokenizer.bos, *tokenizer.encode(text)]
