"""What a comparison schedule costs, and what a policy makes of it: one run per schedule.

    python -m sip.train --config=configs/microworld_schedules.py --workdir=/tmp/sip-schedules
    python -m sip.train --config=configs/microworld_schedules.py:all,adaptive --workdir=/tmp/two
    python -m sip.train --config=configs/microworld_schedules.py:truth --workdir=/tmp/sip-truth
    python -m sip.train --config=configs/microworld_schedules.py:debug --workdir=/tmp/sip-debug

Every run is microworld.py's `sip_learned` with eight rollouts, so ten candidates and 90 comparisons
under `all`; runs of one seed see the same prefixes. Words after the colon, by commas: names of
schedules, `truth` (the ground truth judges and rewrites), `debug` (tiny). Hardware: 2 CPU cores.
"""

from typing import Any

import _common as common
import _variants as variants
import microworld
from ml_collections import ConfigDict

K = 8  # rollouts per prefix
SCHEDULES = dict(
    all=common.schedule("all"),
    pivot=common.schedule("pivot"),
    random=common.schedule("random"),
    adaptive=common.schedule("adaptive"),
    adaptive_half=common.schedule("adaptive", budget=0.5),
)
WORDS = ("debug", "truth")


def get_config(arg: str = "") -> ConfigDict:
    """One run per schedule named by `arg` (none: all), behind what they need."""
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
    """The policy's run with its comparisons under a schedule, and K rollouts where it has any."""
    run = policy.copy_and_resolve_references()
    run.judge.schedule = SCHEDULES[name]
    run.candidates.rollouts = tuple((at, K if k else 0) for at, k in run.candidates.rollouts)
    return run
