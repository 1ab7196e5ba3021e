"""Hugging Face tokenizers (`tokenizer.json`) whose encodings can be concatenated.

A file is loaded in three variants. The variant for text cannot produce special tokens: they are
renamed to random strings, also in the model's vocabulary. The variant for text under judgement
also hides phrases. The variant for chat templates has all tokens. The first two put no space before
a text. All three ignore the file's settings for truncation, padding and BOS.
"""

import contextlib
import functools
import json
import os
import re
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from sip.structs import UserError
from sip.text import classes, special
from sip.text.classes import SPACE
from sip.text.special import USUAL, Settings, settings

FILE, POST = "tokenizer.json", "post_processor"
WORD = r"[^\S\n]*\w*"  # a token allowed in any text: one word (options are words) or white space
HIDDEN = secrets.token_hex(16)  # begins a hidden token; 128 random bits: no text contains it
BYTE = re.compile(r"(?=<0x[0-9A-F]{2}>)")  # the name of a byte token, written out in a text
# Decoders that map each token by itself, except bytes that make up a character together.
SINGLY = ("ByteLevel", "Metaspace", "Replace", "ByteFallback")


def is_phrase(symbol: str) -> bool:
    """Returns True if `plain` must not produce the symbol: not one word and not one character."""
    return len(symbol) > 1 and not re.fullmatch(WORD, symbol)


def files(path: str | os.PathLike) -> list[epath.Path]:
    """Returns the tokenizer.json at `path` (the file or its directory) and the files beside it.

    Raises UserError if there is no tokenizer.json.
    """
    given = epath.Path(path)
    found = given / FILE if given.is_dir() else given
    if not found.is_file():
        raise UserError(f"{path}: neither a tokenizer.json nor a directory with one")
    return [found, *special.beside(found)]


class HuggingFace:
    """A Tokenizer from a tokenizer.json and the settings files beside it.

    `bos` is the token named in the settings. Models trained without BOS (Qwen, GPT-2) saw each
    document after the token that ends the previous one. For them `bos` is `bos_token_id` of
    config.json or else EOS, so that the first token of a document has a context. A chat template
    writes its own beginning. See `special.resolve` for pad and stops.

    Raises UserError for files that cannot be read, are not a tokenizer or contradict each other.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = files(path)[0]
        try:
            self._read(settings(self.path))
        except RecursionError:
            raise UserError(f"{self.path}: nested too deeply to be a tokenizer") from None

    def _read(self, known: Settings) -> None:
        spec, self.left_out = _checked(self.path, known)
        marks = {t["content"]: t["id"] for t in spec["added_tokens"] if t["special"]}
        others = (t["content"] for t in spec["added_tokens"] if not t["special"])
        phrases = {text for text in others if is_phrase(text.replace(SPACE, " "))}
        every = _vocabulary(spec["model"]["vocab"], spec["added_tokens"])
        self._spec = spec  # the third variant, `_marked`, is loaded when first needed
        how = known.beginning
        self._published_spec = classes.rebuilt(spec, how.kind, how.space, how.legacy is True)
        # A character of the vocabulary that is also special, such as a pad "!", spells texts.
        hidden = {t for t in marks if len(t) > 1 or t not in _vocabulary(spec["model"]["vocab"])}
        bare = _as_it_stands(spec)
        self._text = _load(self.path, _without(bare, hidden))
        # The library has read the decoder by now, so a sequence has its list.
        self._singly = _decodes_singly(bare["decoder"] if "decoder" in bare else None)
        self._plain = self._text  # the same variant if there are no phrases
        if phrases:
            self._plain = _load(self.path, _without(bare, {*hidden, *phrases}))
        self.vocab_size = max(every.values()) + 1
        self.specials: Mapping[str, int] = marks
        self._begins = re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))))
        chosen = special.resolve(self.path, known, every, {}, self.vocab_size)
        self.bos, self.eos, self.pad = chosen.bos, chosen.eos, chosen.pad
        self.stops = chosen.stops
        self._kind = how.kind
        self._begin = next(text for text, i in every.items() if i == self.bos), self.bos
        # Ids that decode to nothing. A stop may be an ordinary token, such as a newline.
        self._silent = frozenset(marks[text] for text in hidden)
        # Unigram with byte fallback finds byte tokens by their names in a text (see `_around`).
        self._named = spec["model"]["type"] == "Unigram" and bool(spec["model"]["byte_fallback"])
        space = [every[name] for name in map("<0x{:02X}>".format, SPACE.encode()) if name in every]
        self._space = space if len(space) == 3 and self.decode(self._ids(SPACE)) == " " else None

    def encode(self, text: str) -> list[int]:
        """Encodes a text without special tokens and without a dummy prefix."""
        return self._around(self._text, text)

    def plain(self, text: str) -> list[int]:
        """Encodes a text without special tokens and phrases."""
        return self._around(self._plain, text)

    def encode_special(self, text: str) -> list[int]:
        """Encodes a chat template's own text; the strings of special tokens become these tokens.

        After a special token the tokenizer may insert a space, as it does in transformers. Before
        the first special token it inserts none, since the text continues other text.
        """
        text = text.encode(errors="replace").decode()
        found = self._begins.search(text) if self.specials else None
        if found is None:
            return self.encode(text)
        return [
            *self.encode(text[: found.start()]),
            *self._ids(text[found.start() :], self._marked),
        ]

    @functools.cached_property
    def _marked(self):
        return _load(self.path, self._spec)

    def published(self, text: str) -> list[int]:
        """Encodes as transformers does, without BOS; for standard evaluations only.

        The file's dummy prefix applies, and the strings of special tokens become these tokens.
        """
        return self._ids(text.encode(errors="replace").decode(), self._whole)

    def prompt(self, text: str) -> list[int]:
        """Encodes a prompt as transformers does, with what the file's post-processor adds."""
        text = text.encode(errors="replace").decode()
        return self._ids(text, self._whole, add_special_tokens=True)

    @functools.cached_property
    def _whole(self):
        filed = special.read_object(self.path)
        post = classes.post_processor(
            filed[POST] if POST in filed else None, self._kind, self._begin
        )
        return _load(self.path, {**self._published_spec, POST: post})

    @functools.cached_property
    def begins(self) -> bool:
        """True if the file's post-processor puts BOS before a text."""
        return self.prompt("a")[:1] == [self.bos]

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes ids; special tokens and ids outside the vocabulary decode to nothing."""
        keep = [int(i) for i in ids if i not in self._silent and 0 <= i < self.vocab_size]
        return self._text.decode(keep, skip_special_tokens=False)

    def starts(self, token: int) -> bool:
        """Returns True for a token whose text begins with a whole character; see `Tokenizer`."""
        return 0 <= token < self.vocab_size and self._starts(token)

    @functools.cached_property
    def _starts(self):
        # Tokens have texts of their own only with decoders that are known to map each by itself.
        name = lambda token: self._text.id_to_token(token) or ""
        own = lambda token: self._singly and not BYTE.match(name(token))
        return functools.cache(
            lambda token: own(token) and self.decode([token])[:1] not in ("", "\ufffd")
        )

    def _ids(self, text: str, tokenizer=None, *, add_special_tokens: bool = False) -> list[int]:
        with _reported(self.path, "cannot encode a text with it"):
            found = (tokenizer or self._text).encode(text, add_special_tokens=add_special_tokens)
        return found.ids

    def _around(self, tokenizer, text: str) -> list[int]:
        """Encodes a text; a literal U+2581 or byte name such as <0x0A> decodes to itself.

        U+2581 is spelled in bytes, and byte names are cut in two, so that the tokenizer does not
        take them for a space or a byte.
        """
        text = text.encode(errors="replace").decode()  # UTF-8 cannot encode lone surrogates
        if self._space and SPACE in text:
            first, *rest = (self._around(tokenizer, part) for part in text.split(SPACE))
            return first + [i for part in rest for i in (*self._space, *part)]
        if not (self._named and "<0x" in text):
            return self._ids(text, tokenizer)
        cuts = [one.start() + 1 for one in BYTE.finditer(text)]
        parts = zip([0, *cuts], [*cuts, len(text)], strict=True)
        return [i for start, end in parts for i in self._ids(text[start:end], tokenizer)]


def _checked(path: epath.Path, known: Settings) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns tokenizer.json with the added and special tokens of the settings merged in, and the
    added tokens that are left out (`special.left_out`).

    Truncation, padding and post-processor are removed. Raises UserError if the file has another
    shape than a tokenizer.json, or the files contradict each other.
    """
    spec = special.read_object(path)
    model = _model(path, spec)
    listed: dict[str, dict[str, Any]] = {}
    tokens = spec["added_tokens"] if "added_tokens" in spec else None
    if not isinstance(tokens, list | None):
        raise UserError(f"{path}: added_tokens is not a list")
    for token in tokens or ():
        special.entry(path, "added_tokens", token, listed)
    added = {text: dict(token) for text, token in {**known.added, **listed}.items()}
    for text, token in known.added.items():
        if added[text]["id"] != token["id"]:
            raise UserError(
                f"{path}: token {text!r} is {added[text]['id']}, and {token['id']} in "
                f"{special.SETTINGS} or {special.ADDED}; use files of the same model"
            )
        added[text] = {**added[text], "special": token["special"] or added[text]["special"]}
    without = special.left_out(known, added)
    added = {text: token for text, token in added.items() if text not in without}
    every = _vocabulary(model["vocab"], added.values())
    _check_ids(path, every)
    added |= special.appended(known, every, without)
    every = _vocabulary(model["vocab"], added.values())
    special.check_named(path, known, every)
    for text in _special_texts(known, every):
        own = added[text] if text in added else {**USUAL, "content": text, "id": every[text]}
        added[text] = {**own, "special": True}
    for token in added.values():
        if any(token["id"] in ids for ids in known.ids.values()):
            token["special"] = True
    cleared = dict(truncation=None, padding=None, post_processor=None, model=model)
    listed_by_id = sorted(added.values(), key=lambda t: t["id"])
    return {**spec, **cleared, "added_tokens": listed_by_id}, without


def _special_texts(known: Settings, every: Mapping[str, int]) -> list[str]:
    """Returns the tokens that the settings call special, by text or, for BOS and EOS, by id."""
    found = [*known.names.values(), *(text for text in known.special if text in every)]
    for role in ("bos_token", "eos_token"):
        if role not in known.names and f"{role}_id" in known.ids:
            first = known.ids[f"{role}_id"][0]
            found += [text for text, i in every.items() if i == first]
    return found


def _model(path: epath.Path, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the model of a tokenizer.json; raises UserError if it has another shape."""
    model = spec["model"] if "model" in spec else None
    if not isinstance(model, dict) or "vocab" not in model:
        raise UserError(f"{path}: not a tokenizer.json: it has no key model with a vocab")
    model = {"type": "BPE", "byte_fallback": False, **model}
    usual = None if model["type"] == "BPE" else []  # BPE needs them
    vocab, merges = model["vocab"], model["merges"] if "merges" in model else usual
    if isinstance(vocab, dict):
        good = all(type(i) is int and 0 <= i < special.MOST_ID for i in vocab.values())
    else:
        pair = lambda x: isinstance(x, list) and len(x) == 2 and isinstance(x[0], str)
        good = isinstance(vocab, list) and all(map(pair, vocab))
    if not good:
        raise UserError(f"{path}: model.vocab is neither {{text: id}} nor a list of (text, score)")
    if not isinstance(merges, list) or not all(map(_is_merge, merges)):
        raise UserError(f"{path}: model.merges is not a list of pairs of tokens")
    for key in ("normalizer", "pre_tokenizer", "decoder", POST):
        if key in spec and not isinstance(spec[key], dict | None):
            raise UserError(f"{path}: {key} is not an object")
    return model


def _is_merge(pair: Any) -> bool:
    parts = pair.split(" ") if isinstance(pair, str) else pair
    return isinstance(parts, list) and len(parts) == 2 and all(isinstance(x, str) for x in parts)


def _check_ids(path: epath.Path, every: Mapping[str, int]) -> None:
    """Raises UserError if there is no token, or two tokens have one id."""
    if not every:
        raise UserError(f"{path}: the vocabulary is empty")
    if len(set(every.values())) < len(every):
        texts: dict[int, str] = {}
        for text, i in every.items():
            if i in texts:
                raise UserError(f"{path}: tokens {texts[i]!r} and {text!r} both have the id {i}")
            texts[i] = text


def _vocabulary(vocab: Any, added: Iterable[Mapping[str, Any]] = ()) -> dict[str, int]:
    """Returns token text -> id of all tokens."""
    # A Unigram vocabulary is a list of (text, score); the index is the id.
    pairs = vocab if isinstance(vocab, dict) else {p: i for i, (p, _) in enumerate(vocab)}
    return {**pairs, **{token["content"]: token["id"] for token in added}}


def _as_it_stands(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the file without steps that add or strip a space at the beginning of a text."""
    parts = ("normalizer", "pre_tokenizer", "decoder")
    return {**spec, **{key: _bare(spec[key]) for key in parts if key in spec}}


def _bare(part: Any) -> Any:
    """Returns a normaliser, pre-tokenizer or decoder that does not change a text's beginning.

    None: nothing of it is left. Sequences are handled recursively.
    """
    if not isinstance(part, dict):
        return part
    kind = _kind(part)
    if kind == "Prepend" or (kind == "Strip" and part.get("content") == " "):
        return None
    part = dict(part)
    for key, value in {"prepend_scheme": "never", "add_prefix_space": False}.items():
        if key in part:
            part[key] = value
    for key in ("normalizers", "pretokenizers", "decoders"):
        if key in part and isinstance(part[key], list):
            part[key] = [each for each in map(_bare, part[key]) if each is not None]
    return part


def _kind(part: Any) -> Any:
    """Returns the type of a normaliser, pre-tokenizer or decoder; None if it states none."""
    return part["type"] if isinstance(part, dict) and "type" in part else None


def _decodes_singly(decoder: Any) -> bool:
    """Returns True if a decoder (as `_bare` leaves it) maps each token by itself; see SINGLY.

    Without a decoder the library puts spaces between tokens.
    """
    if _kind(decoder) != "Sequence":
        return _kind(decoder) in SINGLY
    kinds = list(map(_kind, decoder["decoders"]))
    last = kinds[-1:] == ["Fuse"]  # joins what the others leave, so nothing may follow it
    return last and all(kind in SINGLY for kind in kinds[:-1])


def _without(spec: Mapping[str, Any], hidden: Collection[str]) -> dict[str, Any]:
    """Returns the file changed so that no text encodes to the `hidden` tokens; ids do not change.

    The tokens are renamed by a random prefix, and the BPE merges that involve them are dropped.
    """
    name = lambda text: f"{HIDDEN}{text}" if text in hidden else text
    model = {**spec["model"]}
    if isinstance(model["vocab"], dict):
        model["vocab"] = {name(text): i for text, i in model["vocab"].items()}
    else:
        model["vocab"] = [[name(text), score] for text, score in model["vocab"]]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = name(model["unk_token"])
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if not _makes(pair, hidden)]
    added = [{**token, "content": name(token["content"])} for token in spec["added_tokens"]]
    return {**spec, "model": model, "added_tokens": added}


def _makes(pair: str | Sequence[str], hidden: Collection[str]) -> bool:
    """Returns True if a BPE merge produces or uses one of the `hidden` tokens."""
    first, second = pair.split(" ") if isinstance(pair, str) else pair
    return not {first, second, first + second}.isdisjoint(hidden)


def _load(path: epath.Path, spec: Mapping[str, Any]):
    """Returns a tokenizers.Tokenizer made from `spec`; `path` names the file in errors."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError(f"{path}: needs tokenizers: pip install 'sip-jax[hf]'") from None
    with _reported(path, "not a tokenizer that can be read"):
        found = Tokenizer.from_str(json.dumps(spec))
    # The library assigns new ids to added tokens that are missing from the vocabulary.
    for token in spec["added_tokens"]:
        if found.token_to_id(token["content"]) != token["id"]:
            text = token["content"].removeprefix(HIDDEN)
            raise UserError(
                f"{path}: token {text!r} cannot have the id {token['id']}; "
                "ids of added tokens must continue the vocabulary"
            )
    return found


@contextlib.contextmanager
def _reported(path: epath.Path, what: str) -> Iterator[None]:
    """Turns any failure of the tokenizers library into a UserError about the file `path`."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError, RecursionError):
        raise
    except BaseException as error:  # plain Exception, and a panic is not even one of these
        raise UserError(f"{path}: {what} ({' '.join(str(error).split())[:300]})") from None
