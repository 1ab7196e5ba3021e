"""The cost of runs: time by phase, and judging in seconds, tokens and money."""

from collections.abc import Mapping, Sequence
from typing import Any

from sip import metrics
from sip.report.contents import RunFiles

SHARE = "speed/share/"
# Tokens of judging per update: read by the judge, and written by it.
TOKENS = ("judge/prompt_tokens", "judge/answer_tokens")


def phases(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns seconds by phase of a run's steps; `other` is the rest of their time."""
    found: dict[str, float] = {}
    total = 0.0
    for line in lines:
        seconds = line.get(metrics.SECONDS)
        if not isinstance(seconds, int | float):
            continue
        total += seconds
        for key, share in line.items():
            if key.startswith(SHARE) and isinstance(share, int | float):
                name = key.removeprefix(SHARE)
                found[name] = found.setdefault(name, 0.0) + share * seconds
    rest = total - sum(found.values())
    return {**found, "other": max(rest, 0.0)} if total else {}


def tokens(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """Returns the tokens of judging of a run; None if they were not logged.

    A line has means per update since the last line that has them.
    """
    total, before, known = 0.0, 0, False
    for line in lines:
        found = [line[key] for key in TOKENS if isinstance(line.get(key), int | float)]
        if found:
            total += sum(found) * (line["step"] - before)
            before, known = line["step"], True
    return total if known else None


def _judges(lines: Sequence[Mapping[str, Any]]) -> bool:
    """True if a judge's metrics were logged, also those of a rewriter in training."""
    return any(key.startswith(("judge/", "suffix/judge/")) for line in lines for key in line)


def rows(every: Sequence[RunFiles], price: float) -> list[list[str]]:
    """Returns table cells of each begun run: name, steps, seconds; judging: seconds, tokens, price.

    `price` is that of a million tokens; 0: not known. In RL a judge is asked in the phase `reward`.
    """
    found = []
    for run in every:
        if not run.lines:
            continue
        seconds = phases(run.lines)
        named = ("judge", "audit", "reward") if _judges(run.lines) else ("judge", "audit")
        judging = sum(seconds[name] for name in named if name in seconds)
        spent = tokens(run.lines)
        found.append(
            [
                run.title,
                f"{run.step} of {run.steps}",
                f"{sum(seconds.values()):,.0f}",
                f"{judging:,.0f}" if judging else "",
                "" if spent is None else f"{spent:,.0f}",
                "" if spent is None or not price else f"{spent / 1e6 * price:,.2f}",
            ]
        )
    return found
