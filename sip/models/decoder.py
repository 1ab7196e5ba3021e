"""The decoder on trunk and branches. `init` and `apply` are pure; the cache is an explicit value.

apply(params, cfg, tree)                   trunk and branches in one pass
apply(params, cfg, tree, keep_cache=True)  the same, and returns their keys and values as a Cache
apply(params, cfg, tree, cache=cache)      further positions of branches whose past is in `cache`

To score whole branches on a cached trunk, pass grow(cache, C, 0): it has no room for a past.
"""

import dataclasses
import functools
import math
import operator
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from sip.mesh import constrain, param_sharding
from sip.models import int8, kernels, layers, lora, moe, visibility
from sip.models.config import DTYPES, ModelConfig
from sip.models.parameters import MATRICES, NORMS, OUTER, RESIDUAL, held, letters
from sip.models.visibility import Context, Layer
from sip.structs import Array, Balance, Capped, Params, Tree, UserError


@flax.struct.dataclass
class Cache:
    """Keys and values of a trunk, shared by its branches, and of each branch's first S positions.

    Branches may differ in length. All write at the same index `length`, so that one slice update
    serves every branch; `seen_BCS` hides the padding of shorter ones.
    """

    trunk_k_LBGTH: Array
    trunk_v_LBGTH: Array
    k_LBGCSH: Array
    v_LBGCSH: Array
    seen_BCS: Array  # True: a real token; False: padding, or not yet written
    length: Array  # int32 scalar, positions written so far, the same for all branches


@flax.struct.dataclass
class Output:
    """Hidden states after the final norm, ready for the unembedding."""

    trunk_BTD: Array  # T = 0 if the trunk came from a cache
    branch_BCRD: Array
    cache: Cache | None
    balance: Balance | None = None  # of all layers; None outside training with `router_aux`


@flax.struct.dataclass
class Lettered(nn.Partitioned):
    """A parameter boxed with its axis letters. Unlike flax's own box, it never treats the letters
    as mesh axes: shardings come from sip.mesh alone."""

    def unbox(self, apply_constraint: bool = True):
        return super().unbox(apply_constraint=False)


def _lettered(letters: str, init) -> Any:
    return lambda *args: Lettered(init(*args), tuple(letters))


def _neutral(letters: str, cfg: ModelConfig) -> Any:
    """The initialiser of an RMSNorm's scale that leaves the normalised values as they are."""
    init = nn.initializers.zeros if cfg.norm_plus_one else nn.initializers.ones
    return _lettered(letters, init)


def _rms_norm(x, scale, cfg: ModelConfig, divisor: float = 1.0):
    scale = 1 + scale if cfg.norm_plus_one else scale
    return layers.rms_norm(x, scale if divisor == 1 else scale / divisor, cfg.norm_eps)


def _weight(letters: str, fan_in: int, scale: float = 1.0) -> Any:
    return _lettered(letters, nn.initializers.truncated_normal(scale * fan_in**-0.5))


def _param(module: nn.Module, name: str, init, shape: tuple[int, ...]):
    """Returns a parameter of `module`: created by `init` at first, then the stored one.

    `nn.Module.param` would trace `init` in every pass, a fifth of the time of a trace, to check the
    shape. Raises ValueError if the stored one is missing or has another shape.
    """
    if module.is_initializing():
        return module.param(name, init, shape)
    value = nn.meta.unbox(module.get_variable("params", name))
    if value is None or value.shape != shape:
        found = "missing" if value is None else f"of shape {value.shape}"
        raise ValueError(f"parameter {name} is {found}; the model's config asks for {shape}")
    return value


ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True)}


class Block(nn.Module):
    """One layer: attention over the tree, then a gated feed-forward layer (arXiv 2002.05202) or
    experts, both residual.

    Returns (x_BND, (k_BGNH, v_BGNH), balance). `balance` are the layer's sums for the balancing
    loss, or None outside training with `router_aux`.
    """

    cfg: ModelConfig

    @nn.compact
    def __call__(self, x_BND, context: Context, past, layer: Layer):
        x_BND = constrain(x_BND, "BND")
        h_BND = self._before(x_BND, "attention_norm")
        attended_BND, kv = self._attention(h_BND, context, past, layer)
        x_BND = x_BND + self._after(attended_BND, "attention_post_norm")
        h_BND = self._before(x_BND, "mlp_norm")
        added_BND, balance = self._experts(h_BND, context) if self.cfg.experts else self._mlp(h_BND)
        return constrain(x_BND + self._after(added_BND, "mlp_post_norm"), "BND"), kv, balance

    def _before(self, x_BND, name):
        """Normalises a sublayer's input unless the config has norms of outputs only."""
        return x_BND if self.cfg.norms == "post" else self._norm(x_BND, name)

    def _after(self, x_BND, name):
        """Normalises a sublayer's output if the config has such norms, and scales it."""
        x_BND = x_BND if self.cfg.norms == "pre" else self._norm(x_BND, name)
        if self.cfg.residual_scale == 1:
            return x_BND
        # In float32: bfloat16 would round the factor, by the same amount in every layer.
        return (x_BND.astype(jnp.float32) * self.cfg.residual_scale).astype(x_BND.dtype)

    def _sizes(self, letters):
        c = self.cfg
        sizes = {
            "D": c.width,
            "G": c.kv_heads,
            "Q": c.queries_per_kv,
            "H": c.head_dim,
            "F": c.hidden,
            "E": c.experts,
        }
        return tuple(sizes[a] for a in letters)

    def _matrix(self, name, scale=1.0):
        own, (reads, _) = letters(name, self.cfg.experts), MATRICES[name]
        init = _weight(own, math.prod(self._sizes(reads)), scale)
        return _param(self, name, init, self._sizes(own)).astype(self.cfg.compute_dtype)

    def _times(self, x, name, scale=1.0):
        """Multiplies x by the matrix `name`, full precision or int8, and adds its LoRA product."""
        # The stored value as it is: an array, an Int8, or None (during init; absent factors).
        held, contract = self.get_variable("params", name), len(MATRICES[name][0])
        if isinstance(held, int8.Int8):
            out = int8.project(x, held, contract=contract)
        else:
            out = layers.project(x, self._matrix(name, scale), contract=contract)
        a, b = (self.get_variable("params", f"{name}_{x}") for x in "ab")
        return out if a is None else out + lora.project(x, a, b, contract=contract)

    def _vector(self, name):
        own = letters(name, self.cfg.experts)
        zeros = _lettered(own, nn.initializers.zeros)
        return _param(self, name, zeros, self._sizes(own)).astype(self.cfg.compute_dtype)

    def _biased(self, x, name, there):
        """Adds the bias `name` to x's last axes if the model family has it (`there`)."""
        return x + self._vector(name)[None, None] if there else x

    def _norm(self, x, name):
        scale = _param(self, name, _neutral(NORMS[name], self.cfg), self._sizes(NORMS[name]))
        return _rms_norm(x, scale, self.cfg)

    def _normed(self, x, name):
        """Normalises queries or keys, each head or all heads at once, if the config says so."""
        if self.cfg.whole_qk_norm:
            return self._norm(x, f"whole_{name}")
        return self._norm(x, name) if self.cfg.qk_norm else x

    def _attention(self, h_BND, context, past, layer):
        c = self.cfg
        depth = (2 * c.layers) ** -0.5  # smaller initial residual outputs: 2 L of them add up
        q, k, v = (self._biased(self._times(h_BND, f"w{x}"), f"b{x}", c.qkv_bias) for x in "qkv")
        # q_BNGQH; k, v_BNGH: trunk and branches are one row of N positions until attention.
        q, k = self._normed(q, "q_norm"), self._normed(k, "k_norm")
        cos, sin = context.turns(layer)
        # Heads before positions, as the products of attention read them.
        q = constrain(layers.rope(q, cos, sin).swapaxes(1, 2), "BGNQH")
        k = constrain(layers.rope(k, cos, sin).swapaxes(1, 2), "BGNH")
        v = constrain(v.swapaxes(1, 2), "BGNH")
        sink_GQ = self._vector("sinks") if c.sinks else None
        out = _tree_attention(q, k, v, context, past, c, layer.full, sink_GQ).swapaxes(1, 2)
        out = self._times(constrain(out, "BNGQH"), "wo", depth)
        return self._biased(out, "bo", c.out_bias), (k, v)

    def _mlp(self, h_BND):
        c = self.cfg
        gate, up = (
            self._biased(self._times(h_BND, f"w_{x}"), f"b_{x}", c.mlp_bias) for x in ("gate", "up")
        )
        h_BNF = constrain(ACTIVATIONS[c.activation](gate) * up, "BNF")
        out_BND = self._times(h_BNF, "w_down", (2 * c.layers) ** -0.5)
        return self._biased(out_BND, "b_down", c.mlp_bias), None

    def _experts(self, h_BND, context):
        c, depth = self.cfg, (2 * self.cfg.layers) ** -0.5
        weights = {x: self._whole(x, depth if x in RESIDUAL else 1.0) for x in moe.MATRICES}
        if c.expert_bias:
            weights |= {x: self._vector(x) for x in moe.BIASES}
        return moe.mixture(h_BND, weights, c, context.mask_BN)

    def _whole(self, name, scale):
        """Returns an expert matrix in the compute dtype, dequantised if it is int8: the grouped
        kernels need one dtype."""
        held = self.get_variable("params", name)
        if isinstance(held, int8.Int8):
            return int8.whole(name, held).astype(self.cfg.compute_dtype)
        return self._matrix(name, scale)


def _tree_attention(q_BGNQH, k_BGNH, v_BGNH, context: Context, past, c, full, sink_GQ):
    """Attention of one layer -> out_BGNQH.

    Trunk positions attend causally within the trunk. Branch positions attend to trunk, past and
    their own branch. Without a cache `past` is None and the trunk is the first T of the N
    positions. With a cache it is (trunk_k, trunk_v, k, v) of the layer and N has branches only.
    """
    (B, G), T, (C, R) = q_BGNQH.shape[:2], context.trunk_len, context.branches

    def branches(x):  # [B, G, N, ..] -> [B, G, C, R, ..]
        return x[:, :, T:].reshape(B, G, C, R, *x.shape[3:])

    trunk = (k_BGNH[:, :, :T], v_BGNH[:, :, :T]) if past is None else past[:2]
    how, outs = layers.Scoring(c.attention_scale, c.attention_cap), []
    rest = c.window, full, sink_GQ, how
    if T:
        q, (k, v), segment_BT = q_BGNQH[:, :, :T], trunk, context.segment_BT
        arrays = q, k, v, segment_BT
        outs.append(kernels.trunk_attention(c.attention, *arrays, c.query_chunk, *rest))
    if C * R:  # static: without branches nothing is traced for them
        trunk_visible, past_visible = context.seen(full)
        out: Any = layers.branch_attention(
            branches(q_BGNQH),
            (branches(k_BGNH), branches(v_BGNH)),
            trunk,
            None if past is None or past_visible is None else past[2:],
            trunk_visible,
            past_visible,
            # Short branches, above all decoding's of one token, take as many queries as a trunk.
            max(c.branch_chunk, c.query_chunk // R),
            *rest,
        )
        outs.append(out.reshape(B, G, C * R, *out.shape[4:]))
    return outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=2)


class Decoder(nn.Module):
    """Embedding, a scan over blocks, and the final norm.

    The layers are one scanned block with parameters stacked on L, so that compile time does not
    grow with depth.
    """

    cfg: ModelConfig

    @nn.compact
    def __call__(self, tree: Tree, cache: Cache | None, keep_cache: bool) -> Output:
        c = self.cfg
        embed_VD = _param(
            self,
            "embed",
            _lettered(OUTER["embed"], nn.initializers.normal(0.02)),
            (c.vocab_size, c.width),
        )
        if c.scalar:
            _param(self, "score", _weight(OUTER["score"], c.width), (c.width, 1))
        elif not c.tied:
            _param(self, "unembed", _weight(OUTER["unembed"], c.width), (c.width, c.vocab_size))
        B, T = tree.tokens_BT.shape
        C, R = tree.tokens_BCR.shape[1:]
        tokens_BN = tree.tokens_BCR.reshape(B, C * R)
        if cache is None:
            tokens_BN = jnp.concatenate([tree.tokens_BT, tokens_BN], axis=1)
        # Unshard D before the lookup. The table has D over fsdp, and the result needs fsdp for B:
        # an fsdp-sharded lookup would produce a result with B unsharded.
        table_VD = constrain(embed_VD.astype(c.compute_dtype), "VD")
        x_BND = constrain(table_VD[tokens_BN], "BND")
        x_BND = x_BND if c.embed_scale == 1 else x_BND * c.embed_scale
        context = visibility.context(tree, c, cache)
        past = (
            None
            if cache is None
            else (cache.trunk_k_LBGTH, cache.trunk_v_LBGTH, cache.k_LBGCSH, cache.v_LBGCSH)
        )
        run, kinds = _blocks(c, keep_cache), visibility.layers_L(c)
        apart = self.get_variable("params", "blocks")
        if isinstance(apart, tuple):  # `laid_apart`
            x_BND, (kv, balance) = _one_by_one(c, apart, x_BND, context, past, kinds)
        else:
            x_BND, (kv, balance) = run(c, name="blocks")(x_BND, context, past, kinds)
        scale = _param(self, "final_norm", _neutral(OUTER["final_norm"], c), (c.width,))
        # The logits' divisor is applied here, while the numbers are float32.
        x_BND = _rms_norm(x_BND, scale, c, c.logit_divisor)
        start = context.trunk_len
        branch = x_BND[:, start:].reshape(B, C, R, c.width)
        if cache is not None and isinstance(apart, tuple):
            cache = dataclasses.replace(cache, length=_after(cache.length, branch))
        new = _cache(cache, kv, start, tree.mask_BCR) if keep_cache else None
        return Output(x_BND[:, :start], branch, new, balance)


class _Scanned(nn.Module):
    """A block as a scan body. Without `keep` it drops keys and values, which the scan would
    otherwise stack to [L, B, G, N, H]."""

    cfg: ModelConfig
    keep: bool

    @nn.compact
    def __call__(self, x_BND, context, past, layer):
        x_BND, kv, balance = Block(self.cfg, name="block")(x_BND, context, past, layer)
        return x_BND, (kv if self.keep else None, balance)


def _blocks(cfg: ModelConfig, keep: bool):
    # prevent_cse is not needed inside a scan: XLA cannot merge work across its iterations.
    body: Any = _Scanned
    if cfg.remat != "none":
        policies = jax.checkpoint_policies
        dots = policies.save_from_both_policies(
            policies.checkpoint_dots_with_no_batch_dims,
            policies.save_only_these_names(layers.ATTENDED),
        )
        body = nn.remat(body, policy=dots if cfg.remat == "dots" else None, prevent_cse=False)
    scan: Any = nn.scan
    scanned = scan(
        body,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(nn.broadcast, 0, 0),  # context for all layers; past and kind by layer
        length=cfg.layers,
        # The check traces the block a second time; no output or parameter here depends on it.
        check_constancy_invariants=False,
        metadata_params={nn.PARTITION_NAME: "L"},
    )
    return lambda c, name: scanned(c, keep, name=name)


def _one_by_one(cfg: ModelConfig, blocks, x_BND, context, past, kinds: Layer):
    """Runs layers that are `laid_apart` -> (x_BND, (keys and values by layer, None))."""
    k_L, v_L = [], []
    for i, params in enumerate(blocks):
        layer = jax.tree.map(operator.itemgetter(i), kinds)
        own = tuple(x_L[i] for x_L in past)
        block: Any = Block(cfg, parent=None)
        x_BND, (k, v), _ = block.apply({"params": params}, x_BND, context, own, layer)
        k_L, v_L = [*k_L, k], [*v_L, v]
    return x_BND, ((tuple(k_L), tuple(v_L)), None)


def _after(index, done):
    """Returns `index` as a value that depends on `done`, an array with at least one element.

    What is written at it is written after `done` was computed. The decoding loop replaces the
    caches that its layers read: XLA on CPU copies each of them in every step unless it knows that
    the reads come first. It removes an optimization barrier before it asks.
    """
    one = done.ravel()[0]
    never = (one != one) & (one == one)  # false also for NaN
    return index + never.astype(index.dtype)


def laid_apart(params: Params, cache: Cache) -> tuple[Params, Cache]:
    """Returns parameters and cache with a tuple of arrays by layer in place of each stacked one.

    A scan over layers slices the stacks. XLA on CPU copies the slices, so a decoding step would
    copy all matrices and caches; the layers laid apart before the loop are read in place.
    """
    params = lora.flat(params)
    by_layer = lambda x_L: tuple(x_L[i] for i in range(x_L.shape[0]))
    block = params["blocks"]["block"]
    count = cache.k_LBGCSH.shape[0]
    blocks = tuple(jax.tree.map(operator.itemgetter(i), block) for i in range(count))
    stacks = ("trunk_k_LBGTH", "trunk_v_LBGTH", "k_LBGCSH", "v_LBGCSH")
    apart = {name: by_layer(getattr(cache, name)) for name in stacks}
    return {**params, "blocks": blocks}, dataclasses.replace(cache, **apart)


def _cache(cache: Cache | None, kv, T: int, mask_BCR) -> Cache:
    """Returns the cache after this pass.

    It is written here, once, from the stacked keys and values of all layers. The layer scan only
    reads the cache: a scan that updated it would copy all of it.
    """
    C, R = mask_BCR.shape[1:]

    def own(x):  # [.., N, H] -> [.., C, R, H]
        return x[..., T:, :].reshape(*x.shape[:-2], C, R, x.shape[-1])

    k, v = jax.tree.map(own, kv)  # [L, B, G, C, R, H], or [B, G, C, R, H] by layer
    if cache is None:
        trunk_k, trunk_v = (x[..., :T, :] for x in kv)
        return Cache(trunk_k, trunk_v, k, v, mask_BCR, jnp.int32(R))

    def written(old, new):
        at = (*(0 for _ in old.shape[:-2]), cache.length, 0)
        return jax.lax.dynamic_update_slice(old, new, at)

    return dataclasses.replace(
        cache,
        k_LBGCSH=jax.tree.map(written, cache.k_LBGCSH, k),
        v_LBGCSH=jax.tree.map(written, cache.v_LBGCSH, v),
        seen_BCS=jax.lax.dynamic_update_slice(cache.seen_BCS, mask_BCR, (0, 0, cache.length)),
        length=cache.length + R,
    )


def grow(cache: Cache, C: int, R: int) -> Cache:
    """Returns the cache of the same trunk with C empty branches and room for R positions each."""
    L, B, G, _, H = cache.trunk_k_LBGTH.shape
    empty = constrain(jnp.zeros((L, B, G, C, R, H), cache.trunk_k_LBGTH.dtype), "LBGCRH")
    unseen = constrain(jnp.zeros((B, C, R), bool), "BCR")
    return dataclasses.replace(
        cache, k_LBGCSH=empty, v_LBGCSH=empty, seen_BCS=unseen, length=jnp.int32(0)
    )


def widened(cache: Cache, R: int) -> Cache:
    """Returns the cache with room for R more positions of each branch; it may be `laid_apart`."""

    def wide(x):  # S is the last axis but one of keys and values
        x = jnp.pad(x, [*[(0, 0)] * (x.ndim - 2), (0, R), (0, 0)])
        return constrain(x, "LBGCRH") if x.ndim == 6 else x

    seen = jnp.pad(cache.seen_BCS, ((0, 0), (0, 0), (0, R)))
    return dataclasses.replace(
        cache,
        k_LBGCSH=jax.tree.map(wide, cache.k_LBGCSH),
        v_LBGCSH=jax.tree.map(wide, cache.v_LBGCSH),
        seen_BCS=constrain(seen, "BCR"),
    )


def fan(cache: Cache, J: int, R: int) -> Cache:
    """Returns a cache with each branch repeated J times and room for R more positions.

    C becomes C * J: copy j of branch c is branch c * J + j.
    """

    repeated = dataclasses.replace(
        cache,
        k_LBGCSH=jnp.repeat(cache.k_LBGCSH, J, axis=3),
        v_LBGCSH=jnp.repeat(cache.v_LBGCSH, J, axis=3),
        seen_BCS=jnp.repeat(cache.seen_BCS, J, axis=1),
    )
    return widened(repeated, R)


def _example() -> Tree:
    """Returns the smallest tree, 1 trunk token and no branch, for flax's `init`."""
    one = jnp.ones((1, 1), jnp.int32)
    empty = jnp.zeros((1, 0, 1), jnp.int32)
    return Tree(one, one > 0, empty, empty > 0, jnp.ones((1, 0), jnp.int32))


def _boxed(cfg: ModelConfig, key):
    # Parameter shapes do not depend on the tree, so the smallest one traces fastest.
    boxed = Decoder(cfg).init(key, _example(), None, False)["params"]
    return held(boxed, DTYPES[cfg.param_dtype])


@functools.cache
def _shapes(cfg: ModelConfig):
    """Returns the shapes of boxed parameters. Tracing them takes as long as tracing the model."""
    return jax.eval_shape(lambda: _boxed(cfg, jax.random.key(0)))


def init(cfg: ModelConfig, key) -> Params:
    """Returns fresh parameters.

    Matrices are truncated normal with deviation fan_in^-1/2, those that write to the residual
    stream smaller by 1/sqrt(2L). Embeddings are normal with deviation 0.02.
    """
    return nn.meta.unbox(_boxed(cfg, key))


def deepen(params: Params, cfg: ModelConfig) -> Params:
    """Extends parameters of a shallower model to `cfg.layers` layers without changing its output.

    The new top layers are copies of its layers with zero output matrices (arXiv 2401.02415, which
    interleaves them). This lets a judge start from a policy with fewer layers. Copies learn faster
    than fresh layers: their attention heads already attend to useful positions.
    """
    blocks = _deepened(params["blocks"]["block"], cfg.layers)
    return {**params, "blocks": {"block": blocks}}


@functools.partial(jax.jit, static_argnums=1)  # one program, not one for each operation and shape
def _deepened(blocks: dict[str, Any], layers: int) -> dict[str, Any]:
    def more(name, old):
        at = np.arange(old.shape[0], layers) % old.shape[0]  # layers to copy, bottom first
        new = jnp.zeros_like(old[at]) if name in RESIDUAL else old[at]
        return jnp.concatenate([old, new])

    return {k: jax.tree.map(functools.partial(more, k), v) for k, v in blocks.items()}


def abstract(cfg: ModelConfig, mesh) -> Params:
    """Returns shapes, dtypes and shardings of the parameters; allocates nothing."""

    def leaf(path, box):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        place = param_sharding(mesh, "".join(box.names), box.value.shape, name)
        return jax.ShapeDtypeStruct(box.value.shape, box.value.dtype, sharding=place)

    boxed = _shapes(cfg)
    return jax.tree_util.tree_map_with_path(leaf, boxed, is_leaf=lambda x: isinstance(x, Lettered))


def apply(
    params: Params,
    cfg: ModelConfig,
    tree: Tree,
    *,
    cache: Cache | None = None,
    keep_cache: bool | None = None,
) -> Output:
    """Returns hidden states of trunk and branches.

    With a `cache`, only the branch positions of `tree` are computed; they follow those in the
    cache. `keep_cache` returns a cache that includes this pass; its default is True with a `cache`,
    else False.
    """
    keep_cache = cache is not None if keep_cache is None else keep_cache
    out: Any = Decoder(cfg).apply({"params": lora.flat(params)}, tree, cache, keep_cache)
    return out


def with_score(params: Params, cfg: ModelConfig, key) -> Params:
    """Returns the parameters of a reward model with the layers of a language model: a fresh head
    in place of the unembedding."""
    fresh = nn.initializers.truncated_normal(cfg.width**-0.5)
    kept = {name: x for name, x in params.items() if name != "unembed"}
    return {**kept, "score": fresh(key, (cfg.width, 1), DTYPES[cfg.param_dtype])}


def scores(params: Params, branch_BCRD: Array, mask_BCR: Array) -> Array:
    """Returns reward_BC of a reward model, read at each branch's last token; float32.

    The mask says which token is the last, so padding may have the id of EOS. The value of an empty
    branch is meaningless.
    """
    last_BC = jnp.maximum(mask_BCR.sum(-1) - 1, 0)
    hidden_BCD = jnp.take_along_axis(branch_BCRD, last_BC[:, :, None, None], axis=2)[:, :, 0]
    score_DO = lora.base_of(params)["score"].astype(jnp.float32)
    return jnp.einsum("BCD,DO->BCO", hidden_BCD.astype(jnp.float32), score_DO)[..., 0]


def unembed_DV(params: Params, cfg: ModelConfig) -> Array:
    """Returns the unembedding matrix. Logits also need `cfg.final_cap`.

    Raises UserError for a reward model, which has none.
    """
    if cfg.scalar:
        raise UserError(
            "the model is a reward model (model.scalar): it scores texts and cannot write or "
            "choose words; name a language model"
        )
    params = lora.base_of(params)
    return params["embed"].T if cfg.tied else params["unembed"]


def unembed(params: Params, cfg: ModelConfig) -> Array | Capped:
    """Returns the unembedding for sip.objectives.logprobs: a matrix, with its soft cap if any."""
    found = unembed_DV(params, cfg)
    return Capped(found, cfg.final_cap) if cfg.final_cap else found


def count(cfg: ModelConfig) -> int:
    """Returns the number of parameters; allocates nothing."""
    return sum(x.size for x in jax.tree.leaves(_shapes(cfg)))
