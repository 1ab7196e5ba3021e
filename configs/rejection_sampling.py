"""Iterated self-improvement by rejection sampling, in three rounds, on the micro-world's problems.

    python -m sip.train --config=configs/rejection_sampling.py --workdir=/tmp/rounds

`base` and `format` are those of rl_problems.py. In each round the model of the round before answers
every problem 8 times, and up to 4 different right answers of each are learned (arXiv 2412.02674,
algorithm 1, with the check of answers as the verifier). Expect in eval.json of each round mean@16,
pass@k for k = 1 to 16, and distinct_answers and distinct_chains of 16 answers: rounds are known to
raise pass@k for small k and to lower it for large k, as answers become alike. `--config.runs.
round_1.task.accept=majority`, and likewise for the others, takes votes in the place of labels.

`:debug` is tiny. Hardware: 2 CPU cores. Not yet run in full.
"""

import _common as common
import rl_problems
import two_phase
from ml_collections import ConfigDict

ROUNDS = 3


def get_config(arg: str = "") -> ConfigDict:
    """Builds the config; `debug` makes it tiny."""
    debug = common.is_debug(arg, "rejection_sampling.py")
    config = rl_problems.on_microworld(debug)
    model = config.runs.format.model.copy_and_resolve_references()
    del config.runs.rlvr
    before, names = "format", []
    for at in range(1, ROUNDS + 1):
        names.append(name := f"round_{at}")
        config.runs[name] = two_phase.phase(model, before, answer=64, samples=16)
        before = name
    config.order = ("base", "format", *names)
    config.report = dict(rows=config.order, judge="", standard="")
    return two_phase.shrink(config) if debug else config
