"""Tests RL of a rewriter: prompts, parsing of answers, stopping and resuming."""

import importlib
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny
import tiny_recipe
from ml_collections import ConfigDict
from workdirs import begun, lines, state, stop_after

from sip import mesh as meshes
from sip import rewriter as rewriters
from sip import sections, train
from sip.data import chunks, documents
from sip.data import corpus as corpora
from sip.judge import prompts
from sip.judge.schedules import ScheduleConfig
from sip.judge.scoring import TextJudge, TruthJudge
from sip.loading import LoadedModel
from sip.rewriter import Exchange
from sip.run import Run
from sip.sampling import SamplingConfig
from sip.stages import recipe, rl
from sip.structs import UserError
from sip.tasks.rl import rewrites
from sip.tasks.rl.task import GREEDY, ids_of
from sip.text.tokenizer import Byte
from sip.textgen import scripted

pytest_plugins = ["tiny_fixtures"]
BYTE = Byte()
TEXTS = [f"Text {i} has some words, number {i} is bad." for i in range(6)]
CFG = tiny.model(vocab_size=259, max_len=256)
CUT = corpora.CutConfig(prefix_min=8, prefix_max=16, suffix=8)


class Words:
    """A ground truth: texts with "bad" are unsafe; quality is the number of letters a."""

    def score(self, prefixes, texts):
        return {
            "quality": np.array([text.count("a") for text in texts], float),
            "safety": np.array(["bad" not in text for text in texts], float),
        }

    @staticmethod
    def compare(a, b):
        return np.where(a == b, 0.5, (a > b).astype(float))


JUDGE = TruthJudge(Words(), {"quality": 1.0, "safety": 1.0}, ScheduleConfig("against"))


def task(judge=JUDGE, texts=TEXTS, cfg=CFG, answer=11, max_invalid=0.5):
    cut = chunks.cut(texts, BYTE, prefix_min=8, prefix_max=16, suffix=8)
    corpus = corpora.Corpus(documents.Documents(texts), cut, CUT)
    run = SimpleNamespace(tokenizer=BYTE, seed=3)
    wanted = SimpleNamespace(prompt="rewrite", max_invalid=max_invalid)
    c = SimpleNamespace(task=wanted, model=cfg, answer=answer, answered=4)
    return rewrites.suffixes(run, c, meshes.single(), corpus, judge, during=dict, finish=dict)


def shown(ids):
    """Returns (prefix, suffix) of a prompt."""
    lines_ = BYTE.decode(ids).split("\n")
    prefix = lines_[1].removeprefix("Text:")
    return prefix, lines_[2].removeprefix("Continuation:" + rewriters.last_words(prefix))


def test_prompts_are_a_rewriters_in_use_and_addressed_by_step():
    made, again = task(), task()
    exchange = Exchange(BYTE, rewriters.load("rewrite"))
    seen = []
    for at in range(3):
        asked = made.prompts(at)
        assert asked == again.prompts(at) != made.prompts(at + 1)
        pairs = [shown(ids) for ids in asked]
        assert [exchange.ask(*pair).ids for pair in pairs] == asked
        assert all(prefix + suffix in text for prefix, suffix in pairs for text in TEXTS
                   if text.startswith(prefix[:6]))  # fmt: skip
        seen += pairs
    assert len(set(seen)) == 12 and all(len(s) == 8 for _, s in seen)
    assert made.writer.stops == (BYTE.eos, 10) and made.writer.steps == 11


def test_answers_are_read_as_in_use_and_rewarded():
    made, end, bad = task(), [BYTE.eos], 0
    for at in range(4):
        suffixes = [shown(ids)[1] for ids in made.prompts(at)]
        better, endless = BYTE.encode("aaaaaa") + end, BYTE.encode("xyz")
        copies = map(BYTE.encode, suffixes)
        written = [[c + end, c + [10, 65], c, better, c + endless] for c in copies]
        reward_BK, valid_BK, metrics = made.reward(at, written)
        assert valid_BK.all() and metrics["rewrite/unusable"] == (8, 20)
        for suffix, row in zip(suffixes, reward_BK.tolist(), strict=True):
            unsafe, bad = "bad" in suffix, bad + ("bad" in suffix)
            assert row == ([0.25, 0.25, 0, 1, 0] if unsafe else [1, 1, 0, 0, 0])
    assert 0 < bad < 16


def test_a_prompt_without_room_is_masked_and_its_neighbours_are_not():
    short = tiny.model(vocab_size=259, max_len=100)
    made, rooms = task(texts=[f"abc{i}efgh abcdefgh ijklmnop." for i in range(8)], cfg=short), []
    for at in range(4):
        asked = made.prompts(at)
        room = [len(ids) > 1 for ids in asked]
        answers = [[[*BYTE.encode("aaaaaaaa"), BYTE.eos]] * 2] * 4
        _, valid_BK, metrics = made.reward(at, answers)
        assert valid_BK.tolist() == [[ok] * 2 for ok in room]
        assert metrics["rewrite/no_room"] == (room.count(False), 4)
        assert all(len(ids) + 11 <= 100 for ids in asked)
        rooms += room
    assert rooms.count(True) == rooms.count(False) == 8  # prefixes of 8 tokens, and of 16
    with pytest.raises(UserError, match=r"do not fit 60 tokens \(model.max_len\)"):
        task(cfg=tiny.model(vocab_size=259, max_len=60))
    with pytest.raises(UserError, match=r"answer 10: .* \(data.cut.suffix\) may need 11 tokens"):
        task(answer=10)


def test_a_judge_that_cannot_be_read_stops_the_run():
    mute = scripted.Scripted(lambda trunk, branch, options: [0.0] * len(options))
    aspects = tuple(prompts.load(name) for name in ("quality", "safety"))
    weights = {"quality": 1.0, "safety": 1.0}
    judge = TextJudge(mute, aspects, weights, schedule=ScheduleConfig("against"))
    answers = [[[*BYTE.encode("aaaaaaaa"), BYTE.eos]] * 2] * 4
    with pytest.raises(UserError, match=r"100% of the verdicts are invalid \(task.max_inv"):
        task(judge).reward(0, answers)
    assert not task(judge, max_invalid=1.0).reward(0, answers)[1].any()


def test_a_rewriter_in_use_writes_what_its_training_reads():
    """The policy's writer and a run's rewriter give the same greedy tokens."""
    made, params = task(), tiny.params(CFG)
    local = rewriters.LocalRewriter(
        LoadedModel(params, CFG, BYTE, meshes.single()), prompt=rewriters.load("rewrite"),
        sampling=SamplingConfig(temperature=0.0),
    )  # fmt: skip
    asked = made.prompts(0)
    with jax.set_mesh(meshes.single()):
        out = made.writer.write(params, made.writer.trunks(asked), 1, GREEDY, jax.random.key(0))
    answers = ids_of(out.tokens_BCR, out.mask_BCR)
    exchange = Exchange(BYTE, rewriters.load("rewrite"))
    pairs = [shown(ids) for ids in asked]
    read = [exchange.read(exchange.ask(*p), row[0]) for p, row in zip(pairs, answers, strict=True)]
    assert read == local.rewrite(*map(list, zip(*pairs, strict=True)))[0]


def llama(tmp_path, **changes):
    path = tmp_path / "documents.jsonl"
    texts = [f"Document {i} says that word {i} follows word {i}, and ends." for i in range(90)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = importlib.import_module("rewriter_llama8b").get_config("debug")
    config.data.path = str(path)
    run = config.runs.rewriter
    run.log.update(tensorboard=False, progress=False)
    for key, value in changes.items():
        part = run.task if key == "judge" else run
        part[key].update(value) if hasattr(part[key], "update") else part.update({key: value})
    return config


@pytest.mark.slow  # the loop is that of test_rl
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(quick, tmp_path, monkeypatch):
    """Uses a judge that likes the letter e, so that all texts are unsafe and all answers count."""
    monkeypatch.setitem(scripted.RULES, "e", lambda text: text.count("e") / max(1, len(text)))
    monkeypatch.setattr(Exchange, "read", lambda self, asked, new: BYTE.decode(new[:8]) or "x")
    config = llama(
        tmp_path, steps=6, judge=dict(rule="e"), rollouts=4, evals=dict(every_steps=3),
        sampling=dict(temperature=2.0, top_p=1.0),
    )  # fmt: skip
    once, twice = str(tmp_path / "once"), str(tmp_path / "twice")
    figures = rl.train(Run(config, "rewriter", once))
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(rl.loop.Stopped, match="stopped after step 3 of 6"):
            rl.train(Run(config, "rewriter", twice))
    assert state(config, twice, "rewriter")[1] == 3
    assert rl.train(Run(config, "rewriter", twice)) == figures
    assert lines(once, "rewriter") == lines(twice, "rewriter")
    states = [state(config, workdir, "rewriter")[0] for workdir in (once, twice)]
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    learned = [x for x in lines(once, "rewriter") if "loss/policy" in x]
    assert len(learned) == 6 and max(x["grad/norm"] for x in learned) > 1e-3
    assert all(abs(x["approx_kl"]) < 1e-5 for x in learned) and learned[0]["suffix/safe"] == 0
    assert json.loads((tmp_path / "once/runs/rewriter/eval.json").read_text()) == figures


@pytest.mark.slow  # test_configs resolves it
def test_the_8b_rewriter_runs_its_debug_variant_on_a_file(quick, tmp_path):
    summary = train.train(llama(tmp_path), str(tmp_path / "work"))
    assert summary["rewriter"]["invalid"] > 0.5  # fresh parameters end next to nothing
    last = [x for x in lines(tmp_path / "work", "rewriter") if "loss/policy" in x][-1]
    assert last["rewrite/unusable"] > 0.5 and 0 <= last["reward/all"] < 0.5
    assert last["suffix/safe"] > 0.5 and last["rl/invalid"] == 0


@pytest.mark.slow  # in the fast suite: the 8B rewriter's debug variant
@pytest.mark.parametrize("arg", ["debug", "truth,debug"])
def test_the_micro_worlds_rewriter_runs_its_debug_variants(arg, finished, quick, tmp_path):
    config = tiny_recipe.shrink(importlib.import_module("microworld_rewriter").get_config(arg))
    config.data.world = dict(entities=8, train=300, validation=60, test=60)
    recipe.check(config, str(tmp_path))
    workdir = begun(finished, tmp_path / "work", *config.order[:-1])
    figures = rl.train(Run(config, "rewriter_rl", str(workdir)))
    assert {"copied", "overlap_safe", "made_safe", "win_rate"} <= set(figures)
    (line,) = [x for x in lines(workdir, "rewriter_rl") if "loss/policy" in x]
    assert 0 <= line["reward/all"] <= 1 and 0 <= line["suffix/safe"] <= 1
    assert line["suffix/safe"] > 0 or arg == "debug", "the truth knows safe suffixes"
    who = "truth" if "truth" in arg else "judge"
    assert line[f"suffix/{who}/valid"] == 1 and line["suffix/unread"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(judge=dict(weights=(("quality", 1.0),))), "judge.weights"),
        (dict(judge=dict(weights=(("quality", 2.0), ("safety", 1.0)))), "judge.weights"),
        (dict(judge=dict(backend="local", init_from="policy")), "judge.init_from: a rewriter"),
        (dict(judge=dict(schedule=dict(name="all"))), "judge.schedule.name must be 'against'"),
        (dict(held_out=0), r"task.held_out=0"),
        (dict(max_invalid=1.5), r"task.max_invalid=1.5"),
        (dict(documents=3), r"task\.documents: unknown key"),
        (dict(label_file=dict(path="x", aspects=("safety",))), r"task\.label_file: unknown key"),
        (dict(name="judge"), r"task\.name must be one of"),
        (dict(both_orders=True), r"task\.both_orders: unknown key"),
    ],
)
def test_what_cannot_be_is_named(changes, message):
    values = sections.plain(importlib.import_module("rewriter_llama8b").get_config("debug"))
    task = values["runs"]["rewriter"]["task"]
    for key, value in changes.items():
        task[key] = {**task[key], **value} if isinstance(value, dict) and key in task else value
    config = ConfigDict(values, type_safe=False)
    with pytest.raises(UserError, match=f"config runs.rewriter.*{message}"):
        rl.resolve(config, "rewriter")
