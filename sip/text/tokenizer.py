"""Text <-> token ids, such that parts join: decode(encode(a) + encode(b)) == a + b.

SentencePiece as shipped adds a dummy space to every part and may squeeze spaces; both are switched
off in the loaded model, so a suffix is encoded as it stands inside its document. Special tokens are
never produced from text. Tokens of parts equal those of the whole only at word boundaries; where
they differ the token list is authoritative and text is `continuation`.
"""

import functools
import io
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import sentencepiece
from etils import epath

from sip.structs import UserError
from sip.text.tokenizer_json import FILE, OPTIONAL, SPACE, HuggingFace, files, is_phrase
from sip.workdir import write_atomically

LOG = logging.getLogger(__name__)
MODEL, FOLDER = "tokenizer.model", "tokenizer"  # in a run's directory
KINDS = ("sentencepiece", "huggingface", "byte")
# Appended to a serialised model it sets normalizer_spec's add_dummy_prefix and
# remove_extra_whitespaces to false: of a protobuf field given twice the later value counts.
AS_IT_STANDS = b"\x1a\x04\x18\x00\x20\x00"
USER_DEFINED = 4  # the type of a piece that is found before the others are
CONTROL = 3  # of one that is never found in text


class Tokenizer(Protocol):
    vocab_size: int
    bos: int
    eos: int
    pad: int

    @property
    def specials(self) -> Mapping[str, int]:
        """Text -> id of what no text becomes."""
        ...

    @property
    def stops(self) -> tuple[int, ...]:
        """The tokens that end an answer, EOS first."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: no special tokens, no dummy prefix."""
        ...

    def plain(self, text: str) -> list[int]:
        """Ids of a text that is no template's own: no phrase of the tokenizer's comes out of it.

        A phrase is a symbol of more than one word or mark, as a prompt's lines are. Where one
        stands in the text it is spelled out; what is decoded is the same.
        """
        ...

    def encode_special(self, text: str) -> list[int]:
        """Ids of a chat template's own text, where the strings of special tokens are those tokens.

        Never of a text from elsewhere.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; special tokens and ids outside the vocabulary have none."""
        ...


class Encoder(Protocol):
    """A tokenizer, as far as it makes tokens."""

    def encode(self, text: str) -> list[int]: ...

    def plain(self, text: str) -> list[int]: ...

    def encode_special(self, text: str) -> list[int]: ...


class Cached:
    """A tokenizer's encodings, the latest of them kept."""

    def __init__(self, tokenizer: Encoder, size: int | None = None):
        self.encode = functools.lru_cache(size)(tokenizer.encode)
        self.plain = functools.lru_cache(size)(tokenizer.plain)
        self.encode_special = functools.lru_cache(size)(tokenizer.encode_special)


class Byte:
    """UTF-8 bytes as tokens, for tests."""

    vocab_size, pad, bos, eos = 259, 256, 257, 258
    stops = (eos,)
    specials = {"<pad>": pad, "<s>": bos, "</s>": eos}

    def encode(self, text: str) -> list[int]:
        return list(text.encode(errors="replace"))

    def plain(self, text: str) -> list[int]:
        return self.encode(text)

    def encode_special(self, text: str) -> list[int]:
        return _marked(text, self.specials, self.encode)

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(int(i) for i in ids if 0 <= i < 256).decode(errors="replace")


class SentencePiece:
    """Any SentencePiece model (ours, Llama, Mistral); without a pad of its own, pad is eos."""

    def __init__(self, path: str | os.PathLike):
        try:
            self._model = sentencepiece.SentencePieceProcessor(
                model_proto=epath.Path(path).read_bytes() + AS_IT_STANDS
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
        self.stops = (self.eos,)
        space = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        self._space = space if all(map(self._model.is_byte, space)) else None
        self._path = path

    def published(self, text: str) -> list[int]:
        """Ids by the model as it was published, dummy prefix and all, without BOS. For standard
        evaluations alone."""
        return self._published.encode(text.encode(errors="replace").decode())

    @functools.cached_property
    def _published(self):
        return sentencepiece.SentencePieceProcessor(model_file=str(self._path))

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

    def encode_special(self, text: str) -> list[int]:
        return _marked(text, self.specials, self.encode)

    @property
    def specials(self) -> Mapping[str, int]:
        """Text -> id of the control tokens."""
        return self._controls

    @functools.cached_property
    def _controls(self) -> dict[str, int]:
        return {p.piece: i for i, p in enumerate(self.proto().pieces) if p.type == CONTROL}

    @functools.cached_property
    def _phrases(self) -> re.Pattern | None:
        """Where a phrase starts, also inside another one."""
        of = lambda piece: piece.piece.replace(SPACE, " ")
        symbols = [of(piece) for piece in self.proto().pieces if piece.type == USER_DEFINED]
        phrases = list(filter(is_phrase, symbols))
        return re.compile(f"(?={'|'.join(map(re.escape, phrases))})") if phrases else None

    def proto(self) -> Any:
        """The model as loaded: a ModelProto of sentencepiece."""
        from sentencepiece import sentencepiece_model_pb2

        proto: Any = sentencepiece_model_pb2  # made at run time
        return proto.ModelProto.FromString(self.serialized())

    def serialized(self) -> bytes:
        """The same in bytes."""
        return self._model.serialized_model_proto()

    def decode(self, ids: Sequence[int]) -> str:
        special = (self.bos, self.eos, self.pad)
        return self._model.decode(
            [int(i) for i in ids if i not in special and 0 <= i < self.vocab_size]
        )


def _marked(
    text: str, specials: Mapping[str, int], encode: Callable[[str], list[int]]
) -> list[int]:
    """Ids of a text in which the strings of special tokens, the longest first, are those."""
    longest = sorted(specials, key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, longest))})", text)
    of = lambda i, part: [specials[part]] if i % 2 else encode(part)
    return [each for i, part in enumerate(parts) for each in of(i, part)]


def load(kind: str, path: str | os.PathLike | None = None) -> Tokenizer:
    """The tokenizer of a kind: a SentencePiece model, a tokenizer.json (or its directory), bytes.

    Raises UserError for another kind, and naming a file that cannot be read.
    """
    if kind == "byte":
        return Byte()
    if kind not in KINDS:
        raise UserError(f"tokenizer kind {kind!r}: not one of {KINDS}")
    if not path:
        raise UserError(f"tokenizer kind {kind!r} needs the path of a model")
    return SentencePiece(path) if kind == "sentencepiece" else HuggingFace(path)


def guess(path: str) -> tuple[str, str]:
    """(kind, path) of a tokenizer named by its path alone: a directory or a .json file is Hugging
    Face's, "byte" is bytes, any other file a SentencePiece model."""
    if path == "byte":
        return "byte", ""
    huggingface = path.endswith(".json") or os.path.isdir(path)
    return ("huggingface" if huggingface else "sentencepiece"), path


def keep(kind: str, path: str, directory: str | os.PathLike) -> None:
    """Copies a tokenizer's files into `directory`, where `kept` finds them."""
    if kind == "sentencepiece":
        epath.Path(path).copy(epath.Path(directory) / MODEL, overwrite=True)
    if kind == "huggingface":
        own = epath.Path(directory) / FOLDER
        own.mkdir(parents=True, exist_ok=True)
        for source in files(path):
            name = source.name if source.name in OPTIONAL else FILE
            epath.Path(source).copy(own / name, overwrite=True)


def kept(kind: str, directory: str | os.PathLike) -> str:
    """The path of the tokenizer that `keep` put there."""
    return str(epath.Path(directory) / (FOLDER if kind == "huggingface" else MODEL))


def check_width(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises UserError where the model's `vocab_size` is less than the tokenizer's; says where it
    is more."""
    spare = vocab_size - tokenizer.vocab_size
    if spare < 0:
        raise UserError(
            f"config model.vocab_size {vocab_size} is smaller than the "
            f"tokenizer's {tokenizer.vocab_size}"
        )
    if spare:
        LOG.warning(
            "model.vocab_size %d: %d rows more than the tokenizer has tokens", vocab_size, spare
        )


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
    write_atomically(epath.Path(path), model.getvalue())
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
