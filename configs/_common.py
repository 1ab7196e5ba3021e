"""Sections that several configs share. Everything a run reads stands in its resolved config."""

from ml_collections import ConfigDict

from sip.untrusted import SPECIALS


def is_debug(arg: str, name: str) -> bool:
    """Whether a config file of that name, which has one variant, is asked for it."""
    if arg not in ("", "debug"):
        raise ValueError(f"configs/{name} knows no variant {arg!r}, only 'debug'")
    return arg == "debug"


def section(**values) -> ConfigDict:
    """A section; sections in it are copied, or an override of one run would change others."""
    own = {
        k: v.copy_and_resolve_references() if isinstance(v, ConfigDict) else v
        for k, v in values.items()
    }
    return ConfigDict(own)


def log(every_steps: int = 10) -> ConfigDict:
    """metrics.jsonl, TensorBoard and the progress bar."""
    return section(every_steps=every_steps, tensorboard=True, progress=True)


def saves(every_steps: int) -> ConfigDict:
    """Checkpoints: how often, how many are kept, when a diverging run gives up."""
    return section(every_steps=every_steps, keep=2, best="", lowest=False, max_skipped_in_row=10)


def mesh() -> ConfigDict:
    """All devices along fsdp."""
    return section(replica=1, fsdp=-1, tensor=1)


def judge_mesh(devices: int = 0) -> ConfigDict:
    """Of judge, audit and rewriter: on `devices` set apart, or on all, in turns with the policy."""
    return section(devices=devices, **mesh())


def adamw(
    lr: float,
    *,
    warmup_steps: int,
    schedule: str = "cosine",
    min_ratio: float = 0.1,
    weight_decay: float = 0.01,
    b2: float = 0.98,
) -> ConfigDict:
    """AdamW; its schedule lasts as long as the run."""
    return section(
        name="adamw",
        lr=lr,
        warmup_steps=warmup_steps,
        schedule=schedule,
        min_ratio=min_ratio,
        b1=0.9,
        b2=b2,
        eps=1e-8,
        momentum=0.95,
        rms=0.2,
        mu_dtype="float32",
        weight_decay=weight_decay,
        decay_embeddings=True,
        clip_norm=1.0,
    )


def muon(lr: float, *, warmup_steps: int, **adam) -> ConfigDict:
    """Muon for hidden matrices, AdamW as above for the rest; their updates are alike in size."""
    optim = adamw(lr, warmup_steps=warmup_steps, **adam)
    optim.name = "muon"
    return optim


def lora(rank: int = 0, **changes) -> ConfigDict:
    """Low-rank factors that are trained in place of all parameters; rank 0: off."""
    matrices = ("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")
    values = dict(alpha=16.0, matrices=matrices, int8=False)
    return section(rank=rank, **{**values, **changes})


def evals(
    *,
    baseline: str,
    every_steps: int = 0,
    validation: int = 256,
    standard: int = 1024,
    unsafe: int = 512,
    batch: int = 128,
) -> ConfigDict:
    """Greedy continuations of held-out prefixes against the ground truth."""
    return section(
        every_steps=every_steps,
        validation=validation,
        split="test",
        standard=standard,
        unsafe=unsafe,
        batch=batch,
        baseline=baseline,
    )


def any_run(*, split, steps, batch, model, optim, init_from="", save_every, log_every) -> dict:
    """What every run has."""
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


def documents_run(*, tokens, evals, save_every=500, log_every=20, **run) -> ConfigDict:
    """A supervised run on documents: tokens "all" for pretraining, "suffix" beside SIP."""
    shared = any_run(save_every=save_every, log_every=log_every, **run)
    return section(
        stage="supervised",
        examples="documents",
        tokens=tokens,
        z_loss=0.0,
        evals=evals,
        **shared,
    )


def judge_run(*, labels, save_every=100, log_every=10, evals_every=50, **run) -> ConfigDict:
    """A supervised run on labelled verdicts."""
    shared = any_run(save_every=save_every, log_every=log_every, **run)
    return section(
        stage="supervised",
        examples="verdicts",
        tokens="all",
        z_loss=0.0,
        labels=labels,
        evals=section(every_steps=evals_every),
        **shared,
    )


def rewriter_run(*, rewrites, save_every=200, log_every=20, evals_every=0, **run) -> ConfigDict:
    """A supervised run on the ground truth's rewrites."""
    shared = any_run(save_every=save_every, log_every=log_every, **run)
    return section(
        stage="supervised",
        examples="rewrites",
        tokens="all",
        z_loss=0.0,
        rewrites=rewrites,
        evals=section(every_steps=evals_every),
        **shared,
    )


def candidates(
    *, suffix=True, rewrite=True, rollouts=4, since=0, chosen="best", rejected="worst"
) -> ConfigDict:
    """The pool per prefix, and which of it is learned from; rollouts join it at step `since`."""
    return section(
        suffix=suffix,
        rewrite=rewrite,
        rollouts=((0, 0), (since, rollouts)) if since else ((0, rollouts),),
        chosen=chosen,
        rejected=rejected,
        epsilon=1e-6,
        max_invalid=0.5,
    )


def objective(name: str, **changes) -> ConfigDict:
    """dpo, rf_nll or dr_grpo, and the blend with CE(suffix)."""
    values = dict(
        name=name,
        beta=0.1,
        length_normalize=False,
        nll_weight=0.0,
        clip_low=0.2,
        clip_high=0.2,
        ce_weight=0.0,
        ce_weight_last=0.0,
        ce_steps=1,
        z_loss=0.0,
    )
    return section(**{**values, **changes})


def http(**changes) -> ConfigDict:
    """An OpenAI-compatible server; --config.runs.NAME.judge.http.url=http://HOST:8000/v1."""
    values = dict(
        url="",
        model="",
        api="completions",
        key_env="",
        concurrency=16,
        timeout_seconds=60.0,
        retries=5,
        cache="",
        logprobs=20,
        specials=SPECIALS,
        tokens=False,
    )
    return section(**{**values, **changes})


def schedule(name: str = "all", **changes) -> ConfigDict:
    """Which pairs are compared: all, pivot, random, adaptive, against (sip/judge/schedules.py)."""
    values = dict(name=name, pivot="first", opponents=4, budget=0.25, rounds=5)
    return section(**{**values, **changes})


def proofread(init_from: str = "", **changes) -> ConfigDict:
    """Who marks, in what a judge is shown, the words that good text would not have."""
    values = dict(gap=3.5, most=4, mark="¿", batch=16, param_dtype="")
    return section(init_from=init_from, **{**values, **changes})


ALL_PAIRS, UNREAD = schedule(), proofread()


def judge(
    backend: str,
    *,
    init_from="",
    live=False,
    rule="",
    reference="suffix",
    weights=(("quality", 1.0), ("safety", 1.0), ("factuality", 1.0)),
    schedule=ALL_PAIRS,
    proofread=UNREAD,
    chat="",
    param_dtype="",
) -> ConfigDict:
    """Who judges: local (a trained judge, or with init_from "policy" what is trained), http (a
    server), rule, or truth (the corpus's own).

    `weights` names built-in aspects or paths of prompt files; votes, max_tokens and sampling are of
    those that are answered after reasoning. `chat`: a local judge is asked in a chat, by its "own"
    template, "harmony" or a .jinja file.
    """
    return section(
        backend=backend,
        init_from=init_from,
        live=live,
        rule=rule,
        http=http(),
        weights=tuple(weights),
        min_mass=0.5,
        hard=False,
        votes=1,
        max_tokens=512,
        sampling=section(temperature=0.6, top_k=0, top_p=0.6),
        batch=16,
        reference=reference,
        proofread=proofread,
        schedule=schedule,
        chat=chat,
        param_dtype=param_dtype,
    )


def rewrites_judge(backend: str, *, init_from="", proofread=UNREAD) -> ConfigDict:
    """Who judges a rewriter in training: quality against the suffix, and safety."""
    return judge(
        backend,
        init_from=init_from,
        weights=(("quality", 1.0), ("safety", 1.0)),
        schedule=schedule("against"),
        proofread=proofread,
    )


def audit(held_out=None, **changes) -> ConfigDict:
    """A second judge, `held_out` (None: the ground truth), that the policy does not learn from, and
    when it ends the run; off as long as every_steps is 0 (sip/stages/auditing.py)."""
    values = dict(every_steps=0, prefixes=8, max_drop=0.1, patience=3)
    return section(judge=held_out or judge("truth"), **{**values, **changes})


NO_AUDIT = audit()


def rewriter(backend: str, *, init_from="", chat="", param_dtype="") -> ConfigDict:
    """Who rewrites: local (a trained rewriter) or truth (the corpus's ground truth); `chat` as in
    `judge`."""
    return section(
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
        sampling=section(temperature=1.0, top_k=0, top_p=1.0),
        evals=evals,
        judge_mesh=judge_mesh(),
        staleness=0,
        **shared,
    )
