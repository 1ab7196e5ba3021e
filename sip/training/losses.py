"""Loss terms of a batch: one decoder pass over trunk and branches, then the objectives.

Every `*_terms` function returns a `terms(params, reference, batch) -> (terms, metrics)` for
`step.make_update`. Equal arguments give the same function, so that equal runs share a program.
"""

import functools
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from sip.models import decoder
from sip.models.config import ModelConfig
from sip.objectives import likelihood, logprobs, policy, preference
from sip.sections import above, at_least, check, fraction, one_of
from sip.structs import Array, Balance, Metrics, Targets, TermValues, Tree, UserError

NAMES = ("dpo", "rf_nll", "dr_grpo")


@dataclass(frozen=True)
class ObjectiveConfig:
    """The self-improving objective: ce_weight(step) * CE(suffix) + objective on candidates.

    `rf_nll` on a fixed choice of candidate is SFT. ce_weight(step) goes linearly from `ce_weight`
    to `ce_weight_last` in the first `ce_steps` updates and then stays.
    """

    name: str = "dpo"  # dpo | rf_nll | dr_grpo
    beta: float = 0.1  # dpo: inverse temperature of the implicit reward
    length_normalize: bool = False  # dpo, rf_nll: log-probabilities per token, not per sequence
    nll_weight: float = 0.0  # dpo: weight of the NLL per token of the chosen candidate
    clip_low: float = 0.2  # dr_grpo: lower clip of the ratio, 1 - clip_low
    clip_high: float = 0.2  # dr_grpo: upper clip of the ratio, 1 + clip_high
    ce_weight: float = 0.0  # weight of the suffix's cross-entropy at step 0
    ce_weight_last: float = 0.0  # that weight from step ce_steps on
    ce_steps: int = 1  # updates from the first weight to the last
    z_loss: float = 0.0  # weight of the cross-entropy's z-loss, relative to ce_weight

    def __post_init__(self):
        check(
            "objective",
            self,
            name=one_of(NAMES),
            beta=above(0),
            nll_weight=at_least(0),
            clip_low=fraction(),
            clip_high=at_least(0),
            ce_weight=at_least(0, most=1),
            ce_weight_last=at_least(0, most=1),
            ce_steps=at_least(1),
            z_loss=at_least(0, most=1),
        )
        if self.nll_weight and self.name != "dpo":
            raise UserError(f"objective.nll_weight needs objective.name dpo, not {self.name}")
        if self.z_loss and not self.blends_ce:
            raise UserError(
                "objective.z_loss needs the cross-entropy, but ce_weight and ce_weight_last are 0"
            )

    @property
    def blends_ce(self) -> bool:
        """True if the suffix's cross-entropy is part of the loss, so trunks include the suffix."""
        return self.ce_weight > 0 or self.ce_weight_last > 0

    @property
    def needs_reference(self) -> bool:
        """True if the loss compares with frozen parameters."""
        return self.name == "dpo"

    @property
    def pairs(self) -> bool:
        """True if the loss learns from a chosen and a rejected candidate, so C is 2."""
        return self.name == "dpo"


@dataclass(frozen=True)
class PolicyConfig:
    """A policy-gradient objective on groups of rollouts.

    sip/objectives/policy.py lists the combinations that make GRPO, Dr. GRPO, DAPO and RLOO.
    """

    advantage: str = "grpo"  # grpo | dr_grpo | rloo
    denominator: str = "sequence"  # sequence | token | constant
    clip_low: float = 0.2  # lower clip of the ratio, 1 - clip_low
    clip_high: float = 0.2  # upper clip of the ratio, 1 + clip_high
    beta: float = 0.0  # weight of the KL to the parameters that the run starts from
    kl: str = "loss"  # loss: a term of the loss | reward: subtracted from an answer's reward
    aggregate: str = "sum"  # several rewards: sum | normalise each in its group, then sum

    def __post_init__(self):
        check(
            "objective",
            self,
            advantage=one_of(policy.ADVANTAGES),
            denominator=one_of(policy.DENOMINATORS),
            clip_low=fraction(),
            clip_high=at_least(0),
            beta=at_least(0),
            kl=one_of(("loss", "reward")),
            aggregate=one_of(policy.AGGREGATES),
        )
        if self.aggregate == "normalise" and self.advantage != "grpo":
            raise UserError(
                f"objective.aggregate normalise needs objective.advantage grpo, not "
                f"{self.advantage}: the others do not divide by the group's deviation"
            )
        if self.kl == "reward" and (not self.beta or self.aggregate != "sum"):
            raise UserError("objective.kl reward needs objective.beta > 0 and aggregate sum")

    @property
    def needs_reference(self) -> bool:
        """True if the loss or the reward compares with frozen parameters."""
        return self.beta > 0

    @property
    def loss_beta(self) -> float:
        """The weight of the KL term in the loss."""
        return self.beta if self.kl == "loss" else 0.0


@dataclass(frozen=True)
class PairLossConfig:
    """The loss of preference learning on given pairs (offline DPO and its variants).

    DPO: sigmoid. Length-normalised DPO: sigmoid with `length_normalize`, beta about 2 to 10. IPO:
    ipo. SimPO: sigmoid with `length_normalize` and `gamma`, without a reference.
    """

    name: str = "sigmoid"  # sigmoid | ipo (sip/objectives/preference.py has the equations)
    beta: float = 0.1  # inverse temperature of the implicit reward
    length_normalize: bool = False  # log-probabilities per token, not per answer
    reference: bool = True  # compare with the parameters at the start of the run
    gamma: float = 0.0  # sigmoid: target margin, subtracted from beta * h
    nll_weight: float = 0.0  # weight of the NLL per token of the chosen answers

    def __post_init__(self):
        check(
            "loss",
            self,
            name=one_of(preference.DPO_LOSSES),
            beta=above(0),
            gamma=at_least(0),
            nll_weight=at_least(0),
        )
        if self.gamma and self.name != "sigmoid":
            raise UserError(f"loss.gamma needs loss.name sigmoid, not {self.name}")

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the terms of `pair_terms`."""
        return {"dpo": 1.0, **({"nll_chosen": self.nll_weight} if self.nll_weight else {})}


@flax.struct.dataclass
class PairBatch:
    """A batch of prompts (trunks), each with a chosen and a rejected answer (branches 0 and 1)."""

    tree: Tree  # C = 2
    valid_B: Array  # bool, pairs that count
    margin_B: Array  # float32, by how much the chosen answer is better; 0: not said


@flax.struct.dataclass
class RankBatch:
    """A batch of prompts (trunks), each with C answers (branches) and P pairs of its answers.

    Answers in no valid pair, such as padding, do not count. A pair that is padding is (0, 0).
    """

    tree: Tree
    pair_BP2: Array  # int32, indices of the chosen and the rejected answer, in 0..C-1
    valid_BP: Array  # bool, pairs that count
    margin_BP: Array  # float32, by how much the chosen answer is better; 0: not said


@flax.struct.dataclass
class Branches:
    """A batch of prefixes (trunks) with the candidates to learn from (branches).

    dpo has C = 2, chosen and rejected; rf_nll has C = 1; policy gradients have C = K rollouts.
    """

    tree: Tree
    valid_BC: Array  # bool, candidates that count
    advantage_BC: Array  # float32; zeros except for policy gradients
    old_logp_BCR: Array  # float32, under the policy that sampled; used by policy gradients
    ce_mask_BT: Array  # bool, suffix tokens in the trunk for the cross-entropy


def _tree_logprobs(params, cfg: ModelConfig, tree: Tree):
    out = decoder.apply(params, cfg, tree)
    unembed = decoder.unembed(params, cfg)
    return logprobs.tree_logprobs(
        out.trunk_BTD, out.branch_BCRD, unembed, tree, chunk=cfg.logprob_chunk
    )


@functools.cache
def branch_logprobs(cfg: ModelConfig):
    """Returns the jitted (params, tree) -> logp_BCR of the branches, in nats."""
    return jax.jit(lambda params, tree: _tree_logprobs(params, cfg, tree)[1])


def _tree_scores(params, cfg: ModelConfig, tree: Tree, z_loss: float):
    """Returns (logp_BT, logp_BCR, log_z_BT, load); log_z_BT is None without a z-loss."""
    out = decoder.apply(params, cfg, tree)
    unembed, chunk = decoder.unembed(params, cfg), cfg.logprob_chunk
    both = lambda: logprobs.tree_logprobs(
        out.trunk_BTD, out.branch_BCRD, unembed, tree, chunk=chunk
    )
    if not z_loss:
        return *both(), None, _load(out.balance)
    # logp_BT comes with log Z from one set of logits; jit removes the unused trunk part of both().
    logp_BT, log_z_BT = logprobs.trunk_scores(out.trunk_BTD, unembed, tree, chunk=chunk)
    return logp_BT, both()[1], log_z_BT, _load(out.balance)


def _load(*balances: Balance | None) -> TermValues:
    """Returns the term `balance` of all passes; empty if the model has no router_aux."""
    there = [b for b in balances if b is not None]
    # Stacked, not summed: every pass and layer is balanced by itself.
    return {"balance": jax.tree.map(lambda *x: jnp.concatenate(x), *there)} if there else {}


@functools.cache
def balanced(cfg: ModelConfig, weights):
    """Returns `weights`, a function of the step, with router_aux as the weight of `balance` if the
    model has one."""
    if not cfg.router_aux:
        return weights
    return lambda step: {**weights(step), "balance": cfg.router_aux}


@functools.cache
def constant(weights: tuple[tuple[str, float], ...], z_loss: float = 0.0):
    """Returns weights(step) that are the same at every step: `weights`, pairs of term and weight,
    and those of the z-losses."""
    every = with_z(dict(weights), z_loss)
    return lambda step: every


def _ce(name: str, logp, log_z, mask) -> Metrics:
    """Returns the cross-entropy term `name` and, with `log_z`, its z-loss `name`/z."""
    values = {name: likelihood.ce(logp, mask)[:2]}
    return values if log_z is None else {**values, f"{name}/z": likelihood.z_loss(log_z, mask)[:2]}


def with_z(weights: dict[str, Any], z_loss: float) -> dict[str, Any]:
    """Adds to each cross-entropy's weight that of its z-loss, `z_loss` * weight."""
    if not z_loss:
        return weights
    return {**weights, **{f"{name}/z": z_loss * weight for name, weight in weights.items()}}


@functools.cache
def tokens_terms(cfg: ModelConfig, z_loss: float = 0.0):
    """Next-token cross-entropy; a batch is (tree with C = 0, mask_BT of the tokens that count)."""

    def terms(params, reference, batch):
        tree, mask_BT = batch  # C = 0, so jit removes the branch pass
        logp_BT, _, log_z_BT, load = _tree_scores(params, cfg, tree, z_loss)
        mask_BT = mask_BT & logprobs.scored_mask(tree.mask_BT, tree.segment_BT)
        return _ce("ce", logp_BT, log_z_BT, mask_BT) | load, {}

    return terms


@functools.cache
def verdict_terms(cfg: ModelConfig, z_loss: float = 0.0):
    """Cross-entropy of target tokens; a batch is {aspect: (tree, {term: Targets})}.

    Every aspect has its own prompt, so it takes one decoder pass per aspect.
    """

    def terms(params, reference, batch):
        values, balances = {}, []
        for tree, asked in batch.values():
            out = decoder.apply(params, cfg, tree)
            balances.append(out.balance)
            unembed = decoder.unembed(params, cfg)
            for term, said in asked.items():
                scores = _asked_scores(cfg, out.branch_BCRD, unembed, said, z_loss)
                values |= _ce(term, *scores, said.mask_BCM)
        return values | _load(*balances), {}

    return terms


def _asked_scores(cfg: ModelConfig, branch_BCRD, unembed, said: Targets, z_loss: float):
    chunk = cfg.logprob_chunk
    if z_loss:
        return logprobs.asked_scores(branch_BCRD, unembed, said, chunk=chunk)
    return logprobs.asked_logprobs(branch_BCRD, unembed, said, chunk=chunk), None


@functools.cache
def branch_terms(cfg: ModelConfig, objective: ObjectiveConfig):
    """The terms of an ObjectiveConfig; a batch is `Branches`.

    Terms are the objective's name, and if their weights are positive `nll_chosen`, `ce`, `ce/z`.
    """

    def terms(params, reference, batch: Branches):
        logp_BT, logp_BCR, log_z_BT, load = _tree_scores(params, cfg, batch.tree, objective.z_loss)
        values, metrics = _objective(cfg, objective, reference, batch, logp_BCR)
        if objective.blends_ce:
            values |= _ce("ce", logp_BT, log_z_BT, batch.ce_mask_BT)
        return values | load, metrics

    return terms


@functools.cache
def pair_terms(cfg: ModelConfig, wanted: PairLossConfig):
    """The terms of a PairLossConfig, `dpo` and `nll_chosen`; a batch is a `PairBatch`."""

    def terms(params, reference, batch: PairBatch):
        _, logp_BCR, _, load = _tree_scores(params, cfg, batch.tree, 0.0)
        ref_BCR = None
        if wanted.reference:
            _, ref_BCR = _tree_logprobs(jax.lax.stop_gradient(reference), cfg, batch.tree)
        values, metrics = _pair_loss(wanted, logp_BCR, ref_BCR, batch.tree.mask_BCR, batch.valid_B)
        return values | load, metrics

    return terms


@functools.cache
def reward_terms(cfg: ModelConfig, *, margin_weight: float):
    """The terms of a reward model, `reward` (Bradley-Terry) and `centring`; a batch is a
    `RankBatch`. Both are means over its pairs. The margins of pairs are multiplied by
    `margin_weight`."""

    def terms(params, reference, batch: RankBatch):
        out = decoder.apply(params, cfg, batch.tree)
        reward_BC = decoder.scores(params, out.branch_BCRD, batch.tree.mask_BCR)
        B, P, _ = batch.pair_BP2.shape
        reward_BX = jnp.take_along_axis(reward_BC, batch.pair_BP2.reshape(B, 2 * P), axis=1)
        reward_N2, valid_N = reward_BX.reshape(B * P, 2), batch.valid_BP.ravel()  # N = B * P
        total, denom, metrics = preference.bradley_terry(
            reward_N2, valid_N, margin_B=margin_weight * batch.margin_BP.ravel()
        )
        centred = preference.centring(reward_N2, valid_N)[:2]
        return {"reward": (total, denom), "centring": centred, **_load(out.balance)}, metrics

    return terms


@functools.cache
def policy_terms(cfg: ModelConfig, objective: PolicyConfig):
    """The term `policy` of a PolicyConfig; a batch is `Branches` of rollouts."""

    def terms(params, reference, batch: Branches):
        _, logp_BCR, _, load = _tree_scores(params, cfg, batch.tree, 0.0)
        ref_BCR = None
        if objective.loss_beta:
            _, ref_BCR = _tree_logprobs(jax.lax.stop_gradient(reference), cfg, batch.tree)
        total, denom, metrics = policy.surrogate(
            logp_BCR,
            batch.old_logp_BCR,
            batch.advantage_BC,
            batch.tree.mask_BCR,
            batch.valid_BC,
            denominator=objective.denominator,
            clip_low=objective.clip_low,
            clip_high=objective.clip_high,
            beta=objective.loss_beta,
            ref_logp_BKR=ref_BCR,
        )
        return {"policy": (total, denom), **load}, metrics

    return terms


def _objective(cfg, objective, reference, batch: Branches, logp_BCR):
    mask_BCR, valid_B = batch.tree.mask_BCR, batch.valid_BC.all(-1)
    if objective.pairs and logp_BCR.shape[1] != 2:  # an index out of range would be clamped
        raise ValueError(f"objective {objective.name} needs C = 2, not {logp_BCR.shape[1]}")
    if objective.name == "dpo":
        return _dpo(cfg, objective, reference, batch, logp_BCR)
    if objective.name == "rf_nll":
        total, denom, metrics = likelihood.rf_nll(
            logp_BCR[:, 0], mask_BCR[:, 0], valid_B, length_normalize=objective.length_normalize
        )
    else:
        total, denom, metrics = policy.dr_grpo(
            logp_BCR,
            batch.old_logp_BCR,
            batch.advantage_BC,
            mask_BCR,
            batch.valid_BC,
            clip_low=objective.clip_low,
            clip_high=objective.clip_high,
        )
    return {objective.name: (total, denom)}, metrics


def _dpo(cfg, objective, reference, batch: Branches, logp_BCR):
    # A pair counts only if both candidates are valid. The reference takes a second forward pass,
    # with frozen parameters and without gradient, so it keeps no activations.
    _, ref_BCR = _tree_logprobs(jax.lax.stop_gradient(reference), cfg, batch.tree)
    return _pair_loss(objective, logp_BCR, ref_BCR, batch.tree.mask_BCR, batch.valid_BC.all(-1))


def _pair_loss(wanted: ObjectiveConfig | PairLossConfig, logp_BCR, ref_BCR, mask_BCR, valid_B):
    logp_B2 = logprobs.sequence_logprob(logp_BCR, mask_BCR)
    ref_B2 = None if ref_BCR is None else logprobs.sequence_logprob(ref_BCR, mask_BCR)
    length_B2 = mask_BCR.sum(-1)
    total, denom, metrics = preference.dpo(
        logp_B2,
        ref_B2,
        valid_B,
        beta=wanted.beta,
        length_B2=length_B2 if wanted.length_normalize else None,
        loss=wanted.name if isinstance(wanted, PairLossConfig) else "sigmoid",
        gamma=wanted.gamma if isinstance(wanted, PairLossConfig) else 0.0,
    )
    values = {"dpo": (total, denom)}
    if wanted.nll_weight:
        values["nll_chosen"] = preference.nll_chosen(logp_B2, length_B2, valid_B)[:2]
    return values, metrics


@functools.cache
def branch_weights(objective: ObjectiveConfig):
    """Returns weights(step), a dict of the weights of the terms of `branch_terms`."""
    ce = optax.linear_schedule(objective.ce_weight, objective.ce_weight_last, objective.ce_steps)

    def weights(step):
        values = {objective.name: 1.0}
        if objective.nll_weight:
            values["nll_chosen"] = objective.nll_weight
        if not objective.blends_ce:
            return values
        return {**values, **with_z({"ce": ce(step)}, objective.z_loss)}

    return weights
