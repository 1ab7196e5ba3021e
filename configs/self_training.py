"""Self-training by majority votes, without labels (arXiv 2505.21444).

    python -m sip.train --config=configs/self_training.py --workdir=/tmp/self
    python -m sip.train --config=configs/self_training.py:majority,soft --workdir=/tmp/some
    python -m sip.train --config=configs/self_training.py:CHECKPOINT,majority --workdir=/tmp/mine \
        --config.runs.majority.task.problems.path=gsm8k/train.jsonl \
        --config.runs.majority.task.problems.test=gsm8k/test.jsonl

On the micro-world `base` and `thoughts` are those of thinking.py (--from=ITS_WORKDIR copies them).
A checkpoint (a Hugging Face directory or a run) is in the place of `thoughts`, with problems and
settings as in rl_problems.py:CHECKPOINT. Then policies learn from `thoughts` with RLOO, a KL of
0.001 in the reward, 8 answers to each problem and the same evaluation, by the right answers to
held-out problems:

    labels     right answers: what labels are worth
    majority   1 for the answer of most of the 8, else 0; the labels evolve with the policy
    filtered   of twice as many problems those with a majority of at least 60 %, drawn again up to
               twice if they are too few
    easiest    the third of the problems on which `thoughts` agrees with itself most
    fixed      labels by the votes of `thoughts`, made once
    random     0 or 1 by chance: a gain that this gives as well is not due to votes
and on request
    soft       an answer's share of the 8
    hybrid     votes and right answers, half each
    early      as majority, but ends when 3 evaluations on labelled problems were not better; its
               final evaluation is then that of the best parameters

Expect in summary.json for each row mean@8, maj@8, pass@k, the same of the start (start/mean@8),
reward/answers (greedy) and collapse_step, the update at which reward and KL to the start jumped
together. RUN_DIR/best has the parameters with the best evaluation.
In the log majority/right is the share of right labels, which nothing learns from.

`:debug` is tiny. Hardware: 2 CPU cores for the micro-world; for a checkpoint, devices whose memory
fits its optimiser state and a frozen copy; python -m sip.aot predicts memory and time, also of
`:llama3_8b` and other presets. Each arm has the update and the answers of rl_problems.py and the
KL to the start; `filtered` answers twice as many. Not compiled at this size. Figures of the
micro-world, two to four minutes an arm on one core: docs/self_training.md.
"""

import _common as common
import _published as published
import _rl as rl
import _variants as variants
import rl_problems
import thinking
from etils import epath
from ml_collections import ConfigDict

from sip.rewards.majority import MajorityConfig

START = "START"  # what the arms start from
ARMS = {  # changes to the reward's votes, and to the run
    "labels": ({}, dict(reward="answers")),
    "majority": ({}, {}),
    "filtered": (dict(least_share=0.6), dict(oversample=2, redraws=2)),
    "easiest": (dict(easiest=1 / 3), {}),
    "fixed": (dict(teacher=START), {}),
    "random": ({}, dict(reward="random")),
    "soft": (dict(soft=True), {}),
    "hybrid": ({}, dict(reward=(("majority", 0.5), ("answers", 0.5)))),
    "early": ({}, dict(patience=3)),
}
STANDARD = ("labels", "majority", "filtered", "easiest", "fixed", "random")
BEST = "eval/reward/answers"


def get_config(arg: str = "") -> ConfigDict:
    """Builds the recipe with the arms named in `arg`, by default STANDARD."""
    words = variants.words(arg)
    others = ",".join(word for word in words if word not in ARMS)
    source, debug = published.words(others, "self_training.py")
    if source and not (published.is_size(source) or epath.Path(source).exists()):
        raise ValueError(
            f"configs/self_training.py: {source!r} is not the directory of a checkpoint, a model "
            f"preset, or one of {', '.join(('debug', *ARMS))}"
        )
    arms = [word for word in words if word in ARMS] or STANDARD
    config = rl_problems.get_config(others) if source else thinking.on_microworld("match", debug)
    start = config.runs.rlvr if source else config.runs.thoughts_post
    first = () if source else ("base", "thoughts")
    config.runs = {name: config.runs[name] for name in first}
    for name in arms:
        config.runs[name] = arm(start, *ARMS[name])
    config.order = (*first, *arms)
    config.report = dict(rows=config.order, judge="", standard="")
    return config


def arm(start: ConfigDict, votes: dict, changes: dict) -> ConfigDict:
    """Builds the run of an arm from the run of rl_problems.py."""
    run = start.copy_and_resolve_references()
    with run.task.ignore_type():  # a name, or names with weights
        run.task.reward = changes["reward"] if "reward" in changes else "majority"
    if run.task.reward not in ("answers", "random"):
        made = {key: start.init_from if x == START else x for key, x in votes.items()}
        run.task.majority = common.complete(MajorityConfig, **made)
    run.objective = rl.policy_gradient(
        advantage="rloo", denominator="constant", beta=0.001, kl="reward"
    )
    run.oversample = changes["oversample"] if "oversample" in changes else 1
    run.redraws = changes["redraws"] if "redraws" in changes else 0
    run.evals.patience = changes["patience"] if "patience" in changes else 0
    run.evals.every_steps = min(10, run.evals.every_steps)
    run.checkpoint.best = BEST
    run.collapse.window = min(20, run.steps // 2)
    run.gate.mixed = 0.0  # votes of a good start agree
    return run
