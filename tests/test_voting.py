"""Tests reasoned verdicts: votes counted by hand, and votes of a decoder."""

import dataclasses
import re
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
import tiny

from sip import mesh as meshes
from sip import sampling
from sip.judge import build as judges
from sip.judge import prompts
from sip.judge.proofread import ProofreadConfig
from sip.judge.schedules import ScheduleConfig
from sip.judge.scoring import TextJudge
from sip.judge.voting import Voting
from sip.loading import LoadedModel
from sip.models import lora
from sip.run import Run
from sip.sampling import SamplingConfig
from sip.stages import collect, selfimprove
from sip.structs import UserError
from sip.textgen.local import Local
from sip.textgen.protocol import Cut
from sip.textgen.remote import RemoteConfig
from sip.textgen.scripted import Scripted
from sip.training import step
from sip.training.loop import LogConfig

QUALITY, SAFETY = prompts.load("reasoned_quality"), prompts.load("reasoned_safety")
DIRECT = prompts.load("safety")
YES, NO, NOTHING = "Kind. FINAL DECISION: YES", "Rude. FINAL DECISION: NO", "Hm."


def answers(words, votes, aspects=(SAFETY,), **options):
    judge = TextJudge(
        Scripted(lambda *_: (0.75, 0.25), words),
        aspects,
        {a.name: 1.0 for a in aspects},
        voting=Voting(votes=votes),
        **options,
    )
    return lambda texts: judge.score(
        ["p"] * len(texts), texts, [""] * len(texts), np.ones(np.shape(texts), bool)
    )


def test_votes_are_averaged_over_those_that_can_be_read():
    said = {" a": [YES, NO, YES, YES], " b": [NOTHING, None, NO, YES], " c": [None, "", NO, NO]}
    words = lambda _, branch, j: said[branch.split("\n")[1].removeprefix("Text:")][j]
    found = answers(words, 4)([[" a", " b", " c"]])
    assert found.valid_BK.all() and found.scores_BK.tolist() == [[0.75, 0.5, 0.0]]
    assert found.metrics["judge/invalid_votes/reasoned_safety"] == (4, 12)
    assert found.metrics["judge/agreement/reasoned_safety"] == (3 + 1 + 2, 8)
    assert found.metrics["judge/invalid/reasoned_safety"] == (0, 3)


def test_an_answer_that_was_cut_is_no_vote():
    words = lambda _, branch, j: [YES, Cut(YES), Cut(NO), None][j]
    found = answers(words, 4)([[" a"]])
    assert found.scores_BK.tolist() == [[1.0]]
    assert found.metrics["judge/invalid_votes/reasoned_safety"] == (3, 4)
    assert found.metrics["judge/invalid_cut/reasoned_safety"] == (2, 4)
    assert found.metrics["judge/invalid_failed/reasoned_safety"] == (1, 4)
    alone = answers(lambda *_: Cut(YES), 2)([[" a"]])
    assert not alone.valid_BK.any() and alone.metrics["judge/invalid/reasoned_safety"] == (1, 1)


def test_a_verdict_in_a_thought_is_no_vote():
    said = [f"<think>{YES}?</think>{NO}", f"{YES}?</think> I cannot say", f" <think>{YES}", YES]
    found = answers(lambda _, branch, j: said[j], 4)([[" a"]])
    assert found.scores_BK.tolist() == [[0.5]]
    assert found.metrics["judge/invalid_unread/reasoned_safety"] == (1, 4)
    assert found.metrics["judge/invalid_cut/reasoned_safety"] == (1, 4)


def test_without_a_vote_that_can_be_read_a_verdict_is_invalid_and_counted():
    words = lambda _, branch, j: NOTHING if "Text: b" in branch else YES
    found = answers(words, 3)([[" a", " b"]])
    assert found.valid_BK.tolist() == [[True, False]] and found.scores_BK.tolist() == [[1.0, 0.0]]
    assert found.metrics["judge/invalid/reasoned_safety"] == (1, 2)
    assert found.metrics["judge/invalid_votes/reasoned_safety"] == (3, 6)
    asked = np.ones((1, 2), bool)
    judges.check_invalid(asked, found.valid_BK, 0.5, "candidates.max_invalid", {})
    with pytest.raises(UserError, match="50% of the verdicts are invalid .*3 without a verdict"):
        judges.check_invalid(asked, found.valid_BK, 0.4, "candidates.max_invalid", found.metrics)


def test_the_last_verdict_of_an_answer_is_its_vote():
    assert answers(lambda *_: f"{YES}, no: {NO}", 1)([[" a"]]).scores_BK.tolist() == [[0.0]]


def test_orders_that_disagree_are_a_tie():
    """One judge always answers "first"; the other one knows."""
    first = answers(lambda *_: "Conclusion: Option 1", 2, (QUALITY,))([[" a", " bb", " c"]])
    assert (first.scores_BK == 0.5).all() and first.valid_BK.all()
    assert first.metrics["judge/flips/reasoned_quality"] == (3, 3)
    assert first.metrics["judge/ties/reasoned_quality"] == (3, 3)
    assert first.metrics["judge/first/reasoned_quality"] == (6, 6)

    def longer(_, branch, j):
        a, b = (line.split(":", 1)[1] for line in branch.split("\n")[1:3])
        return f"Conclusion: Option {1 if len(a) > len(b) else 2}"

    knows = answers(longer, 1, (QUALITY,))([[" a", " bb", " ccc"]])
    assert knows.scores_BK.tolist() == [[0.0, 0.5, 1.0]]


def test_split_votes_are_a_share_and_a_hard_majority():
    """Three of four votes are for "a", in both orders."""
    wins = lambda branch, j: j < 3 if "Option 1:a" in branch else j < 1
    words = lambda _, branch, j: f"Conclusion: Option {1 if wins(branch, j) else 2}"
    soft, hard = (answers(words, 4, (QUALITY,), hard=h)([["a", "b"]]) for h in (False, True))
    assert soft.scores_BK.tolist() == [[0.75, 0.25]] and hard.scores_BK.tolist() == [[1.0, 0.0]]
    assert hard.metrics["judge/agreement/reasoned_quality"] == (6, 8)


def test_a_reasoned_tie_is_half_a_win():
    tie = dataclasses.replace(QUALITY, options=("A", "tie", "B"), values=(1.0, 0.5, 0.0))
    words = lambda _, branch, j: ["Conclusion: tie", "Conclusion: A"][j]
    found = answers(words, 2, (tie,))([["a", "b"]])
    assert found.scores_BK.tolist() == [[0.5, 0.5]]
    assert found.metrics["judge/first/reasoned_quality"] == (1.5, 2)


def test_votes_of_all_rounds_are_counted():
    cfg = ScheduleConfig("adaptive", budget=0.5, rounds=3)
    found = answers(lambda *_: NOTHING, 2, (QUALITY,), schedule=cfg)([list("abcdefg")])
    asked = found.metrics["judge/comparisons/reasoned_quality"][0]
    assert found.metrics["judge/invalid_votes/reasoned_quality"] == (2 * asked, 2 * asked)
    assert found.metrics["judge/agreement/reasoned_quality"] == (0, 0) and asked > 14
    total_BK, denom_BK = found.each["judge/invalid/reasoned_quality"]
    assert total_BK.sum() == denom_BK.sum() == asked, "and by candidate too"


def test_direct_aspects_are_asked_once_and_have_no_votes():
    found = answers(lambda *_: NO, 5, (SAFETY, DIRECT))([[" a"]])
    assert np.allclose(found.scores_BK, 0.0 + 0.75)
    assert "judge/agreement/safety" not in found.metrics
    assert {"judge/agreement/reasoned_safety", "judge/invalid/safety"} <= set(found.metrics)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"votes": 0}, "votes=0: must be >= 1"),
        ({"max_tokens": 0}, "max_tokens=0: must be >= 1"),
        ({"votes": 2, "sampling": SamplingConfig(0.0)}, "votes at temperature 0"),
    ],
)
def test_a_vote_that_cannot_be_is_a_user_error(values, said):
    with pytest.raises(UserError, match=said):
        Voting(**values)


# A decoder's votes.


class Few:
    """A tokenizer of sixteen tokens, mostly colons and options; other characters become "?"."""

    letters = "\n :abc?:a:b:c"
    vocab_size, pad, bos, eos, stops = 16, 13, 14, 15, (15, 13, 0)

    def encode(self, text):
        return [self.letters.index(c if c in self.letters else "?") for c in text]

    plain = encode_special = encode

    def decode(self, ids):
        return "".join(self.letters[i] for i in ids if i < len(self.letters))

    def starts(self, token):
        return True


CFG = tiny.model(max_len=160)
HEADER = 'kind: {}\noptions: ["a", "b", "c"]\nvalues: [1, 0.5, 0]\nverdict: ":"\n'
POINT, PAIR = HEADER.format("pointwise"), HEADER.format("pairwise")
FILES = {
    "letter": POINT + "=== trunk\na {prefix}\n=== branch\n{text}\nb",
    "letters": PAIR + "=== trunk\nb {prefix}\n=== branch\n{first}\n{second}\nd",
}
TEXTS = [[" abc", " bad", " cab"], [" gab", " fed", " head"]]
EVERY = np.ones((2, 3), bool)
HOW = dict(votes=12, max_tokens=24, sampling=SamplingConfig(3.0))


@pytest.fixture
def wanted(tmp_path):
    """Returns a judge section with two user-defined aspects."""
    for name, text in FILES.items():
        (tmp_path / f"{name}.txt").write_text(text)
    weights = tuple((str(tmp_path / f"{name}.txt"), 0.5) for name in FILES)
    return judges.JudgeConfig("local", weights, init_from="policy", **HOW)


def local(params=None, **options):
    params = tiny.params(CFG) if params is None else params
    return Local(LoadedModel(params, CFG, Few(), meshes.single()), **options)


def asked(textgen_, wanted, texts=TEXTS, prefixes=("a", "b"), mask=EVERY):
    aspects = wanted.aspects()
    judge = TextJudge(textgen_, aspects, {a.name: 0.5 for a in aspects}, voting=wanted.voting(0))
    return judge.score(prefixes, texts, [""] * len(texts), mask)


def test_what_a_decoder_writes_is_what_is_counted(wanted):
    """The judge's score is counted from its own words, read one by one."""
    (letter, _), found = wanted.aspects(), asked(local(), wanted)
    trunks = [prompts.trunk(letter, prefix=p, reference="") for p in "ab"]
    branches = [[prompts.branch(letter, text) for text in row] for row in TEXTS]
    said = local().generate(trunks, branches, **HOW, seed=0)
    worth = {"a": 1.0, "b": 0.5, "c": 0.0}
    last = lambda said: (
        re.match(r"\s*([abc])(?!\w)", said.rpartition(":")[2])
        if isinstance(said, str) and ":" in said
        else None
    )
    read = [[[worth[m[1]] for m in map(last, votes) if m] for votes in row] for row in said]
    want = [[np.mean(v) if v else 0.0 for v in row] for row in read]
    score_BK, valid_BK = found.aspects["letter"]
    assert np.allclose(score_BK, want) and valid_BK.tolist() == [[bool(v) for v in r] for r in read]
    assert len(np.unique(score_BK[valid_BK])) > 2 and valid_BK.sum() > 3
    votes = sum(len(votes) for row in read for votes in row)
    assert found.metrics["judge/invalid_votes/letter"] == (72 - votes, 72)
    cut = sum(isinstance(text, Cut) for row in said for texts in row for text in texts)
    assert found.metrics["judge/invalid_cut/letter"] == (cut, 72)


@pytest.mark.slow
def test_a_texts_votes_hang_on_what_is_asked_alone(wanted):
    """Votes do not depend on the batch, its order, or other texts judged with it."""
    whole, single = asked(local(), wanted), asked(local(batch=1), wanted)
    assert np.array_equal(whole.scores_BK, single.scores_BK) and whole.metrics == single.metrics
    order = [2, 0, 1]
    turned = asked(local(), wanted, [[row[k] for k in order] for row in TEXTS[::-1]], ("b", "a"))
    for name, (score_BK, valid_BK) in whole.aspects.items():
        assert np.array_equal(turned.aspects[name][0], score_BK[::-1][:, order])
        assert np.array_equal(turned.aspects[name][1], valid_BK[::-1][:, order])
    fewer = asked(local(), wanted, mask=EVERY & ~np.eye(2, 3, dtype=bool))
    assert np.array_equal(fewer.aspects["letter"][0][0, 1:], whole.aspects["letter"][0][0, 1:])


# The policy as its own judge.


def test_a_policys_verdicts_are_those_of_a_judge_of_its_parameters(wanted):
    judge = judges.of_policy(wanted, CFG, "", meshes.single(), Few(), 0)
    score = lambda params: judge(params).score(("a", "b"), TEXTS, ["", ""], EVERY)
    one, two = tiny.params(CFG), tiny.params(CFG, seed=1)
    first = score(one)
    run = sampling.answering(CFG, 12, 24, HOW["sampling"], Few.stops)
    compiled = run._cache_size()
    second = score(two)
    assert compiled and run._cache_size() == compiled, "nothing is compiled for other parameters"
    for params, found in ((one, first), (two, second)):
        model = local(params)
        alone = asked(model, wanted)
        assert np.array_equal(found.scores_BK, alone.scores_BK)
        assert found.metrics == alone.metrics | model.stats()
    assert first.metrics != second.metrics


def test_a_policy_that_judges_itself_may_be_shown_proofread_texts(wanted, monkeypatch):
    marks = SimpleNamespace(read=lambda prefixes, texts: [["x"] * len(row) for row in texts])
    monkeypatch.setattr(
        judges, "proofreader", lambda config, *_: marks if config.init_from else None
    )
    shown = dataclasses.replace(wanted, proofread=ProofreadConfig("tutor"))
    assert shown.sources() == {"judge.proofread.init_from": "tutor"}
    score = lambda wanted, texts: judges.of_policy(
        wanted, CFG, "", meshes.single(), Few(), 0
    )(tiny.params(CFG)).score(("a", "b"), texts, ["", ""], EVERY)  # fmt: skip
    found, same = score(shown, TEXTS), score(wanted, [["x"] * 3] * 2)
    assert np.array_equal(found.aspects["letter"][0], same.aspects["letter"][0])
    assert found.metrics != score(wanted, TEXTS).metrics


@pytest.mark.parametrize(
    ("live", "reference"),
    [
        (True, True),
        (False, False),
        pytest.param(True, False, marks=pytest.mark.slow),
        pytest.param(False, True, marks=pytest.mark.slow),
    ],
)
def test_a_live_judge_moves_and_a_frozen_one_does_not(live, reference, wanted):
    tx, mesh = optax.sgd(0.1), meshes.single()
    c = SimpleNamespace(
        judged=True, model=CFG, init_from="", judge=dataclasses.replace(wanted, live=live),
        objective=SimpleNamespace(needs_reference=reference), lora=lora.OFF, log=LogConfig(),
    )  # fmt: skip
    fixed = collect.Collector(
        CFG, mesh, Few(), *[None] * 4, SamplingConfig(), None, None, "suffix", seed=3
    )
    start = step.init_state(CFG, tx, mesh, 3, reference=reference)
    moved = dataclasses.replace(start, params=tiny.params(CFG))
    judged = selfimprove.self_judged(Run(None, "r", ""), c, fixed, tx)
    used = lambda state: judged(state).judge.textgen._params
    same = lambda a, b: all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))
    assert same(used(start), start.params) and judged(start).mesh is mesh
    assert same(used(moved), moved.params if live else start.params)
    assert not same(moved.params, start.params)


def test_any_other_judge_stays_as_it_is():
    fixed = object()
    c = SimpleNamespace(judged=True, judge=judges.JudgeConfig("truth", (("quality", 1.0),)))
    assert selfimprove.self_judged(Run(None, "r", ""), c, fixed, None)(None) is fixed


# Who can be asked for words.


def test_who_has_no_words_cannot_reason():
    weights = (("safety", 1.0), ("reasoned_safety", 1.0))
    with pytest.raises(
        UserError, match="'reasoned_safety' is answered after reasoning, and backend rule"
    ):
        judges.JudgeConfig("rule", weights, rule="distinct_words")
    http = RemoteConfig(url="http://h/v1", model="m", logprobs=0)
    with pytest.raises(UserError, match="http.logprobs.*'safety'"):
        judges.JudgeConfig("http", weights, http)
    assert judges.JudgeConfig("http", weights[1:], http).aspects() == (SAFETY,)


def test_a_judge_without_room_for_an_answer_is_refused(wanted):
    long = dataclasses.replace(wanted, max_tokens=160)
    with pytest.raises(UserError, match="judge.max_tokens 160 leaves no room .* max_len 160"):
        judges.of_policy(long, CFG, "", meshes.single(), Few(), 0)


def test_only_direct_verdicts_must_be_single_tokens(wanted):
    judges.of_policy(wanted, CFG, "", meshes.single(), Few(), 0)
    both = dataclasses.replace(wanted, weights=(*wanted.weights, ("safety", 1.0)))
    with pytest.raises(UserError, match="'safety': option ' safe'"):
        judges.of_policy(both, CFG, "", meshes.single(), Few(), 0)


def test_live_is_for_the_policy_alone(wanted):
    assert dataclasses.replace(wanted, live=True).sources() == {}
    assert dataclasses.replace(wanted, init_from="base").sources() == {"judge.init_from": "base"}
    with pytest.raises(UserError, match="judge.live"):
        dataclasses.replace(wanted, init_from="base", live=True)
