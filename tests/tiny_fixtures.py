"""Fixtures shared by several test files, which load them with `pytest_plugins`."""

import dataclasses
import fcntl
import os
from pathlib import Path

import pytest
import tiny
import tiny_recipe
from workdirs import quickly

from sip import train
from sip.training import checkpoints


@pytest.fixture
def quick():
    """Runs the test with one device and few XLA optimisations."""
    with quickly():
        yield


@pytest.fixture
def of_bytes(tmp_path):
    """Returns a function that saves a tiny model of bytes as a checkpoint; returns its path."""

    def saved(name: str, cfg=tiny.BYTES) -> str:
        directory = tmp_path / name
        record = {"model": dataclasses.asdict(cfg)}
        checkpoints.save_params(str(directory), tiny.params(cfg), record)
        (directory / "tokenizer.json").write_text('{"kind": "byte"}')
        return str(directory)

    return saved


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
