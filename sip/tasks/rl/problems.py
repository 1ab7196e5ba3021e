"""Problems with verifiable answers, for the task "prompts": their prompts, the reward, and figures
of several sampled answers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from sip.data import problems, thoughts
from sip.data.conversations import Unusable, check_left_out
from sip.data.documents import PARTS
from sip.data.problems import Oracle, Parts, Problem, ProblemsConfig
from sip.data.prompts import TOO_LONG, Encode, Prompt
from sip.evals import problems as evals
from sip.metrics import pair
from sip.rewards import answers, majority
from sip.rewards.answers import Checker, Gold
from sip.rewards.majority import MajorityConfig
from sip.rewards.verdicts import Reward
from sip.sampling import SamplingConfig
from sip.structs import Params
from sip.tasks.rl.task import AnswerWriter
from sip.text.segments import Ids
from sip.text.tokenizer import Tokenizer, continuation


def prompts_of(
    cfg: ProblemsConfig,
    data: Mapping[str, Any],
    encode: Encode,
    max_len: int,
    checker: Checker | None = None,
) -> tuple[dict[str, list[Prompt]], dict[str, int]]:
    """Returns ({train | validation | test: prompts}, left_out by reason).

    `max_len` is the most tokens of a prompt. Problems whose right answer the `checker` cannot read
    are left out. Raises UserError as `problems.load` does.
    """
    parts, left_out = problems.load(cfg, data)
    if checker is not None:
        parts = _checkable(cfg, parts, checker, left_out)
    return {part: _encoded(cfg, parts[part], encode, max_len, left_out) for part in PARTS}, left_out


def _checkable(cfg, parts: Parts, checker: Checker, left_out: dict[str, int]) -> Parts:
    """Returns the problems whose right answer is right by the checker; counts the others.

    Raises UserError if they are more than `max_skipped_fraction`.
    """
    every = [problem for some in parts.values() for problem in some]
    verdicts = checker.readable([Gold(p.answer, p.entry) for p in every])
    counts = Counter(
        f"whose right answer is {verdict} by the check {checker.cfg.check}"
        for verdict in verdicts
        if verdict != answers.RIGHT
    )
    name = cfg.path or cfg.test or cfg.source
    check_left_out(name, "problems", len(every), counts, cfg.max_skipped_fraction)
    left_out.update(counts)
    verdict = iter(verdicts)
    return {
        part: [problem for problem in some if next(verdict) == answers.RIGHT]
        for part, some in parts.items()
    }


def _encoded(cfg, some: Sequence[Problem], encode: Encode, max_len: int, left_out) -> list[Prompt]:
    found = []
    for problem in some:
        try:
            ids = encode(text := problems.prompt(cfg, problem))
            if len(ids) > max_len:
                raise Unusable(TOO_LONG.format(max_len))
            found.append(Prompt(ids, text, text, _fields(problem)))
        except Unusable as why:
            left_out[str(why)] = left_out.setdefault(str(why), 0) + 1
    return found


def _fields(problem: Problem) -> dict[str, Any]:
    return dict(
        problem=problem.text,
        answer=problem.answer,
        solution=problem.solution,
        entry=problem.entry,
    )


def reward(
    cfg: ProblemsConfig,
    checker: Checker,
    oracle: Oracle | None,
    asked: Sequence[Prompt],
    ids: Sequence[Sequence[Ids]],
    texts: Sequence[Sequence[str]],
    cut_BK: np.ndarray,
) -> Reward:
    """Rewards K answers to each of B problems by a checker.

    With an `oracle`, the share of right answers whose thought supports them is a metric.
    """
    found_BK = _extracted(cfg, asked, texts, cut_BK)
    verdicts_BK = _verdicts(checker, asked, found_BK)
    result = answers.reward(verdicts_BK, [[len(one) for one in row] for row in ids])
    if oracle is None:
        return result
    supported_BK = [
        [_supported(cfg, oracle, p, text) for text in row]
        for p, row in zip(asked, texts, strict=True)
    ]
    reward_BK, valid_BK, metrics = result
    supported = pair(np.array(supported_BK), reward_BK > 0)
    return reward_BK, valid_BK, {**metrics, "answers/supported": supported}


def _extracted(cfg: ProblemsConfig, asked: Sequence[Prompt], texts, cut_BK) -> list[list]:
    """Returns the answers [B][K] in the texts, None where there is none in the wanted form."""
    found = []
    for p, row, cuts in zip(asked, texts, cut_BK, strict=True):
        lines = p.fields["answer"].count("\n") + 1
        pairs = zip(row, cuts, strict=True)
        found.append([problems.extract(cfg.form, x, cut=bool(c), lines=lines) for x, c in pairs])
    return found


def _verdicts(checker: Checker, asked: Sequence[Prompt], found_BK) -> list[list[str]]:
    golds = [Gold(p.fields["answer"], p.fields["entry"]) for p in asked]
    every = [gold for gold, row in zip(golds, found_BK, strict=True) for _ in row]
    verdicts = iter(checker.verdicts(every, [one for row in found_BK for one in row]))
    return [[next(verdicts) for _ in row] for row in found_BK]


def _supported(cfg: ProblemsConfig, oracle: Oracle, prompt: Prompt, text: str) -> bool:
    """True if the text before the answer supports the right answer."""
    thought = thoughts.untagged(problems.thought(cfg.form, text))  # a tag is no part of a claim
    return oracle(prompt.fields["problem"], thought, prompt.fields["answer"])


@dataclass(frozen=True)
class Solved:
    """N sampled answers to a problem, and what the checker says about each."""

    problem: str
    texts: list[str]
    answers: list[str | None]  # the final answers in the texts
    verdicts: list[str]
    cut: list[bool]  # without a stop token
    tokens: list[int]

    @property
    def checked(self) -> int:
        """Number of answers whose check did not fail."""
        return sum(verdict not in answers.FAILURES for verdict in self.verdicts)

    @property
    def right(self) -> int:
        """Number of right answers."""
        return self.verdicts.count(answers.RIGHT)

    @property
    def passes(self) -> float:
        """The pass rate: share of right answers among those that could be checked."""
        return self.right / self.checked if self.checked else 0.0


def solve(
    params: Params,
    writer: AnswerWriter,
    cfg: ProblemsConfig,
    checker: Checker,
    asked: Sequence[Prompt],
    *,
    samples: int,
    sampling: SamplingConfig,
    batch: int,
    seed: int,
    start: int = 0,
) -> list[Solved]:
    """Samples answers to problems, `batch` at a time, and checks them.

    `start` is the place of the first problem among all of them: equal problems at equal places get
    equal answers, in however many calls.
    """
    key = jax.random.key(seed)
    ids = writer.sampled_ids(params, [p.ids for p in asked], batch, samples, sampling, key, start)
    return judged(writer, cfg, checker, asked, ids)


def judged(
    writer: AnswerWriter, cfg: ProblemsConfig, checker: Checker, asked: Sequence[Prompt], ids
) -> list[Solved]:
    """Checks answers of token ids [B][K]."""
    texts = read(writer.tokenizer, asked, ids)
    cut = [[not (one and one[-1] in writer.stops) for one in row] for row in ids]
    said = _extracted(cfg, asked, texts, cut)
    verdicts = _verdicts(checker, asked, said)
    tokens = [[len(one) for one in row] for row in ids]
    rows = zip(asked, texts, said, verdicts, cut, tokens, strict=True)
    return [Solved(p.fields["problem"], *own) for p, *own in rows]


def votes_of(solved: Sequence[Solved], checker: Checker) -> list[list[str]]:
    """Returns votes [B][N]: equal for answers that the checker finds equal, empty without one."""
    return as_votes(majority.grouped([one.answers for one in solved], majority.equal_by(checker)))


def as_votes(groups: Sequence[Sequence[int]]) -> list[list[str]]:
    """Returns the groups of answers (`majority.grouped`) as votes; empty without a group."""
    return [[str(group) if group >= 0 else "" for group in row] for row in groups]


def figures(solved: Sequence[Solved], votes: Sequence[Sequence[str]]) -> dict[str, float]:
    """Returns mean@n, maj@n, pass@k, diversity, lengths, and shares of verdicts and cut answers.

    `votes` are the texts by which answers agree, as those of `votes_of`.
    """
    verdicts = np.array([one.verdicts for one in solved])
    cut, tokens = (np.array([getattr(one, key) for one in solved]) for key in ("cut", "tokens"))
    valid = ~np.isin(verdicts, answers.FAILURES)
    found = evals.figures(verdicts == answers.RIGHT, valid, votes)
    found |= evals.diversity(votes, [one.texts for one in solved])
    found |= {f"answers/{v}": float((verdicts == v).mean()) for v in answers.VERDICTS[1:]}
    found |= {"answer_tokens": float(tokens.mean()), "cut": float(cut.mean())}
    return {**found, "problems": len(solved)}


def compared(
    start: Sequence[Solved],
    now: Sequence[Solved],
    before: Mapping[str, float],
    after: Mapping[str, float],
) -> dict[str, float]:
    """Returns figures of answers to the same problems against those of the start.

    `before` and `after` are the `figures` of both. `tokens_ratio` is the mean length over the
    start's. The pass rates are by thirds of difficulty, as the start's pass rates rank the
    problems.
    """
    ours, theirs = ([one.passes for one in some] for some in (now, start))
    found = {f"start/{key}": x for key, x in before.items() if "@" in key or key == "answer_tokens"}
    found["tokens_ratio"] = after["answer_tokens"] / max(before["answer_tokens"], 1)
    for name, rates in (("passes", ours), ("start/passes", theirs)):
        found |= {f"{name}/{third}": x for third, x in evals.thirds(theirs, rates).items()}
    return found


def sampled(
    params: Params, writer: AnswerWriter, cfg: ProblemsConfig, checker: Checker, asked, **how
) -> dict[str, float]:
    """Samples answers to problems as `solve` does, and returns their figures."""
    solved = solve(params, writer, cfg, checker, asked, **how)
    return figures(solved, votes_of(solved, checker))


def by_majority(
    cfg: ProblemsConfig,
    checker: Checker,
    wanted: MajorityConfig,
    teacher: Mapping[str, Sequence[str | None]] | None,
    asked: Sequence[Prompt],
    texts: Sequence[Sequence[str]],
    cut_BK: np.ndarray,
) -> tuple[Reward, np.ndarray]:
    """Rewards K answers to each of B problems by a majority vote, without the right answers.

    Returns ((reward_BK, valid_BK, metrics), silent_B) as `majority.reward` does. `teacher` has a
    frozen model's answers by problem, which then vote alone. The right answers are used for one
    metric: the share of right labels.
    """
    theirs = None if teacher is None else [teacher[p.fields["problem"]] for p in asked]
    said = _extracted(cfg, asked, texts, cut_BK)
    found, labels, silent_B = majority.reward(said, majority.equal_by(checker), wanted, theirs)
    pairs = [(p, label) for p, label in zip(asked, labels, strict=True) if label is not None]
    verdicts = _verdicts(checker, [p for p, _ in pairs], [[label] for _, label in pairs])
    right = np.array([row[0] == answers.RIGHT for row in verdicts], bool)
    reward_BK, valid_BK, metrics = found
    return (reward_BK, valid_BK, {**metrics, "majority/right": pair(right)}), silent_B


def read(tokenizer: Tokenizer, asked: Sequence[Prompt], ids) -> list[list[str]]:
    """Decodes answers [B][K] as continuations of their prompts."""
    return [
        [continuation(tokenizer, prompt.ids, one) for one in row]
        for prompt, row in zip(asked, ids, strict=True)
    ]
