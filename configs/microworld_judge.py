"""A judge on the micro-world: a few supervised steps, then its own verdicts' rewards (GRPO).

    python -m sip.train --config=configs/microworld_judge.py --workdir=/tmp/sip-judge
    python -m sip.train --config=configs/microworld_judge.py:debug --workdir=/tmp/sip-judge-debug

Corpus, tokenizer, base model and tutor are those of microworld.py. `judge` is stopped early;
`judge_rl` goes on from it, and has to say nothing but the verdict. Hardware: 2 CPU cores.
"""

from typing import Any

import _common as common
import _rl as rl
import microworld
from ml_collections import ConfigDict

START = 100  # supervised steps, a third of microworld.py's: the verdicts are often wrong


def get_config(arg: str = "") -> ConfigDict:
    """The base model and the two runs of the judge, or with `debug` the same at a tiny size."""
    debug = common.is_debug(arg, "microworld_judge.py")
    config: Any = microworld.get_config(arg)
    base, tutor, judge = config.runs.base, config.runs.tutor, config.runs.judge
    if not debug:
        judge.optim.steps, judge.steps = judge.steps, START  # stopped early, not shortened
    labels = judge.task.labels.copy_and_resolve_references()
    del labels.grades, labels.grades_weight
    judge_rl = rl.judge_run(
        model=judge.model,
        split=judge.split,
        steps=300,
        batch=96,
        oversample=6,  # most verdicts are all right or all wrong, and teach nothing
        init_from="judge",
        optim=common.adamw(6e-4, warmup_steps=10, weight_decay=0.0),
        labels=labels,
        rollouts=16,
        answer=1,
        both_orders=True,  # else the judge swings between preferring the first and the second
        sampling=common.section(temperature=1.0, top_k=0, top_p=1.0),
        objective=rl.policy_gradient(),
    )
    if debug:
        rl.shrink(judge_rl)
    config.runs = dict(base=base, tutor=tutor, judge=judge, judge_rl=judge_rl)
    config.order = ("base", "tutor", "judge", "judge_rl")
    config.report = dict(rows=("base",), judge="judge_rl", standard="")
    return config
