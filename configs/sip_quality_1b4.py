"""Self-improving pretraining for quality at the scale of arXiv 2601.21343, a 1.4 B policy.

    python -m sip.train --config=configs/sip_quality_1b4.py:v5e-64 --workdir=gs://BUCKET/quality \
        --config.data.path=NAME:text --config.tokenizer.path=FILE.model \
        --config.runs.sip.init_from=DIR --config.runs.sip.judge.init_from=DIR

The paper's: online DPO between the best and the worst of the suffix and 16 rollouts by all ordered
pairs, batch 256, sequences of 2048 tokens with suffixes of 128, 2000 steps, cosine to a tenth of
5e-6 after 100 steps. Ours: beta 0.1, AdamW's other numbers, and direct verdicts (`reasoned`: as the
paper's judge). NAME is a TFDS data set under WORKDIR/data; `init_from` a base model of these shapes
with Llama 2's tokenizer; the judge one of configs/judge_llama8b.py, or a server. `:debug` is tiny.
Hardware: by the variant, never run: by `python -m sip.aot` a step takes at least 36 s on 64 TPU
v5e (0.8 days in all), 10.6 s on 256 (0.24 days), 15 s on 64 v5p (0.35 days), 14 s on 64 v6e (0.3
days), nearly all of it for the judge's 272 comparisons a prefix. `h200`: batches of 16, not
compiled; operations alone are 26 s a step.
"""

import _paper
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """One run, `sip`; words of the variant as in _paper.py."""
    return _paper.continual(
        arg, "sip_quality_1b4.py", data="slim_pajama:text", aspects=("quality",)
    )
