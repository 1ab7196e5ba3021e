import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sip.structs import UserError
from sip.training import optim
from sip.training.optim import OptimConfig


@pytest.mark.parametrize(
    ("name", "want"),
    [
        # Warm-up from lr / 2 in two updates; half way down, (2 + 0.2) / 2; then the floor.
        ("cosine", {0: 1.0, 1: 1.5, 2: 2.0, 6: 1.1, 10: 0.2, 99: 0.2}),
        ("linear", {0: 1.0, 1: 1.5, 2: 2.0, 4: 1.55, 6: 1.1, 10: 0.2, 99: 0.2}),
        ("constant", {0: 1.0, 1: 1.5, 2: 2.0, 6: 2.0, 10: 2.0, 99: 2.0}),
    ],
)
def test_learning_rates_by_hand(name, want):
    lr = optim.schedule(OptimConfig(lr=2.0, steps=10, warmup_steps=2, schedule=name))
    for at, value in want.items():
        np.testing.assert_allclose(lr(at), value, rtol=1e-6, err_msg=f"{name} at {at}")


def test_without_warmup_the_first_update_has_the_whole_rate():
    cosine = optim.schedule(OptimConfig(lr=2.0, steps=4, min_ratio=0.0))
    np.testing.assert_allclose([cosine(0), cosine(2), cosine(4)], [2.0, 1.0, 0.0], atol=1e-6)


def first_update(params, grads, **changes):
    values = {"lr": 0.1, "steps": 10, "schedule": "constant", "eps": 1e-12, "clip_norm": 1e9}
    tx = optim.build(OptimConfig(**values | changes))
    updates, state = tx.update(grads, tx.init(params), params)
    return optax.apply_updates(params, updates), state


def test_the_first_update_of_adam_moves_by_the_rate_and_the_sign():
    params = {"w": jnp.array([1.0, -2.0, 3.0])}
    new, _ = first_update(params, {"w": jnp.array([1e-3, -5.0, 7.0])})
    np.testing.assert_allclose(new["w"], [0.9, -1.9, 2.9], rtol=1e-5)


def test_weight_decay_shrinks_matrices_and_leaves_norms():
    layer = {"attention_norm": jnp.array([2.0]), "wq": jnp.array([2.0])}
    params = {"embed": jnp.array([2.0]), "final_norm": jnp.array([2.0]), "blocks": layer}
    new, _ = first_update(params, jax.tree.map(jnp.zeros_like, params), weight_decay=0.5)
    want = {"embed": 1.9, "final_norm": 2.0, "blocks": {"attention_norm": 2.0, "wq": 1.9}}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), new, want)


def test_gradients_are_clipped_by_their_global_norm():
    params = {"a": jnp.array([0.0]), "b": jnp.array([0.0])}
    _, state = first_update(params, {"a": jnp.array([3.0]), "b": jnp.array([4.0])}, clip_norm=1.0)
    mean = optax.tree_utils.tree_get(state, "mu")  # (1 - b1) * gradient / 5
    np.testing.assert_allclose([mean["a"], mean["b"]], [[0.06], [0.08]], rtol=1e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [("lr", 0.0), ("steps", 0), ("schedule", "step"), ("warmup_steps", 11), ("warmup_steps", -1),
     ("clip_norm", 0.0)],
)  # fmt: skip
def test_a_config_that_cannot_be_names_its_field(field, value):
    with pytest.raises(UserError, match=rf"optim\.{field}"):
        OptimConfig(**{"lr": 0.1, "steps": 10, field: value})
