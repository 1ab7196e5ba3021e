"""Attention within trunks by the kernels of an accelerator: `splash` on TPU, `cudnn` on GPU.

They compute what `layers.trunk_attention` computes, without arrays in the size of the scores.
Branches attend by XLA: a kernel would need the log of the denominator of what it has seen.
`splash` is the Pallas kernel that comes with JAX; `cudnn` is `jax.nn.dot_product_attention` and
knows neither soft caps nor sinks.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from sip import mesh as meshes
from sip.models import layers
from sip.models.config import ModelConfig
from sip.models.layers import Scoring
from sip.structs import UserError

PLATFORMS = {"splash": "tpu", "cudnn": "gpu"}
LANES = 128  # positions of a trunk are padded to a multiple
BLOCKS = (512, 384, 256, 128)  # queries and keys per step of splash


def check(name: str, platform: str) -> None:
    """Raises UserError if devices of `platform` (cpu, gpu, tpu) do not run attention `name`."""
    if not _runs(name, platform):
        raise UserError(
            f"model.attention {name!r} runs on {PLATFORMS[name]} only, not on {platform}; use 'xla'"
        )


def here(cfg: ModelConfig) -> ModelConfig:
    """Returns a checkpoint's model config with attention that this machine runs.

    All kinds of attention have the same parameters, so a model trained by one is read by another.
    """
    if _runs(cfg.attention, jax.default_backend()):
        return cfg
    return dataclasses.replace(cfg, attention="xla")


def _runs(name: str, platform: str) -> bool:
    return name == "xla" or PLATFORMS[name] == platform


def trunk_attention(
    name: str,
    q_BGTQH,
    k_BGTH,
    v_BGTH,
    segment_BT,
    chunk: int,
    window: int,
    full,
    sink_GQ,
    how: Scoring,
):
    """Causal attention within a trunk by `name` (xla, splash or cudnn) -> out_BGTQH.

    The arguments are those of `layers.trunk_attention`; only xla reads `chunk`.
    """
    if name == "xla":
        return layers.trunk_attention(
            q_BGTQH, k_BGTH, v_BGTH, segment_BT, chunk, window, full, sink_GQ, how
        )
    kernel = functools.partial(splash if name == "splash" else cudnn, how=how)
    arrays = q_BGTQH, k_BGTH, v_BGTH, segment_BT, sink_GQ
    if full is None:
        return _sharded(functools.partial(kernel, window=window), *arrays)
    every, near = (functools.partial(kernel, window=w) for w in (0, window))
    return jax.lax.cond(full, *(functools.partial(_sharded, f) for f in (every, near)), *arrays)


def _sharded(kernel, q_BGTQH, k_BGTH, v_BGTH, segment_BT, sink_GQ):
    """Runs a kernel on each device's documents and heads: the compiler cannot cut kernels."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return kernel(q_BGTQH, k_BGTH, v_BGTH, segment_BT, sink_GQ)
    arrays = q_BGTQH, k_BGTH, v_BGTH, segment_BT, sink_GQ
    own = tuple(
        None if x is None else meshes.fitted(x.shape, letters, mesh)
        for x, letters in zip(arrays, ("BGTQH", "BGTH", "BGTH", "BT", "GQ"), strict=True)
    )
    run = jax.shard_map(kernel, mesh=mesh, in_specs=own, out_specs=own[0], check_vma=False)
    return run(*arrays)


def splash(
    q_BGTQH,
    k_BGTH,
    v_BGTH,
    segment_BT,
    sink_GQ,
    *,
    window: int = 0,
    how: Scoring = layers.USUAL,
    interpret: bool = False,
):
    """Causal attention by the Pallas kernel for TPUs -> out_BGTQH.

    Positions are padded to whole blocks. They come last, so that no query sees their keys.
    `interpret` runs the kernel's program on any platform, slowly, for tests.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    B, G, T, Q, H = q_BGTQH.shape
    scale = how.scale or H**-0.5
    q = (q_BGTQH.astype(jnp.float32) * scale).astype(q_BGTQH.dtype)
    q = _padded(q.swapaxes(2, 3).reshape(B, G * Q, T, H), axis=2)
    k, v = (_padded(x, axis=2) for x in (k_BGTH, v_BGTH))
    size = q.shape[2]
    one = library.CausalMask((size, size))
    if window:
        one = library.LocalMask((size, size), (window - 1, 0), 0)
    block = next(n for n in BLOCKS if size % n == 0)
    kernel = library.make_splash_mha(
        library.MultiHeadMask([one] * (G * Q)),
        block_sizes=library.BlockSizes(
            block_q=block,
            block_kv=block,
            block_kv_compute=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=how.cap or None,
        residual_checkpoint_name=layers.ATTENDED,
        interpret=interpret,
    )
    sinks = None if sink_GQ is None else sink_GQ.astype(jnp.float32).reshape(G * Q)
    ids = None
    if segment_BT is not None:
        padded = _padded(segment_BT, axis=1)
        ids = library.SegmentIds(padded, padded)
    out: Any = jax.vmap(lambda q, k, v, ids: kernel(q, k, v, ids, sinks))(q, k, v, ids)
    return out[:, :, :T].reshape(B, G, Q, T, H).swapaxes(2, 3)


def _padded(x, axis: int):
    """Pads an axis with zeros to a multiple of LANES."""
    sizes = [(0, -n % LANES if i == axis else 0) for i, n in enumerate(x.shape)]
    return jnp.pad(x, sizes)


def cudnn(
    q_BGTQH,
    k_BGTH,
    v_BGTH,
    segment_BT,
    sink_GQ,
    *,
    window: int = 0,
    how: Scoring = layers.USUAL,
    implementation: Literal["xla", "cudnn"] = "cudnn",
):
    """Causal attention by cuDNN -> out_BGTQH; `sink_GQ` is None and `how` has no cap.

    With another `implementation` of `jax.nn.dot_product_attention` it runs on any platform, for
    tests.
    """
    del sink_GQ
    B, G, T, Q, H = q_BGTQH.shape
    same = None
    if segment_BT is not None:
        same = (segment_BT[:, :, None] == segment_BT[:, None, :])[:, None]
    out_BTNH = jax.nn.dot_product_attention(
        q_BGTQH.transpose(0, 2, 1, 3, 4).reshape(B, T, G * Q, H),
        k_BGTH.swapaxes(1, 2),
        v_BGTH.swapaxes(1, 2),
        mask=same,
        scale=how.scale or H**-0.5,
        is_causal=True,
        local_window_size=(window - 1, 0) if window else None,
        implementation=implementation,
    )
    return out_BTNH.reshape(B, T, G, Q, H).transpose(0, 2, 1, 3, 4)
