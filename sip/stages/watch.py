"""Decides if a policy-gradient run ends early: at a collapse, or when its evaluation gets worse.

The state is kept in each checkpoint, so that a resumed run decides as an uninterrupted one.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sip.evals import collapse
from sip.evals.collapse import CollapseConfig, Point
from sip.metrics import ratio
from sip.training import checkpoints
from sip.training.loop import CheckpointConfig


@dataclass(frozen=True)
class Watch:
    """The last updates and evaluations of a run, as far as they decide about its end."""

    points: tuple[Point, ...] = ()  # of the last updates
    collapsed: int = 0  # the update at which a collapse was seen; 0: none
    best: float | None = None  # best value of checkpoint.best so far
    worse: int = 0  # evaluations in a row that were not better


def kept(directory: str) -> Watch:
    """Returns the state of a run's last checkpoint; a new one without it."""
    record = checkpoints.record(directory) if checkpoints.exists(directory) else {}
    if "watch" not in record:
        return Watch()
    found = record["watch"]
    return Watch(**{**found, "points": tuple(map(tuple, found["points"]))})


def plain(watch: Watch) -> dict[str, Any]:
    """Returns the state as an entry of a checkpoint's record."""
    return {"watch": dataclasses.asdict(watch)}


def updated(cfg: CollapseConfig, watch: Watch, done: int, found: Mapping[str, Any]) -> Watch:
    """Returns the state after update `done`, whose metrics are `found`."""
    if not cfg.window:
        return watch
    reward, kl = (ratio(found[key]) for key in ("reward/all", "rl/kl"))
    if reward is None or kl is None:  # no answer had a reward
        return watch
    points = (*watch.points, (reward, kl))[-cfg.size :]
    seen = watch.collapsed or (done if collapse.collapsed(cfg, points) else 0)
    return dataclasses.replace(watch, points=points, collapsed=seen)


def evaluated(cfg: CheckpointConfig, watch: Watch, figures: Mapping[str, float] | None) -> Watch:
    """Returns the state after an evaluation; None if there was none."""
    if figures is None or not cfg.best:
        return watch
    value = float(figures[cfg.best])
    sign = -1 if cfg.lowest else 1
    better = math.isfinite(value) and (watch.best is None or sign * value > sign * watch.best)
    if better:
        return dataclasses.replace(watch, best=value, worse=0)
    return dataclasses.replace(watch, worse=watch.worse + 1)


def end(c, watch: Watch, done: int) -> tuple[int, str]:
    """Returns (last update, reason): (done, why) if the run must end now, else (steps, "").

    `c` is the config of a policy-gradient run.
    """
    reason = ""
    if c.collapse.stop and watch.collapsed:
        reason = f"collapse at step {watch.collapsed}: reward and KL to the start have jumped"
    elif c.evals.patience and watch.worse >= c.evals.patience:
        reason = f"{watch.worse} evaluations were not better than {c.checkpoint.best} {watch.best}"
    return (done, reason) if reason and done < c.steps else (c.steps, "")


def figures(c, watch: Watch, last: int, reason: str) -> dict[str, Any]:
    """Returns what eval.json says about the end of a run."""
    found: dict[str, Any] = {}
    if c.collapse.window:
        found["collapse_step"] = watch.collapsed or None
    if reason:
        found |= {"stopped_early": reason, "stopped_early_after": last}
    return found
