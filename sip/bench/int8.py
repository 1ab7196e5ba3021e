"""Measures how int8 and bfloat16 storage change a judge's verdicts on labelled prompts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sip import mesh
from sip.bench.flags import JSON, JUDGE
from sip.bench.trained_judge import held_out
from sip.hf import hub
from sip.judge.labels import ground_truth as labels
from sip.judge.labels.ground_truth import LabelledPrompts
from sip.loading import LoadedModel, load_model
from sip.models import int8
from sip.structs import UserError
from sip.textgen.local import Local
from sip.workdir import to_json

Load = Callable[[str], LoadedModel]  # takes one of sip.models.config.STORAGE_DTYPES


def measure(
    load: Load, asked: Mapping[str, LabelledPrompts], dtypes: Sequence[str]
) -> dict[str, Any]:
    """Compares the verdicts of each storage dtype with those of float32.

    Returns {dtype: {bytes, bytes_float32, aspects: {aspect: differences}}}; see `differences`.
    """
    logp, whole = _asked(load, asked, "float32")
    found = {}
    for dtype in dtypes:
        other, size = _asked(load, asked, dtype)
        aspects = {k: differences(asked[k], logp[k], other[k]) for k in asked}
        found[dtype] = {"bytes": size, "bytes_float32": whole, "aspects": aspects}
    return found


def _asked(load: Load, asked, dtype: str):
    """Returns (logp_NCO by aspect, bytes of the parameters)."""
    model = load(dtype)
    judge = Local(model)
    return {k: _verdicts(judge, x) for k, x in asked.items()}, int8.size(model.params)


def _verdicts(judge: Local, asked: LabelledPrompts) -> np.ndarray:
    trunks, branches = zip(*asked.prompts, strict=True)
    return judge.choose(trunks, branches, asked.aspect.options)


def differences(
    asked: LabelledPrompts, logp_NCO: np.ndarray, other_NCO: np.ndarray
) -> dict[str, float]:
    """Compares the verdicts of two judges on N prompts with C branches and O options.

    Args:
        asked: The labelled prompts.
        logp_NCO: Log-probabilities of the float32 judge; NaN for branches that do not exist.
        other_NCO: Log-probabilities of the other judge.

    Returns:
        `verdicts` (number M of answered prompts), `largest` and `mean` absolute difference of
        probabilities, `flips` (verdicts whose most likely option differs), `accuracy_float32` and
        `accuracy`.
    """
    answered_NC = ~np.isnan(logp_NCO).any(-1)
    p_MO, other_MO = (_probabilities(x[answered_NC]) for x in (logp_NCO, other_NCO))
    apart_MO = np.abs(p_MO - other_MO)
    return {
        "verdicts": int(answered_NC.sum()),
        "largest": float(apart_MO.max()),
        "mean": float(apart_MO.mean()),
        "flips": int((p_MO.argmax(-1) != other_MO.argmax(-1)).sum()),
        "accuracy_float32": _accuracy(asked, logp_NCO),
        "accuracy": _accuracy(asked, other_NCO),
    }


def _probabilities(logp_MO: np.ndarray) -> np.ndarray:
    # The options are a part of the vocabulary, so their probabilities are normalised to sum to 1.
    p_MO = np.exp(logp_MO - logp_MO.max(-1, keepdims=True))
    return p_MO / p_MO.sum(-1, keepdims=True)


def _accuracy(asked: LabelledPrompts, logp_NCO: np.ndarray) -> float:
    said_NC = np.where(np.isnan(logp_NCO).any(-1), -1, logp_NCO.argmax(-1))
    total, denom = labels.right(asked, said_NC)[asked.aspect.name]
    return total / denom


def bench_int8() -> None:
    """Runs the `int8` benchmark on the judge's test split and prints its result."""
    if not JUDGE.value:
        raise UserError("int8: --judge is needed")
    directory, where = hub.local(str(JUDGE.value)), mesh.single()
    load = lambda dtype: load_model(directory, where, dtype)
    found = measure(load, held_out(directory), ("int8", "bfloat16"))
    if JSON.value:
        return print(to_json(found))
    for dtype, f in found.items():
        print(f"{dtype}: {f['bytes']:,} bytes of parameters, float32 {f['bytes_float32']:,}")
        for name, a in f["aspects"].items():
            print(
                f"  {name}, {a['verdicts']} verdicts: probabilities differ by at most "
                f"{a['largest']:.4f}, {a['mean']:.5f} on average; {a['flips']} flips; accuracy "
                f"{a['accuracy_float32']:.4f} -> {a['accuracy']:.4f}"
            )
