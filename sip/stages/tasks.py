"""What a policy gradient learns: prompts by step, rewards of answers, an evaluation.

A task is a `Task`, made by a plain function; `rl.TASKS` names them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from sip import sampling
from sip.data import pipeline
from sip.judge import labels, prompts
from sip.judge.labels import LabelledPrompts
from sip.mesh import put_batch
from sip.models.config import ModelConfig
from sip.processes import fetch
from sip.rewards import verdict
from sip.rewards.verdict import Question, Reward
from sip.stages.labelled import Labelled
from sip.structs import Params, Rollouts, Tree
from sip.textgen import Ids, Local, bucket, pack, tokens_of
from sip.tokenizer import Cached, Tokenizer
from sip.training import loop

GREEDY = sampling.SamplingConfig(temperature=0.0)


@dataclass(frozen=True)
class Task:
    """`prompts` and `reward` are functions of a batch's number: a resumed run asks the same."""

    prompts: Callable[[int], Sequence[Ids]]
    writer: "Writer"
    reward: Callable[[int, Sequence[Sequence[Ids]]], Reward]  # of the answers' tokens
    during: Callable[[Params], dict[str, float]]
    finish: Callable[[Params], dict[str, float]]


@dataclass(frozen=True)
class Writer:
    """Writes answers of up to `steps` tokens, which one of `stops` ends."""

    cfg: ModelConfig
    mesh: jax.sharding.Mesh
    tokenizer: Tokenizer
    width: int  # T, of the longest prompt there is; 0: of the longest of a batch
    steps: int
    stops: tuple[int, ...]

    def trunks(self, asked: Sequence[Ids]) -> Tree:
        """The prompts as trunks, without branches."""
        T = self.width or bucket(max(map(len, asked)), 16)
        return pack(asked, [[]] * len(asked), self.tokenizer.pad, T, 0, 1)

    def write(
        self, params: Params, trunks: Tree, branches: int, how: sampling.SamplingConfig, key
    ) -> Rollouts:
        """`branches` answers to each prompt."""
        run = sampling.program(self.cfg, branches, self.steps, how, self.stops)
        fork_B = trunks.mask_BT.sum(-1, dtype=np.int32)
        rows_B = np.arange(len(fork_B), dtype=np.int32)
        args = put_batch(self.mesh, (trunks.tokens_BT, fork_B, rows_B))
        return run(params, *args, key)

    def texts(self, answers: Sequence[Sequence[Ids]]) -> list[list[str]]:
        """The answers' texts."""
        return [[self.tokenizer.decode(ids) for ids in row] for row in answers]

    def greedy(self, params: Params, asked: Sequence[Ids], *, batch: int) -> list[str]:
        """The likeliest answer, token by token, to each prompt."""
        found: list[str] = []
        with jax.set_mesh(self.mesh):
            for start in range(0, len(asked), batch):
                some = list(asked[start : start + batch])
                trunks = self.trunks(some + some[:1] * (batch - len(some)))  # one shape
                out = self.write(params, trunks, 1, GREEDY, jax.random.key(0))
                texts = self.texts(ids_of(out.tokens_BCR, out.mask_BCR))
                found += [text for (text,) in texts[: len(some)]]
        return found


def ids_of(tokens_BCR, mask_BCR) -> list[list[Ids]]:
    """The live tokens of each branch."""
    return [
        [ids[live].tolist() for ids, live in zip(row, lives, strict=True)]
        for row, lives in zip(*fetch((tokens_BCR, mask_BCR)), strict=True)
    ]


Unit = tuple[tuple[Question, Ids], ...]  # questions that are asked side by side


def judge(
    made: Labelled,
    cfg: ModelConfig,
    mesh,
    tokenizer: Tokenizer,
    *,
    answer: int,
    batch: int,
    both_orders: bool,
    eval_batch: int,
    seed: int,
    finish: Callable[[dict[str, float]], dict[str, float]],
) -> Task:
    """Labelled questions, each once an epoch whatever its aspect; the reward is a right verdict.

    `finish` is given the accuracies on the test split and says what the run returns.
    """
    cached = Cached(tokenizer)
    prompt_of = lambda trunk, branch: [
        tokenizer.bos,
        *tokens_of(cached, trunk),
        *tokens_of(cached, branch),
    ]
    units = [u for x in made.examples.values() for u in _units(x, prompt_of, both_orders)]
    held = {
        split: {name: _flat(x, prompt_of) for name, x in found.items() if x.aspect.verdict}
        for split, found in made.held_out.items()
    }
    every = [ids for unit in units for _, ids in unit]
    every += [ids for found in held.values() for flat in found.values() for _, ids in flat]
    writer = Writer(
        cfg, mesh, tokenizer, bucket(max(map(len, every)), 16), answer, (tokenizer.eos,)
    )
    size = 2 if both_orders else 1

    def of(at: int):
        rows = range(at * batch // size, (at + 1) * batch // size)
        return [question for p in rows for question in _at(units, p, seed)]

    def accuracy(params, split):
        counts = {}
        for name, found in made.held_out[split].items():
            if name in held[split]:
                texts = writer.greedy(params, [i for _, i in held[split][name]], batch=eval_batch)
                counts |= labels.right(found, _said(found, texts))
            else:
                textgen = Local(params, cfg, tokenizer, mesh, batch=eval_batch)
                counts |= labels.accuracy(textgen, {name: found})
        return loop.ratios([counts])

    return Task(
        lambda at: [ids for _, ids in of(at)],
        writer,
        lambda at, answers: verdict.reward(
            [q for q, _ in of(at)], writer.texts(answers), both_orders=both_orders
        ),
        lambda params: {f"eval/{k}": v for k, v in accuracy(params, "validation").items()},
        lambda params: finish(accuracy(params, "test")),
    )


def _at(units: Sequence[Unit], position: int, seed: int) -> Unit:
    """The unit at a position of the stream, in which every epoch has an order of its own."""
    epoch, at = divmod(position, len(units))
    return units[pipeline.order(len(units), seed, epoch)[at]]


def _flat(found: LabelledPrompts, prompt_of) -> list[tuple[Question, Ids]]:
    return [
        (Question(found.aspect, int(label)), prompt_of(trunk, branch))
        for (trunk, branches), row in zip(found.prompts, found.labels_NC, strict=True)
        for branch, label in zip(branches, row, strict=False)
    ]


def _units(found: LabelledPrompts, prompt_of, both_orders: bool) -> list[Unit]:
    """Units of one question; with `both_orders` of two, of a pairwise aspect a pair's orders."""
    flat = _flat(found, prompt_of)
    if not both_orders:
        return [(one,) for one in flat]
    if found.aspect.kind != "pairwise":
        return list(zip(flat[::2], flat[1::2], strict=False))
    places = ((n, c) for n, (_, row) in enumerate(found.prompts) for c in range(len(row)))
    asked = dict(zip(places, flat, strict=True))
    return [(asked[place], asked[swapped]) for place, swapped in labels.swaps(found)]


def _said(found: LabelledPrompts, texts: Sequence[str]) -> np.ndarray:
    """said_NC of the texts, which come row by row; -1 for none."""
    said_NC = np.full(found.mask_NC.shape, -1)
    said_NC[found.mask_NC] = [verdict.said(found.aspect, text) for text in texts]
    return said_NC


def check(tokenizer: Tokenizer, made: Labelled) -> None:
    """Raises UserError unless the options of direct aspects can be read as one token."""
    for found in made.examples.values():
        if not found.aspect.verdict:
            prompts.check_options(tokenizer, found.aspect)
