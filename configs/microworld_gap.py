"""Is the pre-flight right? SIP with four judges of known accuracy, from one base model.

    python -m sip.train --config=configs/microworld_gap.py --workdir=/tmp/gap
    python -m sip.gap --config=configs/microworld_gap.py --workdir=/tmp/gap \\
        --run=sip_exact,sip_good,sip_weak,sip_adversarial
    python -m sip.gap --config=configs/microworld_gap.py --workdir=/tmp/gap

The judges are the ground truth; `good`, `weak` and `adversarial` invert 10 %, 35 % and all of their
verdicts. The second command predicts the gain of each run, before it is trained or after: then the
gain that was made stands beside it. The third measures the gap of all judges on base, and compares
all policies on test prefixes. plots/journey.png is the curve of SIP by the judge's accuracy. To
reuse a base model: --from=WORKDIR of configs/microworld.py.
`:debug` is tiny. Hardware: 2 CPU cores.
"""

from typing import Any

import _common as common
import microworld
from ml_collections import ConfigDict

ACCURACY = dict(exact=1.0, good=0.9, weak=0.65, adversarial=0.0)  # share of exact verdicts
K = 4  # rollouts per prefix


def get_config(arg: str = "") -> ConfigDict:
    """Builds the config; `debug` makes it tiny."""
    debug = common.is_debug(arg, "microworld_gap.py")
    config: Any = microworld.get_config(arg)
    judges = {name: common.judge("truth", accuracy=x) for name, x in ACCURACY.items()}
    runs = {f"sip_{name}": sip_run(config.runs.sip_oracle, one) for name, one in judges.items()}
    config.runs = {"base": config.runs.base, **runs}
    config.order = ("base", *runs)
    config.report = dict(rows=("base", *runs), judge="", standard="", journeys=(tuple(runs),))
    config.gap = common.gap(("base", *runs), judges, split="test")
    if debug:
        config.gap.update(prompts=8, answers=4, batch=8)
    return config


def sip_run(run, judge) -> ConfigDict:
    """Builds the run of a judge: it chooses among the suffix and K rollouts."""
    made = run.copy_and_resolve_references()
    made.steps = max(made.steps, 100) if made.steps > 8 else made.steps  # debug has 4
    made.judge = judge
    made.candidates = common.candidates(rewrite=False, rollouts=K)
    return made
