"""AdamW with warm-up and decay, from a frozen config."""

from dataclasses import dataclass

import jax
import optax

from sip.structs import UserError

SCHEDULES = ("cosine", "constant", "linear")


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and schedule. Weight decay applies to matrices, not to norms."""

    lr: float
    steps: int  # length of the schedule, updates
    warmup_steps: int = 0
    schedule: str = "cosine"
    min_ratio: float = 0.1  # last learning rate / lr
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise UserError(f"optim.schedule must be one of {SCHEDULES}, not {self.schedule!r}")
        if self.lr <= 0 or self.steps < 1 or self.clip_norm <= 0:
            raise UserError("optim.lr, optim.steps and optim.clip_norm must be positive")
        if not 0 <= self.warmup_steps <= self.steps:
            raise UserError(f"optim.warmup_steps {self.warmup_steps} must be in 0..{self.steps}")


def schedule(cfg: OptimConfig) -> optax.Schedule:
    """Learning rate by update."""
    rest = max(1, cfg.steps - cfg.warmup_steps)
    decay = {
        "cosine": optax.cosine_decay_schedule(cfg.lr, rest, cfg.min_ratio),
        "linear": optax.linear_schedule(cfg.lr, cfg.lr * cfg.min_ratio, rest),
        "constant": optax.constant_schedule(cfg.lr),
    }[cfg.schedule]
    if not cfg.warmup_steps:
        return decay
    warmup = optax.linear_schedule(cfg.lr / cfg.warmup_steps, cfg.lr, cfg.warmup_steps)
    return optax.join_schedules([warmup, decay], [cfg.warmup_steps])


def build(cfg: OptimConfig) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW (arXiv 1711.05101)."""
    return optax.chain(
        optax.clip_by_global_norm(cfg.clip_norm),
        optax.adamw(
            schedule(cfg),
            b1=cfg.b1,
            b2=cfg.b2,
            eps=cfg.eps,
            weight_decay=cfg.weight_decay,
            mask=_matrices,
        ),
    )


def _matrices(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "norm" not in jax.tree_util.keystr(path), params
    )
