"""The candidates of a run on disk, for people to read: RUN_DIR/candidates.jsonl.

Strict JSON in UTF-8, an object per line and prefix:

    step        the update that learns from the candidates; update 1 is the first
    row         place of the prefix in the batch
    kind        candidates (of a prefix, self-improving) | answers (to a prompt, RL)
    prompt      the prefix or prompt, as text
    reference   the text that the judge is shown beside the candidates, or the right answer; or null
    candidates  a list of objects:
        source     suffix | rewrite | rollout | answer
        text       of the candidate
        score      of the judge, or the reward of an answer; null if not valid, or without a judge
        aspects    scores by aspect, or rewards by part; null where there is no valid one
        valid      true if it may be learned from
        why        null, or why it is not: empty | no rewrite | duplicate | no verdict | not ended |
                   no reward
        chosen, rejected   true for the two of a pair that is learned from
        advantage  of policy gradients; null for other objectives
        tokens     number of tokens
        ended      true if it ends with a stop token; null if it has a fixed length
        said       answers of a judge that reasons: aspect, text, value of the verdict or null, and
                   `against`, null or the candidate that was shown second. A comparison is listed
                   with the candidate that was shown first.

Written every `log.candidates_every` updates, after the first and after the last one, for the first
`log.candidates_rows` rows of the batch. Candidates are those that were judged and learned from:
nothing is sampled or judged again. If the file grows above `log.candidates_bytes`, every second of
its steps is dropped, except for the first and the newest, again until it is below.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from sip import processes
from sip.judge.voting import Heard
from sip.metrics import StepLines, read_steps
from sip.stages.collect import Seen
from sip.structs import UserError
from sip.text.segments import Ids
from sip.text.tokenizer import Tokenizer, continuation
from sip.training.loop import LogConfig

FILE = "candidates.jsonl"
KEYS = ("step", "row", "kind", "prompt", "reference", "candidates")
Line = dict[str, Any]


class CandidateLog:
    """Writes candidates.jsonl of a run."""

    def __init__(self, run_dir: str, config: LogConfig, resume_step: int | None):
        self.config = config
        self._lines = StepLines(epath.Path(run_dir) / FILE, resume_step)

    def due(self, step: int, last: int, each: int = 1) -> bool:
        """True if this process writes the candidates of the `each` steps that end with `step`.

        They are those of the first and the `last` batch, and one for each `candidates_every` steps.
        """
        every = self.config.candidates_every
        if not (every and processes.lead()):
            return False
        return step in (each, last) or step // every > (step - each) // every

    def write(self, lines: Sequence[Line]) -> None:
        """Appends the lines of a step, then drops older steps if the file is too large."""
        self._lines.write(lines)
        while self._lines.size() > self.config.candidates_bytes:
            steps = list(dict.fromkeys(row["step"] for row in read_steps(self._lines.path)))
            gone = set(steps[1:-1:2] or steps[:-1])
            if not gone:
                return  # the newest step alone is larger than the bound
            self._lines.rewrite(lambda row, gone=gone: row["step"] not in gone)


def read(run_dir) -> list[Line]:
    """Returns the lines of a run's candidates.jsonl; none if it has no such file.

    Lines that were cut off are left out. Raises UserError for a file of another form.
    """
    path = epath.Path(run_dir) / FILE
    found = read_steps(path)
    for row in found:
        missing = [key for key in KEYS if key not in row]
        if missing:
            raise UserError(f"{path}: step {row['step']} has no {missing[0]!r}; delete the file")
    return found


def candidates(step: int, seen: Seen, rows: int) -> list[Line]:
    """Returns the lines of the first `rows` prefixes of a self-improving step."""
    return [
        {
            "step": step,
            "row": b,
            "kind": "candidates",
            "prompt": seen.prefixes[b],
            "reference": seen.references[b],
            "candidates": [_candidate(seen, b, k) for k in range(len(seen.pool.sources))],
        }
        for b in range(min(rows, len(seen.prefixes)))
    ]


def _candidate(seen: Seen, b: int, k: int) -> Line:
    pool, judged, choice = seen.pool, seen.judged, seen.choice
    learned = np.flatnonzero((choice.index_BC[b] == k) & choice.valid_BC[b])
    pair, advantage_BC = choice.advantage_BC is None, choice.advantage_BC
    return {
        "source": pool.sources[k],
        "text": pool.texts[b][k],
        "score": _value(judged.scores_BK, seen.valid_BK, b, k) if judged else None,
        "aspects": {name: _value(*x, b, k) for name, x in judged.aspects.items()} if judged else {},
        "valid": bool(seen.valid_BK[b, k]),
        "why": _why(seen, b, k),
        "chosen": pair and 0 in learned,
        "rejected": pair and 1 in learned,
        "advantage": float(advantage_BC[b, learned[0]])
        if advantage_BC is not None and len(learned)
        else None,
        "tokens": int(pool.mask_BKR[b, k].sum()),
        "ended": None,
        "said": _said(judged.heard if judged else (), b, k),
    }


def _why(seen: Seen, b: int, k: int) -> str | None:
    """Says why a candidate is not valid; None if it is."""
    if seen.valid_BK[b, k]:
        return None
    if not seen.pool.mask_BKR[b, k].any():
        return "no rewrite" if seen.pool.sources[k] == "rewrite" else "empty"
    return "no verdict" if seen.pool.valid_BK[b, k] else "duplicate"


@dataclass(frozen=True)
class Answered:
    """K answers to each of B prompts with their rewards, on the host."""

    prompts: Sequence[Ids]
    references: Callable[[], Sequence[str | None]] | None  # the right answers; None: unknown
    ids: Sequence[Sequence[Ids]]
    reward_BK: np.ndarray
    parts: dict[str, np.ndarray]  # rewards by name
    valid_BK: np.ndarray
    advantage_BK: np.ndarray
    heard: Sequence[Heard]


def answers(
    step: int, seen: Answered, rows: int, tokenizer: Tokenizer, stops: Sequence[int]
) -> list[Line]:
    """Returns the lines of the first `rows` prompts of a policy-gradient step.

    `stops` are the token ids that end an answer; none if answers have a fixed length.
    """
    known = seen.references() if seen.references else [None] * len(seen.prompts)
    return [
        {
            "step": step,
            "row": b,
            "kind": "answers",
            "prompt": tokenizer.decode(seen.prompts[b]),
            "reference": known[b],
            "candidates": [_answer(seen, b, k, tokenizer, stops) for k in range(len(seen.ids[b]))],
        }
        for b in range(min(rows, len(seen.prompts)))
    ]


def _answer(seen: Answered, b: int, k: int, tokenizer: Tokenizer, stops: Sequence[int]) -> Line:
    ids, valid = seen.ids[b][k], bool(seen.valid_BK[b, k])
    ended = bool(ids and ids[-1] in stops) if stops else None
    return {
        "source": "answer",
        "text": continuation(tokenizer, seen.prompts[b], ids),
        "score": _value(seen.reward_BK, seen.valid_BK, b, k),
        "aspects": {name: _value(x_BK, seen.valid_BK, b, k) for name, x_BK in seen.parts.items()},
        "valid": valid,
        "why": None if valid else "not ended" if ended is False else "no reward",
        "chosen": False,
        "rejected": False,
        "advantage": float(seen.advantage_BK[b, k]) if valid else None,
        "tokens": len(ids),
        "ended": ended,
        "said": _said(seen.heard, b, k),
    }


def _value(x_BK, valid_BK, b: int, k: int) -> float | None:
    return float(x_BK[b, k]) if valid_BK[b, k] else None


def _said(heard: Sequence[Heard], b: int, k: int) -> list[Line]:
    return [
        {"aspect": x.aspect, "against": x.against, "text": x.text, "value": x.value}
        for x in heard
        if (x.row, x.candidate) == (b, k)
    ]
