"""Tokenizers whose encodings can be concatenated: decode(encode(a) + encode(b)) == a + b.

A published SentencePiece model adds a dummy space to every text and may squeeze spaces. Both are
switched off in the loaded model, so that a suffix is encoded as it appears inside its document.
Text never encodes to special tokens. encode(a) + encode(b) equals encode(a + b) only if the texts
meet at a word boundary. Otherwise the token list is authoritative, and the text of a part is its
`continuation`.
"""

import contextlib
import functools
import io
import itertools
import logging
import os
import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import sentencepiece
from etils import epath

from sip.structs import UserError
from sip.text import classes, special
from sip.text.classes import SPACE
from sip.text.special import USUAL, Settings
from sip.text.tokenizer_json import FILE, HuggingFace, files, is_phrase
from sip.workdir import write_atomically

LOG = logging.getLogger(__name__)
MODEL, FOLDER = "tokenizer.model", "tokenizer"  # file (sentencepiece), folder (huggingface)
KINDS = ("sentencepiece", "huggingface", "byte")
# These bytes, appended to a serialised model, set add_dummy_prefix and remove_extra_whitespaces of
# normalizer_spec to false: if a protobuf field occurs twice, the later value counts.
AS_IT_STANDS = b"\x1a\x04\x18\x00\x20\x00"
WITH_SPACE, WITHOUT_SPACE = b"\x1a\x02\x18\x01", b"\x1a\x02\x18\x00"  # add_dummy_prefix alone
BPE = 2  # TrainerSpec.ModelType.BPE in sentencepiece_model.proto
NORMAL = 1  # type of an ordinary piece
USER_DEFINED = 4  # type of a piece that is matched before all others
CONTROL = 3  # type of a piece that is never matched in text
LONGEST_PIECE = 16  # characters of a piece, the trainer's default
LONGEST = 1024  # characters of a line given to the trainer; longer lines are cut


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

    def starts(self, token: int) -> bool:
        """Returns True if `token` begins a part that is decoded by itself.

        decode([*a, *b]) == decode(a) + decode(b) for every a and b if b begins with such a token.
        """
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

    def starts(self, token: int) -> bool:
        """Returns True for a byte that does not continue a character; see `Tokenizer`."""
        return 0 <= token < 256 and token & 0xC0 != 0x80


class SentencePiece:
    """A SentencePiece model (ours, Llama, Mistral), with the settings of files beside it.

    `path` is the .model file. If it is a published `tokenizer.model`, tokens may be added after its
    pieces, and others than its own may be BOS, EOS, pad and stops (`special.resolve`). Raises
    UserError for files that cannot be read or contradict each other, or without BOS or EOS.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = epath.Path(path)
        # Another name is a file that we trained: files beside it do not belong to it.
        known = special.settings(path) if self.path.name == MODEL else special.NOTHING
        try:
            self._bytes = self.path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot read the tokenizer: {error.strerror}") from error
        self._model = self._opened(AS_IT_STANDS)
        self._beginning = known.beginning
        pieces = self._model.get_piece_size()
        own = {"bos": self._model.bos_id(), "eos": self._model.eos_id()}
        own = {f"{role}_token": i for role, i in own.items() if i >= 0}
        if self._model.pad_id() >= 0:
            own["pad_token"] = self._model.pad_id()
        self._added: dict[str, dict[str, Any]] = {}  # entries of the tokens after the pieces
        self._listed: dict[str, dict[str, Any]] = {}  # entries of all tokens in files beside it
        self.left_out: tuple[str, ...] = ()  # added tokens beyond the model's vocabulary
        every: dict[str, int] = {}
        if not known.empty:
            every = {self._model.id_to_piece(i): i for i in range(pieces)}
            self._add(known, every)
        self.vocab_size = max([pieces, *(one["id"] + 1 for one in self._added.values())])
        for role in ("bos_token", "eos_token"):
            if not (role in own or role in known.names or f"{role}_id" in known.ids):
                raise UserError(f"{path}: the SentencePiece model needs a BOS and an EOS token")
        chosen = special.resolve(self.path, known, every, own, self.vocab_size)
        self.bos, self.eos, self.pad = chosen.bos, chosen.eos, chosen.pad
        self.stops = chosen.stops
        # The byte tokens that spell U+2581, if the model has byte fallback (see `encode`).
        space = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        self._space = space if all(map(self._model.is_byte, space)) else None

    def _opened(self, changed: bytes):
        """Loads the model; `changed` are serialised fields that override its own."""
        try:
            return sentencepiece.SentencePieceProcessor(model_proto=self._bytes + changed)
        except RuntimeError as error:
            raise UserError(
                f"{self.path}: not a SentencePiece model; a tokenizer.json is read if it lies "
                "beside it"
            ) from error

    def _add(self, known: Settings, every: dict[str, int]) -> None:
        """Adds the tokens of the files beside the model; hides the special ones among its pieces.

        `every` is token text -> id; the new tokens are put into it.
        """
        pieces, texts = len(every), {i: text for text, i in every.items()}
        self.left_out = special.left_out(known, known.added)
        added = {t: token for t, token in known.added.items() if t not in self.left_out}
        for text, token in added.items():
            held = texts.setdefault(token["id"], text)
            if held != text or every.setdefault(text, token["id"]) != token["id"]:
                raise UserError(
                    f"{self.path}: token {text!r} has the id {token['id']} in the files beside it, "
                    f"which is that of {held!r} here; use files of the same model"
                )
        new = special.appended(known, every, self.left_out)
        every |= {text: token["id"] for text, token in new.items()}
        special.check_named(self.path, known, every)
        self._listed = entries = {**added, **new}
        marks = {t for t, one in entries.items() if one["special"]} | set(known.names.values())
        marks |= {text for text in known.special if text in every}
        marks |= {t for t in entries if any(every[t] in ids for ids in known.ids.values())}
        for text in marks | set(entries):
            if every[text] >= pieces:
                entry = entries[text] if text in entries else USUAL
                self._added[text] = {**entry, "id": every[text], "special": text in marks}
        # A character of the vocabulary that is also special, such as a pad "!", spells texts.
        self._hide({text for text in marks if len(text) > 1 and every[text] < pieces})

    def _hide(self, texts: Collection[str]) -> None:
        """Makes pieces control tokens, which no text encodes to."""
        proto = self.proto()
        found = [p for p in proto.pieces if p.piece in texts and p.type in (NORMAL, USER_DEFINED)]
        for piece in found:
            piece.type = CONTROL
        if found:
            self._bytes = proto.SerializeToString()
            self._model = self._opened(AS_IT_STANDS)

    def published(self, text: str) -> list[int]:
        """Encodes as transformers 5 does, without BOS; for standard evaluations and prompts only.

        The dummy prefix applies, and the strings of special and added tokens become these tokens.
        The class LlamaTokenizer puts no space before a text that begins with one, and by default
        none after a special token. It merges pieces by their ids, where SentencePiece takes scores.
        """
        text, how = text.encode(errors="replace").decode(), self._beginning
        begins = how.llama or self._dummy_prefix
        legacy = how.legacy if how.legacy is not None else not how.llama
        ids: list[int] = []
        for i, part in enumerate(self._parts(text)):
            if i % 2:
                ids.append(self._tokens[part])
            elif part:
                twice = legacy and not how.llama
                may = begins and how.space is not False and (legacy or i == 0)
                spaced = may and (twice or part[0] not in (" ", SPACE))
                ids += self._by_id(part, spaced) if how.llama else self._by_score(part, spaced)
        return ids

    def _by_score(self, text: str, spaced: bool) -> list[int]:
        return (self._spaced if spaced else self._bare).encode(text)

    def _by_id(self, text: str, spaced: bool) -> list[int]:
        if self._merging is None:
            return self._by_score(text, spaced)
        whole = f"{SPACE if spaced else ''}{text.replace(' ', SPACE)}"
        return self._merging.encode(whole, add_special_tokens=False).ids

    @functools.cached_property
    def _merging(self):
        """The pieces as a model of the library tokenizers; None if the model is not BPE."""
        proto = self.proto()
        if proto.trainer_spec.model_type != BPE:
            return None
        try:
            import tokenizers
        except ImportError:
            raise UserError(f"{self.path}: needs tokenizers: pip install 'sip-jax[hf]'") from None
        vocab = {piece.piece: i for i, piece in enumerate(proto.pieces)}
        model = tokenizers.models.BPE(
            vocab, classes.merges(vocab), fuse_unk=True, byte_fallback=True
        )
        return tokenizers.Tokenizer(model)

    def prompt(self, text: str) -> list[int]:
        """Encodes a prompt as transformers 5 does: BOS only if add_bos_token says so."""
        how = self._beginning
        ends = [self.eos] if how.eos else []
        return [*([self.bos] if how.bos else []), *self.published(text), *ends]

    @property
    def begins(self) -> bool:
        """True if the settings put BOS before a text."""
        return self._beginning.bos

    @functools.cached_property
    def _dummy_prefix(self) -> bool:
        """True if the model as published puts a space before a text."""
        return _proto(self._bytes).normalizer_spec.add_dummy_prefix

    @functools.cached_property
    def _spaced(self):
        return self._opened(WITH_SPACE)

    @functools.cached_property
    def _bare(self):
        return self._opened(WITHOUT_SPACE)

    def encode(self, text: str) -> list[int]:
        """Encodes a text without special tokens and without a dummy prefix."""
        text = text.encode(errors="replace").decode()  # UTF-8 cannot encode lone surrogates
        if not self._ordinary:
            return self._pieces(text)
        return _marked(text, self._ordinary, self._pieces)

    def _pieces(self, text: str) -> list[int]:
        """Encodes a text with the model's own pieces."""
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
        """Encodes a chat template's own text; the strings of special tokens become these tokens."""
        parts = self._parts(text.encode(errors="replace").decode())
        of = lambda i, part: [self._tokens[part]] if i % 2 else self.encode(part)
        return [each for i, part in enumerate(parts) for each in of(i, part)]

    def _parts(self, text: str) -> list[str]:
        """Splits a text at special and added tokens: text at even places, tokens at odd ones."""
        parts, at = [], 0
        for found in self._cutting.finditer(text):
            parts += [text[at : found.start()], found[found.lastindex]]
            at = found.end()
        return [*parts, text[at:]]

    @functools.cached_property
    def _tokens(self) -> dict[str, int]:
        """Special and added tokens and <unk>, text -> id."""
        unknown = self._model.unk_id()
        found = {self._model.id_to_piece(unknown): unknown, **self.specials, **self._ordinary}
        if self._beginning.llama:  # it does not leave these pieces to the model
            pieces = enumerate(self.proto().pieces)
            found |= {one.piece: i for i, one in pieces if one.type == USER_DEFINED}
        return found

    @functools.cached_property
    def _cutting(self) -> re.Pattern:
        """A pattern of all special and added tokens, with the white space that they take."""

        def of(text: str) -> str:
            one = self._listed[text] if text in self._listed else USUAL
            left, right = (r"\s*" if one[side] else "" for side in ("lstrip", "rstrip"))
            return f"{left}({re.escape(text)}){right}"

        longest = sorted(self._tokens, key=len, reverse=True)
        return re.compile("|".join(map(of, longest)))

    @property
    def specials(self) -> Mapping[str, int]:
        """Control tokens and added special tokens, text -> id."""
        return self._controls

    @functools.cached_property
    def _controls(self) -> dict[str, int]:
        found = {p.piece: i for i, p in enumerate(self.proto().pieces) if p.type == CONTROL}
        return found | {text: one["id"] for text, one in self._added.items() if one["special"]}

    @functools.cached_property
    def _ordinary(self) -> dict[str, int]:
        """Added tokens that are not special, text -> id."""
        return {text: one["id"] for text, one in self._added.items() if not one["special"]}

    @functools.cached_property
    def _phrases(self) -> re.Pattern | None:
        """A pattern that matches at the start of each phrase, also inside another phrase."""
        of = lambda piece: piece.piece.replace(SPACE, " ")
        symbols = [of(piece) for piece in self.proto().pieces if piece.type == USER_DEFINED]
        phrases = list(filter(is_phrase, [*symbols, *self._ordinary]))
        # A lookahead consumes nothing, so it also finds overlapping phrases.
        return re.compile(f"(?={'|'.join(map(re.escape, phrases))})") if phrases else None

    def proto(self) -> Any:
        """Returns the loaded model as a sentencepiece ModelProto."""
        return _proto(self.serialized())

    def serialized(self) -> bytes:
        """Returns the loaded model as a serialised ModelProto."""
        return self._model.serialized_model_proto()

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes ids; special tokens and ids outside the vocabulary decode to nothing."""
        ids = [*map(int, ids)]
        if self._silent.isdisjoint(ids):  # nearly always; a filter takes far longer
            with contextlib.suppress(IndexError, TypeError):  # of ids that are no pieces
                return self._model.decode(ids)
        pieces = self._model.get_piece_size()
        keep = [i for i in ids if i not in self._silent and 0 <= i < self.vocab_size]
        if max(keep, default=0) < pieces:
            return self._model.decode(keep)
        texts = {i: text for text, i in self._ordinary.items()}
        of = lambda own, run: (
            self._model.decode(run) if own else "".join(map(texts.__getitem__, run))
        )
        known = (i for i in keep if i < pieces or i in texts)
        return "".join(of(own, list(run)) for own, run in itertools.groupby(known, pieces.__gt__))

    def starts(self, token: int) -> bool:
        """Returns True for a piece that is no byte, and for an added token; see `Tokenizer`."""
        if token in self._silent or not 0 <= token < self.vocab_size:
            return False
        own = token < self._model.get_piece_size()
        return not self._model.is_byte(token) if own else token in self._ordinary.values()

    @functools.cached_property
    def _silent(self) -> frozenset[int]:
        """Ids that decode to nothing. A stop may be an ordinary piece, such as a newline."""
        return frozenset({*self.specials.values(), self.bos, self.eos})


def _proto(serialized: bytes) -> Any:
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2  # generated at run time, so without static types
    return proto.ModelProto.FromString(serialized)


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
    if _published(kind, path):
        own = epath.Path(directory) / FOLDER
        own.mkdir(parents=True, exist_ok=True)
        main = MODEL if kind == "sentencepiece" else FILE
        for source in _files(kind, path):
            name = source.name if source.name in special.BESIDE else main
            epath.Path(source).copy(own / name, overwrite=True)


def _published(kind: str, path: str) -> bool:
    """Returns True if the tokenizer may have settings in files beside it."""
    named = kind == "sentencepiece" and epath.Path(path).name == MODEL
    return kind == "huggingface" or (named and not special.settings(path).empty)


def _files(kind: str, path: str) -> list[epath.Path]:
    return files(path) if kind == "huggingface" else [epath.Path(path), *special.beside(path)]


def kept(kind: str, directory: str | os.PathLike) -> str:
    """Returns the path of the tokenizer that `keep` copied into a run's directory."""
    folder = epath.Path(directory) / FOLDER
    if kind == "sentencepiece":
        return str(folder / MODEL if (folder / MODEL).is_file() else epath.Path(directory) / MODEL)
    return str(folder)


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
    return continuations(tok, prefix_ids, [ids])[0]


def continuations(
    tok: Tokenizer, prefix_ids: Sequence[int], rows: Iterable[Sequence[int]]
) -> list[str]:
    """Returns the `continuation` of one prefix by each of several rows of ids."""
    # The text before a token that starts a part is the same with and without a row.
    starts = (i for i in range(len(prefix_ids) - 1, 0, -1) if tok.starts(prefix_ids[i]))
    tail = prefix_ids[next(starts, 0) :]
    before = tok.decode(tail)

    def added(ids: Sequence[int]) -> str:
        whole = tok.decode([*tail, *ids])
        # The common prefix is shorter than `before` if that ends with U+FFFD.
        return whole[len(os.path.commonprefix([before, whole])) :]

    return [added(ids) for ids in rows]


def beginning(tok: Tokenizer, text: str, most: int | None) -> str:
    """Returns the first `most` tokens of a text, as text; None: all."""
    return tok.decode(tok.encode(text)[:most])


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
    model, texts = io.BytesIO(), list(texts)
    if not any(text.strip() for text in texts):
        raise UserError(f"{path}: cannot train a tokenizer: all texts are blank")
    train = sentencepiece.SentencePieceTrainer.train  # pyright: ignore[reportAttributeAccessIssue]
    try:
        _interruptibly(
            train,
            sentence_iterator=_sentences(texts, vocab_size),
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
    for text in texts:
        yield from (part for line in text.split("\n") if line.strip() for part in _parts(line))
    found = {word for text in texts for word in re.findall(r"\w+", text)}
    words = sorted(word for word in found if len(word) <= LONGEST_PIECE)
    if len(words) < vocab_size:
        for word in words:
            yield from (f" {word}. {word}.", f"{word}, {word}!")


def _parts(line: str) -> Iterator[str]:
    """Cuts a line before a space into parts of up to LONGEST characters.

    The trainer's time grows with the length of a line times the number of repeats inside it: one
    line of 100,000 characters that repeats itself would take minutes. No piece spans a space.
    """
    start = 0
    while len(line) - start > LONGEST:
        cut = line.rfind(" ", start + 1, start + LONGEST + 1)
        end = cut if cut > 0 else start + LONGEST
        yield line[start:end]
        start = end
    yield line[start:]
