"""A config file: the smallest recipe that has every kind of run.

Variants: none (all runs of configs/microworld.py), or those of configs/microworld_ablations.py.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "configs"))

import _common as common  # noqa: E402, F401
import microworld  # noqa: E402
import microworld_ablations  # noqa: E402


def get_config(arg: str = ""):
    """Builds the debug variant of the config and makes it even smaller."""
    ablation = arg and microworld_ablations.get_config(f"{arg},debug")
    config = shrink(ablation or microworld.get_config("debug"))
    config.data.world = dict(entities=8, train=300, validation=60, test=60)
    return config


def put(values: dict, key: str, value) -> None:
    """Sets a value of nested dicts by its dotted key."""
    *path, last = key.split(".")
    for name in path:
        values = values[name]
    values[last] = value


def shrink(config):
    """Reduces all runs to two steps of a model that compiles fast."""
    for name, run in config.runs.items():
        run.steps, run.batch, run.optim.warmup_steps = 2, 8, 1
        run.model.update(width=16, layers=1, head_dim=4, hidden=32)
        run.log.update(every_steps=2, tensorboard=False, progress=False)
        task = run.task if "task" in run else {}
        for evals in (run.evals, task["continuations"] if "continuations" in task else {}):
            if "validation" in evals:
                evals.update(validation=8, standard=16, unsafe=8, batch=16)
        if name in ("sip_learned", "sip_oracle"):
            run.candidates.rollouts = ((0, 4),)
        if "labels" in task:
            task.labels.update(documents=20, held_out=10)
        if name == "judge" and "labels" in task:
            task.labels.update(rollouts=2, corruptions=5)
            task.labels.per_prefix.quality = 8
        if "prompt" in task:
            task.update({key: 20 for key in ("documents", "held_out") if key in task})
    return config
