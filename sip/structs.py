"""The axis alphabet and the structures that cross modules.

One alphabet for names, einsums and sharding: `x_BTD`, `"BTD,DF->BTF"`, `constrain(x_BTD, "BTD")`.

    B documents (prompts)        D model width            L layers
    T trunk positions            F feed-forward width     V vocabulary
    C branches per trunk         G key/value heads        E experts, A active experts
    R branch positions           Q query heads per G      J judge votes
    S key / cache positions      H channels per head      M asked positions of a branch
    K candidates per prefix      N positions of trunk and branches together, T + C*R
    O options of a verdict       Z rank of a matrix's factors

`logp[.., t]` scores `tokens[.., t]` given its past, so tokens, log-probabilities and masks share
one index. Boolean masks: True counts. Everything that is averaged is a pair (total, denom).
"""

from dataclasses import dataclass
from typing import Any

import flax.struct
import numpy as np

Array = Any  # jax.Array on a device, np.ndarray on the host, ShapeDtypeStruct in the abstract
Params = Any  # a pytree of arrays
Metrics = dict[str, tuple[Array, Array]]


class UserError(Exception):
    """Something the user can mend: one line naming the culprit; the CLIs print it and exit 2."""


@flax.struct.dataclass
class Tree:
    """A trunk of text and short branches attached to it.

    The trunk is causal. Token i of branch c sees the trunk before `fork_BC[b, c]` and its own
    branch up to i; its position is fork + i. Branches never see each other.
    """

    tokens_BT: Array
    mask_BT: Array  # True: a token; left aligned within each segment's row
    tokens_BCR: Array  # C may be 0
    mask_BCR: Array
    fork_BC: Array  # in 1..T
    segment_BT: Array | None = None  # packed documents: equal ids see each other, positions restart


@flax.struct.dataclass
class Targets:
    """Tokens that should follow branches at some of their positions, whatever does follow there."""

    at_BCM: Array  # positions of the branch; what is read there has seen the token at it
    token_BCM: Array
    mask_BCM: Array


@flax.struct.dataclass
class Rollouts:
    """Sampled branches. `logp` is the model's (temperature 1), `sample_logp` the sampler's."""

    tokens_BCR: Array
    mask_BCR: Array  # up to and including the stop token
    logp_BCR: Array
    sample_logp_BCR: Array


@flax.struct.dataclass
class TrainState:
    """All that an update changes, and the frozen reference beside it."""

    step: Array  # updates drawn, skipped ones included
    params: Params
    opt_state: Any
    reference: Params | None
    skipped_in_row: Array  # consecutive updates skipped for a non-finite loss or gradient
    skipped: Array  # all of them


@dataclass(frozen=True)
class Verdicts:
    """What a judge says of K candidates per prefix; an invalid verdict is masked."""

    scores_BK: np.ndarray
    valid_BK: np.ndarray
    aspects: dict[str, tuple[np.ndarray, np.ndarray]]  # name -> (score_BK, valid_BK)
