"""Tests comparison schedules: their pairs, and scores that are comparable between schedules."""

import numpy as np
import pytest

from sip.judge import adaptive, bradley_terry, compare, prompts, schedules
from sip.judge.schedules import ScheduleConfig
from sip.judge.scoring import TextJudge, TruthJudge
from sip.structs import UserError
from sip.textgen.scripted import Scripted

SPARSE = {
    "pivot": ScheduleConfig("pivot", pivot="drawn"),
    "random": ScheduleConfig("random", opponents=3),
    "adaptive": ScheduleConfig("adaptive", budget=0.6, rounds=3),
}
EVERY = {"all": ScheduleConfig(), "first": ScheduleConfig("pivot"), **SPARSE}


class Court:
    """Verdicts on all ordered pairs, some of them invalid, and a record of the requested pairs."""

    def __init__(self, outcome_BKK, valid_BKK=None):
        self.outcome = outcome_BKK
        self.valid = np.ones(outcome_BKK.shape, bool) if valid_BKK is None else valid_BKK
        self.rounds = []

    def __call__(self, pairs):
        at = np.arange(len(self.outcome))[:, None], pairs.first_BC, pairs.second_BC
        asked = np.zeros(self.outcome.shape, int)
        np.add.at(asked, at, pairs.mask_BC)
        self.rounds.append(asked)
        return self.outcome[at], self.valid[at]

    @property
    def asked(self):
        return np.sum(self.rounds, axis=0)


def _outcomes(B=5, K=7, seed=0):
    return np.random.default_rng(seed).random((B, K, K))


def _draws(B=5, K=7, seed=1):
    return np.random.default_rng(seed).random((B, K, 2))


def _play(cfg, court, mask=None, draws=None, **options):
    B, K, _ = court.outcome.shape
    mask = np.ones((B, K), bool) if mask is None else mask
    return schedules.play(cfg, court, mask, _draws(B, K) if draws is None else draws, **options)


def _mean_by_loop(outcome, valid, mask):
    """Computes score and validity for all pairs by loops."""
    B, K = mask.shape
    score, sound = np.zeros((B, K)), np.zeros((B, K), bool)
    for b, i in np.argwhere(mask):
        others = [j for j in range(K) if j != i and mask[b, j]]
        met = [j for j in others if valid[b, i, j] and valid[b, j, i]]
        total = 0.0
        for j in met:
            total += (outcome[b, i, j] + 1.0 - outcome[b, j, i]) / 2
        if 2 * len(met) > len(others):
            score[b, i], sound[b, i] = total / len(met), True
    return score, sound


def test_all_is_the_mean_over_all_opponents_bit_for_bit():
    rng = np.random.default_rng(3)
    outcome = np.round(rng.random((20, 6, 6)), 1)
    valid, mask = rng.random(outcome.shape) < 0.85, rng.random((20, 6)) < 0.8
    wins = _play(ScheduleConfig(), Court(outcome, valid), mask)
    score, sound = _mean_by_loop(outcome, valid, mask)
    assert np.array_equal(wins.score_BK, score) and np.array_equal(wins.valid_BK, sound)
    assert 0 < sound.sum() < mask.sum()


@pytest.mark.parametrize("K", [2, 3, 6, 7])
def test_whoever_asks_for_everything_has_the_scores_of_all(K):
    outcome = _outcomes(4, K)
    every = _play(ScheduleConfig(), Court(outcome))
    whole = ScheduleConfig("random", opponents=max(K - 1, 2))
    for cfg in (whole, ScheduleConfig("adaptive", budget=1.0)):
        wins = _play(cfg, Court(outcome))
        assert np.allclose(wins.score_BK, every.score_BK, atol=1e-14)
        assert wins.valid_BK.all() and wins.share == every.share == (4 * K * (K - 1),) * 2


def _stars(outcome):
    """Returns (seen_BKK, table) with each candidate as the pivot in turn."""
    B, K, _ = outcome.shape
    for pivot in range(K):
        draws = _draws(B, K)
        draws[:, pivot, 0] = -1.0  # lowest
        court = Court(outcome)
        _play(SPARSE["pivot"], court, draws=draws)
        yield pivot, court.asked


def test_pivots_averaged_are_all_pairs():
    outcome = _outcomes()
    score = np.zeros(outcome.shape[:2])
    for pivot, asked in _stars(outcome):
        others = np.arange(7) != pivot
        assert (asked[:, pivot, others] == 1).all() and (asked[:, others, pivot] == 1).all()
        assert asked.sum() == 5 * 2 * 6
        score += (outcome[:, :, pivot] + 1 - outcome[:, pivot]) / 2 * others
    assert np.allclose(score / 6, _play(ScheduleConfig(), Court(outcome)).score_BK)


def test_of_a_consistent_judge_a_star_tells_all():
    """If outcomes are sigmoid(difference), K - 1 of them determine the rest, up to the prior."""
    p = bradley_terry.beats(np.random.default_rng(4).normal(0, 1, (3, 5)))
    for _, asked in _stars(p):
        found, _ = bradley_terry.fit(p, asked > 0, prior=1e-9)
        assert np.allclose(bradley_terry.beats(found), p, atol=1e-6)
        assert (asked > 0).sum() < p.size / 2


@pytest.mark.parametrize("n", range(1, 10))
def test_random_gives_each_as_many_opponents_as_are_wanted(n):
    for m in range(2, 9):
        court, mask = Court(_outcomes(3, 9)), np.random.default_rng(n).permuted(
            np.tile(np.arange(9) < n, (3, 1)), axis=1
        )  # fmt: skip
        wins = _play(ScheduleConfig("random", opponents=m), court, mask)
        met = court.asked.sum(-1) if court.rounds else np.zeros((3, 9), int)
        wanted = min(m, n - 1)
        one_more = wanted % 2 and n % 2  # no graph has an odd number of odd degrees
        assert (np.sort(met[mask].reshape(3, n)) == [*[wanted] * (n - 1), wanted + one_more]).all()
        assert (wins.valid_BK == mask).all()  # all are linked, or alone


@pytest.mark.parametrize("which", [0, 1])
def test_other_draws_are_other_opponents(which):
    """The first number places a candidate; the second gives the distances of its opponents."""
    one, two, draws = Court(_outcomes(20, 17)), Court(_outcomes(20, 17)), _draws(20, 17)
    cfg = ScheduleConfig("random", opponents=4)
    _play(cfg, one, draws=draws)
    draws[..., which] = _draws(20, 17, seed=9)[..., which]
    _play(cfg, two, draws=draws)
    assert (one.asked != two.asked).any((1, 2)).sum() > 10


@pytest.mark.parametrize("name", EVERY)
def test_each_round_asks_new_pairs_in_both_orders_of_live_candidates(name):
    rng = np.random.default_rng(5)
    mask = np.vstack([rng.random((30, 7)) < 0.6, np.zeros((1, 7), bool), np.eye(1, 7, dtype=bool)])
    court = Court(_outcomes(len(mask), 7))
    wins = _play(EVERY[name], court, mask)
    live = mask[:, :, None] & mask[:, None]
    assert court.asked.max() == 1 and not court.asked[~live].any()
    assert all((asked == asked.transpose(0, 2, 1)).all() for asked in court.rounds)
    assert len(court.rounds) == (3 if name == "adaptive" else 1)
    assert (wins.valid_BK == mask).all() and not wins.score_BK[~mask].any()
    assert (wins.score_BK[mask & (mask.sum(1, keepdims=True) == 1)] == 0.5).all()
    assert wins.comparisons == (court.asked.sum(), len(mask))
    if name == "adaptive":  # of each row, a ring at least
        n = mask.sum(1)
        pairs = n * (n - 1) // 2
        budget = np.maximum(np.floor(0.6 * pairs + 1e-9), np.minimum(n, pairs))
        assert (court.asked.sum((1, 2)) == 2 * budget).all() and (budget > n).any()


@pytest.mark.parametrize("name", EVERY)
def test_wins_are_shared_out(name):
    """Each pair of candidates has one win in total: the scores of a prefix average to 1/2."""
    wins = _play(EVERY[name], Court((_outcomes() > 0.5).astype(float)))
    assert np.allclose(wins.score_BK.mean(1), 0.5)
    assert wins.score_BK.min() >= 0 and wins.score_BK.max() <= 1
    even = _play(EVERY[name], Court(np.full((2, 7, 7), 0.5)))
    assert np.allclose(even.score_BK, 0.5) and even.ties[0] == even.ties[1] > 0


@pytest.mark.parametrize("name", {"all": 0, **SPARSE})
def test_the_order_of_candidates_decides_nothing(name):
    rng = np.random.default_rng(6)
    outcome = rng.choice([0.0, 0.3, 0.5, 1.0], (6, 7, 7))
    mask, draws, to = rng.random((6, 7)) < 0.8, _draws(6, 7), rng.permutation(7)
    one = _play(EVERY[name], Court(outcome), mask, draws)
    two = _play(EVERY[name], Court(outcome[:, to][:, :, to]), mask[:, to], draws[:, to])
    assert np.allclose(one.score_BK[:, to], two.score_BK, atol=1e-14)
    assert np.array_equal(one.valid_BK[:, to], two.valid_BK)
    assert (one.flips, one.ties, one.share) == (two.flips, two.ties, two.share)


@pytest.mark.parametrize("name", EVERY)
def test_invalid_verdicts_count_for_nothing(name):
    rng = np.random.default_rng(7)
    outcome, valid = _outcomes(), rng.random((5, 7, 7)) < 0.9
    some = lambda other: _play(EVERY[name], Court(np.where(valid, outcome, other), valid))
    one, two = some(np.nan), some(1.0)
    assert np.array_equal(one.score_BK, two.score_BK) and np.isfinite(one.score_BK).all()
    assert np.array_equal(one.valid_BK, two.valid_BK)
    assert one.invalid == two.invalid and 0 < one.invalid[0] < one.invalid[1] == one.comparisons[0]


@pytest.mark.parametrize("name", EVERY)
def test_a_candidate_that_cannot_be_read_is_invalid_and_the_rest_is_not(name):
    valid = np.ones((5, 7, 7), bool)
    draws = _draws()
    draws[:, 3, 0] = 2.0  # no pivot
    valid[:, 3] = False
    wins = _play(EVERY[name], Court(_outcomes(), valid), draws=draws)
    assert not wins.valid_BK[:, 3].any() and not wins.score_BK[:, 3].any()
    assert (wins.valid_BK.sum(1) == 6).all()


def test_strengths_of_parts_that_never_met_are_not_compared():
    """Four of seven candidates met each other, and the other three: the smaller part is invalid."""
    table = compare.empty(np.ones((1, 7), bool))
    side = np.arange(7) < 4
    asked = table.live_BKK & (side[:, None] == side)
    pairs = compare.pairs_of(asked)
    ones = np.ones(pairs.mask_BC.shape)
    wins = compare.expected_wins(compare.enter(table, pairs, ones, ones > 0))
    assert wins.valid_BK.tolist() == [side.tolist()]


def test_unseen_outcomes_are_expected_by_hand(monkeypatch):
    """0 beats 1 and 1 beats 2 with odds of 3: 0 is expected to beat 2 in 9 of 10."""
    monkeypatch.setattr(compare, "DRAWN", 1e-9)
    outcome = np.zeros((1, 3, 3))
    outcome[0, 0, 1], outcome[0, 1, 0], outcome[0, 1, 2], outcome[0, 2, 1] = 0.8, 0.3, 0.7, 0.2
    wins = _play(ScheduleConfig("pivot", pivot="drawn"), Court(outcome),
                 draws=np.array([[[0.5, 0], [0.1, 0], [0.6, 0]]]))  # fmt: skip
    assert np.allclose(wins.score_BK, [[(0.75 + 0.9) / 2, 0.5, (0.25 + 0.1) / 2]])
    assert wins.comparisons == (4.0, 1.0) and wins.share == (4.0, 6.0)


def test_half_of_few_opponents_is_enough():
    """On a ring of four each meets two; the pair 0, 1 is invalid."""
    table = compare.empty(np.ones((1, 4), bool))
    pairs = compare.pairs_of(table.live_BKK & (np.add.outer(range(4), range(4)) % 2 == 1))
    for last, expected in ((1, [True] * 4), (3, [False, True, True, True])):
        shown = pairs.first_BC * 4 + pairs.second_BC
        valid = ~np.isin(shown, [0 * 4 + 1, last * 4])
        found = compare.enter(table, pairs, np.ones(valid.shape), valid)
        assert compare.expected_wins(found).valid_BK.tolist() == [expected]


def test_the_first_live_candidate_is_the_pivot():
    court = Court(_outcomes(2, 4))
    _play(EVERY["first"], court, np.array([[1, 1, 1, 1], [0, 0, 1, 1]], bool))
    assert court.asked.sum(-1).tolist() == [[3, 1, 1, 1], [0, 0, 1, 1]]


def test_against_the_first_a_score_is_the_win_over_it_alone():
    """The score ignores other comparisons, as if each candidate had met only the first."""
    outcome, mask = _outcomes(3, 5), np.ones((3, 5), bool)
    mask[1, 0], mask[2, 2:] = False, False
    court = Court(outcome)
    wins = _play(ScheduleConfig("against"), court, mask)
    for b, first in enumerate((0, 1, 0)):
        others = [k for k in range(first + 1, 5) if mask[b, k]]
        won = [(outcome[b, k, first] + 1 - outcome[b, first, k]) / 2 for k in others]
        assert np.allclose(wins.score_BK[b, others], won)
        assert np.isclose(wins.score_BK[b, first], 1 - np.mean(won))
        pair = np.ix_([b], [first, others[-1]], [first, others[-1]])
        assert np.isclose(_play(ScheduleConfig(), Court(outcome[pair])).score_BK[0, 1], won[-1])
    assert (wins.valid_BK == mask).all() and court.asked.sum((1, 2)).tolist() == [8, 6, 2]


def test_adaptive_spends_its_budget_on_the_ends():
    """The ends of 17 candidates in known order meet more opponents than the middle."""
    strength_BK = np.tile(np.linspace(-4, 4, 17), (20, 1))
    court = Court(bradley_terry.beats(strength_BK))
    wins = _play(ScheduleConfig("adaptive", budget=0.25, rounds=5), court)
    assert (court.asked.sum((1, 2)) == 68).all() and wins.share == (68 * 20, 272 * 20)
    assert (court.rounds[0].sum(-1) == 2).all() and len(court.rounds) == 5
    met = court.asked.sum(-1).mean(0)
    assert met[[0, 16]].min() > 2 * met[6:11].max()
    assert (wins.score_BK.argmax(1) == 16).all() and (wins.score_BK.argmin(1) == 0).all()


def test_variances_of_a_pair_answered_are_those_of_the_larger_precision():
    """Compares Sherman-Morrison with an inverse; a row without a pair is unchanged."""
    rng = np.random.default_rng(10)
    root, h, pair = rng.normal(size=(2, 4, 4)), rng.random((2, 4, 4)), np.zeros((2, 4, 4), bool)
    precision, pair[0, 1, 3] = root @ root.transpose(0, 2, 1) + np.eye(4), True
    found = adaptive._answered(np.linalg.inv(precision), h, pair)
    sign = np.array([0, 1, 0, -1])
    precision[0] += h[0, 1, 3] * np.outer(sign, sign)
    assert np.allclose(found, np.linalg.inv(precision))


def test_draws_are_a_texts_own():
    prefixes, texts = ["p", "q"], [["a", "b", "c"], ["a", "b", "c"]]
    draws = schedules.draws(prefixes, texts)
    assert draws.shape == (2, 3, 2) and 0 <= draws.min() and draws.max() < 1
    assert len(np.unique(draws)) == 12  # by prefix and by text
    assert np.array_equal(draws[1:, ::-1], schedules.draws(["q"], [["c", "b", "a"]]))


FEW = {
    "pivot": (ScheduleConfig("pivot"), 14),
    "drawn pivot": (ScheduleConfig("pivot", pivot="drawn"), 15),
    "random 2": (ScheduleConfig("random", opponents=2), 13),
    "random 4": (ScheduleConfig("random", opponents=4), 12),
    "adaptive": (ScheduleConfig("adaptive", budget=0.3), 11),
}


@pytest.mark.parametrize(("cfg", "K"), FEW.values(), ids=FEW)
def test_scores_from_few_comparisons_have_the_scale_of_all(cfg, K):
    """Fits the line sparse = 1/2 + slope * (full - 1/2); a slope of 1 is the same scale."""
    rng = np.random.default_rng(11)
    outcome = bradley_terry.beats(rng.normal(0, 1.5, (150, K)))
    noisy = 1 / (
        1 + np.exp(-np.log(outcome / (1 - outcome)) - 0.3 * rng.normal(size=outcome.shape))
    )
    few, every = (_play(c, Court(noisy)).score_BK - 0.5 for c in (cfg, ScheduleConfig()))
    slope = (few * every).sum() / (every**2).sum()
    assert 0.92 < slope < 1.03 and 0.94 < few.std() / every.std() < 1.03


class Longest:
    """A ground truth that likes long texts."""

    def score(self, prefixes, texts):
        return {"quality": np.array([len(text) for text in texts], float)}

    def compare(self, a, b):
        return np.where(a == b, 0.5, a > b)


def _judges(cfg):
    def fn(trunk, branch, options):
        first, second = (line.split(":", 1)[1] for line in branch.strip("\n").split("\n")[:2])
        p = 1 / (1 + np.exp(len(second) - len(first)))
        return p, 1 - p

    text = TextJudge(Scripted(fn), (prompts.load("quality"),), {"quality": 1.0}, schedule=cfg)
    return {"judge": text, "truth": TruthJudge(Longest(), {"quality": 1.0}, cfg)}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("who", ["judge", "truth"])
def test_a_judge_repeats_itself_whatever_stands_beside(name, who):
    """A resumed run shows the same texts and gets the same verdicts."""
    rng = np.random.default_rng(8)
    texts = [[" " + "x" * int(n) for n in rng.permutation(20)[:7] + 1] for _ in range(4)]
    prefixes, mask = [f"prefix {b}" for b in range(4)], np.ones((4, 7), bool)
    score = lambda rows: _judges(EVERY[name])[who].score(
        prefixes[rows], texts[rows], [""] * len(prefixes[rows]), mask[rows]
    )
    one, two, part = score(slice(4)), score(slice(4)), score(slice(2, 4))
    assert np.array_equal(one.scores_BK, two.scores_BK) and one.metrics == two.metrics
    assert np.allclose(part.scores_BK, one.scores_BK[2:], atol=1e-14) and one.valid_BK.all()
    asked, prefixes_asked = one.metrics[f"{who}/comparisons/quality"]
    assert prefixes_asked == 4 and one.metrics[f"{who}/share/quality"] == (asked, 4 * 42)
    assert (asked < 4 * 42) == (name != "all")
    if who == "judge":
        longest = [max(range(7), key=lambda k, row=row: len(row[k])) for row in texts]
        assert name == "random" or one.scores_BK.argmax(1).tolist() == longest


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"name": "swiss"}, "schedule.name must be one of"),
        ({"pivot": "last"}, "schedule.pivot must be one of"),
        ({"opponents": 1}, "schedule.opponents must be at least 2"),
        ({"budget": 0.0}, r"schedule.budget must be in \(0, 1\]"),
        ({"budget": 1.1}, r"schedule.budget must be in \(0, 1\]"),
        ({"budget": float("nan")}, r"schedule.budget must be in \(0, 1\]"),
        ({"rounds": 1}, "schedule.rounds must be at least 2"),
    ],
)
def test_what_cannot_be_scheduled_is_said(changes, problem):
    with pytest.raises(UserError, match=problem):
        ScheduleConfig(**changes)
