"""Self-improving pretraining on a .txt file with a rule as the judge: no ground truth, no labels.

    python -m sip.train --config=configs/text.py --config.data.path=FILE.txt --workdir=/tmp/text

Documents are separated by blank lines. The config is `microworld_ablations.py:dpo_suffix_rollouts`
with other sections `data` and `judge`. Candidates are the suffix and rollouts; there are no
rewrites, because they would need a ground truth or a trained rewriter. The rule prefers texts with
few repeated words. `:debug` is tiny. Hardware: 2 CPU cores.
"""

from typing import Any

import _common as common
import microworld_ablations
from ml_collections import ConfigDict

RUN = "dpo_suffix_rollouts"


def get_config(arg: str = "") -> ConfigDict:
    """Builds the base run and the self-improving run; `debug` makes them tiny."""
    common.is_debug(arg, "text.py")  # raises for any other variant
    config: Any = microworld_ablations.get_config(f"{RUN},truth,{arg}")
    config.data = common.data(
        "txt",
        max_skipped_fraction=0.9,  # many paragraphs are shorter than a prefix and a suffix
        cut=config.data.cut,
    )
    config.runs[RUN].judge = common.judge(
        "rule", rule="distinct_words", weights=(("quality", 1.0),)
    )
    return config
