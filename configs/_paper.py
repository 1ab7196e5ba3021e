"""Shared parts of the runs at the scale of arXiv 2601.21343: data, tokenizer, policy, hardware.

Variant words after the colon, separated by commas:
    a machine of HARDWARE (default: v5e-64); those of 4 or 8 chips have smaller batches, a judge in
               bfloat16 and an adaptive comparison schedule
    reasoned   The judge writes its reasoning before the verdict, as in the paper. Without it the
               verdict is read from the probabilities of the options.
    debug      A tiny run: byte tokenizer, fresh parameters, a rule as the judge.

The corpus is a TFDS data set in array_record files under WORKDIR/data. With
--config.data.source=jsonl it is a file with one JSON document per line, field "text".
"""

import _common as common
import _variants as variants
import judge_llama8b
from ml_collections import ConfigDict

MODEL = dict(  # preset llama_1b4: Llama 2's tokenizer and architecture, 1.36e9 parameters
    vocab_size=32000,
    width=2048,
    layers=24,
    kv_heads=16,
    queries_per_kv=1,
    head_dim=128,
    hidden=5632,
    max_len=2304,
    rope_theta=10000.0,
    norm_eps=1e-5,
    tied=False,
    dtype="bfloat16",
    param_dtype="float32",
    remat="block",
    query_chunk=512,
    branch_chunk=8,
    logprob_chunk=512,
)
# teachers: prefixes per call of judge and rewriter, at least one per device; stored: dtype of their
# parameters, by default as saved; schedule: pairs that the judge compares, by default all. batch
# and microbatches are the policy's. A host of 4 or 8 chips or one GPU has no memory for a batch of
# 256 prefixes with 16 rollouts each, nor v5e-8 for all pairs. Names count chips, except that of
# v4-8, which is Google Cloud's: 8 cores, 4 chips.
SMALL = dict(stored="bfloat16", schedule="adaptive")
HARDWARE = {
    "v5e-64": dict(teachers=64, batch=256, microbatches=1),
    "v5e-256": dict(teachers=256, batch=256, microbatches=1),
    "v5p-64": dict(teachers=64, batch=256, microbatches=1),
    "v6e-64": dict(teachers=64, batch=256, microbatches=1),
    "v5e-8": dict(teachers=8, batch=32, microbatches=4, **SMALL),
    "v6e-8": dict(teachers=8, batch=64, microbatches=8, **SMALL),
    "v4-8": dict(teachers=4, batch=32, microbatches=8, **SMALL),
    "h200": dict(teachers=1, batch=16, microbatches=4),
}
REASONED = {"quality": "reasoned_quality", "safety": "reasoned_safety"}
PREFIX, SUFFIX = 1920, 128
WORDS = ("debug", "reasoned")


def words(arg: str, name: str) -> tuple[str, set[str]]:
    """Splits a variant into (hardware, other words); raises ValueError for an unknown word."""
    asked = variants.words(arg)
    machines = [word for word in asked if word in HARDWARE]
    unknown = [word for word in asked if word not in (*HARDWARE, *WORDS)]
    if unknown or len(machines) > 1:
        raise ValueError(
            f"configs/{name}: {arg!r} must be words of {', '.join(WORDS)}, {', '.join(HARDWARE)}"
        )
    return (machines or ["v5e-64"])[0], set(asked) - set(machines)


def get_config(
    arg: str,
    name: str,
    *,
    data: str,
    aspects: tuple[str, ...],
    steps: int,
    optim,
    objective: str,
    candidates,
    init_from: str = "base",
) -> ConfigDict:
    """Builds a config with one run, `sip`; all `aspects` of the judge have weight 1."""
    machine, others = words(arg, name)
    hardware = HARDWARE[machine]
    config = ConfigDict()
    config.seed = 0
    config.data = common.data(
        "tfds",
        data,
        max_skipped_fraction=0.9,  # many documents are shorter than a prefix and a suffix
        cut=dict(prefix_min=128, prefix_max=PREFIX, suffix=SUFFIX),
    )
    config.tokenizer = dict(
        kind="sentencepiece", path="tokenizer.model", vocab_size=32000, documents=1, prompts=()
    )
    asked = tuple(REASONED[a] if a in REASONED and "reasoned" in others else a for a in aspects)
    judge = common.judge("local", init_from="judge", weights=tuple((a, 1.0) for a in asked))
    stored = hardware["stored"] if "stored" in hardware else ""
    judge.batch, judge.param_dtype = hardware["teachers"], stored
    judge.votes = 5 if "reasoned" in others and "safety" in aspects else 1
    if "schedule" in hardware:
        judge.schedule = common.schedule(hardware["schedule"])
    rewriter = common.rewriter("local", init_from="rewriter", param_dtype=stored)
    rewriter.batch = hardware["teachers"]
    run = common.sip_run(
        model=dict(MODEL),
        split="train",
        steps=steps,
        batch=hardware["batch"],
        init_from=init_from,
        optim=optim,
        judge=judge,
        rewriter=rewriter,
        candidates=candidates,
        objective=common.objective(objective),
        evals=common.evals(baseline="", standard=512, unsafe=0, batch=hardware["batch"]),
        save_every=200,
    )
    run.microbatches = hardware["microbatches"]
    config.runs = dict(sip=run)
    config.order = ("sip",)
    config.report = dict(rows=("sip",), judge="", standard="")
    return shrink(config) if "debug" in others else config


def continual(arg: str, name: str, *, data: str, aspects: tuple[str, ...]) -> ConfigDict:
    """Builds a run that continues a base model.

    DPO between the best and the worst of the suffix and 16 rollouts.
    """
    return get_config(
        arg,
        name,
        data=data,
        aspects=aspects,
        steps=2000,
        optim=common.adamw(5e-6, warmup_steps=100, weight_decay=0.1, b2=0.95),
        objective="dpo",
        candidates=common.candidates(rewrite=False, rollouts=16),
    )


def shrink(config) -> ConfigDict:
    """Makes the run tiny, without a rewriter."""
    config.compile = "quick"
    run = config.runs.sip
    run.judge.update(backend="rule", rule="distinct_words", init_from="", votes=1, batch=4)
    run.judge.weights = (("quality", 1.0),)
    run.candidates.update(suffix=True, rewrite=False, rollouts=((0, 2),))
    run.evals.update(validation=4, standard=8, batch=4)
    config.data.source = "jsonl"
    judge_llama8b.shrink_shared(config, run, max_len=64)
    run.optim.warmup_steps = 0
    return config
