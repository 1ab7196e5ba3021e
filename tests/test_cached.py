"""Tests the answer cache on disk: a run that is stopped and resumed equals an uninterrupted one."""

import os
import shutil
from pathlib import Path

import pytest

from sip.sampling import SamplingConfig
from sip.structs import UserError
from sip.textgen import cached
from sip.textgen.protocol import Cut
from sip.textgen.scripted import Scripted
from sip.training import checkpoints

HOW = dict(votes=2, max_tokens=8, sampling=SamplingConfig(temperature=0.6), seed=0)
TRUNKS = [("about ", f"n{i}") for i in range(2 * cached.PORTION + 3)]
BRANCHES = [[("say ", f"{i % 3}")] * (i % 3) for i in range(len(TRUNKS))]


def words(trunk, branch, vote):
    if vote and trunk.endswith("7"):
        return None
    text = f"{trunk}: {branch} {vote}\u2028\ud800"
    return Cut(text) if trunk.endswith("5") else text


class Counted:
    """A generator that counts its trunks and is interrupted in call `stop_at`."""

    def __init__(self, stop_at=0):
        self.asked, self._stop_at = (), stop_at
        self._scripted = Scripted(lambda *_: (0.5, 0.5), words)
        self.choose = self._scripted.choose

    def generate(self, trunks, branches, **how):
        self.asked = (*self.asked, len(trunks))
        if len(self.asked) == self._stop_at:
            raise KeyboardInterrupt
        return self._scripted.generate(trunks, branches, **how)


def test_what_was_stopped_asks_for_the_rest_and_says_the_same(tmp_path):
    plain = Counted().generate(TRUNKS, BRANCHES, **HOW)
    first, then, last = Counted(stop_at=2), Counted(), Counted()
    with pytest.raises(KeyboardInterrupt):
        cached.CachedAnswers(first, str(tmp_path), "m").generate(TRUNKS, BRANCHES, **HOW)
    assert cached.CachedAnswers(then, str(tmp_path), "m").generate(TRUNKS, BRANCHES, **HOW) == plain
    assert then.asked == (cached.PORTION, 3)
    assert cached.CachedAnswers(last, str(tmp_path), "m").generate(TRUNKS, BRANCHES, **HOW) == plain
    assert last.asked == ()
    assert (
        cached.CachedAnswers(last, str(tmp_path), "m")
        .choose(TRUNKS[:1], [[("a",)]], ("x", "y"))
        .size
        == 2
    )


def test_a_prompt_that_stands_there_twice_is_asked_once(tmp_path):
    again = Counted()
    asked = [[*TRUNKS[:5], *TRUNKS[:5]], [*BRANCHES[:5], *BRANCHES[:5]]]
    assert cached.CachedAnswers(again, str(tmp_path), "m").generate(*asked, **HOW) == (
        Counted().generate(*asked, **HOW)
    )
    assert again.asked == (5,)


@pytest.mark.parametrize("change", [
    dict(votes=1), dict(max_tokens=9), dict(seed=1), dict(sampling=SamplingConfig(top_p=0.5)),
    dict(name="other"), dict(spoil=True),
])  # fmt: skip
def test_nothing_of_another_question_or_model_is_read_nor_what_is_damaged(tmp_path, change):
    cached.CachedAnswers(Counted(), str(tmp_path), "m").generate(TRUNKS[:5], BRANCHES[:5], **HOW)
    if "spoil" in change:
        for i, path in enumerate(sorted(tmp_path.rglob("*.json"))):
            path.write_text(["{", "[1]", '{"a": 1}', "[[1]]", "null"][i])
    how = HOW | {k: v for k, v in change.items() if k in HOW}
    again = Counted()
    name = change["name"] if "name" in change else "m"
    found = cached.CachedAnswers(again, str(tmp_path), name).generate(
        TRUNKS[:5], BRANCHES[:5], **how
    )
    assert again.asked == (5,) and found == Counted().generate(TRUNKS[:5], BRANCHES[:5], **how)


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cache .*file: cannot be written"):
        cached.CachedAnswers(Counted(), str(tmp_path / "file"), "m").generate(
            TRUNKS[:1], [[("a",)]], **HOW
        )


def test_a_checkpoint_that_was_written_again_has_another_name(tmp_path):
    """Its time says nothing: a file copied with its time is another, a touched one is not."""
    path, time = tmp_path / "run" / "model.safetensors", (1e9, 1e9)
    path.parent.mkdir()
    path.write_text("1")
    os.utime(path, time)
    before = cached.name_of(f"{tmp_path}/./run")
    shutil.copytree(path.parent, tmp_path / "copy")
    os.utime(path)
    assert cached.name_of(str(path.parent)) == cached.name_of(str(tmp_path / "copy")) == before
    path.write_text("2")
    os.utime(path, time)
    assert cached.name_of(str(path.parent)) != before


def test_a_run_is_named_by_parameters_and_tokenizer(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "exists", lambda _: True)
    monkeypatch.setattr(checkpoints, "identity", lambda path: Path(path, "is").read_text())
    names = set()
    for params, tokenizer, log in (("a", "x", 0), ("a", "x", 1), ("b", "x", 1), ("a", "y", 1)):
        (tmp_path / "is").write_text(params)
        (tmp_path / "tokenizer.json").write_text(tokenizer)
        (tmp_path / "metrics.jsonl").write_text(str(log))
        names.add(cached.name_of(str(tmp_path)))
    assert len(names) == 3
