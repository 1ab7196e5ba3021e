"""Measures the generation-verification gap: is a judge's choice better than what a policy writes?

    python -m sip.gap --config=configs/gap.py --workdir=DIR

Answers of the policies in the section `gap` of the config are written, verified by its judges and
valued by the corpus's ground truth, by the check of problems or by an audit judge. Prints gaps,
relative gaps and their cost for each policy, judge and filter (docs/gap.md).

    python -m sip.gap --config=configs/microworld.py --run=sip_learned --workdir=DIR

Pre-flight of self-improving runs, before any training: will this judge improve this policy on this
data, by how much, and how much would a perfect judge? --run=a,b compares several runs. Of a run
that is already trained the rise of its policy is shown beside the prediction.

--json or --markdown print these formats; --out=FILE.json or FILE.md writes them.
"""

import json
from collections.abc import Iterable
from typing import Any

from absl import flags
from etils import epath

from sip import cli
from sip import workdir as workdirs
from sip.evals.intervals import IntervalConfig
from sip.gap import measure, preflight, settings, show
from sip.report.tables import untrained
from sip.run import Run
from sip.stages import recipe, selfimprove
from sip.structs import UserError
from sip.workdir import to_json

_CONFIG = cli.config_flag()
_WORKDIR = cli.workdir_flag()
_RUN = cli.shared(
    flags.DEFINE_string, "run", None, "Self-improving runs for a pre-flight, comma-separated."
)
_PREFIXES = cli.shared(cli.count_flag, "prefixes", 128, "Pre-flight: least number of prefixes.")
_OUT = cli.shared(cli.path_flag, "out", None, "File to write: FILE.json or FILE.md.")
_ANSWERS = cli.path_flag("answers", "", "File to write the answers and their scores to (.jsonl).")
_JSON = cli.json_flag()
_MARKDOWN = flags.DEFINE_bool("markdown", False, "Print Markdown to stdout instead of a table.")


def preflights(config, names: list[str], workdir: str, prefixes: int) -> list[dict[str, Any]]:
    """Returns the figures of the pre-flights of several runs. Raises UserError."""
    found = []
    for name in names:
        if name not in config.runs or config.runs[name].stage != "selfimprove":
            known = [k for k, run in config.runs.items() if run.stage == "selfimprove"]
            raise UserError(
                f"--run: {name!r} is no self-improving run; there are {', '.join(known) or 'none'}"
            )
    for name in names:
        c = selfimprove.resolve(config, name)
        found.append(preflight.preflight(Run(config, name, workdir), c, prefixes, IntervalConfig()))
    return found


def _untrained(config, policies: Iterable[str]) -> list[str]:
    """Returns a line if the policies are runs of a recipe that hardly trains, such as `:debug`."""
    line = untrained(config) if set(policies) <= set(config.runs) else ""
    return [line] if line else []


def _check_flags() -> None:
    if _CONFIG.value is None:
        raise UserError("--config is needed")
    if not _WORKDIR.value:
        raise UserError("--workdir is needed: policies, corpus and tokenizer are read from it")
    if _JSON.value and _MARKDOWN.value:
        raise UserError("--json and --markdown exclude each other")
    if _OUT.value and not str(_OUT.value).endswith((".json", ".md")):
        raise UserError(f"--out {_OUT.value}: must end in .json or .md")
    if _ANSWERS.value and not str(_ANSWERS.value).endswith(".jsonl"):
        raise UserError(f"--answers {_ANSWERS.value}: must end in .jsonl")
    if _ANSWERS.value and _RUN.value:
        raise UserError("--answers is for the measurement of the section gap, not for --run")


def main(argv) -> None:
    """The command line."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}")
    _check_flags()
    config, workdir = _CONFIG.value, str(_WORKDIR.value)
    if recipe.read(config).compile == "quick":
        cli.compile_quickly()
    outputs = {"out": str(_OUT.value or ""), "answers": str(_ANSWERS.value)}
    workdirs.never_an_input(outputs, [cli.config_file()])
    if _RUN.value:
        workdirs.existing(workdir)
        names = list(dict.fromkeys(name.strip() for name in str(_RUN.value).split(",")))
        runs = preflights(config, names, workdir, int(_PREFIXES.value))
        found: dict[str, Any] = {"kind": "preflight", "runs": runs}
        heads, grids = show.preflights(runs)
        heads += _untrained(config, (one["policy"] for one in runs))
    else:
        cfg, verifiers = settings.read(config)
        if set(cfg.policies) & set(config.runs):
            workdirs.existing(workdir)
        read = (cfg.problems.path, cfg.problems.test) if cfg.problems else ()
        workdirs.never_an_input(outputs, read)
        found, lines = measure.measure(config, workdir, cfg, verifiers)
        heads, grids = show.gaps(json.loads(to_json(found)))
        heads += _untrained(config, cfg.policies)
        if _ANSWERS.value:
            text = "".join(f"{to_json(line)}\n" for line in lines)
            workdirs.write_atomically(epath.Path(str(_ANSWERS.value)), text.encode())
    if _JSON.value:
        print(to_json(found, indent=1))
    elif _MARKDOWN.value:
        print(show.markdown(heads, grids))
    else:
        show.terminal(heads, grids)
    if _OUT.value:
        text = (
            show.markdown(heads, grids)
            if str(_OUT.value).endswith(".md")
            else to_json(found, indent=1)
        )
        workdirs.write_atomically(epath.Path(str(_OUT.value)), f"{text}\n".encode())


if __name__ == "__main__":
    cli.run(main)
