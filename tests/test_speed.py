"""Tests the benchmarks of speed: their figures by hand, the peer's pipe, and tiny runs."""

import dataclasses
import json
import mmap
import sys
from pathlib import Path

import numpy as np
import pytest
from workdirs import call

from sip import cli
from sip.bench import __main__ as bench
from sip.bench import compiling, peer, setup, speed, turns, ways
from sip.bench.sharing import questions
from sip.bench.turns import Measured, PeerProcess, Turn
from sip.structs import UserError
from sip.text.segments import tokens_of
from sip.text.tokenizer import Byte
from sip.textgen import stems

ROOT = Path(__file__).resolve().parent.parent
STAND_IN = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from sip.bench import peer

class StandIn:
    load = begin = ceiling = update = choose = rollout = None
    def score(self, batch, form):
        if form == "none":
            sys.exit(3)
        return {{"logp": [form, *batch]}}
    def wait(self):
        print("noise on stdout")

source, sink = peer.pipes()
peer.send(sink, MESSAGE)
peer.serve(StandIn(), source, sink)
"""


def stand_in(tmp_path, message) -> PeerProcess:
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN.replace("MESSAGE", repr(message)))
    return PeerProcess(sys.executable, str(script))


def test_the_peer_answers_over_a_pipe_until_it_ends(tmp_path):
    other = stand_in(tmp_path, {"versions": {"torch": "0"}})
    assert other.versions == {"torch": "0"}
    for _ in range(2):
        turn = other.ask("score", batch=[1, 2], form="plain")
        assert turn.value == {"logp": ["plain", 1, 2]} and turn.seconds > 0 and turn.peak > 1e6
    with pytest.raises(UserError, match="score failed in the peer: TypeError"):
        other.ask("score", batch=0, form="plain")
    with pytest.raises(UserError, match="the peer ended .3. during score"):
        other.ask("score", batch=0, form="none")
    other.close()


def test_a_missing_package_and_a_missing_python_are_one_line(tmp_path):
    with pytest.raises(UserError, match="no package torch; pip install torch transformers"):
        stand_in(tmp_path, {"missing": "torch"})
    with pytest.raises(UserError, match="--peer_python .*/none: No such file"):
        PeerProcess(str(tmp_path / "none"))


def test_ways_take_turns_after_a_first_round_that_does_not_count(monkeypatch):
    monkeypatch.setattr(turns, "PAUSE_SECONDS", 0)
    ran = []
    way = lambda name: lambda: ran.append(name) or Turn(len(ran), 7 * len(ran), name)
    found = turns.alternate({"a": way("a"), "b": way("b")}, 2)
    assert ran == list("ababab")
    assert [turn.seconds for turn in found["a"].turns] == [3, 5] and found["b"].seconds == 5
    assert found["b"].peak == 42


def _took(*seconds):
    return Measured([Turn(x, 1, None) for x in seconds])


def test_a_ratio_is_that_of_medians_with_the_range_of_the_turns():
    found = turns.ratio(_took(1.0, 2.0, 4.0), _took(2.0, 2.0, 12.0), 2.0)
    assert (found.median, found.low, found.high) == (2.0, 2.0, 6.0)


def test_a_step_is_the_sum_of_its_phases_and_samples_are_scaled():
    parts = [
        {"ours": _took(1.0, 2.0), "x": _took(3.0, 5.0)},
        {"x": _took(1.0, 2.0), "ours": _took(1, 1)},
    ]
    found = speed.summed(parts, [{}, {"x": 10.0}])
    assert list(found) == ["ours", "x"]
    assert [turn.seconds for turn in found["x"].turns] == [13.0, 25.0]
    assert [turn.seconds for turn in found["ours"].turns] == [2.0, 3.0]


def test_operations_by_hand():
    cfg = dataclasses.replace(
        setup.MODEL, layers=2, width=3, hidden=5, kv_heads=1, queries_per_kv=2, head_dim=4,
        vocab_size=7,
    )  # fmt: skip
    # A token: 3 * 4 * (2 + 2 + 1 + 1) in attention and 3 * 3 * 5 in the feed-forward layer.
    alone = setup.operations(cfg, 3)
    assert alone == 2 * (2 * (72 + 45) * 3 + 4 * 8 * 6)
    both = setup.operations(cfg, 3, 2, 2, 4)  # two branches: 2 * (2 * 3 + 3) more pairs
    assert both - alone == 2 * (2 * (72 + 45) * 4 + 4 * 8 * 18) + 2 * 3 * 7 * 4


@pytest.mark.parametrize("prefix", [896, 700, 1920])
@pytest.mark.parametrize("candidates", [17, 9, 5])
def test_a_judges_tree_is_padded_by_less_than_a_tenth(prefix, candidates):
    trunk, branches = questions(prefix, candidates, 0, suffix=128)
    ids = [Byte().bos, *tokens_of(Byte(), trunk)], [tokens_of(Byte(), b) for b in branches]
    found = stems.divided([branches], Byte(), len(branches))
    assert found and found.sizes[:2] == (candidates, candidates - 1)
    for how in (found, None):
        needs = ways.needed(setup.MODEL, *ids, how)
        assert 1 < ways.executed(setup.MODEL, *ids, how) / needs < speed.PADDED
    # Each candidate is read first once, not in K - 1 pairs, beside what all share.
    saved = ways.needed(setup.MODEL, *ids, None) - ways.needed(setup.MODEL, *ids, found)
    length, T = len(found.stems[0][0]), len(ids[0])
    one = setup.operations(setup.MODEL, T, 1, length) - setup.operations(setup.MODEL, T)
    assert saved == pytest.approx(candidates * (candidates - 2) * one, rel=1e-6)


def test_bars_are_for_rows_that_meet_them():
    took = {
        "ours": _took(1.0),
        "hf plain": _took(4.5),
        "hf cached": _took(2.0),
        "plain": _took(9.0),
    }
    rows = speed.rows_of("rollouts (16)", took, {"hf plain": 1e-6}, needs=3.0, ceiling=4.0)
    assert [row.against for row in rows] == ["", "hf plain", "hf cached", "plain"]
    assert [row.met for row in rows] == [None, True, False, None]
    assert rows[0].share == 0.75 and rows[1].difference == 1e-6 and rows[1].goal == 6.0
    rows = speed.rows_of("decoding", {"ours": _took(1.0)}, {}, needs=3.0, ceiling=10.0)
    assert rows[0].met is False and rows[0].bar == 0.33


class Answers:
    """A peer whose every answer is zeros."""

    versions = {"torch": "none"}

    def __init__(self, python):
        assert python == "PY"
        self.asked = []

    def ask(self, action, **how):
        self.asked.append(action)
        value = {"flops": 1.0, "bytes": 2e18} if action == "ceiling" else None
        if action == "choose":
            value = {"logp": np.zeros((len(how["branches"]), len(how["options"])))}
        return Turn(1.0, 1, value)

    def way(self, action, **how):
        return lambda: self.ask(action, **how)

    def close(self):
        assert self.asked[:2] == ["load", "ceiling"] and len(self.asked) == 2 + 2 * 3


def test_the_judges_rows_compare_with_plain_prompts_and_the_peer(capsys, monkeypatch):
    monkeypatch.setattr(setup, "PeerProcess", Answers)
    monkeypatch.setattr(turns, "PAUSE_SECONDS", 0)
    assert call(bench, "judge", "--tiny", "--json", "--against=hf", "--peer_python=PY") == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["against"]: row for row in found["rows"]}
    assert list(rows) == ["", "plain", "hf cached", "hf plain"]
    assert rows["plain"]["difference"] < 1e-5 and rows["hf cached"]["difference"] > 1
    assert rows["hf cached"]["ratio"]["median"] > 1 and rows[""]["executed"] > 1
    assert rows["hf plain"]["note"] == "seconds are 3.0 times those of a sample"
    assert found["machine"]["bytes"] == 2e18 and found["machine"]["flops"] > 1.0


def test_the_hosts_part_is_measured_in_cpu_seconds(capsys):
    assert call(bench, "host", "--tiny", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sizes"]["candidates"] == 4 and set(found["seconds"]) == {"candidates", "prompts"}
    assert all(0 < seconds < 5 for seconds in found["seconds"].values())


def test_a_job_that_fails_is_named(monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho at first >&2\necho error: $4 $XDG_CACHE_HOME >&2\nexit 2\n")
    python.chmod(0o755)
    monkeypatch.setattr(compiling.sys, "executable", str(python))
    with pytest.raises(UserError, match="failed: error: --workdir=.*/empty .*/cache$"):
        compiling.cost("none.py", str(tmp_path), "empty")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["update", "rollout", "step"])
def test_our_plain_sequences_give_what_our_trees_give(name, capsys):
    assert call(bench, name, "--tiny", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    apart = [row["difference"] for row in rows if row["difference"] is not None]
    assert apart or name == "step"
    assert all(x < 1e-4 for x in apart)


@pytest.mark.slow
def test_transformers_on_torch_give_what_we_give(capsys):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    for name in ("update", "rollout", "judge", "step"):
        assert call(bench, name, "--tiny", "--json", "--against=hf") == 0
        rows = json.loads(capsys.readouterr().out)["rows"]
        apart = [row["difference"] for row in rows if row["against"].startswith("hf")]
        assert apart and all(x is None or x < 1e-4 for x in apart), name
        assert name == "step" or None not in apart


@pytest.mark.slow
def test_a_job_adds_programs_to_an_empty_cache_and_none_to_a_filled_one(monkeypatch, capsys):
    monkeypatch.setenv(cli.KEPT_FROM.upper(), "0")  # all programs, not the slow ones
    assert call(bench, "compile", "--tiny", "--json") == 0
    found = json.loads(capsys.readouterr().out)["caches"]
    assert found["empty"]["programs"] > 10 and found["filled"]["programs"] == 0
    assert all(found[cache]["cpu_seconds"] > 0 for cache in found)


def test_the_largest_memory_is_since_the_reset():
    peer.reset_peak()
    before = peer.peak_bytes()
    part, size = b"x" * (1 << 20), 1 << 27
    with mmap.mmap(-1, size) as held:  # malloc may keep what is freed
        for _ in range(size // len(part)):
            held.write(part)
        assert peer.peak_bytes() > before + size // 2
    peer.reset_peak()
    assert peer.peak_bytes() < before + (1 << 26)


def test_wrong_numbers_of_rollouts_are_named(capsys):
    assert call(bench, "step", "--rollout_counts=4,x") == 2
    assert "--rollout_counts 'x': must be numbers from 1" in capsys.readouterr().err
