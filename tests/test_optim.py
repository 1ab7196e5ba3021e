import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from optax import contrib

from sip.models import decoder, parameters
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
        # A decay of the last two updates; half way 2 * (1 - 0.9 / sqrt(2)).
        ("wsd", {0: 1.0, 1: 1.5, 2: 2.0, 8: 2.0, 9: 0.72720779, 10: 0.2, 99: 0.2}),
    ],
)
def test_learning_rates_by_hand(name, want):
    lr = optim.schedule(OptimConfig(lr=2.0, steps=10, warmup_steps=2, schedule=name))
    for at, value in want.items():
        np.testing.assert_allclose(lr(at), value, rtol=1e-6, err_msg=f"{name} at {at}")


def test_the_decay_of_wsd_is_a_share_of_the_steps_and_leaves_room_for_the_warmup():
    lr = lambda **more: optim.schedule(OptimConfig(lr=1.0, steps=10, schedule="wsd", **more))
    whole = lr(decay_fraction=1.0, min_ratio=0.0)
    np.testing.assert_allclose([whole(0), whole(5)], [1.0, 1 - 0.5**0.5], rtol=1e-6)
    with pytest.raises(UserError, match="warmup_steps=9: with the 2 steps of the decay"):
        lr(warmup_steps=9)


def by_optax(cfg):
    """Returns the schedule that optax computes."""
    rest = cfg.steps - cfg.warmup_steps
    decay = {
        "cosine": optax.cosine_decay_schedule(cfg.lr, rest, cfg.min_ratio),
        "linear": optax.linear_schedule(cfg.lr, cfg.lr * cfg.min_ratio, rest),
        "constant": optax.constant_schedule(cfg.lr),
    }[cfg.schedule]
    warmup = optax.linear_schedule(cfg.lr / cfg.warmup_steps, cfg.lr, cfg.warmup_steps)
    return optax.join_schedules([warmup, decay], [cfg.warmup_steps])


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("steps", [10, 4096])
def test_the_table_has_the_rates_of_optax(name, steps):
    cfg = OptimConfig(lr=3e-4, steps=steps, warmup_steps=3, schedule=name)
    rates_S, lr = optim.rates(cfg), by_optax(cfg)
    assert len(rates_S) == (8192 if steps == 4096 else 4096) and rates_S.dtype == np.float32
    for at in (0, 1, 2, 3, 4, steps // 2, steps - 1, steps, len(rates_S) - 1):
        np.testing.assert_allclose(rates_S[at], lr(at), rtol=2e-6)
    assert float(optim.schedule(cfg)(10**6)) == rates_S[-1]


def test_an_update_takes_the_rate_of_its_count():
    cfg = OptimConfig(lr=0.1, steps=4, warmup_steps=2, schedule="linear", eps=1e-12)
    tx, params = optim.build(cfg), {"w": jnp.zeros(3)}
    state, moves = tx.init(params), []
    for _ in range(4):
        updates, state = tx.update({"w": jnp.ones(3)}, state, params)
        moves.append(-float(updates["w"][0]))
    np.testing.assert_allclose(moves, optim.rates(cfg)[:4], rtol=1e-4)
    assert len(set(moves)) > 2


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


HIDDEN = [name for name in parameters.MATRICES if name != "w_router"]
BLOCK = ("attention_norm", "mlp_norm", *HIDDEN)
EXPERTS = tiny.model(experts=4, active=2)
ADAM = OptimConfig(lr=0.1, steps=10, warmup_steps=2, weight_decay=0.3, clip_norm=50.0)
MUON = dataclasses.replace(ADAM, name="muon")


def gradients(seed, params=None):
    rng = np.random.default_rng(seed)
    draw = lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32)
    return jax.tree.map(draw, tiny.params() if params is None else params)


@functools.partial(jax.jit, static_argnums=0)
def two_updates(tx, params, *grads):
    """Returns (parameters, state) after one update for each of `grads`."""
    state = tx.init(params)
    for g in grads:
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def program(tx, params=None):
    """Returns the traced update."""
    params = tiny.params() if params is None else params
    return str(jax.make_jaxpr(tx.update)(params, jax.eval_shape(tx.init, params), params))


def written_out(mask, **changes):
    """Applies the chain of `ADAM` by hand."""
    values = dict(b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.3, mask=mask) | changes
    return optax.chain(optax.clip_by_global_norm(50.0), optax.adamw(optim.schedule(ADAM), **values))


def masks(embeddings):
    block = {name: name in parameters.MATRICES for name in BLOCK}
    return {
        "embed": embeddings,
        "unembed": embeddings,
        "final_norm": False,
        "blocks": {"block": block},
    }


def test_adamw_is_the_chain_of_optax_to_the_last_operation():
    assert program(optim.build(ADAM)) == program(written_out(masks(True)))
    assert program(optim.build(ADAM)) != program(written_out(masks(False)))


def test_embeddings_decay_or_not_and_biases_never_do():
    spared = dataclasses.replace(ADAM, decay_embeddings=False)
    assert program(optim.build(spared)) == program(written_out(masks(False)))
    params = {"bq": jnp.array([2.0]), "wq": jnp.array([2.0])}
    new, _ = first_update(params, jax.tree.map(jnp.zeros_like, params), weight_decay=0.5)
    np.testing.assert_allclose([new["bq"], new["wq"]], [[2.0], [1.9]], rtol=1e-6)


def matrices(tree):
    """Returns {name and layer: [in, out] matrix} of parameters or gradients."""
    D, heads = tiny.CFG.width, 2 * 2 * 4
    shapes = {"wq": (D, heads), "wo": (heads, D), "wk": (D, 8), "wv": (D, 8), "w_down": (24, D)}
    shapes |= dict.fromkeys(("w_gate", "w_up"), (D, 24))
    block = tree["blocks"]["block"]
    return {f"{k}{i}": block[k][i].reshape(s) for k, s in shapes.items() for i in range(2)}


def rest(tree):
    """Returns the parameters that are not hidden matrices."""
    norms = {k: tree["blocks"]["block"][k] for k in ("attention_norm", "mlp_norm")}
    return {k: v for k, v in tree.items() if k != "blocks"} | norms


def close(got, want, **tolerance):
    check = functools.partial(np.testing.assert_allclose, **tolerance)
    jax.tree.map(check, jax.device_get(got), jax.device_get(want))


@pytest.mark.slow
def test_muon_of_scanned_parameters_is_optax_muon_of_each_layers_matrix():
    grads = gradients(1), gradients(2)
    loose = dataclasses.replace(MUON, clip_norm=1e9)
    got, _ = two_updates(optim.build(loose), tiny.params(), *grads)
    alone = contrib.muon(optim.schedule(loose), weight_decay=0.3, consistent_rms=0.2)
    want, _ = two_updates(alone, matrices(tiny.params()), *map(matrices, grads))
    close(matrices(got), want, rtol=1e-5, atol=1e-6)
    by_adam = dataclasses.replace(loose, name="adamw")
    want, _ = two_updates(optim.build(by_adam), tiny.params(), *grads)
    close(rest(got), rest(want), rtol=1e-6)
    assert not np.allclose(got["blocks"]["block"]["wq"], want["blocks"]["block"]["wq"], atol=1e-2)


def test_an_update_of_muon_is_orthogonal_and_of_the_rms_of_its_rate():
    changes = dict(weight_decay=0.0, warmup_steps=0)
    tx = optim.build(dataclasses.replace(MUON, **changes))
    new, _ = two_updates(tx, tiny.params(), gradients(1))
    moved = jax.tree.map(lambda a, b: a - b, matrices(tiny.params()), matrices(new))
    for name, x in moved.items():
        singular = np.linalg.svd(x, compute_uv=False) / (0.1 * 0.2 * np.sqrt(max(x.shape)))
        assert 0.5 < singular.min() < singular.max() < 1.3, name  # the iteration's own bounds
    flat = np.linalg.svd(matrices(gradients(1))["wq0"], compute_uv=False)
    assert flat.max() / flat.min() > 10, "the gradient is far from orthogonal"


def matrix_letters(cfg):
    shapes = jax.eval_shape(lambda: decoder._boxed(cfg, jax.random.key(0)))["blocks"]["block"]
    return {k: "".join(box.names) for k, box in shapes.items() if "norm" not in k}


def test_muon_knows_the_letters_of_every_matrix_of_the_decoder():
    table = {k: reads + writes for k, (reads, writes) in parameters.MATRICES.items()}
    assert matrix_letters(tiny.CFG) == {k: "L" + table[k] for k in HIDDEN}
    lead = {k: "LE" if k in ("w_gate", "w_up", "w_down") else "L" for k in table}
    assert matrix_letters(EXPERTS) == {k: lead[k] + table[k] for k in table}


def test_muon_turns_each_expert_s_matrix_by_itself():
    """The update of each expert's matrix equals that of the matrix alone, as for layers."""
    tx = optim.build(dataclasses.replace(MUON, clip_norm=1e9))
    w_EDF = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 6)), jnp.float32)
    run = lambda w: two_updates(tx, {"w_up": w}, {"w_up": jnp.cos(3 * w)})[0]["w_up"]
    apart = jnp.stack([run(w_EDF[0]), run(w_EDF[1])])
    np.testing.assert_allclose(run(w_EDF), apart, rtol=1e-5)


def test_muon_refuses_a_parameter_that_it_does_not_know():
    with pytest.raises(UserError, match=r"optim\.name muon: .* router \(2, 16, 4\)"):
        optim.build(MUON).init({"router": jnp.zeros((2, 16, 4))})


def sizes(cfg):
    """Returns the bytes of the first moments, and of the whole state."""
    state = jax.eval_shape(optim.build(cfg).init, tiny.params())
    nodes = jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "mu"))
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    return sum(size(x.mu) for x in nodes if hasattr(x, "mu")), size(state)


def test_bf16_halves_the_first_moment_and_leaves_the_second():
    count = decoder.count(tiny.CFG)
    hidden = sum(x.size for x in matrices(tiny.params()).values())
    found = {
        (cfg.name, dtype): sizes(dataclasses.replace(cfg, mu_dtype=dtype))
        for cfg in (ADAM, MUON)
        for dtype in ("float32", "bfloat16")
    }
    for (name, dtype), (first, whole) in found.items():
        assert first == count * (4 if dtype == "float32" else 2), (name, dtype)
        second = 4 * (count if name == "adamw" else count - hidden)
        assert 0 <= whole - first - second < 64, "counters, and the iteration's coefficients"


@pytest.mark.parametrize("cfg", [ADAM, MUON], ids=lambda cfg: cfg.name)
def test_a_short_run_with_bf16_moments_stays_near(cfg):
    rng = np.random.default_rng(0)
    x_BD, aim_DF = rng.standard_normal((64, 8)), rng.standard_normal((8, 4))
    loss = lambda params: ((x_BD @ (params["w_up"] - aim_DF)) ** 2).mean()

    @functools.partial(jax.jit, static_argnums=0)
    def run(tx):
        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        params = {"w_up": jnp.zeros((8, 4))}
        return jax.lax.scan(step, (params, tx.init(params)), None, 40)[1]

    changes = dict(steps=40, weight_decay=0.0, clip_norm=1e9)
    wide, narrow = (
        run(optim.build(dataclasses.replace(cfg, mu_dtype=dtype, **changes)))
        for dtype in ("float32", "bfloat16")
    )
    assert wide[-1] < 0.5 * wide[0]
    np.testing.assert_allclose(narrow, wide, atol=2e-3 * wide[0])
    assert (narrow != wide).any()


@pytest.mark.parametrize(
    ("field", "value"),
    [("lr", 0.0), ("steps", 0), ("schedule", "step"), ("warmup_steps", 11), ("warmup_steps", -1),
     ("clip_norm", 0.0), ("name", "sgd"), ("momentum", 1.0), ("rms", 0.0), ("mu_dtype", "float8")],
)  # fmt: skip
def test_a_config_that_cannot_be_names_its_field(field, value):
    with pytest.raises(UserError, match=rf"optim\.{field}"):
        OptimConfig(**{"lr": 0.1, "steps": 10, field: value})


def test_every_parameter_of_every_family_is_a_matrix_an_embedding_or_a_vector():
    """Muon would reject any other parameter, and AdamW would decay it."""
    cfg = tiny.model(
        qkv_bias=True, qk_norm=True, out_bias=True, sinks=True, experts=4, active=2,
        expert_bias=True,
    )  # fmt: skip
    tx = optim.build(optim.OptimConfig(lr=0.1, steps=1, name="muon", weight_decay=1.0))
    params = tiny.params(cfg)
    tx.init(params)
    names = set(params["blocks"]["block"])
    assert names - set(parameters.MATRICES) == {
        "attention_norm", "mlp_norm", "q_norm", "k_norm", *parameters.BIASES,
    }  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(b1=0.0, b2=0.0, eps=1e-17),
        dict(b1=0.5, b2=0.5, clip_norm=optim.CLIPS[1]),
        dict(b1=optim.MOST_DECAY, b2=optim.MOST_DECAY, eps=2e-12),
        dict(mu_dtype="bfloat16", clip_norm=optim.CLIPS[1], lr=1e-12, weight_decay=1e12),
        dict(lr=10.0, weight_decay=0.1, clip_norm=optim.CLIPS[0], eps=2e-16),
    ],
)
@pytest.mark.parametrize("count", [0, 1, 10**6])
def test_a_state_within_the_bounds_stays_finite(settings, count):
    """All combinations of the largest parameters, moments and gradients."""
    tx = optim.build(OptimConfig(**dict(lr=1.0, steps=4) | settings))
    ends = lambda most, low=-1.0: np.array([low * most, -0.0, 1e-38, most], np.float32)
    grid = np.meshgrid(ends(1.8e19), ends(1.8e19), ends(optim.MOST_SQUARE, 0.0), ends(1.8e19))
    form = tx.init({"w_up": jnp.float32(0)})

    def one(p, mu, nu, g):
        p, g, size = {"w_up": p}, {"w_up": g}, lambda x: jnp.asarray(count, x.dtype)
        state = jax.tree.map(size, form)
        mu = mu.astype(optax.tree.get(form, "mu")["w_up"].dtype)
        state = optax.tree.set(state, mu={"w_up": mu}, nu={"w_up": nu})
        updates, after = tx.update(g, state, p)
        known = jnp.isfinite(optax.tree.norm(g)) & tx.stays_finite(p, state)
        return known, optax.apply_updates(p, updates), after

    known, *after = jax.vmap(one)(*(jnp.asarray(x.ravel()) for x in grid))
    assert known.all() and known.size == 256
    for x in jax.tree.leaves(after):
        assert np.isfinite(np.asarray(x, np.float32)).all()


@pytest.mark.parametrize(
    "settings",
    [
        dict(name="muon"),
        dict(b2=0.9999999),
        dict(b1=0.999999),
        dict(eps=1e-17),
        dict(clip_norm=1e-40),
        dict(clip_norm=1e19),
    ],
)
def test_settings_that_may_overflow_are_checked_afterwards(settings):
    assert optim.build(OptimConfig(lr=1.0, steps=4, **settings)).stays_finite is None
    assert optim.build(OptimConfig(lr=1.0, steps=4)).stays_finite is not None
