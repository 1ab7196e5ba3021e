"""Self-improving pretraining of a published checkpoint on a .txt file, with a local judge.

    python -m sip.convert --to=orbax --src=HF_DIR --dst=/tmp/start
    python -m sip.train --config=configs/from_hf.py:/tmp/start --config.data.path=FILE.txt \
        --workdir=/tmp/tuned --config.runs.sip.judge.init_from=JUDGE_DIR
    python -m sip.convert --to=hf --src=/tmp/tuned/runs/sip --dst=/tmp/out --tokenizer_from=HF_DIR

The word after the colon is the checkpoint to continue: a run directory or a Hugging Face directory.
Model and tokenizer are read from it. The judge can be any such checkpoint; the default is the
initial policy, frozen. For an instruction-tuned judge, --config.runs.sip.judge.chat=own wraps
prompts in its own chat template. Documents are separated by blank lines. `:/tmp/start,debug` trains
two steps. `:debug` alone trains a tiny fresh model with a byte tokenizer and a rule as the judge.
Hardware: devices whose memory fits the optimiser state of the checkpoint. Not yet run with a
published model.
"""

from typing import Any

import _common as common
import _published as published
from ml_collections import ConfigDict

from sip import loading


def get_config(arg: str = "") -> ConfigDict:
    """Builds a config with one run, `sip`, that continues the checkpoint in `arg`."""
    source, debug = published.words(arg, "from_hf.py")
    config: Any = ConfigDict()
    config.seed = 0
    config.data = common.data(
        "txt",
        max_skipped_fraction=0.9,  # many paragraphs are shorter than a prefix and a suffix
        cut=published.cut(published.model(source), prefix_min=128, prefix_max=1024, suffix=128),
    )
    config.tokenizer = dict(
        kind="huggingface", path="tokenizer.json", vocab_size=0, documents=1, prompts=("quality",)
    )
    config.runs = dict(sip=sip_run(source))
    config.order = ("sip",)
    config.report = dict(rows=("sip",), judge="", standard="")
    if source:
        kind, path = loading.tokenizer_of(source)
        config.tokenizer.update(kind=kind, path=path)
    return shrink(config, fresh=not source) if debug else config


def sip_run(source: str) -> ConfigDict:
    """Builds the run: DPO over the suffix and rollouts, plus 0.1 * CE on suffixes."""
    return common.sip_run(
        model=published.model(source),
        split="train",
        steps=1000,
        batch=64,
        init_from=source or "start",
        optim=common.adamw(1e-6, warmup_steps=50, weight_decay=0.0),
        judge=common.judge("local", init_from="policy", weights=(("quality", 1.0),)),
        rewriter=common.rewriter("truth"),
        candidates=common.candidates(rewrite=False, rollouts=4),
        objective=common.objective("dpo", ce_weight=0.1, ce_weight_last=0.1),
        evals=common.evals(baseline=""),
    )


def shrink(config, *, fresh: bool) -> ConfigDict:
    """Reduces the run to two steps on short texts; a fresh model also becomes tiny."""
    run = config.runs.sip
    config.data.cut = dict(prefix_min=8, prefix_max=16, suffix=8)
    run.candidates.rollouts = ((0, 2),)
    run.judge.batch, run.judge.min_mass = 4, 0.0
    run.evals.update(validation=4, standard=4, unsafe=4, batch=4)
    if fresh:
        run.judge = common.judge("rule", rule="distinct_words", weights=(("quality", 1.0),))
    return published.shrink(config, run, fresh=fresh)
