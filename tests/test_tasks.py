"""Tests policy-gradient tasks: prompts, rewards, and the examples that are trained on."""

import dataclasses
import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import tiny

from sip import mesh as meshes
from sip import metrics
from sip.judge import prompts
from sip.judge.labels import file as label_file
from sip.stages import rl
from sip.tasks import labelled
from sip.tasks.rl import task as rl_tasks
from sip.tasks.rl import verdicts
from sip.text.tokenizer import Byte

CFG = tiny.model(vocab_size=259, max_len=1024)


def write_labels(path, count=60):
    """Writes pairs whose first text is better in one of three, and texts that are all unsafe."""
    with open(path, "w") as file:
        for i in range(count):
            better = "Option 1" if i % 3 else "Option 2"
            pair = dict(aspect="reasoned_quality", candidates=[f"a{i}", f"b{i}"], label=better)
            text = dict(aspect="reasoned_safety", candidates=[f"t{i}"], label="NO")
            for line in (pair, text):
                file.write(json.dumps({**line, "prefix": f"p{i}"}) + "\n")
    return str(path)


def task(tmp_path, both_orders=False):
    aspects = [prompts.load(a) for a in ("reasoned_quality", "reasoned_safety")]
    path = write_labels(tmp_path / "labels.jsonl")
    read = label_file.read(path, aspects, Byte(), max_len=1000)
    made = labelled.Labelled(read["train"], {s: read[s] for s in labelled.HELD_OUT})
    run = SimpleNamespace(tokenizer=Byte(), seed=3, write_eval=dict)
    c = SimpleNamespace(
        model=CFG, answer=4, answered=8, task=SimpleNamespace(both_orders=both_orders),
        evals=SimpleNamespace(batch=4),
    )  # fmt: skip
    return verdicts.questions(run, c, meshes.single(), made), read


def test_an_answer_ends_at_each_stop_of_the_tokenizer(tmp_path, monkeypatch):
    monkeypatch.setattr(Byte, "stops", (Byte.eos, 7, 9))
    asked, _ = task(tmp_path)
    assert asked.writer.stops == (Byte.eos, 7, 9)


def test_prompts_are_addressed_by_step_and_each_comes_once_an_epoch(tmp_path):
    asked, read = task(tmp_path)
    again, _ = task(tmp_path)
    assert asked.prompts(7) == again.prompts(7) != asked.prompts(8)
    pairs, points = (int(x.mask_NC.sum()) for x in read["train"].values())
    whole = pairs + points
    seen = [bytes(ids[1:]) for at in range(-(-whole // 4)) for ids in asked.prompts(at)]
    first, second = seen[:whole], seen[whole : 2 * whole]
    assert len(set(first)) == whole and set(first) == set(second) and first != second
    assert sum(b"\nOption 1:" in text for text in first) == pairs  # whatever its aspect


def test_pairs_of_both_orders_stand_side_by_side(tmp_path):
    asked, _ = task(tmp_path, both_orders=True)
    for at in range(5):
        texts = [Byte().decode(ids) for ids in asked.prompts(at)]
        pairs = [t for t in texts if "\nOption 1:" in t]
        assert pairs and len(pairs) % 2 == 0
        for one, other in zip(pairs[::2], pairs[1::2], strict=True):
            swap = lambda t: [t.split(f"\nOption {i}:")[1].split("\n")[0] for i in (1, 2)]
            assert swap(one) == swap(other)[::-1]


def test_rewards_belong_to_the_prompts_of_their_step(tmp_path):
    asked, read = task(tmp_path)
    labels = {}
    for x in read["train"].values():
        for (trunk, branches), row in zip(x.prompts, x.labels_NC, strict=True):
            for branch, label in zip(branches, row, strict=False):
                phrase = f"{x.aspect.verdict} {x.aspect.options[label]}"
                labels["".join(trunk) + "".join(branch)] = phrase
    for at in (0, 5, 11):
        right = [labels[Byte().decode(ids)] for ids in asked.prompts(at)]
        ended = lambda text: [*Byte().encode(text), Byte.eos]
        answers = [[ended(text), Byte().encode(text), ended("?")] for text in right]
        reward_BK, valid_BK, found = asked.reward(at, answers)
        assert reward_BK.tolist() == [[1, 0, 0]] * 8 and valid_BK.all()
        cut = [found[name] for name in found if name.startswith("verdict/cut/")]
        assert sum(total for total, _ in cut) == 8 and sum(n for _, n in cut) == 24


def test_greedy_answers_are_those_of_one_prompt_at_a_time():
    writer = rl_tasks.AnswerWriter(CFG, meshes.single(), Byte(), 16, 5, (Byte.eos,))
    asked = [[256, *b"some prompt"], [256, *b"another"], [256, 65]]
    params = tiny.params(CFG)
    together = writer.greedy(params, asked, batch=2)
    assert together == [writer.greedy(params, [ids], batch=2)[0] for ids in asked]
    assert len(set(together)) == 3
    for width in (32, 0):
        other = dataclasses.replace(writer, width=width)
        assert other.greedy(params, asked, batch=3) == together


def test_reasoned_aspects_are_graded_by_what_is_written(tmp_path, monkeypatch):
    asked, read = task(tmp_path)
    monkeypatch.setattr(rl_tasks.AnswerWriter, "greedy", lambda self, params, ids, **kwargs: [
        "FINAL DECISION: NO" if b"\nText:t" in bytes(i[1:]) else "Conclusion: Option 1" for i in ids
    ])  # fmt: skip
    found = asked.finish(None)
    assert found["reasoned_safety_accuracy"] == 1.0 and found["reasoned_quality_accuracy"] == 0.5
    assert found["reasoned_quality/Option 1_accuracy"] == 1
    assert found["reasoned_quality/Option 2_accuracy"] == 0


def test_groups_that_teach_are_learned_from_first():
    advantage_BK = np.array([[0, 0], [1, -1], [0, 0], [-1, 1], [2, -2], [0, 0]], float)
    every_BK = np.ones((6, 2), bool)
    assert rl.learned_rows(advantage_BK, every_BK, 2).tolist() == [1, 3]
    assert rl.learned_rows(advantage_BK, every_BK, 4).tolist() == [0, 1, 3, 4]
    assert rl.learned_rows(advantage_BK, every_BK, 6).tolist() == [0, 1, 2, 3, 4, 5]
    masked_BK = every_BK.copy()
    masked_BK[[0, 2]] = False  # as a vote without a majority: after groups of equal rewards
    assert rl.learned_rows(advantage_BK, masked_BK, 4).tolist() == [1, 3, 4, 5]
    assert rl.learned_rows(advantage_BK, masked_BK, 5).tolist() == [0, 1, 3, 4, 5]


def test_what_is_learned_from_is_the_telling_part_of_all_answers(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "configs")
    reward_BK = np.array([[1, 1], [1, 0], [0, 0], [0, 1], [0, 1], [1, 1], [0, 0], [1, 0]])
    reward = lambda at, answers: (reward_BK.astype(np.float32), np.ones((8, 2), bool), {})
    asked = dataclasses.replace(task(tmp_path)[0], reward=reward)
    run = rl.resolve(importlib.import_module("microworld_judge").get_config("debug"), "judge_rl")
    whole, part = (dataclasses.replace(run, batch=8 // n, oversample=n, rollouts=2) for n in (1, 2))
    (every, all_figures, _), (some, figures, _) = (
        rl.collect(c, asked, tiny.params(CFG), 3, 0) for c in (whole, part)
    )
    for a, b in zip(jax.tree.leaves(every), jax.tree.leaves(some), strict=True):
        np.testing.assert_array_equal(a[[1, 3, 4, 7]], b)
    ours = {x for x in metrics.ALIASES.values() if x.startswith(("rl/", "reward/"))}
    assert ours - {"rl/cut"} <= set(figures)
    assert all_figures["rl/flat_learned"] == (4, 8) and figures["rl/flat_learned"] == (0, 4)
    changed = {key for key in figures if figures[key] != all_figures[key]}
    assert changed == {"rl/flat_learned", "rl/masked_learned"}  # of as many as are learned


def test_the_kl_in_the_reward_makes_no_group_differ(tmp_path, monkeypatch):
    """Equal rewards are flat for the gate, the figures and the choice of groups."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "configs")
    reward_BK = np.ones((8, 2), np.float32)
    reward = lambda at, answers: (reward_BK, np.ones((8, 2), bool), {})
    asked = dataclasses.replace(task(tmp_path)[0], reward=reward)
    run = rl.resolve(importlib.import_module("microworld_judge").get_config("debug"), "judge_rl")
    c = dataclasses.replace(
        run, model=CFG, batch=4, oversample=2, rollouts=2,
        objective=dataclasses.replace(run.objective, kl="reward", beta=0.5),
        gate=rl.GateConfig(prompts=8, mixed=0.0),
    )  # fmt: skip
    params, reference = tiny.params(CFG), tiny.params(CFG, seed=1)
    branches, figures, seen = rl.collect(c, asked, params, 3, 0, reference=reference)
    assert np.ptp(seen.parts["kl"]) > 0 and branches.advantage_BC.any(), "the KL is learned from"
    assert figures["rl/flat_groups"] == (8, 8) and figures["rl/flat_learned"] == (4, 4)
    np.testing.assert_array_equal(branches.advantage_BC, seen.advantage_BK[:4])
    said = SimpleNamespace(name="judge_rl", seed=0, say=lambda line: None)
    assert rl.measure(said, c, asked, params)["gate/mixed"] == 0
    reward_BK[5, 1] = 0
    branches, figures, seen = rl.collect(c, asked, params, 3, 0, reference=reference)
    assert figures["rl/flat_groups"] == (7, 8) and figures["rl/flat_learned"] == (3, 4)
    np.testing.assert_array_equal(branches.advantage_BC, seen.advantage_BK[[0, 1, 2, 5]])
