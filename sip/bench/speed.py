"""Benchmarks of speed beside plain sequences and another library.

A command measures rows. In each row we and the peers take turns, with the same weights, and the
results are compared. Seconds are medians; a ratio says how many times longer the peer takes.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from sip.bench import flags, ways
from sip.bench.setup import Setup, opened, operations
from sip.bench.turns import Measured, Ratio, Turn, alternate, ratio
from sip.bench.ways import Ways
from sip.models import decoder
from sip.workdir import to_json

PLAIN, CACHED, MASK = "hf plain", "hf cached", "hf mask"
# Ratios to reach: {row: {peer: (bar, goal)}}. 32 M parameters, float32, 2 CPU cores.
RATIOS: dict[str, dict[str, tuple[float, float]]] = {
    "CE step": {PLAIN: (0.85, 1.0)},
    "rollouts": {PLAIN: (4.0, 6.0), CACHED: (2.5, 3.5)},
    "DPO update, 1 prefix": {PLAIN: (1.5, 1.9), MASK: (1.1, 1.3)},
    "DPO update, 2 prefixes": {PLAIN: (1.6, 1.9), MASK: (1.1, 1.3)},
    "update over 16 candidates": {PLAIN: (3.5, 4.5), MASK: (1.2, 1.5)},
    "judge, all pairs": {PLAIN: (4.0, 5.0), CACHED: (1.15, 1.3)},
    "SIP step": {PLAIN: (3.0, 4.0), CACHED: (1.4, 1.7)},
    "SIP step, a quarter of the pairs": {CACHED: (2.5, 3.5)},
}
# Shares of the ceiling of matrix products to reach: {row: (bar, goal)}.
SHARES: dict[str, tuple[float, float]] = {
    "CE step": (0.55, 0.8),
    "DPO update, 1 prefix": (0.55, 0.8),
    "DPO update, 2 prefixes": (0.55, 0.8),
    "judge, all pairs": (0.7, 0.8),
    "decoding": (0.33, 0.8),
}
PADDED = 1.1  # most operations that a judge runs, / those that its prompts need
CLOSE = {"float32": 2e-3, "bfloat16": 0.1}  # largest difference of losses and log-probabilities


@dataclass(frozen=True)
class Row:
    """A row of the table: our figures, or a comparison with one peer."""

    row: str
    against: str  # "": the row of our own figures
    seconds: float
    peak_mb: float  # largest resident memory of the process, everything that it holds
    share: float | None = None  # of the ceiling of matrix products, by the operations needed
    executed: float | None = None  # operations run / operations needed
    ratio: Ratio | None = None
    difference: float | None = None  # largest, of losses or log-probabilities
    bar: float | None = None
    goal: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """True if the bar is met; None without one."""
        if self.bar is None:
            return None
        if self.ratio is not None:
            return self.ratio.median >= self.bar
        return self.share is not None and self.share >= self.bar


def bench_step() -> None:
    """Measures a cross-entropy step and whole self-improving steps."""
    run(lambda s: [*_ce(s), *(row for k in s.sizes.rollouts for row in _whole(s, k))])


def bench_rollout() -> None:
    """Measures rollouts of one prefix, and decoding alone."""
    run(_rollouts)


def bench_update() -> None:
    """Measures DPO updates of 1 and 2 prefixes and an update over 16 candidates."""
    run(lambda s: [*_dpo(s, 1), *_dpo(s, 2), *_group(s)])


def bench_judge() -> None:
    """Measures a judge on all ordered pairs of candidates of one prefix."""
    run(_judge)


def run(rows: Callable[[Setup], list[Row]]) -> None:
    """Opens the setup, measures the rows and prints them."""
    with opened() as s:
        found = rows(s)
        if flags.JSON.value:
            print(to_json(as_json(s, found)))
        else:
            show(s, found)


def rows_of(
    name: str,
    took: Mapping[str, Measured],
    compared: Mapping[str, float],
    *,
    needs: float,
    ceiling: float,
    scale: Mapping[str, float] | None = None,
    executed: float | None = None,
    note: str = "",
) -> list[Row]:
    """Returns our own row and one row per peer.

    Args:
        name: The row.
        took: Turns of `ours` and the peers.
        compared: Largest difference of each peer's results from ours.
        needs: FLOPs that the work needs with a shared prefix.
        ceiling: FLOPs per second.
        scale: Factor of a peer's seconds, if it did only a part of the work.
        executed: Operations run / operations needed.
        note: What a reader should know.
    """
    ours, key = took["ours"], name.split(" (")[0]
    bar, goal = SHARES[key] if key in SHARES else (None, None)
    mine = Row(name, "", ours.seconds, ours.peak / 1e6, needs / ours.seconds / ceiling, executed)
    found = [dataclasses.replace(mine, bar=bar, goal=goal, note=note)]
    for peer, measured in took.items():
        if peer == "ours":
            continue
        factor = scale[peer] if scale and peer in scale else 1.0
        wanted = RATIOS[key] if key in RATIOS else {}
        bar, goal = wanted[peer] if peer in wanted else (None, None)
        found.append(
            Row(
                name,
                peer,
                factor * measured.seconds,
                measured.peak / 1e6,
                ratio=ratio(ours, measured, factor),
                difference=compared[peer] if peer in compared else None,
                bar=bar,
                goal=goal,
                note=f"seconds are {factor:.1f} times those of a sample" if factor != 1 else "",
            )
        )
    return found


def _measured(s: Setup, name: str, made: Ways, **more: Any) -> list[Row]:
    took = alternate(made.ways, s.sizes.turns)
    compared = made.compare(took)
    return rows_of(
        name, took, compared, needs=made.needs, ceiling=s.ceilings.flops, scale=made.scale, **more
    )


def _ce(s: Setup) -> list[Row]:
    return _measured(s, "CE step", ways.ce(s))


def _dpo(s: Setup, prefixes: int) -> list[Row]:
    name = f"DPO update, {prefixes} prefix{'es' if prefixes > 1 else ''}"
    return _measured(s, name, ways.dpo(s, prefixes, ("plain", "mask")))


def _group(s: Setup) -> list[Row]:
    return _measured(s, "update over 16 candidates", ways.group(s, 16))


def _rollouts(s: Setup) -> list[Row]:
    count = 16
    found = _measured(s, "rollouts (16 of one prefix)", ways.rollouts(s, count))
    # One token takes the prefix and a step, so the difference is decoding alone.
    steps = {"ours": ways.rolling(s, count), "first": ways.rolling(s, count, steps=1)}
    took = alternate(steps, s.sizes.turns)
    pairs = zip(took["ours"].turns, took["first"].turns, strict=True)
    own = Measured([Turn(a.seconds - b.seconds, a.peak, None) for a, b in pairs])
    P, R = s.sizes.prefix, s.sizes.suffix
    whole, prefix = (operations(s.cfg, P, count, r, count * r) for r in (R, 1))
    how: Any = dict(needs=whole - prefix, ceiling=s.ceilings.flops)
    return found + rows_of("decoding", {"ours": own}, {}, **how)


def _judge(s: Setup) -> list[Row]:
    made = ways.judge(s, s.sizes.candidates)
    return _measured(
        s,
        f"judge, all pairs ({made.count} of {s.sizes.candidates})",
        made.ways,
        executed=made.executed,
    )


def _whole(s: Setup, rollouts: int) -> list[Row]:
    """A step's phases one after another: rollouts, judging all pairs or a quarter, DPO update.

    Each phase is measured in turn with the same phase of the peers; the step is their sum.
    """
    sampled = ways.rollouts(s, rollouts)
    judged = ways.judge(s, rollouts + 1)
    learned = ways.dpo(s, 1, ("plain", "cached"))
    parts = [sampled, judged.ways, learned]
    took = [alternate(part.ways, s.sizes.turns) for part in parts]
    scales = [part.scale for part in parts]
    note = "sum of rollouts, judge and update, which take turns each"
    how: Any = dict(ceiling=s.ceilings.flops, note=note)
    needs = sum(part.needs for part in parts)
    name = f"SIP step (K {rollouts}, all {judged.count} pairs)"
    found = rows_of(name, summed(took, scales), {}, needs=needs, **how)
    quarter = alternate({"ours": ways.adaptive(s, rollouts + 1)}, s.sizes.turns)
    mixed = [took[0], {**took[1], "ours": quarter["ours"]}, took[2]]
    name = f"SIP step, a quarter of the pairs (K {rollouts})"
    needs += 0.25 * judged.plain - judged.ways.needs  # its rounds divide no branches
    return found + rows_of(name, summed(mixed, scales), {}, needs=needs, **how)


def summed(took: list[dict[str, Measured]], scales: list[dict[str, float]]) -> dict[str, Measured]:
    """Adds up the phases of each way, turn by turn; seconds of samples are scaled first."""
    found = {}
    for name in set.intersection(*(set(part) for part in took)):
        turns = []
        for each in zip(*(part[name].turns for part in took), strict=True):
            factors = [scale[name] if name in scale else 1.0 for scale in scales]
            seconds = sum(f * turn.seconds for f, turn in zip(factors, each, strict=True))
            turns.append(Turn(seconds, max(turn.peak for turn in each), None))
        found[name] = Measured(turns)
    return dict(sorted(found.items(), key=lambda item: item[0] != "ours"))


def as_json(s: Setup, rows: list[Row]) -> dict[str, Any]:
    """Returns the figures as JSON values."""
    versions = s.other.versions if s.other else {}
    machine = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "peer": versions}
    return {
        "machine": machine | dataclasses.asdict(s.ceilings),
        "sizes": dataclasses.asdict(s.sizes),
        "model": {"parameters": decoder.count(s.cfg), "dtype": s.cfg.dtype},
        "rows": [{**dataclasses.asdict(row), "met": row.met} for row in rows],
    }


def show(s: Setup, rows: list[Row]) -> None:
    """Prints the table and the ceilings."""
    table = Table(title=f"{decoder.count(s.cfg) / 1e6:.1f} M parameters, {s.cfg.dtype}")
    heads = ("row", "against", "seconds", "ratio", "range", "ceiling", "run/needed", "peak MB")
    for head in (*heads, "difference", "bar", "goal", "met"):
        table.add_column(head, justify="left" if head in heads[:2] else "right")
    for row in rows:
        table.add_row(*_cells(row))
    console = Console(width=170)
    console.print(table)
    close = CLOSE[s.cfg.dtype]
    apart = [row for row in rows if row.difference is not None and not row.difference <= close]
    for row in apart:
        console.print(f"{row.row}, {row.against}: results differ by {row.difference:.1e}")
    for note in dict.fromkeys(f"{r.row}, {r.against or 'ours'}: {r.note}" for r in rows if r.note):
        console.print(note)
    console.print(
        f"ceilings: {s.ceilings.flops / 1e9:.0f} GFLOP/s, {s.ceilings.bytes / 1e9:.1f} GB/s; "
        f"at most {PADDED} operations run / needed; a difference of {close} is allowed"
    )


def _cells(row: Row) -> list[str]:
    number = lambda x, form: "" if x is None else format(x, form)
    form = ".0%" if row.ratio is None else ".2f"
    spread = f"{row.ratio.low:.2f}-{row.ratio.high:.2f}" if row.ratio else ""
    return [
        row.row,
        row.against or "(ours)",
        f"{row.seconds:.3f}",
        number(row.ratio and row.ratio.median, ".2f"),
        spread,
        number(row.share, ".0%"),
        number(row.executed, ".2f"),
        f"{row.peak_mb:.0f}",
        number(row.difference, ".1e"),
        number(row.bar, form),
        number(row.goal, form),
        {None: "", True: "yes", False: "no"}[row.met],
    ]
