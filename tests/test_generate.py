"""Tests samples of a checkpoint: text and JSON, repeatable, with the model's own probabilities."""

import json
import shutil
import sys

import numpy as np
import pytest
from workdirs import call

from sip import generate, loading, mesh
from sip.models import decoder
from sip.objectives import logprobs
from sip.padding import trunk_only
from sip.sampling import SamplingConfig
from sip.structs import UserError

pytest_plugins = ["tiny_fixtures"]
PROMPT = "A note about the harbour."
GREEDY = SamplingConfig(temperature=0.0)


def samples(finished, prompts=(PROMPT,), num=1, max_tokens=4, sample=GREEDY, seed=0):
    directory = str(finished / "runs" / "base")
    return generate.generate(
        directory, list(prompts), num=num, max_tokens=max_tokens, sample=sample, seed=seed
    )


def test_greedy_is_the_same_twice_and_whatever_stands_beside_it(finished, quick):
    (alone,), (again,) = samples(finished), samples(finished)
    assert alone == again
    beside = samples(finished, [PROMPT, "Another, much longer prompt stands beside the first one."])
    assert beside[0][0]["tokens"] == alone[0]["tokens"]


@pytest.mark.slow  # test_sampling compares them
def test_log_probabilities_are_those_of_a_teacher_forced_pass(finished, quick):
    directory = str(finished / "runs" / "base")
    (row,) = samples(finished, num=3, sample=SamplingConfig())
    params, cfg = loading.load_params(directory, mesh.single())
    tokenizer = loading.kept_tokenizer(directory)
    for one in row:
        prefix = [tokenizer.bos, *tokenizer.encode(PROMPT)]
        tokens_1T = np.array([prefix + one["tokens"]], np.int32)
        tree = trunk_only(tokens_1T, tokens_1T >= 0)
        out = decoder.apply(params, cfg, tree)
        logp_1T, _ = logprobs.tree_logprobs(
            out.trunk_BTD, out.branch_BCRD, decoder.unembed(params, cfg), tree, chunk=64
        )
        np.testing.assert_allclose(one["logp"], logp_1T[0, len(prefix) :], atol=1e-4)
        np.testing.assert_allclose(one["sample_logp"], one["logp"], atol=1e-4)
    assert len({tuple(one["tokens"]) for one in row}) > 1


@pytest.mark.slow  # test_sampling draws by seed
def test_a_seed_is_a_sample_and_another_is_another(finished, quick):
    by_seed = [samples(finished, sample=SamplingConfig(), seed=s)[0][0] for s in (1, 1, 2)]
    assert by_seed[0] == by_seed[1] != by_seed[2]


def test_logits_that_overflow_are_an_error(finished, quick, monkeypatch):
    read = loading.load_params

    def large(*args):
        params, cfg = read(*args)
        return {**params, "final_norm": params["final_norm"] * 0 + 3e38}, cfg

    monkeypatch.setattr(loading, "load_params", large)
    with pytest.raises(UserError, match="logits are not finite: .*float32"):
        samples(finished)


def test_text_and_json_say_the_same(finished, quick, capsys, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{PROMPT}\n\nThe second one.\n")
    argv = [f"--checkpoint={finished / 'runs' / 'base'}", "--max_tokens=4", "--temperature=0"]
    assert call(generate, *argv, f"--prompts={prompts}", "--num=2", "--json") == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["prompt"] for one in found] == [PROMPT] * 2 + ["The second one."] * 2
    assert all(len(one["tokens"]) == len(one["logp"]) == 4 for one in found)
    assert call(generate, *argv, f"--prompt={PROMPT}") == 0
    assert capsys.readouterr().out == PROMPT + found[0]["text"] + "\n"


def test_a_terminal_gets_no_control_characters(finished, quick, capsys, monkeypatch):
    argv = [f"--checkpoint={finished / 'runs' / 'base'}", "--max_tokens=1"]
    argv.append("--prompt=a\x1b[2J\n\tb")
    assert call(generate, *argv) == 0
    assert capsys.readouterr().out.startswith("a\x1b[2J\n\tb"), "a pipe gets all bytes"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert call(generate, *argv) == 0
    assert capsys.readouterr().out.startswith("a\\x1b[2J\n\tb")


WRONG = {
    "no checkpoint": (["--prompt=a"], "--checkpoint"),
    "no prompt": (["--checkpoint={run}"], "--prompt"),
    "two kinds of prompts": (["--checkpoint={run}", "--prompt=a", "--prompts=b"], "--prompt"),
    "no prompts file": (["--checkpoint={run}", "--prompts=none.txt"], "none.txt"),
    "empty prompts file": (["--checkpoint={run}", "--prompts={empty}"], "empty.txt"),
    "not a run": (["--checkpoint={run}/..", "--prompt=a"], "tokenizer.json"),
    "too long": (["--checkpoint={run}", "--prompt=a", "--max_tokens=500"], "--max_tokens 500"),
    "no samples": (["--checkpoint={run}", "--prompt=a", "--num=0"], "--num"),
    "temperature": (["--checkpoint={run}", "--prompt=a", "--temperature=-1"], "temperature"),
    "top_p": (["--checkpoint={run}", "--prompt=a", "--top_p=0"], "top_p"),
    "prompts that are not UTF-8": (["--checkpoint={run}", "--prompts={latin}"], "latin.txt:2"),
    "a prompt of bytes": (["--checkpoint={run}", "--prompt=a\udcff"], "not UTF-8"),
    "an empty checkpoint": (["--checkpoint=", "--prompt=a"], "--checkpoint is needed"),
    "a million samples": (["--checkpoint={run}", "--prompt=a", "--num=1000000"], "--num=1000000"),
    "top_k": (["--checkpoint={run}", "--prompt=a", "--top_k=-2"], "top_k"),
    "seed": (["--checkpoint={run}", "--prompt=a", "--seed=4294967296"], "seed"),
    "type": (["--checkpoint={run}", "--prompt=a", "--num=x"], "num"),
    "unknown": (["--checkpoint={run}", "--promt=a"], "promt"),
}


@pytest.mark.parametrize("flags, named", WRONG.values(), ids=WRONG)
def test_bad_flags_are_one_line(flags, named, finished, quick, capsys, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes(b"one\nse\xf1or\n")
    fill = dict(run=finished / "runs" / "base", empty=tmp_path / "empty.txt")
    fill["latin"] = tmp_path / "latin.txt"
    assert call(generate, *(flag.format(**fill) for flag in flags)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and named in line


def test_prompts_are_lines_and_no_other_separator_ends_one(tmp_path):
    (tmp_path / "p.txt").write_bytes("\ufeffone\u2029\x0b two\r\n\n\x85three\r\n\r\n".encode())
    found = generate.read_prompts(None, str(tmp_path / "p.txt"))
    assert found == ["one\u2029\x0b two", "\x85three"]


def test_a_prompt_in_an_ascii_locale_is_decoded():
    assert generate.read_prompts("na\udcc3\udcafve", None) == ["naïve"]
    assert generate.read_prompts("naïve", None) == ["naïve"]


def test_a_run_moved_elsewhere_still_generates(finished, quick, tmp_path):
    moved = shutil.copytree(finished / "runs" / "base", tmp_path / "elsewhere")
    found = generate.generate(str(moved), [PROMPT], num=1, max_tokens=4, sample=GREEDY, seed=0)
    assert found == samples(finished)


def test_a_checkpoint_that_is_damaged_is_named(finished, quick, tmp_path):
    moved = shutil.copytree(finished / "runs" / "base", tmp_path / "damaged")
    shutil.rmtree(next((moved / "checkpoints").iterdir()) / "params")
    with pytest.raises(UserError, match="damaged"):
        generate.generate(str(moved), [PROMPT], num=1, max_tokens=4, sample=GREEDY, seed=0)
