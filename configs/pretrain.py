"""Pretraining on packed documents: the micro-world, or your own text.

    python -m sip.train --config=configs/pretrain.py --workdir=/tmp/pretrain
    python -m sip.train --config=configs/pretrain.py:text --config.data.path=FILE.txt \
        --workdir=/tmp/mine

Rows of 512 tokens hold several whole documents, each from BOS to EOS; attention
stays within a document. The learning rate is warmed up, stable, and decays in the last fifth of the
steps (wsd). The tokenizer is trained on the corpus. It has the marks of the chat template "turns"
and the words of a judge of quality as single tokens, so that configs/sft.py can make an assistant
of the model and configs/own_text.py a judge. `:text` has a larger model and vocabulary; a .jsonl
file needs --config.data.source=jsonl. `:debug` is tiny, also `:text,debug`.
Expect in eval.json: `nll_clean` and ground-truth scores on the micro-world, `nll` (nats per token
of held-out suffixes) on your own text. Hardware: 2 CPU cores, a few minutes for the micro-world.
"""

from typing import Any

import _common as common
import _variants as variants
import microworld
from ml_collections import ConfigDict

from sip.text import chat


def get_config(arg: str = "") -> ConfigDict:
    """Builds a config with one run, `base`; `text` is for your own text, `debug` is tiny."""
    words = variants.named(variants.words(arg), ("text", "debug"), (), "pretrain.py") if arg else []
    config: Any = microworld.get_config()
    config.tokenizer.update(prompts=("quality",), symbols=chat.MARKS)
    model = dict(microworld.MODEL, max_len=512)
    if "text" in words:
        model.update(vocab_size=4096, width=256, layers=4, kv_heads=4, head_dim=64, hidden=768)
        config.data.update(source="txt", max_skipped_fraction=0.9)  # many paragraphs are short
        config.data.world = dict()
        config.data.cut = dict(prefix_min=32, prefix_max=64, suffix=32)
        config.tokenizer.vocab_size = 4096
    base = common.documents_run(
        model=model,
        split="train",
        steps=1000,
        batch=8,
        init_from="",
        tokens="all",
        packed=True,
        optim=common.adamw(3e-3, warmup_steps=100, schedule="wsd"),
        evals=common.evals(baseline=""),
    )
    config.runs = dict(base=base)
    config.order = ("base",)
    config.report = dict(rows=("base",), judge="", standard="")
    return shrink(config) if "debug" in words else config


def shrink(config) -> ConfigDict:
    """Makes corpus, model and run tiny."""
    config.compile = "quick"
    run = config.runs.base
    if config.data.source == "microworld":
        config.data.world.update(entities=8, train=1500, validation=100, test=150)
    else:
        config.data.cut = dict(prefix_min=8, prefix_max=16, suffix=8)
    config.tokenizer.update(documents=1000, vocab_size=640)
    run.update(steps=40, batch=8)
    run.optim.warmup_steps = 2
    run.model.update(vocab_size=640, width=32, layers=2, kv_heads=4, head_dim=8, hidden=64)
    run.model.update(max_len=256, remat="none")
    run.log.every_steps = 10
    run.evals.update(validation=32, standard=64, unsafe=16, batch=32)
    return config
