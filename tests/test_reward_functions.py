"""Tests rewards by functions of one's own: the call, what is skipped, and every kind of mistake."""

import sys
import types

import numpy as np
import pytest

from sip.rewards import functions
from sip.structs import UserError

ANSWERS = [["a", "bb"], ["ccc", "dddd"]]
PROMPTS, FIELDS = ["p", "q"], [{"want": 1}, {"want": 3, "more": "x"}]


def load(tmp_path, text, name="f"):
    path = tmp_path / "mine.py"
    path.write_text(text)
    return functions.load(f"{path}:{name}")


def reward(tmp_path, body, arguments="prompts, answers, **fields"):
    function = load(tmp_path, f"def f({arguments}):\n    {body}\n")
    return function.reward(PROMPTS, ANSWERS, FIELDS)


def test_a_function_sees_prompts_answers_and_the_other_fields(tmp_path):
    body = (
        "assert prompts == ['p', 'p', 'q', 'q'] and fields['more'] == [None, None, 'x', 'x']\n"
        "    return [len(a) - w for a, w in zip(answers, fields['want'])]"
    )
    reward_BK, valid_BK = reward(tmp_path, body)
    assert reward_BK.tolist() == [[0, 1], [0, 1]] and valid_BK.all()
    assert reward_BK.dtype == np.float32


def test_a_function_gets_the_fields_that_it_names(tmp_path):
    reward_BK, _ = reward(tmp_path, "return [10 * w for w in want]", "want, scale=2")
    assert reward_BK.tolist() == [[10, 10], [30, 30]]
    with pytest.raises(UserError, match=r"mine.py:f needs 'wnat', which .* they have more, want"):
        reward(tmp_path, "return wnat", "answers, wnat")


def test_none_skips_an_answer(tmp_path):
    body = "return [None if len(a) == 2 else 1 for a in answers]"
    reward_BK, valid_BK = reward(tmp_path, body)
    assert valid_BK.tolist() == [[True, False], [True, True]] and reward_BK[0, 1] == 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [1.0]", r"mine.py:f returned 1 rewards for 4 answers"),
        ("return 1.0", r"mine.py:f returned float; must be a list of 4 numbers"),
        ("return 'good'", r"mine.py:f returned str; must be a list of 4 numbers"),
        (
            "return [float('nan') if a == 'ccc' else 0 for a in answers]",
            r"mine.py:f returned nan for prompt 'q' and answer 'ccc'; must be a finite",
        ),
        ("return [float('inf')] * 4", r"mine.py:f returned inf for prompt 'p' and answer 'a'"),
        ("return [1e39] * 4", r"mine.py:f returned 1e.39 for prompt 'p' and answer 'a'; must be a"),
        ("return [10**400] * 4", r"mine.py:f returned 1000.* for prompt 'p' and answer 'a'"),
        ("return ['1'] * 4", r"mine.py:f returned '1' for prompt 'p' and answer 'a'"),
        (
            "return [1 / (3 - len(a)) for a in answers]",
            r"mine.py:f raised ZeroDivisionError: .* \(line 2\) for prompt 'q' and answer 'ccc'",
        ),
    ],
)
def test_a_mistake_names_the_function_and_the_example(body, message, tmp_path):
    with pytest.raises(UserError, match=message) as found:
        reward(tmp_path, body)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("def g(): pass", "f", "has no function 'f'; it has g"),
        ("import nosuchmodule", "f", "cannot be imported: ModuleNotFoundError"),
        ("f = 3", "f", "has no function 'f'; it has none"),
    ],
)
def test_a_file_without_the_function_is_named(text, name, message, tmp_path):
    with pytest.raises(UserError, match=f"mine.py: {message}"):
        load(tmp_path, text, name)


def test_a_missing_file_is_named_and_a_neighbour_can_be_imported(tmp_path):
    with pytest.raises(UserError, match="nowhere.py: there is no such file"):
        functions.load("nowhere.py:f")
    (tmp_path / "beside_it.py").write_text("worth = 7")
    function = load(tmp_path, "from beside_it import worth\ndef f(answers): return [worth] * 4")
    assert function.reward(PROMPTS, ANSWERS, FIELDS)[0].tolist() == [[7, 7], [7, 7]]


def test_a_dataclass_with_postponed_annotations_is_no_obstacle(tmp_path):
    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Weights:\n    length: float = 2.0\n"
        "def f(answers): return [Weights().length] * 4\n"
    )
    assert load(tmp_path, text).reward(PROMPTS, ANSWERS, FIELDS)[0].tolist() == [[2, 2], [2, 2]]


def test_a_function_may_import_its_neighbour_when_it_is_called(tmp_path):
    (tmp_path / "beside_late.py").write_text("worth = 7")
    body = "from beside_late import worth\n    return [worth] * 4"
    before = list(sys.path)
    assert reward(tmp_path, body)[0].tolist() == [[7, 7], [7, 7]]
    assert sys.path == before


def test_a_file_is_imported_once_and_again_when_it_has_changed(tmp_path, monkeypatch):
    made = "import counted\ncounted.times += 1\ndef f(answers): pass\ndef g(answers): pass\n"
    counted = types.ModuleType("counted")
    counted.times = 0
    monkeypatch.setitem(sys.modules, "counted", counted)
    one, other = load(tmp_path, made), functions.load(f"{tmp_path}/mine.py:g")
    assert functions.load(f"{tmp_path}/mine.py:f").call is one.call and other.call is not one.call
    assert counted.times == 1
    assert load(tmp_path, f"{made}# changed\n").call is not one.call
    assert counted.times == 2


@pytest.mark.parametrize("name", ["prompts", "answers"])
def test_a_field_with_the_name_of_an_argument_is_refused(tmp_path, name):
    function = load(tmp_path, "def f(prompts, answers): return [0] * 4")
    with pytest.raises(UserError, match=rf"mine.py:f: the examples have a field '{name}'.*rename"):
        function.reward(PROMPTS, ANSWERS, [{}, {name: "x"}])
