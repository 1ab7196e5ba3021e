"""The supervised loop: next-token pretraining on documents, or a judge's verdicts on labels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from etils import epath

from sip import mesh as meshes
from sip import metrics, setup
from sip.data import pipeline
from sip.evals import continuations, ground_truth
from sip.judge import labels, prompts
from sip.mesh import put_batch
from sip.sampling import SamplingConfig
from sip.structs import Params, UserError
from sip.textgen import Local
from sip.training import checkpoints, loop, losses, optim, step

TOKENS = ("all", "suffix")


@dataclass(frozen=True)
class LabelConfig:
    """A judge's labelled examples: candidates of `documents` prefixes, labelled by the truth."""

    aspects: tuple[str, ...]
    source: str  # the run whose rollouts are among the candidates
    documents: int = 2000
    held_out: int = 200
    rollouts: int = 4
    rewrites: bool = True
    pairs_per_prefix: int = 6
    spoilers: int = 2


@dataclass(frozen=True)
class Task:
    """What to learn from, and how to see whether it was learned."""

    batch: Callable[[int], Any]  # step -> host arrays
    terms: step.Terms
    weights: dict[str, float]
    during: Callable[[Params], dict[str, float]]
    finish: Callable[[Params], dict[str, float]]


def run(config, name: str, workdir: str, profile: str = "") -> dict[str, float]:
    """Trains `config.runs[name]`, resuming if it was begun; returns and writes its evaluation."""
    c = config.runs[name]
    directory = setup.run_dir(workdir, name)
    mesh = meshes.build(setup.section(meshes.MeshConfig, c.mesh, "mesh"))
    tokenizer = setup.open_tokenizer(config, workdir)
    corpus = setup.corpus(config, c.split, workdir, tokenizer)
    cfg = setup.model_config(c.model, tokenizer, corpus.cut)
    tx = optim.build(setup.section(optim.OptimConfig, c.optim, "optim", steps=c.steps))
    saves = setup.section(loop.CheckpointConfig, c.checkpoint, "checkpoint")
    log = setup.section(loop.LogConfig, c.log, "log")
    init_from = setup.source_dir(workdir, c.init_from) if c.init_from else ""
    make = {"documents": documents_task, "verdicts": verdicts_task}
    if c.examples not in make:
        raise UserError(f"config runs.{name}.examples must be one of {sorted(make)}, not {c.examples!r}")
    task = make[c.examples](config, name, workdir, corpus, cfg, mesh, tokenizer)

    with (jax.set_mesh(mesh), loop.saving(directory, saves) as manager, loop.stop_on_signals() as stop):
        state, first = setup.start_state(
            manager, cfg, tx, mesh, seed=config.seed, init_from=init_from, reference=False)
        update = step.make_update(task.terms, tx, lambda _: task.weights, microbatches=c.microbatches)
        setup.keep_tokenizer(config, workdir, directory)
        record = setup.record(config, name, cfg)
        writer = metrics.Writer(directory, name=name, steps=c.steps, resume_step=first,
                                tensorboard=log.tensorboard, progress=log.progress)
        profiler, meter, pending = loop.Profiler(profile), loop.Meter(), []
        for done in range(first + 1, c.steps + 1):
            batch = task.batch(done - 1)
            state, new = update(state, put_batch(mesh, batch))
            pending.append(new)
            meter.count(batch)
            if loop.due(done, log.every_steps, c.steps):
                loop.check_finite(state, saves)
                writer.write(done, {**loop.ratios(pending), **meter.read()})
                pending.clear()
            if c.evals.every_steps and loop.due(done, c.evals.every_steps, c.steps):
                writer.write(done, task.during(state.params))
            if stop or loop.due(done, saves.every_steps, c.steps):
                checkpoints.save(manager, state, record)
            profiler.step(state)
            if stop and done < c.steps:
                raise loop.Stopped(f"{name}: stopped after step {done} of {c.steps}")
        profiler.close()
        writer.close()
        return task.finish(state.params)


def documents_task(config, name, workdir, corpus, cfg, mesh, tokenizer) -> Task:
    """Next-token prediction on chunks; the tokens that count are all, or the suffix's."""
    c = config.runs[name]
    if c.tokens not in TOKENS:
        raise UserError(f"config runs.{name}.tokens must be one of {TOKENS}, not {c.tokens!r}")
    batches = pipeline.Batches(corpus.chunks, batch=c.batch, seed=config.seed)

    def batch(at: int):
        rows = batches[at]
        mask_BT = rows["mask_BT"]
        suffix_BT = np.arange(mask_BT.shape[1]) >= rows["fork_B"][:, None]
        counted_BT = mask_BT & suffix_BT if c.tokens == "suffix" else mask_BT
        return continuations.trunk_only(rows["tokens_BT"], mask_BT), counted_BT

    suite = ground_truth.suite(config, c, name, workdir, cfg, mesh, tokenizer)
    return Task(batch, losses.tokens_terms(cfg), {"ce": 1.0},
                lambda params: ground_truth.during(suite, params),
                lambda params: ground_truth.finish(suite, params))


def verdicts_task(config, name, workdir, corpus, cfg, mesh, tokenizer) -> Task:
    """Verdict tokens after a judge's prompts, on labelled candidates."""
    c = config.runs[name]
    wanted = setup.section(LabelConfig, c.labels, "labels")
    aspects = [prompts.load(a) for a in wanted.aspects]
    for aspect in aspects:
        prompts.check_options(tokenizer, aspect)
    source = setup.load_params(setup.source_dir(workdir, wanted.source), mesh)

    def labelled(corpus, documents, seed):
        return _labelled(wanted, aspects, corpus, documents, seed, source, cfg, mesh, tokenizer)

    examples = labelled(corpus, wanted.documents, config.seed)
    held_out = {split: labelled(setup.corpus(config, split, workdir, tokenizer), wanted.held_out, 0)
                for split in ("validation", "test")}

    def batch(at: int):
        return {a: trees.batch(at, c.batch, seed=config.seed) for a, trees in examples.items()}

    def accuracy(params, split):
        judge = Local(params, cfg, tokenizer, mesh)
        return loop.ratios([labels.accuracy(judge, held_out[split])])

    def finish(params):
        figures = {f"{k}_accuracy": v for k, v in accuracy(params, "test").items()}
        setup.write_json(epath.Path(setup.run_dir(workdir, name)) / "eval.json", figures)
        return figures

    return Task(batch, losses.verdict_terms(cfg), dict.fromkeys(wanted.aspects, 1.0),
                lambda p: {f"eval/{k}": v for k, v in accuracy(p, "validation").items()}, finish)


def _labelled(wanted, aspects, corpus, documents, seed, source, cfg, mesh, tokenizer):
    """Labelled trees of a split: suffixes, spoiled ones, rollouts and corrected ones."""
    truth = corpus.documents.truth
    if truth is None:
        raise UserError("labels: this corpus has no ground truth to label with")
    asked = continuations.prompts(corpus.chunks, range(documents), tokenizer)
    params, source_cfg = source
    pools = continuations.sample(
        params, source_cfg, mesh, tokenizer, asked, branches=wanted.rollouts,
        steps=corpus.cut.suffix, sampling=SamplingConfig(), seed=seed, batch=64)
    if wanted.rewrites:
        better = truth.rewrite(asked.prefixes, asked.suffixes, corpus.cut.suffix)
        pools = [[*pool, text] for pool, text in zip(pools, better, strict=True)]
    return labels.make(
        truth, tokenizer, aspects, asked.prefixes, asked.suffixes, pools,
        pairs_per_prefix=wanted.pairs_per_prefix, max_len=cfg.max_len, seed=seed,
        spoilers=wanted.spoilers)
