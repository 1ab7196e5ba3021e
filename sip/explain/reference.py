"""The keys of a config: meaning, type and default of each, read from the dataclasses.

The meaning is the comment beside a field, or above it.
"""

import ast
import dataclasses
import inspect
import io
import re
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sip.data.corpus import CutConfig
from sip.data.documents import MIXED, DataConfig
from sip.data.microworld.settings import ProblemWorldConfig, WorldConfig
from sip.gap.settings import GapConfig, VerifierConfig
from sip.run import RunConfig
from sip.stages import recipe

RUN = "runs.NAME"
REQUIRED = "required"
OF = " of stage "  # in a title, after the section's dotted name
INTRO = """\
# Config keys

<!-- Made by `python -m sip.explain > docs/config.md`; a test fails while it is out of date. -->

A config is a `ConfigDict` with these keys. `--config.KEY=VALUE` changes one, for example
`--config.runs.base.optim.lr=1e-3`. The functions of `configs/_common.py` build sections and fill in
the defaults below; a key without a default is required. An unknown key is an error.

```bash
python -m sip.train --config=configs/text.py --print_config  # a config's values, for diff
python -m sip.explain optim.lr checkpoint                    # keys of this page, in the terminal
```

Numbers of steps are updates of the parameters; lengths of texts are tokens. `prefixes`, `prompts`
and `batch` count rows.
[Which keys may change](training.md#a-workdir-and-its-config) once a run has begun.
"""


@dataclass(frozen=True)
class Key:
    """A config key."""

    name: str  # within its section
    type: str
    default: str  # as Python text; REQUIRED without one
    meaning: str
    section: bool  # the key is a section, whose keys are listed by themselves


@dataclass(frozen=True)
class Section:
    """A section of the config, which may occur at several places."""

    paths: list[str]  # dotted names; the first one is its title
    note: str  # first paragraph of the dataclass's docstring
    keys: list[Key]


def sections() -> list[Section]:
    """Returns all sections of a config, each dataclass once."""
    found: dict[Any, Section] = {}
    for cls, path, inherited in _roots():
        _add(found, cls, path, inherited)
    every = list(found.values())
    return [
        *every[: (at := every.index(found[DataConfig]) + 1)],
        _mix(found[DataConfig]),
        *every[at:],
    ]


def _mix(data: Section) -> Section:
    """Returns the section of a source of a mixture, with keys of the section `data`."""
    weight = Key(
        "weight", "float", REQUIRED, "share of the chunks that are trained on, any unit", False
    )
    note = "A source of a mixture. Its other settings are those of `data`."
    own = [key for key in data.keys if key.name in MIXED]
    return Section([f"{data.paths[0]}.mix.NAME"], note, [*own, weight])


def _roots() -> Iterator[tuple[Any, str, Any]]:
    """Yields (dataclass, title, base whose keys are listed elsewhere or None)."""
    yield recipe.Recipe, "", None
    yield DataConfig, "data", None
    yield CutConfig, "data.cut", None
    yield WorldConfig, "data.world", None
    yield ProblemWorldConfig, "data.world (source microworld_problems)", None
    yield RunConfig, RUN, None
    for name, stage in recipe.STAGES.items():
        cls = typing.get_type_hints(stage.resolve)["return"]
        yield cls, f'{RUN}{OF}"{name}"', RunConfig
        for task, (task_cls, _) in getattr(stage, "TASKS", {}).items():
            yield task_cls, f'{RUN}.task "{task}"{OF}"{name}"', None
    yield GapConfig, "gap", None
    yield VerifierConfig, "gap.judges.NAME", None


def _add(found: dict[Any, Section], cls, path: str, inherited) -> None:
    if cls in found:
        if path not in found[cls].paths:
            found[cls].paths.append(path)
    else:
        # Sections of the same name in several stages differ: the stage is in the title.
        first, taken = _name(path), {one.paths[0] for one in found.values()}
        path = path if OF in path and (first in taken or _is_root(path)) else first
        found[cls] = Section([path], _note(cls), list(_keys(cls, inherited)))
    known = {f.name for f in dataclasses.fields(inherited)} if inherited else set()
    for name, hint in typing.get_type_hints(cls).items():
        for inner in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(inner) and name not in known and name != "task":
                _add(found, inner, _inside(path, name), None)


def _name(path: str) -> str:
    """Returns a title without its stage and task."""
    return re.sub(rf'( "\w+")?({OF}"\w+")?$', "", path)


def _is_root(path: str) -> bool:
    return _name(path) in (RUN, f"{RUN}.task")


def _inside(path: str, key: str) -> str:
    """Returns the title of a section inside another one; it keeps the stage."""
    return f"{_name(path)}.{key}".lstrip(".") + "".join(re.findall(rf'{OF}"\w+"$', path))


def _note(cls) -> str:
    """Returns the docstring's paragraphs, without the errors that it raises."""
    text = re.sub(r"\s*Raises UserError[^.]*\.", "", inspect.getdoc(cls) or "")
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n") if part.strip())


def _summary(cls) -> str:
    """Returns the first sentence of a docstring."""
    return _note(cls).partition("\n")[0].partition(". ")[0]


def _keys(cls, inherited) -> Iterator[Key]:
    hints, notes = typing.get_type_hints(cls), comments(cls)
    known = {f.name for f in dataclasses.fields(inherited)} if inherited else set()
    for field in dataclasses.fields(cls):
        if field.name in known or (cls is DataConfig and field.name == "split"):
            continue  # of `data` the split is set by each run
        hint = hints[field.name]
        inner = [x for x in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(x)]
        said = notes[field.name] or (_summary(inner[0]) if inner else "")
        yield Key(field.name, _type(hint), _default(field), said.rstrip("."), bool(inner))
    if cls is DataConfig:  # read beside it
        yield Key("cut", "section", REQUIRED, _summary(CutConfig).rstrip("."), True)


def comments(cls) -> dict[str, str]:
    """Returns the comments of a dataclass's fields, those of its bases included; "" without one.

    A comment stands on the line of its field, or on lines of its own above it.
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _own_comments(base)
    return found


def _own_comments(cls) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(cls))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = source.splitlines()
    notes = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above, at = [], node.lineno - 1
            while at in notes and lines[at - 1].lstrip().startswith("#"):
                above.insert(0, notes[at])
                at -= 1
            beside = notes[node.end_lineno] if node.end_lineno in notes else ""
            found[node.target.id] = " ".join((*above, beside)).strip()
    return found


def _type(hint) -> str:
    if hint is Any:
        return "section"
    if isinstance(hint, types.UnionType):
        return " or ".join(map(_type, typing.get_args(hint)))
    if hint is type(None):
        return "None"
    if dataclasses.is_dataclass(hint):
        return "section"
    if typing.get_origin(hint) is dict:
        value = _type(typing.get_args(hint)[1])
        return "section" if value == "section" else f"{value} by name"
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)
        if inner[-1] is ...:
            return f"tuple of {_type(inner[0])}"
        return f"({', '.join(map(_type, inner))})"
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _default(field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return _text(field.default_factory())
    return REQUIRED if field.default is dataclasses.MISSING else _text(field.default)


def _text(value) -> str:
    return "section" if dataclasses.is_dataclass(value) else repr(value)


def page() -> str:
    """Returns docs/config.md."""
    every = sections()
    toc = [f"- [{_title(one)}](#{_anchor(_title(one))})" for one in every]
    return "\n".join([INTRO, *toc, "", *(_markdown(one) for one in every)]).rstrip() + "\n"


def _title(one: Section) -> str:
    return one.paths[0] or "The recipe"


def _anchor(title: str) -> str:
    """Returns GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _markdown(one: Section) -> str:
    code = lambda text: f"`{text}`" if text not in (REQUIRED, "section") else text
    safe = lambda text: text.replace("|", "\\|")
    rows = [
        f"| `{key.name}` | {safe(key.type)} | {safe(code(key.default))} | {safe(key.meaning)} |"
        for key in one.keys
    ]
    others = [name for name in dict.fromkeys(map(_name, one.paths)) if name != _name(one.paths[0])]
    also = f"\n\nAlso {', '.join(f'`{path}`' for path in others)}." if others else ""
    head = "| Key | Type | Default | Meaning |\n|---|---|---|---|"
    return "\n".join([f"## {_title(one)}\n\n{one.note}{also}\n\n{head}", *rows, ""])


def matching(words: list[str]) -> list[str]:
    """Returns a line per key whose dotted name contains one of the words."""
    found = []
    for one in sections():
        for key in one.keys:
            for name in dict.fromkeys(
                f"{_name(path)}.{key.name}".lstrip(".") for path in one.paths
            ):
                if any(word in name for word in words):
                    default = "" if key.section else f" (default {key.default})"
                    default = " (required)" if key.default == REQUIRED else default
                    found.append(f"{name}: {key.type}{default}. {key.meaning}".strip())
    return list(dict.fromkeys(found))
