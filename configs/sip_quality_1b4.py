"""Self-improving pretraining for quality at the scale of arXiv 2601.21343, a 1.4 B policy.

    python -m sip.train --config=configs/sip_quality_1b4.py:v5e-64 --workdir=gs://BUCKET/quality \
        --config.data.path=NAME:text --config.tokenizer.path=FILE.model \
        --config.runs.sip.init_from=DIR --config.runs.sip.judge.init_from=DIR

Settings of the paper: online DPO between the best and the worst of the suffix and 16 rollouts,
ranked by all ordered pairs; batch 256, sequences of 2048 tokens with suffixes of 128, 2000 steps,
learning rate 5e-6 with a warmup of 100 steps and cosine decay to a tenth. Our choices: beta 0.1,
AdamW's other settings, and direct verdicts (variant `reasoned` is like the paper's judge).

NAME is a TFDS data set under WORKDIR/data (tpu/corpus.py builds one). `init_from` is a base model
of this architecture with Llama 2's tokenizer. The judge comes from configs/judge_llama8b.py, or is
a server.
`:debug` is tiny.

Hardware: chosen by the variant; not yet run. Minimum times by `python -m sip.aot` (of the programs
of sip_factuality_1b4.py without that aspect): 14.5 s per step on 64 TPU v5e (0.34 days in all), 4.0
s on 256 v5e (0.09 days), 6.1 s on 64 v5p (0.14 days), 6.0 s on 64 v6e (0.14 days). The judge's 272
comparisons per prefix take most of it. `h200` has batches of 16 and is not compiled; its FLOPs
alone take 11 s per step.
"""

import _paper
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Builds a config with one run, `sip`; see _paper.py for the variants."""
    return _paper.continual(
        arg, "sip_quality_1b4.py", data="slim_pajama:text", aspects=("quality",)
    )
