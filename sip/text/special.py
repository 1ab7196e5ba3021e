"""Special tokens: their names, ids and settings, from the files beside a tokenizer.

A published checkpoint states them in up to six files. `settings` reads these files and checks their
shapes. `resolve` chooses BOS, EOS, pad and the stops, alike for all kinds of tokenizers.
"""

import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from etils import epath

from sip.structs import UserError
from sip.text import classes

SETTINGS, NAMES, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
GENERATION, CONFIG = "generation_config.json", "config.json"
BESIDE = (SETTINGS, NAMES, ADDED, GENERATION, CONFIG, "chat_template.jinja")
MOST_BYTES = 1 << 29  # of a JSON file; the largest published tokenizer.json has about 40 MB
MOST_ID = 1 << 24  # published vocabularies have fewer than 2^19 tokens
# Defaults of an entry in tokenizer.json's added_tokens.
USUAL = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=False)
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
LISTS = ("additional_special_tokens", "extra_special_tokens")
OTHER_ROLES = ("sep_token", "cls_token", "mask_token")
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escaped half of a pair


@dataclass(frozen=True)
class Beginning:
    """The beginning of a text in transformers 5: BOS and a space."""

    bos: bool  # a tokenizer.model: put BOS before a text
    eos: bool  # a tokenizer.model: put EOS after a text
    space: bool | None  # put a space before a text; None: not stated
    legacy: bool | None  # also before the text after a special token; None: not stated
    kind: str  # name of the class in transformers, see sip.text.classes

    @property
    def llama(self) -> bool:
        """True for the classes of Llama, which take only the vocabulary of a tokenizer.model."""
        return self.kind in (classes.LLAMA, classes.CODE_LLAMA)


@dataclass(frozen=True)
class Settings:
    """Settings from the files beside a tokenizer."""

    names: Mapping[str, str]  # role such as "bos_token" -> token text; missing roles are left out
    added: Mapping[str, dict[str, Any]]  # token text -> entry in the format of added_tokens
    special: tuple[str, ...]  # texts of additional special tokens
    ids: Mapping[str, tuple[int, ...]]  # "bos_token_id" -> ids in (generation_)config.json
    limit: int | None  # the model's vocab_size; None: unknown
    beginning: Beginning

    @property
    def empty(self) -> bool:
        """True if the files beside the tokenizer add nothing to it."""
        return not (self.names or self.added or self.special or self.ids)


NOTHING = Settings({}, {}, (), {}, None, Beginning(False, False, None, None, classes.AS_FILED))


@dataclass(frozen=True)
class Chosen:
    """The token ids that `resolve` has chosen."""

    bos: int
    eos: int
    pad: int
    stops: tuple[int, ...]  # EOS first


def folder_of(path: str | os.PathLike) -> epath.Path:
    """Returns the directory of a tokenizer, given its file or the directory."""
    given = epath.Path(path)
    return given if given.is_dir() else given.parent


def beside(path: str | os.PathLike) -> list[epath.Path]:
    """Returns the files of BESIDE that exist beside a tokenizer."""
    return [each for name in BESIDE if (each := folder_of(path) / name).is_file()]


def settings(path: str | os.PathLike) -> Settings:
    """Reads the settings beside the tokenizer at `path`, its file or directory.

    Raises UserError, naming file and key, if a file is not a JSON object or a value has another
    type than in published files.
    """
    found = {each.name: read_object(each) for each in beside(path) if each.suffix == ".json"}
    read = {name: _File(folder_of(path) / name, found.get(name, {})) for name in BESIDE}
    names, said = read[NAMES], read[SETTINGS]
    # As in transformers 5: special_tokens_map.json counts only without an added_tokens_decoder.
    chosen: dict[str, str] = {}
    decoder = said.has("added_tokens_decoder")
    for file in (names, said) if decoder else (said, names):
        for role in filter(file.has, ROLES):
            if text := file.text(role):
                chosen[role] = text
            else:
                chosen.pop(role, None)
    more = (*said.roles(), *(t for file in (names, said) for key in LISTS for t in file.texts(key)))
    special = {*chosen.values(), *more}
    added = said.entries() if decoder else read[ADDED].numbered(special)
    ids: dict[str, tuple[int, ...]] = {}
    config = _File(read[CONFIG].path, with_text_part(read[CONFIG].value))
    for file in (config, read[GENERATION]):  # per id, the latter counts
        for key in (f"{role}_id" for role in ROLES):
            if given := file.ids(key):
                ids[key] = given
    limit = config.whole("vocab_size") if config.has("vocab_size") else None
    return Settings(chosen, added, more, ids, limit, _beginning(said, config))


def _beginning(said: "_File", config: "_File") -> Beginning:
    named = said.string("tokenizer_class") or config.string("tokenizer_class")
    kind = classes.chosen(named, config.string("model_type"))
    bos, legacy = said.flag("add_bos_token"), said.flag("legacy")
    if kind == classes.CODE_LLAMA:  # it puts BOS unless told otherwise, and has no older form
        bos, legacy = bos is not False, False
    return Beginning(
        bos is True, said.flag("add_eos_token") is True, said.flag("add_prefix_space"), legacy, kind
    )


@dataclass(frozen=True)
class _File:
    """A JSON object and the file that it comes from; errors name both."""

    path: epath.Path
    value: Mapping[str, Any]

    def has(self, key: str) -> bool:
        return key in self.value

    def wrong(self, key: str, value: Any, needed: str) -> UserError:
        return UserError(f"{self.path}: {key} is {_short(value)}; must be {needed}")

    def flag(self, key: str) -> bool | None:
        value = self.value[key] if key in self.value else None
        if not isinstance(value, bool | None):
            raise self.wrong(key, value, "true or false")
        return value

    def whole(self, key: str) -> int:
        value = self.value[key]
        if type(value) is not int or value < 1:
            raise self.wrong(key, value, "a whole number from 1")
        return value

    def string(self, key: str) -> str | None:
        value = self.value[key] if key in self.value else None
        if not isinstance(value, str | None):
            raise self.wrong(key, value, "a text")
        return value

    def roles(self) -> list[str]:
        """Returns the tokens of other roles than ROLES, such as `image_token`."""
        known = (*ROLES, *OTHER_ROLES)
        rare = (key for key in self.value if key.endswith("_token") and key not in known)
        texts = (key for key in rare if isinstance(self.value[key], str))  # others are flags
        return list(filter(None, map(self.text, (*filter(self.has, OTHER_ROLES), *texts))))

    def text(self, key: str) -> str:
        """Returns a token's text, which may stand in an object; "" for null."""
        return self._text(key, self.value[key])

    def _text(self, key: str, value: Any) -> str:
        text = value["content"] if isinstance(value, dict) and "content" in value else value
        if not isinstance(text, str | None):
            raise self.wrong(key, value, "the text of a token")
        return text or ""

    def texts(self, key: str) -> list[str]:
        """Returns the tokens of a list, or of an object with named tokens."""
        value = self.value[key] if key in self.value else None
        if not isinstance(value, list | dict | None):
            raise self.wrong(key, value, "a list of tokens")
        each = value.values() if isinstance(value, dict) else value or ()
        return list(filter(None, (self._text(key, one) for one in each)))

    def entries(self) -> dict[str, dict[str, Any]]:
        """Returns added_tokens_decoder, {id: entry}, by the tokens' texts."""
        key, found = "added_tokens_decoder", {}
        for number, one in self._object(key, self.value[key]).items():
            if not number.isdecimal() or len(number) > 9 or not isinstance(one, dict):
                raise self.wrong(f"{key}.{number}", one, "the entry of a token id")
            entry(self.path, key, one | {"id": int(number)}, found)
        return found

    def numbered(self, special: set[str]) -> dict[str, dict[str, Any]]:
        """Returns the entries of added_tokens.json, {text: id}."""
        found: dict[str, dict[str, Any]] = {}
        for text, number in self.value.items():
            said = dict(special=text in special, normalized=text not in special)
            entry(self.path, text, {"content": text, "id": number, **said}, found)
        return found

    def _object(self, key: str, value: Any) -> Mapping[str, Any]:
        if not isinstance(value, dict | None):
            raise self.wrong(key, value, "an object")
        return value or {}

    def ids(self, key: str) -> tuple[int, ...]:
        """Returns one id or several; a negative one means none, as in transformers."""
        value = self.value[key] if key in self.value else None
        found = value if isinstance(value, list) else [] if value is None else [value]
        for one in found:
            if type(one) is not int or one > MOST_ID:
                raise self.wrong(key, value, "a token id, a list of token ids or null")
        return tuple(one for one in found if one >= 0)


def entry(path, key: str, value: Any, found: dict[str, dict[str, Any]]) -> None:
    """Checks the entry of an added token and puts it into `found`, by the token's text.

    Raises UserError, naming the file `path` and `key`, if it is not an entry, or contradicts one
    that has been found.
    """
    wrong = UserError(f"{path}: {key}: {_short(value)} is not an added token with content and id")
    if not isinstance(value, dict) or not {"content", "id"} <= value.keys():
        raise wrong
    text, number = value["content"], value["id"]
    marks = {name: value[name] for name in USUAL if name in value}
    if type(text) is not str or not text or type(number) is not int or not 0 <= number < MOST_ID:
        raise wrong
    if any(type(mark) is not bool for mark in marks.values()):
        raise wrong
    if text in found and found[text]["id"] != number:
        raise UserError(f"{path}: {key}: token {text!r} has the ids {found[text]['id']}, {number}")
    found[text] = {**USUAL, "content": text, "id": number, **marks}


def resolve(
    path: Any, known: Settings, every: Mapping[str, int], own: Mapping[str, int], size: int
) -> Chosen:
    """Chooses BOS, EOS, pad and stops.

    Each comes from the first that has it: the name in the settings, the tokenizer's own id, the
    ids of generation_config.json, those of config.json. Without BOS or pad it is EOS. The stops
    are EOS and all `eos_token_id`s.

    Args:
        path: The tokenizer's file, for errors.
        known: The settings beside it.
        every: Token text -> id; empty if the files beside it name no token and no id.
        own: Role -> id that the tokenizer's file states itself.
        size: Number of tokens.

    Raises:
        UserError: There is no EOS, or an id has no token.
    """

    def of(role: str, *others: int) -> int:
        if role in known.names:
            return every[known.names[role]]
        ids = known.ids[f"{role}_id"] if f"{role}_id" in known.ids else ()
        found = [*([own[role]] if role in own else []), *ids, *others]
        if not found:
            raise UserError(f"{path}: {SETTINGS} beside it names no {role}; add one")
        return found[0]

    eos = of("eos_token")
    more = known.ids["eos_token_id"] if "eos_token_id" in known.ids else ()
    chosen = Chosen(
        of("bos_token", eos), eos, of("pad_token", eos), tuple(dict.fromkeys((eos, *more)))
    )
    if known.limit is not None and known.limit < size:
        raise UserError(
            f"{path}: it has {size} tokens, but config.json beside it has a vocab_size of "
            f"{known.limit}; use the model's own tokenizer"
        )
    held = set(every.values()) or range(size)
    for i in (chosen.bos, chosen.pad, *chosen.stops):
        if i not in held:
            raise UserError(
                f"{path}: token id {i} in the files beside it is not among its {len(held)} tokens; "
                "use the model's own tokenizer"
            )
    return chosen


def left_out(known: Settings, added: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Returns the added tokens (text -> entry) that are beyond the model's vocabulary.

    The tokenizer of a model without images may still have its image tokens. A token that is BOS,
    EOS, pad, unk or a stop is not left out: without it, the files are those of another model.
    """
    if known.limit is None:
        return ()
    roles = set(known.names.values())
    ids = {i for each in known.ids.values() for i in each}
    beyond = (text for text, one in added.items() if one["id"] >= known.limit)
    return tuple(text for text in beyond if text not in roles and added[text]["id"] not in ids)


def check_named(path: Any, known: Settings, every: Mapping[str, int]) -> None:
    """Raises UserError if the settings name a token for a role that the tokenizer lacks."""
    for text in known.names.values():
        if text not in every:
            raise UserError(
                f"{path}: it has no token {text!r}, which {SETTINGS} or {NAMES} beside it names; "
                "use files of the same model"
            )


def appended(
    known: Settings, every: Mapping[str, int], without: Collection[str]
) -> dict[str, dict[str, Any]]:
    """Returns entries of the additional special tokens that the tokenizer lacks.

    As in transformers, their ids follow the last one. They are left out where the model's
    vocabulary is not known to have room for them; then they are plain text. So are those of
    `without`, which have ids beyond it.
    """
    new = [text for text in dict.fromkeys(known.special) if not (text in every or text in without)]
    first = max(every.values()) + 1
    room = max(0, (known.limit or 0) - first)
    return {
        text: {**USUAL, "content": text, "id": first + i, "special": True}
        for i, text in enumerate(new[:room])
    }


def with_text_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of config.json, and those that only its `text_config` has.

    Models of text and images have the fields of their language model there.
    """
    part = config["text_config"] if "text_config" in config else None
    return {**(part if isinstance(part, dict) else {}), **config}


def read_object(path: Any) -> dict[str, Any]:
    """Reads a JSON object; a byte order mark is skipped. Raises UserError naming the file."""
    path = epath.Path(path)
    try:
        if path.stat().length > MOST_BYTES:
            raise UserError(f"{path}: larger than {MOST_BYTES >> 20} MiB; not a file of this kind")
        text = path.read_bytes().decode("utf-8-sig")
        found = json.loads(text, parse_int=_number)
        if SURROGATE.search(text):
            json.dumps(found, ensure_ascii=False).encode()  # fails for half of a pair
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise UserError(f"{path}: has half of a surrogate pair, {half!a}, in a text") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: not a JSON object")
    return found


def _number(digits: str) -> int | float:
    """Returns an integer; one beyond 64 bits is a float, perhaps infinite, as in other readers."""
    return int(digits) if len(digits) < 20 else float(digits)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
