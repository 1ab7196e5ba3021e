"""The ablations of arXiv 2601.21343 on the micro-world, most from the same base model.

    python -m sip.train --config=configs/microworld_ablations.py --workdir=/tmp/ablations
    python -m sip.train --config=configs/microworld_ablations.py:dpo_rollouts --workdir=/tmp/one
    python -m sip.train --config=configs/microworld_ablations.py:debug --workdir=/tmp/debug

Variant words after the colon, separated by commas, in any order (`:dpo_rollouts,truth,debug`):
    names of ablations (default: all)
    truth   The ground truth is judge and rewriter; no judge or rewriter is trained.
    debug   Tiny runs.
An ablation includes the runs that it needs. To change the number of rollouts:
--config.runs.NAME.candidates.rollouts="((0, 8),)". Hardware: 2 CPU cores.
"""

from typing import Any

import _common as common
import _variants as variants
import microworld
from ml_collections import ConfigDict

K = 4  # rollouts per prefix; the paper has 16
STEPS = 100  # half of the main job's
POOLS = dict(
    suffix_rollouts=dict(rewrite=False, rollouts=K),
    rewrite_rollouts=dict(suffix=False, rollouts=K),
    suffix_rewrite_rollouts=dict(rollouts=K),
    rollouts=dict(suffix=False, rewrite=False, rollouts=K),
    suffix_one_rollout=dict(rewrite=False, rollouts=1),
    rewrite_one_rollout=dict(suffix=False, rollouts=1),
    suffix_rewrite=dict(rollouts=0),
)
SIZES = dict(  # the whole pool with other numbers of rollouts than K and 0
    suffix_rewrite_one_rollout=dict(rollouts=1),
    suffix_rewrite_eight_rollouts=dict(rollouts=8),
)
MATCHED = 5  # factor on standard pretraining's steps for the wall time of SIP, judging included
FIXED = dict(  # without a judge: the sources determine chosen and rejected
    sft_rewrite=dict(suffix=False, rollouts=0, chosen="rewrite"),
    sft_one_rollout=dict(suffix=False, rewrite=False, rollouts=1, chosen="rollout"),
    dpo_rewrite_over_rollout=dict(suffix=False, rollouts=1, chosen="rewrite", rejected="rollout"),
)
CE = dict(ce_weight=0.5, ce_weight_last=0.1, ce_steps=50)  # adds weight * CE(suffix)
VARIANTS: dict[str, Any] = dict(  # variants of objectives, on suffix and rollouts
    dpo_length_normalized=dict(name="dpo", length_normalize=True, beta=2.0),
    dpo_nll=dict(name="dpo", nll_weight=0.2),
    dpo_ce=dict(name="dpo", **CE),
    rf_nll_length_normalized=dict(name="rf_nll", length_normalize=True),
    rf_nll_ce=dict(name="rf_nll", **CE),
    dr_grpo_ce=dict(name="dr_grpo", **CE),
)
RF_NLL, DPO = dict(name="rf_nll"), dict(name="dpo", nll_weight=1.0)
SCRATCH = (
    dict(  # from fresh parameters; DPO needs an NLL term there, as its pairs are noise at first
        scratch_rewrite=(RF_NLL, FIXED["sft_rewrite"]),
        scratch_rf_nll_suffix_rewrite=(RF_NLL, POOLS["suffix_rewrite"]),
        scratch_rf_nll_rewrite_one_rollout=(RF_NLL, POOLS["rewrite_one_rollout"]),
        scratch_dpo_rewrite_one_rollout=(DPO, POOLS["rewrite_one_rollout"]),
    )
)
SCRATCH_SPLIT = "train[:75%]"  # documents of base and policies, without the judge's
GROUPS = ("suffix_rollouts", "suffix_rewrite_rollouts", "rollouts")  # pools for dr_grpo
UNJUDGED = ("standard", "standard_matched", "scratch_standard", "scratch_rewrite")
WORDS = ("debug", "truth")


def get_config(arg: str = "") -> ConfigDict:
    """Builds the ablations named by `arg` (default: all) and the runs that they need."""
    words = variants.words(arg)
    config: Any = microworld.get_config("debug" if "debug" in words else "")
    found = ablations(config.runs, "truth" if "truth" in words else "local")
    names = variants.named(words, found, WORDS, "microworld_ablations.py")
    needed = ("base",)
    if "truth" not in words:
        judged = not set(names) <= {*FIXED, *UNJUDGED}
        wrote = any(rewritten(found[name]) for name in names)
        needed += ("tutor",) if judged or wrote else ()  # both begin as the tutor
        needed += ("judge",) if judged else ()
        needed += ("rewriter",) if wrote else ()
    config.runs = {n: config.runs[n] for n in needed} | {n: found[n] for n in names}
    config.order = (*needed, *names)
    config.report = dict(
        rows=("base", *names),
        judge="judge" if "judge" in needed else "",
        standard="standard" if "standard" in names else "",
    )
    return config


def rewritten(run) -> bool:
    """Returns True if a run has rewrites among its candidates."""
    return "candidates" in run and run.candidates.rewrite


def ablations(main, backend: str) -> dict[str, ConfigDict]:
    """Returns all ablations by name, derived from the runs `main` of microworld.py.

    `backend` of judge and rewriter: "local" or "truth".
    """
    source = lambda name: name if backend == "local" else ""
    reader = common.proofread(source("tutor"))
    judge = common.judge(backend, init_from=source("judge"), proofread=reader)
    rewriter = common.rewriter(backend, init_from=source("rewriter"))
    judge.min_mass = main.sip_learned.judge.min_mass

    def sip(objective, pool, start="base"):
        run = main.sip_learned.copy_and_resolve_references()
        run.update(
            judge=judge,
            rewriter=rewriter,
            objective=objective,
            candidates=common.candidates(**pool),
            init_from=start,
            steps=min(run.steps, STEPS),
        )
        return run

    plain = {name: common.objective(name) for name in ("dpo", "rf_nll", "dr_grpo")}
    matched = main.standard.copy_and_resolve_references()
    matched.steps = main.standard.steps * MATCHED
    found = {"standard": main.standard, "standard_matched": matched}
    found |= {f"dpo_{pool}": sip(plain["dpo"], POOLS[pool]) for pool in POOLS}
    found |= {f"rf_nll_{pool}": sip(plain["rf_nll"], POOLS[pool]) for pool in POOLS}
    found |= {f"dr_grpo_{pool}": sip(plain["dr_grpo"], POOLS[pool]) for pool in GROUPS}
    found |= {f"rf_nll_{pool}": sip(plain["rf_nll"], SIZES[pool]) for pool in SIZES}
    found |= {
        name: sip(plain["dpo" if name.startswith("dpo") else "rf_nll"], pool)
        for name, pool in FIXED.items()
    }
    found["sft_one_rollout"] = main.sft_one_rollout
    found |= {
        name: sip(common.objective(**changes), POOLS["suffix_rollouts"])
        for name, changes in VARIANTS.items()
    }
    scratch = {"scratch_standard": main.standard.copy_and_resolve_references()}
    scratch |= {
        name: sip(common.objective(**objective), pool)
        for name, (objective, pool) in SCRATCH.items()
    }
    for run in scratch.values():
        run.init_from, run.split = "", SCRATCH_SPLIT
        run.optim = main.base.optim.copy_and_resolve_references()
        run.steps = main.base.steps
        run.evals.every_steps = run.steps // 20
    return found | scratch
