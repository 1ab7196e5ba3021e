"""Self-made chains in two phases of supervised learning, on the micro-world's problems.

    python -m sip.train --config=configs/two_phase.py --workdir=/tmp/chains

Our own design after the abstract of arXiv 2601.05616, which publishes neither templates nor rules:

    base, format   as in rl_problems.py; `format` also learns to answer a second question
    phase_one      `format` answers each problem and is asked again, by one of four instructions:
                   to check, to go back, to work in parts, to work backwards. Both turns become one
                   answer. Learned are right ones that end, have the instruction's marker and no
                   loop
    phase_two      `phase_one` answers in one turn; of problems that it solves seldom more right
                   answers are learned, of those that it solves always or never none

A phase samples before its first step. Interrupted, it goes on where it was. Expect in eval.json of
each phase mean@8, pass@k, tokens_ratio (length of the answers against `format`), and passes/easy,
/middle, /hard: pass rates by thirds of difficulty, as `format` solves the problems, with those of
`format` beside them (start/..). RUN_DIR/conversations.jsonl is what was learned.

`:debug` is tiny. Hardware: 2 CPU cores. Not yet run in full.
"""

import _common as common
import rl_problems
from ml_collections import ConfigDict

from sip.rewards.answers import AnswersConfig

# Short ones, as the vocabulary is small; sip/tasks/supervised/self_made.py has those for a
# published model.
INSTRUCTIONS = (
    ("Check.", "Check:"),
    ("Go back.", "Wait:"),
    ("In parts.", "Goal:"),
    ("Backwards.", "Back:"),
)
MAX_LEN = 256  # two turns are longer than one


def get_config(arg: str = "") -> ConfigDict:
    """Builds the config; `debug` makes it tiny."""
    debug = common.is_debug(arg, "two_phase.py")
    config = rl_problems.on_microworld(debug)
    config.runs.format.task.instructions = INSTRUCTIONS
    model = config.runs.format.model.copy_and_resolve_references()
    config.runs.phase_one = phase(model, "format", instructions=INSTRUCTIONS)
    config.runs.phase_two = phase(model, "phase_one", keep="harder")
    del config.runs.rlvr
    for run in config.runs.values():
        run.model.max_len = MAX_LEN
    config.order = ("base", "format", "phase_one", "phase_two")
    config.report = dict(rows=config.order, judge="", standard="")
    return shrink(config) if debug else config


def phase(model, init_from: str, *, start: str = "format", samples: int = 8, **made) -> ConfigDict:
    """Builds a run that learns from answers of `init_from`, and is compared with `start`."""
    settings = dict(
        problems=rl_problems.problems(),
        answers=common.complete(AnswersConfig, check="exact"),
        chat="turns",
        answer=96,
        start=start,
        samples=samples,
    )
    return common.self_made_run(
        made=settings | made,
        model=model,
        split="train",
        steps=150,
        batch=8,
        init_from=init_from,
        optim=common.adamw(1e-3, warmup_steps=10, weight_decay=0.0),
        evals=common.section(every_steps=50, validation=128, split="test", standard=256, batch=32),
    )


def shrink(config) -> ConfigDict:
    """Makes the runs tiny. `format` is trained long enough that some answers are right."""
    config.compile = "quick"
    config.runs.format.update(steps=200, batch=8, split="train")
    config.runs.format.log.every_steps = config.runs.format.evals.every_steps = 50
    config.runs.format.optim.lr = 5e-3
    for run in config.runs.values():
        if run.task.name == "self_made":
            run.model.update(config.runs.base.model)
            run.update(steps=2, batch=4)
            run.optim.warmup_steps, run.log.every_steps = 1, 2
            run.evals.update(every_steps=2, validation=4, standard=8, batch=32)
            run.task.problems.count = 80
            run.task.update(answer=48, rollouts=4, samples=2, keep="all")
            run.task.sampling.temperature = 0.3  # an untrained model is right at its best only
    return config
