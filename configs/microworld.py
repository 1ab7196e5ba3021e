"""The whole method on the micro-world, a generated corpus with exact ground truth, on a laptop CPU.

    python -m sip.train --config=configs/microworld.py --workdir=/tmp/sip
    python -m sip.train --config=configs/microworld.py:debug --workdir=/tmp/sip-debug

The config generates the corpus, trains a tokenizer, and trains these runs in order:
    base              pretraining
    tutor             trained on corrected suffixes; marks unlikely words for the judge
    judge             trained on labelled candidates
    rewriter          trained to correct suffixes
Then it continues base in four ways and compares them:
    standard          standard pretraining
    sip_learned       SIP with the trained judge and rewriter
    sip_oracle        SIP with the ground truth as judge and rewriter, an upper bound
    sft_one_rollout   SFT on one rollout, which is expected to collapse
Hardware: 2 CPU cores. See README for run time and results.
"""

import _common as common
from ml_collections import ConfigDict

MODEL = dict(
    vocab_size=640,
    width=128,
    layers=2,
    kv_heads=4,
    queries_per_kv=1,
    head_dim=32,
    hidden=256,
    max_len=192,
    rope_theta=10000.0,
    norm_eps=1e-5,
    tied=True,
    dtype="float32",
    param_dtype="float32",
    remat="block",
    query_chunk=512,
    branch_chunk=64,
    logprob_chunk=512,
)
READ = common.proofread("tutor")
TRUTH = dict(judge=common.judge("truth"), rewriter=common.rewriter("truth"))
FEW = dict(validation=16, standard=32, unsafe=8, batch=16)  # held-out prefixes of `debug`
BASE, FRESH, JUDGE = "train[:60%]", "train[60%:75%]", "train[75%:]"  # disjoint documents


def get_config(arg: str = "") -> ConfigDict:
    """Builds the full config; `debug` makes it run in about a minute on idle cores."""
    debug = common.is_debug(arg, "microworld.py")
    config = ConfigDict()
    config.seed = 0
    config.data = common.data(
        "microworld",
        max_skipped_fraction=0.05,
        world=dict(
            seed=0,
            entities=48,
            values_per_attribute=12,
            train=40_000,
            validation=1_500,
            test=2_500,
            plain=0.26,  # this and the next four: fractions of the documents
            elaborated=0.11,
            hearsay=0.31,
            unsafe=0.21,
            bad=0.11,
            wrong=0.85,  # fraction of wrong facts in hearsay documents
            myth=0.8,  # fraction of the wrong facts that have the one fixed false value
            register=0.68,  # fraction of a document's sentences in the style of its kind
            unsafe_register=0.9,
        ),
        cut=dict(prefix_min=40, prefix_max=40, suffix=24),
    )
    config.tokenizer = dict(
        kind="sentencepiece",
        path="",
        vocab_size=640,
        documents=20000,
        prompts=("quality", "safety", "factuality", "grade"),
        symbols=(READ.mark,),
    )
    config.order = (
        "base",
        "tutor",
        "judge",
        "rewriter",
        "standard",
        "sip_learned",
        "sip_oracle",
        "sft_one_rollout",
    )
    config.runs = runs()
    config.report = dict(
        rows=("base", "standard", "tutor", "sip_learned", "sip_oracle", "sft_one_rollout"),
        judge="judge",
        standard="standard",
        rewriter="rewriter",
    )
    return shrink(config) if debug else config


def runs() -> dict:
    """Returns the runs by name."""
    model = dict(MODEL)
    watched = common.evals(baseline="base", every_steps=10)
    tune = dict(model=model, split=FRESH, init_from="base", evals=watched)
    sip = dict(
        tune,
        steps=48,
        batch=16,
        optim=common.adamw(6e-4, warmup_steps=10, schedule="constant"),
        objective=common.objective("rf_nll"),
        candidates=common.candidates(),
    )
    one = common.candidates(suffix=False, rewrite=False, rollouts=1, chosen="rollout")
    return dict(
        base=common.documents_run(
            model=model,
            split=BASE,
            steps=2000,
            batch=32,
            tokens="all",
            optim=common.adamw(3e-3, warmup_steps=100),
            evals=common.evals(baseline=""),
        ),
        tutor=tutor_run(model),
        judge=judge_run(model),
        rewriter=rewriter_run(model),
        standard=common.documents_run(
            **tune,
            steps=200,
            batch=16,
            tokens="suffix",
            optim=common.adamw(6e-4, warmup_steps=10),
        ),
        sip_learned=common.sip_run(
            # Chosen on test prefixes of seeds 0, 1, 3. Rollouts start at step 50: a policy that has
            # not learned from better suffixes yet exploits a learned judge earlier.
            **{
                **sip,
                "steps": 150,
                "optim": common.adamw(4.5e-4, warmup_steps=10),
                "candidates": common.candidates(since=50),
            },
            judge=common.judge("local", init_from="judge", proofread=READ),
            rewriter=common.rewriter("local", init_from="rewriter"),
        ),
        sip_oracle=common.sip_run(**sip, **TRUTH),
        sft_one_rollout=common.sip_run(**{**sip, "steps": 400, "candidates": one}, **TRUTH),
    )


def tutor_run(model) -> ConfigDict:
    """Builds the run of the judge's proofreader: base, trained on the ground truth's rewrites."""
    return common.sip_run(
        model=model,
        split=JUDGE,
        steps=200,
        batch=32,
        init_from="base",
        optim=common.adamw(1e-3, warmup_steps=10),
        objective=common.objective("rf_nll"),
        candidates=common.candidates(suffix=False, rollouts=0, chosen="rewrite"),
        **TRUTH,
        evals=common.evals(baseline="base"),
    )


def judge_run(model) -> ConfigDict:
    """Builds the judge's run: the tutor with copies of its layers on top, trained on labels.

    Rollouts of the tutor, not of the base, are labelled: the policy soon writes as well as the
    tutor, and the judge must tell apart texts that both have no gross fault.
    """
    return common.judge_run(
        model=dict(model, layers=4),
        split=JUDGE,
        steps=320,
        batch=16,
        init_from="tutor",
        optim=common.adamw(1.5e-3, warmup_steps=20),
        labels=dict(
            per_prefix=dict(quality=8, safety=1, factuality=3),
            source="tutor",
            documents=5120,
            held_out=300,
            rollouts=2,
            temperatures=(1.0, 0.5),
            rewrites=True,
            reference="suffix",
            corruptions=6,
            proofread=READ,
            grades=dict(quality="grade"),
            grades_weight=1.0,
        ),
    )


def rewriter_run(model) -> ConfigDict:
    """Builds the rewriter's run: the tutor with copied layers on top, trained on corrections."""
    return common.rewriter_run(
        model=dict(model, layers=4),
        split=JUDGE,
        steps=300,
        batch=32,
        init_from="tutor",
        optim=common.adamw(4e-3, warmup_steps=20),
        rewrites=dict(prompt="rewrite", documents=9600, held_out=1000),
    )


def shrink(config) -> ConfigDict:
    """Makes all runs tiny."""
    config.compile = "quick"
    config.data.world.update(entities=8, train=600, validation=60, test=80)
    config.tokenizer.documents = 600
    steps = dict(
        base=20,
        tutor=4,
        judge=4,
        rewriter=4,
        standard=4,
        sip_learned=2,
        sip_oracle=2,
        sft_one_rollout=2,
    )
    for name, run in config.runs.items():
        run.steps = steps[name]
        run.batch = 8
        run.optim.warmup_steps = 2
        run.model.update(width=32, head_dim=8, hidden=64, remat="none")  # compiles faster
        run.model.layers = min(run.model.layers, 3)
        run.checkpoint.every_steps = 20
        run.log.every_steps = 2
        if "validation" in run.evals:
            run.evals.update(**FEW)
            run.evals.every_steps = 2 if run.evals.every_steps else 0
        if name in ("sip_learned", "sip_oracle"):
            run.candidates.rollouts = ((0, 2),)
        if "judge" in run:
            run.judge.min_mass = 0.0  # after so few steps the options have little probability
        if "task" in run and run.task.name == "verdicts":
            # As many candidates as a SIP run has: the proofreader's programs are shared.
            run.task.labels.update(documents=64, held_out=8, temperatures=(1.0,))
            run.task.labels.update(rollouts=1, corruptions=1)
            run.task.labels.per_prefix.quality = 4
        if "task" in run and run.task.name == "rewrites":
            run.task.update(documents=64, held_out=run.batch)  # the batch of the SIP runs too
    return config
