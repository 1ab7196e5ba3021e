"""Self-improving pretraining for factuality and quality at the scale of arXiv 2601.21343.

    python -m sip.train --config=configs/sip_factuality_1b4.py:v5e-64 --workdir=gs://BUCKET/facts \
        --config.data.path=NAME:text --config.tokenizer.path=FILE.model \
        --config.runs.sip.init_from=DIR --config.runs.sip.judge.init_from=DIR

As configs/sip_quality_1b4.py, which has the paper's numbers and ours; rewards are wins by quality
plus factuality beside the original suffix. `:debug` is tiny.
Hardware: by the variant, never run: by `python -m sip.aot` a step takes at least 38 s on 64 TPU
v5e (0.9 days in all), 11 s on 256 (0.26 days), 16 s on 64 v5p (0.37 days), 15 s on 64 v6e (0.34
days). `h200`: batches of 16, not compiled; operations alone are 28 s a step.
"""

import _paper
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """One run, `sip`; words of the variant as in _paper.py."""
    return _paper.continual(
        arg,
        "sip_factuality_1b4.py",
        data="slim_pajama:text",
        aspects=("quality", "factuality"),
    )
