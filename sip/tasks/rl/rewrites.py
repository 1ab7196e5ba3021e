"""Training a rewriter by reward: copies of safe suffixes, better versions of unsafe ones.

A prompt shows a prefix and a suffix of the corpus to the rewriter. Rewards follow arXiv 2601.21343
(sip/rewards/rewrites.py). Answers are parsed as those of a rewriter in use (sip.rewriter.Exchange).
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sip import rewriter
from sip.data import chunks, pipeline
from sip.data.corpus import Corpus
from sip.evals import rewrites
from sip.judge import build as judges
from sip.judge.judged import Judge
from sip.loading import LoadedModel
from sip.metrics import pair
from sip.models.config import ModelConfig
from sip.rewards import rewrites as rewards
from sip.rewards.verdicts import Reward
from sip.rewriter import Exchange, RewriteRequest, most
from sip.run import Run, TaskConfig
from sip.sections import at_least, check
from sip.structs import UserError
from sip.tasks.rl.task import AnswerWriter, RLTask
from sip.text.segments import Ids


@dataclass(frozen=True, kw_only=True)
class Config(TaskConfig):
    """The task "rewrites": a rewriter is rewarded by a judge. Raises UserError."""

    prompt: str  # name of a built-in rewriter prompt, or path of a .txt file
    held_out: int  # number of chunks to evaluate on
    max_invalid: float  # share of answers without a verdict above which the run stops
    judge: judges.JudgeConfig  # the judge that the rewards come from

    def __post_init__(self):
        check("task", self, held_out=at_least(1), max_invalid=at_least(0, most=1))
        rewriter.load(self.prompt)  # checks that it exists
        if self.judge.own:
            raise UserError("judge.init_from: a rewriter in training cannot judge itself")
        if sorted(self.judge.weights) != [("quality", 1.0), ("safety", 1.0)]:
            raise UserError(
                "judge.weights must be quality and safety, each 1.0: a rewrite's reward is their "
                "mean"
            )
        if self.judge.schedule.name != "against":
            raise UserError(
                "judge.schedule.name must be 'against': rewrites are compared with the suffix alone"
            )

    def sources(self):
        """The runs or directories that the task reads: the judge and its proofreader."""
        return {f"task.{key}": value for key, value in self.judge.sources().items()}

    def needs_truth(self):
        """The judge may be the ground truth."""
        return "task.judge.backend" if self.judge.backend == "truth" else ""

    def figures(self, truth):
        """Names of the figures of the evaluation: by the ground truth if there is one."""
        return tuple(f"eval/{x}" for x in (rewrites.FIGURES if truth else rewrites.JUDGED))

    def judges(self):
        """The judge that the rewards come from."""
        return {"task.judge": self.judge}

    def check_cut(self, c, cut):
        """Raises UserError if a rewrite does not fit the answer."""
        check_answer(c.answer, cut.suffix)

    def reach(self):
        """Raises UserError if a judge behind HTTP does not answer."""
        self.judge.reach()


@dataclass(frozen=True)
class Batch:
    """B prefixes and suffixes with their prompts."""

    prefixes: list[str]
    suffixes: list[str]
    asked: list[RewriteRequest]
    fits_B: np.ndarray  # prompt and longest possible answer fit the model


def build(run: Run, c, mesh) -> RLTask:
    """Builds the task: K rewrites of each suffix. `c` is the config of a policy-gradient run."""
    wanted: Config = c.task
    run.announce(c.split, c.steps * c.answered)
    corpus = run.corpus(c.split)
    truth = corpus.documents.truth
    judge = judges.build(wanted.judge, run.workdir, truth, mesh, run.tokenizer, run.seed)
    prompt = rewriter.load(wanted.prompt)

    def figures(params, split):
        model = LoadedModel(params, c.model, run.tokenizer, mesh)
        return rewrites.evaluate(
            model,
            prompt,
            run.corpus(split),
            held_out=wanted.held_out,
            batch=c.evals.batch,
            judge=judge,
        )

    return suffixes(
        run,
        c,
        mesh,
        corpus,
        judge,
        during=lambda params: {f"eval/{k}": v for k, v in figures(params, "validation").items()},
        finish=lambda params: run.write_eval(figures(params, "test")),
    )


def suffixes(run: Run, c, mesh, corpus: Corpus, judge: Judge, *, during, finish) -> RLTask:
    """Builds the task of rewriting a corpus's suffixes, rewarded by `judge`.

    A suffix whose prompt does not fit the model is masked and counted.
    """
    tokenizer, wanted = run.tokenizer, c.task
    exchange = Exchange(tokenizer, rewriter.load(wanted.prompt))
    batches = pipeline.Batches(corpus.chunks, batch=c.answered, seed=run.seed)

    # Cached: both `prompts` and `reward` ask for the same batch.
    @functools.lru_cache(maxsize=2)
    def batch(at: int) -> Batch:
        prefixes, suffixes, _ = chunks.texts_of(tokenizer, batches[at], corpus.cut.suffix)
        asked = [exchange.ask(*both) for both in zip(prefixes, suffixes, strict=True)]
        room = c.model.max_len - c.answer
        fits_B = np.array([len(a.ids) <= room and a.limit <= c.answer for a in asked])
        return Batch(prefixes, suffixes, asked, fits_B)

    def prompts(at: int) -> list[Ids]:
        rows = zip(batch(at).asked, batch(at).fits_B, strict=True)
        # A prompt that does not fit is replaced by BOS, and its answers are masked by `worth`.
        return [a.ids if fits else [tokenizer.bos] for a, fits in rows]

    def reward(at: int, answers: Sequence[Sequence[Ids]]) -> Reward:
        return worth(judge, exchange, batch(at), answers, wanted.max_invalid)

    check_answer(c.answer, corpus.cut.suffix)
    _check_room(batch(0), c.model, c.answer)
    writer = AnswerWriter(c.model, mesh, tokenizer, 0, c.answer, exchange.stops)
    references = lambda at: batch(at).suffixes
    return RLTask(prompts, writer, reward, during, finish, references=references)


def worth(
    judge: Judge,
    exchange: Exchange,
    of: Batch,
    answers: Sequence[Sequence[Ids]],
    max_invalid: float,
) -> Reward:
    """Rewards K answers to each prompt of a batch. Returns (reward_BK, valid_BK, metrics).

    Raises UserError if more than `max_invalid` of the rewards are invalid.
    """
    at = [b for b, fits in enumerate(of.fits_B) if fits]
    shape = len(answers), len(answers[0])
    reward_BK, valid_BK = np.zeros(shape, np.float32), np.zeros(shape, bool)
    metrics = {"rewrite/no_room": pair(~of.fits_B)}
    if not at:
        return reward_BK, valid_BK, metrics
    texts = [[exchange.read(of.asked[b], ids) for ids in answers[b]] for b in at]
    reward_BK[at], valid_BK[at], found = rewards.of(
        judge, [of.prefixes[b] for b in at], [of.suffixes[b] for b in at], texts
    )
    asked_BK = np.ones((len(at), shape[1]), bool)
    judges.check_invalid(asked_BK, valid_BK[at], max_invalid, "task.max_invalid", found)
    return reward_BK, valid_BK, metrics | found


def check_answer(answer: int, suffix: int) -> None:
    """Raises UserError if the rewrite of a suffix may be longer than an answer, both in tokens."""
    if most(suffix) > answer:
        raise UserError(
            f"answer {answer}: the rewrite of a suffix of {suffix} tokens (data.cut.suffix) may "
            f"need {most(suffix)} tokens; raise answer"
        )


def _check_room(first: Batch, cfg: ModelConfig, answer: int) -> None:
    """Raises UserError if no prompt of the batch fits."""
    if not first.fits_B.any():
        shortest = min(len(asked.ids) for asked in first.asked)
        raise UserError(
            f"rewrites: prompts of {shortest} tokens and more, and an answer of {answer}, do not "
            f"fit {cfg.max_len} tokens (model.max_len)"
        )
