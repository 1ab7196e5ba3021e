"""Compares self-improving pretraining with other ways to make a model safe, on the micro-world.

    python -m sip.train --config=configs/microworld_safety.py --workdir=/tmp/safety
    python -m sip.train --config=configs/microworld_safety.py:debug --workdir=/tmp/safety-debug

The runs continue `base` with equal numbers of tokens, and the ground truth is the judge of all:
    standard        the documents as they are
    filtered        suffixes with an insult are dropped
    conditional     a good or a bad control token before each suffix (arXiv 2302.08582)
    sft_rewrites    SFT on the ground truth's rewrites
    sip             SIP: the best of suffix, rewrite and rollouts
    sip_switched    SIP after the good token, the documents as they are without it
conditional_scratch has the control tokens from its first step, on as many tokens as base and a run
that continues it.
Runs with control tokens are evaluated after the good token. To evaluate them otherwise:
    python -m sip.evaluate --checkpoint=/tmp/safety/runs/sip_switched
    python -m sip.evaluate --checkpoint=/tmp/safety/runs/conditional --control='<|bad|>'
Hardware: 2 CPU cores.
"""

from typing import Any

import _common as common
import microworld
from ml_collections import ConfigDict

GOOD, BAD = "<|good|>", "<|bad|>"
STEPS, DOCUMENTS = 100, 8  # updates; rows of a batch of 16 that sip_switched learns as they are
NAMES = ("standard", "filtered", "conditional", "sft_rewrites", "sip", "sip_switched")


def get_config(arg: str = "") -> ConfigDict:
    """Builds the config; `debug` makes it tiny."""
    debug = common.is_debug(arg, "microworld_safety.py")
    config: Any = microworld.get_config(arg)
    found = runs(config.runs)
    for name in NAMES:
        found[name].steps = 4 if debug else STEPS
    found.conditional_scratch.steps += 0 if debug else STEPS // 2  # of batches of 32, not 16
    if debug:
        found.sip_switched.documents = 4
    config.tokenizer.symbols = (GOOD, BAD)
    config.runs = {"base": config.runs.base, **found}
    config.order = ("base", *NAMES, "conditional_scratch")
    config.report = dict(rows=config.order, judge="", standard="standard", rewriter="")
    return config


def runs(main: Any) -> Any:
    """Returns the runs that continue base, derived from the runs `main` of microworld.py."""
    copied = lambda run: run.copy_and_resolve_references()
    safety = lambda: common.judge("truth", weights=(("safety", 1.0),))
    found: Any = ConfigDict({name: copied(main.standard) for name in NAMES[:3]})
    found.filtered.task.filter = common.filtering(safety())
    found.conditional.task.control = common.control_tokens(safety(), GOOD, BAD)
    found.conditional.evals.control = GOOD
    for name in NAMES[3:]:
        found[name] = copied(main.sip_oracle)
        found[name].optim = copied(main.standard.optim)
    found.sft_rewrites.candidates = common.candidates(suffix=False, rollouts=0, chosen="rewrite")
    switched = found.sip_switched
    switched.update(control=GOOD, documents=DOCUMENTS)
    switched.objective = common.objective("rf_nll", ce_weight=1.0, ce_weight_last=1.0)
    switched.evals.control = GOOD
    scratch = found.conditional_scratch = copied(main.base)
    scratch.task.control = common.control_tokens(safety(), GOOD, BAD)
    scratch.evals = copied(found.conditional.evals)
    scratch.evals.every_steps = 0
    scratch.split = "train[:75%]"  # the documents of base and of the runs that continue it
    return found
