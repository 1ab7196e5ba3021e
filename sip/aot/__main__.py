"""Compiles all jitted programs of a config for a TPU topology, without a TPU, and predicts costs.

python -m sip.aot --config=configs/sip_quality_1b4.py:v5e-256 --topology=v5e:16x16 --out=aot.json
python -m sip.aot --config=configs/sip_quality_1b4.py --topology=v5e:8x8 --sweep --batches=256,512

The command runs on any CPU host with libtpu (extra `tpu`). It needs no TPU, weights or data.

For each program it reports compile time (seconds), memory per device (arguments, temporaries and
other models of the run) against the chip's memory, FLOPs, bytes moved, collectives, and the minimum
seconds of each. A step takes at least the sum of its programs' minimum times (with separate judge
devices and staleness 1: the longer of the two sides), so MFU is an upper bound and days are a lower
bound. Evaluation, data loading, host work and HTTP judges are not included. Files of texts are not
read: --prompt_tokens, --answer_tokens and --problem_count say how long and how many the texts are.
--sweep prints a table over batch sizes and meshes instead. Exit codes: 0 all programs fit; 1 some
do not (the output names them and a remedy); 2 an error that you can fix.
"""

import dataclasses
import importlib.util
import os
import sys
from typing import Any

from sip import cli  # first, as it tells of a variable that JAX cannot use

# isort: split
import jax
from absl import flags
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from sip import workdir as workdirs
from sip.aot import programs
from sip.aot.plan import ASSUMED, Lengths, Plan, Program
from sip.costs import compiling, roofline
from sip.costs.chips import GIB, Chip, chip_of
from sip.costs.flops import WRITTEN
from sip.mesh import AXES
from sip.stages import recipe
from sip.structs import UserError
from sip.training.step import Update

_CONFIG = cli.config_flag()
_WORKDIR = cli.workdir_flag()
_TOPOLOGY = flags.DEFINE_string("topology", None, "Required. CHIP:SHAPE, such as v5e:16x16.")
_RUNS = flags.DEFINE_list("runs", None, "Runs to compile; default: all with known shapes.")
_TEACHER = flags.DEFINE_string(
    "teacher", "llama31_8b", "Model preset for a judge or rewriter without a checkpoint."
)
_EFFORT = flags.DEFINE_enum("optimization", "O1", ["O0", "O1", "O2", "O3"], "XLA level.")
_OUT = cli.shared(cli.path_flag, "out", None, "JSON file for the results, local or gs://.")
_PROMPT = flags.DEFINE_integer(
    "prompt_tokens", ASSUMED.prompt, "Tokens of the longest prompt of a file.", lower_bound=1
)
_ANSWER = flags.DEFINE_integer(
    "answer_tokens", ASSUMED.answer, "Tokens of the longest answer of a pair.", lower_bound=1
)
_PROBLEMS = flags.DEFINE_integer(
    "problem_count", 0, "Problems answered before the first step; 0: not counted.", lower_bound=0
)
_SWEEP = flags.DEFINE_bool("sweep", False, "Print a table over --batches and --meshes.")
_BATCHES = flags.DEFINE_list("batches", [], "--sweep: batch sizes; default: the config's.")
_MESHES = flags.DEFINE_list("meshes", [], "--sweep: REPLICAxFSDPxTENSOR, such as 1x16x4.")


def devices_of(topology: str) -> list:
    """Returns the devices of a topology such as "v5e:16x16"; this host needs no TPU.

    Raises UserError if the chip is unknown, libtpu is missing, or libtpu rejects the shape.
    """
    chip = chip_of(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("sip.aot needs libtpu, the TPU compiler: pip install 'sip-jax[tpu]'")
    from jax.experimental import topologies

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        how = {"chip_config_name": chip.config} if chip.config else {}
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **how)
        return list(found.devices)
    except Exception as error:  # libtpu raises various types for an unknown shape
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--topology={topology}: libtpu rejects it: {reason}") from None


# Tells libtpu that this is not a TPU host: otherwise it queries a metadata server and warns. The
# last variable lets several processes of one host load libtpu at the same time.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def check(
    plan: Plan, chip: Chip, say=lambda line: None, known: dict | None = None
) -> dict[str, Any]:
    """Compiles a run's programs.

    Returns a dict of the run's name, one row per program (see `row`) and the step (see `step`).
    `say` receives progress lines. `known` keeps the costs of programs for other runs, which often
    have the same ones.
    """
    rows, known = [], {} if known is None else known
    for program in plan.programs:
        if (key := _key(program)) not in known:
            say(f"{plan.name}: compiling {program.name}")
            how = program.args, program.mesh, program.loops
            known[key] = compiling.measure(program.jitted, *how)
        rows.append(row(plan, program, known[key], chip))
    return {"run": plan.name, "programs": rows, "step": step(plan, rows, chip)}


def _key(program: Program):
    """Returns a key that equal programs with equal arguments share."""
    jitted, rates = program.jitted, None
    if isinstance(jitted, Update):  # the learning rates are an argument of its program
        jitted, rates = jitted.program, None if jitted.rates_S is None else jitted.rates_S.shape
    shapes, tree = jax.tree.flatten(program.args)
    return jitted, rates, tree, tuple(shapes), program.mesh, program.loops


def row(plan: Plan, program: Program, found, chip: Chip) -> dict[str, Any]:
    """Returns one program's figures: bytes per device, FLOPs over all devices, seconds per call."""
    beside = plan.beside(program)
    # A program that runs out of memory has no other figures than `needed`, XLA's own total.
    total = max(found.argument_bytes + found.temporary_bytes, found.needed) + beside
    bounds = roofline.bounds(found.flops, found.traffic, chip, program.mesh.size)
    return {
        "name": program.name,
        "devices": program.mesh.size,
        "policy": program.mesh == plan.mesh,
        "calls_per_step": program.calls,
        "trace_seconds": found.trace_seconds,
        "compile_seconds": found.compile_seconds,
        "compiles": not found.needed,
        "argument_bytes": found.argument_bytes,
        "temporary_bytes": max(found.temporary_bytes, found.needed),
        "other_bytes": beside,
        "total_bytes": total,
        "hbm_bytes": chip.hbm,
        "fits": not found.needed and total <= chip.hbm,
        "remedy": program.remedy,
        "useful_flops": program.useful,
        "collectives": [dataclasses.asdict(one) for one in found.traffic.collectives],
        "phases": {
            name: {
                "flops": found.flops[name],
                "bytes": found.traffic.bytes[name],
                **dataclasses.asdict(bound),
                "seconds": bound.seconds,
                "bound_by": bound.by,
            }
            for name, bound in bounds.items()
        },
    }


def step(plan: Plan, rows: list[dict[str, Any]], chip: Chip) -> dict[str, Any]:
    """Returns the figures of a training step and of the whole run, from its programs' rows.

    If the judge runs at the same time as the policy (`plan.ahead`), a step takes as long as the
    slower of the two. Seconds and days are lower bounds, MFU is an upper bound.
    """
    sides = [[r for r in rows if r["policy"]], [r for r in rows if not r["policy"]]]
    spent = [_spent(side) for side in (sides if plan.ahead else [rows])]
    longest = max(spent, key=lambda by: sum(by.values()))
    seconds = sum(longest.values())
    useful = sum(one["calls_per_step"] * one["useful_flops"] for one in rows)
    return {
        "devices": plan.devices,
        "mesh": dict(plan.mesh.shape),
        "apart": plan.apart,
        "steps": plan.steps,
        "seconds": seconds,
        "seconds_apart": [sum(by.values()) for by in spent],
        "bound_by": max(longest, key=lambda name: longest[name]),
        "seconds_by_bound": longest,
        "mfu_at_most": useful / (seconds * chip.flops * plan.devices),
        "update_tokens": plan.tokens,
        "tokens_per_second_per_chip": plan.tokens / seconds / plan.devices,
        "days": plan.steps * seconds / 86400,
        "model_bytes": plan.models,
        "fits": all(one["fits"] for one in rows),
        "notes": plan.notes,
    }


def _spent(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Sums the seconds of a step by bottleneck: compute, memory, interconnect."""
    spent: dict[str, float] = {name: 0.0 for name in roofline.RESOURCES}
    for one in rows:
        for phase in one["phases"].values():
            spent[phase["bound_by"]] += one["calls_per_step"] * phase["seconds"]
    return spent


def show(found: dict[str, Any], console: Console) -> None:
    """Prints a run's memory table, time table and summary."""
    memory = Table(title=f"{found['run']}: GiB per device", title_justify="left")
    for name in ("program", "calls", "compile s", "arguments", "temporaries", "other", "total", ""):
        memory.add_column(name, justify="left" if name in ("program", "") else "right")
    gib = lambda bytes: f"{bytes / GIB:.2f}"
    for one in found["programs"]:
        sizes = [one[f"{k}_bytes"] for k in ("argument", "temporary", "other", "total")]
        told = f"of {gib(one['hbm_bytes'])}" + ("" if one["fits"] else ", does NOT fit")
        times = f"{one['calls_per_step']:.3g}", f"{one['compile_seconds']:.0f}"
        memory.add_row(one["name"], *times, *map(gib, sizes), told)
    console.print(memory)
    console.print(_times(found))
    for line in _summary(found["step"]):
        console.print(line)


def _times(found: dict[str, Any]) -> Table:
    table = Table(title="minimum seconds per call", title_justify="left")
    columns = ("program", "Tflop/chip", "GB moved", "GB on ICI", *roofline.RESOURCES, "bound by")
    for name in columns:
        table.add_column(name, justify="left" if name in ("program", "bound by") else "right")
    for one in found["programs"]:
        for name, phase in one["phases"].items():
            sent = sum(c["bytes"] * c["times"] for c in one["collectives"] if c["phase"] == name)
            figures = phase["flops"] / one["devices"] / 1e12, phase["bytes"] / 1e9
            times = [phase[r] for r in roofline.RESOURCES]
            label = f"{one['name']}: decoding" if name == WRITTEN else one["name"]
            shown = [f"{x:.3g}" for x in (*figures, sent / 1e9, *times)]
            table.add_row(label, *shown, phase["bound_by"])
    return table


def _summary(found: dict[str, Any]) -> list[str]:
    shape = " x ".join(f"{axis} {n}" for axis, n in found["mesh"].items())
    shares = ", ".join(f"{k} {v:.2f}" for k, v in found["seconds_by_bound"].items())
    sides = [f"{s:.2f} s" for s in found["seconds_apart"]]
    beside = f" Policy {sides[0]}, judges at the same time {sides[1]}." if sides[1:] else ""
    shape += ", other chips for judges" * found["apart"]
    return [
        *found["notes"],
        f"{found['devices']} chips ({shape}): minimum step time {found['seconds']:.2f} s "
        f"({shares}), mostly bound by {found['bound_by']}.{beside}",
        f"maximum MFU {found['mfu_at_most']:.1%}; {found['tokens_per_second_per_chip']:.0f} update "
        f"tokens per second per chip; {found['days']:.2f} days for {found['steps']} steps",
    ]


def total(found: list[dict[str, Any]]) -> list[str]:
    """Returns a line about the days of several runs together; none for one run."""
    days, names = sum(one["step"]["days"] for one in found), [one["run"] for one in found]
    return (
        [f"{', '.join(names)}: at least {days:.2f} days, one after the other"] if names[1:] else []
    )


def misfits(found: dict[str, Any]) -> list[str]:
    """Returns one line per program that does not fit, with the memory it needs and a remedy."""
    gib = lambda bytes: f"{bytes / GIB:.2f}"
    return [
        f"{found['run']}: {one['name']} needs {gib(one['total_bytes'])} GiB of "
        f"{gib(one['hbm_bytes'])} GiB per device: {one['remedy']}"
        for one in found["programs"]
        if not one["fits"]
    ]


def plans(config, devices, wanted: list[str] | None) -> list[Plan]:
    """Builds the compile plans of the runs `wanted`, or of all runs of the config if None.

    With None, runs whose shapes depend on their texts are skipped with a line on stderr. Raises
    UserError for an unknown run, or if a wanted run cannot be planned.
    """
    made, lengths = [], Lengths(_PROMPT.value, _ANSWER.value, _PROBLEMS.value)
    for name in wanted or config.order:
        if name not in config.runs:
            raise UserError(f"--runs: no run {name!r}; there are {', '.join(config.runs)}")
        try:
            how = _WORKDIR.value or "", devices, _TEACHER.value, lengths
            made.append(programs.plan(config, name, *how))
        except programs.Unknown as error:
            if wanted:
                raise
            print(f"{name} is skipped: {error}", file=sys.stderr)
    return made


def variants(config, batches: list[int], shapes: list[tuple[int, int, int]]):
    """Yields (mesh shape, config) for each pair of batch size and mesh, applied to all runs.

    An empty list keeps the config's own batch size or mesh.
    """
    for batch in batches or [None]:
        for shape in shapes or [None]:
            own: Any = ConfigDict(config.copy_and_resolve_references())
            for run in own.runs.values():
                run.batch = batch or run.batch
                if shape:
                    run.mesh.update(dict(zip(AXES, shape, strict=True)))
                if shape and "judge_mesh" in run and not run.judge_mesh.devices:
                    run.judge_mesh.update(dict(zip(AXES, shape, strict=True)))
            yield shape, own


def compiled(config, devices, chip: Chip, console: Console) -> list[dict[str, Any]]:
    """Compiles the programs of all runs and prints their tables, and the days of all together."""
    say = lambda line: print(line, file=sys.stderr, flush=True)
    known: dict = {}  # costs of programs that several runs have
    found = [check(plan, chip, say, known) for plan in plans(config, devices, _RUNS.value)]
    for one in found:
        show(one, console)
    for line in total(found):
        console.print(line)
    return found


def sweep(config, devices, chip: Chip, console: Console) -> list[dict[str, Any]]:
    """Compiles all variants of --batches and --meshes and prints one row for each."""
    batches = [_positive(text, "--batches") for text in _BATCHES.value]
    shapes: Any = [_shape(text) for text in _MESHES.value]
    columns = ("run", "batch", "replica x fsdp x tensor", "GiB", "fits", "s/step", "MFU", "tok/s")
    table, found = Table(*columns, title=f"{chip.name}, {len(devices)} chips"), []
    for shape, own in variants(config, batches, shapes):
        for name in _RUNS.value or config.order:
            known = {"batch": own.runs[name].batch, "mesh": shape, "run": name}
            try:
                for plan in plans(own, devices, [name]):
                    found.append({**check(plan, chip), **known})
                    table.add_row(*_line(found[-1]))
            except UserError as error:
                found.append({**known, "refused": str(error)})
                shown = "x".join(map(str, shape)) if shape else ""
                table.add_row(name, str(known["batch"]), shown, "", str(error))
    console.print(table)
    return found


def _line(one: dict[str, Any]) -> list[str]:
    step, most = one["step"], max(p["total_bytes"] for p in one["programs"])
    mesh = "x".join(map(str, step["mesh"].values()))
    sizes = one["run"], str(one["batch"]), mesh, f"{most / GIB:.2f}"
    misfit = [p["name"] for p in one["programs"] if not p["fits"]]
    times = f"{step['seconds']:.2f}", f"{step['mfu_at_most']:.1%}"
    speed = f"{step['tokens_per_second_per_chip']:.0f}"
    return [*sizes, f"no: {', '.join(misfit)}" if misfit else "yes", *times, speed]


def _positive(text: str, flag: str) -> int:
    if not text.isdigit() or not int(text):
        raise UserError(f"{flag}: {text!r} is not a positive integer")
    return int(text)


def _shape(text: str) -> tuple[int, ...]:
    parts = text.split("x")
    if len(parts) != len(AXES):
        raise UserError(f"--meshes: {text!r} is not REPLICAxFSDPxTENSOR, such as 1x16x4")
    return tuple(_positive(part, "--meshes") for part in parts)


def main(argv) -> None:
    """Runs the command line."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}")
    for flag in (_CONFIG, _TOPOLOGY):
        if flag.value is None:
            raise UserError(f"--{flag.name} is needed")
    if not _SWEEP.value and (_BATCHES.value or _MESHES.value):
        raise UserError("--batches and --meshes need --sweep")
    config, topology, console = _CONFIG.value, str(_TOPOLOGY.value), Console(width=160)
    workdirs.never_an_input({"out": _OUT.value or ""}, [cli.config_file()])
    recipe.read(config)
    chip, devices = chip_of(topology), devices_of(topology)
    jax.config.update("jax_platforms", "cpu")  # does not claim a TPU of this host
    # The cache cannot load TPU programs on a host without a TPU.
    jax.config.update("jax_enable_compilation_cache", False)
    jax.config.update("jax_optimization_level", _EFFORT.value)
    make = sweep if _SWEEP.value else compiled
    found = make(config, devices, chip, console)
    if _OUT.value:
        workdirs.write_json(_OUT.value, found)
    bad = [] if _SWEEP.value else [line for one in found for line in misfits(one)]
    for line in bad:
        print(f"does not fit: {line}", file=sys.stderr)
    if bad:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
