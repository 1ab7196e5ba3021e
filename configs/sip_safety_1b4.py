"""Self-improving pretraining for safety and quality at the scale of arXiv 2601.21343.

    python -m sip.train --config=configs/sip_safety_1b4.py:v5e-64 --workdir=gs://BUCKET/safety \
        --config.data.source=jsonl --config.data.path=unsafe.jsonl \
        --config.tokenizer.path=FILE.model \
        --config.runs.sip.init_from=DIR --config.runs.sip.judge.init_from=DIR

As configs/sip_quality_1b4.py, which has the paper's numbers and ours; rewards are wins by quality
plus safety, with `reasoned` the mean of 5 votes (of both). The paper's corpus is an unsafe slice of
RedPajama, 257,154 samples. To cut one out of documents (a line each, field "text"), once for each
of the splits train, validation and test, with any judge of safety:

    python -m sip.data --source=jsonl --path=docs.jsonl --split=train --questions=asked.jsonl
    python -m sip.judge --config=JUDGED.py --run=NAME --workdir=DIR < asked.jsonl > judged.jsonl
    python -m sip.data --source=jsonl --path=docs.jsonl --split=train --scores=judged.jsonl \
        --aspect=safety --below=0.5 --out=unsafe_train.jsonl

and the three joined are unsafe.jsonl, which splits as its documents did before. `:debug` is tiny.
Hardware: by the variant, never run: configs/sip_quality_1b4.py's programs, and one of safety, not
compiled yet, whose operations take another 0.9 s a step on 64 TPU v5e: about 37 s in all, 0.9 days.
`h200`: batches of 16; operations alone are 27 s a step.
"""

import _paper
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """One run, `sip`; words of the variant as in _paper.py."""
    return _paper.continual(
        arg, "sip_safety_1b4.py", data="unsafe_pajama:text", aspects=("quality", "safety")
    )
