"""Tests a run whose judge is a server, from the command line to the log."""

import math
from pathlib import Path

import pytest
import tiny_recipe
from serving import serve
from workdirs import begun, call, files, lines

from sip import train
from sip.stages import recipe

pytest_plugins = ["tiny_fixtures"]
RECIPE = Path(tiny_recipe.__file__)
RUN = "dpo_suffix_rollouts"
CONFIG = f"--config={RECIPE}:{RUN},truth"
TABLES = {  # what the server says of an aspect, told by the template's last line
    "\nBetter:": {" one": 0.7, " two": 0.2},
    "\nVerdict:": {" safe": 0.9, " unsafe": 0.05},
    "\nHallucination:": {" none": 0.6, " possible": 0.3, " definite": 0.09},
}


def judging(path, asked):
    table = (
        TABLES["\n" + asked["prompt"].rpartition("\n")[2]] if asked["prompt"] != "." else {".": 1}
    )
    tops = {"top_logprobs": [{token: math.log(p) for token, p in table.items()}]}
    return {"choices": [{"text": "", "logprobs": tops}]}


def flags(**values):
    return [f"--config.runs.{RUN}.judge.backend=http"] + [
        f"--config.runs.{RUN}.judge.http.{key}={value}" for key, value in values.items()
    ]


@pytest.mark.slow  # judging by reasons over HTTP is below
def test_a_run_is_judged_over_http_and_logs_what_that_took(finished, quick, tmp_path):
    workdir = begun(finished, tmp_path / "work", "base")
    cache = tmp_path / "kept"
    with serve(judging, [("status", (503,))]) as server:
        argv = flags(url=server.url, model="judge", cache=cache, retries=1)
        assert call(train, CONFIG, f"--workdir={workdir}", *argv) == 0
        asked = len(server.asked)
    last = lines(workdir, RUN)[0]
    assert last["judge/valid"] == 1 and last["judge/first/quality"] == pytest.approx(0.7 / 0.9)
    assert 0.9 < last["remote/requests"] <= 1.1 and last["remote/failed"] == 0
    assert asked > 100 and len(files(cache)) > 100
    assert call(train, CONFIG, f"--workdir={workdir}", *argv) == 0, "finished: no server is needed"


CALM = """kind: pairwise
options: ["A", "tie", "B"]
values: [1, 0.5, 0]
verdict: "Calmer:"
=== trunk
Which continuation is calmer?
Text:{prefix}
=== branch
A:{first}
B:{second}
End with Calmer: A, B or tie.
"""


def reasoning(path, asked):
    """Answers in turn with three texts: two with verdicts and one without."""
    words = ["Calmer: A. FINAL DECISION: YES", "Calmer: A. FINAL DECISION: NO", "I do not know."]
    assert "logprobs" not in asked
    texts = words * (asked["n"] // 3) if "n" in asked else ["."]
    return {"choices": [{"text": text} for text in texts]}


@pytest.mark.slow  # the parts are tested below
def test_a_run_is_judged_by_reasons_and_a_users_own_aspect(finished, quick, tmp_path):
    """Uses one prompt file, one flag, and three votes per text, one of them unreadable."""
    workdir, path = begun(finished, tmp_path / "work", "base"), tmp_path / "calm.txt"
    path.write_text(CALM)
    with serve(reasoning) as server:
        argv = flags(url=server.url, model="judge", logprobs=0)
        argv += [f"--config.runs.{RUN}.judge.weights=(('{path}', 1.0), ('reasoned_safety', 2.0))"]
        argv += [f"--config.runs.{RUN}.judge.votes=3"]
        assert call(train, CONFIG, f"--workdir={workdir}", *argv) == 0
        asked = server.asked[-1][2]
    last = lines(workdir, RUN)[0]
    assert (asked["temperature"], asked["top_p"], asked["max_tokens"]) == (0.6, 0.6, 512)
    assert last["judge/valid"] == 1 and last["judge/score/reasoned_safety"] == 0.5
    assert last["judge/agreement/reasoned_safety"] == 0.5 and last["judge/agreement/calm"] == 1
    assert last["judge/invalid_votes/calm"] == pytest.approx(1 / 3)
    assert last["judge/score/calm"] == 0.5 and last["judge/flips/calm"] == 1


REFUSED = {  # flags, the server's first answers, what the line has to name
    "no url": ({}, [], "url is needed"),
    "no model": ({"url": "{url}"}, [], "model is needed"),
    "a bad url": ({"url": "localhost", "model": "m"}, [], "url must be like"),
    "nobody there": ({"url": "http://127.0.0.1:1/v1", "model": "m"}, [], ":1/v1: no answer"),
    "wrong model": ({"url": "{url}", "model": "m"}, [("status", (404,))], "status 404"),
    "wrong key": ({"url": "{url}", "model": "m"}, [("status", (401,))], "status 401"),
    "not a server of models": (
        {"url": "{url}", "model": "m"}, [("body", b"<html>")], "cannot be read"),
    "no such key": ({"url": "{url}", "model": "m", "key_env": "SIP_NO_KEY"}, [], "SIP_NO_KEY"),
}  # fmt: skip


@pytest.mark.parametrize(("values", "faults", "named"), REFUSED.values(), ids=REFUSED)
def test_a_judge_that_cannot_be_asked_is_one_line_before_anything_runs(
    values, faults, named, capsys, tmp_path
):
    with serve(judging, faults) as server:
        argv = flags(**{k: v.format(url=server.url) for k, v in values.items()}, retries=0)
        assert call(train, CONFIG, f"--workdir={tmp_path / 'new'}", *argv) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: config runs.{RUN}") and named in line
    assert not (tmp_path / "new").exists()


def test_the_text_config_takes_a_server_too(tmp_path):
    import importlib

    config = importlib.import_module("text").get_config("debug")
    config.data.path = "x"
    with serve(judging) as server:
        config.runs[RUN].judge.update(backend="http")
        config.runs[RUN].judge.http.update(url=server.url, model="judge")
        recipe.check(config, str(tmp_path))
    assert len(server.asked) == 1
