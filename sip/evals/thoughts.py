"""The probe of thoughts: does a model use what it thinks?

The rewards of continuations are compared after these thoughts about one and the same prefix:

    own      those that the model samples, K of them; best_of_K is the best of each prefix
    blank    an empty one
    generic  one constant, whatever the prefix
    swapped  its own ones about another prefix
    teacher  the teacher's, where it is known
    direct   none at all: the continuation follows the prefix without tags

A model uses its thoughts if its own ones are better than blank and generic ones, and swapped ones
are of little use. A rising reward alone does not show that: a constant thought may do as well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from sip.data.thoughts import Fork
from sip.evals.continuations import batches
from sip.mesh import put_batch
from sip.models.config import ModelConfig
from sip.padding import padded_tree
from sip.processes import fetch
from sip.sampling import SamplingConfig, answering
from sip.sections import at_least, check
from sip.structs import Params, UserError
from sip.text.segments import Ids

OWN, BLANK, GENERIC, SWAPPED, TEACHER, DIRECT = "own blank generic swapped teacher direct".split()
CONSTANT = (BLANK, GENERIC)
SIGMAS = 2.0  # standard errors by which own thoughts must be better than constant ones
SHARE = 0.5  # of the reward of own thoughts, which that of swapped ones must stay below


@dataclass(frozen=True)
class ProbeConfig:
    """The probe of thoughts, on held-out prefixes."""

    prefixes: int = 64  # number of prefixes of validation, and of test
    samples: int = 8  # K, thoughts of its own per prefix, and continuations after the others
    generic: str = "What comes next follows from what was said."  # the constant thought

    def __post_init__(self):
        check("probe", self, prefixes=at_least(2), samples=at_least(1))
        if not self.generic.strip():
            raise UserError("probe.generic: is empty, as the blank thought is")


Thoughts = list[list[Ids | None]]  # [prefix][sample]; None: no thought and no tags


def others(
    own: Sequence[Sequence[Ids]], generic: Ids, teacher: Sequence[Ids] | None, *, direct: bool
) -> dict[str, Thoughts]:
    """Returns the thoughts of the other conditions, K for each prefix.

    `own` are the sampled thoughts [E][K]; the swapped ones of a prefix are those of the prefix half
    of all prefixes further: the next one is often of the same text.
    """
    K, half = len(own[0]), len(own) // 2
    found: dict[str, Thoughts] = {
        BLANK: [[[]] * K for _ in own],
        GENERIC: [[generic] * K for _ in own],
        SWAPPED: [list(own[(e + half) % len(own)]) for e in range(len(own))],
    }
    if teacher is not None:
        found[TEACHER] = [[thought] * K for thought in teacher]
    if direct:
        found[DIRECT] = [[None] * K for _ in own]
    return found


def continued(
    params: Params,
    cfg: ModelConfig,
    mesh: jax.sharding.Mesh,
    forks: Sequence[Fork],
    thoughts: Thoughts,
    tags: tuple[int, int],
    *,
    width: int,
    most: int,
    steps: int,
    sampling: SamplingConfig,
    stops: tuple[int, ...],
    batch: int,
    pad: int,
    seed: int,
) -> list[list[Ids]]:
    """Samples one continuation of up to `steps` tokens after each thought [E][C].

    Trunks are the prefixes without their last token, which begins every branch: so a branch without
    a thought is not empty. `width` is that of the trunks, `most` the tokens of the longest thought.
    """
    run = answering(cfg, 1, steps, sampling, stops)
    C, R, key = len(thoughts[0]), most + 3, jax.random.key(seed)
    found: list[list[Ids]] = []
    with jax.set_mesh(mesh):
        for at, live in batches(len(forks), batch):
            rows = [[_branch(forks[e], thought, tags) for thought in thoughts[e]] for e in at]
            trunks = [forks[e].prefix[:-1] for e in at]
            tree = padded_tree(trunks, rows, pad, width, C, R)
            noise_BC = np.array([[e * C + c for c in range(C)] for e in at], np.uint32)
            out = run(params, *put_batch(mesh, (tree, noise_BC)), key)
            tokens_BCR, mask_BCR = fetch((out.tokens_BCR, out.mask_BCR))
            found += [
                [tokens_BCR[b, c][mask_BCR[b, c]].tolist() for c in range(C)] for b in range(live)
            ]
    return found


def _branch(fork: Fork, thought: Ids | None, tags: tuple[int, int]) -> Ids:
    told = [] if thought is None else [tags[0], *thought, tags[1]]
    return [fork.prefix[-1], *told]


def figures(rewards: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns the probe's figures from reward_EK by condition; NaN is a reward that is not known.

    NAME and NAME/error: mean over prefixes and its standard error. best_of_K: of own thoughts.
    own_minus_NAME: mean difference and its error, paired by prefix. used: 1 if own thoughts are
    better than blank and generic ones by two standard errors, and swapped ones have less than half
    the reward of own ones; else 0. unknown: share of rewards that are not known.
    """
    mean_E = {name: _mean(reward_EK) for name, reward_EK in rewards.items()}
    own_EK = np.asarray(rewards[OWN], float)
    known_E = np.isfinite(own_EK).any(-1)
    best_E = np.where(known_E, np.where(np.isfinite(own_EK), own_EK, -np.inf).max(-1), np.nan)
    named = {**mean_E, f"best_of_{own_EK.shape[1]}": best_E}
    named |= {f"own_minus_{x}": mean_E[OWN] - mean_E[x] for x in mean_E if x != OWN}
    found = {}
    for name, x_E in named.items():
        found |= {name: float(_mean(x_E)), f"{name}/error": error(x_E)}
    better = all(found[f"own_minus_{x}"] > SIGMAS * found[f"own_minus_{x}/error"] for x in CONSTANT)
    apart = found[SWAPPED] < SHARE * found[OWN]
    unknown = np.mean([np.isnan(reward_EK).mean() for reward_EK in rewards.values()])
    return {**found, "used": float(better and apart), "unknown": float(unknown)}


def _mean(x: np.ndarray) -> np.ndarray:
    """Returns the mean over the last axis of the entries that are known; NaN without one."""
    known = np.isfinite(x)
    count = known.sum(-1)
    return np.where(count, np.where(known, x, 0.0).sum(-1) / np.maximum(count, 1), np.nan)


def error(x_E: np.ndarray) -> float:
    """Returns the standard error of the mean of the known entries; NaN for fewer than two."""
    known = x_E[np.isfinite(x_E)]
    if len(known) < 2:
        return float("nan")
    return float(np.std(known, ddof=1) / np.sqrt(len(known)))


def names(samples: int, *, teacher: bool, direct: bool) -> tuple[str, ...]:
    """Returns the names of the figures."""
    shown = [OWN, BLANK, GENERIC, SWAPPED, *([TEACHER] if teacher else [])]
    shown += [DIRECT] if direct else []
    every = [*shown, f"best_of_{samples}", *(f"own_minus_{name}" for name in shown[1:])]
    return (*every, *(f"{name}/error" for name in every), "used", "unknown")
