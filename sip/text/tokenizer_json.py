"""Hugging Face tokenizers (`tokenizer.json`) whose encodings can be concatenated.

A file is loaded in three variants. The variant for text cannot produce special tokens: they are
renamed to random strings, also in the model's vocabulary. The variant for text under judgement
also hides phrases. The variant for chat templates has all tokens. The first two put no space before
a text. All three ignore the file's settings for truncation, padding and BOS.
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
OPTIONAL = (  # files that may be stored beside tokenizer.json and belong to it
    SETTINGS,
    "special_tokens_map.json",
    "generation_config.json",
    "config.json",
    "chat_template.jinja",
)
# Defaults of an entry in tokenizer.json's added_tokens.
USUAL = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=False)
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
SPACE = "\u2581"  # the character that stands for a space inside tokens
WORD = r"[^\S\n]*\w*"  # a token allowed in any text: one word (options are words) or white space
BYTE = re.compile(r"(?=<0x[0-9A-F]{2}>)")  # the name of a byte token, written out in a text


def is_phrase(symbol: str) -> bool:
    """Returns True if `plain` must not produce the symbol: not one word and not one character."""
    return len(symbol) > 1 and not re.fullmatch(WORD, symbol)


def files(path: str | os.PathLike) -> list[epath.Path]:
    """Returns the tokenizer.json at `path` (the file or its directory) and the files of OPTIONAL.

    Raises UserError if there is no tokenizer.json.
    """
    given = epath.Path(path)
    found = given / FILE if given.is_dir() else given
    if not found.is_file():
        raise UserError(f"{path}: neither a tokenizer.json nor a directory with one")
    beside = (found.parent / name for name in OPTIONAL)
    return [found, *(each for each in beside if each.is_file())]


@dataclass(frozen=True)
class Settings:
    """Settings from the files beside a tokenizer.json."""

    names: Mapping[str, str]  # role such as "bos_token" -> token text; missing roles are left out
    added: Mapping[str, dict[str, Any]]  # token text -> entry in the format of added_tokens
    special: tuple[str, ...]  # texts of additional special tokens
    ids: Mapping[str, tuple[int, ...]]  # "bos_token_id" -> ids in (generation_)config.json
    limit: int | None  # the model's vocab_size; None: unknown


def settings(path: str | os.PathLike) -> Settings:
    """Reads the settings beside the tokenizer at `path`.

    Raises UserError, naming the file, if a file is not a JSON object.
    """
    read = {each.name: _json(each) for each in files(path)[1:] if each.suffix == ".json"}
    of = lambda name, key: read[name][key] if name in read and key in read[name] else None
    named = ("special_tokens_map.json", SETTINGS)  # SETTINGS overrides the other
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
    """Returns the value of `key` in a JSON file; None if file or key is missing."""
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
    """A Tokenizer from a tokenizer.json and the settings files beside it.

    `bos` is the token named in the settings. Models trained without BOS (Qwen, GPT-2) saw each
    document after the token that ends the previous one. For them `bos` is `bos_token_id` of
    config.json or else EOS, so that the first token of a document has a context. A chat template
    writes its own beginning. If there is no pad token, `pad` is EOS. `stops` are EOS and the
    `eos_token_id`s of generation_config.json.

    Raises UserError for files that cannot be read, are not a tokenizer or contradict each other.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = files(path)[0]
        known = settings(path)
        spec = _checked(self.path, known)
        special = {t["content"]: t["id"] for t in spec["added_tokens"] if t["special"]}
        others = (t["content"] for t in spec["added_tokens"] if not t["special"])
        phrases = {text for text in others if is_phrase(text.replace(SPACE, " "))}
        self._spec = spec  # the third variant, `_marked`, is loaded when first needed
        self._text = _load(self.path, _without(_as_it_stands(spec), special))
        self._plain = self._text  # the same variant if there are no phrases
        if phrases:
            self._plain = _load(self.path, _without(_as_it_stands(spec), {*special, *phrases}))
        every = _vocabulary(spec["model"]["vocab"], spec["added_tokens"])
        self.vocab_size = max(every.values()) + 1
        self.specials: Mapping[str, int] = special
        self._special_ids = frozenset(special.values())
        self._begins = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
        # Unigram with byte fallback finds byte tokens by their names in a text (see `_around`).
        self._named = spec["model"]["type"] == "Unigram" and spec["model"]["byte_fallback"]
        space = [every[name] for name in map("<0x{:02X}>".format, SPACE.encode()) if name in every]
        self._space = space if len(space) == 3 and self.decode(self._ids(SPACE)) == " " else None
        self._choose(known)

    def _choose(self, known: Settings) -> None:
        """Sets bos, eos, pad and stops. Raises UserError if a token is missing or out of range."""

        def of(role: str, *others: int) -> int:
            # In order: the name in the settings, the id in config.json, the fallback `others`.
            if role in known.names:
                return self.specials[known.names[role]]
            found = [*(known.ids[f"{role}_id"] if f"{role}_id" in known.ids else ()), *others]
            if not found:
                raise UserError(f"{self.path}: {SETTINGS} beside it names no {role}; add one")
            return found[0]

        self.eos = of("eos_token")
        self.bos, self.pad = of("bos_token", self.eos), of("pad_token", self.eos)
        more = known.ids["eos_token_id"] if "eos_token_id" in known.ids else ()
        self.stops = tuple(dict.fromkeys((self.eos, *more)))
        self._special_ids |= {self.bos, self.pad, *self.stops}
        if known.limit is not None and known.limit < self.vocab_size:
            raise UserError(
                f"{self.path}: it has {self.vocab_size} tokens, but config.json beside it has a "
                f"vocab_size of {known.limit}; use the model's own tokenizer"
            )
        for i in (self.bos, self.pad, *self.stops):
            if not 0 <= i < self.vocab_size:
                raise UserError(
                    f"{self.path}: token id {i} in the files beside it is not among its "
                    f"{self.vocab_size} tokens; use the model's own tokenizer"
                )

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
        return self._ids(text.encode(errors="replace").decode(), self._marked)

    @functools.cached_property
    def begins(self) -> bool:
        """True if the file's post-processor puts BOS before a text."""
        whole = _load(self.path, {**self._spec, "post_processor": stated(self.path, POST)})
        return whole.encode("a").ids[:1] == [self.bos]

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes ids; special tokens and ids outside the vocabulary decode to nothing."""
        keep = [int(i) for i in ids if i not in self._special_ids and 0 <= i < self.vocab_size]
        return self._text.decode(keep, skip_special_tokens=False)

    def _ids(self, text: str, tokenizer=None) -> list[int]:
        return (tokenizer or self._text).encode(text, add_special_tokens=False).ids

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


def _checked(path: epath.Path, known: Settings) -> dict[str, Any]:
    """Returns tokenizer.json with the added and special tokens of the settings merged in.

    Truncation, padding and post-processor are removed. Raises UserError if the files contradict
    each other.
    """
    spec = _json(path)
    if not (isinstance(spec.get("model"), dict) and "vocab" in spec["model"]):
        raise UserError(f"{path}: not a tokenizer.json: it has no key model with a vocab")
    model = {"type": "BPE", "byte_fallback": False, **spec["model"]}
    listed = {token["content"]: {**USUAL, **token} for token in spec.get("added_tokens") or ()}
    added = {**known.added, **listed}
    for text, token in known.added.items():
        if added[text]["id"] != token["id"]:
            raise UserError(
                f"{path}: token {text!r} is {added[text]['id']}, and {token['id']} in {SETTINGS};"
                " use files of the same model"
            )
        added[text] = {**added[text], "special": token["special"] or added[text]["special"]}
    every = _vocabulary(model["vocab"], added.values())
    for text in (*known.names.values(), *known.special):
        if text not in every:
            raise UserError(
                f"{path}: it has no token {text!r}, which {SETTINGS} beside it names; "
                "use files of the same model"
            )
        own = added[text] if text in added else {**USUAL, "content": text, "id": every[text]}
        added[text] = {**own, "special": True}
    cleared = dict(truncation=None, padding=None, post_processor=None, model=model)
    return {**spec, **cleared, "added_tokens": sorted(added.values(), key=lambda t: t["id"])}


def _vocabulary(vocab: Any, added: Iterable[Mapping[str, Any]]) -> dict[str, int]:
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
    """Returns the file changed so that no text encodes to the `hidden` tokens; ids do not change.

    The tokens are renamed by a random prefix, and the BPE merges that involve them are dropped.
    """
    unguessable = secrets.token_hex(16)  # 128 random bits: no text contains it
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
    """Returns True if a BPE merge produces or uses one of the `hidden` tokens."""
    first, second = pair.split(" ") if isinstance(pair, str) else pair
    return not {first, second, first + second}.isdisjoint(hidden)


def _load(path: epath.Path, spec: Mapping[str, Any]):
    """Returns a tokenizers.Tokenizer made from `spec`; `path` names the file in errors."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError(f"{path}: needs tokenizers: pip install 'sip-jax[hf]'") from None
    try:
        found = Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # the library raises plain Exception
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a tokenizer that can be read ({reason})") from None
    # The library assigns new ids to added tokens that are missing from the vocabulary.
    for token in spec["added_tokens"]:
        if found.token_to_id(token["content"]) != token["id"]:
            raise UserError(
                f"{path}: token {token['content']!r} cannot have the id {token['id']}; "
                "ids of added tokens must continue the vocabulary"
            )
    return found
