"""Command lines list their own flags."""

import importlib

import pytest
from absl import flags

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
