"""Compares comparison schedules by cost and by the trained policy: one run per schedule.

    python -m sip.train --config=configs/microworld_schedules.py --workdir=/tmp/sip-schedules
    python -m sip.train --config=configs/microworld_schedules.py:all,adaptive --workdir=/tmp/two
    python -m sip.train --config=configs/microworld_schedules.py:truth --workdir=/tmp/sip-truth
    python -m sip.train --config=configs/microworld_schedules.py:debug --workdir=/tmp/sip-debug

Every run is microworld.py's `sip_learned` for 100 steps, with `truth` its `sip_oracle` for 32, with
eight rollouts. This makes ten candidates per prefix, and 90 comparisons with schedule `all`. Runs
with one seed see the same prefixes.
Variant words after the colon, separated by commas: names of schedules (default: all), `truth` (the
ground truth is judge and rewriter), `debug` (tiny). Hardware: 2 CPU cores.
"""

from typing import Any

import _common as common
import _variants as variants
import microworld
from ml_collections import ConfigDict

K, STEPS = 8, 100  # rollouts per prefix; steps of a run
TRUE_STEPS = 32  # of a run with the ground truth
SCHEDULES = dict(
    all=common.schedule("all"),
    pivot=common.schedule("pivot"),
    random=common.schedule("random"),
    adaptive=common.schedule("adaptive"),
    adaptive_half=common.schedule("adaptive", budget=0.5),
)
WORDS = ("debug", "truth")


def get_config(arg: str = "") -> ConfigDict:
    """Builds the runs of the schedules in `arg` (default: all), after the runs that they need."""
    words = variants.words(arg)
    names = variants.named(words, SCHEDULES, WORDS, "microworld_schedules.py")
    config: Any = microworld.get_config("debug" if "debug" in words else "")
    true = "truth" in words
    needed = ("base",) if true else ("base", "tutor", "judge", "rewriter")
    policy = config.runs.sip_oracle if true else config.runs.sip_learned
    config.runs = {n: config.runs[n] for n in needed} | {n: scheduled(policy, n) for n in names}
    config.order = (*needed, *names)
    config.report = dict(
        rows=("base", *names),
        judge="" if true else "judge",
        standard="",
        rewriter="" if true else "rewriter",
    )
    return config


def scheduled(policy, name: str) -> ConfigDict:
    """Copies the policy's run with schedule `name`, and with K rollouts if it has any."""
    run = policy.copy_and_resolve_references()
    most = TRUE_STEPS if run.judge.backend == "truth" else STEPS
    run.judge.schedule, run.steps = SCHEDULES[name], min(run.steps, most)
    run.candidates.rollouts = tuple((at, K if k else 0) for at, k in run.candidates.rollouts)
    return run
