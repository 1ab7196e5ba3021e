"""Sections that several configs share. A resolved config holds every setting that a run reads.

Defaults are those of the dataclasses in sip/; only what differs from them is written here.
"""

import dataclasses

from ml_collections import ConfigDict

from sip.evals.ground_truth import EvalConfig
from sip.judge.audit import AuditConfig
from sip.judge.build import JudgeConfig
from sip.judge.proofread import ProofreadConfig
from sip.judge.schedules import ScheduleConfig
from sip.mesh import MeshConfig, PartConfig
from sip.models.lora import LoraConfig
from sip.rewriter import RewriterConfig
from sip.sampling import SamplingConfig
from sip.stages.collect import CandidateConfig
from sip.text.untrusted import SPECIALS
from sip.textgen.remote import RemoteConfig
from sip.training.loop import CheckpointConfig, LogConfig
from sip.training.losses import ObjectiveConfig
from sip.training.optim import OptimConfig


def is_debug(arg: str, name: str) -> bool:
    """True for the variant "debug" of a config file `name` that has no other variant."""
    if arg not in ("", "debug"):
        raise ValueError(f"configs/{name} has no variant {arg!r}, only 'debug'")
    return arg == "debug"


def section(**values) -> ConfigDict:
    """A config section. Sections inside it are copied: an override of one run must not change
    another."""
    own = {
        k: v.copy_and_resolve_references() if isinstance(v, ConfigDict) else v
        for k, v in values.items()
    }
    return ConfigDict(own)


def complete(cls, **values) -> ConfigDict:
    """The section of dataclass `cls`: `values`, and for all other fields the defaults of `cls`.

    A field without a default that is not among `values` stays out.
    """
    for field in dataclasses.fields(cls):
        if field.name in values:
            continue
        if field.default_factory is not dataclasses.MISSING:
            values[field.name] = field.default_factory()
        elif field.default is not dataclasses.MISSING:
            values[field.name] = field.default
    return section(**{k: _plain(v) for k, v in values.items()})


def _plain(value):
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return complete(
            type(value), **{f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        )
    return value


def log(every_steps: int = 10) -> ConfigDict:
    """Metrics: metrics.jsonl, TensorBoard and the progress bar."""
    return complete(LogConfig, every_steps=every_steps)


def saves(every_steps: int) -> ConfigDict:
    """Checkpoints: how often, how many are kept, and when a diverging run gives up."""
    return complete(CheckpointConfig, every_steps=every_steps)


def mesh() -> ConfigDict:
    """A mesh with all devices along fsdp."""
    return complete(MeshConfig)


def judge_mesh(devices: int = 0) -> ConfigDict:
    """The mesh of judge, audit and rewriter: on `devices` set apart, or shared with the policy."""
    return complete(PartConfig, devices=devices)


def adamw(
    lr: float,
    *,
    warmup_steps: int,
    schedule: str = "cosine",
    min_ratio: float = 0.1,
    weight_decay: float = 0.01,
    b2: float = 0.98,
) -> ConfigDict:
    """AdamW; its schedule is as long as the run."""
    return complete(
        OptimConfig,
        lr=lr,
        warmup_steps=warmup_steps,
        schedule=schedule,
        min_ratio=min_ratio,
        weight_decay=weight_decay,
        b2=b2,
    )


def muon(lr: float, *, warmup_steps: int, **adam) -> ConfigDict:
    """Muon for the hidden matrices and AdamW for the rest; both make updates of like size."""
    optim = adamw(lr, warmup_steps=warmup_steps, **adam)
    optim.name = "muon"
    return optim


def lora(rank: int = 0, **changes) -> ConfigDict:
    """LoRA: low-rank factors are trained in place of all parameters; rank 0: off."""
    return complete(LoraConfig, rank=rank, **changes)


def evals(*, baseline: str, **changes) -> ConfigDict:
    """The evaluation of greedy continuations of held-out prefixes."""
    return complete(EvalConfig, baseline=baseline, **changes)


def any_run(*, split, steps, batch, model, optim, init_from="", save_every, log_every) -> dict:
    """Settings that every run has."""
    return dict(
        split=split,
        init_from=init_from,
        steps=steps,
        batch=batch,
        microbatches=1,
        model=model,
        optim=optim,
        mesh=mesh(),
        lora=lora(),
        checkpoint=saves(save_every),
        log=log(log_every),
    )


def _supervised(task, evals, *, save_every, log_every, **run) -> ConfigDict:
    shared = any_run(save_every=save_every, log_every=log_every, **run)
    return section(stage="supervised", task=section(**task), z_loss=0.0, evals=evals, **shared)


def documents_run(*, tokens, evals, save_every=500, log_every=20, **run) -> ConfigDict:
    """A supervised run on documents: tokens "all" for pretraining, "suffix" beside SIP."""
    task = dict(name="documents", tokens=tokens)
    return _supervised(task, evals, save_every=save_every, log_every=log_every, **run)


def judge_run(*, labels, save_every=100, log_every=10, evals_every=50, **run) -> ConfigDict:
    """A supervised run on labelled verdicts."""
    task, evals = dict(name="verdicts", labels=labels), section(every_steps=evals_every)
    return _supervised(task, evals, save_every=save_every, log_every=log_every, **run)


def rewriter_run(*, rewrites, save_every=200, log_every=20, evals_every=0, **run) -> ConfigDict:
    """A supervised run on the ground truth's rewrites; `rewrites` are the task's settings."""
    task, evals = dict(name="rewrites", **rewrites), section(every_steps=evals_every)
    return _supervised(task, evals, save_every=save_every, log_every=log_every, **run)


def candidates(
    *, suffix=True, rewrite=True, rollouts=4, since=0, chosen="best", rejected="worst"
) -> ConfigDict:
    """The candidates per prefix and which of them is learned from; `rollouts` join at step
    `since`."""
    return complete(
        CandidateConfig,
        suffix=suffix,
        rewrite=rewrite,
        rollouts=((0, 0), (since, rollouts)) if since else ((0, rollouts),),
        chosen=chosen,
        rejected=rejected,
    )


def objective(name: str, **changes) -> ConfigDict:
    """The objective: dpo, rf_nll or dr_grpo, blended with CE(suffix)."""
    return complete(ObjectiveConfig, name=name, **changes)


def http(**changes) -> ConfigDict:
    """An OpenAI-compatible server; --config.runs.NAME.judge.http.url=http://HOST:8000/v1."""
    return complete(RemoteConfig, **{"specials": SPECIALS, **changes})


def schedule(name: str = "all", **changes) -> ConfigDict:
    """The pairs that are compared: all, pivot, random, adaptive, against
    (sip/judge/schedules.py)."""
    return complete(ScheduleConfig, name=name, **changes)


def proofread(init_from: str = "", **changes) -> ConfigDict:
    """The proofreader: it marks words, in the texts that a judge is shown, which good text would
    not have."""
    return complete(ProofreadConfig, init_from=init_from, **changes)


ALL_PAIRS, UNREAD = schedule(), proofread()


def judge(
    backend: str,
    *,
    weights=(("quality", 1.0), ("safety", 1.0), ("factuality", 1.0)),
    **changes,
) -> ConfigDict:
    """The judge: local (a trained judge, or with init_from "policy" the model in training), http (a
    server), rule, or truth (the corpus's ground truth).

    `weights` names built-in aspects or paths of prompt files. `votes`, `max_tokens` and `sampling`
    are for aspects that are answered after reasoning. `chat`: a local judge is asked in a chat, by
    its "own" template, "harmony" or a .jinja file.
    """
    values = dict(backend=backend, weights=tuple(weights), http=http())
    return complete(JudgeConfig, **{**values, **changes})


def rewrites_judge(backend: str, *, init_from="", proofread=UNREAD) -> ConfigDict:
    """The judge of a rewriter in training: quality against the suffix, and safety."""
    return judge(
        backend,
        init_from=init_from,
        weights=(("quality", 1.0), ("safety", 1.0)),
        schedule=schedule("against"),
        proofread=proofread,
    )


def audit(held_out=None, **changes) -> ConfigDict:
    """A second judge, `held_out` (default: the ground truth), that the policy does not learn from,
    and when it ends the run; off while every_steps is 0 (sip/judge/audit.py)."""
    return complete(AuditConfig, judge=held_out or judge("truth"), **changes)


NO_AUDIT = audit()


def rewriter(backend: str, *, init_from="", chat="", param_dtype="") -> ConfigDict:
    """The rewriter: local (a trained rewriter) or truth (the corpus's ground truth); `chat` as in
    `judge`."""
    return complete(
        RewriterConfig,
        backend=backend,
        init_from=init_from,
        prompt="rewrite",
        temperature=0.0,
        top_p=1.0,
        batch=32,
        chat=chat,
        param_dtype=param_dtype,
    )


def sip_run(
    *,
    judge,
    rewriter,
    candidates,
    objective,
    evals,
    audit=NO_AUDIT,
    save_every=100,
    log_every=5,
    **run,
) -> ConfigDict:
    """A self-improving run."""
    shared = any_run(save_every=save_every, log_every=log_every, **run)
    return section(
        stage="selfimprove",
        judge=judge,
        audit=audit,
        rewriter=rewriter,
        candidates=candidates,
        objective=objective,
        sampling=complete(SamplingConfig),
        evals=evals,
        judge_mesh=judge_mesh(),
        staleness=0,
        **shared,
    )
