"""Builds the jitted programs of a run and their argument shapes; nothing is loaded or computed.

Each program comes from the function that the stage itself jits, and its arguments come from the
functions that build the stage's batches. So the programs compiled here are the ones that will run.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from sip import loading, padding, sampling
from sip import rewriter as rewriters
from sip import workdir as workdirs
from sip.aot import questions
from sip.aot.plan import POLICY, Plan, Program, device_bytes
from sip.data import control
from sip.data import corpus as corpora
from sip.hf import configs
from sip.mesh import batch_shapes, full_rows, replicated
from sip.models import decoder
from sip.models.config import ModelConfig
from sip.models.lora import LoraConfig
from sip.models.presets import preset
from sip.padding import trunk_only
from sip.run import build_meshes, check_model
from sip.stages import collect, recipe, rl, selfimprove, supervised
from sip.structs import Tree, UserError
from sip.tasks.supervised.task import tokens_loss
from sip.textgen import local
from sip.training import checkpoints, losses, optim, step


class Unknown(UserError):
    """Raised for a run whose shapes depend on its texts."""


STOPS = (2, 13)  # two stop tokens: only their number affects the shapes
JUDGE, REWRITER = "judge", "rewriter"


@dataclass(frozen=True)
class _RunShapes:
    """Config, meshes and abstract state that all program builders share."""

    c: Any  # the stage's RunConfig
    cut: corpora.CutConfig
    mesh: jax.sharding.Mesh  # policy
    judge_mesh: jax.sharding.Mesh  # judge and rewriter
    bytewise: bool  # the tokenizer has one token per byte
    state: Any  # abstract training state of the policy (shapes only)

    @property
    def params(self):
        """The abstract parameters of the policy (shapes only)."""
        return self.state.params


def plan(config, name: str, workdir: str, devices, teacher: str) -> Plan:
    """Builds the compile plan of one run.

    Args:
        config: The whole config (a ConfigDict).
        name: Name of the run in config.runs.
        workdir: Directory in which checkpoints of other runs are looked up; may be "".
        devices: Devices of the topology.
        teacher: Model preset used for a judge or rewriter whose checkpoint does not exist.

    Raises:
        Unknown: The shapes depend on the texts.
        UserError: The run's meshes do not fit the devices, or a prompt exceeds max_len.
    """
    try:
        return _plan(config, name, workdir, devices, teacher)
    except Unknown:
        raise
    except UserError as error:
        raise UserError(f"config runs.{name}: {error}") from None


def _plan(config, name: str, workdir: str, devices, teacher: str) -> Plan:
    stage = recipe.STAGES[config.runs[name].stage]
    c = stage.resolve(config, name)
    cut = corpora.cut_config(config.data)
    check_model(c.model, cut)
    mesh, judge_mesh = build_meshes(c, devices)
    reference = stage is not supervised and (
        c.needs_reference if stage is rl else c.objective.needs_reference
    )
    state = _state(c.model, c.optim, mesh, reference, c.lora)
    run = _RunShapes(c, cut, mesh, judge_mesh, config.tokenizer.kind == "byte", state)
    find = _Models(config, workdir, teacher, {}, [])
    # The builders also fill find.found with the judge and rewriter models that they meet.
    made = PROGRAMS[config.runs[name].stage](run, find)
    models = {POLICY: device_bytes(state)}
    models |= {
        k: device_bytes(_abstract(m, judge_mesh, dtype)) for k, (m, dtype) in find.found.items()
    }
    apart = c.apart is not None and c.apart.devices > 0
    return Plan(
        name,
        c.steps,
        _tokens(made[0].args[1]),
        mesh,
        tuple(made),
        models,
        tuple(find.notes),
        devices=mesh.size + judge_mesh.size * apart,
        apart=apart,
        ahead=apart and c.staleness > 0,
    )


def _tokens(batch) -> float:
    trees = jax.tree.leaves(batch, is_leaf=lambda x: isinstance(x, Tree))
    return sum(t.mask_BT.size + t.mask_BCR.size for t in trees if isinstance(t, Tree))


@functools.lru_cache(maxsize=8)
def _state(cfg: ModelConfig, how: optim.OptimConfig, mesh, reference: bool, lora: LoraConfig):
    return step.abstract_state(cfg, optim.build(how), mesh, reference=reference, adapter=lora)


@functools.lru_cache(maxsize=8)
def _abstract(cfg: ModelConfig, mesh, dtype: str = ""):
    """Returns abstract parameters in storage dtype `dtype` ("": the model's own param_dtype)."""
    return step.abstract_params(cfg, mesh, dtype or cfg.param_dtype)


@functools.lru_cache(maxsize=8)
def multiplied(cfg: ModelConfig) -> int:
    """Counts the parameters used in matrix products: all except an untied embedding table."""
    return decoder.count(cfg) - (0 if cfg.tied and not cfg.scalar else cfg.vocab_size * cfg.width)


@dataclass(frozen=True)
class _Models:
    """Resolves the judge and rewriter models of a run and records them in `found`."""

    config: Any
    workdir: str
    teacher: str  # preset for a missing checkpoint
    found: dict[str, tuple[ModelConfig, str]]  # role: (model config, storage dtype)
    notes: list[str]  # assumptions to show to the user

    def of(self, role: str, source: str, dtype: str) -> ModelConfig:
        """Returns the model config of a config's run, of a checkpoint, or the teacher preset."""
        self.found[role] = self._of(role, source), dtype
        return self.found[role][0]

    def _of(self, role: str, source: str) -> ModelConfig:
        runs = self.config.runs
        if source in runs:
            return recipe.STAGES[runs[source].stage].resolve(self.config, source).model
        inside = workdirs.run_dir(self.workdir, source)
        for path in (inside, source):
            if epath.Path(path).exists() and (configs.exists(path) or checkpoints.exists(path)):
                return loading.recorded_model(path)
        self.notes.append(f"{role}: no checkpoint {source!r}, using preset {self.teacher}")
        return preset(self.teacher)


def _update(run: _RunShapes, jitted, batch) -> Program:
    c = run.c
    shapes = batch_shapes(run.mesh, batch)
    # FLOPs per parameter and token: 2 forward, 4 backward, 2 for the reference's forward pass.
    useful = 6 + 2 * (run.state.reference is not None)
    return Program(
        "update",
        run.mesh,
        jitted,
        (run.state, shapes),
        calls=1,
        loops=1,
        holds=device_bytes(run.state),
        useful=useful * multiplied(c.model) * _tokens(batch),
        remedy="more microbatches, more devices along fsdp or tensor, a smaller batch, "
        "optim.mu_dtype=bfloat16",
    )


def _rollouts(
    run: _RunShapes, name, rows: int, trunk: int, branches: int, steps: int, how, stop, calls
):
    """Builds the sampling program: `branches` continuations of `steps` tokens for `rows` trunks."""
    cfg = run.c.model
    ones = np.ones(rows, np.int32)
    args = batch_shapes(run.mesh, (np.zeros((rows, trunk), np.int32), ones, ones))
    return Program(
        name,
        run.mesh,
        sampling.program(cfg, branches, steps, how, stop),
        (run.params, *args, _key(run.mesh)),
        calls=calls,
        loops=steps,
        holds=device_bytes(run.params),
        useful=2.0 * multiplied(cfg) * rows * (trunk + branches * steps),
        remedy="more devices along fsdp or tensor, a smaller batch, fewer rollouts",
    )


def _key(mesh):
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(mesh))


def _whole(mesh, *shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(mesh))


def _stages(c: selfimprove.SelfImproveConfig) -> list[tuple[int, float]]:
    """Returns [(rollouts K, share of the run's steps)], sorted by K; each K has its own shapes."""
    starts = [min(since, c.steps) for since, _ in c.candidates.rollouts] + [c.steps]
    shares: dict[int, float] = {}
    for i, (_, k) in enumerate(c.candidates.rollouts):
        shares[k] = shares.setdefault(k, 0.0) + (starts[i + 1] - starts[i]) / c.steps
    return sorted((k, share) for k, share in shares.items() if share)


def _selfimprove(run: _RunShapes, find: _Models) -> list[Program]:
    c, cut = run.c, run.cut
    stages = _stages(c)
    # Only the update with the largest K is compiled: it is the largest one.
    batch = _branches(run, stages[-1][0])
    asked, trunk = c.batch - c.documents, cut.prefix_max + bool(c.control)
    made = [_update(run, selfimprove.make_update(c, optim.build(c.optim)), batch)]
    for k, share in stages:
        if k:
            made.append(
                _rollouts(
                    run, f"rollout {k}", asked, trunk, k, cut.suffix, c.sampling, (),
                    share,
                )
            )  # fmt: skip
        pool = k + c.candidates.suffix + c.candidates.rewrite
        if c.judged:
            made += _judge(run, find, c.judge, asked, [(pool, share)])
    if c.candidates.rewrite and c.rewriter.backend == "local":
        made.append(_rewrites(run, find))
    return made


def _branches(run: _RunShapes, rollouts: int) -> losses.Branches:
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


def _judge(run: _RunShapes, find: _Models, wanted, rows: int, pools) -> list[Program]:
    """Builds a local judge's programs, one per prompt shape; other judges have none.

    `pools` lists (candidates per prefix, share of the steps). Prompts are padded to buckets as in
    textgen, so that similar lengths share a program. Raises UserError if a prompt exceeds max_len.
    """
    if wanted.backend != "local":
        return []
    cfg = run.c.model if wanted.own else find.of(JUDGE, wanted.init_from, wanted.param_dtype)
    calls: dict[Any, float] = {}
    for pool, share in pools:
        lengths: Any = dict(prefix=run.cut.prefix_max, suffix=run.cut.suffix, bytewise=run.bytewise)
        for q in questions.questions(wanted, pool, **lengths):
            T, R = padding.trunk_width(q.trunk, 16), padding.branch_width(q.branch, 16)
            if q.trunk + q.branch > cfg.max_len:
                raise UserError(
                    f"judge: a prompt for {q.aspect} has about {q.trunk + q.branch} tokens, more "
                    f"than the judge's max_len {cfg.max_len}; reduce data.cut.suffix or "
                    "data.cut.prefix_max"
                )
            # Comparisons are padded to the schedule's own number, prompts for text are bucketed.
            C = q.branches if q.options else padding.bucket(q.branches)
            key = (q.aspect, T, C, R, q.options)
            calls[key] = calls.setdefault(key, 0.0) + share * -(-rows // wanted.batch)
    mesh = run.mesh if wanted.own else run.judge_mesh
    B = full_rows(mesh, min(1 << (rows - 1).bit_length(), wanted.batch))
    return [_verdicts(mesh, cfg, wanted, B, key, n) for key, n in calls.items()]


def _verdicts(mesh, cfg, wanted, B: int, key, calls: float) -> Program:
    aspect, T, C, R, options = key
    params = _abstract(cfg, mesh, wanted.param_dtype)
    tree = padding.padded_tree([[0] * T] * B, [[[0] * R] * C] * B, 0, T, C, R)
    tree, last = batch_shapes(mesh, (tree, np.zeros((B, C), np.int32)))
    steps = 1 if options else wanted.max_tokens
    said = 0 if options else wanted.votes * wanted.max_tokens
    if options:
        jitted = local.program(cfg)
        args = (params, tree, last, _whole(mesh, options))
    else:
        jitted = sampling.answering(cfg, wanted.votes, steps, wanted.sampling, STOPS)
        noise = jax.ShapeDtypeStruct(last.shape, jnp.uint32, sharding=last.sharding)
        args = (params, tree, noise, _key(mesh))
    return Program(
        f"judge {aspect} {B}x{C}x{R}",
        mesh,
        jitted,
        args,
        calls=calls,
        loops=steps,
        holds=device_bytes(params),
        useful=2.0 * multiplied(cfg) * B * (T + C * (R + said)),
        remedy="fewer candidates, judge.schedule=adaptive, a smaller model.branch_chunk of the "
        "judge, more devices along tensor, judge.backend=http",
    )


def _rewrites(run: _RunShapes, find: _Models) -> Program:
    c, cut, wanted = run.c, run.cut, run.c.rewriter
    mesh = run.judge_mesh
    cfg = find.of(REWRITER, wanted.init_from, wanted.param_dtype)
    params = _abstract(cfg, mesh, wanted.param_dtype)
    asked_rows = c.batch - c.documents
    B = full_rows(mesh, min(1 << (asked_rows - 1).bit_length(), wanted.batch))
    lengths: Any = dict(prefix=cut.prefix_max, suffix=cut.suffix, bytewise=run.bytewise)
    asked = questions.rewrite_tokens(wanted.prompt, chat=bool(wanted.chat), **lengths)
    T, steps = padding.bucket(asked, 16), padding.bucket(rewriters.most(cut.suffix))
    ones = np.ones(B, np.int32)
    rows = batch_shapes(mesh, (np.zeros((B, T), np.int32), ones, ones.astype(np.uint32)))
    return Program(
        f"rewriter {B}x{T}",
        mesh,
        sampling.program(cfg, 1, steps, wanted.sampling(), STOPS),
        (params, *rows, _key(mesh)),
        calls=-(-asked_rows // wanted.batch),
        loops=steps,
        holds=device_bytes(params),
        useful=2.0 * multiplied(cfg) * B * (T + steps),
        remedy="a smaller rewriter.batch, more devices along fsdp or tensor",
    )


def _rl(run: _RunShapes, find: _Models) -> list[Program]:
    """Builds the programs of an RL run, with prompts as long as max_len allows.

    Rewards of rewrites and of thoughts may come from a judge, whose programs are included.
    """
    c = run.c
    if c.task.name == "prompts":
        raise Unknown("task 'prompts': its shapes depend on the prompts")
    T, shape = c.model.max_len - c.answer, (c.batch, c.rollouts, c.answer)
    if c.task.name == "thinking":  # prefix and opening tag
        T = padding.bucket(run.cut.prefix_max + 1, 16)
    mask, live = np.ones((c.batch, T), bool), np.ones(shape[:2], bool)
    tree = Tree(
        mask.astype(np.int32), mask, np.zeros(shape, np.int32), np.ones(shape, bool),
        live.astype(np.int32),
    )  # fmt: skip
    real = np.zeros(shape, np.float32)
    batch = losses.Branches(tree, live, real[:, :, 0], real, mask)
    made = [_update(run, rl.make_update(c, optim.build(c.optim)), batch)]
    each = 1 / c.updates_per_batch
    K, R = c.rollouts, c.answer
    made.append(_rollouts(run, f"answers {K}", c.batch, T, K, R, c.sampling, STOPS, each))
    if c.task.name == "thinking" and c.task.judge is not None:
        made += _judge(run, find, c.task.judge, c.batch, [(c.rollouts, each)])
    if c.task.name == "rewrites":  # the judge sees the suffix alone, then with its rewrites
        made += _judge(run, find, c.task.judge, c.batch, [(1, each), (1 + c.rollouts, each)])
    return made


def _supervised(run: _RunShapes, find: _Models) -> list[Program]:
    c, cut = run.c, run.cut
    if c.task.name not in ("documents", "conversations", "thoughts"):
        raise Unknown(f"task {c.task.name!r}: its shapes depend on the texts")
    packed = c.task.name == "thoughts" or c.task.packed
    labelled = c.task.name == "documents" and c.task.control
    width = cut.prefix_max + cut.suffix + bool(labelled)
    rows = packed or c.task.name == "conversations"
    mask = np.ones((c.batch, c.task.width(c.model.max_len) if rows else width), bool)
    tree = trunk_only(mask.astype(np.int32), mask)
    batch = (replace(tree, segment_BT=tree.tokens_BT) if packed else tree, mask)
    tx = optim.build(c.optim)
    made = [_update(run, supervised.make_update(c, tx, *tokens_loss(c)), batch)]
    return made + (_judge(run, find, labelled.judge, c.batch, [(1, 1.0)]) if labelled else [])


PROGRAMS: dict[str, Callable[[_RunShapes, _Models], list[Program]]] = {
    "selfimprove": _selfimprove,
    "rl": _rl,
    "supervised": _supervised,
}
