"""Measures how SIP's gain depends on model size, and on rollouts at equal compute.

    python -m sip.train --config=configs/microworld_scaling.py:sizes --workdir=/tmp/sizes \\
        --seeds=0,1,2
    python -m sip.train --config=configs/microworld_scaling.py:rollouts --workdir=/tmp/rollouts \\
        --seeds=0,1,2

`sizes`: three widths (those of gap.py, whose bases can be copied by --from), each pretrained on the
same documents for as many steps, then continued by standard pretraining and by SIP.
`rollouts`: SIP with 1, 2, 4, 8 and 16 rollouts per prefix. The more rollouts, the fewer steps, so
that all runs cost as much as STEPS steps with 4; what a judge costs is not counted.
The ground truth is the judge, and candidates are the suffix and the rollouts. plots/journey.png is
the curve; its bars are standard deviations over seeds. summary.json has the paired differences. The
curve over judges of known accuracy is that of microworld_gap.py.
`:sizes,debug` is tiny. Hardware: 2 CPU cores.
"""

from typing import Any

import _common as common
import _variants as variants
import gap
import microworld
import microworld_gap
from ml_collections import ConfigDict

STEPS = 100  # of SIP with 4 rollouts
ROLLOUTS = (1, 2, 4, 8, 16)


def get_config(arg: str = "") -> ConfigDict:
    """Builds the recipe of a curve: `sizes` (the default) or `rollouts`, `debug` makes it tiny."""
    words = variants.words(arg)
    curves = dict(sizes=sizes, rollouts=rollouts)
    debug = "debug" in words
    asked = [word for word in words if word != "debug"] or ["sizes"]
    (name, *more) = variants.named(asked, curves, (), "microworld_scaling.py")
    if more:
        raise ValueError("configs/microworld_scaling.py: one curve at a time, sizes or rollouts")
    config: Any = microworld.get_config("debug" if debug else "")
    truth = common.judge("truth")
    sip = microworld_gap.sip_run(config.runs.sip_oracle, truth)
    return curves[name](config, sip, debug)


def sizes(config, sip, debug: bool) -> ConfigDict:
    """Builds a base of each width, and beside each standard pretraining and SIP."""
    base, standard, config.runs = config.runs.base, config.runs.standard, {}
    for size, width in gap.WIDTHS.items():
        shape = gap.measures(width // 8 if debug else width)
        config.runs[f"base_{size}"] = gap.sized(base, shape)
        for name, run in dict(standard=standard, sip=sip).items():
            made = config.runs[f"{name}_{size}"] = gap.sized(run, shape)
            made.init_from = made.evals.baseline = f"base_{size}"
    config.order = tuple(config.runs)
    journeys = tuple(tuple(f"{name}_{size}" for size in gap.WIDTHS) for name in ("standard", "sip"))
    config.report = dict(rows=config.order, judge="", standard="", journeys=journeys)
    return config


def rollouts(config, sip, debug: bool) -> ConfigDict:
    """Builds SIP runs with different numbers of rollouts, of the same base and at equal compute."""
    config.runs = dict(base=config.runs.base, standard=config.runs.standard)
    for count in ROLLOUTS:
        made = config.runs[f"rollouts_{count}"] = sip.copy_and_resolve_references()
        made.candidates = common.candidates(rewrite=False, rollouts=count)
        made.steps = 2 if debug else steps(count, config.data.cut)
    config.order = tuple(config.runs)
    curve = tuple(f"rollouts_{count}" for count in ROLLOUTS)
    config.report = dict(rows=config.order, judge="", standard="standard", journeys=(curve,))
    return config


def steps(count: int, cut) -> int:
    """Returns the steps with `count` rollouts that cost as much as STEPS steps with 4.

    Tokens that pass the model forwards, backwards counted twice: prefix and rollouts are sampled,
    prefix and the best candidate are learned.
    """
    prefix, suffix = cut.prefix_max, cut.suffix
    cost = lambda count: prefix + count * suffix + 3 * (prefix + suffix)
    return round(STEPS * cost(4) / cost(count))
