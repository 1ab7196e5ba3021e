"""The interface of a policy-gradient task, and sampling of its answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from sip import sampling
from sip.judge.voting import Heard
from sip.mesh import put_batch
from sip.models.config import ModelConfig
from sip.padding import bucket, padded_tree
from sip.processes import fetch
from sip.rewards.verdicts import Reward
from sip.structs import Params, Rollouts, Tree
from sip.text.segments import Ids
from sip.text.tokenizer import Tokenizer
from sip.textgen.protocol import Cut

GREEDY = sampling.SamplingConfig(temperature=0.0)


@dataclass(frozen=True)
class AnswerWriter:
    """Samples answers of up to `steps` tokens; any token of `stops` ends one."""

    cfg: ModelConfig
    mesh: jax.sharding.Mesh
    tokenizer: Tokenizer
    width: int  # T, tokens of the longest prompt; 0: that of each batch, bucketed
    steps: int  # most tokens of an answer
    stops: tuple[int, ...]  # token ids that end an answer

    def trunks(self, asked: Sequence[Ids]) -> Tree:
        """Trees whose trunks are the prompts, without branches."""
        T = self.width or bucket(max(map(len, asked)), 16)
        return padded_tree(asked, [[]] * len(asked), self.tokenizer.pad, T, 0, 1)

    def write(
        self, params: Params, trunks: Tree, branches: int, how: sampling.SamplingConfig, key
    ) -> Rollouts:
        """Samples `branches` answers to each prompt."""
        run = sampling.program(self.cfg, branches, self.steps, how, self.stops)
        fork_B = trunks.mask_BT.sum(-1, dtype=np.int32)
        rows_B = np.arange(len(fork_B), dtype=np.int32)
        args = put_batch(self.mesh, (trunks.tokens_BT, fork_B, rows_B))
        return run(params, *args, key)

    def texts(self, answers: Sequence[Sequence[Ids]]) -> list[list[str | Cut]]:
        """Decodes answers [B][K] of token ids; an answer without a stop token is a `Cut`."""
        return [[self._text(ids) for ids in row] for row in answers]

    def _text(self, ids: Ids) -> str | Cut:
        text = self.tokenizer.decode(ids)
        return text if ids and ids[-1] in self.stops else Cut(text)

    def greedy(self, params: Params, asked: Sequence[Ids], *, batch: int) -> list[str | Cut]:
        """Decodes one greedy answer to each prompt, `batch` prompts at a time."""
        ids = self.greedy_ids(params, asked, batch)
        return [text for (text,) in self.texts([[one] for one in ids])]

    def greedy_ids(self, params: Params, asked: Sequence[Ids], batch: int) -> list[Ids]:
        """Decodes one greedy answer to each prompt as token ids."""
        sampled = self.sampled_ids(params, asked, batch, 1, GREEDY, jax.random.key(0))
        return [ids for (ids,) in sampled]

    def sampled_ids(
        self,
        params: Params,
        asked: Sequence[Ids],
        batch: int,
        branches: int,
        how: sampling.SamplingConfig,
        key: jax.Array,
        first: int = 0,
    ) -> list[list[Ids]]:
        """Samples `branches` answers to each prompt as token ids, `batch` prompts at a time.

        `first` is the place of the first prompt among all of them: with one key equal prompts at
        equal places get equal answers, in however many calls.
        """
        found: list[list[Ids]] = []
        with jax.set_mesh(self.mesh):
            for start in range(0, len(asked), batch):
                some = list(asked[start : start + batch])
                trunks = self.trunks(some + some[:1] * (batch - len(some)))  # one shape is compiled
                own = jax.random.fold_in(key, first + start)
                out = self.write(params, trunks, branches, how, own)
                found += ids_of(out.tokens_BCR, out.mask_BCR)[: len(some)]
        return found


@dataclass(frozen=True)
class RLTask:
    """A policy-gradient task: prompts, rewards of answers, and evaluation.

    `prompts` and `reward` depend on the batch number only, so that a resumed run repeats them. A
    task of several rewards returns reward_PBK and has as many `weights`. A task with
    `gain` is rewarded by likelihoods under the policy and a moving average of it
    (`TaskConfig.average`).
    """

    prompts: Callable[[int], Sequence[Ids]]  # batch number -> token ids of B prompts
    writer: AnswerWriter
    reward: Callable[[int, Sequence[Sequence[Ids]]], Reward]  # batch number, ids [B][K]
    during: Callable[[Params], dict[str, float]]  # evaluation during the run, by names in the log
    finish: Callable[[Params], dict[str, Any]]  # final evaluation; writes and returns its metrics
    weights: tuple[float, ...] = (1.0,)  # of the rewards
    names: tuple[str, ...] = ("reward",)  # of the rewards, in the log of answers
    references: Callable[[int], Sequence[str | None]] | None = None  # batch number -> right answers
    heard: Callable[[], Sequence[Heard]] = tuple  # a judge's words in the last call of `reward`
    before: Mapping[str, float] = field(default_factory=dict)  # figures of step 0, in the log
    # In place of `reward`: parameters, their moving average, batch number, ids [B][K].
    gain: Callable[[Params, Params, int, Sequence[Sequence[Ids]]], Reward] | None = None


def ids_of(tokens_BCR, mask_BCR) -> list[list[Ids]]:
    """Token ids [B][K] of the branches, without padding."""
    return [
        [ids[live].tolist() for ids, live in zip(row, lives, strict=True)]
        for row, lives in zip(*fetch((tokens_BCR, mask_BCR)), strict=True)
    ]
