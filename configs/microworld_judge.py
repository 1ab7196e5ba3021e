"""Trains a judge on the micro-world: some supervised steps, then GRPO on its own verdicts.

    python -m sip.train --config=configs/microworld_judge.py --workdir=/tmp/sip-judge
    python -m sip.train --config=configs/microworld_judge.py:debug --workdir=/tmp/sip-judge-debug

Corpus, tokenizer, base and tutor are those of microworld.py. Run `judge` is stopped early.
`judge_rl` continues it; its answer is the verdict only, without reasoning. Hardware: 2 CPU cores.
"""

from typing import Any

import _common as common
import _rl as rl
import microworld
from ml_collections import ConfigDict

START = 100  # supervised steps, a third of microworld.py's, so that verdicts are often wrong


def get_config(arg: str = "") -> ConfigDict:
    """Builds base, tutor and the two runs of the judge; `debug` makes them tiny."""
    debug = common.is_debug(arg, "microworld_judge.py")
    config: Any = microworld.get_config(arg)
    base, tutor, judge = config.runs.base, config.runs.tutor, config.runs.judge
    if not debug:
        # The learning-rate schedule keeps its full length; only the run ends earlier.
        judge.optim.steps, judge.steps = judge.steps, START
    labels = judge.task.labels.copy_and_resolve_references()
    del labels.grades, labels.grades_weight
    judge_rl = rl.judge_run(
        model=judge.model,
        split=judge.split,
        steps=300,
        batch=96,
        oversample=6,  # most groups are all right or all wrong, and have no gradient
        init_from="judge",
        optim=common.adamw(6e-4, warmup_steps=10, weight_decay=0.0),
        labels=labels,
        rollouts=16,
        answer=1,
        both_orders=True,  # otherwise the judge alternates between preferring first and second
        sampling=common.section(temperature=1.0, top_k=0, top_p=1.0),
        objective=rl.policy_gradient(),
    )
    if debug:
        rl.shrink(judge_rl)
    config.runs = dict(base=base, tutor=tutor, judge=judge, judge_rl=judge_rl)
    config.order = ("base", "tutor", "judge", "judge_rl")
    config.report = dict(rows=("base",), judge="judge_rl", standard="")
    return config
