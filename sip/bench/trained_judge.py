"""Labelled prompts of a trained judge's run, made again for a benchmark."""

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
    """A judge's labelled prompts of the test split, by aspect, as its run made them."""
    return dict(taught(directory, documents=8)[0].held_out["test"])  # nobody learns from the 8


def taught(directory: str, **sizes) -> tuple[labelled.Labelled, str, Any]:
    """(labelled prompts made as a judge's run made them, the proofreader's mark, the ground truth);
    `sizes`: documents and held_out, if others are wanted."""
    record = checkpoints.record(directory)
    task = record["config"]["task"] if "config" in record and "task" in record["config"] else {}
    if not isinstance(task, dict) or task["name"] != "verdicts":
        raise UserError(f"--judge {directory}: no run that was trained on a ground truth's labels")
    wanted = section(verdicts.GradedLabelConfig, task["labels"], "checkpoint task.labels")
    wanted = dataclasses.replace(wanted, **sizes)
    run = _run(directory, record)
    split = record["config"]["split"]
    aspects = [prompts.load(name) for name in wanted.per_prefix]
    max_len = loading.recorded_model(directory).max_len
    made = labelled.made(run, wanted, aspects, split, mesh.single(), max_len=max_len)
    return made, wanted.proofread.mark, run.corpus(split).documents.truth


def _run(directory: str, record: dict) -> Run:
    """The judge's run as its checkpoint records it, with the tokenizer kept beside it."""
    kind = json.loads((epath.Path(directory) / "tokenizer.json").read_text())["kind"]
    tokenizer = {"kind": kind, "path": tokenizers.kept(kind, directory)}
    values = {"data": record["data"], "seed": record["seed"], "tokenizer": tokenizer}
    return Run(ConfigDict(values), record["run"], workdir_of(directory))
