"""How a published checkpoint's own tokenizer spells a text, begun as its makers begin one.

Standard evaluations are compared between libraries, so texts are encoded as transformers encodes
them: a space before the text where the tokenizer puts one, BOS where it adds one, and the strings
of special tokens as those tokens. Nothing that is judged or trained on is encoded so.
"""

from collections.abc import Callable
from dataclasses import dataclass

from etils import epath

from sip.text.tokenizer import SentencePiece, Tokenizer
from sip.text.tokenizer_json import SETTINGS, HuggingFace, settings, stated


@dataclass(frozen=True)
class Spelling:
    """`encode(text)`: ids without what is put before a text; `begins`: whether BOS is.

    `prefix` stands before a text that has nothing else before it: BOS, or EOS where there is none.
    """

    encode: Callable[[str], list[int]]
    begins: bool
    prefix: int
    mark: str = ""  # a text that begins with it has its BOS already

    def whole(self, text: str) -> list[int]:
        """list[int] of a text from its beginning."""
        already = bool(self.mark) and text.startswith(self.mark)
        return [*([self.prefix] if self.begins and not already else []), *self.encode(text)]


def own(tokenizer: Tokenizer) -> Spelling:
    """That of a run, which was trained on BOS and the text as it stands."""
    return Spelling(tokenizer.encode, True, tokenizer.bos)


def published(tokenizer: Tokenizer, directory: epath.PathLike) -> Spelling:
    """That of the checkpoint in `directory`, whose tokenizer this is.

    tokenizer.json says by itself whether BOS is added: transformers 5 goes by that alone.
    """
    if isinstance(tokenizer, SentencePiece):
        said = stated(epath.Path(directory) / SETTINGS, "add_bos_token")
        return Spelling(tokenizer.published, said is not False, tokenizer.bos)
    assert isinstance(tokenizer, HuggingFace)
    names = settings(directory).names
    if "bos_token" not in names:
        return Spelling(tokenizer.published, False, tokenizer.eos)
    return Spelling(tokenizer.published, tokenizer.begins, tokenizer.bos, names["bos_token"])
