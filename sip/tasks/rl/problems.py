"""Problems with verifiable answers, for the task "prompts": their prompts, the reward, and figures
of several sampled answers."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sip.data import problems
from sip.data.conversations import Unusable
from sip.data.documents import PARTS
from sip.data.problems import Oracle, Problem, ProblemsConfig
from sip.data.prompts import TOO_LONG, Encode, Prompt
from sip.evals import problems as evals
from sip.metrics import pair
from sip.rewards import answers
from sip.rewards.answers import Checker, Gold
from sip.rewards.verdicts import Reward
from sip.sampling import SamplingConfig
from sip.structs import Params
from sip.tasks.rl.task import AnswerWriter, ids_of
from sip.text.segments import Ids
from sip.text.tokenizer import Tokenizer, continuation


def prompts_of(
    cfg: ProblemsConfig, data: Mapping[str, Any], encode: Encode, max_len: int
) -> tuple[dict[str, list[Prompt]], dict[str, int]]:
    """Returns ({train | validation | test: prompts}, left_out by reason).

    `max_len` is the most tokens of a prompt. Raises UserError as `problems.load` does.
    """
    parts, left_out = problems.load(cfg, data)
    return {part: _encoded(cfg, parts[part], encode, max_len, left_out) for part in PARTS}, left_out


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
    thought = text.rpartition("\\boxed" if cfg.form == problems.BOXED else cfg.form)[0]
    return oracle(prompt.fields["problem"], thought, prompt.fields["answer"])


def sampled(
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
) -> dict[str, float]:
    """Samples answers to problems and returns mean@n, maj@n, pass@k and shares of verdicts."""
    right, valid, votes, shares = [], [], [], []
    with jax.set_mesh(writer.mesh):
        for start in range(0, len(asked), batch):
            some = list(asked[start : start + batch])
            filled = [p.ids for p in some + some[:1] * (batch - len(some))]
            key = jax.random.fold_in(jax.random.key(seed), start)
            out = writer.write(params, writer.trunks(filled), samples, sampling, key)
            ids = ids_of(out.tokens_BCR, out.mask_BCR)[: len(some)]
            texts = read(writer.tokenizer, some, ids)
            cut = [[not (one and one[-1] in writer.stops) for one in row] for row in ids]
            found = _extracted(cfg, some, texts, cut)
            verdicts = np.array(_verdicts(checker, some, found))
            right.append(verdicts == answers.RIGHT)
            valid.append(~np.isin(verdicts, answers.FAILURES))
            votes += [[answers.key(one) for one in row] for row in found]
            shares.append((verdicts, np.array(cut)))
    verdicts, cut = (np.concatenate(each) for each in zip(*shares, strict=True))
    found = evals.figures(np.concatenate(right), np.concatenate(valid), votes)
    found |= {f"answers/{v}": float((verdicts == v).mean()) for v in answers.VERDICTS[1:]}
    return {**found, "cut": float(cut.mean()), "problems": len(asked)}


def read(tokenizer: Tokenizer, asked: Sequence[Prompt], ids) -> list[list[str]]:
    """Decodes answers [B][K] as continuations of their prompts."""
    return [
        [continuation(tokenizer, prompt.ids, one) for one in row]
        for prompt, row in zip(asked, ids, strict=True)
    ]
