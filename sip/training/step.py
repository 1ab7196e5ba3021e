"""The jitted update with donated state: loss = sum of weight_i(step) * total_i / denom_i.

A loss is a function `terms(params, reference, batch) -> (terms, metrics)`; both are dicts of
(total, denom). Denominators depend on masks only and are summed over the global batch before the
backward pass. The load-balancing loss of experts is a product of two means over the batch. With
microbatches the mean without a gradient is computed in a forward pass of its own. The number of
microbatches and devices therefore changes results only by rounding.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sip.mesh import replicated
from sip.models import decoder, int8, lora
from sip.models.config import ModelConfig
from sip.models.lora import OFF, LoraConfig
from sip.structs import Array, Balance, Metrics, Params, TermValues, TrainState
from sip.training.optim import Optimiser

Terms = Callable[[Params, Params | None, Any], tuple[TermValues, Metrics]]
Weights = Callable[[Array], Mapping[str, Any]]


def init_state(cfg: ModelConfig, tx, mesh, seed: int, *, reference: bool) -> TrainState:
    """Returns a state at step 0 with fresh parameters.

    It is created under jit with output shardings, so no device ever holds an unsharded copy.
    """
    make = lambda: _fresh(decoder.init(cfg, jax.random.key(seed)), tx, reference)
    return _placed(make, cfg, tx, mesh, reference)()


def state_of(params: Params, cfg: ModelConfig, tx, mesh, *, reference: bool) -> TrainState:
    """Returns a state at step 0 with the given parameters; the reference is a copy of them."""
    return _starting(cfg, tx.rule if isinstance(tx, Optimiser) else tx, mesh, reference)(params)


@functools.lru_cache(maxsize=32)
def _starting(cfg: ModelConfig, rule, mesh, reference: bool):
    """Returns the jitted (params) -> state at step 0; equal runs share it."""
    return _placed(lambda params: _fresh(params, rule, reference), cfg, rule, mesh, reference)


def adapted_state(
    base: Params, cfg: ModelConfig, tx, mesh, seed: int, *, adapter: LoraConfig
) -> TrainState:
    """Returns a state at step 0 with fresh LoRA factors on a frozen `base`.

    The base is not copied. It also serves as the reference, so the state has no `reference`.
    """
    shape = abstract_state(cfg, tx, mesh, reference=False, adapter=adapter)
    places = jax.tree.map(lambda x: x.sharding, shape)
    # Only the factors go through jit; the base is put on its devices as it is.
    make = lambda key: _fresh(lora.init(shape.params.base, adapter, key), tx, False)
    out = dataclasses.replace(places, params=places.params.factors)
    state = jax.jit(make, out_shardings=out)(jax.random.key(seed))
    base = jax.device_put(base, places.params.base)
    return dataclasses.replace(state, params=lora.Adapted(base, state.params, adapter.scale))


def frozen(state: TrainState) -> Params | None:
    """Returns the frozen parameters that a loss compares with: the reference or the LoRA base."""
    adapted = isinstance(state.params, lora.Adapted)
    return state.params.base if adapted else state.reference


def _placed(make, cfg, tx, mesh, reference):
    shape = abstract_state(cfg, tx, mesh, reference=reference)
    return jax.jit(make, out_shardings=jax.tree.map(lambda x: x.sharding, shape))


def _fresh(params: Params, tx, reference: bool) -> TrainState:
    # A real copy: the update donates its state, and one buffer cannot be donated twice.
    copy = jax.tree.map(jnp.copy, params) if reference else None
    count = lambda: jnp.zeros((), jnp.int32)
    return TrainState(count(), params, tx.init(_floats(params)), copy, count(), count())


def _floats(tree):
    """Casts a tree to float32, which the optimiser sees whatever the parameters' storage dtype."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def abstract_params(cfg: ModelConfig, mesh, dtype: str) -> Params:
    """Returns shapes, dtypes and shardings of parameters stored in `dtype`, a storage dtype.

    With int8 only the layers' matrices are int8; embeddings are stored in the compute dtype.
    """
    as_used = cfg.dtype if dtype == "int8" else dtype
    params = decoder.abstract(dataclasses.replace(cfg, param_dtype=as_used), mesh)
    return int8.abstract(params, mesh) if dtype == "int8" else params


def abstract_state(
    cfg: ModelConfig, tx, mesh, *, reference: bool, adapter: LoraConfig = OFF
) -> TrainState:
    """Returns shapes, dtypes and shardings of a state. Moments are sharded like their parameter.

    With an `adapter` of rank > 0 the moments are those of its factors, and there is no reference.
    """
    params = abstract_params(cfg, mesh, "int8" if adapter.int8 else cfg.param_dtype)
    if not adapter.rank:
        return _abstract(params, tx, mesh, params if reference else None)
    adapted = lora.abstract(params, adapter, mesh)
    state = _abstract(adapted.factors, tx, mesh, None)
    return dataclasses.replace(state, params=adapted)


def _abstract(params: Params, tx, mesh, reference: Params | None) -> TrainState:
    # Moments have the shapes of parameters and take their shardings; counts are replicated.
    opt = jax.eval_shape(lambda params: tx.init(_floats(params)), params)
    whole = replicated(mesh)
    alone = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)  # step counts
    opt = optax.tree_utils.tree_map_params(
        tx, _beside, opt, params, transform_non_params=alone, is_leaf=_elsewhere
    )
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    return TrainState(count, params, opt, reference, count, count)


def _elsewhere(x) -> bool:
    """True for optax's placeholder of a parameter that another part of the optimiser updates."""
    return isinstance(x, optax.MaskedNode)


def _beside(x, param):
    if _elsewhere(x):
        return x
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=param.sharding)


def _divide(total, denom):
    # Masked so that a term without any element contributes 0, not NaN.
    return jnp.where(denom > 0, total / jnp.maximum(denom, 1), 0.0)


def pairs(values: TermValues, whole: TermValues) -> Metrics:
    """Returns the terms of a microbatch as (total, denom); `whole` are those of the whole batch."""
    return {k: v.pair(whole[k]) if isinstance(v, Balance) else v for k, v in values.items()}


def _gradient(terms: Terms, params, reference, micro, whole: TermValues | None, weights):
    """Returns (gradient, terms as pairs, metrics) of one microbatch's share of the loss.

    The share divides by denominators of `whole`, so shares of microbatches add up to the whole
    loss. None: the microbatch is the whole batch.
    """

    def loss(params):
        values, metrics = terms(params, reference, micro)
        over = values if whole is None else whole
        ours, denoms = pairs(values, over), pairs(over, over)
        share = sum(weights[k] * _divide(total, denoms[k][1]) for k, (total, _) in ours.items())
        return share, (ours, metrics)

    grads, (ours, metrics) = jax.grad(loss, has_aux=True)(params)
    return _floats(grads), ours, metrics


def gradient(terms: Terms, params, reference, batch, weights, microbatches: int):
    """Returns (grads, loss, metrics) of the whole batch; gradients are float32."""
    if microbatches == 1:
        grads, found, metrics = _gradient(terms, params, reference, batch, None, weights)
    else:
        grads, found, metrics = _accumulate(terms, params, reference, batch, weights, microbatches)
    loss = sum(weights[k] * _divide(total, denom) for k, (total, denom) in found.items())
    return grads, loss, {**metrics, **{f"loss/{k}": pair for k, pair in found.items()}}


def _accumulate(terms, params, reference, batch, weights, microbatches):
    # Microbatch m takes rows m, m + microbatches, ...: with B sharded in contiguous blocks every
    # device keeps its own rows, and no data moves.
    split = lambda x: x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:]).swapaxes(
        0, 1
    )
    micro_batches = jax.tree.map(split, batch)
    frozen = jax.lax.stop_gradient(params)
    # Only denominators of this call are used. They depend on masks, so XLA removes the forward
    # pass of the model as dead code.
    whole = terms(frozen, reference, batch)[0]
    if any(isinstance(v, Balance) for v in whole.values()):
        # Here it is not dead code, so it runs on a microbatch at a time.
        whole = _summed(lambda micro: terms(frozen, reference, micro)[0], micro_batches)
    return _summed(
        lambda micro: _gradient(terms, params, reference, micro, whole, weights), micro_batches
    )


def _summed(one, micro_batches):
    """Returns the sum of `one` over microbatches."""
    # A scan, not a Python loop: one compiled body, and one microbatch's activations at a time.
    first = jax.tree.map(lambda x: x[0], micro_batches)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, first))
    add = lambda carry, micro: (jax.tree.map(jnp.add, carry, one(micro)), None)
    return jax.lax.scan(add, zeros, micro_batches)[0]


def make_average(decay: float):
    """Returns the jitted function of a state whose reference follows the parameters.

    reference <- decay * reference + (1 - decay) * params. The state is donated.
    """

    def follow(state: TrainState) -> TrainState:
        mixed = jax.tree.map(
            lambda slow, new: (decay * slow + (1 - decay) * new).astype(slow.dtype),
            state.reference,
            state.params,
        )
        return dataclasses.replace(state, reference=mixed)

    return jax.jit(follow, donate_argnums=0)


def all_finite(tree) -> Array:
    """Returns a bool scalar: every number of the tree is finite."""
    return jnp.all(jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]))


def _unclipped(grads):
    return grads


def _applied(rule, grads, opt_state, learned):
    """Returns the new (parameters, optimiser state); `rule` is the optimiser's update."""
    updates, opt_state = rule(grads, opt_state, _floats(learned))
    return optax.apply_updates(learned, updates), opt_state


def _selected(ok, new, old):
    """Returns the tree `new` if `ok`, else `old`."""
    return jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, old)


def _applied_if(ok, apply, grads, learned, opt_state):
    """Returns apply(..), or (learned, opt_state) as they are if not `ok`.

    `apply` must not reduce over devices: on CPUs a branch that does may wait for ever. The result
    takes the old state's memory. On GPUs one of both is selected, since a branch there makes the
    host wait for `ok`, and with it for the whole gradient.
    """
    new = lambda learned, opt_state: apply(grads, opt_state, learned)
    old = learned, opt_state
    if jax.default_backend() == "gpu":
        return _selected(ok, new(*old), old)
    return jax.lax.cond(ok, new, lambda *old: old, *old)


@dataclass(frozen=True)
class Update:
    """A jitted update(state, batch) -> (state, metrics), with the learning rates of its run."""

    program: Any  # jitted (state, batch, rates_S), shared by runs that differ in the rates only
    rates_S: Any  # float32; None if the optimiser has its own

    def __call__(self, state: TrainState, batch) -> tuple[TrainState, Metrics]:
        """Runs the update; the state is donated."""
        return self.program(state, batch, self.rates_S)

    def trace(self, state, batch):
        """Traces the program for arguments of these shapes."""
        return self.program.trace(state, batch, self.rates_S)


def make_update(
    terms: Terms,
    tx: Optimiser | optax.GradientTransformation,
    weights: Weights,
    *,
    microbatches: int = 1,
) -> Update:
    """Returns the update(state, batch) -> (state, metrics).

    `batch` is a pytree with leading axis B, a multiple of `microbatches`. Metrics are a dict of
    (total, denom). Of LoRA parameters only the factors are updated. An update is skipped if loss,
    gradient, new parameters or new moments are not finite, or might not be
    (`Optimiser.stays_finite`): parameters and optimiser stay, while `step` and `skipped` count it.
    The state is donated, so the one passed in cannot be used afterwards.

    Equal arguments give the same program, which compiles once; the learning rates of an `Optimiser`
    may differ.
    """
    if isinstance(tx, Optimiser):
        parts, rates_S = (tx.clip, tx.rule, tx.stays_finite), tx.rates_S
    else:
        parts, rates_S = (_unclipped, tx, None), None
    return Update(_program(terms, *parts, weights, microbatches), rates_S)


@functools.lru_cache(maxsize=32)
def _program(terms: Terms, clip, rule, stays_finite, weights: Weights, microbatches: int):
    def update(state: TrainState, batch, rates_S) -> tuple[TrainState, Metrics]:
        more = {} if rates_S is None else {"rates_S": rates_S}
        apply = functools.partial(_applied, functools.partial(rule.update, **more))
        of = lambda learned, *rest: terms(lora.relearned(state.params, learned), *rest)
        learned = lora.learned(state.params)
        grads, loss, metrics = gradient(
            of, learned, frozen(state), batch, weights(state.step), microbatches
        )
        norm, grads = optax.tree.norm(grads), clip(grads)
        ok = jnp.isfinite(loss) & jnp.isfinite(norm)
        kept = learned, state.opt_state
        if stays_finite is None:
            # A finite gradient can still overflow in the optimiser or in the storage dtype. XLA
            # keeps the result beside the old state until it knows which of them stays.
            new = apply(grads, state.opt_state, learned)
            ok &= all_finite(new)
            kept = _selected(ok, new, kept)
        else:
            ok &= stays_finite(*kept)
            kept = _applied_if(ok, apply, grads, *kept)
        params, opt_state = kept
        bad = (~ok).astype(jnp.int32)
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=lora.relearned(state.params, params),
            opt_state=opt_state,
            skipped_in_row=(state.skipped_in_row + 1) * bad,
            skipped=state.skipped + bad,
        )
        one = jnp.float32(1)
        measured = {**metrics, "loss/total": (loss, one), "grad/norm": (norm, one)}
        # A skipped update gives (0, 0) pairs: its NaN would spoil the average of the log's window.
        measured = jax.tree.map(lambda x: jnp.where(ok, x, 0), measured)
        in_row = state.skipped_in_row.astype(jnp.float32)
        return state, {**measured, "grad/skipped_in_row": (in_row, one)}

    return jax.jit(update, donate_argnums=0)
