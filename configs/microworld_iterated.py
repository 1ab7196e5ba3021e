"""Compares a judge that is retrained on rollouts of the current policy with a fixed judge.

    python -m sip.train --config=configs/microworld_iterated.py --workdir=/tmp/sip-iterated
    python -m sip.train --config=configs/microworld_iterated.py:debug --workdir=/tmp/sip-debug

The runs up to `judge` and `rewriter` are those of microworld.py. `first` trains a policy without
rollouts. Two runs continue it with rollouts: `fixed` with the same judge, and `refreshed` with
`judge_again`, a judge trained further on verdicts about rollouts of `first`. Hardware: 2 CPU cores.
"""

from typing import Any

import _common as common
import microworld
from ml_collections import ConfigDict

STEPS = dict(first=60, judge_again=160, fixed=100, refreshed=100)


def get_config(arg: str = "") -> ConfigDict:
    """Builds the config; `debug` makes it tiny."""
    debug = common.is_debug(arg, "microworld_iterated.py")
    config: Any = microworld.get_config(arg)
    learned, judge = config.runs.sip_learned, config.runs.judge
    copied = lambda run: run.copy_and_resolve_references()
    first, fixed, again = copied(learned), copied(learned), copied(judge)
    first.candidates.rollouts = ((0, 0),)
    fixed.init_from, fixed.candidates.rollouts = "first", ((0, 4),)
    again.init_from, again.task.labels.source = "judge", "first"
    again.optim.lr = judge.optim.lr / 3  # lower, because the judge is trained already
    refreshed = copied(fixed)
    refreshed.judge.init_from = "judge_again"
    runs = dict(first=first, judge_again=again, fixed=fixed, refreshed=refreshed)
    for name, run in runs.items():
        run.steps = run.steps if debug else STEPS[name]
    before = ("base", "tutor", "judge", "rewriter")
    config.runs = {name: config.runs[name] for name in before} | runs
    config.order = (*before, *runs)
    config.report = dict(
        rows=("base", "first", "fixed", "refreshed"),
        judge="judge_again",
        standard="",
        rewriter="rewriter",
    )
    return config
