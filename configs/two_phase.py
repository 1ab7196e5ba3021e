"""Self-made chains in two phases of supervised learning.

    python -m sip.train --config=configs/two_phase.py --workdir=/tmp/chains
    python -m sip.train --config=configs/two_phase.py:CHECKPOINT --workdir=/tmp/mine \
        --config.runs.phase_one.task.problems.path=gsm8k/train.jsonl \
        --config.runs.phase_two.task.problems.path=gsm8k/train.jsonl

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

A checkpoint (a Hugging Face directory or a run) is in the place of `format`, and there is no
`base`: problems of a JSON Lines file (test problems in .test), asked in the checkpoint's chat
template, as in rl_problems.py.

`:debug` is tiny. Hardware: 2 CPU cores for the micro-world; for a checkpoint, devices whose memory
fits its optimiser state; python -m sip.aot --problem_count=N predicts memory and time, also of
`:llama3_8b` and other presets. Not compiled at this size. Figures of the micro-world, half an
hour on one core: docs/self_training.md.
"""

from collections.abc import Mapping

import _common as common
import _published as published
import rl_problems
from ml_collections import ConfigDict

from sip.data.problems import ProblemsConfig
from sip.rewards.answers import AnswersConfig
from sip.tasks.supervised import self_made

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
    """Builds the recipe of the checkpoint in `arg`, or that of the micro-world."""
    source, debug = published.words(arg, "two_phase.py")
    if source:
        phases = dict(
            phase_one=dict(instructions=self_made.INSTRUCTIONS),
            phase_two=dict(keep="all" if debug else "harder"),
        )
        return of_checkpoint(source, debug, phases)
    config = rl_problems.on_microworld(debug)
    config.runs.format.task.instructions = INSTRUCTIONS
    config.runs.format.steps = 1600  # half of what it learns are second turns
    model = config.runs.format.model.copy_and_resolve_references()
    config.runs.phase_one = phase(model, "format", steps=400, instructions=INSTRUCTIONS)
    config.runs.phase_two = phase(model, "phase_one", steps=400, keep="harder")
    del config.runs.rlvr
    for run in config.runs.values():
        run.model.max_len = MAX_LEN
    config.order = ("base", "format", "phase_one", "phase_two")
    config.report = dict(rows=config.order, judge="", standard="")
    return shrink(config) if debug else config


def of_checkpoint(source: str, debug: bool, phases: Mapping[str, dict]) -> ConfigDict:
    """Builds the recipe of a checkpoint whose runs learn from the answers of the one before.

    `phases` are changes to the task of each run, by name.
    """
    config, model, before = published.recipe(source), published.model(source), source
    settings = dict(
        chat=published.chat_of(source),
        length=min(4096, model["max_len"]),
        answer=8 if debug else 1024,
        start=source,
        samples=2 if debug else 8,
        rollouts=4 if debug else 8,
        limit=4 if debug else 0,
    )
    config.runs = ConfigDict()
    for name, changes in phases.items():
        sections = dict(
            problems=common.complete(ProblemsConfig), answers=common.complete(AnswersConfig)
        )
        config.runs[name] = common.self_made_run(
            made=settings | sections | changes,
            model=model,
            split="train",
            steps=2 if debug else 300,
            batch=2 if debug else 16,
            init_from=before,
            optim=common.adamw(1e-5, warmup_steps=1 if debug else 20, weight_decay=0.0),
            evals=common.section(
                every_steps=50,
                validation=4 if debug else 128,
                split="test",
                standard=4 if debug else 512,
                batch=4 if debug else 32,
            ),
        )
        before = name
    config.order = tuple(phases)
    config.report = dict(rows=config.order, judge="", standard="")
    return config


def phase(
    model, init_from: str, *, start: str = "format", samples: int = 8, steps: int = 150, **made
) -> ConfigDict:
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
        steps=steps,
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
