"""Tokenizers whose encodings can be concatenated: decode(encode(a) + encode(b)) == a + b.

A published SentencePiece model adds a dummy space to every text and may squeeze spaces. Both are
switched off in the loaded model, so that a suffix is encoded as it appears inside its document.
Text never encodes to special tokens. encode(a) + encode(b) equals encode(a + b) only if the texts
meet at a word boundary. Otherwise the token list is authoritative, and the text of a part is its
`continuation`.
"""

import functools
import io
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import sentencepiece
from etils import epath

from sip.structs import UserError
from sip.text.tokenizer_json import FILE, OPTIONAL, SPACE, HuggingFace, files, is_phrase
from sip.workdir import write_atomically

LOG = logging.getLogger(__name__)
MODEL, FOLDER = "tokenizer.model", "tokenizer"  # file (sentencepiece), folder (huggingface)
KINDS = ("sentencepiece", "huggingface", "byte")
# These bytes, appended to a serialised model, set add_dummy_prefix and remove_extra_whitespaces of
# normalizer_spec to false: if a protobuf field occurs twice, the later value counts.
AS_IT_STANDS = b"\x1a\x04\x18\x00\x20\x00"
USER_DEFINED = 4  # type of a piece that is matched before all others
CONTROL = 3  # type of a piece that is never matched in text


class Tokenizer(Protocol):
    """A tokenizer whose encodings of text parts can be concatenated."""

    vocab_size: int  # number of tokens
    bos: int  # id of the beginning-of-sequence token
    eos: int  # id of the end-of-sequence token
    pad: int  # id at masked positions

    @property
    def specials(self) -> Mapping[str, int]:
        """Special tokens, text -> id; `encode` never returns these ids."""
        ...

    @property
    def stops(self) -> tuple[int, ...]:
        """Ids of the tokens that end an answer, EOS first."""
        ...

    def encode(self, text: str) -> list[int]:
        """Encodes a text without special tokens and without a dummy prefix."""
        ...

    def plain(self, text: str) -> list[int]:
        """Encodes a text that is not a template's own, without the tokenizer's phrases.

        A phrase is a token of more than one word or mark, such as a line of a prompt. A phrase in
        the text is spelled out in smaller tokens; the ids decode to the same text.
        """
        ...

    def encode_special(self, text: str) -> list[int]:
        """Encodes a chat template's own text; the strings of special tokens become these tokens.

        Never call it with text from another source.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes ids; special tokens and ids outside the vocabulary decode to nothing."""
        ...


class Encoder(Protocol):
    """The encoding methods of a `Tokenizer`."""

    def encode(self, text: str) -> list[int]:
        """Encodes a text without special tokens."""
        ...

    def plain(self, text: str) -> list[int]:
        """Encodes a text without special tokens and phrases."""
        ...

    def encode_special(self, text: str) -> list[int]:
        """Encodes a chat template's own text, with special tokens."""
        ...


class Cached:
    """An `Encoder` that caches a tokenizer's encodings, least recently used first out.

    `size` is the number of texts cached per method; None: no limit. Do not modify the lists that
    it returns: they are the cached objects.
    """

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
        """Returns the UTF-8 bytes of the text."""
        return list(text.encode(errors="replace"))

    def plain(self, text: str) -> list[int]:
        """Returns the UTF-8 bytes of the text; this tokenizer has no phrases."""
        return self.encode(text)

    def encode_special(self, text: str) -> list[int]:
        """Encodes a chat template's own text, with the special tokens <pad>, <s> and </s>."""
        return _marked(text, self.specials, self.encode)

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes bytes as UTF-8; invalid bytes become U+FFFD, other ids are dropped."""
        return bytes(int(i) for i in ids if 0 <= i < 256).decode(errors="replace")


class SentencePiece:
    """A SentencePiece model (ours, Llama, Mistral). If it has no pad token, `pad` is EOS.

    `path` is the .model file. Raises UserError if it cannot be read or has no BOS or EOS.
    """

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
            raise UserError(f"{path}: the SentencePiece model needs a BOS and an EOS token")
        self.pad = self._model.pad_id() if self._model.pad_id() >= 0 else self.eos
        self.stops = (self.eos,)
        # The byte tokens that spell U+2581, if the model has byte fallback (see `encode`).
        space = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        self._space = space if all(map(self._model.is_byte, space)) else None
        self._path = path

    def published(self, text: str) -> list[int]:
        """Encodes with the model as published, with its dummy prefix, without BOS.

        For standard evaluations only.
        """
        return self._published.encode(text.encode(errors="replace").decode())

    @functools.cached_property
    def _published(self):
        return sentencepiece.SentencePieceProcessor(model_file=str(self._path))

    def encode(self, text: str) -> list[int]:
        """Encodes a text without special tokens and without a dummy prefix."""
        text = text.encode(errors="replace").decode()  # UTF-8 cannot encode lone surrogates
        if self._space is None or SPACE not in text:
            return self._model.encode(text)
        # SentencePiece writes a space as U+2581. A literal U+2581 in the text must be spelled in
        # bytes, or it would decode to a space.
        first, *rest = text.split(SPACE)
        ids = self._model.encode(first)
        for part in rest:
            ids += self._space + self._model.encode(part)
        return ids

    def plain(self, text: str) -> list[int]:
        """Encodes a text without special tokens and phrases."""
        text = text.encode(errors="replace").decode()
        # Cut after the first character of each phrase, so that no part contains a phrase.
        found = self._phrases.finditer(text.replace(SPACE, " ")) if self._phrases else ()
        cuts = [one.start() + 1 for one in found]
        parts = zip([0, *cuts], [*cuts, len(text)], strict=True)
        return [i for start, end in parts for i in self.encode(text[start:end])]

    def encode_special(self, text: str) -> list[int]:
        """Encodes a chat template's own text; the strings of control tokens become these tokens."""
        return _marked(text, self.specials, self.encode)

    @property
    def specials(self) -> Mapping[str, int]:
        """Control tokens, text -> id."""
        return self._controls

    @functools.cached_property
    def _controls(self) -> dict[str, int]:
        return {p.piece: i for i, p in enumerate(self.proto().pieces) if p.type == CONTROL}

    @functools.cached_property
    def _phrases(self) -> re.Pattern | None:
        """A pattern that matches at the start of each phrase, also inside another phrase."""
        of = lambda piece: piece.piece.replace(SPACE, " ")
        symbols = [of(piece) for piece in self.proto().pieces if piece.type == USER_DEFINED]
        phrases = list(filter(is_phrase, symbols))
        # A lookahead consumes nothing, so it also finds overlapping phrases.
        return re.compile(f"(?={'|'.join(map(re.escape, phrases))})") if phrases else None

    def proto(self) -> Any:
        """Returns the loaded model as a sentencepiece ModelProto."""
        from sentencepiece import sentencepiece_model_pb2

        proto: Any = sentencepiece_model_pb2  # generated at run time, so without static types
        return proto.ModelProto.FromString(self.serialized())

    def serialized(self) -> bytes:
        """Returns the loaded model as a serialised ModelProto."""
        return self._model.serialized_model_proto()

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes ids; special tokens and ids outside the vocabulary decode to nothing."""
        special = (self.bos, self.eos, self.pad)
        return self._model.decode(
            [int(i) for i in ids if i not in special and 0 <= i < self.vocab_size]
        )


def _marked(
    text: str, specials: Mapping[str, int], encode: Callable[[str], list[int]]
) -> list[int]:
    """Encodes a text; the strings of special tokens become these tokens, longest match first."""
    longest = sorted(specials, key=len, reverse=True)
    # re.split with a group returns text at even places and the matched specials at odd ones.
    parts = re.split(f"({'|'.join(map(re.escape, longest))})", text)
    of = lambda i, part: [specials[part]] if i % 2 else encode(part)
    return [each for i, part in enumerate(parts) for each in of(i, part)]


def load(kind: str, path: str | os.PathLike | None = None) -> Tokenizer:
    """Loads a tokenizer.

    `kind` is sentencepiece (path of a .model file), huggingface (path of a tokenizer.json or its
    directory) or byte (no path). Raises UserError for an unknown kind or an unreadable file.
    """
    if kind == "byte":
        return Byte()
    if kind not in KINDS:
        raise UserError(f"tokenizer kind {kind!r}: must be one of {KINDS}")
    if not path:
        raise UserError(f"tokenizer kind {kind!r} needs the path of a model; it is empty")
    return SentencePiece(path) if kind == "sentencepiece" else HuggingFace(path)


def guess(path: str) -> tuple[str, str]:
    """Returns (kind, path) of a tokenizer, guessed from its path.

    A directory or a .json file is huggingface, "byte" is byte, any other file is sentencepiece.
    """
    if path == "byte":
        return "byte", ""
    huggingface = path.endswith(".json") or os.path.isdir(path)
    return ("huggingface" if huggingface else "sentencepiece"), path


def keep(kind: str, path: str, directory: str | os.PathLike) -> None:
    """Copies a tokenizer's files into a run's directory, where `kept` finds them."""
    if kind == "sentencepiece":
        epath.Path(path).copy(epath.Path(directory) / MODEL, overwrite=True)
    if kind == "huggingface":
        own = epath.Path(directory) / FOLDER
        own.mkdir(parents=True, exist_ok=True)
        for source in files(path):
            name = source.name if source.name in OPTIONAL else FILE
            epath.Path(source).copy(own / name, overwrite=True)


def kept(kind: str, directory: str | os.PathLike) -> str:
    """Returns the path of the tokenizer that `keep` copied into a run's directory."""
    return str(epath.Path(directory) / (FOLDER if kind == "huggingface" else MODEL))


def check_width(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises UserError if the model's `vocab_size` is smaller than the tokenizer's.

    Logs a warning if it is larger.
    """
    spare = vocab_size - tokenizer.vocab_size
    if spare < 0:
        raise UserError(
            f"config model.vocab_size {vocab_size} is smaller than the "
            f"tokenizer's {tokenizer.vocab_size}; set it to at least that"
        )
    if spare:
        LOG.warning(
            "model.vocab_size %d: %d rows more than the tokenizer has tokens (they stay unused)",
            vocab_size,
            spare,
        )


def continuation(tok: Tokenizer, prefix_ids: Sequence[int], ids: Sequence[int]) -> str:
    """Returns the text that `ids` add to `prefix_ids`: decode(prefix + ids) minus decode(prefix).

    If the prefix ends inside a character (decoded as U+FFFD), the completed character belongs to
    the continuation.
    """
    whole = tok.decode([*prefix_ids, *ids])
    # The common prefix is shorter than decode(prefix) if that ends with U+FFFD.
    return whole[len(os.path.commonprefix([tok.decode(prefix_ids), whole])) :]


def train_sentencepiece(
    texts: Iterable[str],
    path: str | os.PathLike,
    *,
    vocab_size: int,
    symbols: Sequence[str] = (),
) -> SentencePiece:
    """Trains a lossless unigram model and writes it to `path`. Deterministic in its inputs.

    A newline and each of `symbols` is always one token. `vocab_size` is an upper limit. Raises
    UserError if the training fails, for example because the vocabulary is too small.
    """
    model = io.BytesIO()
    train = sentencepiece.SentencePieceTrainer.train  # pyright: ignore[reportAttributeAccessIssue]
    try:
        _interruptibly(
            train,
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
            max_sentence_length=1 << 24,  # longer lines would be dropped silently
            num_threads=2,  # fixed: the order of floating-point sums depends on it
            minloglevel=2,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
        )
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: cannot train a tokenizer of {vocab_size} tokens: {reason}"
        ) from error
    write_atomically(epath.Path(path), model.getvalue())
    return SentencePiece(path)


def _interruptibly(do: Callable[..., Any], *, sentence_iterator: Iterator[str], **how) -> None:
    """Calls `do` in a thread: this one handles signals meanwhile, which C++ code does not."""
    failed: list[Exception] = []
    ended, stop = threading.Event(), threading.Event()

    def sentences():
        for sentence in sentence_iterator:
            if stop.is_set():
                raise InterruptedError
            yield sentence

    def work():
        try:
            do(sentence_iterator=sentences(), **how)
        except Exception as error:
            failed.append(error)
        ended.set()

    threading.Thread(target=work, daemon=True).start()
    try:
        ended.wait()
    except BaseException:
        # A thread that reads sentences when the program ends would abort it; one that computes in
        # C++ is dropped.
        stop.set()
        ended.wait(1.0)
        raise
    if failed:
        raise failed[0]


def _sentences(texts: Sequence[str], vocab_size: int) -> Iterator[str]:
    """Yields the training lines; if the vocabulary has room for all words, also each word alone.

    The trainer proposes a piece only if different characters follow it. Without these lines a word
    that is always followed by a space would be split into letters.
    """
    yield from (line for text in texts for line in text.split("\n") if line.strip())
    words = sorted({word for text in texts for word in re.findall(r"\w+", text)})
    if len(words) < vocab_size:
        for word in words:
            yield from (f" {word}. {word}.", f"{word}, {word}!")
