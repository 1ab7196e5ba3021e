"""The programs of a self-improving run: update, rollouts, judge and rewriter."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from sip import padding, sampling
from sip import rewriter as rewriters
from sip.aot import parts, questions
from sip.aot.parts import REWRITER, STOPS, Models, RunShapes
from sip.aot.plan import Program, device_bytes
from sip.data import control
from sip.mesh import batch_shapes, full_rows
from sip.stages import collect, selfimprove
from sip.training import losses, optim


def _stages(c: selfimprove.SelfImproveConfig) -> list[tuple[int, float]]:
    """Returns [(rollouts K, share of the run's steps)], sorted by K; each K has its own shapes."""
    starts = [min(since, c.steps) for since, _ in c.candidates.rollouts] + [c.steps]
    shares: dict[int, float] = {}
    for i, (_, k) in enumerate(c.candidates.rollouts):
        shares[k] = shares.setdefault(k, 0.0) + (starts[i + 1] - starts[i]) / c.steps
    return sorted((k, share) for k, share in shares.items() if share)


def programs(run: RunShapes, find: Models) -> list[Program]:
    """Builds the programs of the run."""
    c, cut = run.c, run.cut
    stages = _stages(c)
    # Only the update with the largest K is compiled: it is the largest one.
    batch = _branches(run, stages[-1][0])
    asked, trunk = c.batch - c.documents, cut.prefix_max + bool(c.control)
    update = selfimprove.make_update(c, optim.build(c.optim))
    made = [parts.update(run, update, batch, compared=c.objective.needs_reference)]
    for k, share in stages:
        if k:
            made.append(
                parts.rollouts(
                    run, f"rollout {k}", asked, trunk, k, cut.suffix, c.sampling, (),
                    share,
                )
            )  # fmt: skip
        pool = k + c.candidates.suffix + c.candidates.rewrite
        if c.judged:
            made += parts.judge(run, find, c.judge, asked, [(pool, share)], **run.of_cut)
    if c.candidates.rewrite and c.rewriter.backend == "local":
        made.append(_rewrites(run, find))
    return made


def _branches(run: RunShapes, rollouts: int) -> losses.Branches:
    """Returns an all-zero batch of a self-improving update, built by the stage's own code."""
    c, cut = run.c, run.cut
    sources = ["suffix"] * c.candidates.suffix + ["rewrite"] * c.candidates.rewrite
    sources += ["rollout"] * rollouts
    shape = (c.batch - c.documents, len(sources), cut.suffix)
    real, live = np.zeros(shape, np.float32), np.ones(shape[:2], bool)
    tokens = np.zeros(shape, np.int32)
    pool = collect.Pool(tokens, np.ones(shape, bool), live, sources, [], real)
    width = cut.prefix_max + cut.suffix
    rows = dict(
        tokens_BT=np.zeros((c.batch, width), np.int32),
        mask_BT=np.ones((c.batch, width), bool),
        fork_B=np.full(c.batch, cut.prefix_max, np.int32),
    )
    nobody: Any = SimpleNamespace(pad=0)  # of tokenizer and batches, only pad is used here
    fixed = collect.Collector(
        cfg=c.model,
        mesh=run.mesh,
        tokenizer=nobody,
        batches=nobody,
        suffix=cut.suffix,
        candidates=c.candidates,
        objective=c.objective,
        sampling=c.sampling,
        judge=None,
        rewriter=None,
        reference=c.judge.reference,
        seed=0,
        control=0 if c.control else control.NONE,
        documents=c.documents,
    )
    shown = collect.controlled(fixed, rows)
    found = collect.learned(fixed, shown, pool, np.zeros(shape[:2]), live)[0]
    return collect.with_documents(fixed, found, rows) if c.documents else found


def _rewrites(run: RunShapes, find: Models) -> Program:
    c, cut, wanted = run.c, run.cut, run.c.rewriter
    mesh = run.judge_mesh
    cfg = find.of(REWRITER, wanted.init_from, wanted.param_dtype)
    params = parts.abstract(cfg, mesh, wanted.param_dtype)
    asked_rows = c.batch - c.documents
    B = full_rows(mesh, min(1 << (asked_rows - 1).bit_length(), wanted.batch))
    lengths = dict(run.of_cut, bytewise=run.bytewise)
    asked = questions.rewrite_tokens(wanted.prompt, chat=bool(wanted.chat), **lengths)
    T, steps = padding.bucket(asked, 16), padding.bucket(rewriters.most(cut.suffix))
    ones = np.ones(B, np.int32)
    rows = batch_shapes(mesh, (np.zeros((B, T), np.int32), ones, ones.astype(np.uint32)))
    return Program(
        f"rewriter {B}x{T}",
        mesh,
        sampling.program(cfg, 1, steps, wanted.sampling(), STOPS),
        (params, *rows, parts.random_key(mesh)),
        calls=-(-asked_rows // wanted.batch),
        loops=sampling.span(cfg, steps),
        holds=device_bytes(params),
        useful=2.0 * parts.multiplied(cfg) * B * (T + steps),
        remedy="a smaller rewriter.batch, more devices along fsdp or tensor",
    )
