"""Tests the three loops with LoRA: stopped, resumed, loaded and exported."""

import dataclasses
import importlib

import jax
import numpy as np
import pytest
from test_stages import text_config, words
from test_tasks import write_labels
from workdirs import call, lines, stop_after

from sip import evaluate, generate, loading, train
from sip import mesh as meshes
from sip import workdir as workdirs
from sip.models import lora
from sip.run import Run
from sip.stages import recipe
from sip.training import checkpoints, loop, optim, step

pytest_plugins = ["tiny_fixtures"]
pytestmark = pytest.mark.slow
DPO, SFT = "dpo_suffix_rollouts", "sft"


def text_recipe(path):
    """Returns a config with a base model, and supervised and self-improving LoRA runs on it."""
    config = text_config(path)
    sft = config.runs.base.copy_and_resolve_references()
    sft.update(init_from="base", steps=4)
    with config.unlocked():
        config.runs[SFT] = sft
    config.order = ("base", SFT, DPO)
    for name, held in ((SFT, False), (DPO, True)):
        config.runs[name].lora.update(rank=2, int8=held)
        config.runs[name].steps = 4
        config.runs[name].optim.lr = 1e-2
    return config


def adapted_state(config, workdir, name):
    run = recipe.STAGES[config.runs[name].stage].resolve(config, name)
    how = dict(reference=False, adapter=run.lora)
    abstract = step.abstract_state(run.model, optim.build(run.optim), meshes.single(), **how)
    with checkpoints.manager(workdirs.run_dir(str(workdir), name)) as manager:
        return checkpoints.restore(manager, abstract)[0]


def equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_supervised_and_self_improving_runs_of_factors(quick, tmp_path, monkeypatch, capsys):
    file = tmp_path / "corpus.txt"
    file.write_text("\n\n".join(words(i) for i in range(200)))
    config, once, twice = text_recipe(file), tmp_path / "once", tmp_path / "twice"
    figures = train.train(config, str(once))
    with monkeypatch.context() as patch:
        stop_after(patch, 2 + 4 + 2)  # updates of the base, of SFT, and two of DPO
        with pytest.raises(loop.Stopped, match=f"{DPO}: stopped after step 2 of 4"):
            train.train(config, str(twice))
    assert train.train(config, str(twice))["rows"].keys() == figures["rows"].keys()
    one = meshes.single()
    base, _ = loading.load_params(workdirs.run_dir(str(once), "base"), one)
    for name in (SFT, DPO):
        assert lines(once, name) == lines(twice, name)
        states = [adapted_state(config, workdir, name) for workdir in (once, twice)]
        equal(*states)
        read, _ = loading.load_params(workdirs.run_dir(str(once), name), one)
        equal(read, jax.jit(lora.merged)(states[0].params))
        assert np.abs(read["blocks"]["block"]["wq"] - base["blocks"]["block"]["wq"]).max() > 1e-3
        if name == SFT:
            equal(states[0].params.base, base)
    run = workdirs.run_dir(str(once), DPO)
    assert call(generate, f"--checkpoint={run}", "--prompt=the river", "--max_tokens=4") == 0
    assert call(evaluate, f"--checkpoint={run}", "--standard=4") == 0
    assert "nll" in capsys.readouterr().out


def test_a_policy_gradient_run_of_factors(quick, tmp_path):
    config, source = importlib.import_module("judge_llama8b").get_config("debug"), tmp_path / "at"
    run = config.runs.judge
    run.task.label_file.path = config.data.path = write_labels(tmp_path / "labels.jsonl")
    run.log.update(tensorboard=False, progress=False)
    cfg = recipe.STAGES["rl"].resolve(config, "judge").model
    tx = optim.build(optim.OptimConfig(lr=1e-3, steps=1))
    made = step.init_state(cfg, tx, meshes.single(), 0, reference=False)
    checkpoints.save_params(str(source), made.params, {"model": dataclasses.asdict(cfg)})
    run.update(init_from=str(source), steps=2)
    run.lora.rank, run.objective.beta = 2, 0.1  # the KL is to the base
    recipe.STAGES["rl"].train(Run(config, "judge", str(tmp_path / "work")))
    state = adapted_state(config, tmp_path / "work", "judge")
    equal(state.params.base, made.params)
    assert state.reference is None and int(state.step) == 2
