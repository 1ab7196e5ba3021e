"""Tests self-training by votes: votes, what is learned from, and the detection of a collapse."""

import dataclasses
import importlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sip.data.prompts import Prompt
from sip.evals.collapse import CollapseConfig, collapsed
from sip.objectives import policy
from sip.rewards import majority
from sip.rewards.answers import PROBE, AnswersConfig, Checker
from sip.rewards.majority import NO_VOTE, UNSURE, MajorityConfig, equal_by, grouped, vote
from sip.stages import rl, watch
from sip.stages.watch import Watch
from sip.structs import UserError
from sip.tasks.rl import prompts, self_training
from sip.tasks.rl.prompts import Config
from sip.training.loop import CheckpointConfig

NUMERIC = equal_by(Checker(AnswersConfig(check="numeric")))


def test_equivalent_answers_are_one_group_and_no_answer_is_none():
    asked = [
        ["1/2", "0.5", "50%", None, " .50 ", "2/4", "3"],
        ["b", "B.", "c", "", "x" * 400, "a", "a"],
    ]
    assert grouped(asked, NUMERIC) == [
        [0, 0, 1, NO_VOTE, 0, 0, 2],
        [0, 0, 1, NO_VOTE, NO_VOTE, 2, 2],
    ]


def test_groups_are_transitive_and_compared_once_in_one_bounded_call():
    """a ~ b and b ~ c join a and c, which the check tells apart, and so do x ~ z and y ~ z. The
    rarest answers are not compared."""
    calls = []
    same = [{"a", "b"}, {"b", "c"}, {"x", "z"}, {"y", "z"}]

    def equal(pairs):
        calls.append(pairs)
        return [{*pair} in same for pair in pairs], set()

    row = ["d", "a", "b", "c", "a", "b", "c", "a", "d", "e"]
    assert grouped([row, ["x", "y", "z"]], equal, most=4) == [
        [0, 1, 1, 1, 1, 1, 1, 1, 0, 2],
        [0, 0, 0],
    ]
    assert len(calls) == 1 and len(calls[0]) == 6 + 3  # pairs of a, b, c, d and of x, y, z
    assert not any("e" in pair for pair in calls[0])
    assert grouped([["a", "a"], [None, None]], equal) == [[0, 0], [NO_VOTE, NO_VOTE]]
    assert len(calls) == 1  # nothing to compare


def test_a_generators_own_check_compares_nothing():
    pytest.importorskip("reasoning_gym")
    own = equal_by(Checker(AnswersConfig(check="own")))
    assert grouped([["1/2", "0.5", "half"]], own) == [[0, 0, 1]]


def test_an_answer_that_cannot_be_compared_is_unsure_in_its_problems_only():
    """h hangs; in the last problem it is compared with nothing."""
    equal = lambda pairs: ([{*pair} == {"a", "b"} for pair in pairs], {"h"})
    asked = [["a", "h", "b", "a"], ["a", "c", "a", None], ["h", "h", "h", None]]
    assert grouped(asked, equal) == [
        [0, UNSURE, 0, 0],
        [0, 1, 0, NO_VOTE],
        [0, 0, 0, NO_VOTE],
    ]


class Compares:
    """A checker of texts that counts what it is asked: h hangs, ? cannot be read."""

    cfg = AnswersConfig()

    def __init__(self, **pairs):
        self.asked, self.pairs = [], pairs

    def verdicts(self, golds, answers):
        asked = [(gold.answer, said) for gold, said in zip(golds, answers, strict=True)]
        self.asked += asked
        known = {PROBE + "h": "timeout", PROBE + "?": "unread"} | self.pairs
        return [known["".join(x)] if "".join(x) in known else "wrong" for x in asked]


def test_a_hanging_answer_costs_one_timeout_and_not_one_with_each_other_answer():
    checker: Any = Compares(ab="right")
    asked = [["h", "a", "b", "?"]] * 2
    assert grouped(asked, equal_by(checker)) == [[UNSURE, 0, 0, 1]] * 2
    assert set(checker.asked) == {*((PROBE, one) for one in "hab?"), ("a", "b")}


def test_of_two_answers_whose_comparison_fails_the_rarer_is_unsure():
    checker: Any = Compares(ba="died")
    assert grouped([["a", "b", "c", "b"]], equal_by(checker)) == [[UNSURE, 0, 1, 0]]


ANSWERS = [
    ["7", "7.0", "8", None],  # 2 of 4 votes for 7, though one text has no answer
    ["1", "1", "2", "2"],  # a tie
    [None, None, None, None],
    ["3", "3", "3", "4"],
]


def test_the_majoritys_answer_is_rewarded_and_the_rest_masked_by_hand():
    found, labels, silent_B = majority.reward(ANSWERS, NUMERIC, MajorityConfig())
    reward_BK, valid_BK, metrics = found
    assert reward_BK.tolist() == [[1, 1, 0, 0], [0] * 4, [0] * 4, [1, 1, 1, 0]]
    assert valid_BK.all(1).tolist() == [True, False, False, True] == valid_BK.any(1).tolist()
    assert labels == ["7", None, None, "3"]
    assert silent_B.tolist() == [False, True, True, False]
    assert metrics == {
        "majority/share": (0.5 + 0.75, 2),  # of problems with a label; no answer is in the 4
        "majority/tied": (1, 4),
        "majority/no_vote": (1, 4),
        "majority/small": (0, 4),
        "majority/unread": (5, 16),
        "majority/failed": (0, 16),
    }


def test_a_small_majority_is_masked_and_counted():
    cfg = MajorityConfig(least_share=0.6)
    (reward_BK, valid_BK, metrics), labels, _ = majority.reward(ANSWERS, NUMERIC, cfg)
    assert valid_BK.any(1).tolist() == [False, False, False, True] and not reward_BK[0].any()
    assert metrics["majority/small"] == (1, 4) and labels == [None, None, None, "3"]


def test_soft_rewards_are_shares_of_all_answers():
    (reward_BK, _, _), *_ = majority.reward(ANSWERS, NUMERIC, MajorityConfig(soft=True))
    assert reward_BK.tolist() == [[0.5, 0.5, 0.25, 0], [0] * 4, [0] * 4, [0.75, 0.75, 0.75, 0.25]]


def test_a_frozen_teacher_votes_alone():
    """Its votes are for 8, in another form; the policy's own for 7."""
    teacher = [["8.0", "8", "7", None], ["2", "2"], ["5"], [None]]
    for soft, first in ((False, [0, 0, 1, 0]), (True, [0.25, 0.25, 0.5, 0])):
        cfg = MajorityConfig(soft=soft, teacher="start")
        (reward_BK, valid_BK, _), labels, _ = majority.reward(ANSWERS, NUMERIC, cfg, teacher)
        assert reward_BK.tolist() == [first, [0, 0, 1, 1], [0] * 4, [0] * 4]
        assert valid_BK.any(1).tolist() == [True, True, True, False]
        assert labels == ["8.0", "2", "5", None]


def test_the_vote_of_groups():
    found = vote([0, 0, 1, NO_VOTE])
    assert (found.label, found.share, found.shares, found.tied) == (
        0,
        0.5,
        {0: 0.5, 1: 0.25},
        False,
    )
    assert vote([1, 0]).tied and vote([1, 0]).label == NO_VOTE and vote([1, 0]).share == 0.5
    assert vote([NO_VOTE]).share == 0 and not vote([NO_VOTE]).tied


@pytest.mark.parametrize(
    ("groups", "label", "failed"),
    [
        ([0, 0, 0, 1, UNSURE], 0, False),  # 3 to 1, or 3 to 2
        ([0, 0, 1, UNSURE, NO_VOTE], NO_VOTE, True),  # 2 to 1, or 2 to 2
        ([0, 0, UNSURE, UNSURE], NO_VOTE, True),  # the two may agree
        ([0, 0, UNSURE], 0, False),
        ([0, 1, UNSURE], NO_VOTE, True),  # not a tie: the third voter may decide it
        ([UNSURE, UNSURE], NO_VOTE, True),
    ],
)
def test_a_vote_counts_if_the_unsure_voters_cannot_change_it(groups, label, failed):
    found = vote(groups)
    assert (found.label, found.failed, found.tied) == (label, failed, False)


def test_failed_comparisons_are_masked_and_counted_and_are_no_ties():
    """In the first problem h is masked; in the second the problem, as h might be b. The third has a
    tie, which is no failure."""
    equal = lambda pairs: ([False] * len(pairs), {"h"})
    asked = [["a", "a", "a", "h"], ["a", "b", "a", "h"], ["a", "a", "b", "b"]]
    found, labels, silent_B = majority.reward(asked, equal, MajorityConfig())
    reward_BK, valid_BK, metrics = found
    assert reward_BK.tolist() == [[1, 1, 1, 0], [0] * 4, [0] * 4]
    assert valid_BK.tolist() == [[True] * 3 + [False], [False] * 4, [False] * 4]
    assert labels == ["a", None, None] and silent_B.tolist() == [False, False, True]
    assert metrics["majority/failed"] == (1 + 4, 12)
    assert metrics["majority/tied"] == (1, 3) and metrics["majority/no_vote"] == (0, 3)


def test_masked_problems_are_replaced_by_others_of_the_batch():
    """Problems without a majority are chosen last, of twice as many."""
    answers = [*ANSWERS, ["6", "6", "6", "6"], ["9", "9", "9", None]]
    cfg = MajorityConfig(least_share=0.6)
    (reward_BK, valid_BK, _), *_ = majority.reward(answers, NUMERIC, cfg)
    advantage_BK = np.asarray(policy.advantages(reward_BK, valid_BK, "rloo"))
    assert rl.learned_rows(advantage_BK, valid_BK, 2).tolist() == [3, 5]  # the mixed ones
    assert rl.learned_rows(advantage_BK, valid_BK, 3).tolist() == [3, 4, 5]  # then agreement
    assert rl.learned_rows(advantage_BK, valid_BK, 4).tolist() == [0, 3, 4, 5]


def test_the_easiest_third_by_hand():
    rates = [0.5, 1.0, 0.25, 0.5, 0.875, 0.5]
    assert self_training.easiest(rates, 1 / 3) == [1, 4]
    assert self_training.easiest(rates, 0.5) == [0, 1, 4]  # of equal ones the first
    assert self_training.easiest(rates, 1e-3) == [1] and self_training.easiest(rates, 1.0) == [
        *range(6)
    ]


def test_random_rewards_depend_on_batch_and_seed_only():
    first, again, other, seeded = (
        majority.random((64, 8), *key)[0] for key in ((0, 3), (0, 3), (0, 4), (1, 3))
    )
    assert (first == again).all() and (first != other).any() and (first != seeded).any()
    assert set(first.ravel()) == {0, 1} and 0.4 < first.mean() < 0.6


# An update's (reward, KL) and the accuracy on held-out problems: a healthy run, and one that
# collapses from step 34 on. Noise of fixed seed.
def curve(collapse: bool):
    rng = np.random.default_rng(0)
    steps = np.arange(60)
    after = np.clip(steps - 33, 0, None) if collapse else np.zeros(60)
    reward = np.minimum(0.5 + 0.003 * steps + 0.02 * rng.standard_normal(60) + 0.08 * after, 1.0)
    kl = (0.3 + 0.02 * steps) * (1 + 0.1 * rng.standard_normal(60)) + 1.5 * after**1.5
    accuracy = 0.4 + 0.002 * steps - 0.03 * np.clip(after - 1, 0, None)
    return list(zip(reward, kl, strict=True)), accuracy


SEEN = CollapseConfig(window=20)


def first_seen(points):
    found = [n for n in range(1, len(points) + 1) if collapsed(SEEN, points[:n])]
    return found[0] if found else 0


def test_a_collapse_is_seen_before_the_accuracy_has_fallen_by_a_tenth():
    points, accuracy = curve(collapse=True)
    at = first_seen(points)
    fallen = next(n for n, x in enumerate(accuracy, 1) if x < accuracy[:n].max() - 0.1)
    assert 34 < at < fallen, (at, fallen)


@pytest.mark.parametrize("part", ["both", "reward", "kl"])
def test_a_healthy_run_and_a_jump_of_one_figure_alone_are_no_collapse(part):
    healthy, broken = curve(collapse=False)[0], curve(collapse=True)[0]
    pick = {"both": (healthy, healthy), "reward": (broken, healthy), "kl": (healthy, broken)}
    rewards, kls = pick[part]
    points = [(r, k) for (r, _), (_, k) in zip(rewards, kls, strict=True)]
    assert first_seen(points) == 0
    assert not collapsed(CollapseConfig(), broken), "no window, no detection"


@pytest.mark.parametrize("power", [1, 2])
def test_learning_fast_from_the_first_update_on_is_no_collapse(power):
    """The reward rises from .3 to .8 in some 15 updates; the KL begins at 0 and grows, also
    quadratically."""
    steps = np.arange(80)
    reward, kl = 0.3 + 0.5 * (1 - np.exp(-steps / 15)), 0.01 * steps**power
    assert first_seen(list(zip(reward, kl, strict=True))) == 0


def config(**changes):
    settings = dict(steps=60, patience=0, best="eval/x", stop=True, lowest=False) | changes
    return SimpleNamespace(
        steps=settings["steps"],
        collapse=dataclasses.replace(SEEN, stop=settings["stop"]),
        evals=SimpleNamespace(patience=settings["patience"]),
        checkpoint=CheckpointConfig(
            every_steps=10, best=settings["best"], lowest=settings["lowest"]
        ),
    )


def test_the_collapse_step_is_kept_and_ends_the_run_if_wanted():
    points, _ = curve(collapse=True)
    seen = Watch()
    for done, (reward, kl) in enumerate(points[:50], 1):
        found = {"reward/all": (reward * 4, 4.0), "rl/kl": (kl * 4, 4.0)}
        seen = watch.updated(SEEN, seen, done, found)
    at = first_seen(points)
    assert seen.collapsed == at and len(seen.points) == SEEN.size
    assert watch.updated(SEEN, seen, 51, {"reward/all": (0.0, 0.0), "rl/kl": (0.0, 0.0)}) == seen
    last, reason = watch.end(config(), seen, 50)
    assert last == 50 and f"collapse at step {at}" in reason
    assert watch.end(config(stop=False), seen, 50) == (60, "")
    assert watch.end(config(), seen, 60) == (60, "")  # it ends anyway
    assert watch.figures(config(), seen, 50, reason) == {
        "collapse_step": at,
        "stopped_early": reason,
        "stopped_early_after": 50,
    }


def test_a_run_ends_after_evaluations_that_are_not_better():
    c, seen = config(patience=2), Watch()
    for value, worse in ((0.2, 0), (0.3, 0), (0.3, 1), (float("nan"), 2)):
        seen = watch.evaluated(c.checkpoint, seen, {"eval/x": value})
        assert seen.worse == worse
        assert watch.evaluated(c.checkpoint, seen, None) is seen  # none was due
    assert watch.end(c, seen, 40) == (40, "2 evaluations were not better than eval/x 0.3")
    lowest = config(lowest=True).checkpoint
    assert watch.evaluated(lowest, Watch(best=0.2), {"eval/x": 0.1}).best == 0.1


def test_the_evaluation_of_votes_is_by_right_answers():
    of = lambda reward, **more: Config(
        name="prompts",
        reward=reward,
        problems=rl_problems().problems(),
        answers=AnswersConfig(check="exact"),
        **more,
    )
    assert of("random").evaluated == (("answers", 1.0),)
    both = of((("majority", 0.5), ("answers", 0.25)), majority=MajorityConfig())
    assert both.evaluated == (("answers", 0.25),)
    assert of("answers").evaluated == (("answers", 1.0),)
    assert "eval/reward/answers" in of("majority", majority=MajorityConfig()).figures(False)


def rl_problems():
    importlib.import_module("tiny_recipe")  # makes configs importable
    return importlib.import_module("rl_problems")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: run.task.majority.update(votes=1), "votes=1"),
        (lambda run: run.task.majority.update(easiest=0.0), "easiest=0.0"),
        (lambda run: run.task.majority.update(teacher="x", easiest=0.5), "give one of the two"),
        (lambda run: run.task.update(reward="random"), "need each other"),
        (lambda run: run.task.__delattr__("answers"), "needs the sections problems and answers"),
        (lambda run: run.collapse.update(recent=0), "recent=0"),
        (lambda run: run.objective.update(kl="loss"), "collapse.window needs objective.kl reward"),
        (
            lambda run: run.evals.update(patience=1) or run.checkpoint.update(best=""),
            "patience needs",
        ),
    ],
)
def test_what_cannot_be_is_named(change, message):
    importlib.import_module("tiny_recipe")
    recipe = importlib.import_module("self_training").get_config("majority,debug")
    change(recipe.runs.majority)
    with pytest.raises(UserError, match=message):
        rl.resolve(recipe, "majority")


def test_an_unknown_arm_is_named_and_arms_are_chosen():
    importlib.import_module("tiny_recipe")
    of = importlib.import_module("self_training").get_config
    assert of("soft,hybrid").order == ("base", "thoughts", "soft", "hybrid")
    with pytest.raises(ValueError, match="'sof'"):
        of("sof")


def part(reward_BK, valid_BK=None, silent=()):
    reward_BK = np.array(reward_BK, np.float32)
    valid_BK = np.ones(reward_BK.shape, bool) if valid_BK is None else np.array(valid_BK, bool)
    silent_B = np.array([b in silent for b in range(len(reward_BK))])
    return prompts.Part(reward_BK, valid_BK & ~silent_B[:, None], {}, silent_B)


def test_a_hybrid_is_a_sum_by_weights_and_a_tie_leaves_the_check_alone():
    """The votes say 7, the check 8: half each. The second problem is a tie of the votes, so that
    the right answers alone decide. In the third a check has failed: it masks its answer. In the
    fourth nothing is known."""
    asked = [Prompt([1], name, name) for name in "pqrs"]
    x = prompts.Answers(asked, [[[3]] * 4] * 4, [["a"] * 4] * 4, np.zeros((4, 4), bool))
    found, _, silent_B = majority.reward(
        [*ANSWERS[:2], *ANSWERS[3:1:-1]], NUMERIC, MajorityConfig()
    )
    wanted: Any = SimpleNamespace(ends=True, cut_penalty=0.0)
    right = [[0, 0, 1, 0], [0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]
    checked = part(right, [[1] * 4, [1] * 4, [1, 1, 0, 1], [0] * 4])
    parts = {"m": prompts.Part(*found, silent_B), "a": checked}
    parts_PBK, valid_BK, metrics = prompts._rewarded(parts, wanted, x, 8)
    total_BK = np.einsum("P,PBK->BK", [0.5, 0.5], parts_PBK)
    assert total_BK[:2].tolist() == [[0.5, 0.5, 0.5, 0], [0, 0, 0.5, 0.5]]
    assert total_BK[2, [0, 1, 3]].tolist() == [1, 0.5, 0]
    assert valid_BK.tolist() == [[True] * 4, [True] * 4, [True, True, False, True], [False] * 4]
    assert metrics["reward/m/skipped"] == (8, 16) and metrics["reward/a/skipped"] == (5, 16)
    alone = prompts._rewarded({"m": parts["m"]}, wanted, x, 8)[1]
    assert alone.any(1).tolist() == [True, False, True, False]  # a silent reward alone


def test_failed_comparisons_stop_a_run_and_ties_do_not():
    tie, dead = part(np.zeros((2, 2)), silent=(0, 1)), part(np.zeros((2, 2)), np.zeros((2, 2)))
    prompts._check_failed({"majority": tie}, 0.0)
    with pytest.raises(UserError, match="100% of a batch's answers.*skipped by: majority 100%"):
        prompts._check_failed({"majority": dead, "answers": tie}, 0.5)
    half = part(np.zeros((2, 2)), [[0, 0], [1, 1]])
    prompts._check_failed({"majority": half}, 0.5)
