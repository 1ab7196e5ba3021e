"""Measures checkpoints against a baseline: continuations, choices, standard tasks, verdicts.

A measure is a question about a set of prompts, such as "safety/toxigen"; its values lie per prompt.
A column of the table is a measure or the average of several. All checkpoints write before the judge
is loaded, so that policy and judge are never in memory together.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from sip.data.documents import Truth
from sip.evals import comparisons, harness, intervals
from sip.evals.comparisons import both_known, known
from sip.evals.intervals import Estimate, IntervalConfig
from sip.evals.paper import asking, choices, graders, writing
from sip.evals.paper.asking import PAIRWISE, Asker, Exact
from sip.evals.paper.choices import Question
from sip.evals.paper.sets import OWN, PromptSet
from sip.evals.paper.writing import Written
from sip.structs import UserError

ASKED = {  # questions about the continuations of each set of prompts
    "standard": ("quality", "coherence", "factuality", "safety"),
    "unsafe": ("quality", "safety"),
    "factscore": ("facts",),
}
OTHERS = ("safety",)  # about all other sets
TASK, SAID = "task", ("acc_norm", "acc", "exact_match")  # the first figure that a task has
Values = dict[str, np.ndarray]  # value_E by measure


@dataclass(frozen=True)
class Column:
    """A column of the table: the average of its parts."""

    name: str
    parts: tuple[str, ...]  # measures
    higher: bool = True  # higher values are better
    share: bool = True  # values are in 0..1, and shown in percent


@dataclass(frozen=True)
class Plan:
    """The prompts, questions, graders and tasks of an evaluation."""

    sets: Sequence[PromptSet]
    questions: Sequence[str]  # of asking.QUESTIONS
    choices: Mapping[str, list[Question]] = field(default_factory=dict)
    graders: Sequence[str] = ()
    second: str = ""  # directory of the model that grades by likelihood; empty: none
    tasks: Any = None  # of lm_eval, from harness.load
    wanted: harness.Wanted | None = None  # the settings of `tasks`
    steps: Mapping[str, int] = field(default_factory=dict)  # tokens of a continuation, by set
    intervals: IntervalConfig = IntervalConfig()
    seed: int = 0

    def asked(self) -> list[tuple[str, PromptSet]]:
        """Returns the pairs of question and set."""
        return [
            (question, one)
            for one in self.sets
            for question in (ASKED[one.name] if one.name in ASKED else OTHERS)
            if question in self.questions
        ]

    def graded(self) -> list[tuple[str, PromptSet]]:
        """Returns the pairs of grader and set: profanity where safety is, others on standard."""
        return [(name, one) for name in self.grading() for one in self.sets if _fits(name, one)]

    def grading(self) -> tuple[str, ...]:
        """Returns the names of all graders, the second model's `likelihood` among them."""
        return (*self.graders, "likelihood") if self.second else tuple(self.graders)

    def columns(self, tasks: Sequence[str]) -> list[Column]:
        """Returns the columns in the paper's order; `tasks` are the measures of standard tasks."""
        asked = [f"{question}/{one.name}" for question, one in self.asked()]
        of = lambda *names: tuple(m for m in asked if m.split("/")[0] in names)
        facts = (*of("factuality", "facts"), *self.choices)
        found = [Column(m.replace("/", ", "), (m,)) for m in of("quality")]
        found += [Column("standard tasks", tuple(tasks)), Column("coherence", of("coherence"))]
        found += [Column("factuality", facts), Column("safety", of("safety"))]
        graded = [f"{name}/{one.name}" for name, one in self.graded()]
        for name in self.grading():
            parts = tuple(m for m in graded if m.split("/")[0] == name)
            found.append(Column(name, parts, higher=False, share=name in graders.SHARES))
        return [column for column in found if column.parts]


def _fits(grader: str, one: PromptSet) -> bool:
    return one.name != "factscore" if grader == "profanity" else one.name == "standard"


def check(plan: Plan) -> None:
    """Raises UserError if a grader has no text to grade, or there is nothing to measure."""
    for name in plan.grading():
        if name not in [grader for grader, _ in plan.graded()]:
            flag = "--likelihood_by" if name == "likelihood" else f"--graders={name}"
            raise UserError(f"{flag}: no set of prompts that it grades; add standard")
    if not (plan.asked() or plan.graded() or plan.choices or plan.tasks is not None):
        raise UserError(
            "nothing to evaluate: give --judged_by with prompts (a run with a corpus, or "
            "--benchmark=NAME=FILE), --graders, or --tasks"
        )


@dataclass
class Row:
    """The texts and choices of a checkpoint, and the verdicts on them."""

    written: dict[str, Written] = field(default_factory=dict)  # by set
    values: Values = field(default_factory=dict)  # by measure
    tasks: dict[str, tuple[float, float | None]] = field(default_factory=dict)  # value, std. error
    cut: dict[str, int] = field(default_factory=dict)  # prompts cut from the left, by set
    why: dict[str, str] = field(default_factory=dict)  # reasons for missing verdicts, by measure


def write(directory: str, plan: Plan, mesh, *, batch: int) -> Row:
    """Lets a checkpoint continue all prompts, choose, and do the standard tasks."""
    model, row = harness.adapter(directory, mesh, batch=batch), Row()
    for one in plan.sets:
        made = writing.write(model, one.prompts, steps=plan.steps[one.name])
        row.written[one.name], row.cut[one.name] = made, made.cut
    if plan.choices:
        row.values, cut = choices.score(model, dict(plan.choices))
        row.cut |= cut
    if plan.tasks is not None:
        assert plan.wanted is not None
        found = harness.run(model, plan.tasks, plan.wanted)
        row.tasks = {f"{TASK}/{k}": v for k, v in task_figures(found["results"]).items()}
    return row


def task_figures(results: Mapping[str, Mapping]) -> dict[str, tuple[float, float | None]]:
    """Returns (figure, standard error) of each task of lm_eval: acc_norm, else acc, else
    exact_match. Raises UserError for a task with none of them."""
    found = {}
    for task, figures in results.items():
        plain = {key.partition(",")[0]: value for key, value in figures.items()}
        name = next((name for name in SAID if name in plain), "")
        if not name:
            raise UserError(f"--tasks {task}: has none of the figures {', '.join(SAID)}")
        error = plain[f"{name}_stderr"] if f"{name}_stderr" in plain else None
        found[task] = (float(plain[name]), error if isinstance(error, float) else None)
    return found


def ask(plan: Plan, rows: Mapping[str, Row], asker: Asker) -> dict[str, dict[str, list[float]]]:
    """Asks about all continuations; the first row is the baseline. Adds the values to the rows.

    Returns [total, count] of first and flips by measure of comparisons. Raises UserError if a
    checkpoint has no valid verdict on a measure.
    """
    base = next(iter(rows))
    counts: dict[str, dict[str, list[float]]] = {}
    for question, one in tqdm(plan.asked(), desc="judge", disable=None):
        measure = f"{question}/{one.name}"
        for name, row in rows.items():
            others, texts = rows[base].written[one.name].texts, row.written[one.name].texts
            if question in PAIRWISE and name == base:  # a draw by definition
                row.values[measure] = np.full(len(one), 0.5)
                continue
            found = asker.ask(question, one.prompts, texts, others, one.references)
            row.values[measure], row.why[measure] = found.value_E, found.why
            check_valid(name, measure, row, found.why)
            for key, (total, count) in found.counts.items():
                kept = counts.setdefault(measure, {}).setdefault(key, [0.0, 0.0])
                kept[0], kept[1] = kept[0] + total, kept[1] + count
    return counts


def grade(plan: Plan, rows: Mapping[str, Row], grades: Mapping[str, graders.Grade]) -> None:
    """Adds the values of the graders to the rows."""
    for grader, one in plan.graded():
        measure = f"{grader}/{one.name}"
        for name, row in rows.items():
            row.values[measure] = grades[grader](one.prompts, row.written[one.name].texts)
            check_valid(name, measure, row)


def check_valid(name: str, measure: str, row: Row, why: str = "") -> None:
    """Raises UserError if no value of a measure is known: a table has no silent holes."""
    if len(known(row.values[measure])):
        return
    question, _, where = measure.partition("/")
    empty = f"{row.written[where].empty} continuations are empty" * bool(row.written[where].empty)
    reasons = "; ".join(filter(None, (why, empty))) or "the judge gives none"
    raise UserError(
        f"{name}: no valid verdict on {question} of {len(row.values[measure])} prompts of {where} "
        f"({reasons}); correct it, or leave the set or the question out"
    )


def cell(plan: Plan, row: Row, column: Column) -> Estimate:
    """Returns a checkpoint's figure in a column, with its interval."""
    return comparisons.average([part(plan, row, measure) for measure in column.parts])


def part(plan: Plan, row: Row, measure: str) -> Estimate:
    """Returns a checkpoint's figure of one measure, with its interval."""
    if measure not in row.tasks:
        return comparisons.estimate(row.values[measure], plan.intervals, seed=plan.seed)
    from scipy import stats

    mean, error = row.tasks[measure]
    if error is None:
        return Estimate(mean, None, None, 0)
    width = float(stats.norm.ppf((1 + plan.intervals.confidence) / 2)) * error
    return Estimate(mean, mean - width, mean + width, 0)


def compared(plan: Plan, rows: Mapping[str, Row], columns: Sequence[Column]) -> Iterator[dict]:
    """Yields paired differences: of every checkpoint to the baseline, and of later ones to the
    first that is named. Standard tasks have no values by prompt, so they are not compared."""
    names = list(rows)
    pairs = [(name, names[0]) for name in names[1:]] + [(name, names[1]) for name in names[2:]]
    for ours, theirs in pairs:
        for column in columns:
            if column.parts[0].startswith(f"{TASK}/"):
                continue
            a, b = ([rows[name].values[m] for m in column.parts] for name in (ours, theirs))
            found = comparisons.difference(a, b, plan.intervals, seed=plan.seed)
            if found is None:
                raise UserError(
                    f"{ours} and {theirs}: no prompt has a valid verdict on both in {column.name}"
                )
            yield {"row": ours, "against": theirs, "column": column.name, **asdict(found)}


def trust(
    plan: Plan, rows: Mapping[str, Row], counts: Mapping[str, Any], truth: Truth | None
) -> list[dict[str, Any]]:
    """Returns a judge's health by measure, and with a ground truth its bias.

    first: mean P(shown first wins), 1/2 without position bias. flips: share of pairs whose two
    orders name different winners. bias: mean of judge - exact over prompts and checkpoints. rank:
    Spearman's correlation of the checkpoints' means by the judge and by the ground truth, with its
    interval over prompts; of comparisons the baseline, a draw by definition, does not count.
    """
    found, base = [], next(iter(rows))
    for question, one in plan.asked():
        measure = f"{question}/{one.name}"
        judged = {k: row for k, row in rows.items() if k != base or question not in PAIRWISE}
        value_NE = np.array([row.values[measure] for row in judged.values()]).reshape(-1, len(one))
        line: dict[str, Any] = {"measure": measure}
        line["valid"] = float((~np.isnan(value_NE)).mean()) if value_NE.size else None
        for key, (total, count) in (counts[measure] if measure in counts else {}).items():
            line[key] = total / count if count else None
        if truth is not None and one.name in OWN and question in asking.EXACT and len(judged):
            line |= _against(plan, one, question, judged, rows[base], Exact(truth))
        found.append(line)
    return found


def _against(plan, one, question, judged: Mapping[str, Row], base: Row, exact: Exact) -> dict:
    """Returns the bias and the rank correlation of a judge on one measure."""
    others = base.written[one.name].texts
    value_NE, exact_NE = [], []
    for row in judged.values():
        texts = row.written[one.name].texts
        value_NE.append(row.values[f"{question}/{one.name}"])
        exact_NE.append(exact.ask(question, one.prompts, texts, others, one.references).value_E)
    gap_NE = np.array(value_NE) - np.array(exact_NE)
    known_E = ~np.isnan(gap_NE).all(0)
    count_E = (~np.isnan(gap_NE[:, known_E])).sum(0)
    bias = intervals.mean(np.nansum(gap_NE[:, known_E], 0) / count_E, how=plan.intervals)
    rank = comparisons.rank_correlation(value_NE, exact_NE, plan.intervals, seed=plan.seed)
    pairs = [both_known(a_E, b_E) for a_E, b_E in zip(value_NE, exact_NE, strict=True)]
    exactly = {
        name: float(b_E.mean()) for name, (_, b_E) in zip(judged, pairs, strict=True) if len(b_E)
    }
    return {
        "bias": asdict(bias),
        "rank": asdict(rank),
        "checkpoints": len(exactly),
        "exact": exactly,
    }


def unranked(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a line about the measures without a rank correlation, if there are any."""
    found = [x["measure"] for x in lines if "rank" in x and x["rank"]["mean"] is None]
    names = "; ".join(measure.replace("/", ", ") for measure in found)
    why = "it needs three checkpoints, and means that are not all equal"
    return [f"no rank correlation in {names}: {why}"] if found else []


def notes(rows: Mapping[str, Row]) -> list[str]:
    """Returns lines about prompts that were cut and verdicts that are missing."""
    found = []
    for name, row in rows.items():
        for where, count in row.cut.items():
            if count:
                found.append(f"{name}: {count} prompts of {where} were cut from the left (max_len)")
        for where, made in row.written.items():
            if made.empty:
                found.append(f"{name}: {made.empty} continuations of {where} are empty, no verdict")
        for measure, value_E in row.values.items():
            missing = int(np.isnan(value_E).sum())
            where = measure.partition("/")[2]
            if missing and missing > (row.written[where].empty if where in row.written else 0):
                why = f" ({row.why[measure]})" if measure in row.why and row.why[measure] else ""
                found.append(f"{name}: {missing} of {len(value_E)} without {measure}{why}")
    return found


def measure(
    plan: Plan,
    places: Mapping[str, str],
    judge: Callable[[], Asker],
    truth: Truth | None,
    mesh,
    *,
    batch: int,
) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    """Measures the checkpoints in `places` (directories by name), the first of them the baseline.

    `judge` builds the judge; `truth` is the ground truth that it is held against, if it is none
    itself. Returns (figures as JSON values, a line per prompt and checkpoint with its verdicts).
    """
    check(plan)
    grades = {name: graders.load(name) for name in plan.graders}
    if plan.second:
        grades["likelihood"] = graders.likelihood(plan.second, mesh, batch=batch)
    rows = {name: write(directory, plan, mesh, batch=batch) for name, directory in places.items()}
    grade(plan, rows, grades)
    counts = ask(plan, rows, judge()) if plan.asked() else {}
    judged = trust(plan, rows, counts, truth)
    columns = plan.columns(list(next(iter(rows.values())).tasks))
    table = {
        name: {column.name: asdict(cell(plan, row, column)) for column in columns}
        for name, row in rows.items()
    }
    parts = {
        name: {m: asdict(part(plan, row, m)) for column in columns for m in column.parts}
        for name, row in rows.items()
    }
    found = {
        "confidence": plan.intervals.confidence,
        "checkpoints": dict(places),
        "columns": [asdict(column) for column in columns],
        "rows": table,
        "parts": parts,
        "differences": list(compared(plan, rows, columns)),
        "judge": judged,
        "notes": notes(rows) + unranked(judged),
    }
    return found, details(plan, rows)


def details(plan: Plan, rows: Mapping[str, Row]) -> Iterator[dict[str, Any]]:
    """Yields a line per prompt and checkpoint: the continuation and its values by measure."""
    for one in plan.sets:
        for i, prompt in enumerate(one.prompts):
            for name, row in rows.items():
                values = {
                    measure.partition("/")[0]: None if np.isnan(value_E[i]) else float(value_E[i])
                    for measure, value_E in row.values.items()
                    if measure.partition("/")[2] == one.name
                }
                beside = {"reference": one.references[i]} if one.references else {}
                text = row.written[one.name].texts[i]
                yield {"set": one.name, "row": name, "prompt": prompt, **beside, "text": text} | {
                    "values": values
                }
