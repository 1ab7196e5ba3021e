"""Chat templates: conversations as prompts, with the messages kept as separate segments.

`render` writes a conversation as transformers does (jinja2 in a sandbox, with its extensions).
`segments` returns the same text in parts: the template's text (`Markup`, where special tokens are
parsed) and the messages (where their strings are plain text). The template is rendered with random
placeholder words, which are replaced by the messages afterwards. So the content of a message cannot
change what the template does: a template that searches messages (for example to remove thoughts)
finds nothing. The template does see the white space around a message and empty messages, so it can
trim them.
"""

import dataclasses
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
from sip.text.special import SETTINGS, read_object, settings
from sip.text.tokenizer import SentencePiece, Tokenizer
from sip.text.tokenizer_json import HuggingFace

OWN = "own"  # the config value for the tokenizer's own template
BESIDE = "chat_template.jinja"  # file beside a tokenizer.json
BUILT_IN = ("harmony",)
Message = Mapping[str, Any]  # role, content, and other keys that a template reads


@dataclass(frozen=True)
class Template:
    """A jinja chat template and the special tokens that it can read."""

    source: str  # jinja2 source
    names: Mapping[str, str] = field(default_factory=dict)  # variables: "bos_token" -> "<s>"
    title: str = "chat template"  # name of the template in errors


@dataclass(frozen=True)
class Turn:
    """The template text around one user message, up to the assistant's answer."""

    head: str  # before the user message
    tail: str  # from the message to the end of the generation prompt; the model goes on from here
    direct: str  # from the message to the answer's first word, skipping thoughts (left empty)
    space: str  # spaces between `direct` and the answer; they belong to its first token


def load(name: str, tokenizer: Tokenizer) -> Template:
    """Loads the template of a config's `chat` key.

    `name` is "own" (the tokenizer's own template), a built-in template or the path of a .jinja
    file.

    Raises UserError if there is no such template.
    """
    title = f"chat {name!r}"
    if name == OWN:
        if not isinstance(tokenizer, HuggingFace | SentencePiece):
            raise UserError(f"{title}: this kind of tokenizer has no template; give a .jinja file")
        return dataclasses.replace(of_tokenizer(tokenizer.path), names=_names(tokenizer))
    if name in BUILT_IN:
        source = importlib.resources.files("sip") / "templates" / "chat" / f"{name}.jinja"
        return Template(source.read_text(encoding="utf-8"), _names(tokenizer), title)
    if not name.endswith(".jinja") or not pathlib.Path(name).is_file():
        raise UserError(f"{title}: must be {OWN!r}, one of {BUILT_IN} or an existing .jinja file")
    return Template(pathlib.Path(name).read_text(encoding="utf-8"), _names(tokenizer), title)


def check(name: str, key: str) -> None:
    """Raises UserError naming the config key if `name` cannot be a template. Empty: no template."""
    there = name.endswith(".jinja") and pathlib.Path(name).is_file()
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
        found["default"] = (folder / BESIDE).read_text(encoding="utf-8")
    if name not in found:
        raise UserError(f"{folder}: no chat template {name!r} in {BESIDE} or {SETTINGS}")
    return Template(found[name], settings(path).names, f"{folder}: chat template")


def _named(folder: epath.Path, given: Any) -> tuple[str, str]:
    """Returns name and source of one of several templates in tokenizer_config.json."""
    keys = ("name", "template")
    if not isinstance(given, dict) or any(type(given.get(key)) is not str for key in keys):
        raise UserError(f"{folder / SETTINGS}: chat_template is neither a text nor named texts")
    return given["name"], given["template"]


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

    Raises UserError (one line) if the template is invalid or rejects the conversation.
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
    """Renders a conversation as segments: `Markup` at even places, messages at odd places.

    Joined, they equal the result of `render`, unless the template depends on message content.
    Raises UserError if the white space around messages changes which messages are rendered, or if
    the template changes white space other than by trimming it.
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
    whole = either.split(render(template, put(shown), **how))
    if apart[1::2] != whole[1::2]:
        raise UserError(
            f"{template.title}: white space around a message changes which messages are shown"
        )
    at = [edges[words.index(word)] for word in apart[1::2]]
    return _joined(template, apart[::2], whole[::2], at)


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
def _turn(source: str, names: tuple[tuple[str, str], ...], title: str) -> Turn:
    # Render a question alone, with the generation prompt, and the same question with its answer.
    template, user = Template(source, dict(names), title), {"role": "user", "content": "question"}
    alone = segments(template, [user], add_generation_prompt=True)
    answered = [user, {"role": "assistant", "content": "answer"}]
    both = segments(template, answered, add_generation_prompt=False)
    if len(alone) != 3 or len(both) != 5 or both[0] != alone[0]:
        raise UserError(
            f"{title}: it does not write a message of a user and its answer exactly once"
        )
    # Spaces before the answer belong to its first token, so they are split off into `space`.
    direct = both[2].rstrip(" ")
    if not direct.startswith(alone[2].rstrip(" ")):
        raise UserError(
            f"{title}: an answer does not begin where the generation prompt ends; "
            "use another chat template"
        )
    return Turn(alone[0], alone[2], direct, both[2][len(direct) :])


def turn(template: Template) -> Turn:
    """Returns the template's text around a user message and before the answer.

    Raises UserError if it cannot be determined: the template omits one of the two, or begins an
    answer differently from the generation prompt.
    """
    return _turn(template.source, tuple(sorted(template.names.items())), template.title)


@functools.lru_cache(maxsize=32)
def _compiled(source: str):
    """Compiles a template in a sandbox, with the extensions that transformers adds to jinja."""
    try:
        import jinja2
        from jinja2 import ext, nodes, sandbox
    except ImportError:
        raise UserError("chat templates need jinja2: pip install 'sip-jax[hf]'") from None

    class Generation(ext.Extension):
        """The block {% generation %}: renders its content unchanged.

        transformers uses it to mark the assistant's tokens; we do not need the mark.
        """

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
    """Returns JSON without the HTML escapes of jinja's own `tojson`, as transformers does."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(kind: type[Exception], message: str):
    raise kind(message)
