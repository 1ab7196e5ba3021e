"""Detects the collapse of self-training: reward and KL to the start jump together.

A policy that is rewarded for agreeing with itself may end in one constant answer. Then its reward
jumps to its maximum and its KL to the start jumps as well, while its accuracy falls (arXiv
2505.21444, section 5). Both figures are known without labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sip.sections import above, at_least, check

Point = tuple[float, float]  # (mean reward, KL to the start in nats per answer) of an update


@dataclass(frozen=True)
class CollapseConfig:
    """A comparison of the last updates with those before, after every update.

    A jump is a rise of the mean by more than `deviations` standard deviations of the updates
    before; of the reward by at least `reward`, of the KL to at least `kl` times its mean. A steady
    rise is no jump.
    """

    window: int = 0  # updates before the last ones; 0: no detection
    recent: int = 3  # last updates whose means are compared with those of the window
    deviations: float = 3.0  # standard deviations of the window
    reward: float = 0.05  # least rise of the reward
    kl: float = 2.0  # least ratio of the KL to its mean in the window
    stop: bool = False  # ends the run after the update at which a collapse is seen

    def __post_init__(self):
        check(
            "collapse",
            self,
            window=at_least(0),
            recent=at_least(1),
            deviations=above(0),
            reward=at_least(0),
            kl=at_least(1),
        )

    @property
    def size(self) -> int:
        """Number of updates that a comparison needs."""
        return self.window + self.recent if self.window else 0


def collapsed(cfg: CollapseConfig, points: Sequence[Point]) -> bool:
    """True if reward and KL of the last updates have both jumped."""
    if not cfg.window or len(points) < cfg.size:
        return False
    reward_N, kl_N = np.array(points[-cfg.size :], float).T
    least = (cfg.kl - 1) * abs(kl_N[: cfg.window].mean())
    return _jumped(cfg, reward_N, cfg.reward) and _jumped(cfg, kl_N, least)


def _jumped(cfg: CollapseConfig, value_N: np.ndarray, least: float) -> bool:
    before_N, last_N = value_N[: cfg.window], value_N[cfg.window :]
    rise = last_N.mean() - before_N.mean()
    return bool(rise > cfg.deviations * before_N.std() and rise >= least)
