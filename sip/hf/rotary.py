"""Rotary positions in config.json <-> those of ModelConfig.

transformers 4 writes rope_theta and rope_scaling, transformers 5 writes rope_parameters. Families
with other frequencies in layers with a window have rope_parameters for either kind of layer.
"""

from typing import Any

from sip.hf.fields import NEEDED, take
from sip.models import rope
from sip.models.config import ModelConfig
from sip.structs import UserError

NEAR, FULL = "sliding_attention", "full_attention"
FIELDS = {  # by scaling type: {our field: (config.json field, default)}; None means required
    "default": {},
    "linear": {"rope_factor": ("factor", None)},
    "llama3": {
        "rope_factor": ("factor", None),
        "rope_original_len": ("original_max_position_embeddings", None),
        "rope_low": ("low_freq_factor", None),
        "rope_high": ("high_freq_factor", None),
    },
    "yarn": {
        "rope_factor": ("factor", None),
        "rope_original_len": ("original_max_position_embeddings", None),
        "rope_fast": ("beta_fast", 32.0),
        "rope_slow": ("beta_slow", 1.0),
        "rope_truncate": ("truncate", True),
    },
}
THETA = {"mixtral": 1e6, "smollm3": 2e6, "olmo3": 5e5, "gemma3_text": 1e6}  # others: 1e4


def read(left, family: str) -> dict[str, Any]:
    """Reads rotary positions that are the same in all layers."""
    new, old = (_object(left, key) for key in ("rope_parameters", "rope_scaling"))
    said = dict(new or old or {})
    if new and old and {**new, "rope_theta": None} != {**old, "rope_theta": None}:
        raise UserError("rope_parameters and rope_scaling differ")
    usual = THETA[family] if family in THETA else 10000.0
    theta = _theta(left, said, usual)
    kind = said.pop("rope_type", said.pop("type", "default"))
    if not isinstance(kind, str) or kind not in FIELDS:
        raise UserError(f"rope_scaling of type {kind!r} is not supported")
    return {"rope_theta": theta} | _scaling(said, kind)


def _theta(left, said, usual: float) -> float:
    """Reads the base, which may stand in config.json, in its rope fields, or in both."""
    theta = take(left, "rope_theta", float, said.get("rope_theta", usual))
    if said.pop("rope_theta", theta) != theta:
        raise UserError("rope_theta differs from that of rope_parameters")
    return theta


def _object(left, key: str) -> dict | None:
    found = left.pop(key, None)
    if not isinstance(found, dict | None):
        raise UserError(f"{key} is {found!r}, not an object (or null)")
    return found


def _scaling(said, kind) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if said.pop("partial_rotary_factor", 1.0) != 1.0:
        raise UserError("rope_scaling.partial_rotary_factor is not supported")
    for ours, (theirs, default) in FIELDS[kind].items():
        needed = {"rope_original_len": int, "rope_truncate": bool}
        given = NEEDED if default is None else default
        found[ours] = take(said, theirs, needed[ours] if ours in needed else float, given)
    if kind == "yarn":
        if said.get("attention_factor", 0) is None:
            del said["attention_factor"]
        usual = rope.yarn_gain(found["rope_factor"])
        found["rope_gain"] = take(said, "attention_factor", float, usual)
    if said:
        raise UserError(f"rope_scaling.{min(said)} is not supported by type {kind!r}")
    return found if kind == "default" else {"rope_scaling": kind, **found}


def read_two(left, family: str, window: dict[str, int]) -> dict[str, Any]:
    """Reads rotary positions of layers with and without a window (`window`: which there are).

    Layers with a window have a base of their own and no scaling.
    """
    new = left.pop("rope_parameters", None)
    if not isinstance(new, dict | None) or new and not set(new) <= {NEAR, FULL}:
        raise UserError(f"rope_parameters is {new!r}; must be an object with {NEAR} and {FULL}")
    if not new and family == "olmo3" and left.get("rope_theta", THETA[family]) != THETA[family]:
        # transformers 4 takes it for all layers, transformers 5 for those without a window.
        raise UserError(
            f"rope_theta {left['rope_theta']!r}: versions of transformers read it in two ways; "
            "write rope_parameters"
        )
    far, near = (dict(_object(dict(new or {}), kind) or {}) for kind in (FULL, NEAR))
    if far:
        left["rope_parameters"] = far
    found = read(left, family)
    if family == "gemma3_text":
        theta = take(left, "rope_local_base_freq", float, near.get("rope_theta", 10000.0))
    else:
        theta = take(dict(near), "rope_theta", float, THETA[family])
    if near.pop("rope_theta", theta) != theta:
        raise UserError(f"rope_local_base_freq differs from that of rope_parameters.{NEAR}")
    if not theta > 1:
        raise UserError(f"rope_theta of layers with a window is {theta}; must be above 1")
    if near.pop("rope_type", "default") != "default" or near:
        raise UserError(f"rope_parameters.{NEAR}: a scaling is not supported there")
    if window and not window["full_every"]:
        return {"rope_theta": theta}
    same = not window or (theta == found["rope_theta"] and "rope_scaling" not in found)
    return found if same else found | {"rope_local_theta": theta}


def to_json(cfg: ModelConfig) -> dict[str, Any]:
    """Returns the fields of rotary positions that are the same in all layers."""
    said = _said(cfg)
    found: dict[str, Any] = {"rope_theta": cfg.rope_theta}
    found["rope_parameters"] = {**said, "rope_theta": cfg.rope_theta}
    return found if cfg.rope_scaling == "none" else found | {"rope_scaling": said}


def _said(cfg: ModelConfig) -> dict[str, Any]:
    kind = "default" if cfg.rope_scaling == "none" else cfg.rope_scaling
    said = {theirs: getattr(cfg, ours) for ours, (theirs, _) in FIELDS[kind].items()}
    if kind == "yarn":
        said["attention_factor"] = cfg.rope_gain
    return {"rope_type": kind, **said}


def two_to_json(cfg: ModelConfig, family: str) -> dict[str, Any]:
    """Returns the fields of rotary positions of layers with and without a window."""
    theta = cfg.rope_local_theta or cfg.rope_theta
    found = to_json(cfg)
    far, near = found["rope_parameters"], {"rope_type": "default", "rope_theta": theta}
    found["rope_parameters"] = {FULL: far, NEAR: near}
    return found | ({"rope_local_base_freq": theta} if family == "gemma3_text" else {})


def read_phi(left, found: dict[str, Any]) -> dict[str, Any]:
    """Reads Phi's rotary positions: some channels of a head, with longrope or without scaling.

    With longrope `max_len` becomes the trained length, since other divisors hold beyond it.
    """
    new, old = (_object(left, key) for key in ("rope_parameters", "rope_scaling"))
    said = dict(old or new or {})  # as transformers does
    part = take(left, "partial_rotary_factor", float, said.get("partial_rotary_factor", 1.0))
    if not 0 < part <= 1:
        raise UserError(f"partial_rotary_factor is {part}; must be above 0 and at most 1")
    if said.pop("partial_rotary_factor", part) != part:
        raise UserError("partial_rotary_factor differs from that of rope_parameters")
    theta = _theta(left, said, 10000.0)
    dims = int(found["head_dim"] * part)
    if dims < 2 or dims % 2:
        raise UserError(f"partial_rotary_factor {part} rotates {dims} channels; must be even")
    ours = {"rope_theta": theta, "rope_dims": dims if dims < found["head_dim"] else 0}
    trained = take(left, "original_max_position_embeddings", int, 0)
    kind = said.pop("rope_type", said.pop("type", "default"))
    if kind == "default":
        said.pop("original_max_position_embeddings", None)
    elif kind in ("longrope", "su", "yarn"):  # the three names of longrope in files of Phi 3
        ours |= _longrope(said, trained, found["max_len"])
    else:
        raise UserError(f"rope_scaling of type {kind!r} is not supported by phi3")
    if said:
        raise UserError(f"rope_scaling.{min(said)} is not supported by type {kind!r}")
    return ours


def _longrope(said, trained: int, longest: int) -> dict[str, Any]:
    original = take(said, "original_max_position_embeddings", int, trained or NEEDED)
    if trained not in (0, original):
        raise UserError("original_max_position_embeddings differs from that of rope_scaling")
    if original < 2:
        raise UserError(f"original_max_position_embeddings is {original}; must be at least 2")
    for key in ("factor", "attention_factor"):
        if said.get(key, 0) is None:
            del said[key]
    factor = take(said, "factor", float, longest / original)
    return {
        "rope_scaling": "longrope",
        "rope_factor": max(factor, 1.0),
        "rope_original_len": original,
        "rope_gain": take(said, "attention_factor", float, rope.longrope_gain(factor, original)),
        "rope_short": _numbers(said, "short_factor"),
        "rope_long": _numbers(said, "long_factor"),
        "max_len": min(longest, original),
    }


def _numbers(said, key: str) -> tuple[float, ...]:
    found = said.pop(key, None)
    number = lambda x: isinstance(x, int | float) and not isinstance(x, bool)
    if not isinstance(found, list) or not all(map(number, found)):
        raise UserError(f"rope_scaling.{key} is {found!r}, not a list of numbers")
    return tuple(map(float, found))


def phi_to_json(cfg: ModelConfig) -> dict[str, Any]:
    """Returns the fields of Phi's rotary positions."""
    found: dict[str, Any] = {
        "rope_theta": cfg.rope_theta,
        "partial_rotary_factor": cfg.rotated / cfg.head_dim,
        "original_max_position_embeddings": cfg.rope_original_len or cfg.max_len,
        "rope_scaling": None,
    }
    if cfg.rope_scaling == "none":
        return found
    # transformers takes the factor from the two lengths, and the gain from the factor.
    longest = min(cfg.max_len, cfg.rope_original_len)
    if cfg.rope_factor > 1:
        longest = round(cfg.rope_factor * cfg.rope_original_len)
    said = {"type": "longrope", "short_factor": list(cfg.rope_short)}
    said |= {"long_factor": list(cfg.rope_long)}
    if max(longest / cfg.rope_original_len, 1.0) != cfg.rope_factor:
        said["factor"] = cfg.rope_factor
    if rope.longrope_gain(cfg.rope_factor, cfg.rope_original_len) != cfg.rope_gain:
        said["attention_factor"] = cfg.rope_gain
    return found | {"max_position_embeddings": longest, "rope_scaling": said}
