"""Self-improving pretraining for quality at the scale of arXiv 2601.21343, a 1.4 B policy.

    python -m sip.train --config=configs/sip_quality_1b4.py:v5e-64 --workdir=gs://BUCKET/quality \
        --config.data.path=NAME:text --config.tokenizer.path=FILE.model \
        --config.runs.sip.init_from=DIR --config.runs.sip.judge.init_from=DIR
"""

import _paper
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """One run, `sip`; words of the variant as in _paper.py."""
    return _paper.continual(
        arg, "sip_quality_1b4.py", data="slim_pajama:text", aspects=("quality",)
    )
