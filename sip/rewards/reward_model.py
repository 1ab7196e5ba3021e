"""Rewards by a reward model: a decoder with a scalar head, read at the end of an answer."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from sip.loading import LoadedModel, load_model, trained_in
from sip.mesh import full_rows, put_batch
from sip.models import decoder
from sip.models.config import ModelConfig
from sip.padding import bucketed
from sip.processes import fetch
from sip.structs import UserError
from sip.text import chat
from sip.text.segments import Ids
from sip.text.tokenizer import Tokenizer


@functools.cache
def program(cfg: ModelConfig):
    """Returns the jitted (params, tree) -> reward_BC."""

    @jax.jit
    def score(params, tree):
        return decoder.scores(params, decoder.apply(params, cfg, tree).branch_BCRD, tree.mask_BCR)

    return score


@dataclass(frozen=True, eq=False)
class RewardModel:
    """A loaded reward model; `batch` prompts are scored at a time."""

    model: LoadedModel
    batch: int = 16

    def reward(
        self, prompts: Sequence[Ids], answers: Sequence[Sequence[Ids]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores K answers to each of B prompts. Returns (reward_BK, valid_BK).

        An answer without a stop token at its end gets EOS, where the model has learned to score.
        Prompt and answer that do not fit the model's `max_len` are invalid, and so is a score that
        is not finite.
        """
        eos, most = self.model.tokenizer.eos, self.model.cfg.max_len
        stops = (eos, *self.model.tokenizer.specials.values())
        ends = lambda ids: ids if ids and ids[-1] in stops else [*ids, eos]
        whole = [[ends(ids) for ids in row] for row in answers]
        fits = [
            [len(p) + len(ids) <= most for ids in row]
            for p, row in zip(prompts, whole, strict=True)
        ]
        valid_BK = np.array(fits)
        reward_BK = np.zeros(valid_BK.shape, np.float32)
        for start in range(0, len(prompts), self.batch):
            rows = slice(start, start + self.batch)
            reward_BK[rows] = self._scores(prompts[rows], whole[rows], valid_BK[rows])
        valid_BK &= np.isfinite(reward_BK)
        return np.where(valid_BK, reward_BK, 0.0).astype(np.float32), valid_BK

    def _scores(self, prompts, answers, valid_BK) -> np.ndarray:
        """Scores a batch; what does not fit is not shown, and its score is meaningless."""
        tokenizer, mesh = self.model.tokenizer, self.model.mesh
        shown = [
            [ids if ok else [tokenizer.eos] for ids, ok in zip(row, oks, strict=True)]
            for row, oks in zip(answers, valid_BK, strict=True)
        ]
        asked = [
            p if any(oks) else [tokenizer.bos] for p, oks in zip(prompts, valid_BK, strict=True)
        ]
        B = full_rows(mesh, self.batch)
        K = valid_BK.shape[1]
        tree = bucketed(asked, shown, tokenizer, rows=B, width=K)
        with jax.set_mesh(mesh):
            score_BC = fetch(program(self.model.cfg)(self.model.params, put_batch(mesh, tree)))
        return score_BC[: len(prompts), :K]


def load(directory: str, mesh, tokenizer: Tokenizer, key: str, template: str = "") -> RewardModel:
    """Loads the reward model of a run or a Hugging Face directory.

    `tokenizer` and `template` (the name of a chat template; empty: plain texts) are the policy's.
    Raises UserError, naming the config key `key`, if the model has no scalar head, another
    vocabulary, or was trained in another template: it would not read what it has learned to score.
    """
    found = load_model(directory, mesh)
    if not found.cfg.scalar:
        raise UserError(
            f"{key} {directory}: is a language model, not a reward model; train one with "
            "configs/reward_model.py"
        )
    if difference := _differ(tokenizer, found.tokenizer):
        raise UserError(
            f"{key} {directory}: has another vocabulary than the policy ({difference}); train the "
            "reward model from a checkpoint with the policy's tokenizer"
        )
    _check_template(directory, found.tokenizer, key, template)
    return RewardModel(found)


def _check_template(directory: str, tokenizer: Tokenizer, key: str, template: str) -> None:
    theirs = trained_in(directory)
    source = lambda name: chat.load(name, tokenizer).source if name else ""
    if theirs is None or theirs == template or source(theirs) == source(template):
        return
    raise UserError(
        f"{key} {directory}: was trained in {_said(theirs)}, but the policy answers in "
        f"{_said(template)}; set task.chat={theirs}, or train the reward model with "
        f"task.pairs.chat={template}"
    )


def _said(template: str) -> str:
    return f"the chat template {template!r}" if template else "plain texts"


def _differ(ours: Tokenizer, theirs: Tokenizer) -> str:
    """Returns the first difference between two vocabularies; empty if they are equal."""
    if ours.vocab_size != theirs.vocab_size:
        return f"{theirs.vocab_size} tokens, not {ours.vocab_size}"
    for name in ("bos", "eos", "specials"):
        if getattr(ours, name) != getattr(theirs, name):
            return f"{name} {getattr(theirs, name)!r:.60}, not {getattr(ours, name)!r:.60}"
    for i in range(ours.vocab_size):
        if (a := ours.decode([i])) != (b := theirs.decode([i])):
            return f"token {i} is {b!r}, not {a!r}"
    return ""
