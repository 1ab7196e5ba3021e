"""The recipe killed without warning, again and again, ends as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sip import metrics

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "microworld.py"
KILLED_AFTER = (20, 30, 30)  # seconds: in the first runs, between them, in later ones


def command(workdir: Path) -> list[str]:
    return [sys.executable, "-m", "sip.train", f"--config={CONFIG}:debug", f"--workdir={workdir}"]


def kill_after(workdir: Path, seconds: float) -> None:
    """Starts the recipe and kills it; a recipe that ends before must have ended well."""
    process = subprocess.Popen(command(workdir), cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        assert process.wait(timeout=seconds) == 0
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


def timeless(lines: list[dict]) -> list[dict]:
    return [{k: v for k, v in line.items() if not k.startswith("speed/")} for line in lines]


@pytest.mark.slow
def test_a_recipe_killed_three_times_ends_like_one_left_alone(tmp_path):
    killed, alone = tmp_path / "killed", tmp_path / "alone"
    for seconds in KILLED_AFTER:
        kill_after(killed, seconds)
    for workdir in (killed, alone):
        subprocess.run(command(workdir), cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    runs = sorted(path.name for path in (alone / "runs").iterdir())
    assert runs == sorted(json.loads((alone / "config.json").read_text())["order"])
    for name in runs:
        one, other = killed / "runs" / name, alone / "runs" / name
        assert timeless(metrics.read(one)) == timeless(metrics.read(other)), name
        assert (one / "eval.json").read_text() == (other / "eval.json").read_text(), name
    summaries = [json.loads((w / "summary.json").read_text()) for w in (killed, alone)]
    assert summaries[0]["rows"] == summaries[1]["rows"]
