"""The programs that several stages have: updates, sampled continuations, and those of a judge.

Each program comes from the function that the stage itself jits, and its arguments come from the
functions that build the stage's batches. So the programs compiled here are the ones that will run.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from sip import loading, padding, sampling
from sip import workdir as workdirs
from sip.aot import questions
from sip.aot.plan import Lengths, Program, device_bytes
from sip.data import corpus as corpora
from sip.hf import configs
from sip.mesh import batch_shapes, full_rows, replicated
from sip.models import decoder
from sip.models.config import ModelConfig
from sip.models.presets import preset
from sip.stages import recipe
from sip.structs import Tree, UserError
from sip.textgen import local
from sip.training import checkpoints, step


class Unknown(UserError):
    """Raised for a run whose shapes depend on its texts."""


STOPS = (2, 13)  # two stop tokens: only their number affects the shapes
JUDGE, REWRITER = "judge", "rewriter"


@dataclass(frozen=True)
class RunShapes:
    """Config, meshes and abstract state that all program builders share."""

    c: Any  # the stage's RunConfig
    cut: corpora.CutConfig
    mesh: jax.sharding.Mesh  # policy
    judge_mesh: jax.sharding.Mesh  # judge and rewriter
    bytewise: bool  # the tokenizer has one token per byte
    state: Any  # abstract training state of the policy (shapes only)
    lengths: Lengths  # of texts in files

    @property
    def params(self):
        """The abstract parameters of the policy (shapes only)."""
        return self.state.params

    @property
    def of_cut(self) -> dict[str, Any]:
        """Tokens of the longest prefix and suffix of the corpus, by the names that prompts use."""
        return dict(prefix=self.cut.prefix_max, suffix=self.cut.suffix)


def tokens(batch) -> float:
    """Counts the tokens of a batch, trunks and branches, padding included."""
    trees = jax.tree.leaves(batch, is_leaf=lambda x: isinstance(x, Tree))
    return sum(t.mask_BT.size + t.mask_BCR.size for t in trees if isinstance(t, Tree))


def full_tree(B: int, T: int, C: int, R: int) -> Tree:
    """Returns a tree without padding, of which only the shapes matter."""
    mask_BT, mask_BCR = np.ones((B, T), bool), np.ones((B, C, R), bool)
    fork_BC = np.ones((B, C), np.int32)
    return Tree(mask_BT.astype(np.int32), mask_BT, mask_BCR.astype(np.int32), mask_BCR, fork_BC)


@functools.lru_cache(maxsize=8)
def abstract(cfg: ModelConfig, mesh, dtype: str = ""):
    """Returns abstract parameters in storage dtype `dtype` ("": the model's own param_dtype)."""
    return step.abstract_params(cfg, mesh, dtype or cfg.param_dtype)


@functools.lru_cache(maxsize=8)
def multiplied(cfg: ModelConfig) -> int:
    """Counts the parameters used in matrix products: all except an untied embedding table."""
    return decoder.count(cfg) - (0 if cfg.tied and not cfg.scalar else cfg.vocab_size * cfg.width)


@dataclass(frozen=True)
class Models:
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


def update(run: RunShapes, jitted, batch, *, compared: bool) -> Program:
    """Builds the program of an update; `compared`: its loss has a second forward pass, by the
    reference."""
    shapes = batch_shapes(run.mesh, batch)
    # FLOPs per parameter and token: 2 forward, 4 backward, 2 for the reference's forward pass.
    useful = 6 + 2 * compared
    return Program(
        "update",
        run.mesh,
        jitted,
        (run.state, shapes),
        calls=1,
        loops=1,
        holds=device_bytes(run.state),
        useful=useful * multiplied(run.c.model) * tokens(batch),
        remedy="more microbatches, more devices along fsdp or tensor, a smaller batch, "
        "optim.mu_dtype=bfloat16",
    )


def rollouts(
    run: RunShapes, name, rows: int, trunk: int, branches: int, steps: int, how, stop, calls
) -> Program:
    """Builds the sampling program: `branches` continuations of `steps` tokens for `rows` trunks."""
    cfg = run.c.model
    ones = np.ones(rows, np.int32)
    args = batch_shapes(run.mesh, (np.zeros((rows, trunk), np.int32), ones, ones))
    return Program(
        name,
        run.mesh,
        sampling.program(cfg, branches, steps, how, stop),
        (run.params, *args, random_key(run.mesh)),
        calls=calls,
        loops=sampling.span(cfg, steps),
        holds=device_bytes(run.params),
        useful=2.0 * multiplied(cfg) * rows * (trunk + branches * steps),
        remedy="more devices along fsdp or tensor, a smaller batch, fewer rollouts",
    )


def prompt(run: RunShapes, find: Models, room: int) -> int:
    """Returns the tokens assumed for the longest prompt of a file, at most `room`; notes them."""
    most = min(run.lengths.prompt, room)
    find.notes.append(f"prompts: {most} tokens assumed (--prompt_tokens)")
    return most


def before(
    run: RunShapes,
    find: Models,
    name,
    times: int,
    rows: int,
    trunk,
    branches,
    steps,
    how,
    stop,
    *,
    most: int = 0,
) -> Program:
    """Builds the sampling of answers to problems before the first step, `rows` problems at a time.

    Its calls are spread over the run's steps. `times` answers of a problem are prompts themselves.
    `most` is the most problems that are answered; 0: all. The frozen model is taken for one of the
    policy's size.
    """
    problems = run.lengths.problems
    problems = min(problems, most) if problems and most else problems
    said = f"{problems:,} problems" if problems else "not counted: give --problem_count"
    find.notes.append(f"{name}: {said}")
    calls = -(-problems // rows) * times / run.c.steps
    made = rollouts(run, name, rows, trunk, branches, steps, how, stop, calls)
    return replace(made, holds=device_bytes(run.state))  # the state is not there yet


def random_key(mesh):
    """Returns the shape of a random key, the same on all devices of a mesh."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(mesh))


def _whole(mesh, *shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(mesh))


def judge(
    run: RunShapes, find: Models, wanted, rows: int, pools, *, prefix: int, suffix: int
) -> list[Program]:
    """Builds a local judge's programs, one per prompt shape; other judges have none.

    `pools` lists (candidates per prefix, share of the steps); a prefix has up to `prefix` tokens, a
    candidate up to `suffix`. Prompts are padded to buckets as in textgen, so that similar lengths
    share a program. Raises UserError if a prompt exceeds max_len.
    """
    if wanted.backend != "local":
        return []
    cfg = run.c.model if wanted.own else find.of(JUDGE, wanted.init_from, wanted.param_dtype)
    calls: dict[Any, float] = {}
    for pool, share in pools:
        lengths: Any = dict(prefix=prefix, suffix=suffix, bytewise=run.bytewise)
        for q in questions.questions(wanted, pool, **lengths):
            T, R = padding.trunk_width(q.trunk), padding.branch_width(q.branch)
            if q.trunk + q.branch > cfg.max_len:
                raise UserError(
                    f"judge: a prompt for {q.aspect} has about {q.trunk + q.branch} tokens, more "
                    f"than the judge's max_len {cfg.max_len}; reduce data.cut.suffix, "
                    "data.cut.prefix_max, or of a run on prompts answer or --prompt_tokens"
                )
            # Comparisons are padded to the schedule's own number, prompts for text are bucketed.
            C = q.branches if q.options else padding.bucket(q.branches)
            key = (q.aspect, T, C, R, q.options, q.stems)
            calls[key] = calls.setdefault(key, 0.0) + share * -(-rows // wanted.batch)
    mesh = run.mesh if wanted.own else run.judge_mesh
    B = full_rows(mesh, min(1 << (rows - 1).bit_length(), wanted.batch))
    return [_verdicts(mesh, cfg, wanted, B, key, n) for key, n in calls.items()]


def _verdicts(mesh, cfg, wanted, B: int, key, calls: float) -> Program:
    aspect, T, C, R, options, stems = key
    params = abstract(cfg, mesh, wanted.param_dtype)
    K, M, W = stems or (C, 0, R)
    tree, last = batch_shapes(mesh, (full_tree(B, T, K, W), np.zeros((B, K), np.int32)))
    steps = 1 if options else wanted.max_tokens
    said = 0 if options else wanted.votes * wanted.max_tokens
    if stems:
        jitted = local.program_of_stems(cfg)
        leaves = np.zeros((B, M, K, W), np.int32), np.zeros((B, M, K), np.int32)
        args = (params, tree, *batch_shapes(mesh, leaves), _whole(mesh, options))
    elif options:
        jitted = local.program(cfg)
        args = (params, tree, last, _whole(mesh, options))
    else:
        jitted = sampling.answering(cfg, wanted.votes, steps, wanted.sampling, STOPS)
        noise = jax.ShapeDtypeStruct(last.shape, jnp.uint32, sharding=last.sharding)
        args = (params, tree, noise, random_key(mesh))
    return Program(
        f"judge {aspect} {B}x{C}x{R}",
        mesh,
        jitted,
        args,
        calls=calls,
        loops=sampling.span(cfg, steps),
        holds=device_bytes(params),
        useful=2.0 * multiplied(cfg) * B * (T + K * (1 + M) * W + C * said),
        remedy="fewer candidates, judge.schedule=adaptive, a smaller model.branch_chunk of the "
        "judge, more devices along tensor, judge.backend=http",
    )
