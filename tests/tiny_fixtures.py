"""Fixtures shared by several test files, which load them with `pytest_plugins`."""

import fcntl
import os
from pathlib import Path

import pytest
import tiny_recipe
from workdirs import quickly

from sip import train


@pytest.fixture
def quick():
    """Runs the test with one device and few XLA optimisations."""
    with quickly():
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """The workdir of the finished tiny recipe; tests must not write to it.

    The first test process creates it; the others wait for the lock.
    """
    base = tmp_path_factory.getbasetemp()
    workdir = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tiny-recipe"
    with open(f"{workdir}.lock", "w") as lock, quickly():
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (workdir / "summary.json").exists():
            train.train(tiny_recipe.get_config(), str(workdir))
    return workdir
