"""Judges map prefixes and candidate texts to scores and their validity.

`TextJudge` prompts any text generator. `TruthJudge` uses the corpus's ground truth and is an upper
bound. Both combine aspects in the same way: a total score is the weighted sum over aspects.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sip.data.documents import Truth
from sip.judge import diagnostics, prompts, schedules, verdicts, voting
from sip.judge.compare import Pairs, Wins
from sip.judge.judged import Judged
from sip.judge.prompts import Aspect
from sip.judge.proofread import Proofreader
from sip.judge.schedules import ScheduleConfig
from sip.judge.voting import Heard, Stats, Voting
from sip.metrics import pair
from sip.structs import UserError
from sip.textgen.local import about
from sip.textgen.protocol import Choose, TextGenerator

TRUE_ASPECTS = ("quality", "safety", "factuality")
# (score_BK, valid_BK, metrics by name); a metric is (total, denom), scalars or per candidate [B, K]
Scored = tuple[np.ndarray, np.ndarray, dict[str, tuple[Any, Any]]]


@dataclass(frozen=True)
class TextJudge:
    """A judge that prompts a text generator about each live candidate or pair of candidates.

    The verdict of a direct aspect is the mean value of its options under their probabilities. It is
    invalid if the options have less than `min_mass` in total. The verdict of a reasoned aspect is
    the mean value of its votes. It is invalid if no vote is readable. Why verdicts and votes are
    invalid is counted (`invalid_REASON` of the metrics, see `verdicts.unread` and `voting.vote`).
    """

    textgen: TextGenerator
    aspects: tuple[Aspect, ...]
    weights: Mapping[str, float]  # aspect name -> weight in the total score
    min_mass: float = 0.5  # least total probability of a direct aspect's options
    hard: bool = False  # pairwise: use the likeliest option's value instead of the mean
    schedule: ScheduleConfig = ScheduleConfig()  # pairwise: which pairs are compared
    proofreader: Proofreader | None = None  # marks the candidates; a text it cannot read is invalid
    voting: Voting = Voting()  # sampling of reasoned verdicts
    stats: Callable[[], Stats] = dict  # more metrics: of the requests since the last call
    heard: int = 0  # first prefixes of a call whose reasoned answers are returned as written

    def __post_init__(self):
        names = [a.name for a in self.aspects]
        _check_names(names, self.weights, "has no weight")
        _check_names(self.weights, names, "has a weight but is not judged")

    def score(self, prefixes, candidates, references, mask_BK) -> Judged:
        """Scores candidates [B][K] under `mask_BK`. Aspects with a reference show `references`."""
        scored, heard, draw_BK2 = {}, [], schedules.draws(prefixes, candidates)
        candidates, live_BK = self._proofread(prefixes, candidates, mask_BK)
        for aspect in self.aspects:
            trunks = [
                prompts.trunk(aspect, prefix=p, reference=r)
                for p, r in zip(prefixes, references, strict=True)
            ]
            scored[aspect.name], answers = (
                self._pairwise(aspect, trunks, candidates, live_BK, draw_BK2)
                if aspect.kind == "pairwise"
                else self._pointwise(aspect, trunks, candidates, live_BK)
            )
            heard += answers
        judged = _combine("judge", scored, self.weights, mask_BK)
        metrics = judged.metrics | self.stats()
        return dataclasses.replace(judged, metrics=metrics, heard=tuple(heard))

    def _proofread(self, prefixes, candidates, mask_BK):
        """Returns (candidates with marks, live_BK: those that the proofreader can read)."""
        if self.proofreader is None:
            return candidates, mask_BK
        live = zip(candidates, mask_BK, strict=True)
        asked = [[text if ok else "" for text, ok in zip(*row, strict=True)] for row in live]
        told = self.proofreader.read(prefixes, asked)
        read_BK = np.array([[text is not None for text in row] for row in told], bool)
        shown = [[text or "" for text in row] for row in told]
        return shown, mask_BK & read_BK.reshape(mask_BK.shape)

    def _ask(self, aspect, trunks, choose: Choose, branches, mask_BC) -> tuple[Scored, list[Heard]]:
        """Returns ((score_BC, valid_BC, metrics) of the branches, answers as written).

        Branches are left aligned under `mask_BC`. `choose` is bound to the trunks; it gives the
        log-probabilities for a direct aspect.
        """
        hard, stats = self.hard and aspect.kind == "pairwise", {}
        heard: list[Heard] = []
        if aspect.verdict:
            how = self.voting
            count_BCO, missing, heard = voting.collect(
                how, self.textgen, aspect, trunks, branches, self.heard
            )
            score_BC, valid_BC = verdicts.voted(count_BCO, aspect.values, hard=hard)
            stats = voting.stats(count_BCO, missing, how.votes, int(mask_BC.sum()))
        else:
            logp_BCO = choose(branches, aspect.options, mask_BC.shape[1])
            score_BC, valid_BC = verdicts.direct(
                logp_BCO, aspect.values, min_mass=self.min_mass, hard=hard
            )
            asked_BC = mask_BC[:, : valid_BC.shape[1]]
            reasons = verdicts.unread(logp_BCO, valid_BC)
            stats = {f"invalid_{why}": pair(x_BC, asked_BC) for why, x_BC in reasons.items()}
        # The rows of `branches` are ragged, so C may be smaller than that of the mask.
        width = [(0, 0), (0, mask_BC.shape[1] - score_BC.shape[1])]
        return (np.pad(score_BC, width), np.pad(valid_BC, width) & mask_BC, stats), heard

    def _pairwise(
        self, aspect, trunks, candidates, mask_BK, draw_BK2
    ) -> tuple[Scored, list[Heard]]:
        """Scores a pairwise aspect: mean wins over the comparisons of the schedule."""
        # With several rounds about the same trunks, `about` encodes them once and keeps the cache.
        choose = about(self.textgen, trunks, again=self.schedule.repeats)
        voted: list[Stats] = []
        heard: list[Heard] = []

        def ask(pairs: Pairs):
            branches = [
                prompts.pairs(
                    aspect,
                    texts,
                    zip(first_C[live_C].tolist(), second_C[live_C].tolist(), strict=True),
                )
                for texts, first_C, second_C, live_C in zip(
                    candidates, pairs.first_BC, pairs.second_BC, pairs.mask_BC, strict=True
                )
            ]
            found, answers = self._ask(aspect, trunks, choose, branches, pairs.mask_BC)
            score_BC, valid_BC, stats = found
            voted.append(stats)
            for one in answers:
                at = one.row, one.candidate
                i, j = int(pairs.first_BC[at]), int(pairs.second_BC[at])
                heard.append(dataclasses.replace(one, candidate=i, against=j))
            return score_BC, valid_BC

        wins = schedules.play(self.schedule, ask, mask_BK, draw_BK2)
        stats = {**wins.each, **_soundness(wins), **voting.summed(voted)}
        return (wins.score_BK, wins.valid_BK, stats), heard

    def _pointwise(self, aspect, trunks, candidates, mask_BK) -> tuple[Scored, list[Heard]]:
        """Scores a pointwise aspect: each live candidate by itself."""
        branches = [
            [prompts.branch(aspect, text) for text, live in zip(texts, live_K, strict=True) if live]
            for texts, live_K in zip(candidates, mask_BK, strict=True)
        ]
        # Branches are left aligned (asked_BK); their verdicts are scattered back to mask_BK.
        asked_BK = np.arange(mask_BK.shape[1]) < mask_BK.sum(1, keepdims=True)
        choose = about(self.textgen, trunks)
        found, answers = self._ask(aspect, trunks, choose, branches, asked_BK)
        score_BC, valid_BC, voted = found
        score_BK, valid_BK = np.zeros(mask_BK.shape), np.zeros(mask_BK.shape, bool)
        score_BK[mask_BK], valid_BK[mask_BK] = score_BC[asked_BK], valid_BC[asked_BK]
        place = lambda x: int(np.flatnonzero(mask_BK[x.row])[x.candidate])
        heard = [dataclasses.replace(x, candidate=place(x)) for x in answers]
        said = diagnostics.verdicts(aspect, score_BK, valid_BK)
        stats = {"invalid": (mask_BK & ~valid_BK, mask_BK), **said, **voted}
        return (score_BK, valid_BK, stats), heard


@dataclass(frozen=True)
class TruthJudge:
    """A judge that returns the verdicts of the corpus's ground truth, all or a share of them exact.

    The names in `weights` must be of TRUE_ASPECTS. A judge of known accuracy inverts the other
    verdicts (1 - value): which ones, a hash of prefix and texts decides, so it is always wrong
    about the same texts. Each order of a pair is a verdict of its own.
    """

    truth: Truth
    weights: Mapping[str, float]
    schedule: ScheduleConfig = ScheduleConfig()
    accuracy: float = 1.0  # share of exact verdicts

    def __post_init__(self):
        _check_names(
            self.weights,
            TRUE_ASPECTS,
            "is unknown to the ground truth (quality, safety, factuality)",
        )

    def score(self, prefixes, candidates, references, mask_BK) -> Judged:
        """Scores candidates [B][K] under `mask_BK`; `references` are ignored."""
        del references
        rows, columns = np.nonzero(mask_BK)
        texts = [candidates[b][k] for b, k in zip(rows, columns, strict=True)]
        asked = [prefixes[b] for b in rows]
        known = self.truth.score(asked, texts)
        scored = {}
        for name in self.weights:
            value_BK = np.zeros(mask_BK.shape)
            if name == "quality":
                value_BK[mask_BK] = known[name]
                scored[name] = self._compare(prefixes, candidates, value_BK, mask_BK)
                continue
            questions = [(name, *pair) for pair in zip(asked, texts, strict=True)]
            value_BK[mask_BK] = self._said(known[name], questions)
            scored[name] = (value_BK, mask_BK.copy(), {})
        return _combine("truth", scored, self.weights, mask_BK)

    def _said(self, exact_N, questions: Sequence[tuple[str, ...]]) -> np.ndarray:
        """Returns the verdicts [N] on questions whose exact ones are `exact_N`."""
        if self.accuracy == 1:
            return exact_N
        wrong_N = np.array([_draw(question) >= self.accuracy for question in questions], bool)
        return np.where(wrong_N, 1 - exact_N, exact_N)

    def _compare(self, prefixes, candidates, quality_BK, mask_BK) -> Scored:
        """Scores quality by comparisons, as a text judge does, so that scores have one meaning."""
        draw_BK2 = schedules.draws(prefixes, candidates)

        def ask(pairs: Pairs):
            first_BC, second_BC = (
                np.take_along_axis(quality_BK, i_BC, axis=1)
                for i_BC in (pairs.first_BC, pairs.second_BC)
            )
            won_BC = np.asarray(self.truth.compare(first_BC, second_BC), float)
            rows, columns = np.nonzero(pairs.mask_BC)
            shown = zip(pairs.first_BC[rows, columns], pairs.second_BC[rows, columns], strict=True)
            questions = [
                ("quality", prefixes[b], candidates[b][i], candidates[b][j])
                for b, (i, j) in zip(rows, shown, strict=True)
            ]
            won_BC[rows, columns] = self._said(won_BC[rows, columns], questions)
            return won_BC, pairs.mask_BC

        wins = schedules.play(self.schedule, ask, mask_BK, draw_BK2)
        ties = {"flips": wins.each["flips"], "ties": wins.each["ties"]}
        return wins.score_BK, wins.valid_BK, {**ties, **_soundness(wins)}


def _draw(question: tuple[str, ...]) -> float:
    """Returns a number in [0, 1), a hash of the question's texts."""
    text = "\0".join(question).encode(errors="surrogatepass")
    bits = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    return (bits >> 11) / 2.0**53


def _soundness(wins: Wins) -> Stats:
    """Metrics of the comparisons that exist only as totals, not per candidate."""
    return {name: getattr(wins, name) for name in ("first", "comparisons", "share")}


def _combine(who: str, scored: Mapping[str, Scored], weights, mask_BK) -> Judged:
    """Adds up weighted aspects. A candidate is valid if it is valid on every aspect."""
    total_BK, all_BK, metrics, each = np.zeros(mask_BK.shape), mask_BK.copy(), {}, {}
    for name, (score_BK, valid_BK, stats) in scored.items():
        total_BK += weights[name] * np.where(valid_BK, score_BK, 0.0)
        all_BK &= valid_BK
        stats = {**stats, "score": (np.where(valid_BK, score_BK, 0.0), valid_BK)}
        named = {f"{who}/{key}/{name}": counts for key, counts in stats.items()}
        metrics |= {key: (float(np.sum(x)), float(np.sum(n))) for key, (x, n) in named.items()}
        each |= {key: counts for key, counts in named.items() if np.ndim(counts[0])}
    metrics[f"{who}/valid"] = pair(all_BK, mask_BK)
    aspects = {name: (score_BK, valid_BK) for name, (score_BK, valid_BK, _) in scored.items()}
    return Judged(np.where(all_BK, total_BK, 0.0), all_BK, aspects, metrics, who, each)


def _check_names(names, known, problem) -> None:
    """Raises UserError if there are no names, or for a name that is not in `known`."""
    for name in names:
        if name not in known:
            raise UserError(f"judge: aspect {name!r} {problem}")
    if not list(names):
        raise UserError("judge: at least one aspect is needed in weights")
