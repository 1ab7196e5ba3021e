"""Tests instruction tuning: from a config to a run, and to an answer in a terminal."""

import importlib
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny_recipe
from workdirs import call, lines, quickly, state, stop_after

from sip import generate, loading, train
from sip import workdir as workdirs
from sip.run import Run
from sip.sampling import SamplingConfig
from sip.stages import recipe
from sip.structs import UserError
from sip.tasks.supervised import conversations as task
from sip.text.tokenizer import Byte
from sip.textgen import dialogue
from sip.training import loop

pytest_plugins = ["tiny_fixtures"]
pytest.importorskip("jinja2", reason="needs jinja2")
EXAMPLE = tiny_recipe.ROOT / "configs" / "examples" / "conversations.jsonl"


def of(name, **run):
    config = importlib.import_module(name).get_config("debug")
    config.runs[config.order[0]].update(**run)
    config.runs[config.order[0]].log.update(tensorboard=False, progress=False)
    return config


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A workdir in which the run `assistant` of configs/sft.py:debug was trained for four steps."""
    config, workdir = of("sft", steps=4), tmp_path_factory.mktemp("tuned")
    config.runs.assistant.evals.every_steps = 2
    with quickly():
        recipe.check(config, str(workdir))
        figures = recipe.STAGES["supervised"].train(Run(config, "assistant", str(workdir)))
    return SimpleNamespace(config=config, workdir=workdir, figures=figures)


def test_a_run_learns_answers_and_measures_held_out_ones(tuned):
    said = lines(tuned.workdir, "assistant")
    losses = [line["loss/ce"] for line in said if "loss/ce" in line]
    held_out = [line["eval/nll"] for line in said if "eval/nll" in line]
    assert len(losses) == 4 and losses[-1] < losses[0] and held_out[1] < held_out[0]
    assert tuned.figures["perplexity"] == pytest.approx(np.exp(tuned.figures["nll"]))
    written = Path(workdirs.run_dir(str(tuned.workdir), "assistant")) / "eval.json"
    assert json.loads(written.read_text()) == tuned.figures


@pytest.mark.slow  # test_packing finds batches from steps; the loop is that of other tasks
def test_stopped_and_resumed_equals_uninterrupted(tuned, tmp_path, monkeypatch):
    with quickly():
        with monkeypatch.context() as patch:
            stop_after(patch, 3)
            with pytest.raises(loop.Stopped, match="stopped after step 3 of 4"):
                recipe.STAGES["supervised"].train(Run(tuned.config, "assistant", str(tmp_path)))
        recipe.STAGES["supervised"].train(Run(tuned.config, "assistant", str(tmp_path)))
        both = [state(tuned.config, w, "assistant")[0] for w in (tuned.workdir, tmp_path)]
    assert lines(tuned.workdir, "assistant") == lines(tmp_path, "assistant")
    for a, b in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def answers(tuned, monkeypatch, capsys, *flags, stdin=b""):
    """Returns (exit code, stdout, stderr) of `sip.generate --chat`."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    where = f"--checkpoint={tuned.workdir}/runs/assistant"
    with quickly():
        code = call(generate, where, "--max_tokens=4", "--temperature=0", *flags)
    return code, *capsys.readouterr()


def test_a_tuned_run_is_talked_to(tuned, monkeypatch, capsys, tmp_path):
    """A pipe and --prompts give the same answer to a first question, in the run's template."""
    (tmp_path / "p.txt").write_text("\nWhat is 1 plus 2?\n")
    code, piped, _ = answers(tuned, monkeypatch, capsys, "--chat", stdin=b"What is 1 plus 2?\n")
    assert code == 0 and len(piped.splitlines()) == 1
    flags = ["--chat", f"--prompts={tmp_path / 'p.txt'}", "--json"]
    code, said, _ = answers(tuned, monkeypatch, capsys, *flags)
    one = json.loads(said)
    assert code == 0 and one["prompt"] == "What is 1 plus 2?" and len(one["tokens"]) <= 4
    assert dialogue.shown(one["text"], keep="\t") == piped.removesuffix("\n")
    directory = f"{tuned.workdir}/runs/assistant"
    assert loading.tuned_in(directory) == "turns"
    one = dialogue.load(directory, template="", sample=SamplingConfig(), max_tokens=0, seed=0)
    assert one.max_tokens == one.model.cfg.max_len // 2 == 128


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrain", "finetune", "sft"])
def test_every_debug_variant_runs(name, quick, tmp_path):
    config = of(name)
    (tmp_path / "f.txt").write_text("\n\n".join(f"A text of number {i}, {i}." for i in range(99)))
    if config.data.source == "txt":
        config.data.path = str(tmp_path / "f.txt")
    figures = train.train(config, str(tmp_path / "work"))
    assert figures and (tmp_path / "work" / "summary.json").exists()


WRONG = {
    "no chat": (["--prompt=a", "--system=b"], "--system: needs --chat"),
    "template": (["--chat", "--template=none"], "chat 'none': must be"),
    "several answers": (["--chat", "--num=2"], "--num: needs --prompt or --prompts with --chat"),
    "too long": (["--chat", f"--prompt={'a' * 300}"], "exceed the model's max_len"),
}


@pytest.mark.parametrize(("flags", "said"), WRONG.values(), ids=WRONG)
def test_bad_flags_are_one_line(flags, said, tuned, monkeypatch, capsys):
    code, _, err = answers(tuned, monkeypatch, capsys, *flags)
    (line,) = err.strip().splitlines()
    assert code == 2 and line.startswith("error: ") and said in line


def test_a_model_without_a_template_asks_for_one(tmp_path):
    with pytest.raises(UserError, match="was tuned in no chat template.*--template=turns"):
        dialogue._template(str(tmp_path), "", Byte())


BAD = {
    "no file": (dict(path=""), "task.path: needed"),
    "a file that is not there": (dict(path="none.jsonl"), "task.path: .*none.jsonl"),
    "no template": (dict(chat="none"), "task.chat 'none': must be"),
    "an empty template": (dict(chat=""), "task.chat: needed"),
    "a row longer than the model": (dict(length=300), "task.length 300: must be 2 to"),
    "a share": (dict(max_skipped_fraction=2.0), "task.max_skipped_fraction=2.0"),
    "a template of the tokenizer": (dict(chat="own"), "this kind of tokenizer has no template"),
    "rows too short": (dict(length=30), "conversations.jsonl:1: .* longer than 30 tokens; choose"),
}


@pytest.mark.parametrize(("values", "said"), BAD.values(), ids=BAD)
def test_a_bad_setting_is_one_line(values, said, tmp_path):
    config = of("sft")
    config.runs.assistant.task.update(values)
    with pytest.raises(UserError, match=said) as error:
        recipe.check(config, str(tmp_path))
        c = recipe.STAGES["supervised"].resolve(config, "assistant")
        task.build(Run(config, "assistant", str(tmp_path)), c, None)
    assert "\n" not in str(error.value)


def test_what_is_left_out_is_counted_and_a_small_file_is_refused(tmp_path, capsys):
    rows = EXAMPLE.read_text().splitlines()
    long = json.dumps(dict(prompt="a" * 300, completion="b"))
    (tmp_path / "some.jsonl").write_text("\n".join([*rows, long, '{"prompt": "a"}']))
    config = of("sft")
    config.runs.assistant.task.path = str(tmp_path / "some.jsonl")
    run = Run(config, "assistant", str(tmp_path))
    c = recipe.STAGES["supervised"].resolve(config, "assistant")
    task.build(run, c, None)
    assert run.left_out["train"] == {
        "without messages, and without prompt and completion (fields seen: 'prompt')": 1,
        "longer than 256 tokens": 1,
    }
    assert "2 of 82 conversations are left out: 1 without" in capsys.readouterr().err
    (tmp_path / "few.jsonl").write_text("\n".join(rows[:2]))
    config.runs.assistant.task.path = str(tmp_path / "few.jsonl")
    with pytest.raises(UserError, match="no conversation in split .*; the first question decides"):
        task.build(run, recipe.STAGES["supervised"].resolve(config, "assistant"), None)
