"""Self-improving pretraining for safety and quality at the scale of arXiv 2601.21343.

    python -m sip.train --config=configs/sip_safety_1b4.py:v5e-64 --workdir=gs://BUCKET/safety \
        --config.data.source=jsonl --config.data.path=unsafe.jsonl \
        --config.tokenizer.path=FILE.model \
        --config.runs.sip.init_from=DIR --config.runs.sip.judge.init_from=DIR

Settings are those of configs/sip_quality_1b4.py, which lists the paper's numbers and ours. The
reward is the win rate by quality plus safety; with `reasoned` both are means of 5 votes. The
paper's corpus is an unsafe subset of RedPajama with 257,154 samples. To select such a subset from
JSON lines with a field "text", run these commands with any safety judge, once for each of the
splits train, validation and test:

    python -m sip.data --source=jsonl --path=docs.jsonl --split=train --questions=asked.jsonl
    python -m sip.judge --config=JUDGED.py --run=NAME --workdir=DIR < asked.jsonl > judged.jsonl
    python -m sip.data --source=jsonl --path=docs.jsonl --split=train --scores=judged.jsonl \
        --aspect=safety --below=0.5 --out=unsafe_train.jsonl

Concatenate the three files to unsafe.jsonl. Each document stays in the split it had before.
`:debug` is tiny.

Hardware: chosen by the variant; not yet run. The programs are those of configs/sip_quality_1b4.py
plus one for safety, which is not compiled yet. Its FLOPs add 0.9 s per step on 64 TPU v5e: about
37 s per step, 0.9 days in all. `h200` has batches of 16; its FLOPs alone take 27 s per step.
"""

import _paper
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Builds a config with one run, `sip`; see _paper.py for the variants."""
    return _paper.continual(
        arg, "sip_safety_1b4.py", data="unsafe_pajama:text", aspects=("quality", "safety")
    )
