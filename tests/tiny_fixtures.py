"""Fixtures of several test files, named by their `pytest_plugins`."""

import fcntl
import os
from pathlib import Path

import pytest
import tiny_recipe
from workdirs import quickly

from sip import train


@pytest.fixture
def quick():
    with quickly():
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """The whole tiny recipe's workdir, made by whichever process is first; not to be written to."""
    base = tmp_path_factory.getbasetemp()
    workdir = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tiny-recipe"
    with open(f"{workdir}.lock", "w") as lock, quickly():
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (workdir / "summary.json").exists():
            train.train(tiny_recipe.get_config(), str(workdir))
    return workdir
