import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sip import mesh as meshes
from sip.objectives import likelihood, logprobs
from sip.structs import Capped, Tree

B, N, D, V = 2, 12, 4, 11


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def problem(n=N, dtype=jnp.float32):
    targets_BN = jax.random.randint(jax.random.key(2), (B, n), 0, V)
    return draw(0, B, n, D).astype(dtype), draw(1, D, V).astype(dtype), targets_BN


def full_logprobs(hidden_BND, unembed_DV):
    return jax.nn.log_softmax(hidden_BND.astype(jnp.float32) @ unembed_DV.astype(jnp.float32))


def plain(hidden_BND, unembed_DV, targets_BN):
    logp_BNV = full_logprobs(hidden_BND, unembed_DV)
    return jnp.take_along_axis(logp_BNV, targets_BN[..., None], axis=-1)[..., 0]


def loss_of(chunk):
    def loss(hidden_BND, unembed_DV, targets_BN):
        logp_BN = logprobs.chunked_logprobs(hidden_BND, unembed_DV, targets_BN, chunk=chunk)
        return (logp_BN * jnp.cos(jnp.arange(B * logp_BN.shape[1])).reshape(B, -1)).sum()

    return loss


@pytest.mark.parametrize("chunk", [4, pytest.param(64, marks=pytest.mark.slow)])
def test_a_soft_cap_bounds_the_logits_of_every_score(chunk):
    hidden_BND, unembed_DV, targets_BN = problem()
    capped, cap = Capped(unembed_DV, 0.7), lambda x: 0.7 * np.tanh(x / 0.7)
    logp_BNV = jax.nn.log_softmax(cap(np.asarray(hidden_BND) @ np.asarray(unembed_DV)))
    want = np.take_along_axis(np.asarray(logp_BNV), np.asarray(targets_BN)[..., None], -1)[..., 0]
    got = logprobs.chunked_logprobs(hidden_BND, capped, targets_BN, chunk=chunk)
    np.testing.assert_allclose(got, want, atol=1e-5)
    options_O = jnp.array([7, 0])
    got = logprobs.option_logprobs(hidden_BND, capped, options_O, chunk=chunk)
    np.testing.assert_allclose(got, logp_BNV[..., np.array([7, 0])], atol=1e-5)
    assert np.abs(want - plain(hidden_BND, unembed_DV, targets_BN)).max() > 0.1


def sub_jaxprs(value):
    if hasattr(value, "eqns"):
        yield value
    elif hasattr(value, "jaxpr"):
        yield value.jaxpr
    elif isinstance(value, tuple | list):
        for item in value:
            yield from sub_jaxprs(item)


def rows_of_logits(jaxpr):
    """Returns the largest number of V-vectors in one intermediate, without the weights [D, V]."""
    most = 0
    for eqn in jaxpr.eqns:
        for shape in (v.aval.shape for v in eqn.outvars):
            if V in shape and shape not in [(D, V), (V, D)]:
                most = max(most, math.prod(shape) // V)
        for inner in (j for p in eqn.params.values() for j in sub_jaxprs(p)):
            most = max(most, rows_of_logits(inner))
    return most


def test_chunked_logprobs_of_a_hand_worked_softmax():
    # Logits (ln 1, ln 3) and (ln 3, ln 1): the second token has probability 3/4 and 1/4.
    hidden_BND = jnp.array([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
    unembed_DV = jnp.log(jnp.array([[1.0, 3.0], [3.0, 1.0]]))
    for chunk in 1, 2, 3:
        logp = logprobs.chunked_logprobs(
            hidden_BND, unembed_DV, jnp.array([[1, 1, 0]]), chunk=chunk
        )
        np.testing.assert_allclose(logp, jnp.log(jnp.array([[0.75, 0.25, 0.25]])), rtol=1e-6)


@pytest.mark.parametrize(
    "chunk", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3, 5, 11))]
)
def test_chunked_equals_unchunked_including_gradients(chunk):
    args = problem()
    whole = jax.value_and_grad(loss_of(N), argnums=(0, 1))(*args)
    parts = jax.jit(jax.value_and_grad(loss_of(chunk), argnums=(0, 1)))(*args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), whole, parts)


@pytest.mark.parametrize("chunk", [5, N])
def test_chunked_logprobs_equal_a_gather_from_all_logits(chunk):
    args = problem()
    logp_BN = logprobs.chunked_logprobs(*args, chunk=chunk)
    np.testing.assert_allclose(logp_BN, plain(*args), rtol=1e-5, atol=1e-6)


def z_loss_of(chunk):
    def loss(*args):
        log_z_BN = logprobs.chunked_scores(*args, chunk=chunk)[..., 1]
        return likelihood.z_loss(log_z_BN, jnp.arange(log_z_BN.shape[1])[None] != 4)[0]

    return loss


@pytest.mark.parametrize("chunk", [5, N])
def test_scores_are_logprobs_and_the_log_of_numpys_sum(chunk):
    hidden_BND, unembed_DV, _ = args = problem()
    logits_BNV = np.asarray(hidden_BND, np.float64) @ np.asarray(unembed_DV, np.float64)
    logp_BN, log_z_BN = np.moveaxis(logprobs.chunked_scores(*args, chunk=chunk), -1, 0)
    np.testing.assert_array_equal(logp_BN, logprobs.chunked_logprobs(*args, chunk=chunk))
    np.testing.assert_allclose(log_z_BN, np.log(np.exp(logits_BNV).sum(-1)), rtol=1e-5)


@pytest.mark.parametrize("chunk", [5, N])
def test_the_gradient_of_the_z_loss_is_that_of_finite_differences(chunk):
    hidden_BND, unembed_DV, targets_BN = problem()
    exact = [np.asarray(x, np.float64) for x in (hidden_BND, unembed_DV)]

    def slope(which, at, h=1e-5):
        def loss(move):
            moved = [x.copy() for x in exact]
            moved[which][at] += move
            log_z_BN = np.log(np.exp(moved[0] @ moved[1]).sum(-1))
            return (np.delete(log_z_BN, 4, axis=1) ** 2).sum()

        return (loss(h) - loss(-h)) / (2 * h)

    of = jax.jit(jax.grad(z_loss_of(chunk), argnums=(0, 1)))
    for which, grad in enumerate(of(hidden_BND, unembed_DV, targets_BN)):
        want = [slope(which, at) for at in np.ndindex(grad.shape)]
        np.testing.assert_allclose(grad.ravel(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loss_of", [loss_of, z_loss_of])
@pytest.mark.parametrize("chunk", [3, 5])
def test_no_logits_of_all_positions_exist_when_chunked(chunk, loss_of):
    def rows(chunk):
        grad = jax.value_and_grad(loss_of(chunk), argnums=(0, 1))
        return rows_of_logits(jax.make_jaxpr(grad)(*problem()).jaxpr)

    assert rows(chunk) == B * chunk
    assert rows(N) == B * N  # the walker finds them where they are


def test_unchunked_logprobs_need_no_scan():
    def scans(chunk):
        return "scan" in str(jax.make_jaxpr(loss_of(chunk))(*problem()))

    assert not scans(N) and not scans(N + 1) and scans(N - 1)


@pytest.mark.parametrize("chunk", [5, N])
def test_bf16_hidden_states_give_float32_logprobs(chunk):
    args = problem(dtype=jnp.bfloat16)
    logp_BN = logprobs.chunked_logprobs(*args, chunk=chunk)
    assert logp_BN.dtype == jnp.float32
    np.testing.assert_allclose(logp_BN, plain(*args), rtol=1e-5, atol=1e-5)


def test_the_gradient_of_a_bf16_unembedding_is_summed_in_float32():
    # 1024 equal parts: a bf16 sum stops growing at 256 times one part.
    hidden_BND, unembed_DV = jnp.ones((1, 1024, 1), jnp.bfloat16), jnp.zeros((1, 2), jnp.bfloat16)
    targets_BN = jnp.zeros((1, 1024), jnp.int32)

    def total(unembed_DV):
        return logprobs.chunked_logprobs(hidden_BND, unembed_DV, targets_BN, chunk=1).sum()

    np.testing.assert_array_equal(jax.grad(total)(unembed_DV), jnp.array([[512.0, -512.0]]))


def test_targets_outside_the_vocabulary_stay_finite():
    hidden_BND, unembed_DV, targets_BN = problem()
    targets_BN = targets_BN.at[:, -1].set(V + 5).at[:, 0].set(-1)
    assert jnp.isfinite(
        logprobs.chunked_logprobs(hidden_BND, unembed_DV, targets_BN, chunk=5)
    ).all()


@pytest.mark.parametrize("chunk", [1, 5, N])
def test_option_logprobs_are_over_the_whole_vocabulary(chunk):
    hidden_BCD, unembed_DV, _ = problem()
    options_O = jnp.array([7, 0, 7])
    logp_BCO = logprobs.option_logprobs(hidden_BCD, unembed_DV, options_O, chunk=chunk)
    expected = full_logprobs(hidden_BCD, unembed_DV)[:, :, np.array([7, 0, 7])]
    np.testing.assert_allclose(logp_BCO, expected, rtol=1e-5, atol=1e-6)


def test_option_logprobs_hold_one_chunk_of_logits():
    hidden_BCD, unembed_DV, _ = problem()

    def rows(chunk):
        def options(h, u):
            return logprobs.option_logprobs(h, u, jnp.array([1, 2]), chunk=chunk)

        return rows_of_logits(jax.make_jaxpr(options)(hidden_BCD, unembed_DV).jaxpr)

    assert (rows(5), rows(N)) == (B * 5, B * N)


def tree_problem(C=3, R=4, T=6, segment_BT=None):
    def tokens(seed, *shape):
        return jax.random.randint(jax.random.key(seed), shape, 0, V)

    mask_BT = jnp.arange(T)[None] < jnp.array([[T], [T - 1]])
    mask_BCR = jnp.asarray((np.arange(R) < np.arange(1, C + 1)[:, None])[None].repeat(B, 0))
    fork_BC = jnp.tile(jnp.array([[1, 3, T - 1]]), (B, 1))[:, :C]
    tree = Tree(tokens(5, B, T), mask_BT, tokens(6, B, C, R), mask_BCR, fork_BC, segment_BT)
    return draw(7, B, T, D), draw(8, B, C, R, D), draw(1, D, V), tree


@pytest.mark.parametrize("chunk", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_tree_logprobs_equal_a_gather_from_all_logits(chunk):
    trunk_BTD, branch_BCRD, unembed_DV, tree = args = tree_problem()
    logp_BT, logp_BCR = map(np.asarray, logprobs.tree_logprobs(*args, chunk=chunk))
    tree = jax.tree.map(np.asarray, tree)
    trunk, branch = (np.asarray(full_logprobs(x, unembed_DV)) for x in (trunk_BTD, branch_BCRD))
    for b, t in np.ndindex(logp_BT.shape):
        real = t > 0 and tree.mask_BT[b, t]
        expected = trunk[b, t - 1, tree.tokens_BT[b, t]] if real else 0.0
        np.testing.assert_allclose(logp_BT[b, t], expected, rtol=1e-5)
    for b, c, i in np.ndindex(logp_BCR.shape):
        past = branch[b, c, i - 1] if i else trunk[b, tree.fork_BC[b, c] - 1]
        expected = past[tree.tokens_BCR[b, c, i]] if tree.mask_BCR[b, c, i] else 0.0
        np.testing.assert_allclose(logp_BCR[b, c, i], expected, rtol=1e-5)


def test_the_trunks_scores_are_its_logprobs_and_where_they_are_read():
    segment_BT = jnp.array([[0, 0, 0, 1, 1, 2], [0, 0, 0, 0, 0, 0]])
    trunk_BTD, branch_BCRD, unembed_DV, tree = tree_problem(segment_BT=segment_BT)
    logp_BT, log_z_BT = logprobs.trunk_scores(trunk_BTD, unembed_DV, tree, chunk=3)
    want_BT, _ = logprobs.tree_logprobs(trunk_BTD, branch_BCRD, unembed_DV, tree, chunk=3)
    np.testing.assert_array_equal(logp_BT, want_BT)
    before_BT = np.asarray(jax.nn.logsumexp(trunk_BTD @ unembed_DV, axis=-1))[:, :-1]
    scored_BT = np.asarray(logprobs.scored_mask(tree.mask_BT, segment_BT))
    np.testing.assert_allclose(log_z_BT[:, 1:], before_BT * scored_BT[:, 1:], rtol=1e-5)
    assert (log_z_BT[:, 0] == 0).all() and scored_BT.sum() == 12 - 2 - 1 - 2


def test_tree_logprobs_allow_no_branches():
    logp_BT, logp_BCR = logprobs.tree_logprobs(*tree_problem(C=0), chunk=3)
    assert logp_BT.shape == (B, 6) and logp_BCR.shape == (B, 0, 4)


def test_the_first_token_of_a_segment_is_not_scored():
    segment_BT = jnp.array([[0, 0, 0, 1, 1, 2], [0, 0, 0, 0, 0, 0]])
    logp_BT, _ = logprobs.tree_logprobs(*tree_problem(segment_BT=segment_BT), chunk=3)
    whole_BT, _ = logprobs.tree_logprobs(*tree_problem(), chunk=3)
    expected = whole_BT.at[0, 3].set(0.0).at[0, 5].set(0.0)
    np.testing.assert_array_equal(logp_BT, expected)
    assert whole_BT[0, 3] != 0 and whole_BT[0, 5] != 0


def test_scored_mask_leaves_out_what_has_no_past():
    mask_BT = jnp.array([[True, True, True, True, False]])
    segment_BT = jnp.array([[4, 4, 5, 5, 5]])
    assert logprobs.scored_mask(mask_BT).tolist() == [[False, True, True, True, False]]
    assert logprobs.scored_mask(mask_BT, segment_BT).tolist() == [[False, True, False, True, False]]


def test_padding_never_reaches_tree_logprobs():
    trunk_BTD, branch_BCRD, unembed_DV, tree = tree_problem()
    noisy = tree.replace(
        tokens_BT=jnp.where(tree.mask_BT, tree.tokens_BT, V + 9),
        tokens_BCR=jnp.where(tree.mask_BCR, tree.tokens_BCR, V + 9),
    )
    assert not jnp.array_equal(noisy.tokens_BCR, tree.tokens_BCR)
    clean = logprobs.tree_logprobs(trunk_BTD, branch_BCRD, unembed_DV, tree, chunk=3)
    other = logprobs.tree_logprobs(trunk_BTD, branch_BCRD, unembed_DV, noisy, chunk=3)
    jax.tree.map(np.testing.assert_array_equal, clean, other)


def test_masked_pair_is_the_sum_and_the_count_under_the_mask():
    x, mask = jnp.array([1.0, jnp.nan, 4.0]), jnp.array([True, False, True])
    assert tuple(map(float, logprobs.masked_pair(x, mask))) == (5, 2)
    grad = jax.grad(lambda x: logprobs.masked_pair(x, mask)[0])(x)
    np.testing.assert_array_equal(grad, jnp.array([1.0, 0.0, 1.0]))


def test_sequence_logprob_sums_what_the_mask_shows():
    logp_BCR = jnp.array([[[-1.0, -2.0, jnp.nan], [-3.0, 9.0, 9.0]]])
    mask_BCR = jnp.array([[[True, True, False], [True, False, False]]])
    np.testing.assert_array_equal(
        logprobs.sequence_logprob(logp_BCR, mask_BCR), jnp.array([[-3.0, -3.0]])
    )


def test_logprobs_sharded_over_eight_devices_equal_one_device():
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 devices")
    hidden_BND, unembed_DV, targets_BN = problem()
    args = jnp.tile(hidden_BND, (2, 1, 1)), draw(1, D, 2 * V), jnp.tile(targets_BN, (2, 1))

    def loss(*args):
        return logprobs.chunked_logprobs(*args, chunk=5).sum()

    single = jax.value_and_grad(loss, argnums=(0, 1))(*args)
    mesh = meshes.build(meshes.MeshConfig(2, 2, 2), jax.devices()[:8])
    with jax.set_mesh(mesh):
        kinds = (("BND", meshes.ACT_RULES), ("DV", meshes.PARAM_RULES), ("BN", meshes.ACT_RULES))
        placed = [
            jax.device_put(x, meshes.sharding(mesh, *k)) for x, k in zip(args, kinds, strict=True)
        ]
        many = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*placed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), single, many)
