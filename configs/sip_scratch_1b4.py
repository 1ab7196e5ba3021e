"""Self-improving pretraining from fresh parameters at the scale of arXiv 2601.21343.

    python -m sip.train --config=configs/sip_scratch_1b4.py:v5e-64 --workdir=gs://BUCKET/scratch \
        --config.data.path=NAME:text --config.tokenizer.path=FILE.model \
        --config.runs.sip.judge.init_from=DIR --config.runs.sip.rewriter.init_from=DIR

Settings of the paper: RF-NLL on the better one of a rewrite and one rollout, 21,000 steps, learning
rate 5e-4 with a warmup of 2000 steps and cosine decay; all others as in configs/sip_quality_1b4.py.
Our choice: rewards by quality plus safety. The rewriter comes from configs/rewriter_llama8b.py.
`:debug` is tiny and uses the suffix instead of a rewrite.

Hardware: chosen by the variant; not yet run. By `python -m sip.aot` all programs fit on 64 TPU v5e,
and a step takes at least 64 s (15 days in all). 59 s of it gather the parameters of the 8 B
rewriter, once per written token. FLOPs alone take 2.4 s per step there. `h200` has batches of 16
and is not compiled; its FLOPs alone take 1.9 s per step.
"""

import _common as common
import _paper
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Builds a config with one run, `sip`; see _paper.py for the variants."""
    return _paper.get_config(
        arg,
        "sip_scratch_1b4.py",
        data="slim_pajama:text",
        aspects=("quality", "safety"),
        steps=21_000,
        optim=common.adamw(5e-4, warmup_steps=2000, weight_decay=0.1, b2=0.95),
        objective="rf_nll",
        candidates=common.candidates(suffix=False, rollouts=1),
        init_from="",
    )
