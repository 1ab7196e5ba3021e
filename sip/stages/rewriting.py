"""Rewrites as a policy gradient's answers: the task "rewriter" of the loop in rl.py.

Prompts are a rewriter's, of prefix and suffix of the corpus; rewards are those of arXiv 2601.21343
(`sip.rewards.rewriting`). Answers are read as a rewriter in use is (`sip.rewriter.Exchange`).
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from sip import rewriter
from sip.data import pipeline
from sip.judge.scoring import Judge
from sip.models.config import ModelConfig
from sip.rewards import rewriting
from sip.rewards.verdict import Reward
from sip.rewriter import Asked
from sip.setup import Corpus
from sip.stages import collect, judging, tasks
from sip.structs import Params, UserError
from sip.textgen import Ids
from sip.tokenizer import Tokenizer


@dataclass(frozen=True)
class RewriteConfig:
    """What a rewriter in training is asked, and held out to evaluate it."""

    prompt: str  # a built-in one's name, or the path of a .txt file
    held_out: int
    max_invalid: float  # share of answers without a verdict at which the run stops

    def __post_init__(self):
        if self.held_out < 1:
            raise UserError(f"held_out must be at least 1, not {self.held_out}")
        if not 0 <= self.max_invalid <= 1:
            raise UserError(f"max_invalid must be in 0..1, not {self.max_invalid}")


@dataclass(frozen=True)
class Batch:
    """B prefixes and suffixes, and how they are asked."""

    prefixes: list[str]
    suffixes: list[str]
    asked: list[Asked]
    fits_B: np.ndarray  # the prompt and the longest answer that may be needed have room


def task(
    corpus: Corpus,
    judge: Judge,
    cfg: ModelConfig,
    mesh: jax.sharding.Mesh,
    tokenizer: Tokenizer,
    *,
    wanted: RewriteConfig,
    answer: int,
    batch: int,
    seed: int,
    during: Callable[[Params], dict[str, float]],
    finish: Callable[[Params], dict[str, float]],
) -> tasks.Task:
    """A suffix is asked for as it comes; one whose prompt has no room is masked and counted."""
    exchange = rewriter.Exchange(tokenizer, rewriter.load(wanted.prompt))
    batches = pipeline.Batches(corpus.chunks, batch=batch, seed=seed)

    @functools.lru_cache(maxsize=2)
    def of(at: int) -> Batch:
        prefixes, suffixes, _ = collect.texts_of(tokenizer, batches[at], corpus.cut.suffix)
        asked = [exchange.ask(*both) for both in zip(prefixes, suffixes, strict=True)]
        room = cfg.max_len - answer
        fits_B = np.array([len(a.ids) <= room and a.limit <= answer for a in asked])
        return Batch(prefixes, suffixes, asked, fits_B)

    def prompts(at: int) -> list[Ids]:
        found = of(at)
        rows = zip(found.asked, found.fits_B, strict=True)
        return [a.ids if fits else [tokenizer.bos] for a, fits in rows]

    def reward(at: int, answers: Sequence[Sequence[Ids]]) -> Reward:
        return worth(judge, exchange, of(at), answers, wanted.max_invalid)

    _check_room(of(0), cfg, answer, corpus.cut.suffix)
    writer = tasks.Writer(cfg, mesh, tokenizer, 0, answer, exchange.stops)
    return tasks.Task(prompts, writer, reward, during, finish)


def worth(
    judge: Judge,
    exchange: rewriter.Exchange,
    of: Batch,
    answers: Sequence[Sequence[Ids]],
    max_invalid: float,
) -> Reward:
    """(reward_BK, valid_BK, metrics) of K answers to each prompt of a batch."""
    at = [b for b, fits in enumerate(of.fits_B) if fits]
    shape = len(answers), len(answers[0])
    reward_BK, valid_BK = np.zeros(shape, np.float32), np.zeros(shape, bool)
    metrics = {"rewrite/no_room": (float(len(answers) - len(at)), float(len(answers)))}
    if not at:
        return reward_BK, valid_BK, metrics
    texts = [[exchange.read(of.asked[b], ids) for ids in answers[b]] for b in at]
    reward_BK[at], valid_BK[at], found = rewriting.of(
        judge, [of.prefixes[b] for b in at], [of.suffixes[b] for b in at], texts
    )
    judging.check_invalid(
        np.ones((len(at), shape[1]), bool), valid_BK[at], max_invalid, "rewrites.max_invalid"
    )
    return reward_BK, valid_BK, metrics | found


def _check_room(first: Batch, cfg: ModelConfig, answer: int, suffix: int) -> None:
    """Raises UserError where not even one of the first prompts can be asked."""
    if rewriter.most(suffix) > answer:
        raise UserError(
            f"answer {answer}: the rewrite of a suffix of {suffix} tokens (data.cut.suffix) may "
            f"take {rewriter.most(suffix)} to end"
        )
    if not first.fits_B.any():
        shortest = min(len(asked.ids) for asked in first.asked)
        raise UserError(
            f"rewrites: prompts of {shortest} tokens and more, and an answer of {answer}, do not "
            f"fit {cfg.max_len} tokens (model.max_len)"
        )
