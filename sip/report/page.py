"""Writes the report as one HTML page that needs no server and no network.

report.html.jinja   the page: verdict, tables, placeholders of plots and of the candidate browser
report.css, .js     its style and its program

What the program draws (plots, candidates, samples) is JSON in the page, packed by gzip and base64;
so is Plotly, which is unpacked when the first plot comes into view. The page's security policy
admits these two scripts by their hashes and no request. Texts of models are put into the page as
text nodes, never as HTML.
"""

import base64
import functools
import gzip
import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sip import workdir as workdirs
from sip.report import candidates, contents, costs, verdict
from sip.report.contents import Opened, RunFiles
from sip.report.panels import PALETTE, SOURCES, Line, Panel, panels
from sip.report.tables import columns_of, untrained
from sip.structs import UserError

FILES = Path(__file__).resolve().parent
MOST_BYTES = 12 << 20  # of the packed data; Plotly and the rest take about 2 MB
DIGITS = 6  # of numbers in plots
MOST_POINTS = 1000  # of a line in a plot
MOST_SAMPLES = 400  # greedy samples of a run in the page, the newest and evenly chosen older ones


@dataclass(frozen=True)
class Place:
    """A workdir in the page."""

    label: str  # "" for a single workdir
    opened: Opened
    runs: list[RunFiles]
    summary: dict[str, Any]
    missing: list[str]


def check_packages() -> None:
    """Raises UserError if the packages of the page are not installed."""
    lacking = [name for name in ("jinja2", "plotly") if importlib.util.find_spec(name) is None]
    if lacking:
        raise UserError(
            f"the HTML page needs {' and '.join(lacking)}: pip install -e '.[report]', or "
            "--html= for none"
        )


def place(label: str, opened: Opened, summary: dict[str, Any], missing: Sequence[str]) -> Place:
    """Reads the rest of a workdir, of which `summary` and `missing` are known."""
    said = list(missing)
    every = contents.runs(opened, said)
    said = contents.progress(every, contents.in_use(opened.path)) + _files(said)
    return Place(label, opened, every, summary, said)


def _files(missing: Sequence[str]) -> list[str]:
    """Files that are damaged; those of unfinished runs are told with the runs."""
    return [f"{what}." for what in dict.fromkeys(missing) if "is not finished" not in what]


def write(path: str, places: Sequence[Place], price: float) -> list[str]:
    """Writes the page and returns what it leaves out, in words.

    Args:
        path: The HTML file.
        places: One workdir, or two to compare.
        price: Price of a million tokens of judging; 0: not known.
    """
    packed, left_out = _packed(places)
    workdirs.write_atomically(path, render(places, packed, left_out, price).encode())
    return left_out


def render(places: Sequence[Place], packed: str, left_out: Sequence[str], price: float) -> str:
    """Returns the HTML of the page; `packed` is the packed data."""
    import jinja2
    from markupsafe import Markup

    program = (FILES / "report.js").read_text()
    plotly, plotly_hash = _plotly()
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FileSystemLoader(FILES),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Only our own files and base64 are marked as HTML.
    return environment.get_template("report.html.jinja").render(
        places=[_shown(one, left_out, price) for one in places],
        price=price,
        css=Markup((FILES / "report.css").read_text()),
        program=Markup(program),
        plotly=Markup(plotly),
        data=Markup(packed),
        hashes=[_hash(program), plotly_hash],
        sources=list(SOURCES),
    )


@functools.cache
def _plotly() -> tuple[str, str]:
    """Returns Plotly's program packed, and its hash."""
    from plotly import offline

    source = offline.get_plotlyjs()
    return pack(source.encode()), _hash(source)


def pack(data: bytes) -> str:
    """Returns gzip and base64 of bytes."""
    return base64.b64encode(gzip.compress(data, mtime=0)).decode()


def _hash(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _shown(one: Place, left_out: Sequence[str], price: float) -> dict[str, Any]:
    """Returns the values that the template shows of a workdir."""
    config, rows = one.opened.config, one.summary["rows"]
    columns = columns_of(rows.values())
    judged = [found for run in one.runs if (found := verdict.fooled(config, run, one.runs))]
    own = [what for what in left_out if not one.label or what.startswith(f"{one.label} ")]
    return {
        "label": one.label,
        "path": one.opened.path,
        "seeds": one.opened.begun,
        "of_seeds": one.summary["seeds"] if one.opened.begun else (),
        "untrained": untrained(config),
        "helped": verdict.helped(config, one.summary, one.runs),
        "fooled": judged,
        "missing": one.missing + verdict.absent(config, one.opened.begun, one.runs) + own,
        "columns": [name.replace("_", " ") for name in columns],
        "rows": [(name, [_cell(row, c) for c in columns]) for name, row in rows.items()],
        "compared": verdict.compared(config, rows),
        "costs": costs.rows(one.runs, price),
    }


def _cell(row: Mapping[str, Any], column: str) -> str:
    value = row[column] if column in row else None
    if isinstance(value, dict):
        if value["mean"] is None:
            return ""
        return f"{value['mean']:.3f}" + (
            f" ±{value['std']:.3f}" if value["std"] is not None else ""
        )
    return "" if value is None or isinstance(value, str) else f"{value:.3f}"


def _packed(places: Sequence[Place]) -> tuple[str, list[str]]:
    """Returns (packed data of the page, what is left out of it in words).

    Every second logged step of all runs is left out, except the last, until the data fit.
    """
    said: list[str] = []
    rows = [row for i, one in enumerate(places) for row in _rows(i, one, said)]
    data: dict[str, Any] = {
        "places": [{"label": one.label, "path": one.opened.path} for one in places],
        "panels": [x for i, one in enumerate(places) for x in _panels(i, one)],
        "phases": [x for i, one in enumerate(places) for x in _phases(i, one)],
        "samples": [x for i, one in enumerate(places) for x in _samples(i, one, said)],
        "colors": SOURCES,
        "palette": PALETTE,
    }
    kept = rows
    while True:
        packed = pack(workdirs.to_json({**data, "rows": kept}).encode())
        steps = sorted({row["step"] for row in kept})
        if len(packed) <= MOST_BYTES or len(steps) < 2:
            break
        some = {*steps[::2], steps[-1]} if len(steps) > 2 else {steps[-1]}
        kept = [row for row in kept if row["step"] in some]
    for i, one in enumerate(places):
        here, logged = (sum(row["place"] == i for row in some) for some in (kept, rows))
        if here < logged:
            said.append(
                f"{one.label} The page has {here} of {logged} logged prefixes, every n-th step, so "
                "that it stays small; candidates.jsonl has all.".strip()
            )
    return packed, said


def _rows(at: int, one: Place, said: list[str]) -> list[dict]:
    """The lines of candidates.jsonl of all runs of a workdir."""
    found = []
    for run in one.runs:
        rows, damaged = candidates.read(run.directory, candidates.CANDIDATES)
        found += [{"place": at, "run": run.title, "texts": texts(row), **row} for row in rows]
        if damaged:
            name = f"{run.title}/{candidates.CANDIDATES}"
            said.append(f"{one.label} {damaged} unreadable lines of {name} are left out.".strip())
    return found


def texts(row: Mapping[str, Any]) -> str:
    """Returns a short hash of a row's texts: ratings of other texts in its place do not count."""
    every = "\0".join([row["prompt"], *(x["text"] for x in row["candidates"])])
    return hashlib.sha256(every.encode(errors="surrogatepass")).hexdigest()[:12]


def _samples(at: int, one: Place, said: list[str]) -> list[dict]:
    found = []
    for run in one.runs:
        rows, _ = candidates.read(run.directory, candidates.SAMPLES)
        every = -(-len(rows) // MOST_SAMPLES) if rows else 1
        steps = sorted({row["step"] for row in rows})
        some = {*steps[::every], *steps[-1:]}
        if len(some) < len(steps):
            said.append(f"{one.label} Samples of {run.title}: every {every}th step.".strip())
        found += [{"place": at, "run": run.title, **r} for r in rows if r["step"] in some]
    return found


def _panels(at: int, one: Place) -> list[dict]:
    """The panels of all runs of a workdir, as JSON; lines over seeds are means and deviations."""
    report = one.opened.config.report
    logged = {
        name: [run.lines for run in one.runs if run.name == name and run.lines]
        for name in one.opened.config.order
    }
    found = panels({name: runs for name, runs in logged.items() if runs}, report.judge)
    return [{"place": at, **_panel(panel)} for panel in found]


def _panel(panel: Panel) -> dict:
    kept = [(line, thinned(line)) for line in panel.lines]
    rounded = lambda x_N, at: [float(f"{x_N[i]:.{DIGITS}g}") for i in at]
    return {
        "kind": panel.kind,
        "title": panel.title,
        "label": panel.label,
        "level": panel.level,
        "rate": panel.rate,
        "lines": [
            {
                "label": line.label,
                "color": line.color,
                "x": [line.steps[i] for i in at],
                "y": rounded(line.mean, at),
                "spread": None if line.deviation is None else rounded(line.deviation, at),
            }
            for line, at in kept
        ],
    }


def thinned(line: Line) -> list[int]:
    """Returns the points of a line that the page has, MOST_POINTS at most.

    Of a longer line they are the first and the last one, and the lowest and the highest of each of
    MOST_POINTS / 2 - 1 equal parts, so that no peak is lost.
    """
    points = len(line.steps)
    if points <= MOST_POINTS:
        return list(range(points))
    parts = np.array_split(np.arange(1, points - 1), MOST_POINTS // 2 - 1)
    ends = [int(part[pick(line.mean[part])]) for part in parts for pick in (np.argmin, np.argmax)]
    return sorted({0, *ends, points - 1})


def _phases(at: int, one: Place) -> list[dict]:
    """Seconds of each run by phase of a step."""
    found = [(run, costs.phases(run.lines)) for run in one.runs]
    return [{"place": at, "run": run.title, "seconds": x} for run, x in found if x]
