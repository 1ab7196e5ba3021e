"""Majority votes as rewards, without labels (self-training, arXiv 2505.21444).

Of K answers to a problem the most frequent one is the label. Answers are grouped by equivalence, so
1/2 and 0.5 are one answer: by the text or number that `answers.key` gives, and by the checker.

    hard    1 for an answer of the largest group, else 0
    soft    an answer's share: the size of its group / K

A text without an answer casts no vote and gets 0. A problem without a vote, with a tie for the
largest group or with too small a majority is masked and counted.

A comparison that fails, by a timeout or a worker that dies, says nothing: the answer that cannot be
compared is masked and counted, and so is the problem if its vote could change the majority.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sip.metrics import pair
from sip.rewards.answers import FAILURES, PROBE, RIGHT, WRONG, Checker, Gold, key
from sip.rewards.verdicts import Reward
from sip.sections import above, at_least, check, one_of
from sip.structs import UserError

MOST_COMPARED = 8  # different answers of a problem that the checker compares, 28 pairs
# In the place of a group: no answer, and an answer that could not be compared with the others.
NO_VOTE, UNSURE = -1, -2
CURRICULA = ("share", "passes")


@dataclass(frozen=True)
class MajorityConfig:
    """Self-training by majority votes. Raises UserError."""

    soft: bool = False  # reward = share of the answer's group; else 1 for the majority's answer
    teacher: str = ""  # run or checkpoint whose votes are the labels; empty: the policy's own votes
    least_share: float = 0.0  # 0..1; problems with a smaller majority are masked (0.6 in the paper)
    easiest: float = 1.0  # (0, 1]: share of the problems to learn from, the easiest; 1: all
    easiest_by: str = "share"  # by the start's answers: share (of the majority) | passes (labels)
    votes: int = 8  # teacher, easiest: answers to each problem, sampled once before the first step

    def __post_init__(self):
        check(
            "majority",
            self,
            least_share=at_least(0, most=1),
            easiest=above(0, most=1),
            easiest_by=one_of(CURRICULA),
            votes=at_least(2, most=1024),
        )
        if self.teacher and self.easiest < 1:
            raise UserError(
                "majority.teacher and majority.easiest: give one of the two; a teacher's labels "
                "with a small share are left out by majority.least_share"
            )

    @property
    def frozen(self) -> bool:
        """True if answers of a frozen model are needed."""
        return bool(self.teacher) or self.easiest < 1


# pairs of answers -> (True for each pair that is equal, answers whose comparison failed)
Equal = Callable[[Sequence[tuple[str, str]]], tuple[list[bool], set[str]]]


def equal_by(checker: Checker) -> Equal:
    """Returns the comparison of answers by a checker.

    Each answer is compared with a number first, so that one that hangs costs one timeout and not
    one with each other answer. A generator's own check (reasoning-gym) knows the right answer only,
    so it compares nothing.
    """
    if checker.cfg.check == "own":
        return lambda pairs: ([False] * len(pairs), set())

    def equal(pairs):
        texts = list(dict.fromkeys(itertools.chain.from_iterable(pairs)))
        alone = dict(zip(texts, checker.verdicts([Gold(PROBE)] * len(texts), texts), strict=True))
        asked = [pair for pair in pairs if all(alone[text] in (RIGHT, WRONG) for text in pair)]
        golds, answers = [Gold(one) for one, _ in asked], [two for _, two in asked]
        verdicts = dict(zip(asked, checker.verdicts(golds, answers), strict=True))
        failed = {text for text in texts if alone[text] in FAILURES}
        # One of the two is enough: `vote` gives its voters to any group. The second is the rarer.
        failed |= {two for one, two in asked if verdicts[one, two] in FAILURES}
        return [pair in verdicts and verdicts[pair] == RIGHT for pair in pairs], failed

    return equal


def grouped(
    answers: Sequence[Sequence[str | None]], equal: Equal, most: int = MOST_COMPARED
) -> list[list[int]]:
    """Returns the group of each answer [B][K], numbered from 0 by problem; NO_VOTE without one,
    UNSURE if its comparison failed.

    Being equal is made transitive: if a equals b and b equals c, the three are a group. Of each
    problem the `most` most frequent answers are compared, each pair once, all in one call.
    """
    keys = [[key(answer) for answer in row] for row in answers]
    parents = [{one: one for one in row if one} for row in keys]
    unsure: list[set[str]] = [set() for _ in keys]
    pairs, at = [], []
    for b, (row, said) in enumerate(_both(keys, answers)):
        texts = dict(zip(reversed(row), reversed(said), strict=True))  # the first text of each key
        ranked = [one for one, _ in Counter(x for x in row if x).most_common(most)]
        for one, two in itertools.combinations(ranked, 2):
            pairs.append((str(texts[one]), str(texts[two])))
            at.append((b, one, two))
    same, failed = equal(pairs) if pairs else ([], set())
    for (b, *both), texts, equals in zip(at, pairs, same, strict=True):
        unsure[b] |= {one for one, text in _both(both, texts) if text in failed}
        if equals:
            parents[b][_root(parents[b], both[1])] = _root(parents[b], both[0])
    return [_numbered(*each) for each in zip(keys, parents, unsure, strict=True)]


def _root(parents: dict[str, str], one: str) -> str:
    while parents[one] != one:
        one = parents[one]
    return one


def _numbered(keys: Sequence[str], parents: dict[str, str], unsure: set[str]) -> list[int]:
    numbers: dict[str, int] = {}
    place = lambda root: numbers.setdefault(root, len(numbers))
    sure = lambda one: UNSURE if one in unsure else place(_root(parents, one))
    return [sure(one) if one else NO_VOTE for one in keys]


@dataclass(frozen=True)
class Vote:
    """The result of a vote about one problem."""

    label: int  # the largest group; NO_VOTE without a vote, with a tie, or if it failed
    share: float  # the largest group's share of the voters, those without an answer included
    shares: dict[int, float]  # share of each group
    tied: bool
    failed: bool = False  # the voters that could not be compared might change the label


def vote(groups: Sequence[int]) -> Vote:
    """Counts the votes of K answers by their groups."""
    counts = Counter(group for group in groups if group >= 0)
    shares = {group: count / len(groups) for group, count in counts.items()}
    (label, most), (_, second) = [*counts.most_common(2), (NO_VOTE, 0), (NO_VOTE, 0)][:2]
    unsure = groups.count(UNSURE)
    failed = unsure > 0 and most - second <= unsure
    tied = most > 0 and most == second and not failed
    share = most / len(groups)
    return Vote(NO_VOTE if tied or failed else label, share, shares, tied, failed)


def reward(
    answers: Sequence[Sequence[str | None]],
    equal: Equal,
    cfg: MajorityConfig,
    teacher: Sequence[Sequence[str | None]] | None = None,
) -> tuple[Reward, list[str | None], np.ndarray]:
    """Rewards K answers to each of B problems. Returns ((reward_BK, valid_BK, metrics), labels,
    silent_B).

    `answers` are the final answers in the texts, None for a text without one. `teacher` are the
    answers of a frozen model to the same problems, which then vote alone. A label is the text of
    the majority's answer; None for a masked problem. silent_B is True for a problem that is masked
    because of its votes, not because a comparison failed.
    """
    voters = [list(row) for row in answers] if teacher is None else [list(row) for row in teacher]
    every = [v + (list(row) if teacher is not None else []) for v, row in _both(voters, answers)]
    groups = grouped(every, equal)
    votes = [vote(row[: len(v)]) for row, v in _both(groups, voters)]
    groups_BK = np.array([g[len(g) - len(row) :] for g, row in _both(groups, answers)])
    label_B1 = np.array([[v.label] for v in votes])
    share_B = np.array([v.share for v in votes])
    voted_B = label_B1[:, 0] != NO_VOTE
    kept_B = voted_B & (share_B >= cfg.least_share)
    if cfg.soft:
        rows = [
            [v.shares[g] if g in v.shares else 0.0 for g in row]
            for v, row in _both(votes, groups_BK.tolist())
        ]
        reward_BK = np.array(rows, np.float32)
    else:
        reward_BK = ((groups_BK == label_B1) & voted_B[:, None]).astype(np.float32)
    valid_BK = kept_B[:, None] & (groups_BK != UNSURE)
    silent_B = ~kept_B & ~np.array([v.failed for v in votes])
    labels = [
        row[list(g).index(v.label)] if kept else None
        for row, g, v, kept in zip(voters, groups, votes, kept_B, strict=True)
    ]
    metrics = {
        "majority/share": pair(share_B, voted_B),
        "majority/tied": pair(np.array([v.tied for v in votes])),
        "majority/no_vote": pair(silent_B & (share_B == 0)),
        "majority/small": pair(voted_B & ~kept_B),
        "majority/unread": pair(groups_BK == NO_VOTE),
        "majority/failed": pair(~valid_BK & ~silent_B[:, None]),
    }
    rewards = np.where(valid_BK, reward_BK, 0).astype(np.float32), valid_BK, metrics
    return rewards, labels, silent_B


def _both(one, two):
    return zip(one, two, strict=True)


def random(shape: tuple[int, int], seed: int, at: int) -> Reward:
    """Returns rewards 0 or 1 by chance for the answers of batch `at`: the control of a reward.

    A gain that random rewards give as well is not due to the votes (arXiv 2506.10947).
    """
    draw_BK = np.random.default_rng([seed, at]).integers(0, 2, shape)
    return draw_BK.astype(np.float32), np.ones(shape, bool), {}
