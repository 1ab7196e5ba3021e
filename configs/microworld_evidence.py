"""Trains the main job's runs and those that question them, on the micro-world.

    python -m sip.train --config=configs/microworld_evidence.py --workdir=/tmp/evidence \
        --seeds=4,6,8 --config.data.world.seed=2
    python -m sip.train --config=configs/microworld_evidence.py:sip_marks,sip_rewrites \
        --workdir=/tmp/marks --from=/tmp/evidence
    python -m sip.train --config=configs/microworld_evidence.py:debug --workdir=/tmp/debug

To the runs of microworld.py it adds:
    standard_matched  standard pretraining for five times the steps, about the time of SIP
    judge_unmarked    a judge that reads texts without the proofreader's marks
    sip_unmarked      SIP with that judge
    judge_untaught    a judge that learned from corruptions of the corpus's own text, no labels
    sip_untaught      SIP with that judge, without a rewriter: nothing is from the ground truth
    sip_marks         SIP without a judge: the text with fewer of the proofreader's marks wins
    sip_rewrites      SFT on the learned rewriter's rewrites, without a judge
With names of these after the colon it trains those and what they need. Hardware: 2 CPU cores.
"""

from typing import Any

import _common as common
import _variants as variants
import microworld
import microworld_ablations as ablations
import own_text
from ml_collections import ConfigDict

ADDED = (
    "standard_matched",
    "judge_unmarked",
    "sip_unmarked",
    "judge_untaught",
    "sip_untaught",
    "sip_marks",
    "sip_rewrites",
)


def get_config(arg: str = "") -> ConfigDict:
    """Builds the main job and the runs that `arg` names (default: all); `debug` makes it tiny."""
    words = variants.words(arg)
    named = variants.named(words, ADDED, ("debug",), "microworld_evidence.py")
    debug = "debug" in words
    config: Any = microworld.get_config("debug" if debug else "")
    config.runs.update(added(config.runs, debug))
    config.order = (*config.order, *ADDED)
    if named != list(ADDED):
        keep(config, named)
    rows = [name for name in config.order if not name.startswith(("judge", "rewriter"))]
    config.report.rows = tuple(rows)
    return config


def keep(config: Any, named: list[str]) -> None:
    """Leaves out the runs that the named ones do not need."""
    judges = {config.runs[name].judge.init_from for name in named if "judge" in config.runs[name]}
    kept = {"base", "tutor", "rewriter", *named, *judges}
    config.order = tuple(name for name in config.order if name in kept)
    config.runs = {name: config.runs[name] for name in config.order}
    config.report.update(judge="", standard="")


def added(main: Any, debug: bool) -> dict:
    """Returns the runs that question those of the main job, derived from its runs `main`."""
    copied = lambda name: main[name].copy_and_resolve_references()
    matched, judge = copied("standard"), copied("judge")
    unmarked, untaught, marks, rewrites = (copied("sip_learned") for _ in range(4))
    matched.steps *= ablations.MATCHED
    judge.task.labels.proofread = common.proofread()
    unmarked.judge.update(init_from="judge_unmarked", proofread=common.proofread())
    untaught.update(
        judge=common.judge("local", init_from="judge_untaught", weights=own_text.QUALITY),
        rewriter=common.rewriter("local"),
        candidates=common.candidates(rewrite=False),
        objective=common.objective(**own_text.OBJECTIVE),
    )
    untaught.judge.min_mass = main.sip_learned.judge.min_mass
    marks.judge = common.judge(
        "rule", rule="fewer_marks", weights=own_text.QUALITY, proofread=microworld.READ
    )
    rewrites.candidates = common.candidates(**ablations.FIXED["sft_rewrite"])
    if debug:
        untaught.candidates.rollouts = main.sip_learned.candidates.rollouts
    runs = (matched, judge, unmarked, untaught_judge(main.judge, debug), untaught, marks, rewrites)
    return dict(zip(ADDED, runs, strict=True))


def untaught_judge(judge: Any, debug: bool) -> ConfigDict:
    """Builds the run of a judge without labels; size, split and optimiser are those of `judge`."""
    run = common.corrupted_judge_run(
        model=judge.model,
        split=judge.split,
        steps=6 if debug else 200,
        batch=judge.batch,
        init_from="base",  # the tutor has learned from the ground truth
        optim=judge.optim,
        aspect="quality",
        kinds=own_text.CORRUPTIONS,
        source="base",
        rollouts=2,
    )
    for name in ("checkpoint", "log"):
        run[name] = judge[name].copy_and_resolve_references()
    if debug:
        run.task.corrupted.update(documents=20, held_out=10)
    return run
