"""Text <-> token ids, such that parts join: decode(encode(a) + encode(b)) == a + b.

SentencePiece as shipped adds a dummy space to every part and may squeeze spaces; both are switched
off in the loaded model, so a suffix is encoded as it stands inside its document. Special tokens are
never produced from text. Tokens of parts equal those of the whole only at word boundaries; where
they differ the token list is authoritative and text is `continuation`.
"""

import functools
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import sentencepiece

from sip.structs import UserError

SPACE = "\u2581"  # what SentencePiece writes for a space inside pieces
# Appended to a serialised model it sets normalizer_spec's add_dummy_prefix and
# remove_extra_whitespaces to false: of a protobuf field given twice the later value counts.
AS_IT_STANDS = b"\x1a\x04\x18\x00\x20\x00"
USER_DEFINED = 4  # the type of a piece that is found before the others are
WORD = r"[^\S\n]*\w*"  # what any line may hold: a word, options among them, or white space


class Tokenizer(Protocol):
    vocab_size: int
    bos: int
    eos: int
    pad: int

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: no special tokens, no dummy prefix."""
        ...

    def plain(self, text: str) -> list[int]:
        """Ids of a text that is no template's own: no phrase of the tokenizer's comes out of it.

        A phrase is a symbol of more than one word or mark, as a prompt's lines are. Where one
        stands in the text it is spelled out; what is decoded is the same.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; special tokens and ids outside the vocabulary have none."""
        ...


class Encoder(Protocol):
    """A tokenizer, as far as it makes tokens."""

    def encode(self, text: str) -> list[int]: ...

    def plain(self, text: str) -> list[int]: ...


class Cached:
    """A tokenizer's encodings, the latest of them kept."""

    def __init__(self, tokenizer: Encoder, size: int | None = None):
        self.encode = functools.lru_cache(size)(tokenizer.encode)
        self.plain = functools.lru_cache(size)(tokenizer.plain)


class Byte:
    """UTF-8 bytes as tokens, for tests."""

    vocab_size, pad, bos, eos = 259, 256, 257, 258

    def encode(self, text: str) -> list[int]:
        return list(text.encode(errors="replace"))

    def plain(self, text: str) -> list[int]:
        return self.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(int(i) for i in ids if 0 <= i < 256).decode(errors="replace")


class SentencePiece:
    """Any SentencePiece model (ours, Llama, Mistral); without a pad of its own, pad is eos."""

    def __init__(self, path: str | os.PathLike):
        try:
            self._model = sentencepiece.SentencePieceProcessor(
                model_proto=Path(path).read_bytes() + AS_IT_STANDS
            )
        except OSError as error:
            raise UserError(f"{path}: cannot read the tokenizer: {error.strerror}") from error
        except RuntimeError as error:
            raise UserError(f"{path}: not a SentencePiece model") from error
        self.vocab_size = self._model.get_piece_size()
        self.bos, self.eos = self._model.bos_id(), self._model.eos_id()
        if self.bos < 0 or self.eos < 0:
            raise UserError(f"{path}: the SentencePiece model has no BOS or no EOS token")
        self.pad = self._model.pad_id() if self._model.pad_id() >= 0 else self.eos
        space = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        self._space = space if all(map(self._model.is_byte, space)) else None

    def encode(self, text: str) -> list[int]:
        text = text.encode(errors="replace").decode()  # a lone surrogate is no text
        if self._space is None or SPACE not in text:
            return self._model.encode(text)
        first, *rest = text.split(SPACE)  # else it would come back as a plain space
        ids = self._model.encode(first)
        for part in rest:
            ids += self._space + self._model.encode(part)
        return ids

    def plain(self, text: str) -> list[int]:
        text = text.encode(errors="replace").decode()
        found = self._phrases.finditer(text.replace(SPACE, " ")) if self._phrases else ()
        cuts = [one.start() + 1 for one in found]
        parts = zip([0, *cuts], [*cuts, len(text)], strict=True)
        return [i for start, end in parts for i in self.encode(text[start:end])]

    @functools.cached_property
    def _phrases(self) -> re.Pattern | None:
        """Where a phrase starts, also inside another one."""
        from sentencepiece import sentencepiece_model_pb2

        proto: Any = sentencepiece_model_pb2  # made at run time
        pieces = proto.ModelProto.FromString(self.serialized()).pieces
        symbols = [p.piece.replace(SPACE, " ") for p in pieces if p.type == USER_DEFINED]
        phrases = list(filter(is_phrase, symbols))
        return re.compile(f"(?={'|'.join(map(re.escape, phrases))})") if phrases else None

    def serialized(self) -> bytes:
        """The model as loaded: a ModelProto of sentencepiece."""
        return self._model.serialized_model_proto()

    def decode(self, ids: Sequence[int]) -> str:
        special = (self.bos, self.eos, self.pad)
        return self._model.decode(
            [int(i) for i in ids if i not in special and 0 <= i < self.vocab_size]
        )


def load(kind: str, path: str | os.PathLike | None = None) -> Tokenizer:
    if kind == "byte":
        return Byte()
    if kind != "sentencepiece":
        raise UserError(f"tokenizer kind {kind!r}: not one of 'sentencepiece', 'byte'")
    if not path:
        raise UserError("tokenizer kind 'sentencepiece' needs the path of a model")
    return SentencePiece(path)


def is_phrase(symbol: str) -> bool:
    """Whether a symbol is kept out of `plain` text: it is neither a word nor a single character."""
    return len(symbol) > 1 and not re.fullmatch(WORD, symbol)


def continuation(tok: Tokenizer, prefix_ids: Sequence[int], ids: Sequence[int]) -> str:
    """The text that `ids` add to `prefix_ids`: decode(prefix + ids) minus decode(prefix).

    A prefix may end inside a character (decoded as U+FFFD); the completed character then belongs
    to the continuation.
    """
    whole = tok.decode([*prefix_ids, *ids])
    return whole[len(os.path.commonprefix([tok.decode(prefix_ids), whole])) :]


def train_sentencepiece(
    texts: Iterable[str],
    path: str | os.PathLike,
    *,
    vocab_size: int,
    symbols: Sequence[str] = (),
) -> SentencePiece:
    """Train a unigram model that loses nothing and write it to `path`; the same texts, same bytes.

    A newline and each of `symbols` is always one token.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
            sentence_iterator=_sentences(list(texts), vocab_size),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            user_defined_symbols=["\n", *(s.replace(" ", SPACE) for s in symbols)],
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            max_sentence_length=1 << 24,  # longer lines would be dropped in silence
            num_threads=2,  # the sums of training depend on it
            minloglevel=2,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
        )
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot train a tokenizer of {vocab_size}: {reason}") from error
    _write(Path(path), model.getvalue())
    return SentencePiece(path)


def _sentences(texts: Sequence[str], vocab_size: int) -> Iterator[str]:
    """The lines to train on; where the vocabulary can hold every word, each word on its own too.

    A piece is only proposed where what follows it differs, so a word that always stands before a
    space would otherwise come out as letters.
    """
    yield from (line for text in texts for line in text.split("\n") if line.strip())
    words = sorted({word for text in texts for word in re.findall(r"\w+", text)})
    if len(words) < vocab_size:
        for word in words:
            yield from (f" {word}. {word}.", f"{word}, {word}!")


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    part.replace(path)
