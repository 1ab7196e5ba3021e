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

import dataclasses
from typing import Any

import _common as common
import _variants as variants
from ml_collections import ConfigDict

from sip import loading
from sip.hf import tokens
from sip.models import presets

NAME = "llama32_1b"  # model preset, if no checkpoint is named


def get_config(arg: str = "") -> ConfigDict:
    """Builds a config with one run, `sip`, that continues the checkpoint in `arg`."""
    words = variants.words(arg)
    debug, sources = "debug" in words, [word for word in words if word != "debug"]
    if len(sources) > 1:
        raise ValueError(f"configs/from_hf.py: {arg!r} must be one checkpoint and/or 'debug'")
    config: Any = ConfigDict()
    config.seed = 0
    config.data = common.data(
        "txt",
        max_skipped_fraction=0.9,  # many paragraphs are shorter than a prefix and a suffix
        cut=dict(prefix_min=128, prefix_max=1024, suffix=128),
    )
    config.tokenizer = dict(
        kind="huggingface", path="tokenizer.json", vocab_size=0, documents=1, prompts=("quality",)
    )
    config.runs = dict(sip=sip_run(sources))
    config.order = ("sip",)
    config.report = dict(rows=("sip",), judge="", standard="")
    for source in sources:
        kind, path = tokens.kind_of(tokens.home(source) or source)
        config.tokenizer.update(kind=kind, path=path)
    return shrink(config, fresh=not sources) if debug else config


def sip_run(sources: list[str]) -> ConfigDict:
    """Builds the run: DPO over the suffix and rollouts, plus 0.1 * CE on suffixes."""
    model = loading.recorded_model(sources[0]) if sources else presets.preset(NAME)
    return common.sip_run(
        model=dataclasses.asdict(model) | dict(remat="block", branch_chunk=8),
        split="train",
        steps=1000,
        batch=64,
        init_from=sources[0] if sources else "start",
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
    run.update(steps=2, batch=4)
    run.optim.update(lr=1e-3, warmup_steps=1)
    run.candidates.rollouts = ((0, 2),)
    run.log.every_steps, run.judge.batch, run.judge.min_mass = 1, 4, 0.0
    run.evals.update(validation=4, standard=4, unsafe=4, batch=4)
    if fresh:
        config.tokenizer.update(kind="byte", path="")
        run.judge = common.judge("rule", rule="distinct_words", weights=(("quality", 1.0),))
        run.init_from = ""
        run.model = dict(run.model)
        run.model.update(vocab_size=259, width=16, layers=1, kv_heads=2, queries_per_kv=2)
        run.model.update(head_dim=4, hidden=32, max_len=64, dtype="float32")
    return config
