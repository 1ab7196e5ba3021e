"""Hugging Face tokenizers (`tokenizer.json`), such that parts join and text stays text.

Three copies of one file are loaded. In that for text no special token can be found: each has a name
there that no text has, in the model's own vocabulary too. In that for text under judgement phrases
are hidden as well. In that for a chat template all is there. No text gets a space put before it,
and what the file says of truncation, padding and BOS is left out.
"""

import functools
import json
import os
import re
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from sip.structs import UserError

FILE, SETTINGS, POST = "tokenizer.json", "tokenizer_config.json", "post_processor"
OPTIONAL = (  # what may lie beside the file and belongs to it
    SETTINGS,
    "special_tokens_map.json",
    "generation_config.json",
    "config.json",
    "chat_template.jinja",
)
USUAL = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=False)
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
SPACE = "\u2581"
WORD = r"[^\S\n]*\w*"  # what any line may hold: a word, options among them, or white space
BYTE = re.compile(r"(?=<0x[0-9A-F]{2}>)")  # the name of a byte, which is no byte where it is text


def is_phrase(symbol: str) -> bool:
    """Whether a symbol is kept out of `plain` text: it is neither a word nor a single character."""
    return len(symbol) > 1 and not re.fullmatch(WORD, symbol)


def files(path: str | os.PathLike) -> list[epath.Path]:
    """The tokenizer.json at `path` (itself, or the directory it lies in) and what belongs to it.

    Raises UserError where there is none.
    """
    given = epath.Path(path)
    found = given / FILE if given.is_dir() else given
    if not found.is_file():
        raise UserError(f"{path}: neither a tokenizer.json nor a directory with one")
    beside = (found.parent / name for name in OPTIONAL)
    return [found, *(each for each in beside if each.is_file())]


@dataclass(frozen=True)
class Settings:
    """What the files beside a tokenizer.json say of it."""

    names: Mapping[str, str]  # "bos_token" -> its text; roles without a token are left out
    added: Mapping[str, dict[str, Any]]  # text -> an entry as tokenizer.json's added_tokens have it
    special: tuple[str, ...]  # more special tokens
    ids: Mapping[str, tuple[int, ...]]  # "bos_token_id" -> ids that the model's own files name
    limit: int | None  # the model's vocabulary


def settings(path: str | os.PathLike) -> Settings:
    """The settings beside the tokenizer at `path`. Raises UserError naming a file that is bad."""
    read = {each.name: _json(each) for each in files(path)[1:] if each.suffix == ".json"}
    of = lambda name, key: read[name][key] if name in read and key in read[name] else None
    named = ("special_tokens_map.json", SETTINGS)  # the latter has the last word
    names: dict[str, str] = {}
    for name, role in ((name, role) for name in named for role in ROLES):
        token = of(name, role)
        if token:
            names[role] = _content(token)
    special = [each for name in named for each in of(name, "additional_special_tokens") or ()]
    entries = of(SETTINGS, "added_tokens_decoder") or {}
    added = {one["content"]: {**USUAL, **one, "id": int(i)} for i, one in entries.items()}
    ids: dict[str, tuple[int, ...]] = {}
    for name, role in ((n, r) for n in ("config.json", "generation_config.json") for r in ROLES):
        value = of(name, f"{role}_id")
        if value is not None:
            ids[f"{role}_id"] = tuple(value) if isinstance(value, list) else (value,)
    more = tuple(map(_content, special))
    return Settings(names, added, more, ids, of("config.json", "vocab_size"))


def _content(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


def stated(path: epath.Path, key: str) -> Any:
    """What a JSON file says of `key`; None where it says nothing, or is not there."""
    found = _json(path) if path.is_file() else {}
    return found[key] if key in found else None


def _json(path: epath.Path) -> Any:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the tokenizer: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: not a JSON object")
    return found


class HuggingFace:
    """A tokenizer.json and the settings beside it.

    BOS is the token that the settings name. Models that were trained without one (Qwen, GPT-2) have
    seen documents behind the token that ends them: there BOS is what config.json names as
    `bos_token_id`, or else EOS, so that no document begins out of nothing. A chat template writes
    its own beginning. Without a pad of its own, pad is EOS. `stops` end an answer: EOS, and what
    generation_config.json lists.

    Raises UserError for files that cannot be read, are no tokenizer or do not fit each other.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = files(path)[0]
        known = settings(path)
        spec = _checked(self.path, known)
        special = {t["content"]: t["id"] for t in spec["added_tokens"] if t["special"]}
        others = (t["content"] for t in spec["added_tokens"] if not t["special"])
        phrases = {text for text in others if is_phrase(text.replace(SPACE, " "))}
        self._spec = spec
        self._text = _load(self.path, _without(_as_it_stands(spec), special))
        self._plain = self._text
        if phrases:
            self._plain = _load(self.path, _without(_as_it_stands(spec), {*special, *phrases}))
        every = _vocabulary(spec["model"]["vocab"], spec["added_tokens"])
        self.vocab_size = max(every.values()) + 1
        self.specials: Mapping[str, int] = special
        self._special_ids = frozenset(special.values())
        self._begins = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
        self._named = spec["model"]["type"] == "Unigram" and spec["model"]["byte_fallback"]
        space = [every[name] for name in map("<0x{:02X}>".format, SPACE.encode()) if name in every]
        self._space = space if len(space) == 3 and self.decode(self._ids(SPACE)) == " " else None
        self._choose(known)

    def _choose(self, known: Settings) -> None:
        """bos, eos, pad and stops."""

        def of(role: str, *others: int) -> int:
            if role in known.names:
                return self.specials[known.names[role]]
            found = [*(known.ids[f"{role}_id"] if f"{role}_id" in known.ids else ()), *others]
            if not found:
                raise UserError(f"{self.path}: {SETTINGS} beside it names no {role}")
            return found[0]

        self.eos = of("eos_token")
        self.bos, self.pad = of("bos_token", self.eos), of("pad_token", self.eos)
        more = known.ids["eos_token_id"] if "eos_token_id" in known.ids else ()
        self.stops = tuple(dict.fromkeys((self.eos, *more)))
        self._special_ids |= {self.bos, self.pad, *self.stops}
        if known.limit is not None and known.limit < self.vocab_size:
            raise UserError(
                f"{self.path}: it has {self.vocab_size} tokens, config.json beside it a "
                f"vocab_size of {known.limit}: is this another model's tokenizer?"
            )
        for i in (self.bos, self.pad, *self.stops):
            if not 0 <= i < self.vocab_size:
                raise UserError(
                    f"{self.path}: token {i} of the files beside it is none of its "
                    f"{self.vocab_size}: is this another model's tokenizer?"
                )

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: no special tokens, no dummy prefix."""
        return self._around(self._text, text)

    def plain(self, text: str) -> list[int]:
        """Ids of a text in which phrases of the tokenizer are spelled out."""
        return self._around(self._plain, text)

    def encode_special(self, text: str) -> list[int]:
        """Ids of a chat template's own text: the strings of special tokens are those tokens.

        Behind a special token a tokenizer may put a space, as transformers lets it; before a text
        that goes on after something else it puts none.
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
        """Ids as transformers gives them, with a space that the file puts before a text, and the
        strings of special tokens as those tokens; without BOS. For standard evaluations alone."""
        return self._ids(text.encode(errors="replace").decode(), self._marked)

    @functools.cached_property
    def begins(self) -> bool:
        """Whether the file puts BOS before a text."""
        whole = _load(self.path, {**self._spec, "post_processor": stated(self.path, POST)})
        return whole.encode("a").ids[:1] == [self.bos]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; special tokens and ids outside the vocabulary have none."""
        keep = [int(i) for i in ids if i not in self._special_ids and 0 <= i < self.vocab_size]
        return self._text.decode(keep, skip_special_tokens=False)

    def _ids(self, text: str, tokenizer=None) -> list[int]:
        return (tokenizer or self._text).encode(text, add_special_tokens=False).ids

    def _around(self, tokenizer, text: str) -> list[int]:
        """Ids of a text, in which what is spelled as a byte or as the mark of a space stays so."""
        text = text.encode(errors="replace").decode()  # a lone surrogate is no text
        if self._space and SPACE in text:
            first, *rest = (self._around(tokenizer, part) for part in text.split(SPACE))
            return first + [i for part in rest for i in (*self._space, *part)]
        if not (self._named and "<0x" in text):
            return self._ids(text, tokenizer)
        cuts = [one.start() + 1 for one in BYTE.finditer(text)]
        parts = zip([0, *cuts], [*cuts, len(text)], strict=True)
        return [i for start, end in parts for i in self._ids(text[start:end], tokenizer)]


def _checked(path: epath.Path, known: Settings) -> dict[str, Any]:
    """tokenizer.json with the tokens that the settings add, or call special."""
    spec = _json(path)
    if not (isinstance(spec.get("model"), dict) and "vocab" in spec["model"]):
        raise UserError(f"{path}: not a tokenizer.json: it has no model with a vocabulary")
    model = {"type": "BPE", "byte_fallback": False, **spec["model"]}
    listed = {token["content"]: {**USUAL, **token} for token in spec.get("added_tokens") or ()}
    added = {**known.added, **listed}
    for text, token in known.added.items():
        if added[text]["id"] != token["id"]:
            raise UserError(
                f"{path}: token {text!r} is {added[text]['id']}, and {token['id']} in {SETTINGS}"
            )
        added[text] = {**added[text], "special": token["special"] or added[text]["special"]}
    every = _vocabulary(model["vocab"], added.values())
    for text in (*known.names.values(), *known.special):
        if text not in every:
            raise UserError(f"{path}: it has no token {text!r}, which {SETTINGS} beside it names")
        own = added[text] if text in added else {**USUAL, "content": text, "id": every[text]}
        added[text] = {**own, "special": True}
    cleared = dict(truncation=None, padding=None, post_processor=None, model=model)
    return {**spec, **cleared, "added_tokens": sorted(added.values(), key=lambda t: t["id"])}


def _vocabulary(vocab: Any, added: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Text -> id of all tokens."""
    pairs = vocab if isinstance(vocab, dict) else {p: i for i, (p, _) in enumerate(vocab)}
    return {**pairs, **{token["content"]: token["id"] for token in added}}


def _as_it_stands(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The file without a space that is put before a text or taken from its beginning."""
    parts = ("normalizer", "pre_tokenizer", "decoder")
    return {**spec, **{key: _bare(spec[key]) for key in parts if key in spec}}


def _bare(part: Any) -> Any:
    """A normaliser, pre-tokenizer or decoder that leaves the beginning of a text alone."""
    if not isinstance(part, dict):
        return part
    if part["type"] == "Prepend" or (part["type"] == "Strip" and part.get("content") == " "):
        return None
    part = dict(part)
    for key, value in {"prepend_scheme": "never", "add_prefix_space": False}.items():
        if key in part:
            part[key] = value
    for key in ("normalizers", "pretokenizers", "decoders"):
        if key in part:
            part[key] = [each for each in map(_bare, part[key]) if each is not None]
    return part


def _without(spec: Mapping[str, Any], hidden: Collection[str]) -> dict[str, Any]:
    """The file in which no text becomes one of the `hidden` tokens; all ids stay."""
    unguessable = secrets.token_hex(16)
    name = lambda text: f"{unguessable}{text}" if text in hidden else text
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
    """Whether a merge makes one of them, or is made of one."""
    first, second = pair.split(" ") if isinstance(pair, str) else pair
    return not {first, second, first + second}.isdisjoint(hidden)


def _load(path: epath.Path, spec: Mapping[str, Any]):
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError(f"{path}: needs tokenizers: pip install 'sip-jax[hf]'") from None
    try:
        found = Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # the library raises nothing narrower
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a tokenizer that can be read ({reason})") from None
    for token in spec["added_tokens"]:
        if found.token_to_id(token["content"]) != token["id"]:
            raise UserError(
                f"{path}: token {token['content']!r} cannot have the number {token['id']}"
            )
    return found
