"""Rebuilds the labelled prompts of a trained judge's run, for benchmarks."""

import dataclasses
import json
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from sip import loading, mesh
from sip.judge import prompts
from sip.run import Run
from sip.sections import section
from sip.structs import UserError
from sip.tasks import labelled
from sip.tasks.supervised import verdicts
from sip.text import tokenizer as tokenizers
from sip.training import checkpoints
from sip.workdir import workdir_of


def held_out(directory: str) -> dict:
    """Returns a judge's labelled prompts of the test split by aspect, as its run made them.

    Raises UserError if the run did not train a judge on ground-truth labels.
    """
    # Only the held-out prompts are used; 8 training documents keep the rest small.
    return dict(taught(directory, documents=8)[0].held_out["test"])


def taught(directory: str, **sizes) -> tuple[labelled.Labelled, str, Any]:
    """Rebuilds the labelled prompts of a judge's run from its checkpoint's record.

    Args:
        directory: Run directory of the judge, inside its workdir.
        **sizes: `documents` and `held_out`, to replace the numbers of the run's config.

    Returns:
        (labelled prompts, the proofreader's mark, the corpus's ground truth).

    Raises:
        UserError: The run did not train a judge on ground-truth labels.
    """
    run, wanted, split = opened(directory)
    wanted = dataclasses.replace(wanted, **sizes)
    aspects = [prompts.load(name) for name in wanted.per_prefix]
    max_len = loading.recorded_model(directory).max_len
    made = labelled.made(run, wanted, aspects, split, mesh.single(), max_len=max_len)
    return made, wanted.proofread.mark, run.corpus(split).documents.truth


def opened(directory: str) -> tuple[Run, verdicts.GradedLabelConfig, str]:
    """Returns a judge's run, its labels' settings and its split, from its checkpoint's record.

    Raises UserError if the run did not train a judge on ground-truth labels.
    """
    record = checkpoints.record(directory)
    labels = _labels(record)
    if not labels:
        raise UserError(f"--judge {directory}: no judge trained on ground-truth labels")
    wanted = section(verdicts.GradedLabelConfig, labels, "checkpoint task.labels")
    return _run(directory, record), wanted, record["config"]["split"]


def _labels(record: dict) -> dict:
    """Returns the `task.labels` section of a run's record; empty if the run has none."""
    run = record["config"] if "config" in record else {}
    task = run["task"] if "task" in run else {}
    trains = isinstance(task, dict) and "labels" in task and task["name"] == "verdicts"
    return (task["labels"] or {}) if trains else {}


def _run(directory: str, record: dict) -> Run:
    """Returns the judge's run from its checkpoint's record, with the tokenizer stored beside it."""
    kind = json.loads((epath.Path(directory) / "tokenizer.json").read_text())["kind"]
    tokenizer = {"kind": kind, "path": tokenizers.kept(kind, directory)}
    values = {"data": record["data"], "seed": record["seed"], "tokenizer": tokenizer}
    return Run(ConfigDict(values), record["run"], workdir_of(directory))
