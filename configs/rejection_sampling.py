"""Iterated self-improvement by rejection sampling, in three rounds.

    python -m sip.train --config=configs/rejection_sampling.py --workdir=/tmp/rounds
    python -m sip.train --config=configs/rejection_sampling.py:CHECKPOINT --workdir=/tmp/mine \
        --config.runs.round_1.task.problems.path=gsm8k/train.jsonl, and so for round_2 and round_3

On the micro-world `base` and `format` are those of rl_problems.py; a checkpoint (a Hugging Face
directory or a run) is in the place of `format`, as in two_phase.py. In each round the model of the
round before answers every problem 8 times, and up to 4 different right answers of each are learned
(arXiv 2412.02674, algorithm 1, with the check of answers as the verifier). Expect in eval.json of
each round mean@16, pass@k for k = 1 to 16, and distinct_answers and distinct_chains of 16 answers:
rounds are known to raise pass@k for small k and to lower it for large k, as answers become alike.
`--config.runs.round_1.task.accept=majority`, and likewise for the others, takes votes in the place
of labels.

`:debug` is tiny. Hardware: 2 CPU cores for the micro-world; for a checkpoint, devices whose memory
fits its optimiser state. Figures of the micro-world: docs/self_training.md.
"""

import _published as published
import rl_problems
import two_phase
from ml_collections import ConfigDict

ROUNDS = 3


def get_config(arg: str = "") -> ConfigDict:
    """Builds the recipe of the checkpoint in `arg`, or that of the micro-world."""
    source, debug = published.words(arg, "rejection_sampling.py")
    rounds = [f"round_{at}" for at in range(1, ROUNDS + 1)]
    if source:
        samples = dict(samples=2 if debug else 16)
        return two_phase.of_checkpoint(source, debug, dict.fromkeys(rounds, samples))
    config = rl_problems.on_microworld(debug)
    model = config.runs.format.model.copy_and_resolve_references()
    del config.runs.rlvr
    before = "format"
    for name in rounds:
        config.runs[name] = two_phase.phase(model, before, answer=64, samples=16)
        before = name
    config.order = ("base", "format", *rounds)
    config.report = dict(rows=config.order, judge="", standard="")
    return two_phase.shrink(config) if debug else config
