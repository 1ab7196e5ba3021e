"""Scores texts: `python -m sip.judge --config=configs/X.py --run=NAME < candidates.jsonl`.

The judge is the one in the `judge` section of a run. Flags override that section:
--config.runs.NAME.judge.KEY=VALUE (of a rewriter's RL run: runs.NAME.task.judge.KEY).

Input: one JSON object per line on stdin,

    {"prefix": "..", "candidates": ["..", ".."], "reference": ".."}

Output: one JSON object per line on stdout, in the order of the input. Lines are written in groups
of `judge.batch`:

    {"scores": [..], "valid": [..], "aspects": {"quality": {"scores": [..], "valid": [..]}, ..}}

A candidate is the text that follows the prefix, including the space between them. Lines may have
different numbers of candidates. `reference` is required if an aspect shows the judge a reference.
A candidate is invalid, with score 0, if it is empty or if the judge's verdict on it is unreadable;
the reasons are counted on stderr. Input is UTF-8; blank lines at its end are ignored. A malformed
line ends the command with exit code 2; the lines before it are scored first. A judge
that names a run (`init_from`) needs --workdir.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from absl import flags

from sip import cli, loading, mesh, sections
from sip import run as runs
from sip import workdir as workdirs
from sip.data import corpus as corpora
from sip.judge import build as judges
from sip.judge import diagnostics
from sip.judge.build import JudgeConfig
from sip.judge.judged import Judge
from sip.stages import recipe
from sip.structs import UserError
from sip.text.lines import read_lines
from sip.workdir import to_json

_CONFIG = cli.config_flag()
_WORKDIR = cli.workdir_flag()
_RUN = cli.shared(
    flags.DEFINE_string,
    "run",
    None,
    "Run whose judge is used. Optional if only one run of the config has a judge.",
)


def chosen(config, name: str | None) -> str:
    """The name of the run whose judge is used. Raises UserError if `name` does not select one."""
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
    task = run.task if "task" in run and hasattr(run.task, "keys") else {}
    return task["judge"] if "judge" in task else None


def build(config, name: str, workdir: str | None) -> tuple[Judge, JudgeConfig]:
    """Builds the judge of run `name` on one device. Returns it and its config."""
    run = config.runs[name]
    key = f"runs.{name}.{'judge' if 'judge' in run else 'task.judge'}"
    wanted = sections.section(JudgeConfig, sections.plain(judge_section(run)), key)
    truth, tokenizer = None, None
    if wanted.backend == "local" and not wanted.own:
        # Called only for its error, which names this run's key; `judges.build` names a shorter one.
        loading.source_dir(workdir or "", wanted.init_from, f"{key}.init_from")
    elif wanted.backend == "truth":
        truth = corpora.load_documents(config.data, run.split, _needed(workdir)).truth
    elif wanted.backend == "http" and (wanted.http.tokens or wanted.proofread.init_from):
        lies = workdir or "" if config.tokenizer.path else _needed(workdir)
        tokenizer = runs.open_tokenizer(config, lies)
    where = mesh.single()
    return judges.build(wanted, workdir or "", truth, where, tokenizer, config.seed), wanted


def _needed(workdir: str | None) -> str:
    if workdir is None:
        raise UserError("--workdir is needed: the corpus and its tokenizer are read from it")
    return workdir


def parse(line: bytes, number: int, reference: bool) -> dict[str, Any]:
    """Parses an input line. `reference`: the line must have a reference.

    Raises UserError with the line's number if the line is malformed.
    """
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        said = f"byte 0x{line[error.start]:02x}; convert it, for example with iconv -t UTF-8"
        raise UserError(f"line {number}: not UTF-8 ({said})") from None
    except (ValueError, RecursionError):
        raise UserError(f"line {number}: not JSON") from None
    problem = _problem(row, reference)
    if problem:
        raise UserError(f"line {number}: {problem}")
    return {**row, "reference": row.get("reference") or ""}


def _problem(row, reference: bool) -> str:
    """Describes what is wrong with a parsed line; empty if it is valid."""
    if not isinstance(row, dict):
        return "must be a JSON object"
    if not isinstance(row.get("prefix"), str):
        return "prefix: must be a string"
    texts, beside = row.get("candidates"), row.get("reference")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return "candidates: must be a list of strings"
    if not texts:
        return "candidates: must have at least one entry"
    if not isinstance(beside, str if reference else str | None):
        return "reference: must be a string"
    return ""


def batches(lines: Iterable[bytes], size: int, reference: bool) -> Iterator[list[dict]]:
    """Yields up to `size` parsed lines at a time.

    The valid lines before a malformed one are yielded before its UserError is raised.
    """
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
    """Yields one output object per line of a batch; says why verdicts are invalid on stderr."""
    texts = [row["candidates"] for row in rows]
    K = max(map(len, texts))  # lines are padded to the largest number of candidates in the batch
    padded = [[*some, *[""] * (K - len(some))] for some in texts]
    mask_BK = np.array([[bool(text) for text in some] for some in padded])
    prefixes, references = ([row[key] for row in rows] for key in ("prefix", "reference"))
    found = judge.score(prefixes, padded, references, mask_BK)
    if why := diagnostics.reasons(found.metrics):
        print(f"invalid verdicts in {len(rows)} lines: {why}", file=sys.stderr)
    for b, some in enumerate(texts):
        aspects = {
            name: _own(score_BK[b], valid_BK[b], len(some))
            for name, (score_BK, valid_BK) in found.aspects.items()
        }
        yield {**_own(found.scores_BK[b], found.valid_BK[b], len(some)), "aspects": aspects}


def _own(score_K, valid_K, count: int) -> dict[str, list]:
    """Scores and validity of a line's own `count` candidates, without the padding."""
    score_K = np.where(valid_K, score_K, 0.0)
    return {"scores": score_K[:count].tolist(), "valid": valid_K[:count].tolist()}


def main(argv) -> None:
    """The command line."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}")
    if _CONFIG.value is None:
        raise UserError("--config is needed")
    config = _CONFIG.value
    recipe.read(config)
    if _WORKDIR.value:
        workdirs.existing(_WORKDIR.value)
    judge, wanted = build(config, chosen(config, _RUN.value), _WORKDIR.value)
    asked = wanted.backend in ("local", "http")  # the other backends read no prompt
    reference = asked and any(aspect.reference for aspect in wanted.aspects())
    lines = read_lines(sys.stdin.buffer, "stdin") if sys.stdin else []  # None: it is closed
    for rows in batches(lines, wanted.batch, reference):
        print("\n".join(map(to_json, score(judge, rows))), flush=True)


if __name__ == "__main__":
    cli.run(main)
