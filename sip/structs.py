"""The axis alphabet, and the data structures that modules share.

One alphabet for names, einsums and sharding: `x_BTD`, `"BTD,DF->BTF"`, `constrain(x_BTD, "BTD")`.

    B documents (prompts)        D model width            L layers
    T trunk positions            F feed-forward width     V vocabulary
    C branches per trunk         G key/value heads        E experts, A active experts
    R branch positions           Q query heads per G      J judge votes
    S key / cache positions      H channels per head      M target positions of a branch
    K candidates per prefix      N positions of trunk and branches together, T + C*R
    O options of a verdict       Z rank of LoRA factors   P rotary frequencies, at most H/2

`logp[.., t]` scores `tokens[.., t]` given its past, so tokens, log-probabilities and masks share
one index. In boolean masks True means that an entry counts. Every average is stored as a pair
(total, denom).
"""

from dataclasses import dataclass
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np

Array = Any  # jax.Array on a device, np.ndarray on the host, or an abstract ShapeDtypeStruct
Params = Any  # a pytree of arrays
Metrics = dict[str, tuple[Array, Array]]  # name -> (total, denom)


class UserError(Exception):
    """An error the user can fix. Its one-line message names the cause; commands print it and exit
    with status 2."""


@flax.struct.dataclass
class Tree:
    """A trunk of text with short branches attached to it.

    The trunk is causal. Token i of branch c attends to the trunk before `fork_BC[b, c]` and to its
    own branch up to i; its position is fork + i. Branches never attend to each other.
    """

    tokens_BT: Array  # int32
    mask_BT: Array  # True: a token, False: padding; tokens come first
    tokens_BCR: Array  # int32; C may be 0
    mask_BCR: Array  # True: a token, False: padding; tokens come first
    fork_BC: Array  # int32, trunk tokens before the branch, in 1..T
    segment_BT: Array | None = None  # ids of packed documents; each attends to itself only


@flax.struct.dataclass
class Targets:
    """Target tokens at chosen branch positions, independent of the tokens actually there.

    A target is predicted by the hidden state at its position, which has seen the token there.
    """

    at_BCM: Array  # int32, branch positions in 0..R-1
    token_BCM: Array  # int32, target tokens
    mask_BCM: Array  # True: a target, False: padding


def soft_cap(x: Array, cap: float) -> Array:
    """Returns cap * tanh(x / cap), which is near x if |x| is small and never exceeds `cap`."""
    return cap * jnp.tanh(x / cap)


@flax.struct.dataclass
class Capped:
    """The unembedding of a model whose logits have a soft cap.

    It is no array, so that logits cannot be computed without their cap.
    """

    unembed_DV: Array
    cap: float = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class Rollouts:
    """Sampled branches with their log-probabilities in nats."""

    tokens_BCR: Array
    mask_BCR: Array  # True up to and including the stop token
    logp_BCR: Array  # under the model, at temperature 1
    sample_logp_BCR: Array  # under the sampling distribution (temperature, top-k, top-p)


@flax.struct.dataclass
class Balance:
    """Sums over tokens for the load-balancing loss (arXiv 2101.03961, eq. 4), a row per layer.

    The loss of a layer is E * sum over experts of (share of all choices) * (mean probability): 1 if
    all experts are used equally. A product of two means is not a sum over tokens, so the means of
    microbatches are summed first (sip/training/step.py).
    """

    used_LE: Array  # tokens that chose the expert, / A; sums to `count_L`; has no gradient
    prob_LE: Array  # sum of the expert's probabilities
    count_L: Array  # tokens

    def pair(self, whole: Any) -> tuple[Array, Array]:
        """Returns (total, denom), with the shares of choices of the Balance of the whole batch.

        So totals of microbatches add up to the total of the whole batch.
        """
        share_LE = whole.used_LE / jnp.maximum(whole.count_L, 1.0)[:, None]
        return share_LE.shape[1] * (share_LE * self.prob_LE).sum(), self.count_L.sum()


@flax.struct.dataclass
class TrainState:
    """Everything that an update changes, and the frozen reference parameters."""

    step: Array  # int32, updates so far, including skipped ones
    params: Params
    opt_state: Any
    reference: Params | None  # of DPO or a KL term; None if the objective needs none
    skipped_in_row: Array  # consecutive skipped updates; their results were not finite
    skipped: Array  # all updates skipped so far


TermValues = dict[str, tuple[Array, Array] | Balance]  # terms of a loss by name


@dataclass(frozen=True)
class Verdicts:
    """A judge's scores of K candidates per prefix."""

    scores_BK: np.ndarray
    valid_BK: np.ndarray  # bool; False: no usable verdict, ignore the score
    aspects: dict[str, tuple[np.ndarray, np.ndarray]]  # name -> (score_BK, valid_BK)
