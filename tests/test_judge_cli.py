"""Tests judging from the shell: streamed verdicts in order, and errors with line numbers."""

import importlib
import io
import json
import os
import select
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_recipe
from serving import serve
from test_http_judge import judging as answers
from workdirs import call

from sip import mesh
from sip import run as runs
from sip.judge import __main__ as cli
from sip.judge import build as judges
from sip.judge import prompts
from sip.judge.scoring import TextJudge
from sip.stages import selfimprove
from sip.structs import UserError
from sip.textgen.scripted import Scripted, ruled

pytest_plugins = ["tiny_fixtures"]
RECIPE = f"--config={tiny_recipe.__file__}"
TEXT = (f"--config={tiny_recipe.ROOT / 'configs' / 'text.py'}:debug",)
RULED = {"quality": 1.0}
ROWS = [
    {"prefix": "He said", "candidates": [" the same the same", " one two three"]},
    {"prefix": "", "candidates": [" alone"], "reference": " kept", "id": 7},
    {"prefix": "So", "candidates": [" a b c", " a a a", "", " a a b"], "reference": None},
]


def jsonl(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def ask(monkeypatch, capsys):
    def run(stdin: bytes, *argv: str):
        """Returns (exit code, rows on stdout, stderr)."""
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        code = call(cli, *argv)
        out, err = capsys.readouterr()
        return code, [json.loads(line) for line in out.splitlines()], err

    return run


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_lines_are_judged_in_order_as_each_would_be_alone(batch, ask):
    override = f"--config.runs.dpo_suffix_rollouts.judge.batch={batch}"
    code, found, err = ask(jsonl(ROWS), *TEXT, override)
    assert (code, err, len(found)) == (0, "", 3)
    judge = TextJudge(ruled("distinct_words"), (prompts.load("quality"),), RULED)
    for row, said in zip(ROWS, found, strict=True):
        mask = np.array([[bool(text) for text in row["candidates"]]])
        alone = judge.score([row["prefix"]], [row["candidates"]], [""], mask)
        assert said["valid"] == alone.valid_BK[0].tolist() == mask[0].tolist()
        np.testing.assert_allclose(said["scores"], alone.scores_BK[0], atol=1e-12)
        assert said["aspects"]["quality"] == {"scores": said["scores"], "valid": said["valid"]}
    assert found[0]["scores"][1] > 0.9 and found[1]["scores"] == [0.5]
    assert found[2]["scores"][2] == 0 and found[2]["scores"][0] > found[2]["scores"][3]


def test_a_local_judge_says_what_it_says_in_its_run(finished, quick, ask):
    config = tiny_recipe.get_config()
    run = selfimprove.resolve(config, "sip_learned")
    where, tokenizer = mesh.single(), runs.open_tokenizer(config, str(finished))
    judge = judges.build(run.judge, str(finished), None, where, tokenizer)
    prefixes = ["About Fihefo. He is", "She \ud800", "He"]
    texts = [[" a baker.", " a rotten fool."], [" likes tea.", " likes"], [" sings.", " \u2047"]]
    direct = judge.score(prefixes, texts, [" true."] * 3, np.ones((3, 2), bool))
    rows = [
        {"prefix": p, "candidates": some, "reference": " true."}
        for p, some in zip(prefixes, texts, strict=True)
    ]
    named = "--config.runs.sip_learned.judge.init_from"
    reader = named.replace("init_from", "proofread.init_from")
    apart = [f"{named}={finished / 'runs' / 'judge'}", f"{reader}={finished / 'runs' / 'tutor'}"]
    for argv in ([f"--workdir={finished}"], apart):
        code, found, err = ask(jsonl(rows), RECIPE, "--run=sip_learned", *argv)
        assert (code, err) == (0, "")
        assert [row["valid"] for row in found] == direct.valid_BK.tolist()
        np.testing.assert_allclose([row["scores"] for row in found], direct.scores_BK, atol=1e-6)
        for name, (score_BK, valid_BK) in direct.aspects.items():
            told = [row["aspects"][name] for row in found]
            assert [x["valid"] for x in told] == valid_BK.tolist()
            np.testing.assert_allclose([x["scores"] for x in told], score_BK, atol=1e-6)
    assert len(set(map(tuple, direct.scores_BK.round(4)))) > 1, "the judge tells texts apart"


def test_the_truth_and_a_server_can_be_asked(finished, ask):
    rows = [{"prefix": "He", "candidates": [" is a fool.", " is."], "reference": " is."}]
    code, found, _ = ask(jsonl(rows), RECIPE, "--run=sip_oracle", f"--workdir={finished}")
    assert code == 0 and set(found[0]["aspects"]) == {"quality", "safety", "factuality"}
    with serve(answers) as server:
        http = "--config.runs.sip_oracle.judge.http"
        argv = [f"{http}.url={server.url}", f"{http}.model=m", f"{http}.retries=0"]
        argv += ["--run=sip_oracle", "--config.runs.sip_oracle.judge.backend=http"]
        code, found, err = ask(jsonl(rows), RECIPE, *argv)
    assert (code, err) == (0, "")
    assert found[0]["aspects"]["safety"]["scores"] == pytest.approx([0.9 / 0.95] * 2)
    assert found[0]["aspects"]["quality"]["scores"] == pytest.approx([0.5, 0.5])
    code, found, err = ask(jsonl(rows), RECIPE, *argv)
    assert code == 2 and "no answer" in err and len(err.splitlines()) == 1


ENDS = {  # line ends and marks that people pipe
    "blank lines at the end": lambda a, b: a + b"\n" + b + b"\n\n  \n",
    "CRLF": lambda a, b: a + b"\r\n" + b + b"\r\n",
    "a mark": lambda a, b: b"\xef\xbb\xbf" + a + b"\n" + b,
}


@pytest.mark.parametrize("joined", ENDS.values(), ids=ENDS)
def test_lines_end_at_a_newline_alone(joined, ask):
    rows = [ROWS[0], {"prefix": "U\u2028V\x85", "candidates": ["\u2028w w", " x\x0cy"]}]
    one, two = (json.dumps(row, ensure_ascii=False).encode() for row in rows)
    code, found, err = ask(joined(one, two), *TEXT)
    assert (code, err) == (0, "") and found == ask(jsonl(rows), *TEXT)[1] and len(found) == 2


def test_a_closed_stdin_is_an_empty_input(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)
    assert call(cli, *TEXT) == 0 and capsys.readouterr().out == ""


def test_why_verdicts_are_invalid_is_said(capsys):
    judge = TextJudge(Scripted(lambda *_: (0.1, 0.1)), (prompts.load("quality"),), RULED)
    list(cli.score(judge, [{**ROWS[0], "reference": ""}]))
    assert "invalid verdicts in 1 lines: quality: 2 where the judge" in capsys.readouterr().err


def test_an_empty_input_has_an_empty_answer(ask):
    assert ask(b"", *TEXT) == (0, [], "")
    code, found, _ = ask(jsonl([{"prefix": "a", "candidates": ["", ""]}]), *TEXT)
    assert code == 0 and found[0]["valid"] == [False, False] and found[0]["scores"] == [0, 0]


BAD = {  # a third line: what stderr says of it
    "no JSON": (b"{", "not JSON"),
    "blank": (b"", "not JSON"),
    "not UTF-8": (b'{"prefix": "\xff"}', "not UTF-8 (byte 0xff"),
    "a blank line": (b"", "not JSON"),
    "deep": (b"[" * 200_000, "not JSON"),
    "a list": (b"[]", "must be a JSON object"),
    "no prefix": (b'{"candidates": ["a"]}', "prefix: must be a string"),
    "a number": (b'{"prefix": 1, "candidates": ["a"]}', "prefix: must be a string"),
    "no candidates": (b'{"prefix": "a"}', "candidates: must be a list of strings"),
    "one text": (b'{"prefix": "a", "candidates": "abc"}', "candidates: must be a list of strings"),
    "null": (b'{"prefix": "a", "candidates": [null]}', "candidates: must be a list of strings"),
    "none": (b'{"prefix": "a", "candidates": []}', "candidates: must have at least one"),
    "reference": (b'{"prefix": "a", "candidates": ["b"], "reference": 2}', "reference: must be a"),
}


@pytest.mark.parametrize(("line", "said"), BAD.values(), ids=BAD)
def test_a_bad_line_is_named_after_the_answers_before_it(line, said, ask):
    code, found, err = ask(jsonl(ROWS[:2]) + line + b"\n" + jsonl(ROWS), *TEXT)
    assert code == 2 and len(found) == 2
    assert err.startswith(f"error: line 3: {said}") and len(err.splitlines()) == 1


def test_a_reference_is_wanted_where_an_aspect_is_shown_one():
    line = json.dumps({"prefix": "a", "candidates": ["b"]}).encode()
    assert cli.parse(line, 1, False)["reference"] == ""
    for given in (line, line[:-1] + b', "reference": null}'):
        with pytest.raises(UserError, match="line 9: reference: must be a string"):
            cli.parse(given, 9, True)


REFUSED = {
    "no config": ([], "--config is needed"),
    "several judges": ([RECIPE], "--run is needed; runs with a judge: sft_one_rollout, sip_"),
    "no such run": ([RECIPE, "--run=judge"], "--run: no judge in 'judge'"),
    "no checkpoint": (
        [RECIPE, "--run=sip_learned"],
        "runs.sip_learned.judge.init_from 'judge': not a run of this workdir"),
    "a policy": ([RECIPE, "--run=sip_learned", "--config.runs.sip_learned.judge.init_from=policy"],
        "judge.init_from: only the policy of a self-improving run judges itself"),
    "no corpus": ([RECIPE, "--run=sip_oracle"], "--workdir is needed"),
    "no tokenizer to send tokens by": (
        [*TEXT, *(f"--config.runs.dpo_suffix_rollouts.judge.{part}" for part in (
            "backend=http", "http.url=http://127.0.0.1:1/v1", "http.model=m", "http.tokens=True"))],
        "--workdir is needed"),
    "no tokenizer to proofread by": (
        [*TEXT, *(f"--config.runs.dpo_suffix_rollouts.judge.{part}" for part in (
            "backend=http", "http.url=http://127.0.0.1:1/v1", "http.model=m",
            "proofread.init_from=tutor"))],
        "--workdir is needed"),
    "a bad judge": (
        [*TEXT, "--config.runs.dpo_suffix_rollouts.judge.rule=none"], "judge.rule='none'"),
    "a stray argument": ([*TEXT, "file"], "unexpected argument 'file'"),
}  # fmt: skip


@pytest.mark.parametrize(("argv", "said"), REFUSED.values(), ids=REFUSED)
def test_a_judge_that_cannot_be_asked_is_one_line(argv, said, ask, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, found, err = ask(jsonl(ROWS), *argv)
    assert (code, found) == (2, []) and said in err and len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_lines_are_read_and_asked_a_batch_at_a_time():
    read, asked = [], []
    lines = (read.append(i) or jsonl([ROWS[i % 3]]) for i in range(5))
    found = cli.batches(lines, 2, False)
    assert (len(next(found)), len(read)) == (2, 2)
    assert ([len(rows) for rows in found], len(read)) == ([2, 1], 5)
    once = lambda trunk, branch, options: asked.append(trunk) or (0.9, 0.1)
    generator = Scripted(once)
    calls, choose = [], generator.choose
    object.__setattr__(generator, "choose", lambda *a: calls.append(a) or choose(*a))
    rows = [{**ROWS[0], "reference": ""}] * 3
    assert len(list(cli.score(TextJudge(generator, (prompts.load("quality"),), RULED), rows))) == 3
    assert len(calls) == 1 and len(asked) == 6


@pytest.mark.slow  # starts a process
def test_answers_are_flushed_before_the_input_ends():
    argv = [sys.executable, "-m", "sip.judge", *TEXT]
    argv += ["--config.runs.dpo_suffix_rollouts.judge.batch=2"]
    env = os.environ | {"PYTHONPATH": str(Path(tiny_recipe.ROOT)), "PYTHONUNBUFFERED": ""}
    with subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        program.stdin.write(jsonl(ROWS[:2]))
        program.stdin.flush()
        assert select.select([program.stdout], [], [], 60)[0] or program.kill(), "no answer"
        assert [len(json.loads(program.stdout.readline())["scores"]) for _ in (1, 2)] == [2, 1]
        program.stdout.close()  # as `head` does
        program.stdin.write(jsonl(ROWS))
        program.stdin.close()
        assert program.wait(60) == 0


def test_the_only_run_with_a_judge_needs_no_name():
    config = importlib.import_module("text").get_config("debug")
    assert cli.chosen(config, None) == "dpo_suffix_rollouts"
