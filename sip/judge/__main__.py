"""Scores texts: `python -m sip.judge --config=configs/X.py --run=NAME < candidates.jsonl`.

By the judge of a self-improving run (its `judge` section; --config.runs.NAME.judge.. changes it).
One JSON object per line in,

    {"prefix": "..", "candidates": ["..", ".."], "reference": ".."}

and one per line out, in that order, as soon as `judge.batch` of them are judged:

    {"scores": [..], "valid": [..], "aspects": {"quality": {"scores": [..], "valid": [..]}, ..}}

Candidates are what follows the prefix, the space between them included; numbers may differ from
line to line. `reference` is needed where an aspect is shown one. An empty candidate, and what the
judge cannot be read on, is invalid, with score 0. A line that is none of this ends the command with
exit code 2, after the lines before it. A judge that is a run's name needs --workdir.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from absl import flags

from sip import cli, loading, mesh, sections
from sip import run as runs
from sip.data import corpus as corpora
from sip.judge import build as judges
from sip.judge.build import JudgeConfig
from sip.judge.judged import Judge
from sip.structs import UserError

_CONFIG = cli.config_flag()
_WORKDIR = cli.workdir_flag()
_RUN = flags.DEFINE_string("run", None, "Whose judge; may be left out where only one run has one.")


def chosen(config, name: str | None) -> str:
    """The run whose judge is asked."""
    judged = [run for run in config.runs if judge_section(config.runs[run]) is not None]
    if name is None and len(judged) == 1:
        return judged[0]
    if name is None or name not in judged:
        said = "--run is needed" if name is None else f"--run: no judge in {name!r}"
        raise UserError(f"{said}; runs with a judge: {', '.join(sorted(judged)) or 'none'}")
    return name


def judge_section(run):
    """The `judge` section of a run, or of its task; None if it has neither."""
    if "judge" in run:
        return run.judge
    return run.task.judge if "task" in run and "judge" in run.task else None


def build(config, name: str, workdir: str | None) -> tuple[Judge, JudgeConfig]:
    """The judge of run `name`, on one device."""
    run = config.runs[name]
    key = f"runs.{name}.{'judge' if 'judge' in run else 'task.judge'}"
    wanted = sections.section(JudgeConfig, sections.plain(judge_section(run)), key)
    truth, tokenizer = None, None
    if wanted.backend == "local" and not wanted.own:
        loading.source_dir(workdir or "", wanted.init_from, f"{key}.init_from")  # named as here
    elif wanted.backend == "truth":
        truth = corpora.load_documents(config.data, run.split, _needed(workdir)).truth
    elif wanted.backend == "http" and (wanted.http.tokens or wanted.proofread.init_from):
        lies = workdir or "" if config.tokenizer.path else _needed(workdir)
        tokenizer = runs.open_tokenizer(config, lies)
    where = mesh.single()
    return judges.build(wanted, workdir or "", truth, where, tokenizer, config.seed), wanted


def _needed(workdir: str | None) -> str:
    if workdir is None:
        raise UserError("--workdir is needed: where the corpus and its tokenizer lie")
    return workdir


def parse(line: bytes, number: int, reference: bool) -> dict[str, Any]:
    """A line as a dict; `reference`: whether it must have one. Raises UserError with its number."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f"line {number}: not JSON") from None
    problem = _problem(row, reference)
    if problem:
        raise UserError(f"line {number}: {problem}")
    return {**row, "reference": row.get("reference") or ""}


def _problem(row, reference: bool) -> str:
    """What is wrong with a line; empty where nothing is."""
    if not isinstance(row, dict):
        return "not an object"
    if not isinstance(row.get("prefix"), str):
        return "prefix: a string is wanted"
    texts, beside = row.get("candidates"), row.get("reference")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return "candidates: a list of strings is wanted"
    if not texts:
        return "candidates: there is none"
    if not isinstance(beside, str if reference else str | None):
        return "reference: a string is wanted"
    return ""


def batches(lines: Iterable[bytes], size: int, reference: bool) -> Iterator[list[dict]]:
    """Up to `size` parsed lines at a time. What precedes a bad line comes before its error."""
    rows: list[dict] = []
    try:
        for number, line in enumerate(lines, start=1):
            rows.append(parse(line, number, reference))
            if len(rows) == size:
                yield rows
                rows = []
    except UserError:
        if rows:
            yield rows
        raise
    if rows:
        yield rows


def score(judge: Judge, rows: list[dict]) -> Iterator[dict]:
    """The verdicts on a batch of lines, as they are written."""
    texts = [row["candidates"] for row in rows]
    K = max(map(len, texts))
    padded = [[*some, *[""] * (K - len(some))] for some in texts]
    mask_BK = np.array([[bool(text) for text in some] for some in padded])
    prefixes, references = ([row[key] for row in rows] for key in ("prefix", "reference"))
    found = judge.score(prefixes, padded, references, mask_BK)
    for b, some in enumerate(texts):
        aspects = {
            name: _own(score_BK[b], valid_BK[b], len(some))
            for name, (score_BK, valid_BK) in found.aspects.items()
        }
        yield {**_own(found.scores_BK[b], found.valid_BK[b], len(some)), "aspects": aspects}


def _own(score_K, valid_K, count: int) -> dict[str, list]:
    """Of a line's own candidates, padding cut off."""
    score_K = np.where(valid_K, score_K, 0.0)
    return {"scores": score_K[:count].tolist(), "valid": valid_K[:count].tolist()}


def main(argv) -> None:
    """The command line."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}")
    if _CONFIG.value is None:
        raise UserError("--config is needed")
    config = _CONFIG.value
    judge, wanted = build(config, chosen(config, _RUN.value), _WORKDIR.value)
    asked = wanted.backend in ("local", "http")  # the others read no prompt
    reference = asked and any(aspect.reference for aspect in wanted.aspects())
    try:
        for rows in batches(sys.stdin.buffer, wanted.batch, reference):
            print("\n".join(map(json.dumps, score(judge, rows))), flush=True)
    except BrokenPipeError:  # whoever read this has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    cli.run(main)
