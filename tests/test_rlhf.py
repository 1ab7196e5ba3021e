"""Tests policies that are rewarded for answers: reward models, judges, functions, KL, prompts."""

import contextlib
import dataclasses
import importlib
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny
from workdirs import lines

from sip.data import prompts as prompt_files
from sip.loading import LoadedModel
from sip.mesh import single
from sip.objectives import policy
from sip.padding import padded_tree
from sip.rewards import reward_model
from sip.run import Run
from sip.stages import rl
from sip.structs import UserError
from sip.tasks.rl import prompts
from sip.tasks.rl.prompts import Answers, Config
from sip.text.tokenizer import Byte
from sip.training import checkpoints, losses

pytest_plugins = ["tiny_fixtures"]
SCORED = dataclasses.replace(tiny.BYTES, scalar=True)


def test_an_answer_is_scored_at_its_end_in_any_batch():
    """Cut answers get EOS; a longer neighbour, padding or another batch change nothing."""
    model = LoadedModel(tiny.params(SCORED), SCORED, Byte(), single())
    asked = [[Byte.bos, 5], [Byte.bos, 6, 7]]
    answers = [[[8, Byte.eos], [8]], [[9, 9, 9], [9] * 70]]
    reward_BK, valid_BK = reward_model.RewardModel(model, batch=2).reward(asked, answers)
    assert valid_BK.tolist() == [[True, True], [True, False]] and reward_BK[1, 1] == 0
    np.testing.assert_allclose(reward_BK[0, 0], reward_BK[0, 1], atol=1e-6)
    # The other way round, with EOS as padding.
    shown = [[[9, 9, 9, Byte.eos]], [[8, Byte.eos]]]
    tree = padded_tree(asked[::-1], shown, Byte.eos, 16, 2, 16)
    want = reward_model.program(SCORED)(tiny.params(SCORED), tree)
    np.testing.assert_allclose(reward_BK[::-1, 0], want[:, 0], atol=1e-5)


class Other(Byte):
    """Bytes with other words."""

    def decode(self, ids):
        return super().decode([i ^ 1 for i in ids])

    def starts(self, token):
        return super().starts(token ^ 1)


def test_another_vocabulary_and_a_language_model_are_refused(of_bytes):
    scorer = of_bytes("scorer", SCORED)
    with pytest.raises(UserError, match=r"task.reward .*another vocabulary .*token 0 is '\\x00'"):
        reward_model.load(scorer, single(), Other(), "task.reward")
    narrow = SimpleNamespace(vocab_size=7)
    with pytest.raises(UserError, match="another vocabulary .*259 tokens, not 7"):
        reward_model.load(scorer, single(), narrow, "task.reward")
    with pytest.raises(UserError, match="is a language model, not a reward model"):
        reward_model.load(of_bytes("start"), single(), Byte(), "task.reward")


LEARNED = {  # settings of a reward model's run, the policy's template -> what is said
    "plain texts": (dict(labels=dict(source="base")), "turns", "plain texts, .* 'turns'; set"),
    "a template": (
        dict(pairs=dict(chat="turns")),
        "",
        "template 'turns', .* plain texts; set task",
    ),
    "another": (dict(pairs=dict(chat="turns")), "harmony", "task.pairs.chat=harmony"),
    "the same": (dict(answers=dict(chat="turns")), "turns", ""),
}


@pytest.mark.parametrize(("task", "policy", "said"), LEARNED.values(), ids=LEARNED)
def test_a_reward_model_of_another_template_is_refused(task, policy, said, of_bytes):
    scorer = of_bytes("scorer", SCORED)
    record = {"model": dataclasses.asdict(SCORED), "config": {"init_from": "", "task": task}}
    checkpoints.save_params(scorer, tiny.params(SCORED), record, step=1)
    refused = pytest.raises(UserError, match=f"task.reward .*scorer: was trained in .*{said}")
    with refused if said else contextlib.nullcontext():
        reward_model.load(scorer, single(), Byte(), "task.reward", policy)


def answers(cut=((False, False),)):
    one = prompt_files.Prompt([1], "p", "p")
    return Answers([one], [[[3], [4]]], [["a", "b"]], np.array(cut))


def part(values, valid=(True, True)):
    return prompts.Part(np.array([values], np.float32), np.array([valid]), {}, np.array([False]))


def test_rewards_are_logged_one_by_one_and_an_answer_skipped_by_one_is_masked(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "p"}\n')
    wanted = Config(name="prompts", reward="run", prompts=str(file), cut_penalty=0.5)
    parts = {"long": part([1.0, 2.0]), "kind": part([4.0, 0.0], (True, False))}
    reward_PBK, valid_BK, metrics = prompts._rewarded(parts, wanted, answers([[False, True]]), 8)
    assert reward_PBK.tolist() == [[[1, 2]], [[4, 0]], [[0, -1]]]
    assert valid_BK.tolist() == [[True, False]]
    assert metrics["reward/long"] == (3, 2) and metrics["reward/kind"] == (4, 1)
    assert metrics["reward/kind/skipped"] == (1, 2) and metrics["rl/cut"] == (1, 2)
    with pytest.raises(UserError, match=r"50% of a batch's answers .*max_invalid=0.1 .*kind 50%"):
        prompts._check_failed(parts, 0.1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(reward=""), "reward is empty"),
        (dict(reward=(("a", 1.0), ("b", 0.0))), "weight of 'b' must be positive"),
        (dict(reward=(("x/a", 1.0), ("y/a", 1.0))), "names in the log must differ, not a, a"),
        (dict(reward="judge"), "reward 'judge' and the section judge need each other"),
        (dict(reward="nowhere.py:f"), "nowhere.py: there is no such file"),
        (dict(reward="a*0.5,b*x"), r"reward 'b\*x': no number after \*, as in my.py:f\*0.5"),
        (dict(reward="a*0,b"), "weight of 'a' must be positive, not 0"),
        (dict(reward="a,"), "reward is empty"),
        (dict(reward="run", chat="own"), "chat, cut_penalty and mask_cut need"),
        (dict(reward="run", held_out=0), "held_out=0"),
    ],
)
def test_wrong_settings_are_named(values, message):
    with pytest.raises(UserError, match=message):
        Config(name="prompts", **values)


def test_several_rewards_are_named_in_one_word(tmp_path, monkeypatch):
    (tmp_path / "my.py").write_text("def f(answers): pass\ndef g(answers): pass")
    monkeypatch.chdir(tmp_path)
    named = lambda reward: Config(name="prompts", reward=reward)
    text = "my.py:f*0.5, my.py:g,runs/scorer*2e-1"
    pairs = (("my.py:f", 0.5), ("my.py:g", 1.0), ("runs/scorer", 0.2))
    assert named(text) == named(pairs) and named(text).rewards == pairs
    assert named("my.py:f").rewards == (("my.py:f", 1.0),)
    assert named("my.py:f*3").rewards == (("my.py:f", 3.0),)
    assert named(text).sources() == {"task.reward[2]": "runs/scorer"}
    (tmp_path / "a,b*2").mkdir()
    assert named("a,b*2").rewards == (("a,b*2", 1.0),), "a directory of this name"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(kl="both"), "kl='both'"),
        (dict(kl="reward"), "kl reward needs objective.beta > 0"),
        (dict(aggregate="normalise", advantage="rloo"), "normalise needs objective.advantage grpo"),
        (dict(aggregate="mean"), "aggregate='mean'"),
    ],
)
def test_wrong_objectives_are_named(values, message):
    with pytest.raises(UserError, match=message):
        losses.PolicyConfig(**values)


def write_prompts(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def test_lines_without_a_prompt_are_counted(tmp_path):
    rows = [dict(prompt=f"p{i}", id=i) for i in range(40)]
    rows += [dict(text="p"), dict(prompt=" "), dict(prompt=3), dict(prompt="long" * 20), [1]]
    path = write_prompts(tmp_path / "p.jsonl", rows)
    read = lambda most: prompt_files.read(
        path, prompt_files.plain(Byte()), max_len=20, max_skipped_fraction=most
    )
    parts, left_out = read(0.2)
    assert sum(left_out.values()) == 5 and len(left_out) == 5
    assert sum(map(len, parts.values())) == 40 and all(parts.values())
    first = parts["train"][0]
    assert first.ids == [Byte.bos, *first.text.encode()] and first.fields == {
        "id": int(first.text[1:])
    }
    with pytest.raises(UserError, match="p.jsonl:41: 5 of 45 prompts cannot be used"):
        read(0.05)
    rows = [dict(question="q", id=1)] * 3 + [dict(prompt="\ud83d")]
    write_prompts(tmp_path / "p.jsonl", rows)
    said = r"p.jsonl:1: 4 of 4 .*3 without a field 'prompt' \(fields seen: 'question', 'id'\), "
    said += r"1 not UTF-8; rename the fields, for example with jq -c '{prompt: .QUESTION}'"
    with pytest.raises(UserError, match=said):
        read(1.0)
    (tmp_path / "p.jsonl").write_text(json.dumps([dict(prompt="p")]))
    with pytest.raises(UserError, match="an array, not JSON Lines; .* jq -c '.\\[\\]'"):
        read(1.0)


def of_files(start, tmp_path, rows, **task):
    """Returns configs/rlhf.py:CHECKPOINT,debug for a file of prompts."""
    config = importlib.import_module("rlhf").get_config(f"{start},debug")
    run = config.runs.rlhf
    run.task.prompts = write_prompts(tmp_path / "prompts.jsonl", rows)
    run.log.update(every_steps=1, tensorboard=False, progress=False)
    run.evals.update(every_steps=2, batch=4)
    run.task.update(held_out=4, **task)
    return config


ROWS = [dict(prompt=f"p{i}", want=i) for i in range(40)]


@pytest.mark.slow  # the fast suite has its parts: task, rewards, KL, advantages
def test_a_reward_model_and_a_function_train_a_policy_with_the_kl_in_the_reward(
    of_bytes, quick, tmp_path, capsys
):
    scorer = of_bytes("scorer", SCORED)
    (tmp_path / "mine.py").write_text(
        "def brief(prompts, answers, want):\n    return [len(a) + 0.01 * w for a, w in "
        "zip(answers, want)]\n"
    )
    config = of_files(of_bytes("start"), tmp_path, ROWS, cut_penalty=1.0)
    run = config.runs.rlhf
    with run.unlocked(), run.task.ignore_type():
        run.task.reward = ((scorer, 1.0), (f"{tmp_path}/mine.py:brief", 0.5))
    figures = rl.train(Run(config, "rlhf", str(tmp_path / "work")))
    assert {"reward", "reward/scorer", "reward/brief", "cut"} <= set(figures)
    first, *_, last = lines(tmp_path / "work", "rlhf")
    assert first["rl/kl"] == pytest.approx(0, abs=1e-5), "the policy is the reference"
    assert "reward/scorer" in first and first["reward/brief"] > 0 and "eval/reward" in last
    total = first["reward/scorer"] + 0.5 * first["reward/brief"] - first["rl/cut"]
    assert first["reward/all"] == pytest.approx(total, abs=1e-5)
    assert "rlhf: prompts: " in capsys.readouterr().err


def test_the_kl_in_the_reward_lowers_an_answers_reward_by_beta_times_its_log_ratio(monkeypatch):
    """Worked out from plain forward passes of policy and reference."""
    cfg = tiny.model()
    tree = jax.tree.map(np.asarray, tiny.tree(B=2, C=3, R=3))
    c = SimpleNamespace(model=cfg)
    both = [np.asarray(tiny.forward(tiny.params(seed=s), cfg, tree)[3]) for s in (0, 1)]
    kl_BK = rl._kl(c, single(), tiny.params(seed=1), tree, both[0])
    want = ((both[0] - both[1]) * tree.mask_BCR).sum(-1)
    np.testing.assert_allclose(kl_BK, want, atol=1e-4)
    assert np.abs(want).max() > 0.1
    parts = np.stack([np.ones((2, 3)), -kl_BK]).astype(np.float32)
    valid = np.ones((2, 3), bool)
    got = policy.combined_advantages(parts, (1.0, 0.5), valid, "rloo", "sum")
    r = -0.5 * want
    others = (r.sum(-1, keepdims=True) - r) / 2
    np.testing.assert_allclose(got, r - others, atol=1e-4)


def test_a_checkpoint_with_rlaif_has_a_section_for_the_judge(of_bytes, tmp_path):
    start = of_bytes("start")
    config = importlib.import_module("rlhf").get_config(f"{start},rlaif,debug").lock()
    task = config.runs.rlhf.task
    task.prompts = write_prompts(tmp_path / "prompts.jsonl", ROWS)
    task.judge.init_from = "somewhere"
    assert rl.resolve(config, "rlhf").sources()["task.judge.init_from"] == "somewhere"
    task.judge.backend, task.judge.http.url = "http", "http://127.0.0.1:8000/v1"
    task.judge.http.model = "any"
    found = rl.resolve(config, "rlhf")
    assert found.task.rewards == (("judge", 1.0),) and list(found.judges()) == ["task.judge"]


def test_a_judge_takes_the_place_of_a_reward_model(of_bytes, quick, tmp_path):
    common = importlib.import_module("_common")
    config = of_files(of_bytes("start"), tmp_path, ROWS, reward="judge")
    judge = common.judge("rule", rule="distinct_words", weights=(("quality", 1.0),))
    with config.runs.rlhf.unlocked():
        config.runs.rlhf.task.judge = judge
    run = Run(config, "rlhf", str(tmp_path / "work"))
    c = rl.resolve(config, "rlhf")
    task = prompts.build(run, c, single())
    asked = task.prompts(0)
    ids = [[[*b"a b c", Byte.eos], [*b"a a a", Byte.eos]] for _ in asked]
    reward_PBK, valid_BK, metrics = task.reward(0, ids)
    assert valid_BK.all() and (reward_PBK[0, :, 0] > reward_PBK[0, :, 1]).all()
    assert metrics["reward/judge"][1] == valid_BK.size
