"""Scores the documents' own suffixes with a judge: to drop chunks, or to label them good and bad.

filtering (`FilterConfig`)           chunks below a threshold are dropped
control tokens (`ControlConfig`)     chunks get a good or a bad token (sip/data/control.py)

Both are baselines for self-improving pretraining: they use the judge's word about the corpus, but
write no better text.
"""

from dataclasses import dataclass

import numpy as np

from sip.data import chunks, control, documents
from sip.data.chunks import Batch, Chunks, texts_of
from sip.judge.build import JudgeConfig, check_invalid
from sip.judge.judged import Judge
from sip.sections import at_least, check
from sip.structs import UserError
from sip.text.tokenizer import Tokenizer

ROWS = 512  # chunks that are scored at a time
STREAM = 1  # of the draws of chunks without a control token


@dataclass(frozen=True)
class FilterConfig:
    """Filtering: the chunks whose suffix has a score below the threshold are not learned."""

    judge: JudgeConfig  # pointwise aspects, without a reference
    threshold: float = 0.5  # least score of a chunk that is kept, the weighted sum over aspects
    max_invalid: float = 0.5  # share of invalid verdicts at which the run stops

    def __post_init__(self):
        check("filter", self, max_invalid=at_least(0, most=1))
        _check_judge(self.judge, self.threshold, "filter")


@dataclass(frozen=True)
class ControlConfig:
    """Conditional pretraining (arXiv 2302.08582): a control token stands in front of each suffix.

    The token is `good` if the suffix's score is at least the threshold, else `bad`; a share of the
    suffixes, and those without a valid score, have none. Both must be single tokens of the
    tokenizer: name them in `tokenizer.symbols`. Text of the corpus should not contain them.
    """

    judge: JudgeConfig  # pointwise aspects, without a reference
    good: str  # control token of suffixes with a score of at least `threshold`
    bad: str  # control token of the other suffixes
    threshold: float = 0.5  # least score of a good suffix, the weighted sum over aspects
    unmarked: float = 0.01  # share of suffixes without a control token, drawn anew in each step
    max_invalid: float = 0.5  # share of invalid verdicts of a batch at which the run stops

    def __post_init__(self):
        check(
            "control",
            self,
            unmarked=at_least(0, most=1),
            max_invalid=at_least(0, most=1),
        )
        if not self.good or not self.bad or self.good == self.bad:
            raise UserError(
                f"control.good {self.good!r} and control.bad {self.bad!r} must be two tokens"
            )
        _check_judge(self.judge, self.threshold, "control")


def _check_judge(judge: JudgeConfig, threshold: float, key: str) -> None:
    """Raises UserError if the judge cannot score a single text by itself, or never reaches the
    threshold."""
    if judge.own:
        raise UserError(f"{key}.judge.init_from: the policy does not score the corpus; name a run")
    paired = [aspect.name for aspect in judge.aspects() if aspect.kind == "pairwise"]
    # The ground truth's quality is a comparison, too.
    paired += [name for name, _ in judge.weights if judge.backend == "truth" and name == "quality"]
    if paired:
        raise UserError(
            f"{key}.judge.weights: {paired[0]!r} compares two texts, but a chunk is scored alone; "
            "use safety or factuality"
        )
    best = [max(aspect.values) for aspect in judge.aspects()] or [1.0] * len(judge.weights)
    most = sum(w * value for (_, w), value in zip(judge.weights, best, strict=True))
    if not 0 <= threshold <= most:
        raise UserError(
            f"{key}.threshold={threshold}: must be in 0..{most:g}, the range of the score"
        )


def scores(
    judge: Judge, tokenizer: Tokenizer, rows: Batch, suffix: int, most: float, key: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (score_B, valid_B) of the suffixes of a batch, each `suffix` tokens, by the judge.

    Raises UserError if more than the share `most` of the verdicts is invalid; `key` is its name.
    """
    prefixes, suffixes, _ = texts_of(tokenizer, rows, suffix)
    asked_B1 = np.ones((len(suffixes), 1), bool)
    found = judge.score(prefixes, [[text] for text in suffixes], [""] * len(suffixes), asked_B1)
    check_invalid(asked_B1, found.valid_BK, most, key, found.metrics)
    return found.scores_BK[:, 0], found.valid_BK[:, 0]


def filtered(
    wanted: FilterConfig, judge: Judge, tokenizer: Tokenizer, found: Chunks
) -> tuple[Chunks, dict[str, int]]:
    """Returns (the chunks whose score is at least the threshold, chunks left out by reason).

    Chunks without a valid score are left out. Asks the judge about every chunk, once. Raises
    UserError if none is kept.
    """
    keep, unread = [], 0
    for start in range(0, len(found), ROWS):
        rows = chunks.batch(found[i] for i in range(start, min(start + ROWS, len(found))))
        how = (wanted.max_invalid, "filter.max_invalid")
        score_B, valid_B = scores(judge, tokenizer, rows, found.suffix, *how)
        keep.append(valid_B & (score_B >= wanted.threshold))
        unread += int((~valid_B).sum())
    keep_B = np.concatenate(keep)
    below = f"with a score below {wanted.threshold:g}"
    left_out = {below: int((~keep_B).sum()) - unread, "without a valid score": unread}
    left_out = {reason: count for reason, count in left_out.items() if count}
    if not keep_B.any():
        raise UserError(
            f"filter: no chunk is left ({documents.listed(left_out)}); lower filter.threshold"
        )
    return chunks.select(found, keep_B), left_out


@dataclass(frozen=True)
class Labeller:
    """Puts control tokens into batches by a judge's scores."""

    config: ControlConfig
    judge: Judge
    tokenizer: Tokenizer
    suffix: int  # tokens of a suffix
    seed: int

    def __call__(self, rows: Batch, at: int) -> Batch:
        """Returns the batch of step `at` (from 0) with its control tokens."""
        c, key = self.config, "control.max_invalid"
        scored = scores(self.judge, self.tokenizer, rows, self.suffix, c.max_invalid, key)
        draw_B = np.random.default_rng((self.seed, STREAM, at)).random(len(rows["fork_B"]))
        control_B = control.labels(
            *scored,
            draw_B,
            threshold=c.threshold,
            good=control.token(self.tokenizer, c.good, "control.good"),
            bad=control.token(self.tokenizer, c.bad, "control.bad"),
            unmarked=c.unmarked,
        )
        return control.insert(rows, control_B, self.tokenizer.pad)
