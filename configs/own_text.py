"""Self-improving pretraining on your own text: a learned judge, no ground truth, no labels.

    python -m sip.train --config=configs/own_text.py --config.data.path=FILE --workdir=/tmp/own
    python -m sip.train --config=configs/own_text.py:HF_DIR --config.data.path=FILE \
        --workdir=/tmp/own

FILE is any text that docs/data.md lists; add --config.data.source if it is not a .txt file. Runs:
    base       pretraining on 60% of the training documents, unless a checkpoint (HF_DIR) is named
    judge      learns that a suffix is better than corrupted versions of it and than rollouts
    auditor    the same on other documents, with other corruptions and without rollouts
    standard   continues base in the standard way, on documents that are new to it
    sip        continues base on the same documents for as many steps: DPO over the suffix and
               rollouts, scored by the judge, plus the suffix's cross-entropy
The last row's win_rate_judge is against `standard`, by the auditor, on held-out documents; `nll` is
the likelihood of held-out suffixes. --config.runs.sip.evals.judged=64 measures it during the run
too, on 64 validation prefixes. The auditor also follows sip while it learns, and ends it when
it no longer agrees with the judge. On little text a policy can please both: read both numbers, and
the texts in runs/sip/continuations.json. `:rewriter` (also after a checkpoint and a comma) adds
    rewriter   learns to turn corrupted suffixes into suffixes, and to copy those that are not
whose rewrites are candidates of sip. It helps where documents have such faults; on clean text most
rewrites are copies, which are no candidates; `:rewriter` was not run in full. `:debug` is tiny.
Words that you do not want are learned by judge, auditor and rewriter: a text with one of them is
worse, and the rewriter writes what a document without them would say.
    --config.runs.judge.task.corrupted.unwanted="('word', 'some phrase')"
Hardware: a CPU (8 minutes on one core for 1 MB of text); a checkpoint needs devices whose memory
fits its optimiser state.
"""

from typing import Any

import _common as common
import _published as published
import microworld
from ml_collections import ConfigDict

from sip import loading
from sip.text import chat

# No prompt of these runs has 160 tokens; conversations, which sft.py may add later, are longer.
MODEL = dict(microworld.MODEL, vocab_size=1024, max_len=512)
# Disjoint documents: of base, of the runs that continue it, of the judge, and of the auditor.
BASE, FRESH = "train[:60%]", "train[60%:80%]"
JUDGE, AUDIT = "train[80%:90%]", "train[90%:]"
QUALITY = (("quality", 1.0),)
CORRUPTIONS = ("repeat", "splice", "swap")  # what judge and rewriter learn from
TEACHERS = ("judge", "auditor", "rewriter")
OBJECTIVE = dict(name="dpo", nll_weight=1.0, ce_weight=0.5, ce_weight_last=0.5)


def get_config(arg: str = "") -> ConfigDict:
    """Builds the full config; `arg` has a checkpoint to start from, `rewriter` and `debug`."""
    words = [word for word in arg.split(",") if word != "rewriter"]
    rewriter = len(words) < len(arg.split(","))
    source, debug = published.words(",".join(words), "own_text.py")
    start = source or "base"
    config: Any = ConfigDict()
    config.seed = 0
    config.data = common.data(
        "txt",
        max_skipped_fraction=0.9,  # many paragraphs are shorter than a prefix and a suffix
        cut=dict(prefix_min=16, prefix_max=24, suffix=16),
    )
    config.tokenizer = dict(
        kind="sentencepiece",
        path="",
        vocab_size=1024,
        documents=20000,
        prompts=("quality",),
        symbols=chat.MARKS,
    )
    if source:
        kind, path = loading.tokenizer_of(source)
        config.tokenizer.update(kind=kind, path=path)
    config.runs = runs(start, ready=bool(source))
    if rewriter:
        add_rewriter(config.runs, start)
    # One list, which is set once on the command line.
    unwanted = config.runs.judge.task.corrupted.get_ref("unwanted")
    config.runs.auditor.task.corrupted.unwanted = unwanted
    if rewriter:
        config.runs.rewriter.task.unwanted = unwanted
    teachers = tuple(name for name in TEACHERS if name in config.runs)
    rows = (*(() if source else ("base",)), "standard", "sip")
    config.order = (*rows[:-2], *teachers, *rows[-2:])
    taught = dict(judge="judge", rewriter="rewriter" if rewriter else "")
    config.report = dict(rows=rows, standard="standard", **taught)
    return shrink(config) if debug else config


def runs(start: str, *, ready: bool) -> dict:
    """Returns the runs by name; `start` is the run or checkpoint that the others continue."""
    model = published.model(start) if ready else MODEL
    lr = published.rate(model, small=6e-4, large=1e-5)
    auditor = common.judge("local", init_from="auditor", weights=QUALITY)
    tune = dict(
        model=model,
        split=FRESH,
        init_from=start,
        steps=100,
        batch=16,
        optim=common.adamw(lr, warmup_steps=10),
    )
    compared = lambda baseline: common.evals(
        baseline=baseline, judge=auditor if baseline else None, every_steps=20
    )
    found = dict(
        judge=judge_run(model, start, JUDGE, kinds=CORRUPTIONS, rollouts=2),
        auditor=judge_run(model, start, AUDIT, kinds=("shuffle", "echo", "substitute"), seed=1),
        standard=common.documents_run(
            **tune, tokens="suffix", evals=compared("" if ready else "base")
        ),
        sip=common.sip_run(
            # A faster policy writes what the judge takes for text; so does one that no longer
            # learns the suffixes too.
            **{**tune, "optim": common.adamw(lr * 2 / 3, warmup_steps=10)},
            judge=common.judge("local", init_from="judge", weights=QUALITY),
            audit=common.audit(auditor, every_steps=10),
            rewriter=common.rewriter("local"),
            candidates=common.candidates(rewrite=False),
            objective=common.objective(**OBJECTIVE),
            evals=compared("standard"),
        ),
    )
    if ready:
        return found
    base = common.documents_run(
        model=model,
        split=BASE,
        steps=800,
        batch=32,
        tokens="all",
        optim=common.adamw(3e-3, warmup_steps=50),
        evals=compared(""),
    )
    return dict(base=base, **found)


def judge_run(model, start: str, split: str, *, kinds, rollouts=0, seed=0) -> ConfigDict:
    """Builds the run of a judge: corrupted suffixes, and rollouts of `start`, are worse."""
    deeper = 2 if published.is_small(model) else 1  # it gets copies of its layers on top
    return common.corrupted_judge_run(
        model=dict(model, layers=deeper * model["layers"]),
        split=split,
        steps=200,
        batch=16,
        init_from=start,
        optim=common.adamw(published.rate(model, small=1.5e-3, large=1e-5), warmup_steps=20),
        aspect="quality",
        kinds=kinds,
        source=start if rollouts else "",
        rollouts=rollouts,
        seed=seed,
    )


def add_rewriter(runs, start: str) -> None:
    """Adds the run of a rewriter that undoes corruptions; its rewrites are candidates of sip."""
    judge = runs.judge
    runs.rewriter = common.rewriter_run(
        model=dict(judge.model),
        split=JUDGE,
        steps=800,
        batch=32,
        init_from=start,
        optim=common.adamw(published.rate(judge.model, small=4e-3, large=1e-5), warmup_steps=20),
        rewrites=dict(prompt="rewrite", documents=9600, held_out=200, kinds=CORRUPTIONS),
    )
    runs.sip.rewriter = common.rewriter("local", init_from="rewriter")
    runs.sip.candidates.rewrite = True


def shrink(config) -> ConfigDict:
    """Makes all runs tiny; a named checkpoint keeps its size."""
    config.compile = "quick"
    config.data.cut = dict(prefix_min=8, prefix_max=16, suffix=8)
    config.tokenizer.vocab_size = 512 if config.tokenizer.kind == "sentencepiece" else 0
    for name, run in config.runs.items():
        run.update(steps=4, batch=8)
        run.optim.warmup_steps = 2
        run.checkpoint.every_steps = run.log.every_steps = 2
        if "base" in config.runs:
            run.model.update(vocab_size=512, width=32, head_dim=8, hidden=64, remat="none")
        if "validation" in run.evals:
            run.evals.update(validation=8, standard=16, unsafe=8, batch=8, every_steps=2)
        if "task" in run and run.task.name == "verdicts":
            run.task.corrupted.update(documents=20, held_out=10)
        if name == "rewriter":
            run.task.update(documents=20, held_out=8)
        if name == "sip":
            run.candidates.rollouts, run.audit.every_steps = ((0, 2),), 2
        # After four steps the options have little probability.
        for judge in judges(run):
            judge.min_mass = 0.0
    return config


def judges(run) -> list:
    """Returns the sections of all judges of a run."""
    found = [run.judge, run.audit.judge] if "judge" in run else []
    return found + ([run.evals.judge] if "judge" in run.evals and run.evals.judge else [])
