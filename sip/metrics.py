"""Additive metrics, written to metrics.jsonl, TensorBoard and a progress bar.

A metric is a pair (total, denom). Pairs are added over microbatches, devices and steps
(`sip.training.loop.totals`) and divided once, here. A metric with denom 0 has no value and is left
out. A correlation is five such pairs, the moments of its two variables, until it is computed here.
"""

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm
from etils import epath

from sip import processes
from sip.workdir import to_json, write_atomically

LOSS, SPEED = "loss/total", "speed/tokens_per_sec"  # shown in the progress bar
SECONDS = "speed/seconds"  # seconds between two lines of the log
MOMENT = "|"  # separates a correlation's name from the name of a moment
MOMENTS = ("x", "y", "xx", "yy", "xy")
STILL = 1e-10  # relative to the mean square: a smaller variance is rounding error
QUIET_SECS = 30.0  # seconds between progress lines if stderr is not a terminal


# Names that dashboards for TRL expect -> ours. Written beside our own names with `log.aliases`, to
# TensorBoard and trackers. Only metrics that mean the same are listed.
ALIASES = {
    "loss": LOSS,
    "grad_norm": "grad/norm",
    "reward": "reward/all",
    "frac_reward_zero_std": "rl/flat_groups",
    "clip_ratio": "clip_fraction",
    "clip_ratio/region_mean": "clip_fraction",
    "entropy": "rl/entropy",
    "completions/mean_length": "rl/answer_tokens",
    "completions/clipped_ratio": "rl/cut",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "logps/chosen": "chosen_logp",
    "logps/rejected": "rejected_logp",
}
OF_RL = "reward/all"  # a line with it is one of policy gradients; its other rewards are parts


def aliased(numbers: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics of a line that have another name in TRL, by that name.

    A reward NAME of policy gradients is rewards/NAME/mean there.
    """
    found = {alias: numbers[ours] for alias, ours in ALIASES.items() if ours in numbers}
    if OF_RL in numbers:
        parts = (key for key in numbers if key.count("/") == 1 and key != OF_RL)
        own = (key for key in parts if key.startswith("reward/"))
        found |= {f"rewards/{key.partition('/')[2]}/mean": numbers[key] for key in own}
    return found


def pair(x, mask=None) -> tuple[float, float]:
    """Returns (total, denom) of a numpy array: sum and size of its entries under `mask`.

    `mask` is a boolean array of x's shape or of its leading axes; None means all entries.
    Masked-out entries may be NaN.
    """
    x = np.asarray(x)
    part = x if mask is None else x[np.broadcast_to(mask, x.shape) if mask.ndim == x.ndim else mask]
    return float(part.sum()), float(part.size)


def ratio(pair: tuple) -> float | None:
    """Returns total / denom, or None if denom is 0."""
    total, denom = float(pair[0]), float(pair[1])
    return total / denom if denom else None


def moments(name: str, x_N: np.ndarray, y_N: np.ndarray) -> dict[str, tuple[float, float]]:
    """Returns the five moments of the correlation `name` of x_N and y_N, as (total, denom) pairs.

    Unlike correlations, moments of several steps can be added.
    """
    products = (x_N, y_N, x_N * x_N, y_N * y_N, x_N * y_N)
    n = float(len(x_N))
    return {
        f"{name}{MOMENT}{key}": (float(p_N.sum()), n)
        for key, p_N in zip(MOMENTS, products, strict=True)
    }


def correlation(x: float, y: float, xx: float, yy: float, xy: float) -> float | None:
    """Returns Pearson's correlation from the means of x, y and their products.

    None if x or y does not vary.
    """
    var_x, var_y = xx - x * x, yy - y * y
    if var_x <= STILL * xx or var_y <= STILL * yy:
        return None
    # Rounding can lead slightly beyond +-1.
    return max(-1.0, min(1.0, (xy - x * y) / math.sqrt(var_x * var_y)))


def values(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Converts numbers and (total, denom) pairs to floats, and moments to their correlation.

    Metrics with denom 0 are left out.
    """
    ratios = {k: ratio(v) if isinstance(v, tuple) else float(v) for k, v in metrics.items()}
    found = {k: v for k, v in ratios.items() if v is not None}
    plain = {k: v for k, v in found.items() if MOMENT not in k}
    for name in dict.fromkeys(k.partition(MOMENT)[0] for k in found if MOMENT in k):
        value = correlation(*(found[f"{name}{MOMENT}{key}"] for key in MOMENTS))
        plain |= {} if value is None else {name: value}
    return plain


def read(run_dir: str | os.PathLike) -> list[dict]:
    """Returns the lines of a run's metrics.jsonl that can be read.

    A killed run or a power cut leaves an incomplete or empty line, which has no step.
    """
    return read_steps(epath.Path(run_dir) / "metrics.jsonl")


def read_steps(path) -> list[dict]:
    """Returns the lines of a JSON Lines file that are objects with a step; none without a file."""
    return [row for row, _ in _rows(epath.Path(path))]


def _rows(path) -> list[tuple[dict, str]]:
    """Returns (object, its line) of each line that can be read and has a step."""
    if not path.exists():
        return []
    text = path.read_bytes().decode(errors="replace")
    lines = [line.strip("\0") for line in text.split("\n")[:-1]]  # the last is "" or incomplete
    rows = ((_row(line), line) for line in lines)
    return [(row, line) for row, line in rows if row is not None]


def _row(line: str) -> dict | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and type(found.get("step")) is int else None


def appends(path) -> bool:
    """Returns True if a file at `path` can be appended to; objects in a store are rewritten."""
    return "://" not in str(path)


class StepLines:
    """Appends objects with a step to a JSON Lines file of a run, on process 0 alone.

    Lines after `resume_step` are dropped, since those steps run again; None starts from nothing.
    The file is made when the first line is written.
    """

    def __init__(self, path, resume_step: int | None = None):
        self.path, self._lead = epath.Path(path), processes.lead()
        self._kept = ""  # of an object in a store, which cannot be appended to
        if self._lead:
            self._keep(-1 if resume_step is None else resume_step)

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends objects; numbers that are not finite become null."""
        if not self._lead:
            return
        text = "".join(to_json(row, ensure_ascii=False) + "\n" for row in rows)
        if not text:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if appends(self.path):
            with open(self.path, "ab") as file:  # closed at once: a killed run loses no line
                file.write(_utf8(text))
        else:
            self._kept += text
            self.path.write_bytes(_utf8(self._kept))

    def size(self) -> int:
        """Returns the size of the file in bytes; 0 on other processes."""
        return self.path.stat().length if self._lead and self.path.exists() else 0

    def rewrite(self, keep: Callable[[dict], bool]) -> None:
        """Drops the lines that `keep` is false of."""
        if not self._lead:
            return
        text = "".join(f"{line}\n" for row, line in _rows(self.path) if keep(row))
        write_atomically(self.path, _utf8(text))
        self._kept = "" if appends(self.path) else text

    def _keep(self, last_step: int) -> None:
        """Drops the lines after `last_step`. Unreadable lines are dropped too, and counted."""
        if not self.path.exists():
            return
        lines, rows = self.path.read_bytes().count(b"\n"), len(_rows(self.path))
        if lines > rows:
            print(f"{self.path}: {lines - rows} unreadable lines are dropped", file=sys.stderr)
        self.rewrite(lambda row: row["step"] <= last_step)


def _utf8(text: str) -> bytes:
    return text.encode(errors="replace")  # a lone surrogate becomes "?"


class Writer:
    """Writes one run's metrics; step 1 is the first update.

    Lines after `resume_step` are dropped, since those steps run again; None starts from nothing.
    With several processes only process 0 writes. `sinks` (sip/training/sinks.py) get the same
    numbers, with `aliases` also by the names of ALIASES.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike,
        *,
        name: str,
        steps: int,
        resume_step: int | None = None,
        progress: bool = True,
        sinks: Sequence[Any] = (),
        aliases: bool = False,
    ):
        self._lines = StepLines(epath.Path(run_dir) / "metrics.jsonl", resume_step)
        self._sinks, self._aliases = sinks, aliases
        self._bar = _bar(name, steps, resume_step or 0, progress and processes.lead())

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes numbers or (total, denom) pairs by name; non-finite values become null."""
        numbers = values(metrics)
        self._lines.write([{"step": int(step), **numbers}])
        named = {**numbers, **aliased(numbers)} if self._aliases else numbers
        for sink in self._sinks:
            sink.write(int(step), named)
        self._show(int(step), numbers)

    def _show(self, step: int, numbers: dict[str, float]) -> None:
        shown = [f"loss {numbers[LOSS]:.3f}"] if LOSS in numbers else []
        shown += [f"{numbers[SPEED]:,.0f} tokens/s"] if SPEED in numbers else []
        if shown:  # a line without loss and speed (an evaluation) leaves the last ones on display
            self._bar.set_postfix_str(", ".join(shown), refresh=False)
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Closes the sinks and the progress bar."""
        self._bar.close()
        for sink in self._sinks:
            sink.close()

    def say(self, line: str) -> None:
        """Prints a line to stderr, above the progress bar; on process 0 alone."""
        if processes.lead():
            tqdm.tqdm.write(line, file=sys.stderr)

    def texts(self, step: int, texts: Sequence[tuple[str, str]]) -> None:
        """Gives pairs (prompt, text) to the sinks."""
        for sink in self._sinks if texts else ():
            sink.texts(int(step), texts)


class _Lines:
    """A stream for tqdm if stderr is not a terminal: every redraw becomes a line of its own."""

    def write(self, text: str) -> None:
        if line := text.strip("\r\n \x1b[A"):
            sys.stderr.write(line + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def _bar(name: str, steps: int, first: int, progress: bool) -> tqdm.tqdm:
    terminal = sys.stderr.isatty()
    return tqdm.tqdm(
        desc=name,
        total=steps,
        initial=first,
        disable=not progress,
        file=sys.stderr if terminal else _Lines(),
        mininterval=0.2 if terminal else QUIET_SECS,
        miniters=1,
        dynamic_ncols=terminal,
        bar_format=None
        if terminal
        else "{desc} {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}",
    )
