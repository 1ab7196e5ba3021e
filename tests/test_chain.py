"""Tests what the configs take over from the checkpoint that they start from: sizes, template, rate.

The slow test goes the whole way: pretraining, SIP on own text, instruction tuning, DPO, a chat.
"""

import dataclasses
import importlib
import io
import json
import sys

import numpy as np
import pytest
import tiny
import tiny_recipe
from workdirs import call, quickly

from sip import generate, loading, train
from sip.models import presets
from sip.stages import recipe
from sip.training import checkpoints

EXAMPLE = tiny_recipe.ROOT / "configs" / "examples" / "conversations.jsonl"


def saved(directory, *, cfg=tiny.BYTES, **config):
    """Saves a checkpoint that records the `config` of its run; returns its path."""
    record = {"model": dataclasses.asdict(cfg)} | ({"config": config} if config else {})
    checkpoints.save_params(str(directory), tiny.params(cfg), record)
    (directory / "tokenizer.json").write_text('{"kind": "byte"}')
    return str(directory)


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    """Base models with a context of 160 and 512 tokens."""
    to = tmp_path_factory.mktemp("starts")
    cfg = lambda n: dataclasses.replace(tiny.BYTES, max_len=n)
    return [saved(to / f"{n}", cfg=cfg(n)) for n in (160, 512)]


def filled(name, source, tmp_path):
    """Returns a config that starts from `source`, with what the user has to name."""
    config = importlib.import_module(name).get_config(source)
    for file in ("f.txt", "f.jsonl"):
        (tmp_path / file).write_text("")
    (tmp_path / "f.py").write_text("def f(prompts, answers):\n    return [0.0] * len(answers)\n")
    config.data.path = str(tmp_path / "f.txt") if config.data.source == "txt" else ""
    run = config.runs[config.order[-1]]
    needs = {
        "sft": dict(path="f.jsonl"),
        "rlhf": dict(prompts="f.jsonl", reward="f.py:f"),
        "rl_problems": {"problems.path": "f.jsonl"},
        "dpo": {"pairs.path": "f.jsonl"},
        "reward_model": {"pairs.path": "f.jsonl"},
    }
    for key, value in (needs[name] if name in needs else {}).items():
        values = run.task[key.split(".")[0]] if "." in key else run.task
        values[key.split(".")[-1]] = str(tmp_path / value)
    if name == "from_hf":
        run.judge = importlib.import_module("_common").judge("rule", rule="distinct_words")
        run.judge.weights = (("quality", 1.0),)
    return config


NAMES = "finetune own_text sft dpo reward_model rlhf rl_problems from_hf".split()


@pytest.mark.parametrize("name", NAMES)
def test_a_config_fits_a_small_checkpoint_without_debug(name, starts, tmp_path):
    for source in starts:
        recipe.check(filled(name, source, tmp_path), str(tmp_path / "w"))


CHATS = {  # the task of a run -> the chat template that it was tuned in
    "conversations": (dict(chat="turns"), "turns"),
    "pairs": (dict(pairs=dict(chat="harmony"), labels=None, answers=None), "harmony"),
    "answers": (dict(pairs=None, answers=dict(chat="turns")), "turns"),
    "the check of answers": (dict(chat="turns", answers=dict(check="exact")), "turns"),
    "plain prompts": (dict(chat=""), ""),
    "documents": (dict(tokens="all"), ""),
}


@pytest.mark.parametrize(("task", "template"), CHATS.values(), ids=CHATS)
def test_the_template_of_a_run_is_that_of_its_task(task, template, tmp_path):
    directory = saved(tmp_path / "runs" / "one", init_from="", task=task)
    assert loading.tuned_in(directory) == loading.trained_in(directory) == template


def test_the_template_is_that_of_the_run_before(tmp_path, monkeypatch):
    """It is found by the name of a run of the workdir, by the path of others; a lost one tells
    nothing."""
    to = lambda *place: tmp_path.joinpath(*place)
    saved(to("a", "runs", "sft"), init_from="base", task=dict(chat="turns"))
    sip = saved(to("a", "runs", "sip"), init_from="sft")
    plain = dict(pairs=dict(chat=""))
    dpo = saved(to("b", "runs", "dpo"), init_from=sip, task=plain)
    assert loading.tuned_in(sip) == loading.tuned_in(dpo) == "turns"
    assert loading.trained_in(sip) is None and loading.trained_in(dpo) == ""
    lost = saved(to("b", "runs", "lost"), init_from="nowhere", task=plain)
    circle = saved(to("b", "runs", "circle"), init_from="circle")
    assert loading.tuned_in(lost) == loading.tuned_in(circle) == ""
    published = to("published")
    published.mkdir()
    (published / "config.json").write_text('{"model_type": "llama"}')
    (published / "tokenizer.json").write_text("{}")
    assert loading.tuned_in(str(published)) == ""
    (published / "chat_template.jinja").write_text("{{ messages }}")
    assert loading.tuned_in(str(published)) == "own" and loading.trained_in(str(published)) is None


def test_configs_go_on_in_the_template_of_the_run_before(starts, tmp_path):
    tuned = saved(tmp_path / "runs" / "sft", init_from="", task=dict(chat="harmony"))
    task = lambda name, source: importlib.import_module(name).get_config(source).runs
    for source, template in ((tuned, "harmony"), (starts[0], "")):
        assert task("dpo", source).dpo.task.pairs.chat == template
        assert task("reward_model", source).reward_model.task.pairs.chat == template
        assert task("rlhf", source).rlhf.task.chat == template
        assert task("sft", source).assistant.task.chat == (template or "turns")
        assert task("rl_problems", source).rlvr.task.chat == (template or "turns")


RATES = dict(finetune=6e-4, sft=1e-3, dpo=1e-4, reward_model=1e-3, rlhf=3e-4, rl_problems=3e-4)
RATES |= dict(own_text=4e-4)  # of sip, the last run


@pytest.mark.parametrize("name", RATES)
def test_a_small_model_has_the_rate_of_the_micro_world(name, starts, monkeypatch):
    module = importlib.import_module(name)
    last = lambda: module.get_config(starts[0]).runs[module.get_config(starts[0]).order[-1]]
    assert last().optim.lr == pytest.approx(RATES[name])
    large = presets.preset("llama32_1b")
    monkeypatch.setattr(loading, "recorded_model", lambda source: large)
    assert last().optim.lr <= 1e-5


def write(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


@pytest.mark.slow
def test_from_pretraining_to_a_chat(tmp_path, monkeypatch, capsys):
    """Each config starts from the run of the one before; the rows are those of a newcomer."""
    rng = np.random.default_rng(0)
    words = "red blue green old new tall short calm loud warm cold wide thin kind wise".split()
    texts = [" ".join(rng.permutation(words)) + "." for _ in range(240)]
    (tmp_path / "f.txt").write_text("\n\n".join(texts))
    pairs = [dict(prompt=f"What is {i}?", chosen=f"It is {i}.", rejected="No.") for i in range(60)]

    def trained(name, arg, run, **task):
        config = importlib.import_module(name).get_config(f"{arg},debug")
        if config.data.source == "txt":
            config.data.path = str(tmp_path / "f.txt")
        for one in config.runs.values():
            one.log.update(tensorboard=False, progress=False)
        for key, value in task.items():
            section = config.runs[run].task
            (section.pairs if key == "pairs" else section).path = value
        workdir = tmp_path / name
        train.train(config, str(workdir))
        return str(workdir / "runs" / run)

    with quickly():
        base = trained("pretrain", "text", "base")
        sip = trained("own_text", base, "sip")
        assistant = trained("sft", sip, "assistant", path=str(EXAMPLE))
        dpo = trained("dpo", assistant, "dpo", pairs=write(tmp_path / "pairs.jsonl", pairs))
        assert checkpoints.record(dpo)["config"]["task"]["pairs"]["chat"] == "turns"
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"What is 1 plus 2?\n")))
        capsys.readouterr()
        assert call(generate, "--chat", f"--checkpoint={dpo}", "--max_tokens=8") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
