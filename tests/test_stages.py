"""Tests the loops: chosen candidates, learning, other corpora and judges, stopping, resuming."""

import dataclasses
import importlib
import json
import math
import random
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny_recipe
from workdirs import begun, lines, state, stop_after

from sip import metrics, sections, train
from sip import rewriter as rewriters
from sip.judge import audit
from sip.judge import build as judges
from sip.run import Run
from sip.stages import candidate_log, collect, recipe, selfimprove
from sip.structs import UserError
from sip.tasks import labelled
from sip.textgen import scripted
from sip.training import loop, losses

pytest_plugins = ["tiny_fixtures"]
R = 3


def policy(objective="dpo", **candidates):
    wanted = collect.CandidateConfig(rewrite=True, rollouts=((0, 2),), **candidates)
    objective = losses.ObjectiveConfig(objective)
    return SimpleNamespace(candidates=wanted, objective=objective, suffix=R, documents=0)


def pool(B=2):
    """Returns candidates: candidate k of prefix b is the token 10 b + k, R times."""
    tokens_BK = 10 * np.arange(B)[:, None] + np.arange(4)
    tokens_BKR = np.repeat(tokens_BK[..., None], R, axis=2)
    sources = ["suffix", "rewrite", "rollout", "rollout"]
    live = np.ones(tokens_BKR.shape, bool)
    logp = -tokens_BKR.astype(float)
    return collect.Pool(tokens_BKR, live, live.all(-1), sources, [], logp)


def rows(B=2, T=5):
    tokens_BT = np.zeros((B, T + R), int)
    return {"tokens_BT": tokens_BT, "mask_BT": tokens_BT == 0, "fork_B": np.full(B, T)}


def test_the_best_is_preferred_over_the_worst_and_a_tie_is_no_pair():
    scores_BK = np.array([[0.1, 0.9, 0.5, 0.3], [0.4, 0.4, 0.4, 0.4]])
    branches, found, _ = collect.pick(policy(), rows(), pool(), scores_BK, np.ones((2, 4), bool))
    assert branches.tree.tokens_BCR[0, :, 0].tolist() == [1, 0]
    assert branches.valid_BC.tolist() == [[True, True], [False, False]]
    assert found["chosen/rewrite"] == (1, 1) and found["chosen/suffix"] == (0, 1)
    assert found["chosen/none"] == (1, 2)


def test_an_invalid_candidate_is_neither_best_nor_worst():
    scores_BK = np.array([[0.1, 0.9, 0.5, 0.3]])
    valid_BK = np.array([[False, False, True, True]])
    branches, *_ = collect.pick(policy(), rows(1), pool(1), scores_BK, valid_BK)
    assert branches.tree.tokens_BCR[0, :, 0].tolist() == [2, 3]


def test_a_fixed_choice_needs_no_scores_and_equal_texts_are_no_pair():
    asked, same = policy(chosen="rewrite", rejected="rollout"), pool()
    same.tokens_BKR[1, 2] = same.tokens_BKR[1, 1]
    zeros = np.zeros((2, 4))
    branches, *_ = collect.pick(asked, rows(), same, zeros, same.valid_BK)
    assert branches.tree.tokens_BCR[:, :, 0].tolist() == [[1, 2], [11, 11]]
    assert branches.valid_BC[:, 0].tolist() == [True, False]


def test_a_group_is_the_rollouts_with_centred_scores():
    scores_BK = np.array([[9.0, 9.0, 1.0, 0.0]])
    branches, *_ = collect.group(policy("dr_grpo"), rows(1), pool(1), scores_BK, pool(1).valid_BK)
    assert branches.tree.tokens_BCR[0, :, 0].tolist() == [2, 3]
    assert branches.advantage_BC.tolist() == [[0.5, -0.5]]
    assert branches.old_logp_BCR[0, :, 0].tolist() == [-2, -3]


def test_the_judge_is_shown_the_suffix_or_the_rewrite_where_there_is_one():
    texts = [[" said", " better", " roll"], [" kept", "", " roll"]]
    there = SimpleNamespace(texts=texts, sources=["suffix", "rewrite", "rollout"])
    shown = lambda which: collect.references(
        SimpleNamespace(reference=which), there, [" said", " kept"]
    )
    assert shown("suffix") == [" said", " kept"]
    assert shown("rewrite") == [" better", " kept"]


@pytest.mark.parametrize("rewrite", [True, False])
def test_a_judges_reference_is_checked(rewrite):
    config = importlib.import_module("microworld").get_config("debug")
    run = config.runs.sip_oracle
    run.candidates.rewrite = rewrite
    run.judge.reference = "nothing" if rewrite else "rewrite"
    with pytest.raises(UserError, match=r"reference.*(nothing|no rewrite)"):
        selfimprove.resolve(config, "sip_oracle")
    labels = config.runs.judge.task.labels
    labels.reference, labels.rewrites = run.judge.reference, rewrite
    with pytest.raises(UserError, match=r"labels\.reference"):
        recipe.STAGES["supervised"].resolve(config, "judge")


def test_too_many_invalid_verdicts_stop_the_run():
    asked, valid = np.ones((1, 4), bool), np.array([[True, True, False, False]])
    judges.check_invalid(asked, valid, 0.5, "max_invalid", {})
    valid[0, 1] = False
    with pytest.raises(UserError, match=r"75% of the verdicts are invalid \(max_invalid\)"):
        judges.check_invalid(asked, valid, 0.5, "max_invalid", {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(suffix=False, rollouts=((0, 0),)), "K = 0 leaves no candidate"),
        (dict(rollouts=((1, 4),)), "in order of steps"),
        (dict(rollouts=((0, 0),), chosen="rollout"), "'rollout' is not among the candidates"),
        (dict(rejected="rewrite"), "'rewrite' is not among the candidates"),
    ],
)
def test_a_pool_without_what_is_asked_of_it_is_rejected(changes, message):
    with pytest.raises(UserError, match=message):
        collect.CandidateConfig(**changes)


def words(seed, count=60):
    rng = random.Random(seed)
    nouns = "river stone light garden window letter mountain harbour".split()
    verbs = "holds finds leaves follows carries remembers".split()
    pick = lambda some: some[int(rng.random() * len(some))]
    return " ".join(
        f"the {pick(nouns)} {pick(verbs)} the {pick(nouns)}." for _ in range(count // 5)
    )


def text_config(path, **shape):
    config = tiny_recipe.shrink(importlib.import_module("text").get_config("debug"))
    config.data.path = str(path)
    config.tokenizer.vocab_size = 320
    return config


@pytest.mark.slow  # the same with another rule is below
def test_self_improvement_on_a_text_file_with_a_rule_for_a_judge(quick, tmp_path):
    file = tmp_path / "corpus.txt"
    file.write_text("\n\n".join(words(i) for i in range(200)))
    config = text_config(file)
    summary = train.train(config, str(tmp_path / "work"))
    assert set(summary["rows"]) == {"base", "dpo_suffix_rollouts"}
    assert all(math.isfinite(row["nll"]) for row in summary["rows"].values())
    (line,) = [x for x in lines(tmp_path / "work", "dpo_suffix_rollouts") if "loss/dpo" in x]
    assert line["judge/valid"] == 1 and {"reward/suffix", "reward/rollout"} <= set(line)


@pytest.mark.slow
def test_the_text_judge_can_be_any_script(finished, quick, tmp_path, monkeypatch):
    """With a judge that likes the letter e, the chosen text has the most of them."""
    monkeypatch.setitem(scripted.RULES, "e", lambda text: text.count("e") / max(1, len(text)))
    file = tmp_path / "corpus.txt"
    file.write_text("\n\n".join(words(i) for i in range(200)))
    config = text_config(file)
    config.runs.dpo_suffix_rollouts.judge.rule = "e"
    seen = []
    pick = collect.pick
    keep = lambda p, rows, pool, scores, valid: seen.append((pool, scores, valid)) or pick(
        p, rows, pool, scores, valid)  # fmt: skip
    monkeypatch.setattr(collect, "pick", keep)
    train.train(config, str(tmp_path / "work"))
    for pool_, scores_BK, valid_BK in seen:
        share = [[t.count("e") / max(1, len(t)) for t in texts] for texts in pool_.texts]
        best = np.where(valid_BK, share, -1).argmax(1)
        assert np.where(valid_BK, scores_BK, -1).argmax(1).tolist() == best.tolist()


@pytest.mark.slow  # test_losses has the loss
def test_the_first_dpo_loss_is_ln_2_and_the_pool_grows_by_its_schedule(finished, quick, tmp_path):
    name = "dpo_suffix_rollouts"
    config = tiny_recipe.get_config(f"{name},truth")
    run = config.runs[name]
    run.log.every_steps = 1
    run.candidates.rollouts = ((0, 0), (1, 2))
    run.candidates.rewrite = True
    selfimprove.train(Run(config, name, str(begun(finished, tmp_path, "base"))))
    first, second = [line for line in lines(tmp_path, name) if "loss/dpo" in line]
    assert first["loss/dpo"] == pytest.approx(math.log(2), abs=1e-6)
    assert "reward/rollout" not in first and "reward/rollout" in second


def six(name, arg="", **changes):
    config = tiny_recipe.get_config(arg)
    run = config.runs[name]
    run.steps, run.log.every_steps, run.checkpoint.every_steps = 6, 2, 100
    run.evals.every_steps, run.log.candidates_every = 3, 2
    for key, value in changes.items():
        run[key].update(value)
    return config


OWN = dict(backend="local", init_from="policy", min_mass=0.0)  # it has never seen a prompt
RESUMED = {
    "documents": ("standard", six("standard"), ("base",)),
    "verdicts": ("judge", six("judge"), ("base", "tutor")),
    "rewrites": ("rewriter", six("rewriter"), ("base", "tutor")),
    "rf_nll": ("sip_oracle", six("sip_oracle"), ("base",)),
    "dpo": ("dpo_ce", six("dpo_ce", "dpo_ce,truth"), ("base",)),
    "switched": (
        "sip_oracle",
        six("sip_oracle", objective=dict(ce_weight=1.0, ce_weight_last=1.0)),
        ("base",),
    ),
    "judged by its start": (
        "sip_oracle", six("sip_oracle", judge=dict(OWN, live=False)), ("base",)),
    "judged by itself": (
        "dpo_suffix_rollouts",
        six("dpo_suffix_rollouts", "dpo_suffix_rollouts,truth", judge=dict(OWN, live=True)),
        ("base",),
    ),
}  # fmt: skip


RESUMED["switched"][1].runs.sip_oracle.update(control="</s>", documents=4)


# Labelled batches are made by step as those of "documents" are, "rf_nll" is in the loop of "dpo";
# test_voting has frozen and live judges.
SLOW = ("documents", "switched", "verdicts", "rewrites", "rf_nll")
SLOW += ("judged by its start", "judged by itself")
KINDS = [pytest.param(k, marks=pytest.mark.slow) if k in SLOW else k for k in RESUMED]


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(
    kind, finished, quick, tmp_path, monkeypatch
):
    name, config, needs = RESUMED[kind]
    once, twice = (begun(finished, tmp_path / n, *needs) for n in ("once", "twice"))
    train = recipe.STAGES[config.runs[name].stage].train
    figures = train(Run(config, name, str(once)))
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(loop.Stopped, match=f"{name}: stopped after step 3 of 6"):
            train(Run(config, name, str(twice)))
    assert state(config, twice, name)[1] == 3
    assert train(Run(config, name, str(twice))) == figures
    assert lines(once, name) == lines(twice, name)
    check_texts(once / "runs" / name, twice / "runs" / name, config.runs[name])
    states = [state(config, workdir, name) for workdir in (once, twice)]
    assert [step for _, step in states] == [6, 6]
    for a, b in zip(*(jax.tree.leaves(s) for s, _ in states), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert (states[0][0].reference is not None) == ("dpo" in name)


def check_texts(once, twice, run):
    """Checks candidates.jsonl and samples.jsonl of a run and of one that was stopped."""
    for name in ("candidates.jsonl", "samples.jsonl"):
        ours, theirs = (path / name for path in (once, twice))
        assert ours.exists() == theirs.exists() == (name in written(run))
        assert not ours.exists() or ours.read_bytes() == theirs.read_bytes()
    found = candidate_log.read(once)
    if run.stage != "selfimprove":
        assert not found
        return
    assert list(dict.fromkeys(row["step"] for row in found)) == [1, 2, 4, 6]
    assert [row["row"] for row in found[:4]] == [0, 1, 2, 3]
    logged = {line["step"]: line for line in metrics.read(once) if "reward/rollout" in line}
    for row in found:  # a pair is the best and the worst of what the judge read
        scores = [c["score"] for c in row["candidates"] if c["valid"]]
        chosen = [c["score"] for c in row["candidates"] if c["chosen"]]
        assert chosen in ([], [max(scores)])
        rejected = [c["score"] for c in row["candidates"] if c["rejected"]]
        assert rejected in ([], [min(scores)]) and len(row["candidates"]) > 1
    assert logged  # of all rows of the batch


def written(run):
    task = run.task.name if run.stage == "supervised" else "documents"
    own = {"selfimprove": ["candidates.jsonl"], "supervised": []}[run.stage]
    return own + (["samples.jsonl"] if task == "documents" else [])


@pytest.mark.slow  # test_checkpoints saves donated arrays
def test_a_save_in_the_middle_of_a_run_is_not_changed_by_later_steps(finished, quick, tmp_path):
    """Saving is asynchronous while the update overwrites its buffers."""
    config = six("standard")
    config.runs.standard.checkpoint.update(every_steps=1, keep=6)
    once, short = (begun(finished, tmp_path / n, "base") for n in ("once", "short"))
    recipe.STAGES["supervised"].train(Run(config, "standard", str(once)))
    checkpoints = once / "runs" / "standard" / "checkpoints"
    for step in (4, 5, 6):
        shutil.rmtree(checkpoints / str(step))
    again = shutil.copytree(once / "runs" / "standard", short / "runs" / "standard")
    (again / "metrics.jsonl").write_text("")
    recipe.STAGES["supervised"].train(Run(config, "standard", str(short)))
    recipe.STAGES["supervised"].train(Run(config, "standard", str(once)))
    a, b = (jax.tree.leaves(state(config, w, "standard")[0]) for w in (once, short))
    assert all((np.asarray(x) == np.asarray(y)).all() for x, y in zip(a, b, strict=True))


def test_a_signal_after_the_last_update_stops_before_the_evaluation(
    finished, quick, tmp_path, monkeypatch
):
    config = tiny_recipe.get_config()
    workdir = begun(finished, tmp_path, "base")
    with monkeypatch.context() as patch:
        stop_after(patch, 2, of=loop.Profiler, method="step")  # the last save is over
        with pytest.raises(loop.Stopped, match="stopped before its evaluation"):
            recipe.STAGES["supervised"].train(Run(config, "standard", str(workdir)))
    assert not (workdir / "runs/standard/eval.json").exists()
    found = recipe.STAGES["supervised"].train(Run(config, "standard", str(workdir)))
    assert found == json.loads((workdir / "runs/standard/eval.json").read_text())


@pytest.mark.slow  # the profiler is jax's
def test_a_trace_is_written_where_one_is_asked_for(finished, quick, tmp_path):
    config = six("standard")
    workdir = begun(finished, tmp_path, "base")
    recipe.STAGES["supervised"].train(
        Run(config, "standard", str(workdir)), str(tmp_path / "traces")
    )
    assert list((tmp_path / "traces").rglob("*.xplane.pb"))


def test_every_field_of_a_section_is_set_by_the_configs(finished):
    """No run depends on a default that the config file does not show."""
    config = tiny_recipe.get_config()
    run = sections.plain(config.runs.sip_learned)
    for key, cls in (
        ("judge", judges.JudgeConfig),
        ("audit", audit.AuditConfig),
        ("candidates", collect.CandidateConfig),
        ("rewriter", rewriters.RewriterConfig),
    ):
        assert set(run[key]) == {f.name for f in dataclasses.fields(cls)}
    run = sections.plain(importlib.import_module("microworld_judge").get_config().runs.judge_rl)
    for section, cls in (
        (run["objective"], losses.PolicyConfig),
        (run["task"]["labels"], labelled.LabelConfig),
    ):
        assert set(section) == {f.name for f in dataclasses.fields(cls)}
