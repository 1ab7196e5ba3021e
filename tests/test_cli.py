"""Command lines list their own flags."""

import importlib
import sys
from types import SimpleNamespace

import pytest
from absl import flags

from sip import cli

FLAGS = {
    "train": {"config", "workdir", "seeds"},
    "evaluate": {"checkpoint", "evals", "out"},
    "generate": {"checkpoint", "prompt", "seed"},
    "label": {"make", "aspect", "out", "config", "workdir", "checkpoint"},
    "convert": {"to", "src", "dst"},
    "aot.__main__": {"config", "topology", "workdir"},
    "bench.__main__": {"judge", "prefixes", "json"},
    "judge.__main__": {"config", "workdir", "run"},
}


@pytest.mark.parametrize("command", FLAGS)
def test_help_lists_the_flags_that_a_command_needs(command):
    module = importlib.import_module(f"sip.{command}")
    listed = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(module)}
    assert FLAGS[command] <= listed
    assert all(flags.FLAGS[name].help.strip() for name in FLAGS[command])


def test_only_reads_that_orbax_gave_up_fail_silently(monkeypatch):
    said = []
    monkeypatch.setattr(sys, "__unraisablehook__", said.append)
    closed, other = (
        SimpleNamespace(exc_value=RuntimeError(reason))
        for reason in ("Event loop is closed", "another reason")
    )
    cli._unraisable(closed)
    cli._unraisable(other)
    assert said == [other]
