"""Self-improving pretraining from fresh parameters at the scale of arXiv 2601.21343.

    python -m sip.train --config=configs/sip_scratch_1b4.py:v5e-64 --workdir=gs://BUCKET/scratch \
        --config.data.path=NAME:text --config.tokenizer.path=FILE.model \
        --config.runs.sip.judge.init_from=DIR --config.runs.sip.rewriter.init_from=DIR

The paper's: RF-NLL on the better of a rewrite and one rollout, 21,000 steps at a cosine of 5e-4
after 2000 steps; the rest is that of configs/sip_quality_1b4.py. Ours: rewards by quality plus
safety. The rewriter is one of configs/rewriter_llama8b.py. `:debug` is tiny, with a suffix for a
rewrite.
Hardware: by the variant, never run. By `python -m sip.aot` all programs fit 64 TPU v5e, and a step
takes at least 64 s (15 days in all): the 8 B rewriter's parameters are gathered again for each
token that it writes, and 59 s go to that. Operations alone are 2.4 s a step there, and 1.9 s on
`h200`, in batches of 16, not compiled.
"""

import _common as common
import _paper
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """One run, `sip`; words of the variant as in _paper.py."""
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
