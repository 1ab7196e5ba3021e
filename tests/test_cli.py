"""Tests what all commands share: their flags in --help, streams, and errors of the environment."""

import importlib
import io
import os
import platform
import re
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from absl import flags
from workdirs import call

from sip import cli, train
from sip.structs import UserError

FLAGS = {
    "train": {"config", "print_config", "workdir", "seeds", "from"},
    "evaluate": {"checkpoint", "evals", "out"},
    "generate": {"checkpoint", "prompt", "seed"},
    "label": {"make", "aspect", "out", "config", "workdir", "checkpoint"},
    "convert": {"to", "src", "dst"},
    "annotate.__main__": {"config", "workdir", "checkpoint", "thinker", "out", "shards", "url"},
    "aot.__main__": {"config", "print_config", "topology", "workdir"},
    "bench.__main__": {"judge", "prefixes", "json"},
    "gap.__main__": {"config", "workdir", "run", "prefixes", "json", "markdown", "out"},
    "judge.__main__": {"config", "print_config", "workdir", "run"},
}


@pytest.mark.parametrize("command", FLAGS)
def test_help_lists_the_flags_that_a_command_needs(command):
    module = importlib.import_module(f"sip.{command}")
    listed = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(module)}
    assert FLAGS[command] <= listed
    assert all(flags.FLAGS[name].help.strip() for name in FLAGS[command])


def failing(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied", "/x/y"), "/x/y: Permission denied"),
        (ModuleNotFoundError("No module", name="lm_eval.api"), "lm_eval.api is missing: pip"),
        (MemoryError("Unable to allocate 9 TiB"), "out of memory: .*9 TiB"),
        (ValueError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte"), "out of memory"),
    ],
)
def test_errors_of_the_environment_are_one_line(error, said, capsys):
    assert cli.code(failing(error), []) == cli.MENDABLE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and re.search(said, line)


def test_a_platform_that_is_not_here_is_named(monkeypatch, capsys):
    def devices():
        raise RuntimeError("Unable to initialize backend 'metal'")

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "metal")
    assert cli.code(failing(AssertionError()), []) == cli.MENDABLE
    assert "error: JAX_PLATFORMS=metal: no such devices here" in capsys.readouterr().err


def test_a_platform_that_is_only_missing_at_first_is_named_too(monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu,")
    error = RuntimeError("Unable to initialize backend '': not known")
    assert cli.code(failing(error), []) == cli.MENDABLE
    assert "error: JAX_PLATFORMS=cpu,: no such devices here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "--config: it has no get_config()"),
        ("get_config = lambda: None", "--config: get_config() must return a ConfigDict, not None"),
        ("get_config = dict", "--config: get_config() must return a ConfigDict, not dict"),
        ("from ml_collections import ConfigDict as get_config", "config seed: missing"),
    ],
)
def test_a_config_file_without_a_config_is_one_line(text, said, tmp_path, monkeypatch, capsys):
    from sip.judge import __main__ as judge

    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # of a config loaded before
    (tmp_path / "own.py").write_text(text)
    assert call(judge, f"--config={tmp_path / 'own.py'}") == cli.MENDABLE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import sip.remote", "No module named 'sip.remote'; it is of another version of sip: use"),
        ("from sip import setup", "cannot import name 'setup' from 'sip' "),
        ("import nowhere.at_all", "No module named 'nowhere'"),
    ],
)
def test_a_config_file_that_imports_what_is_gone_is_named(
    text, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    file = tmp_path / "old.py"
    file.write_text(f"{text}\nget_config = dict")
    assert call(train, f"--config={file}:debug", "--workdir=w") == cli.MENDABLE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --config {file}: {said}")
    assert ("of another version" in line) == ("sip" in text)
    with pytest.raises(UserError, match=f"--config {file}: {said[:20]}"):
        cli.read_config(str(file), [])


@pytest.mark.parametrize("error", [RuntimeError("x"), AssertionError("x"), KeyError("x")])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        cli.code(failing(error), [])


def closed_pipe():
    """Returns a text stream into a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    return io.TextIOWrapper(io.BufferedWriter(io.FileIO(write, "w")), line_buffering=True)


def test_a_quick_config_sets_the_flags_of_xla_unless_the_user_did(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")
    cli.compile_quickly()
    assert os.environ["XLA_FLAGS"].startswith("--xla_backend_optimization_level=0 ")
    monkeypatch.setenv("XLA_FLAGS", "flags.txt")
    cli.compile_quickly()
    assert os.environ["XLA_FLAGS"] == "flags.txt"


def test_a_closed_stdout_is_quiet_and_cannot_be_told_an_error(monkeypatch, capsys):
    with monkeypatch.context() as patch, closed_pipe() as stdout:
        patch.setattr(sys, "stdout", stdout)
        assert cli.code(lambda argv: print("text"), []) == 0
    assert capsys.readouterr().err == ""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", closed_pipe())
        assert cli.code(failing(UserError("x")), []) == cli.MENDABLE
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # its buffer is not empty
    with monkeypatch.context() as patch, open("/dev/full", "w", buffering=1) as full:
        patch.setattr(sys, "stderr", full)
        assert cli.code(failing(UserError("x")), []) == cli.MENDABLE
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


def test_a_training_that_nobody_reads_is_not_done(monkeypatch, capsys):
    from sip import train

    def closed(*args):
        raise BrokenPipeError

    monkeypatch.setattr(train, "train", closed)
    argv = [f"--config={Path(__file__).parent / 'tiny_recipe.py'}", "--workdir=unused"]
    assert call(train, *argv) == cli.MENDABLE
    assert "run the same command to continue" in capsys.readouterr().err


def test_a_library_that_exits_for_a_closed_pipe_is_no_error(monkeypatch):
    def main(argv):
        try:
            raise BrokenPipeError
        except BrokenPipeError:
            sys.exit(1)  # as rich does

    with monkeypatch.context() as patch, closed_pipe() as stdout:
        patch.setattr(sys, "stdout", stdout)
        assert cli.code(main, []) == 0
    with pytest.raises(SystemExit):
        cli.code(lambda argv: sys.exit(1), [])


def test_what_a_terminal_cannot_show_is_escaped(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    cli.open_streams()
    print("Gru\u00df \udce9", flush=True)
    assert raw.getvalue() == b"Gru\\xdf \\udce9\n"


@pytest.mark.parametrize("seed", ["-2", str(2**31), "9" * 5000])
def test_a_seed_that_jax_would_cut_is_refused(seed):
    importlib.import_module("sip.generate")
    with pytest.raises(ValueError, match="integer"):
        flags.FLAGS["seed"].parser.parse(seed)


def test_a_store_out_of_reach_is_named():
    from sip.hf import hub

    with pytest.raises(UserError, match="checkpoint nowhere://a/b cannot be reached"):
        hub.local("nowhere://a/b")


@pytest.mark.slow  # a process of its own: XLA and JAX read their variables once
@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("XLA_FLAGS", "--xla_cpu_no_such=1", "--xla_cpu_no_such=1"),
        ("XLA_FLAGS", "no/such/file", "no/such/file"),
        ("JAX_ENABLE_X64", "1", "sip computes in float32"),
    ],
)
def test_a_variable_that_cannot_be_used_is_one_line(name, given, said):
    command = [sys.executable, "-c", "from sip import cli; cli.prepare()"]
    env = os.environ | {name: given, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {name}: ") and said in done.stderr


START_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(f"sip.{name}")
    except SystemExit as e:
        assert e.code == 2, e
"""


def test_a_variable_that_jax_refuses_is_one_line_of_every_command():
    command = [sys.executable, "-c", START_ALL, *FLAGS]
    env = os.environ | {"JAX_ENABLE_X64": "banana\n", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(FLAGS)
    assert all(x.startswith("error: JAX ") and "JAX_ENABLE_X64='banana\\n'" in x for x in lines)


def test_only_reads_that_orbax_gave_up_fail_silently(monkeypatch):
    said = []
    monkeypatch.setattr(sys, "__unraisablehook__", said.append)
    wrong = lambda reason, at: SimpleNamespace(exc_value=RuntimeError(reason), object=at)
    failed = [wrong(reason, None) for reason in ("Event loop is closed", "another reason")]
    for path in ("/lib/orbax/checkpoint/serialization.py", "/home/orbax_user/mine.py"):
        names = {}
        exec(compile("async def read(): pass", path, "exec"), names)
        coroutine = names["read"]()
        failed.append(wrong("Encountered error while reading array index", coroutine))
        coroutine.close()
    for error in failed:
        cli._unraisable(error)
    assert said == [failed[1], failed[3]]


def test_control_characters_of_files_do_not_reach_the_terminal(capsys):
    def fails(argv):
        raise UserError("field \x1b[2J\x9b\u202e\ud83d é 世 is not supported")

    assert cli.code(fails, []) == 2
    said = capsys.readouterr().err
    assert said == "error: field \\x1b[2J\\x9b\\u202e\\ud83d é 世 is not supported\n"


OWN = """
import _common as common
import beside
import microworld_ablations

def get_config(arg=""):
    config = microworld_ablations.get_config("dpo_rollouts,truth,debug")
    config.runs.base.optim = common.muon(beside.LR, warmup_steps=1)
    return config
"""


def printed(capsys, *argv) -> dict[str, str]:
    """Returns the keys and values that --print_config prints."""
    assert call(train, *argv, "--print_config") == 0
    out = capsys.readouterr().out
    return dict(line.split(" = ", 1) for line in out.splitlines())


def test_a_config_of_ones_own_imports_the_shipped_ones_and_its_siblings(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "beside.py").write_text("LR = 0.125")
    change = "--config.runs.base.steps=7"
    own = printed(capsys, f"--config={tmp_path / 'mine.py'}", change)
    shipped = Path(cli.SHIPPED) / "microworld_ablations.py:dpo_rollouts,truth,debug"
    theirs = printed(capsys, f"--config={shipped}", change)
    assert {k for k in theirs if own[k] != theirs[k]} == {
        f"runs.base.optim.{k}" for k in ("lr", "name", "warmup_steps")
    }
    assert own.keys() == theirs.keys() and own["runs.base.optim.lr"] == "0.125"
    assert own["runs.base.optim.steps"] == own["runs.base.steps"] == "7", "as it is resolved"
    assert own["data.world.seed"] == "0", "a default that the file leaves out"


def test_a_config_without_a_path_is_printed_and_named(capsys):
    assert call(train, f"--config={Path(cli.SHIPPED) / 'text.py'}", "--print_config") == 0
    out, err = capsys.readouterr()
    assert "data.path = ''" in out.splitlines()
    assert err.startswith("warning: data is not valid yet: config data: data.path ''")
    assert call(train, "--print_config") == 2
    assert "--config is needed" in capsys.readouterr().err


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or (os.cpu_count() or 1) > cli.FEW_CPUS,
    reason="malloc of glibc, on few CPUs",
)
def test_a_large_buffer_of_a_program_is_kept():
    """Its pages are new the first time only."""
    child = """
import resource
from sip import cli
cli.keep_memory()
import jax, jax.numpy as jnp
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
f = jax.jit(lambda x: jnp.cumsum(jnp.outer(x, x), 0).sum(1))
x = jnp.ones(5000)
jax.block_until_ready(f(x))
jax.block_until_ready(f(x))
before = faults()
for _ in range(10):  # one may begin before the buffer of the one before is free
    jax.block_until_ready(f(x))
print(faults() - before, f.lower(x).compile().memory_analysis().temp_size_in_bytes)
"""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", child], env=env, capture_output=True, text=True)
    new, size = map(int, done.stdout.split())
    assert size > 90e6 and new < 10 * size / resource.getpagesize() / 2
