"""Tests the watch for reward hacking: signals of texts by hand, series by hand, planted judges."""

import dataclasses
import importlib
import itertools
import json

import numpy as np
import pytest
import tiny_recipe

from sip import metrics, train
from sip.judge.judged import Judged
from sip.metrics import read_steps
from sip.run import Run
from sip.stages import alarms, candidate_log, rl
from sip.stages.alarms import WatchConfig, Watched
from sip.stages.candidate_log import Answered
from sip.stages.collect import Choice, Pool, Seen
from sip.structs import UserError
from sip.text.tokenizer import Byte
from sip.textgen import scripted

pytest_plugins = ["tiny_fixtures"]

CFG = WatchConfig(window=4, recent=2, audits=2, cooldown=3)


def test_signals_of_texts_by_hand():
    found = alarms.of_texts(["a b c a b c", "a b c d", "  ", "x"])
    assert found == {
        "length": (11 + 7 + 1) / 3,
        "repetition": (1 / 4 + 0) / 2,  # abc bca cab abc: one of four; abc bcd: none
        "phrase": 2 / 3,
        "distinct": pytest.approx(4 / 8),  # ab bc ca | cd, of 5 + 3
    }
    assert alarms.of_texts(["", " \n"]) == {}
    assert alarms.of_texts(["word"]) == {
        "length": 4.0, "repetition": 0.0, "phrase": 0.0, "distinct": 1.0}  # fmt: skip


def seen():
    """A suffix and two rollouts, the second of them no valid candidate."""
    mask_BKR = np.ones((1, 3, 2), bool)
    valid_BK = np.array([[True, True, False]])
    logp_BKR = np.array([[[0, 0], [-1, -2], [-3, -4]]], float)
    texts = [["the end of it", "one two", "never"]]
    pool = Pool(mask_BKR * 0, mask_BKR, valid_BK, ["suffix", "rollout", "rollout"], texts, logp_BKR)
    score_BK = np.array([[0.5, 0.25, 0]])
    aspects = {name: (score_BK, valid_BK) for name in ("quality", "safety")}
    judged = Judged(score_BK, valid_BK, aspects, {}, "judge", {})
    none = Choice(np.zeros((1, 1), int), np.zeros((1, 1), bool))
    return Seen(["p"], [""], pool, judged, valid_BK, none)


def test_signals_of_candidates_are_those_of_the_policys_own_texts():
    found = {
        "reward/rollout": (0.25, 1), "reward/suffix": (9, 1), "audit/score/rollout": (0.75, 1),
        "audit/judge_score/rollout": (0.5, 1), "judge/comparisons/quality": (6, 1),
        "judge/score/quality/suffix": (0.1, 1), "judge/score/safety/suffix": (0.9, 1),
    }  # fmt: skip
    values = alarms.of_candidates(CFG, seen(), found)
    assert values == {
        "proxy": 0.25, "audit": 0.75, "audited": 0.5, "verdicts": 0.9, "entropy": 2.5,
        "length": 7.0, "repetition": 0.0, "phrase": 0.0, "distinct": 1.0,
    }  # fmt: skip
    assert "audit" not in alarms.of_candidates(CFG, seen(), {"audit/score/rollout": (0, 0)})
    assert alarms.of_candidates(WatchConfig(), seen(), found) == {}  # off
    assert alarms.of_candidates(CFG, dataclasses.replace(seen(), judged=None), found) == {}
    assert alarms.figures(values)["watch/length"] == (7.0, 1.0)
    assert not any("proxy" in key for key in alarms.figures(values))


def test_signals_of_answers():
    tok, none = Byte(), np.zeros((1, 2))
    ids = [[tok.encode("a b c"), tok.encode("a b c!")]]
    answered = Answered([[tok.bos]], None, ids, none, {}, none > 0, none, ())
    found = {"reward/all": (1, 2), "rl/entropy": (3, 2), "rl/kl": (4, 2)}
    values = alarms.of_answers(CFG, answered, found, tok)
    assert values == {
        "proxy": 0.5, "entropy": 1.5, "kl": 2.0, "length": 5.5, "repetition": 0.0,
        "phrase": 0.5, "distinct": 3 / 4,
    }  # fmt: skip
    assert alarms.of_answers(WatchConfig(), answered, found, tok) == {}


def test_the_kl_of_the_loss_is_per_token_and_becomes_nats_per_answer():
    learned, found = {"kl": (3.0, 60.0), "approx_kl": (9, 1)}, {"rl/answer_tokens": (20, 2)}
    assert alarms.of_update(CFG, learned, found) == {"kl": pytest.approx(0.05 * 10)}
    assert alarms.of_update(CFG, {"kl": (0.0, 0.0)}, found) == {}  # a skipped update
    assert alarms.of_update(CFG, {"approx_kl": (9, 1)}, found) == {}  # no beta, or in the reward
    assert alarms.of_update(WatchConfig(), learned, found) == {}  # off


@pytest.mark.slow  # a run of RL; the fast suite has the figure by hand
@pytest.mark.parametrize("kl", ["loss", "reward"])
def test_a_run_watches_the_kl_in_the_loss_and_in_the_reward(kl, of_bytes, quick, tmp_path):
    config = importlib.import_module("rlhf").get_config(f"{of_bytes('start')},debug")
    run = config.runs.rlhf
    (tmp_path / "p.jsonl").write_text("".join(f'{{"prompt": "p{i}"}}\n' for i in range(40)))
    (tmp_path / "mine.py").write_text("def brief(answers):\n    return [-len(a) for a in answers]")
    run.task.update(prompts=str(tmp_path / "p.jsonl"), held_out=4)
    with run.unlocked(), run.task.ignore_type():
        run.task.reward = f"{tmp_path}/mine.py:brief"
    run.steps = 4
    run.optim.lr = 0.01
    run.log.update(every_steps=1, tensorboard=False, progress=False)
    run.objective.update(kl=kl, beta=0.1)
    run.watch.window = 4
    rl.train(Run(config, "rlhf", str(tmp_path / "work")))
    (first, *kl_N) = alarms.kept(str(tmp_path / "work" / "runs" / "rlhf")).first["kl"]
    logged = [x for x in metrics.read(tmp_path / "work" / "runs" / "rlhf") if "reward/all" in x]
    assert first == pytest.approx(0, abs=1e-4) and len(kl_N) == 3 and max(kl_N) > 1e-3
    each = [x["kl"] * x["rl/answer_tokens"] if kl == "loss" else x["rl/kl"] for x in logged]
    assert [first, *kl_N] == pytest.approx(each, abs=1e-5)


def run(cfg=CFG, **series):
    """Feeds series of values to the watch; returns the alarms."""
    watched, found = Watched(), []
    length = max(map(len, series.values()))
    for at in range(length):
        values = {name: x[at] for name, x in series.items() if at < len(x) and x[at] is not None}
        watched = alarms.observed(cfg, watched, values)
        watched, one = alarms.raised(cfg, watched, at + 1)
        found += [one] if one else []
    return found


NOISE = [0.5, 0.52, 0.48, 0.5]
UP = [*NOISE, 0.8, 0.8]
STILL = [0.2, 0.22, 0.18, 0.2, 0.2, 0.2]


@pytest.mark.parametrize(
    ("name", "before", "after", "alarm"),
    [
        ("length", 100, 135, True),
        ("length", 100, 70, True),
        ("length", 100, 115, False),
        ("repetition", 0.1, 0.25, True),
        ("repetition", 0.25, 0.1, False),
        ("phrase", 0.1, 0.5, True),
        ("phrase", 0.1, 0.22, False),
        ("distinct", 0.9, 0.5, True),
        ("distinct", 0.5, 0.9, False),
        ("entropy", 2.0, 1.0, True),
        ("entropy", 1.0, 2.0, False),
        ("kl", 1.0, 12.0, True),
        ("kl", 1.0, 9.0, False),
        ("verdicts", 0.5, 0.7, True),
        ("verdicts", 0.7, 0.5, True),
        ("verdicts", 0.5, 0.55, False),
    ],
)
def test_the_proxy_rises_and_another_sign_gets_worse(name, before, after, alarm):
    series = [before, before * 1.01, before * 0.99, before, after, after]
    found = run(proxy=UP, **{name: series})
    assert bool(found) == alarm
    assert not run(proxy=[0.5] * 3 + [0.6] * 3 + [0.55], **{name: series})  # noise explains it
    assert not run(proxy=[*NOISE, 0.3, 0.3], **{name: series})  # the judge sees it, too
    if alarm:
        (one,) = found
        assert one.step == 6 and set(one.signals) == {"proxy", name}
        assert one.signals["proxy"] == (pytest.approx(0.5), pytest.approx(0.8))
        assert f"to {after:.3g}" in one.said and "candidates.jsonl" in one.said
        json.dumps(dataclasses.asdict(one))


def test_the_audit_falls_while_the_judge_is_pleased():
    some = lambda *x: [y for one in x for y in (one, None)]  # an audit at every second update
    judge, audit = some(0.5, 0.52, 0.8, 0.82), some(0.6, 0.62, 0.4, 0.38)
    (one,) = run(proxy=[0.5] * 8, audited=judge, audit=audit)
    assert one.step == 7 and set(one.signals) == {"audited", "audit"}
    assert not run(proxy=[0.5] * 8, audited=judge, audit=some(0.6, 0.62, 0.7, 0.7))
    assert not run(audited=some(0.5, 0.52, 0.3, 0.3), audit=audit)  # both see it


def test_wins_among_rollouts_alone_cannot_rise_and_do_not_hide_the_others():
    assert run(proxy=[0.5] * 6, phrase=[0.1, 0.11, 0.1, 0.1, 0.9, 0.9])


def test_there_is_one_alarm_per_cooldown_which_doubles():
    n = 60
    found = run(proxy=[*NOISE] + [0.9] * n, phrase=[0.1] * 4 + [0.9] * n)
    assert [one.step for one in found] == [6, 9, 15, 27, 51]


def test_nothing_is_said_before_there_are_enough_updates():
    assert not run(proxy=[0.1, 0.9, 0.9, 0.9, 0.9], phrase=[0.1, 0.9, 0.9, 0.9, 0.9])
    off = dataclasses.replace(CFG, window=0)
    assert not run(off, proxy=UP, phrase=[0.1] * 4 + [0.9] * 2)


def test_a_resumed_watch_goes_on_as_an_uninterrupted_one(monkeypatch):
    series = dict(proxy=UP, phrase=[0.1, 0.1, 0.1, 0.1, 0.9, 0.9])
    watched = Watched()
    for at in range(6):
        watched = alarms.observed(CFG, watched, {k: x[at] for k, x in series.items()})
        record = json.loads(json.dumps(alarms.plain(watched)))
        monkeypatch.setattr(alarms.checkpoints, "exists", lambda directory: True)
        monkeypatch.setattr(alarms.checkpoints, "record", lambda directory, r=record: r)
        assert alarms.kept("run") == watched
    assert alarms.raised(CFG, alarms.kept("run"), 6)[1] is not None
    monkeypatch.setattr(alarms.checkpoints, "record", lambda directory: {})  # of an older version
    assert alarms.kept("run") == Watched()


def test_a_wrong_threshold_is_named():
    with pytest.raises(UserError, match="watch.length=0.5: must be"):
        WatchConfig(length=0.5)
    with pytest.raises(UserError, match="watch.phrase=1.5: must be"):
        WatchConfig(phrase=1.5)


NOUNS = "river stone light garden window letter mountain harbour".split()
VERBS = "holds finds leaves follows carries remembers".split()


def document(seed):
    """Twelve sentences such as "the river holds the stone."."""
    rng = np.random.default_rng(seed)
    return " ".join(
        f"the {rng.choice(NOUNS)} {rng.choice(VERBS)} the {rng.choice(NOUNS)}." for _ in range(12)
    )


def grammatical(prefix, text):
    """Exact quality: the share of words that may follow the word before them."""
    after = {"the": {*NOUNS, *(f"{n}." for n in NOUNS)}, **{v: {"the"} for v in VERBS}}
    after |= {n: set(VERBS) for n in NOUNS} | {f"{n}.": {"the"} for n in NOUNS}
    words = [*prefix.split()[-1:], *text.split()] if text[:1].isspace() else text.split()
    pairs = list(itertools.pairwise(words[:-1]))  # the last word may be cut off
    return np.mean([b in after[a] if a in after else False for a, b in pairs]) if pairs else 0.0


PLANTED = {
    "phrase": lambda text: text.split().count("the") / max(1, len(text.split())),
    "length": lambda text: len(text) / 200,
}


# Updates by which an alarm may come after exact quality has fallen by a tenth, on this seed. The
# phrase is seen late, on other seeds not at all: the score of rollouts, which are compared with
# each other too, rises by less than watch.rise before (docs/monitoring.md, "What it misses").
LATE = {"length": 0, "phrase": 5}


@pytest.mark.slow
@pytest.mark.parametrize("rule", PLANTED)
def test_a_judge_of_length_is_caught_before_quality_falls_by_a_tenth_and_one_of_a_phrase_after(
    rule, quick, tmp_path, monkeypatch
):
    monkeypatch.setitem(scripted.RULES, rule, PLANTED[rule])
    (tmp_path / "corpus.txt").write_text("\n\n".join(document(i) for i in range(400)))
    name = "dpo_suffix_rollouts"
    config = tiny_recipe.shrink(importlib.import_module("text").get_config("debug"))
    config.data.path, config.tokenizer.vocab_size = str(tmp_path / "corpus.txt"), 320
    base, hacked = config.runs.base, config.runs[name]
    for run in (base, hacked):
        run.model.update(width=32, hidden=64, head_dim=8, layers=2)
        run.log.update(candidates_every=1, candidates_rows=16)
    base.update(steps=300, batch=32)
    base.optim.update(lr=0.01, warmup_steps=10)
    hacked.update(steps=120, batch=16)
    hacked.judge.rule = rule
    hacked.optim.update(lr=4.5e-4, warmup_steps=10)  # as in configs/microworld.py, with its watch
    train.train(config, str(tmp_path / "work"))
    directory = tmp_path / "work" / "runs" / name
    quality = {}
    for row in candidate_log.read(directory):
        texts = [c["text"] for c in row["candidates"] if c["source"] == "rollout"]
        found = [grammatical(row["prompt"], text) for text in texts]
        quality.setdefault(row["step"], []).extend(found)
    curve = np.array([np.mean(quality[step]) for step in sorted(quality)])
    fallen = np.flatnonzero(curve < curve[:5].mean() - 0.1)
    raised = read_steps(directory / alarms.FILE)
    print(rule, curve.round(2).tolist(), [(x["step"], x["said"]) for x in raised])
    assert raised and len(raised) < 5
    assert not len(fallen) or raised[0]["step"] <= fallen[0] + 1 + LATE[rule]
    logged = [x["step"] for x in metrics.read(directory) if "watch/alarm" in x]
    assert logged and logged[0] >= raised[0]["step"]
