"""The generation-verification gap (arXiv 2412.02674), on the micro-world and on your checkpoint.

    python -m sip.train --config=configs/gap.py --workdir=/tmp/gap
    python -m sip.gap --config=configs/gap.py --workdir=/tmp/gap

Three model sizes, each pretrained on the same documents for as many steps, and a judge of each,
trained on labelled continuations of its own base. The second command measures every base under
every judge, for quality, safety and factuality each: does the relative gap grow with the size of
the judge, where is it zero (facts), do thresholds carry over between sizes, and which pairing has
the highest utility for its FLOPs? Answers of one seed: docs/gap.md.

    python -m sip.gap --config=configs/gap.py:CHECKPOINT --workdir=/tmp/mine \\
        --config.gap.problems.test=gsm8k/test.jsonl

Nothing is trained: the checkpoint, a Hugging Face directory or a run, answers problems and verifies
its own answers by multiple choice, CoT-score, CoT-binary and a tournament (docs/gap.md).
`:debug` is tiny. Hardware: 2 CPU cores for the micro-world; for a checkpoint a device that fits it.
"""

from typing import Any

import _common as common
import _published as published
import microworld
import rl_problems
from ml_collections import ConfigDict

from sip.data.problems import ProblemsConfig

WIDTHS = dict(small=64, middle=128, large=256)
ASPECTS = ("quality", "safety", "factuality")
THRESHOLDS = (0.5, 0.7, 0.9)  # of a judge's score: does one threshold suit all sizes?
MECHANISMS = dict(mc="correct", cot_score="reasoned_score", cot_binary="reasoned_correct")
ROUNDS = 3  # of the tournament


def get_config(arg: str = "") -> ConfigDict:
    """Builds the recipe of three sizes, or the measurement of the checkpoint in `arg`."""
    source, debug = published.words(arg, "gap.py")
    return of_checkpoint(source, debug) if source else three_sizes(debug)


def of_checkpoint(source: str, debug: bool) -> ConfigDict:
    """Builds the measurement of a checkpoint that verifies its own answers to problems."""
    config = rl_problems.of_files(source, debug)  # its run is not trained
    chat = published.chat_of(source)
    ask = lambda aspect: common.judge(
        "local", weights=((aspect, 1.0),), init_from="policy", chat="own" if chat == "own" else ""
    )
    judges: dict[str, Any] = {name: ask(aspect) for name, aspect in MECHANISMS.items()}
    judges["tournament"] = ask("reasoned_better"), ROUNDS
    config.gap = common.gap(
        (source,),
        judges,
        by="answers",
        problems=common.complete(ProblemsConfig),
        chat=chat,
        prompts=2 if debug else 256,
        answers=2 if debug else 32,
        max_tokens=8 if debug else 512,
        sampling=dict(temperature=0.7, top_k=0, top_p=0.9),
        thresholds=(0.8,),
        ensembles=(("mc", "cot_score"),),
    )
    return config


def three_sizes(debug: bool) -> ConfigDict:
    """Builds the recipe with a base and a judge of each size."""
    config: Any = microworld.get_config("debug" if debug else "")
    base, judge = config.runs.base, config.runs.judge
    config.runs = {}
    for size, width in WIDTHS.items():
        shape = measures(width // 8 if debug else width)
        config.runs[f"base_{size}"] = sized(base, shape)
        config.runs[f"judge_{size}"] = taught(judge, shape, f"base_{size}")
    bases = [f"base_{size}" for size in WIDTHS]
    config.order = tuple(config.runs)
    config.report = dict(rows=tuple(bases), judge="judge_large", standard="")
    judges = {
        f"{size}_{aspect}": common.judge(
            "local",
            weights=((aspect, 1.0),),
            init_from=f"judge_{size}",
            min_mass=0.0 if debug else 0.5,
        )
        for size in WIDTHS
        for aspect in ASPECTS
    }
    config.gap = common.gap(
        bases,
        judges,
        prompts=8 if debug else 128,
        answers=4 if debug else 8,
        batch=8 if debug else 32,
        thresholds=THRESHOLDS,
        ensembles=(("large_quality", "large_safety", "large_factuality"),),
    )
    return config


def measures(width: int) -> dict:
    """Returns the measures of a model of some width."""
    return dict(width=width, head_dim=width // 4, hidden=2 * width)


def sized(run, shape) -> ConfigDict:
    """Copies a run with another shape of its model."""
    made = run.copy_and_resolve_references()
    made.model.update(shape)
    return made


def taught(run, shape, base: str) -> ConfigDict:
    """Copies the judge's run for a base of another size, without a proofreader."""
    made = sized(run, shape)
    made.init_from = base
    made.task.labels.update(source=base, proofread=common.proofread())
    return made
