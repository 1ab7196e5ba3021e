"""Builds the compile plan of a run: nothing is loaded or computed.

The programs of a stage are built by the file of its name: selfimprove, rl, supervised.
"""

import functools
from collections.abc import Callable

from sip.aot import rl as policies
from sip.aot import selfimprove as improving
from sip.aot import supervised as taught
from sip.aot.parts import Models, RunShapes, Unknown, abstract, tokens
from sip.aot.plan import ASSUMED, POLICY, Lengths, Plan, Program, device_bytes
from sip.data import corpus as corpora
from sip.models.config import ModelConfig
from sip.models.lora import LoraConfig
from sip.run import build_meshes, check_model
from sip.stages import recipe, rl, selfimprove
from sip.structs import UserError
from sip.training import optim, step


def plan(
    config, name: str, workdir: str, devices, teacher: str, lengths: Lengths = ASSUMED
) -> Plan:
    """Builds the compile plan of one run.

    Args:
        config: The whole config (a ConfigDict).
        name: Name of the run in config.runs.
        workdir: Directory in which checkpoints of other runs are looked up; may be "".
        devices: Devices of the topology.
        teacher: Model preset used for a judge or rewriter whose checkpoint does not exist.
        lengths: Lengths of texts in files, which are not read.

    Raises:
        Unknown: The shapes depend on the texts.
        UserError: The run's meshes do not fit the devices, or a prompt exceeds max_len.
    """
    try:
        return _plan(config, name, workdir, devices, teacher, lengths)
    except Unknown:
        raise
    except UserError as error:
        raise UserError(f"config runs.{name}: {error}") from None


def _plan(config, name: str, workdir: str, devices, teacher: str, lengths: Lengths) -> Plan:
    stage = recipe.STAGES[config.runs[name].stage]
    c = stage.resolve(config, name)
    cut = corpora.cut_config(config.data)
    check_model(c.model, cut)
    mesh, judge_mesh = build_meshes(c, devices)
    state = _state(c.model, c.optim, mesh, _has_reference(stage, c), c.lora)
    bytewise = config.tokenizer.kind == "byte"
    run = RunShapes(c, cut, mesh, judge_mesh, bytewise, state, lengths)
    find = Models(config, workdir, teacher, {}, [])
    # The builders also fill find.found with the judge and rewriter models that they meet.
    made = PROGRAMS[config.runs[name].stage](run, find)
    models = {POLICY: device_bytes(state)}
    models |= {
        k: device_bytes(abstract(m, judge_mesh, dtype)) for k, (m, dtype) in find.found.items()
    }
    apart = c.apart is not None and c.apart.devices > 0
    return Plan(
        name,
        c.steps,
        tokens(made[0].args[1]),
        mesh,
        tuple(made),
        models,
        tuple(dict.fromkeys(find.notes)),
        devices=mesh.size + judge_mesh.size * apart,
        apart=apart,
        ahead=apart and c.staleness > 0,
    )


def _has_reference(stage, c) -> bool:
    """True if the run's state has a second copy of the parameters."""
    if stage is selfimprove:
        return c.objective.needs_reference
    return c.needs_reference if stage is rl else taught.has_reference(c)


@functools.lru_cache(maxsize=8)
def _state(cfg: ModelConfig, how: optim.OptimConfig, mesh, reference: bool, lora: LoraConfig):
    return step.abstract_state(cfg, optim.build(how), mesh, reference=reference, adapter=lora)


PROGRAMS: dict[str, Callable[[RunShapes, Models], list[Program]]] = {
    "selfimprove": improving.programs,
    "rl": policies.programs,
    "supervised": taught.programs,
}
