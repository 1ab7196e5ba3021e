"""Tests the reference of config keys: complete, up to date, and searchable."""

import re
from dataclasses import dataclass

import pytest
import tiny_recipe
from workdirs import call

from sip.data import documents
from sip.explain import __main__ as command
from sip.explain import reference
from sip.sections import plain
from sip.stages import recipe


def test_the_page_is_up_to_date():
    found = (tiny_recipe.ROOT / "docs" / "config.md").read_text()
    assert found == reference.page(), "run: python -m sip.explain > docs/config.md"


def test_every_key_has_a_meaning():
    missing = [(one.paths[0], key.name) for one in reference.sections() for key in one.keys
               if not key.meaning]  # fmt: skip
    assert not missing, "write a comment beside these fields"


def test_every_key_of_a_config_is_explained():
    known = {f"{reference._name(path)}.{key.name}".lstrip(".")
             for one in reference.sections() for path in one.paths for key in one.keys}  # fmt: skip
    values = plain(tiny_recipe.get_config())
    runs = values.pop("runs")
    given = set(values) | {f"{k}.{x}" for k in ("data", "tokenizer", "report") for x in values[k]}
    for run in runs.values():
        for key, value in run.items():
            given.add(f"runs.NAME.{key}")
            given |= {f"runs.NAME.{key}.{x}" for x in value} if isinstance(value, dict) else set()
    assert given <= known and len(given) > 150


def test_sources_of_data_and_tasks_are_listed():
    (data,) = (one for one in reference.sections() if one.paths[0] == "data")
    (source,) = (key.meaning for key in data.keys if key.name == "source")
    words = set(re.findall(r"\w+", source)) - {"files", "data", "sets", "generated"}
    assert words == set(documents.LOADERS)
    (mix,) = (one for one in reference.sections() if one.paths[0] == "data.mix.NAME")
    assert [key.name for key in mix.keys][-1] == "weight"
    assert {key.name for key in mix.keys} == {*documents.MIXED, "weight"}
    said = (tiny_recipe.ROOT / "docs" / "troubleshooting.md").read_text()
    (row,) = (line for line in said.splitlines() if "task.name must be one of" in line)
    for stage in ("supervised", "rl"):
        named = row.partition(f"`{stage}`: ")[2].partition(";")[0]
        assert set(re.findall(r"`(\w+)`", named)) == set(recipe.STAGES[stage].TASKS)


def test_comments_are_beside_a_field_or_above_it():
    @dataclass(frozen=True)
    class Base:
        a: int  # one
        b: str = "# no comment"

    @dataclass(frozen=True)
    class Own(Base):
        # Several
        # lines.
        c: tuple[int, ...] = ()  # and more
        b: str = ""  # two

    assert reference.comments(Own) == {"a": "one", "b": "two", "c": "Several lines. and more"}


def test_keys_are_found_by_a_part_of_their_name(capsys):
    assert call(command, "optim.l", "data.cut.s") == 0
    assert capsys.readouterr().out.splitlines() == [
        "data.cut.suffix: int (required). tokens of each suffix",
        "runs.NAME.optim.lr: float (required). peak learning rate",
    ]
    assert call(command, "optm") == 2
    assert "no config key contains 'optm'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("judge.http.retries", "int (default 5)."),
        pytest.param("task.per_prefix", "", marks=pytest.mark.slow),
        pytest.param("evals.batch", "prompts answered at a time", marks=pytest.mark.slow),
    ],
)
def test_a_section_is_explained_at_each_of_its_places(name, said):
    found = reference.matching([name])
    assert bool(found) == bool(said) and all(name in line for line in found)
    assert said in "\n".join(found)
