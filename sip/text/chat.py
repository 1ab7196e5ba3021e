"""Chat templates: conversations as models have them, what is judged in them kept apart.

`render` writes a conversation as transformers does (jinja2 in a sandbox, with its additions).
`segments` gives the same text in parts: what the template writes (`Markup`, in which special tokens
are special) and the messages, where their strings are text. Messages are rendered as unguessable
words and put in afterwards, so none of them can change what the template does: one that looks into
a message (for a thought to leave out, say) finds nothing there. White space around a message is
shown to it, and goes where it trims; so does an empty message.
"""

import datetime
import functools
import importlib.resources
import json
import os
import pathlib
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from etils import epath

from sip.structs import UserError
from sip.text.segments import Markup
from sip.text.tokenizer import Tokenizer
from sip.text.tokenizer_json import SETTINGS, HuggingFace, settings

OWN = "own"  # the tokenizer's own template, by its name in configs
BESIDE = "chat_template.jinja"
BUILT_IN = ("harmony",)
Message = Mapping[str, Any]  # role, content, and what a template may read beside them


@dataclass(frozen=True)
class Template:
    """A chat template. `names`: special tokens as it reads them ("bos_token" -> "<s>")."""

    source: str
    names: Mapping[str, str] = field(default_factory=dict)
    title: str = "chat template"  # in errors


@dataclass(frozen=True)
class Turn:
    """What a template puts around one message of a user's, and before the answer to it."""

    head: str
    tail: str  # up to where the model begins to answer
    direct: str  # up to where the answer's own words begin, its thoughts, if any, being empty
    space: str  # between `direct` and the answer: part of its first token


def load(name: str, tokenizer: Tokenizer) -> Template:
    """The template of a `chat` key: "own" (the tokenizer's), a built-in one or a .jinja file.

    Raises UserError where there is none.
    """
    title = f"chat {name!r}"
    if name == OWN:
        if not isinstance(tokenizer, HuggingFace):
            raise UserError(f"{title}: this kind of tokenizer has no template; name a .jinja file")
        return of_tokenizer(tokenizer.path)
    if name in BUILT_IN:
        source = importlib.resources.files("sip") / "templates" / f"{name}.jinja"
        return Template(source.read_text(encoding="utf-8"), _names(tokenizer), title)
    if not name.endswith(".jinja") or not pathlib.Path(name).is_file():
        raise UserError(f"{title}: neither {OWN!r}, one of {BUILT_IN} nor a .jinja file")
    return Template(pathlib.Path(name).read_text(encoding="utf-8"), _names(tokenizer), title)


def of_tokenizer(path: str | os.PathLike, name: str = "default") -> Template:
    """The template beside a tokenizer.json: chat_template.jinja, or that in its settings, where
    several have names. Raises UserError where there is none of that name."""
    folder = epath.Path(path) if epath.Path(path).is_dir() else epath.Path(path).parent
    found: dict[str, str] = {}
    if (folder / SETTINGS).is_file():
        read = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        given = read["chat_template"] if "chat_template" in read else ()
        if isinstance(given, str):
            found["default"] = given
        else:
            found = {each["name"]: each["template"] for each in given or ()}
    if (folder / BESIDE).is_file():
        found["default"] = (folder / BESIDE).read_text(encoding="utf-8")
    if name not in found:
        raise UserError(f"{folder}: no chat template {name!r} in {BESIDE} or {SETTINGS}")
    return Template(found[name], settings(path).names, f"{folder}: chat template")


def _names(tokenizer: Tokenizer) -> Mapping[str, str]:
    if isinstance(tokenizer, HuggingFace):
        return settings(tokenizer.path).names
    texts = {id: text for text, id in tokenizer.specials.items()}
    ids = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos, "pad_token": tokenizer.pad}
    return {role: texts[id] for role, id in ids.items() if id in texts}


def render(
    template: Template, messages: Sequence[Message], *, add_generation_prompt: bool, **variables
) -> str:
    """The conversation as one text. `variables` are more that the template may read.

    Raises UserError, one line, where the template is none or refuses the conversation.
    """
    import jinja2

    given = {"tools": None, "documents": None, **template.names, **variables}
    try:
        return _compiled(template.source).render(
            messages=messages, add_generation_prompt=add_generation_prompt, **given
        )
    except jinja2.TemplateError as error:
        raise UserError(f"{template.title}: {' '.join(str(error).split())}") from None
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{template.title}: cannot render this conversation ({reason})") from None


def segments(
    template: Template, messages: Sequence[Message], *, add_generation_prompt: bool, **variables
) -> tuple[str, ...]:
    """The conversation's text: `Markup` at even places, messages at odd ones.

    Joined they are what `render` gives, as long as the template looks into no message.
    """
    how = {"add_generation_prompt": add_generation_prompt, **variables}
    words = [secrets.token_hex(16) if m["content"].strip() else "" for m in messages]
    put = lambda contents: [
        {**m, "content": text} for m, text in zip(messages, contents, strict=True)
    ]
    edges = [_edges(m["content"]) for m in messages]
    shown = [f"{a}{w}{c}" if w else a + c for w, (a, _, c) in zip(words, edges, strict=True)]
    bare = [w or a + c for w, (a, _, c) in zip(words, edges, strict=True)]
    either = re.compile(f"({'|'.join(filter(None, words)) or '(?!)'})")
    apart = either.split(render(template, put(bare), **how))
    whole = either.split(render(template, put(shown), **how))
    if apart[1::2] != whole[1::2]:
        raise UserError(f"{template.title}: white space in a message changes which are shown")
    at = [edges[words.index(word)] for word in apart[1::2]]
    return _joined(template, apart[::2], whole[::2], at)


def _edges(text: str) -> tuple[str, str, str]:
    """(white space before, what is between, white space behind)."""
    inner = text.strip()
    start = text.index(inner)
    return text[:start], inner, text[start + len(inner) :]


def _joined(template: Template, apart, whole, edges) -> tuple[str, ...]:
    """Segments: what stands between messages, and each with the white space that was not trimmed.

    `apart` are the texts between messages without white space around them, `whole` with it.
    """
    before = ["", *(after for _, _, after in edges)]
    behind = [*(lead for lead, _, _ in edges), ""]
    kept = []
    for own, found, after, lead in zip(apart, whole, before, behind, strict=True):
        fits = [(a, b) for a in (after, "") for b in (lead, "") if a + own + b == found]
        if not fits:
            raise UserError(f"{template.title}: it changes white space in messages")
        kept.append(fits[0])
    parts: list[str] = [Markup(apart[0])]
    for i, (_, inner, _) in enumerate(edges):
        parts += [kept[i][1] + inner + kept[i + 1][0], Markup(apart[i + 1])]
    return tuple(parts)


@functools.lru_cache(maxsize=32)
def _turn(source: str, names: tuple[tuple[str, str], ...], title: str) -> Turn:
    template, user = Template(source, dict(names), title), {"role": "user", "content": "question"}
    alone = segments(template, [user], add_generation_prompt=True)
    answered = [user, {"role": "assistant", "content": "answer"}]
    both = segments(template, answered, add_generation_prompt=False)
    if len(alone) != 3 or len(both) != 5 or both[0] != alone[0]:
        raise UserError(f"{title}: it does not write a message of a user's once, and its answer")
    direct = both[2].rstrip(" ")
    if not direct.startswith(alone[2].rstrip(" ")):
        raise UserError(f"{title}: an answer does not begin where the generation prompt ends")
    return Turn(alone[0], alone[2], direct, both[2][len(direct) :])


def turn(template: Template) -> Turn:
    """What stands around a message and before its answer. Raises UserError where that cannot be
    told: the template leaves one out or begins answers in another way."""
    return _turn(template.source, tuple(sorted(template.names.items())), template.title)


@functools.lru_cache(maxsize=32)
def _compiled(source: str):
    """The template, in a sandbox with what transformers adds to jinja."""
    try:
        import jinja2
        from jinja2 import ext, nodes, sandbox
    except ImportError:
        raise UserError("chat templates need jinja2: pip install 'sip-jax[hf]'") from None

    class Generation(ext.Extension):
        """{% generation %}: marks what the model wrote, and writes it as it stands."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    env = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = functools.partial(_refuse, jinja2.TemplateError)
    env.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return env.from_string(source)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """JSON without HTML's escapes, which jinja's own filter has."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(kind: type[Exception], message: str):
    raise kind(message)
