"""Trains a rewriter on the micro-world: supervised steps, then GRPO with a judge's rewards.

    python -m sip.train --config=configs/microworld_rewriter.py --workdir=/tmp/sip-rewriter
    python -m sip.train --config=configs/microworld_rewriter.py:truth --workdir=/tmp/sip-upper
    python -m sip.train --config=configs/microworld_rewriter.py:debug --workdir=/tmp/sip-debug

Corpus, tokenizer, base, tutor and judge are those of microworld.py. Run `rewriter` is stopped
early. `rewriter_rl` continues it and sees no corrected suffixes. With `truth` the ground truth is
the judge, an upper bound. Hardware: 2 CPU cores. Not yet run in full: the learning rate is a guess.
"""

from typing import Any

import _common as common
import _rl as rl
import _variants as variants
import microworld
from ml_collections import ConfigDict

START, FULL = 250, 800  # supervised steps, of so many: most rewrites still have a wrong word
VARIANTS = {"truth", "debug"}


def get_config(arg: str = "") -> ConfigDict:
    """Builds base, judge and the two runs of the rewriter; `arg` has comma-separated variants."""
    wanted = set(variants.words(arg))
    if not wanted <= VARIANTS:
        raise ValueError(f"configs/microworld_rewriter.py: {arg!r} must be of {sorted(VARIANTS)}")
    debug, known = "debug" in wanted, "truth" in wanted
    config: Any = microworld.get_config("debug" if debug else "")
    runs = config.runs
    runs.rewriter.init_from = "base"  # microworld.py's begins as the tutor, which hardly errs
    base, tutor, judge, rewriter = runs.base, runs.tutor, runs.judge, runs.rewriter
    if not debug:
        # The learning-rate schedule keeps its full length; only the run ends earlier.
        rewriter.optim.steps, rewriter.steps = FULL, START
    rewriter_rl = rl.rewriter_run(
        model=rewriter.model,
        split=rewriter.split,
        steps=300,
        batch=32,
        init_from="rewriter",
        optim=common.adamw(1e-4, warmup_steps=10, schedule="constant", weight_decay=0.0),
        rewrites=dict(prompt=rewriter.task.prompt, held_out=300, max_invalid=0.5),
        judge=common.rewrites_judge("truth")
        if known
        else common.rewrites_judge("local", init_from="judge", proofread=microworld.READ),
        rollouts=8,
        answer=24 + 24 // 4 + 1,  # a suffix of 24 tokens, a quarter more, and the end token
        sampling=common.section(temperature=1.0, top_k=0, top_p=1.0),
        objective=rl.policy_gradient(),
    )
    if debug:
        rl.shrink(rewriter_rl)
        rewriter_rl.task.held_out = 40
        rewriter_rl.task.judge.min_mass = 0.0  # options have little probability after six steps
    config.runs = dict(
        base=base, tutor=tutor, judge=judge, rewriter=rewriter, rewriter_rl=rewriter_rl
    )
    config.order = ("base", "tutor", "judge", "rewriter", "rewriter_rl")
    if known:
        del config.runs.judge, config.runs.tutor
        config.order = ("base", "rewriter", "rewriter_rl")
    config.report = dict(
        rows=("base",), judge="" if known else "judge", standard="", rewriter="rewriter_rl"
    )
    return config
