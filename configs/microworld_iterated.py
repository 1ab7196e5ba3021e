"""A judge refreshed on what the policy writes by now, against one that stays as it was.

    python -m sip.train --config=configs/microworld_iterated.py --workdir=/tmp/sip-iterated
    python -m sip.train --config=configs/microworld_iterated.py:debug --workdir=/tmp/sip-debug

All up to `judge` and `rewriter` is microworld.py's. `first` is a policy that has learned without
rollouts. From there two ways on, with rollouts: `fixed` goes on with the same judge, `refreshed`
with `judge_again`, which was taught verdicts on rollouts of `first`. Hardware: 2 CPU cores.
"""

from typing import Any

import _common as common
import microworld
from ml_collections import ConfigDict

STEPS = dict(first=60, judge_again=160, fixed=100, refreshed=100)


def get_config(arg: str = "") -> ConfigDict:
    """The recipe, or with `debug` the same at a tiny size."""
    debug = common.is_debug(arg, "microworld_iterated.py")
    config: Any = microworld.get_config(arg)
    learned, judge = config.runs.sip_learned, config.runs.judge
    copied = lambda run: run.copy_and_resolve_references()
    first, fixed, again = copied(learned), copied(learned), copied(judge)
    first.candidates.rollouts = ((0, 0),)
    fixed.init_from, fixed.candidates.rollouts = "first", ((0, 4),)
    again.init_from, again.task.labels.source = "judge", "first"
    again.optim.lr = judge.optim.lr / 3  # it knows its trade
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
