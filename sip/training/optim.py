"""AdamW and Muon with warm-up and decay, built from a frozen config."""

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from sip.models.config import DTYPES
from sip.models.parameters import FACTORS, MATRICES, is_vector
from sip.sections import FieldError, above, at_least, check, fraction, one_of
from sip.structs import Array, UserError

NAMES, SCHEDULES = ("adamw", "muon"), ("cosine", "constant", "linear", "wsd")
EMBEDDINGS = ("embed", "unembed", "score")
HIDDEN = MATRICES | FACTORS
LEAST_RATES = 1 << 12  # entries of a table of learning rates; runs up to this length share programs
LEAST_LR = 1e-12  # stands for any learning rate in a rule; lets it have any weight decay
# For `stays_finite`: with these, and entries whose squares are finite (below 2e19), AdamW's result
# is finite in float32. The largest weight decay, 1 / LEAST_LR, does not overflow either.
MOST_SQUARE = 1e38  # of a second moment
CLIPS = 1e-30, 1e18  # of clip_norm: not 0 in float32, and with a square far below MOST_SQUARE
MOST_DECAY = 1 - 1e-5  # of moments: nearer to 1, the correction of their bias may divide by 0
LEAST_DIVISOR = 1e-17  # of (1 - b1) * eps: 2e19 over it is finite


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and learning-rate schedule. Weight decay applies to matrices, not to norms and
    biases."""

    lr: float  # peak learning rate
    steps: int  # length of the schedule in updates
    name: str = "adamw"  # adamw | muon
    warmup_steps: int = 0  # updates of linear warm-up, part of `steps`
    schedule: str = "cosine"  # after the warm-up: cosine | linear | constant | wsd
    min_ratio: float = 0.1  # last learning rate / lr; constant has none
    decay_fraction: float = 0.2  # wsd: share of `steps` with the decay, at the end; lr before it
    b1: float = 0.9  # Adam: decay of the first moment
    b2: float = 0.95  # Adam: decay of the second moment
    eps: float = 1e-8  # added to a denominator of Adam and Muon
    momentum: float = 0.95  # muon: decay of the averaged gradient
    rms: float = 0.2  # muon: RMS of a hidden matrix's update / learning rate, as AdamW's is
    mu_dtype: str = "float32"  # dtype of the first moment; the second is always float32
    weight_decay: float = 0.0  # decoupled decay per update, multiplied by the learning rate
    decay_embeddings: bool = True  # decay embedding and unembedding too
    clip_norm: float = 1.0  # largest global norm of the gradient

    def __post_init__(self):
        check(
            "optim",
            self,
            name=one_of(NAMES),
            schedule=one_of(SCHEDULES),
            mu_dtype=one_of(tuple(DTYPES)),
            lr=above(0, most=10),
            steps=at_least(1),
            warmup_steps=at_least(0),
            min_ratio=at_least(0, most=1),
            decay_fraction=above(0, most=1),
            b1=fraction(),
            b2=fraction(),
            eps=above(0, most=1),
            momentum=fraction(),
            rms=above(0, most=10),
            clip_norm=above(0),
        )
        if self.warmup_steps > self.steps:
            raise FieldError(
                "optim",
                f"warmup_steps={self.warmup_steps}: must be in 0..{self.steps}, the steps of the "
                "run; a run with fewer steps needs fewer here too",
            )
        if self.schedule == "wsd" and self.warmup_steps + self.decay_steps > self.steps:
            raise FieldError(
                "optim",
                f"warmup_steps={self.warmup_steps}: with the {self.decay_steps} steps of the decay "
                f"(decay_fraction) it is longer than steps {self.steps}",
            )
        # Above 1 / lr an update would turn a parameter's sign.
        check("optim", self, weight_decay=at_least(0, most=1 / self.lr))

    @property
    def decay_steps(self) -> int:
        """Updates of the decay of schedule wsd."""
        return max(1, round(self.decay_fraction * self.steps))


def schedule(cfg: OptimConfig) -> optax.Schedule:
    """Returns the learning rate as a function of the update's index, from 0."""
    return _looked_up(rates(cfg))


def rates(cfg: OptimConfig) -> np.ndarray:
    """Returns rates_S: the learning rate of each update, float32. The last one holds ever after.

    S is a power of two above `steps`.

    - Warm-up: linear, from lr / warmup_steps and not from 0: a first update of size 0 would be
      wasted.
    - wsd: `lr` up to the last `decay_steps` updates, then the decay (1-sqrt of arXiv 2405.18392).
      Warm-up, stable phase and decay are WSD of arXiv 2404.06395: a run can be continued from any
      step of the stable phase, whatever its length was to be.
    """
    S = max(LEAST_RATES, 1 << cfg.steps.bit_length())
    # numpy on purpose: each operation of jax.numpy would be a program to compile.
    at_S = np.arange(S) - cfg.warmup_steps
    rest = max(1, cfg.steps - cfg.warmup_steps)
    part_S = np.clip(at_S / rest, 0.0, 1.0)
    decay_S = np.clip((at_S - (rest - cfg.decay_steps)) / cfg.decay_steps, 0.0, 1.0)
    share_S = {
        "cosine": (1 + np.cos(np.pi * part_S)) / 2,
        "linear": 1 - part_S,
        "constant": np.ones(S),
        "wsd": 1 - np.sqrt(decay_S),
    }[cfg.schedule]
    least = 1.0 if cfg.schedule == "constant" else cfg.min_ratio
    rate_S = cfg.lr * (least + (1 - least) * share_S)
    if cfg.warmup_steps:
        first = cfg.lr / cfg.warmup_steps
        rising_S = first + (cfg.lr - first) * np.arange(S) / cfg.warmup_steps
        rate_S = np.where(at_S < 0, rising_S, rate_S)
    return rate_S.astype(np.float32)


def _looked_up(rates_S) -> optax.Schedule:
    """Returns the rate as a function of the update's index, read from a table."""
    return lambda count: jnp.asarray(rates_S)[jnp.minimum(count, len(rates_S) - 1)]


@dataclass(frozen=True, eq=False)
class Optimiser:
    """An optax transformation in parts: clipping, a rule, and the learning rates of its run.

    The rates are an argument of the rule's update. Runs that differ in nothing but their schedule
    have one rule, and so one compiled program.
    """

    clip: Callable[[Any], Any]  # gradients -> gradients; reduces over devices, the rule does not
    rule: optax.GradientTransformationExtraArgs  # update takes the argument rates_S
    rates_S: np.ndarray
    # (params, state) -> bool scalar: the result is finite whatever gradient of finite norm comes.
    # None: nothing is known before the result.
    stays_finite: Callable[..., Array] | None

    def init(self, params):
        """Returns the optimiser's state."""
        return self.rule.init(params)

    def update(self, grads, state, params=None):
        """Returns (updates, state)."""
        return self.rule.update(self.clip(grads), state, params, rates_S=self.rates_S)


def build(cfg: OptimConfig) -> Optimiser:
    """Returns clipping by global norm followed by AdamW (arXiv 1711.05101) or Muon.

    `mu_dtype` is the dtype of averaged gradients (Adam's first moment, Muon's momentum). Adam's
    second moment stays float32: with b2 near 1 its increments are smaller than bfloat16 resolves.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(OptimConfig)}
    same = ("warmup_steps", "schedule", "min_ratio", "decay_fraction")
    unscheduled = {name: defaults[name] for name in same}
    rule = _rule(dataclasses.replace(cfg, lr=LEAST_LR, steps=1, **unscheduled))
    clip = _clip(cfg.clip_norm)
    return Optimiser(clip, rule, rates(cfg), stays_finite if _is_tame(cfg) else None)


@functools.cache
def _clip(most: float) -> Callable[[Any], Any]:
    """Returns clipping by the global norm, the same object for equal settings."""
    by_norm = optax.clip_by_global_norm(most)
    return lambda grads: by_norm.update(grads, optax.EmptyState())[0]


@functools.cache
def _rule(cfg: OptimConfig) -> optax.GradientTransformationExtraArgs:
    """Returns the optimiser without schedule and clipping, the same object for equal settings."""

    def chain(rate: optax.Schedule):
        make = {"adamw": _adamw, "muon": _muon}[cfg.name]
        # Clipping comes before and has no state; `identity` keeps its place in saved states.
        return optax.chain(optax.identity(), make(cfg, rate))

    def update(grads, state, params=None, *, rates_S: Any, **_):
        return chain(_looked_up(rates_S)).update(grads, state, params)

    # The state does not depend on the learning rates.
    init, typed = chain(optax.constant_schedule(0.0)).init, cast(Any, update)
    return optax.GradientTransformationExtraArgs(init, typed)


def stays_finite(params, state) -> Array:
    """Returns a bool scalar: AdamW's next parameters and moments will be finite in float32.

    It holds for any gradient of finite norm and for settings that are `_is_tame`. A second moment
    may become infinite when its bias is corrected; the update is then 0.
    """
    # One pass over each array; to compare entries takes at least twice as long on CPUs. A least
    # number over several devices may hide a NaN, a sum does not.
    mean, square = (optax.tree.get(state, name) for name in ("mu", "nu"))
    norms = [optax.tree.norm(tree, squared=True) for tree in (params, mean)]
    sums = [(x.min(initial=0.0), x.sum()) for x in jax.tree.leaves(square)]
    found = [(low >= 0) & (total <= MOST_SQUARE) for low, total in sums]
    return jnp.all(jnp.stack([*map(jnp.isfinite, norms), *found]))


def _is_tame(cfg: OptimConfig) -> bool:
    """Returns True if `stays_finite` is enough for these settings."""
    if cfg.name != "adamw":
        return False
    clips, decays = CLIPS[0] <= cfg.clip_norm <= CLIPS[1], max(cfg.b1, cfg.b2) <= MOST_DECAY
    return clips and decays and (1 - cfg.b1) * cfg.eps >= LEAST_DIVISOR


def _adamw(cfg: OptimConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(
        rate,
        b1=cfg.b1,
        b2=cfg.b2,
        eps=cfg.eps,
        mu_dtype=DTYPES[cfg.mu_dtype],
        weight_decay=cfg.weight_decay,
        mask=_decayed(cfg),
    )


def _muon(cfg: OptimConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Returns Muon for hidden matrices and LoRA factors, and Adam for embeddings and vectors.

    Muon orthogonalises the momentum of each layer's matrix (Jordan et al. 2024). Its updates are
    scaled to the RMS of AdamW's, so that one learning rate fits both (arXiv 2502.16982).
    """
    mu_dtype = DTYPES[cfg.mu_dtype]
    orthogonal = optax.chain(
        scale_by_muon(
            beta=cfg.momentum, eps=cfg.eps, mu_dtype=mu_dtype, weight_dimension_numbers=_axes
        ),
        optax.stateless(lambda updates, _: _to_rms(updates, cfg.rms)),
    )
    adam = optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps, mu_dtype=mu_dtype)
    return optax.chain(
        optax.partition({"muon": orthogonal, "adam": adam}, _kinds),
        optax.add_decayed_weights(cfg.weight_decay, _decayed(cfg)),
        optax.scale_by_learning_rate(rate),
    )


def _by_name(rule, params):
    """Maps rule(name, x) over a tree; the name is the last part of a parameter's path."""
    name = lambda path: jax.tree_util.keystr(path[-1:], simple=True)
    return jax.tree_util.tree_map_with_path(lambda path, x: rule(name(path), x), params)


def _decayed(cfg: OptimConfig):
    """Returns the function params -> mask of the parameters with weight decay."""

    def decays(name, _):
        if name in EMBEDDINGS:
            return cfg.decay_embeddings
        return not is_vector(name)

    return lambda params: _by_name(decays, params)


def _kinds(params):
    """Labels each parameter "muon" or "adam". Raises UserError naming an unknown parameter."""

    def kind(name, x):
        if name in HIDDEN:
            return "muon"
        if name in EMBEDDINGS or is_vector(name) or not name:
            return "adam"  # an empty name: optax calls this on a placeholder for all parameters
        raise UserError(
            f"optim.name muon: the input and output axes of {name} {x.shape} are unknown; "
            "use optim.name adamw"
        )

    return _by_name(kind, params)


def _axes(params):
    """Returns the input and output axes of each hidden matrix, counted from the last.

    Leading axes (L, E) are batch axes: every layer and expert is orthogonalised separately.
    """

    def axes(name, _):
        reads, writes = map(len, HIDDEN[name])
        return MuonDimensionNumbers(
            tuple(range(-reads - writes, -writes)), tuple(range(-writes, 0))
        )

    return _by_name(axes, params)


def _to_rms(updates, rms: float):
    """Scales orthogonal updates [in, out], whose entries have RMS 1 / sqrt(max(in, out)), to
    RMS `rms`."""

    def scaled(name, x):
        reads, writes = map(len, HIDDEN[name])
        sides = math.prod(x.shape[-reads - writes : -writes]), math.prod(x.shape[-writes:])
        return rms * math.sqrt(max(sides)) * x

    return _by_name(scaled, updates)
