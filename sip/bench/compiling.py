"""Measures the CPU seconds of a whole small job, with an empty and with a filled program cache.

The job is a command of its own, started twice with a fresh cache directory (XDG_CACHE_HOME) that
both share. Nearly all its time is start-up, tracing and compilation.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

from sip import cli
from sip.bench import flags
from sip.structs import UserError
from sip.workdir import to_json

JOB = "microworld.py:debug"
SMALL = "text.py:debug"  # the job of --tiny
BARS = {"empty": (100.0, 60.0), "filled": (40.0, 25.0)}  # (bar, goal) of JOB, CPU seconds


def bench_compile() -> None:
    """Runs the job twice and prints its CPU seconds."""
    job = SMALL if flags.TINY.value else JOB
    with tempfile.TemporaryDirectory() as folder:
        found = {cache: cost(job, folder, cache) for cache in BARS}
    if flags.JSON.value:
        print(to_json({"job": job, "caches": found, "bars": BARS}))
        return
    for cache, (bar, goal) in BARS.items():
        cpu, wall = found[cache]["cpu_seconds"], found[cache]["wall_seconds"]
        kept = f"{found[cache]['programs']:.0f} programs kept"
        line = f"{job}, {cache} cache: {cpu:.1f} CPU s, {wall:.1f} s, {kept}"
        met = "met" if cpu <= bar else "NOT met"
        print(line if flags.TINY.value else f"{line}; at most {bar:.0f} ({met}), goal {goal:.0f}")


def cost(job: str, folder: str, cache: str) -> dict[str, float]:
    """Runs a job in a new workdir and returns its seconds, and how many programs it added to the
    cache. Raises UserError if it fails."""
    data = os.path.join(folder, "text.txt")
    if not os.path.exists(data):
        with open(data, "w") as file:
            file.write("\n\n".join(f"The {i} cats sat on {i} mats. " * 20 for i in range(300)))
    command = [sys.executable, "-m", "sip.train", f"--config={os.path.join(cli.SHIPPED, job)}"]
    command += [f"--workdir={os.path.join(folder, cache)}"]
    command += [f"--config.data.path={data}"] if job == SMALL else []
    kept = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    programs = os.path.join(folder, "cache")
    environ = {**kept, "XDG_CACHE_HOME": programs}
    held, before, start = _files(programs), _children(), time.monotonic()
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise UserError(f"{' '.join(command)}: failed: {lines[-1]}")
    seconds = {"cpu_seconds": _children() - before, "wall_seconds": time.monotonic() - start}
    return {**seconds, "programs": _files(programs) - held}


def _files(folder: str) -> int:
    """Returns the number of programs that JAX keeps below a folder."""
    return sum(name.endswith("-cache") for *_, files in os.walk(folder) for name in files)


def _children() -> float:
    used: Any = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
