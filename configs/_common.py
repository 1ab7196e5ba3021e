"""Config sections that several config files share.

A resolved config contains every setting that a run reads. Defaults come from the dataclasses in
sip/; this file contains only the values that differ from them.
"""

import dataclasses

from ml_collections import ConfigDict

from sip.data.documents import DataConfig
from sip.evals.ground_truth import EvalConfig
from sip.evals.thoughts import ProbeConfig
from sip.gap.settings import GapConfig, UtilityConfig, VerifierConfig
from sip.judge.audit import AuditConfig
from sip.judge.build import JudgeConfig
from sip.judge.chunk_scores import ControlConfig, FilterConfig
from sip.judge.proofread import ProofreadConfig
from sip.judge.schedules import ScheduleConfig
from sip.mesh import MeshConfig, PartConfig
from sip.models.config import ModelConfig
from sip.models.lora import LoraConfig
from sip.rewards.suffix_match import MatchConfig
from sip.rewriter import RewriterConfig
from sip.sampling import SamplingConfig
from sip.stages.alarms import WatchConfig
from sip.stages.collect import CandidateConfig
from sip.tasks.labelled import CorruptedConfig
from sip.tasks.pairs import AnswerPairConfig, PairLabelConfig, PairsConfig
from sip.tasks.questions import QuestionsConfig
from sip.tasks.supervised.rewrites import Config as RewritesConfig
from sip.tasks.supervised.self_made import Config as SelfMadeConfig
from sip.tasks.supervised.thoughts import Config as ThoughtsTask
from sip.tasks.thoughts import ThoughtsConfig
from sip.text.untrusted import SPECIALS
from sip.textgen.remote import RemoteConfig
from sip.training.loop import CheckpointConfig, LogConfig
from sip.training.losses import ObjectiveConfig, PairLossConfig
from sip.training.optim import OptimConfig


def is_debug(arg: str, name: str) -> bool:
    """Returns True for variant "debug" and False for none; raises ValueError for any other."""
    if arg not in ("", "debug"):
        raise ValueError(f"configs/{name} has no variant {arg!r}; its only variant is 'debug'")
    return arg == "debug"


def section(**values) -> ConfigDict:
    """Builds a config section.

    Sections inside it are copied, so that an override of one run does not change another run.
    """
    own = {
        k: v.copy_and_resolve_references() if isinstance(v, ConfigDict) else v
        for k, v in values.items()
    }
    return ConfigDict(own)


def complete(cls, **values) -> ConfigDict:
    """Builds the section of dataclass `cls` from `values` and the defaults of all other fields.

    A field without a default that is not in `values` is left out.
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


def data(
    source: str, path: str | tuple[str, ...] = "", *, cut: dict, world=(), **changes
) -> ConfigDict:
    """Builds section `data`: where documents come from, and lengths of prefix and suffix.

    Each run names its split. Keys and defaults: `DataConfig` (sip/data/documents.py).
    """
    made = complete(DataConfig, source=source, path=path, world=section(**dict(world)), **changes)
    del made.split
    made.cut = section(**cut)
    return made


def log(every_steps: int = 10) -> ConfigDict:
    """Builds section `log`: metrics.jsonl, TensorBoard and the progress bar."""
    return complete(LogConfig, every_steps=every_steps)


def saves(every_steps: int) -> ConfigDict:
    """Builds section `checkpoint`: save interval (steps), number kept, and divergence limits."""
    return complete(CheckpointConfig, every_steps=every_steps)


def mesh() -> ConfigDict:
    """Builds section `mesh`, with all devices along axis fsdp."""
    return complete(MeshConfig)


def judge_mesh(devices: int = 0) -> ConfigDict:
    """Builds the mesh section of judge, audit and rewriter.

    `devices`: number of devices of their own; 0 means that they share the policy's devices.
    """
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
    """Builds an AdamW section; the learning-rate schedule is as long as the run."""
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
    """Builds a Muon section: Muon for hidden matrices, AdamW for all other parameters.

    The updates of both have similar size, so they share the learning rate.
    """
    optim = adamw(lr, warmup_steps=warmup_steps, **adam)
    optim.name = "muon"
    return optim


def lora(rank: int = 0, **changes) -> ConfigDict:
    """Builds section `lora`: trains low-rank factors instead of all parameters; rank 0 is off."""
    return complete(LoraConfig, rank=rank, **changes)


def evals(*, baseline: str, **changes) -> ConfigDict:
    """Builds the section that evaluates greedy continuations of held-out prefixes."""
    return complete(EvalConfig, baseline=baseline, **changes)


def any_run(*, split, steps, batch, model, optim, init_from="", save_every, log_every) -> dict:
    """Returns the settings that every run has; `model` are those that differ from the defaults."""
    return dict(
        split=split,
        init_from=init_from,
        steps=steps,
        batch=batch,
        microbatches=1,
        model=complete(ModelConfig, **model),
        optim=optim,
        mesh=mesh(),
        lora=lora(),
        checkpoint=saves(save_every),
        log=log(log_every),
    )


def _supervised(task, evals, *, save_every, log_every, **run) -> ConfigDict:
    shared = any_run(save_every=save_every, log_every=log_every, **run)
    return section(stage="supervised", task=section(**task), z_loss=0.0, evals=evals, **shared)


def documents_run(
    *,
    tokens,
    evals,
    packed=False,
    length=0,
    filter=None,
    control=None,
    save_every=500,
    log_every=20,
    **run,
) -> ConfigDict:
    """Builds a supervised run on documents.

    `tokens`: "all" trains on all tokens (pretraining), "suffix" on suffixes only, as SIP runs do.
    `packed`: trains on whole documents in rows of `length` tokens (0: model.max_len). `filter` and
    `control` are the sections that `filtering` and `control_tokens` build.
    """
    task = dict(name="documents", tokens=tokens, packed=packed, length=length)
    task |= dict(filter=filter, control=control)
    return _supervised(task, evals, save_every=save_every, log_every=log_every, **run)


def filtering(judge, **changes) -> ConfigDict:
    """Builds section `task.filter`: chunks that the judge scores below `threshold` are dropped."""
    return complete(FilterConfig, judge=judge, **changes)


def control_tokens(judge, good: str, bad: str, **changes) -> ConfigDict:
    """Builds section `task.control`: a good or bad token before each suffix, by the judge's score.

    Both must be in `tokenizer.symbols`.
    """
    return complete(ControlConfig, judge=judge, good=good, bad=bad, **changes)


def conversations_run(
    *,
    chat,
    path="",
    questions=None,
    problems=None,
    instructions=(),
    packed=True,
    length=0,
    evals,
    save_every=500,
    log_every=20,
    **run,
) -> ConfigDict:
    """Builds a supervised run on the answers of conversations.

    `path`: a JSON Lines file; or `questions` about the corpus's world; or the section `problems`,
    for worked solutions, which may have a second turn that answers one of the `instructions`.
    `chat`: the chat template. Rows have `length` tokens (0: model.max_len).
    """
    task = dict(
        name="conversations",
        path=path,
        chat=chat,
        packed=packed,
        length=length,
        max_skipped_fraction=0.1,
    )
    if questions is not None:
        task["questions"] = complete(QuestionsConfig, **questions)
    if problems is not None:
        task |= dict(problems=problems, instructions=instructions)
    return _supervised(task, evals, save_every=save_every, log_every=log_every, **run)


def self_made_run(*, made, evals, save_every=500, log_every=20, **run) -> ConfigDict:
    """Builds a supervised run on a model's own answers to problems.

    `made` are the settings of the task: `problems`, `answers` and `chat`, and changes to the
    others.
    """
    task = complete(SelfMadeConfig, name="self_made", **made)
    return _supervised(task, evals, save_every=save_every, log_every=log_every, **run)


def thoughts_run(
    *,
    thoughts,
    keep,
    length=0,
    match=None,
    judge=None,
    probe=None,
    evals,
    save_every=100,
    log_every=20,
    **run,
) -> ConfigDict:
    """Builds a supervised run on annotated texts; without `keep` their thoughts are left out.

    `thoughts`, `match` and `probe` are changes to the default settings; `judge` is a section.
    """
    task = complete(
        ThoughtsTask,
        name="thoughts",
        thoughts=complete(ThoughtsConfig, **thoughts),
        keep=keep,
        length=length,
        match=complete(MatchConfig, **(match or {})),
        probe=complete(ProbeConfig, **(probe or {})),
    )
    del task.judge
    if judge is not None:
        task.judge = judge
    return _supervised(task, evals, save_every=save_every, log_every=log_every, **run)


def judge_run(*, labels, save_every=100, log_every=10, evals_every=50, **run) -> ConfigDict:
    """Builds a supervised run that trains a judge on labelled verdicts."""
    task, evals = dict(name="verdicts", labels=labels), section(every_steps=evals_every)
    return _supervised(task, evals, save_every=save_every, log_every=log_every, **run)


def corrupted_judge_run(
    *,
    aspect: str,
    kinds,
    source="",
    rollouts=0,
    seed=0,
    labels=None,
    save_every=100,
    log_every=10,
    evals_every=50,
    **run,
) -> ConfigDict:
    """Builds a supervised run that trains a judge without a ground truth.

    It learns that suffixes are better than corruptions of them (`kinds`) and rollouts of `source`.
    `labels` are further settings of the labels.
    """
    labels = complete(
        CorruptedConfig,
        aspect=aspect,
        kinds=kinds,
        source=source,
        rollouts=rollouts,
        seed=seed,
        **(labels or {}),
    )
    task, evals = dict(name="verdicts", corrupted=labels), section(every_steps=evals_every)
    return _supervised(task, evals, save_every=save_every, log_every=log_every, **run)


def rewriter_run(*, rewrites, save_every=200, log_every=20, evals_every=0, **run) -> ConfigDict:
    """Builds a supervised run that trains a rewriter on the ground truth's rewrites, or to undo
    corruptions.

    `rewrites` are the settings of the task.
    """
    task = complete(RewritesConfig, name="rewrites", **rewrites)
    evals = section(every_steps=evals_every)
    return _supervised(task, evals, save_every=save_every, log_every=log_every, **run)


def preference_run(
    *, evals, loss=None, pairs=None, labels=None, save_every=100, log_every=10, **run
) -> ConfigDict:
    """Builds a supervised run of offline DPO, on `pairs` of a file or on `labels` by the corpus's
    ground truth. `loss` are the changes to the default loss."""
    task = dict(name="preferences", loss=complete(PairLossConfig, **(loss or {})))
    task |= _pairs(pairs, labels)
    return _supervised(task, evals, save_every=save_every, log_every=log_every, **run)


def reward_model_run(
    *,
    model,
    pairs=None,
    labels=None,
    answers=None,
    together=2,
    margin_weight=1.0,
    centring_weight=0.01,
    save_every=100,
    log_every=10,
    evals_every=50,
    **run,
) -> ConfigDict:
    """Builds a supervised run of a reward model, on `pairs` of a file, on `labels` by the corpus's
    ground truth, or on `answers` to questions that it compares. `model` gets a scalar head."""
    task = dict(name="reward_model", together=together)
    task |= dict(margin_weight=margin_weight, centring_weight=centring_weight)
    task |= _pairs(pairs, labels, answers)
    run |= dict(model=dict(model, scalar=True), save_every=save_every, log_every=log_every)
    return _supervised(task, section(every_steps=evals_every), **run)


def _pairs(pairs, labels, answers=None) -> dict:
    """Builds the section of the source of pairs: exactly one of the three."""
    if answers is not None:
        asked = complete(QuestionsConfig, **answers["questions"])
        return dict(answers=complete(AnswerPairConfig, **{**answers, "questions": asked}))
    if labels is not None:
        return dict(labels=complete(PairLabelConfig, **labels))
    return dict(pairs=complete(PairsConfig, **pairs))


def candidates(
    *, suffix=True, rewrite=True, rollouts=4, since=0, chosen="best", rejected="worst"
) -> ConfigDict:
    """Builds section `candidates`: the candidates per prefix, and which are chosen and rejected.

    `rollouts` rollouts per prefix are added from step `since` on.
    """
    return complete(
        CandidateConfig,
        suffix=suffix,
        rewrite=rewrite,
        rollouts=((0, 0), (since, rollouts)) if since else ((0, rollouts),),
        chosen=chosen,
        rejected=rejected,
    )


def objective(name: str, **changes) -> ConfigDict:
    """Builds section `objective`: dpo, rf_nll or dr_grpo, plus weighted CE on suffixes."""
    return complete(ObjectiveConfig, name=name, **changes)


def http(**changes) -> ConfigDict:
    """Builds section `http` for an OpenAI-compatible server.

    Set its address with --config.runs.NAME.judge.http.url=http://HOST:8000/v1.
    """
    return complete(RemoteConfig, **{"specials": SPECIALS, **changes})


def schedule(name: str = "all", **changes) -> ConfigDict:
    """Builds section `schedule`: which pairs of candidates are compared.

    Names: all, pivot, random, adaptive, against (sip/judge/schedules.py).
    """
    return complete(ScheduleConfig, name=name, **changes)


def proofread(init_from: str = "", **changes) -> ConfigDict:
    """Builds section `proofread`: a model that marks unlikely words in the judge's texts.

    `init_from` names the model's run or checkpoint; "" is off.
    """
    return complete(ProofreadConfig, init_from=init_from, **changes)


ALL_PAIRS, UNREAD = schedule(), proofread()


def judge(
    backend: str,
    *,
    weights=(("quality", 1.0), ("safety", 1.0), ("factuality", 1.0)),
    **changes,
) -> ConfigDict:
    """Builds section `judge`.

    Backends: local (a trained judge, or with init_from "policy" the model in training), http (a
    server), rule, and truth (the corpus's ground truth).

    `weights` lists (aspect, weight); an aspect is a built-in name or the path of a prompt file.
    `votes`, `max_tokens` and `sampling` apply to aspects with reasoning before the verdict. `chat`
    wraps the prompts of a local judge in a chat template: "own", "harmony" or a .jinja file.
    """
    values = dict(backend=backend, weights=tuple(weights), http=http())
    return complete(JudgeConfig, **{**values, **changes})


def gap(policies, judges, *, by="truth", **changes) -> ConfigDict:
    """Builds section `gap` of python -m sip.gap.

    `judges` are sections of judges by name, or (section, rounds) of tournaments; `by` is what gives
    the utility: the ground truth or, of problems, their answers.
    """
    pairs = {k: one if isinstance(one, tuple) else (one, 0) for k, one in judges.items()}
    return complete(
        GapConfig,
        policies=tuple(policies),
        judges=ConfigDict(
            {k: complete(VerifierConfig, judge=one, rounds=r) for k, (one, r) in pairs.items()}
        ),
        utility=complete(UtilityConfig, by=by),
        **changes,
    )


def rewrites_judge(backend: str, *, init_from="", proofread=UNREAD) -> ConfigDict:
    """Builds the judge of a rewriter in training: quality compared with the suffix, plus safety."""
    return judge(
        backend,
        init_from=init_from,
        weights=(("quality", 1.0), ("safety", 1.0)),
        schedule=schedule("against"),
        proofread=proofread,
    )


def audit(held_out=None, **changes) -> ConfigDict:
    """Builds section `audit`: a second judge that gives no rewards and can end the run.

    `held_out` is the section of that judge, by default the ground truth. every_steps=0 is off
    (sip/judge/audit.py).
    """
    return complete(AuditConfig, judge=held_out or judge("truth"), **changes)


NO_AUDIT = audit()


def watch(window: int = 10) -> ConfigDict:
    """Builds section `watch`: alarms of reward hacking (sip/stages/alarms.py); window 0 is off."""
    return complete(WatchConfig, window=window)


def rewriter(backend: str, *, init_from="", chat="", param_dtype="") -> ConfigDict:
    """Builds section `rewriter`.

    Backends: local (a trained rewriter), truth (the corpus's ground truth). `chat` as in `judge`.
    """
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
    control="",
    documents=0,
    save_every=100,
    log_every=5,
    **run,
) -> ConfigDict:
    """Builds a self-improving run.

    With the control token `control` before candidates, `documents` rows of a batch learn their own
    suffix without it.
    """
    shared = any_run(save_every=save_every, log_every=log_every, **run)
    return section(
        stage="selfimprove",
        judge=judge,
        audit=audit,
        watch=watch(),
        rewriter=rewriter,
        candidates=candidates,
        objective=objective,
        sampling=complete(SamplingConfig),
        evals=evals,
        judge_mesh=judge_mesh(),
        control=control,
        documents=documents,
        staleness=0,
        **shared,
    )
