"""Trains the main job's runs and those that question them, on the micro-world.

    python -m sip.train --config=configs/microworld_evidence.py --workdir=/tmp/evidence \
        --seeds=4,6,8 --config.data.world.seed=2
    python -m sip.train --config=configs/microworld_evidence.py:debug --workdir=/tmp/debug

To the runs of microworld.py it adds:
    standard_matched  standard pretraining for five times the steps, about the time of SIP
    judge_unmarked    a judge that reads texts without the proofreader's marks
    sip_unmarked      SIP with that judge
    judge_untaught    a judge that learned from corruptions of the corpus's own text, no labels
    sip_untaught      SIP with that judge, without a rewriter: nothing is from the ground truth
    sip_marks         SIP without a judge: the text with fewer of the proofreader's marks wins
    sip_rewrites      SFT on the learned rewriter's rewrites, without a judge
Hardware: 2 CPU cores.
"""

from typing import Any

import _common as common
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
    """Builds the config; `debug` makes it tiny."""
    debug = common.is_debug(arg, "microworld_evidence.py")
    config: Any = microworld.get_config(arg)
    config.runs.update(added(config.runs, debug))
    config.order = (*config.order, *ADDED)
    rows = [name for name in config.order if not name.startswith(("judge", "rewriter"))]
    config.report.rows = tuple(rows)
    return config


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
