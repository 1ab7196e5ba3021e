"""Tests attention by the kernels of accelerators against XLA's, their programs interpreted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from sip import mesh as meshes
from sip.models import kernels, layers
from sip.structs import UserError

B, G, Q, H = 2, 2, 2, 16
CAPPED = layers.Scoring(scale=0.3, cap=2.0)
CASES = {
    "plain": dict(T=128),
    "padded, window, segments, sinks, cap": dict(
        T=150, window=20, segments=True, sinks=True, how=CAPPED
    ),
    "two blocks": dict(T=640, segments=True),
}


def arrays(T, segments, sinks):
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    q, k, v = normal(B, G, T, Q, H), normal(B, G, T, H), normal(B, G, T, H)
    segment_BT = jnp.asarray(np.arange(T) >= [[T // 3], [T // 2]], jnp.int32) if segments else None
    return (q, k, v, segment_BT, normal(G, Q) if sinks else None), normal(B, G, T, Q, H)


def compared(kernel, *, T, window=0, segments=False, sinks=False, how=layers.USUAL):
    """Compares outputs and gradients of a kernel with those of attention by XLA."""
    given, target = arrays(T, segments, sinks)
    segment_BT = given[3]

    def ours(q, k, v, sink):
        return kernel(q, k, v, segment_BT, sink, window=window, how=how)

    def plain(q, k, v, sink):
        return layers.trunk_attention(q, k, v, segment_BT, T, window, None, sink, how)

    both = lambda f: jax.jit(jax.value_and_grad(lambda *x: (f(*x) * target).sum(), (0, 1, 2, 3)))
    rest = given[0], given[1], given[2], given[4]
    np.testing.assert_allclose(ours(*rest), plain(*rest), atol=2e-5)
    found, want = both(ours)(*rest), both(plain)(*rest)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=2e-4), found, want)
    assert min(np.abs(x).max() for x in jax.tree.leaves(want[1])) > 0.1


@pytest.mark.parametrize(
    "case",
    [
        pytest.param("plain", marks=pytest.mark.slow),
        "padded, window, segments, sinks, cap",
        pytest.param("two blocks", marks=pytest.mark.slow),
    ],
)
def test_splash_is_attention_by_xla(case):
    compared(functools.partial(kernels.splash, interpret=True), **CASES[case])


@pytest.mark.parametrize(
    "changes", [pytest.param({}, marks=pytest.mark.slow), dict(window=5, segments=True)]
)
def test_what_cudnn_is_asked_for_is_attention_by_xla(changes):
    """The same call with another implementation; cuDNN itself needs a GPU."""
    compared(functools.partial(kernels.cudnn, implementation="xla"), T=24, **changes)


@pytest.mark.parametrize("full", [True, False])
def test_a_layer_with_full_attention_has_no_window(full, monkeypatch):
    monkeypatch.setattr(kernels, "cudnn", functools.partial(kernels.cudnn, implementation="xla"))
    (q, k, v, *_), _ = arrays(24, False, False)
    rest = q, k, v, None, 24, 5, jnp.asarray(full), None, layers.USUAL
    found = jax.jit(lambda: kernels.trunk_attention("cudnn", *rest))()
    np.testing.assert_allclose(found, layers.trunk_attention(*rest), atol=2e-5)


def test_each_device_runs_the_kernel_on_its_own_documents_and_heads(monkeypatch):
    monkeypatch.setattr(kernels, "splash", functools.partial(kernels.splash, interpret=True))
    (q, k, v, segment_BT, sink_GQ), _ = arrays(128, True, True)
    rest = q, k, v, segment_BT, 128, 0, None, sink_GQ, layers.USUAL
    with jax.set_mesh(meshes.build(meshes.MeshConfig(2, 1, 2), jax.devices()[:4])):
        run = jax.jit(
            lambda *x: kernels.trunk_attention("splash", *x[:4], *rest[4:7], x[4], rest[8])
        )
        found = run(q, k, v, segment_BT, sink_GQ)
        text = run.lower(q, k, v, segment_BT, sink_GQ).as_text()
    assert "manual_computation" in text
    np.testing.assert_allclose(found, layers.trunk_attention(*rest), atol=2e-5)


def test_a_kernel_of_another_platform_is_refused():
    kernels.check("xla", "cpu")
    kernels.check("splash", "tpu")
    with pytest.raises(UserError, match="'splash' runs on tpu only, not on cpu"):
        kernels.check("splash", "cpu")
    with pytest.raises(UserError, match="'cudnn' runs on gpu only, not on tpu"):
        kernels.check("cudnn", "tpu")


def test_a_checkpoint_is_read_with_attention_that_runs_here():
    assert kernels.here(tiny.model(attention="splash")) == tiny.model()
    assert kernels.here(tiny.model()) == tiny.model()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(attention="flash"), "attention"),
        (dict(attention="cudnn"), "bfloat16"),
        (dict(attention="cudnn", dtype="bfloat16", sinks=True), "sinks"),
        (dict(attention="cudnn", dtype="bfloat16", attention_cap=1.0), "attention_cap"),
    ],
)
def test_attention_that_the_model_cannot_have_is_refused(changes, named):
    with pytest.raises(UserError, match=named):
        tiny.model(**changes)
