"""Tests TensorBoard files, trackers by stand-in packages, and the names of other dashboards."""

import importlib.machinery
import struct
import sys
from types import ModuleType

import numpy as np
import pytest
from tensorboardX.proto import event_pb2, plugin_hparams_pb2

from sip import metrics
from sip.objectives import policy, preference
from sip.structs import UserError
from sip.training import sinks
from sip.training.loop import LogConfig

SETTINGS = dict(steps=3, optim=dict(lr=0.1, name="adamw"), judge=None, weights=(("a", 1.0),))
TEXTS = [("One # day\nso", " it *went*."), ("<b>", "")]


def writer(path, found, **options):
    how = dict(name="run", steps=10, resume_step=0, progress=False, sinks=found)
    return metrics.Writer(path, **how | options)


def events(directory):
    """Reads the events of a TensorBoard file: records of length, checksum, data, checksum."""
    (path,) = directory.glob("events.*")
    data, found = path.read_bytes(), []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    return found


def test_tensorboard_has_the_numbers_the_samples_and_the_settings(tmp_path):
    board = sinks.TensorBoard(str(tmp_path), SETTINGS, 0)
    log = writer(tmp_path, [board])
    log.write(3, {"loss/total": 0.5, "rate": (1, 2), "none": (0, 0)})
    log.texts(3, TEXTS)
    log.texts(4, [])
    log.close()
    found = [(e.step, v) for e in events(tmp_path / "tensorboard") for v in e.summary.value]
    numbers = {(step, v.tag): v.simple_value for step, v in found if v.HasField("simple_value")}
    assert numbers == {(3, "loss/total"): 0.5, (3, "rate"): 0.5}
    texts = {v.tag: v.tensor.string_val[0].decode() for _, v in found if v.tensor.string_val}
    assert texts == {
        "samples/0/text_summary": "    One # day\n    so\n\n     it *went*.",
        "samples/1/text_summary": "    <b>\n\n",
    }
    plain = next(v for _, v in found if "session_start" in v.tag).metadata.plugin_data.content
    own = plugin_hparams_pb2.HParamsPluginData.FromString(plain).session_start_info.hparams
    assert {k: v.number_value or v.string_value for k, v in own.items()} == {
        "steps": 3, "optim.lr": 0.1, "optim.name": "adamw", "judge": "None",
        "weights": "(('a', 1.0),)",
    }  # fmt: skip


def stand_in(monkeypatch, name):
    """Puts a package in the place of a tracker; returns the list of its calls."""
    calls, module = [], ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, origin="a test")
    for function in ("init", "log", "finish", "login"):
        note = lambda *args, function=function, **how: calls.append((function, *args, how))
        setattr(module, function, note)
    monkeypatch.setitem(sys.modules, name, module)
    return calls


@pytest.mark.parametrize("library", ["wandb", "trackio"])
@pytest.mark.parametrize("seeds", [False, True])
def test_a_tracker_gets_the_settings_and_each_line(library, seeds, tmp_path, monkeypatch):
    calls = stand_in(monkeypatch, library)
    job = tmp_path / "job"
    run = job / ("seed3" if seeds else "") / "runs" / "sip"
    run.mkdir(parents=True)
    if seeds:
        (job / "seeds.json").write_text("{}")
    config = LogConfig(tensorboard=False, tracker=library, project="mine")
    for _ in range(2):  # a resumed run is the same one
        log = writer(run, sinks.opened(config, str(run), "sip", SETTINGS, 0))
        log.write(3, {"loss/total": (1, 2), "none": (0, 0)})
        log.texts(3, TEXTS)
        log.close()
    assert calls[:3] == calls[3:]
    (_, how), logged, finished = calls[:3]
    assert how.pop("project") == "mine" and how.pop("resume") == "allow"
    assert how.pop("name") == ("job-seed3-sip" if seeds else "job-sip")
    assert how.pop("config")["optim.lr"] == 0.1
    assert (set(how), how.get("dir")) == (
        ({"id", "dir"}, str(run)) if library == "wandb" else (set(), None)
    )
    assert logged == ("log", {"loss/total": 0.5}, {"step": 3}) and finished == ("finish", {})


def test_only_the_first_process_tracks(tmp_path, monkeypatch):
    monkeypatch.setattr(sinks.processes, "lead", lambda: False)
    assert sinks.opened(LogConfig(tracker="wandb"), str(tmp_path), "sip", SETTINGS, 0) == []
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_one_line_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"'trackio': .*pip install 'sip-jax\[track\]'"):
        sinks.check_tracker("trackio")
    sinks.check_tracker("")
    with pytest.raises(UserError, match=r"log\.tracker='neptune': must be one of"):
        LogConfig(tracker="neptune")
    with pytest.raises(UserError, match="log.project is empty"):
        LogConfig(tracker="wandb", project="")


class NoLogin(Exception):
    """As wandb.errors.UsageError, which is no UserError."""


def refused(*_, **how):
    raise NoLogin("No API key configured. Use `wandb login` to log in.\nmore lines")


def test_a_missing_login_is_one_line_before_any_run(monkeypatch):
    calls = stand_in(monkeypatch, "wandb")
    sinks._login.cache_clear()
    for _ in range(2):  # two runs of a recipe
        sinks.check_tracker("wandb")
    assert calls == [("login", {"verify": False})]  # not verified: that takes a request
    sinks._login.cache_clear()
    monkeypatch.setattr(sys.modules["wandb"], "login", refused)
    with pytest.raises(UserError) as found:
        sinks.check_tracker("wandb")
    assert str(found.value) == (
        "log.tracker 'wandb': No API key configured. Use `wandb login` to log in; run `wandb "
        "login`, or set WANDB_API_KEY or WANDB_MODE=offline, or train without it: log.tracker="
    )


@pytest.mark.slow  # starts the package's own process
def test_wandb_itself_works_offline_and_its_missing_login_is_seen(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs wandb: extra track")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setattr(sys, "stdin", None)  # no terminal
    sinks._login.cache_clear()
    with pytest.raises(UserError, match="log.tracker 'wandb': .*wandb login"):
        sinks.check_tracker("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    sys.modules["wandb"].teardown()  # it has read the environment once
    sinks.check_tracker("wandb")
    run = tmp_path / "job" / "runs" / "sip"
    run.mkdir(parents=True)
    config = LogConfig(tensorboard=False, tracker="wandb")
    log = writer(run, sinks.opened(config, str(run), "sip", SETTINGS, 0))
    log.write(3, {"loss/total": (1, 2)})
    log.close()
    assert list(run.glob("wandb/offline-run-*/*.wandb"))


def test_trackio_needs_no_login(monkeypatch):
    calls = stand_in(monkeypatch, "trackio")
    sinks.check_tracker("trackio")
    assert calls == []


@pytest.mark.parametrize("library", ["wandb", "trackio"])
def test_a_tracker_that_does_not_begin_is_one_line(library, tmp_path, monkeypatch):
    stand_in(monkeypatch, library)
    monkeypatch.setattr(sys.modules[library], "init", refused)
    config = LogConfig(tensorboard=False, tracker=library)
    with pytest.raises(UserError, match=f"log.tracker '{library}': No API key.* log.tracker=$"):
        sinks.opened(config, str(tmp_path), "sip", SETTINGS, 0)


def test_a_directory_of_that_name_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()  # as wandb makes it
    monkeypatch.setattr(sys, "path", [str(tmp_path)])  # the package may be installed
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(UserError, match="needs the package wandb"):
        sinks.check_tracker("wandb")


def test_aliases_are_more_names_of_the_same_numbers(tmp_path):
    seen = []

    class Sink:
        write = lambda self, step, numbers: seen.append(numbers)
        close = lambda self: None

    line = {"reward/all": (3, 4), "reward/judge": (1, 4), "reward/judge/skipped": (0, 4),
            "rl/flat_groups": (1, 2), "clip_fraction": (0, 9)}  # fmt: skip
    for aliases in (False, True):
        log = writer(tmp_path, [Sink()], aliases=aliases)
        log.write(1, line)
        log.close()
    plain, both = seen
    assert set(plain) == set(line)
    assert {k: v for k, v in both.items() if k not in plain} == {
        "reward": 0.75, "rewards/judge/mean": 0.25, "frac_reward_zero_std": 0.5,
        "clip_ratio": 0.0, "clip_ratio/region_mean": 0.0,
    }  # fmt: skip
    assert metrics.read(tmp_path)[-1] == {"step": 1, **plain}  # the file has our names only
    assert metrics.aliased({"reward/suffix": 1.0}) == {}  # of candidates, not of answers


def test_every_alias_is_the_name_of_a_metric_that_objectives_or_loops_write():
    """test_tasks compares the names of `rl.collect`, test_rlhf those of cut answers."""
    pair_B2, two_BK = np.zeros((1, 2), np.float32), np.ones((1, 2), bool)
    written = set(preference.dpo(pair_B2, pair_B2, np.ones(1, bool), beta=0.1)[2])
    logp_BKR = np.zeros((1, 2, 3), np.float32)
    given = logp_BKR, logp_BKR, pair_B2, np.ones(logp_BKR.shape, bool), two_BK
    written |= set(policy.dr_grpo(*given, clip_low=0.2, clip_high=0.2)[2])
    written |= {metrics.LOSS, "grad/norm"}
    ours = {x for x in metrics.ALIASES.values() if not x.startswith(("rl/", "reward/"))}
    assert ours <= written
