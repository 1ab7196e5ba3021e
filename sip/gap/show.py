"""Tables of the figures of `sip.gap`, for the terminal and as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from sip.evals import grids
from sip.evals.grids import Grid

NONE = ""


def number(value: float | None, form: str = ".3f") -> str:
    """Returns a number as text; empty for None."""
    return NONE if value is None else format(value, form)


def estimate(found: Mapping[str, Any], form: str = "+.3f") -> str:
    """Returns a mean with its interval, such as +0.120 [+0.080, +0.160]."""
    if found["mean"] is None:
        return NONE
    text = format(found["mean"], form)
    if found["low"] is None:
        return text
    return f"{text} [{format(found['low'], form)}, {format(found['high'], form)}]"


def terminal(heads: Sequence[str], tables: Sequence[Grid]) -> None:
    """Prints lines and tables."""
    to = grids.console()
    for line in heads:
        to.print(line, markup=False, soft_wrap=True)
    grids.show(to, tables, "ellipsis")


def markdown(heads: Sequence[str], tables: Sequence[Grid]) -> str:
    """Returns lines and tables as Markdown."""
    return "\n".join([*heads, "", *grids.markdown(tables, "---")])


def preflights(found: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[Grid]]:
    """Returns (a verdict line per run, the table) of pre-flights, the largest gain first."""
    order = sorted(
        found, key=lambda f: -(f["gain"]["mean"] if f["gain"]["mean"] is not None else 0)
    )
    heads = [verdict_line(one) for one in found]
    trained = any("trained" in one for one in found)
    rejected = any("rejected" in one for one in found)
    aspects = list(dict.fromkeys(key for one in found for key in one["aspects"]))
    columns = ("run", "own", "chosen", *(("rejected",) if rejected else ()), "gain", "ceiling")
    columns += ("share", *(("trained",) if trained else ()), *(f"gain {key}" for key in aspects))
    columns += ("correlation", "learned", "invalid")
    rows = []
    for one in order:
        row = [one["run"], estimate(one["own"], ".3f"), estimate(one["chosen"], ".3f")]
        row += [estimate(one["rejected"], ".3f") if "rejected" in one else NONE] if rejected else []
        row += [estimate(one["gain"]), estimate(one["ceiling"]), number(one["share"], ".0%")]
        row += [estimate(one["trained"]) if "trained" in one else NONE] if trained else []
        row += [
            number(one["aspects"][key]["mean"], "+.3f") if key in one["aspects"] else NONE
            for key in aspects
        ]
        row += [number(one["correlation"], ".2f"), number(one["learned"], ".0%")]
        rows.append([*row, number(one["invalid"], ".1%")])
    first = found[0]
    said = dict.fromkeys(one["utility"] for one in found)
    title = f"utility by {' or '.join(said)}; {first['prefixes']} prefixes, "
    title += f"{first['confidence']:.0%} intervals"
    return heads, [Grid(title, columns, rows)]


def verdict_line(one: Mapping[str, Any]) -> str:
    """Returns the verdict of a pre-flight on one line."""
    head = f"{one['run']}: {one['verdict'].upper()}, {one['words']}"
    if one["gain"]["mean"] is None:
        return f"{head}."
    share = f" ({one['share']:.0%} of the ceiling)" if one["share"] is not None else ""
    gain, ceiling = estimate(one["gain"]), estimate(one["ceiling"])
    return f"{head}. Predicted gain {gain}{share}, ceiling {ceiling}."


def gaps(found: Mapping[str, Any]) -> tuple[list[str], list[Grid]]:
    """Returns (head lines, tables) of a measurement of the gap."""
    heads = [
        f"utility by {found['utility']}; {found['prompts']} prompts, {found['answers']} answers "
        f"and one verification of each; {found['confidence']:.0%} intervals over prompts"
    ]
    heads += [
        f"{cell}: {judged['invalid']:.1%} of the verifications are invalid"
        + (f" ({judged['why']})" if judged["why"] else "")
        for cell, judged in found["judges"].items()
        if judged["invalid"]
    ]
    return heads, [
        _policies(found),
        _rows(found),
        _matrix(found),
        _best_filters(found),
        _best_of(found),
        *_compared(found),
        *_correlations(found),
    ]


def _policies(found) -> Grid:
    every = found["policies"]
    first = next(iter(every.values()))
    passes = [key for key in first if "@" in key]
    aspects = [key for key, x in first.items() if isinstance(x, dict) and key != "utility"]
    columns = ("policy", "utility", *aspects, *passes, "distinct", "constant", "GFLOP")
    rows = [
        [
            name,
            estimate(one["utility"], ".3f"),
            *(number(one[key]["mean"]) for key in aspects),
            *(number(one[key]) for key in passes),
            number(one["distinct"], ".0%"),
            number(one["constant"], ".0%"),
            number(one["flops"] / 1e9, ".3g"),
        ]
        for name, one in every.items()
    ]
    return Grid("Policies (constant: prompts with nothing to choose)", columns, rows)


def _rows(found) -> Grid:
    aspects = list(found["rows"][0]["aspects"])
    columns = ("policy", "judge", "filter", "after", "gap", "relative gap")
    columns += (*(f"gap {key}" for key in aspects), "kept", "empty", "solved", "GFLOP", "gap/GFLOP")
    rows = []
    for one in found["rows"]:
        shown = one["verdicts"]
        row = [one["policy"], one["judge"], one["filter"], estimate(one["after"], ".3f")]
        row += [estimate(one["gap"]) if shown else "no verdict"]
        row += [estimate(one["relative"]) if shown else NONE]
        row += [number(one["aspects"][key]["mean"], "+.3f") if shown else NONE for key in aspects]
        row += [number(one[key], ".0%") for key in ("kept", "empty", "solved")]
        flops = NONE if one["flops"] is None else format(one["flops"] / 1e9, ".3g")
        row += [
            flops + ("*" if one["compute_optimal"] else ""),
            number(one["gap_per_gigaflop"], ".3g"),
        ]
        rows.append(row)
    return Grid("Gaps (*: compute-optimal, nothing cheaper has a higher utility)", columns, rows)


def _matrix(found) -> Grid:
    """Policies by judges: the gap of each judge with its first filter."""
    judges = list(dict.fromkeys(one["judge"] for one in found["rows"]))
    first: dict[tuple[str, str], str] = {}
    for one in found["rows"]:
        text = estimate(one["gap"]) if one["verdicts"] else "no verdict"
        first.setdefault((one["policy"], one["judge"]), text)
    filters = {one["judge"]: one["filter"] for one in reversed(found["rows"])}
    columns = ("policy", *(f"{name}, {filters[name]}" for name in judges))
    rows = [
        [p, *(first[p, j] if (p, j) in first else NONE for j in judges)] for p in found["policies"]
    ]
    return Grid("Cross-verification: gap", columns, rows)


def _best_filters(found) -> Grid:
    """Policies by judges: the filter with the largest gap."""
    judged = [one for one in found["rows"] if one["verdicts"] and one["gap"]["mean"] is not None]
    judges = list(dict.fromkeys(one["judge"] for one in judged))
    best: dict[tuple[str, str], tuple[float, str]] = {}
    for one in judged:
        key, value = (one["policy"], one["judge"]), (one["gap"]["mean"], one["filter"])
        best[key] = value if key not in best or value[0] > best[key][0] else best[key]
    rows = [[p, *(best[p, j][1] if (p, j) in best else NONE for j in judges)]
            for p in found["policies"]]  # fmt: skip
    return Grid(
        "Filters with the largest gap, chosen on the same prompts", ("policy", *judges), rows
    )


def _best_of(found) -> Grid:
    """The expected utility of the best of k answers, by judge."""
    ks = list(found["best_of"][0]["utility"])
    rows = [
        [one["policy"], one["judge"], *(estimate(one["utility"][k], ".3f") for k in ks)]
        for one in found["best_of"]
    ]
    columns = ("policy", "chosen by", *(f"best of {k}" for k in ks))
    return Grid("Expected utility of the best of k answers", columns, rows)


def _compared(found) -> list[Grid]:
    made = []
    if found["judges_compared"]:
        rows = [
            [one["policy"], one["a"], one["b"], estimate(one["difference"])]
            for one in found["judges_compared"]
        ]
        columns = ("policy", "a", "b", "gap of a - gap of b")
        made.append(Grid("Judges compared, paired by prompt", columns, rows))
    if found["policies_compared"]:
        rows = [
            [one["policy"], one["against"], estimate(one["difference"])]
            for one in found["policies_compared"]
        ]
        made.append(
            Grid("Policies compared, paired by prompt", ("policy", "against", "utility"), rows)
        )
    return made


def _correlations(found) -> list[Grid]:
    made = []
    for policy, one in found["correlations"].items():
        names = one["judges"]
        if len(names) < 2:
            continue
        rows = [
            [
                a,
                *(
                    f"{number(x, '.2f')} ({number(y, '.2f')})"
                    for x, y in zip(over, within, strict=True)
                ),
            ]
            for a, over, within in zip(
                names, one["over_answers"], one["within_prompts"], strict=True
            )
        ]
        title = f"Correlation of verifiers on {policy}: over all answers (within prompts)"
        made.append(Grid(title, ("", *names), rows))
    return made
