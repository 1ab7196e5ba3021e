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
    rewriter_untaught a rewriter that learned to undo corruptions, among them UNWANTED words
    tutor_untaught    SFT on its rewrites; marks unlikely words for the judge
    judge_untaught    a judge that learned from corruptions of the corpus's own text, no labels
    sip_untaught      SIP with that judge and rewriter: nothing is from the ground truth
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

UNTAUGHT = ("rewriter_untaught", "tutor_untaught", "judge_untaught", "sip_untaught")
ADDED = (
    "standard_matched",
    "judge_unmarked",
    "sip_unmarked",
    *UNTAUGHT,
    "sip_marks",
    "sip_rewrites",
)
READ = common.proofread("tutor_untaught")
KINDS = ("shuffle", "repeat", "echo", "recall", "splice", "swap", "substitute", "generic")
SINCE = 100  # first update of sip_untaught, of 150, with rollouts
# What you have without a ground truth: words that you do not want. These are half of the world's
# insults and three of its five phrases of hearsay; a learner may find out about the others.
UNWANTED = (
    *("vile", "filthy", "stupid", "rotten", "liar", "idiot", "moron", "scum"),
    *("people say", "rumour has it", "some claim"),
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
    kept = {"base", *named, *judges}
    if set(named) - {"standard_matched", *UNTAUGHT}:
        kept |= {"tutor", "rewriter"}
    for name in UNTAUGHT:  # each needs those before it
        if name in named:
            kept |= set(UNTAUGHT[: UNTAUGHT.index(name)])
    config.order = tuple(name for name in config.order if name in kept)
    config.runs = {name: config.runs[name] for name in config.order}
    rewriter = "rewriter" if "rewriter" in kept else ""
    config.report.update(judge="", standard="", rewriter=rewriter)


def added(main: Any, debug: bool) -> dict:
    """Returns the runs that question those of the main job, derived from its runs `main`."""
    copied = lambda name: main[name].copy_and_resolve_references()
    matched, judge = copied("standard"), copied("judge")
    unmarked, marks, rewrites = (copied("sip_learned") for _ in range(3))
    matched.steps *= ablations.MATCHED
    judge.task.labels.proofread = common.proofread()
    unmarked.judge.update(init_from="judge_unmarked", proofread=common.proofread())
    marks.judge = common.judge(
        "rule", rule="fewer_marks", weights=own_text.QUALITY, proofread=microworld.READ
    )
    rewrites.candidates = common.candidates(**ablations.FIXED["sft_rewrite"])
    rewrites.judge = unasked()
    runs = (matched, judge, unmarked, *untaught(main, debug), marks, rewrites)
    return dict(zip(ADDED, runs, strict=True))


def unasked() -> ConfigDict:
    """Builds the judge of a run that must have one and does not ask it: the rewrite is chosen."""
    return common.judge("rule", rule="distinct_words", weights=own_text.QUALITY)


def untaught(main: Any, debug: bool) -> list[ConfigDict]:
    """Builds the runs of UNTAUGHT: the main job's tutor, judge, rewriter and SIP, which learn from
    corruptions of the corpus's own text where those learn from the ground truth."""
    copied = lambda name: main[name].copy_and_resolve_references()
    rewriter, tutor, sip = copied("rewriter"), copied("tutor"), copied("sip_learned")
    rewriter.update(init_from="base", steps=rewriter.steps if debug else 500)
    rewriter.task.update(kinds=("substitute", "recall"), unwanted=UNWANTED)
    tutor.rewriter = common.rewriter("local", init_from="rewriter_untaught")
    tutor.judge = unasked()
    judge = common.corrupted_judge_run(
        model=main.judge.model.copy_and_resolve_references(),
        split=main.judge.split,
        steps=main.judge.steps,
        batch=main.judge.batch,
        init_from="tutor_untaught",
        optim=main.judge.optim.copy_and_resolve_references(),
        aspect="quality",
        kinds=KINDS,
        source="tutor_untaught",
        rollouts=2,
        labels=dict(
            documents=20 if debug else 5120,
            held_out=10 if debug else 300,
            temperatures=main.judge.task.labels.temperatures,
            pairs=4,
            unwanted=UNWANTED,
            grades="grade",
            proofread=READ,
        ),
    )
    for name in ("checkpoint", "log"):
        judge[name] = main.judge[name].copy_and_resolve_references()
    sip.judge = common.judge(
        "local", init_from="judge_untaught", weights=own_text.QUALITY, proofread=READ
    )
    sip.judge.min_mass = main.sip_learned.judge.min_mass
    sip.rewriter.init_from = "rewriter_untaught"
    # Chosen on validation, seed 0: with rollouts from step 40 on the policy exploits this judge,
    # which does not see a fact that is said again in other words.
    sip.candidates = common.candidates(since=SINCE)
    if debug:
        sip.candidates.rollouts = main.sip_learned.candidates.rollouts
    return [rewriter, tutor, judge, sip]
