"""Self-improving pretraining for factuality and quality at the scale of arXiv 2601.21343.

    python -m sip.train --config=configs/sip_factuality_1b4.py:v5e-64 --workdir=gs://BUCKET/facts \
        --config.data.path=NAME:text --config.tokenizer.path=FILE.model \
        --config.runs.sip.init_from=DIR --config.runs.sip.judge.init_from=DIR

Settings are those of configs/sip_quality_1b4.py, which lists the paper's numbers and ours. The
reward is the win rate by quality plus the factuality compared with the original suffix. `:debug` is
tiny.

Hardware: chosen by the variant; not yet run. Minimum times by `python -m sip.aot`: 15.9 s per step
on 64 TPU v5e (0.37 days in all), 4.3 s on 256 v5e (0.10 days), 6.7 s on 64 v5p (0.15 days), 6.5 s
on 64 v6e (0.15 days). `h200` has batches of 16 and is not compiled; its FLOPs alone take 12 s per
step.
"""

import _paper
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Builds a config with one run, `sip`; see _paper.py for the variants."""
    return _paper.continual(
        arg,
        "sip_factuality_1b4.py",
        data="slim_pajama:text",
        aspects=("quality", "factuality"),
    )
