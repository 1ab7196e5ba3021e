"""Asks whether SIP's gain shows in graders that it never saw: real English, no labels.

    python -m sip.train --config=configs/real_english.py --config.data.path=FILE --workdir=/tmp/en
    python -m sip.evaluate --evals=paper --split=test --baseline=/tmp/en/runs/standard \
        --checkpoint=/tmp/en/runs/sip,/tmp/en/runs/base --likelihood_by=/tmp/en/runs/second \
        --graders=grammar,words,repetition,profanity

FILE is plain English text: stories, encyclopedia, several of them as a folder or a glob. The runs
are those of own_text.py, and `second`, a language model of documents that no other run learns: what
is likely under it is no matter of taste of ours. Judge and auditor learn from corruptions of the
text; nothing is trained on a grader. Grammar and words need the extra `graders`. `:debug` is tiny.
Hardware: 2 CPU cores.
"""

from typing import Any

import _common as common
import own_text
from ml_collections import ConfigDict

# Disjoint documents of base, of the runs that continue it, judge, auditor and the second model.
SPLITS = dict(
    base="train[:45%]",
    standard="train[45%:60%]",
    sip="train[45%:60%]",
    judge="train[60%:68%]",
    auditor="train[68%:75%]",
    second="train[75%:]",
)


def get_config(arg: str = "") -> ConfigDict:
    """Builds the config; `debug` makes it tiny."""
    common.is_debug(arg, "real_english.py")
    config: Any = own_text.get_config(arg)
    config.runs.second = config.runs.base.copy_and_resolve_references()
    config.order = (*config.order, "second")
    for name, split in SPLITS.items():
        config.runs[name].split = split
    return config
