"""Chat templates: conversations as prompts, with the messages kept as separate segments.

`render` writes a conversation as transformers does (jinja2 in a sandbox, with its extensions, in a
process of its own: sip/text/sandbox.py).
`segments` returns the same text in parts: the template's text (`Markup`, where special tokens are
parsed) and the messages (where their strings are plain text). The template is rendered with random
placeholder words, which are replaced by the messages afterwards. So the content of a message cannot
change what the template does: a template that searches messages (for example to remove thoughts)
finds nothing. The template does see the white space around a message and empty messages, so it can
trim them.
"""

import datetime
import functools
import importlib.resources
import importlib.util
import json
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from etils import epath

from sip import processes
from sip.structs import UserError
from sip.text.rendering import RENDERER
from sip.text.segments import Markup
from sip.text.special import SETTINGS, read_object, settings
from sip.text.tokenizer import SentencePiece, Tokenizer
from sip.text.tokenizer_json import HuggingFace
from sip.workdir import place, shared_dir, write_json

OWN = "own"  # the config value for the tokenizer's own template
BESIDE = "chat_template.jinja"  # file beside a tokenizer.json
BUILT_IN = ("harmony", "turns")
MARKS = ("<|system|>", "<|user|>", "<|assistant|>")  # of the template "turns"
CLOCK = "strftime_now"  # the function by which a template writes the date
DAY = "chat_date.json"  # file of a workdir
Message = Mapping[str, Any]  # role, content, and other keys that a template reads


@dataclass(frozen=True)
class Template:
    """A jinja chat template and the special tokens that it can read."""

    source: str  # jinja2 source
    names: Mapping[str, str] = field(default_factory=dict)  # variables: "bos_token" -> "<s>"
    title: str = "chat template"  # name of the template in errors
    today: str = ""  # the date that the template may write, YYYY-MM-DD; empty: the present one


@dataclass(frozen=True)
class Turn:
    """The template text around one user message, up to the assistant's answer."""

    head: str  # before the user message
    tail: str  # from the message to the end of the generation prompt; the model goes on from here
    direct: str  # from the message to the answer's first word, skipping thoughts (left empty)
    space: str  # spaces between `direct` and the answer; they belong to its first token


def load(name: str, tokenizer: Tokenizer, workdir: str = "") -> Template:
    """Loads the template of a config's `chat` key.

    `name` is "own" (the tokenizer's own template), a built-in template or the path of a .jinja
    file. A template that writes the date writes that of `workdir`, see `day`.

    Raises UserError if there is no such template.
    """
    title = f"chat {name!r}"
    if name == OWN:
        if not isinstance(tokenizer, HuggingFace | SentencePiece):
            raise UserError(f"{title}: this kind of tokenizer has no template; give a .jinja file")
        found = replace(of_tokenizer(tokenizer.path), names=_names(tokenizer))
    elif name in BUILT_IN:
        path = importlib.resources.files("sip") / "templates" / "chat" / f"{name}.jinja"
        found = Template(path.read_text(encoding="utf-8"), _names(tokenizer), title)
    else:
        path = epath.Path(place(name))
        if not name.endswith(".jinja") or not path.is_file():
            known = f"{OWN!r}, one of {BUILT_IN} or an existing .jinja file"
            raise UserError(f"{title}: must be {known}")
        found = Template(_text(path), _names(tokenizer), title)
    return replace(found, today=day(workdir)) if workdir and CLOCK in found.source else found


def day(workdir: str) -> str:
    """Returns the date that templates write in all prompts of a workdir, YYYY-MM-DD.

    It is the first day that one was asked for, recorded in WORKDIR/chat_date.json: a run that is
    resumed tomorrow has the prompts of today. Raises UserError if the file cannot be read or
    written.
    """
    return processes.broadcast(lambda: _day(shared_dir(workdir) / DAY))


def _day(path: epath.Path) -> str:
    try:
        if not path.exists():
            write_json(path, {"date": _now()})
        return datetime.date.fromisoformat(json.loads(path.read_text())["date"]).isoformat()
    except OSError as error:
        raise UserError(f"{path}: the date of chat templates: {error.strerror}") from None
    except (ValueError, LookupError, TypeError):
        raise UserError(f'{path}: must be {{"date": "YYYY-MM-DD"}}; correct or delete it') from None


def _now() -> str:
    return datetime.datetime.now().date().isoformat()


def check(name: str, key: str) -> None:
    """Raises UserError naming the config key if `name` cannot be a template. Empty: no template."""
    there = name.endswith(".jinja") and epath.Path(place(name)).is_file()
    if name and name != OWN and name not in BUILT_IN and not there:
        raise UserError(
            f"{key} {name!r}: must be empty, {OWN!r}, one of {BUILT_IN} or an existing .jinja file"
        )


def of_tokenizer(path: str | os.PathLike, name: str = "default") -> Template:
    """Reads the chat template stored beside a tokenizer.

    chat_template.jinja is the default template, if it exists; else the one in
    tokenizer_config.json, which may have several named templates. Raises UserError if there is no
    template `name`.
    """
    folder = epath.Path(path) if epath.Path(path).is_dir() else epath.Path(path).parent
    found: dict[str, str] = {}
    if (folder / SETTINGS).is_file():
        read = read_object(folder / SETTINGS)
        given = read["chat_template"] if "chat_template" in read else None
        if isinstance(given, str):
            found["default"] = given
        elif not isinstance(given, list | None):
            raise UserError(f"{folder / SETTINGS}: chat_template is neither a text nor named texts")
        else:
            found = dict(_named(folder, each) for each in given or ())
    if (folder / BESIDE).is_file():
        found["default"] = _text(folder / BESIDE)
    if name not in found:
        raise UserError(f"{folder}: no chat template {name!r} in {BESIDE} or {SETTINGS}")
    return Template(found[name], settings(path).names, f"{folder}: chat template")


def _named(folder: epath.Path, given: Any) -> tuple[str, str]:
    """Returns name and source of one of several templates in tokenizer_config.json."""
    keys = ("name", "template")
    if not isinstance(given, dict) or any(type(given.get(key)) is not str for key in keys):
        raise UserError(f"{folder / SETTINGS}: chat_template is neither a text nor named texts")
    return given["name"], given["template"]


def _text(path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the chat template cannot be read: {error}") from None


def _names(tokenizer: Tokenizer) -> Mapping[str, str]:
    """Returns the texts of bos_token, eos_token and pad_token, if they have one."""
    if isinstance(tokenizer, HuggingFace):
        return settings(tokenizer.path).names
    texts = {id: text for text, id in tokenizer.specials.items()}
    ids = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos, "pad_token": tokenizer.pad}
    return {role: texts[id] for role, id in ids.items() if id in texts}


def render(
    template: Template, messages: Sequence[Message], *, add_generation_prompt: bool, **variables
) -> str:
    """Renders a conversation as one text. `variables` are further variables of the template.

    Raises UserError (one line) if the template is invalid, rejects the conversation, or takes too
    much time or memory.
    """
    given = {"tools": None, "documents": None, **template.names, **variables}
    given |= {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
    if importlib.util.find_spec("jinja2") is None:
        raise UserError("chat templates need jinja2: pip install 'sip-jax[hf]'")
    try:
        return RENDERER.render(template.source, template.today or _now(), given)
    except UserError as error:
        raise UserError(f"{template.title}: {error}") from None


def segments(
    template: Template, messages: Sequence[Message], *, add_generation_prompt: bool, **variables
) -> tuple[str, ...]:
    """Renders a conversation as segments: `Markup` at even places, messages at odd places.

    Joined, they equal the result of `render`, unless the template depends on message content.
    Raises UserError if the white space around messages changes which messages are rendered, or if
    the template changes white space other than by trimming it.
    """
    return placed(template, messages, add_generation_prompt=add_generation_prompt, **variables)[0]


def placed(
    template: Template, messages: Sequence[Message], *, add_generation_prompt: bool, **variables
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Returns the segments of a conversation, and the index of the message at each odd place.

    Raises UserError as `segments` does.
    """
    how = {"add_generation_prompt": add_generation_prompt, **variables}
    # One random placeholder per message; an empty message stays empty, as templates test for it.
    words = [secrets.token_hex(16) if m["content"].strip() else "" for m in messages]
    put = lambda contents: [
        {**m, "content": text} for m, text in zip(messages, contents, strict=True)
    ]
    edges = [_edges(m["content"]) for m in messages]
    # Render twice, with the white space around messages (shown) and without it (bare): comparing
    # the two tells which of it the template trims.
    shown = [f"{a}{w}{c}" if w else a + c for w, (a, _, c) in zip(words, edges, strict=True)]
    bare = [w or a + c for w, (a, _, c) in zip(words, edges, strict=True)]
    either = re.compile(f"({'|'.join(filter(None, words)) or '(?!)'})")
    apart = either.split(render(template, put(bare), **how))
    whole = apart if shown == bare else either.split(render(template, put(shown), **how))
    if apart[1::2] != whole[1::2]:
        raise UserError(
            f"{template.title}: white space around a message changes which messages are shown"
        )
    order = tuple(words.index(word) for word in apart[1::2])
    at = [edges[i] for i in order]
    return _joined(template, apart[::2], whole[::2], at), order


def _edges(text: str) -> tuple[str, str, str]:
    """Splits a text into (leading white space, inner text, trailing white space)."""
    inner = text.strip()
    start = text.index(inner)
    return text[:start], inner, text[start + len(inner) :]


def _joined(template: Template, apart, whole, edges) -> tuple[str, ...]:
    """Returns the segments; each message has the white space that the template did not trim.

    `apart` are the template's texts between messages, rendered without white space around the
    messages; `whole` are the same texts rendered with it. `edges` are the messages' `_edges`.
    """
    before = ["", *(after for _, _, after in edges)]
    behind = [*(lead for lead, _, _ in edges), ""]
    kept = []
    for own, found, after, lead in zip(apart, whole, before, behind, strict=True):
        # Either kept or trimmed, on both sides: four possibilities.
        fits = [(a, b) for a in (after, "") for b in (lead, "") if a + own + b == found]
        if not fits:
            raise UserError(
                f"{template.title}: it changes white space around messages, which is not supported"
            )
        kept.append(fits[0])
    parts: list[str] = [Markup(apart[0])]
    for i, (_, inner, _) in enumerate(edges):
        parts += [kept[i][1] + inner + kept[i + 1][0], Markup(apart[i + 1])]
    return tuple(parts)


@functools.lru_cache(maxsize=32)
def _turn(source: str, names: tuple[tuple[str, str], ...], title: str, today: str = "") -> Turn:
    # Render a question alone, with the generation prompt, and the same question with its answer.
    template = Template(source, dict(names), title, today)
    user, says = {"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}
    alone = segments(template, [user], add_generation_prompt=True)
    both = segments(template, [user, says], add_generation_prompt=False)
    if len(alone) != 3 or len(both) != 5 or both[0] != alone[0]:
        raise UserError(
            f"{title}: it does not write a message of a user and its answer exactly once"
        )
    if _ignores_roles(template, user, says):
        raise UserError(
            f"{title}: it writes an answer like a message of the user; use another chat template"
        )
    # Spaces before the answer belong to its first token, so they are split off into `space`.
    direct = both[2].rstrip(" ")
    if not direct.startswith(alone[2].rstrip(" ")):
        raise UserError(
            f"{title}: an answer does not begin where the generation prompt ends; "
            "use another chat template"
        )
    # A template without a generation prompt: the answer begins behind the header of an answer.
    bare = segments(template, [user], add_generation_prompt=False) == alone
    return Turn(alone[0], direct if bare else alone[2], direct, both[2][len(direct) :])


def _ignores_roles(template: Template, user: Message, says: Message) -> bool:
    """True if a message of the assistant is rendered as the same message of the user."""
    how = {"add_generation_prompt": False}
    try:
        as_user = render(template, [user, {**says, "role": "user"}], **how)
    except UserError:  # it insists on turns, so it knows roles
        return False
    return as_user == render(template, [user, says], **how)


def turn(template: Template) -> Turn:
    """Returns the template's text around a user message and before the answer.

    Raises UserError if it cannot be determined: the template omits one of the two, or begins an
    answer differently from the generation prompt.
    """
    names = tuple(sorted(template.names.items()))
    return _turn(template.source, names, template.title, template.today)
