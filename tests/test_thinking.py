"""Tests thinking mid-training: answers, rewards, the loss on sampled tokens, the probe, SFT."""

import dataclasses
import importlib
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_recipe
from workdirs import call, lines, state, stop_after

from sip import evaluate
from sip import workdir as workdirs
from sip.data import packing, thoughts
from sip.data.corpus import CutConfig
from sip.data.thoughts import Fork
from sip.evals import thoughts as evals
from sip.evals.thoughts import ProbeConfig
from sip.judge.build import JudgeConfig
from sip.mesh import single
from sip.objectives import policy
from sip.rewards import information_gain, suffix_match
from sip.rewards.suffix_match import MatchConfig
from sip.run import Run
from sip.sampling import SamplingConfig
from sip.sections import plain
from sip.stages import recipe as recipes
from sip.stages import rl, supervised
from sip.structs import Rollouts, TrainState, UserError
from sip.tasks import thoughts as shared
from sip.tasks.rl import task as rl_task
from sip.tasks.rl import thinking
from sip.tasks.supervised import thoughts as sft
from sip.tasks.thoughts import Answer, Thinking, ThoughtsConfig
from sip.text.tokenizer import Byte
from sip.training import loop, losses, step

pytest_plugins = ["tiny_fixtures"]
OPEN, CLOSE = 1, 2
TAGS = ("\x01", "\x02")


def think(*, suffix=2) -> Thinking:
    wanted, cut = ThoughtsConfig(tags=TAGS, tokens=3), CutConfig(2, 6, 2)
    tags, how = (OPEN, CLOSE), SamplingConfig()
    return Thinking(tiny.BYTES, single(), Byte(), wanted, cut, how, tags, suffix)


EOS = Byte.eos
# sampled tokens -> tokens that count (3 of a thought, 2 of a continuation), thought, continuation
ANSWERS = {
    "whole": ([7, 8, CLOSE, 9, 9, 9], 5, [7, 8], [9, 9]),
    "empty thought": ([CLOSE, 9, 8, 7, 7, 7], 3, [], [9, 8]),
    "closed at the last moment": ([7, 7, 7, CLOSE, 9, 8], 6, [7, 7, 7], [9, 8]),
    "closed too late": ([7, 7, 7, 7, CLOSE, 9], 4, [7, 7, 7], None),
    "never closed": ([7] * 6, 4, [7, 7, 7], None),
    "ends in the thought": ([7, EOS], 2, [7], None),
    "nested": ([7, OPEN], 2, [7], None),
    "ends in the continuation": ([7, CLOSE, 9, EOS], 4, [7], [9]),
    "thinks again": ([7, CLOSE, OPEN], 3, [7], []),
    "closes twice": ([7, CLOSE, CLOSE, 9, 9, 9], 4, [7], [CLOSE, 9]),
    "no tokens": ([EOS], 1, [], None),
}


@pytest.mark.parametrize(("ids", "length", "thought", "said"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_ends_after_its_continuation_or_where_it_is_not_closed(
    ids, length, thought, said
):
    t, pad = think(), [0] * (6 - len(ids))
    tokens_BCR, mask_BCR = (
        np.array([[ids + pad]]),
        np.array([[[True] * len(ids) + [False] * len(pad)]]),
    )
    real = np.zeros(tokens_BCR.shape, np.float32)
    out = shared.ended(Rollouts(tokens_BCR, mask_BCR, real, real), CLOSE, 3, 2)
    assert out.mask_BCR.sum() == length and out.mask_BCR[0, 0, :length].all()
    (((found,),),) = (t.answers(rl_task.ids_of(out.tokens_BCR, out.mask_BCR)),)
    assert found == Answer(thought, said)


FORKS = [Fork([Byte.bos, *b"ab"], [*b"cd"], [5]), Fork([*b"xyz"], [*b"cd"], [6])]


def test_the_reward_sees_the_continuation_alone_and_an_unclosed_thought_gets_none():
    cd, ce = [*b"cd"], [*b"ce"]
    answers = [
        [Answer([7], cd), Answer(cd, ce), Answer(cd, None)],
        [Answer([], cd), Answer([7], cd[:1]), Answer([7], [])],
    ]
    reward_BK, valid_BK, _ = shared.matched(think(), MatchConfig(exact=True), FORKS, answers)
    assert reward_BK.tolist() == [[1, 0, 0], [1, 0, 0]] and valid_BK.all()
    figures = thinking.figures(think(), FORKS, answers, reward_BK, valid_BK)
    assert figures["thought/unclosed"] == (1, 6) and figures["thought/empty"] == (1, 6)
    assert figures["thought/tokens"] == (7, 6) and figures["thought/tokens_wrong"] == (6, 4)


def test_thoughts_that_quote_the_target_are_counted():
    wanted = ThoughtsConfig(tags=TAGS, quote=thoughts.QuoteConfig(run=2, target=9))
    t = dataclasses.replace(think(), wanted=wanted)
    fork = Fork([*b"a b "], [*b"c d e"])
    answers = [[Answer([*b"so C, d"], None), Answer([*b"a b c"], []), Answer([], [])]]
    none = np.zeros((1, 3))
    assert thinking.figures(t, [fork], answers, none, none == 0)["thought/quotes"] == (1, 3)


@pytest.mark.parametrize(
    ("text", "suffix", "rule", "same"),
    [
        (" He has 3.", " he has 3!", MatchConfig(), True),
        (" He has 3.", " he has 3!", MatchConfig(exact=True), False),
        (" he has 3! And", " he has 3!", MatchConfig(exact=True), True),
        (" he has", " he has 3", MatchConfig(), False),
        (" he has 4", " he has 3", MatchConfig(words=2), True),
        (" he has 4", " he has 3", MatchConfig(words=3), False),
        (" he  has 4", " he has 3", MatchConfig(words=2, exact=True), False),
        (" he has 4", " he has 3", MatchConfig(words=2, exact=True), True),
        ("", " he", MatchConfig(), False),
        ("", "...", MatchConfig(), False),
        (" he", " he", MatchConfig(words=9), True),
    ],
)
def test_a_continuation_matches_by_its_first_words(text, suffix, rule, same):
    assert suffix_match.matches(text, suffix, rule) == same


def test_the_gain_of_a_thought_by_hand(monkeypatch):
    """log p_theta(suffix | thought) - log p_phi(suffix); advantage G / (G - 1) (r - mean)."""
    forks = [Fork([9, 9], [5, 6], []), Fork([9, 8], [7, 7], [])]
    told = [[[3], [3, 3], []], [[4], [4], [4, 4]]]
    logp = {"theta": [[-1.0, -3.0, -2.0], [-4.0, -4.0, -1.0]], "phi": [[-2.5], [-3.0]]}

    def of(cfg):
        def run(params, tree):
            found = np.full(tree.mask_BCR.shape, -100.0, np.float32)  # thoughts are not scored
            for b, row in enumerate(logp[params]):
                for c, total in enumerate(row):
                    end = int(tree.mask_BCR[b, c].sum())
                    found[b, c, end - 2 : end] = total / 2
                    branch = np.asarray(tree.tokens_BCR[b, c, :end]).tolist()
                    thought = [OPEN, *told[b][c], CLOSE] if params == "theta" else []
                    assert branch == [*thought, *forks[b].suffix]
                    assert np.asarray(tree.tokens_BT[b, :2]).tolist() == forks[b].prefix
            return found

        return run

    monkeypatch.setattr(losses, "branch_logprobs", of)
    how = dict(width=16, most=2, horizon=2, pad=0)
    gain_BK = information_gain.reward(
        tiny.BYTES, single(), "theta", "phi", forks, told, (OPEN, CLOSE), **how
    )
    assert gain_BK.tolist() == [[1.5, -0.5, 0.5], [-1.0, -1.0, 2.0]]
    got = policy.advantages(gain_BK, np.ones((2, 3), bool), "rloo")
    # means 0.5 and 0; G / (G - 1) = 3 / 2
    np.testing.assert_allclose(got, [[1.5, -1.5, 0.0], [-1.5, -1.5, 3.0]], atol=1e-6)


def plain_logp(params, cfg, ids, start):
    """Returns the log-probabilities of ids[start:], from one plain sequence."""
    padded = [ids + [-1] * (16 - len(ids))]  # one shape is compiled
    logp_BT = tiny.forward(params, cfg, tiny.trunk_only(padded))[2]
    return np.asarray(logp_BT)[0, start : len(ids)]


def test_the_gain_is_that_of_plain_sequences():
    cfg, (theta, phi) = tiny.CFG, (tiny.params(), tiny.params(seed=1))
    forks = [Fork([3, 4, 5], [6, 7, 8]), Fork([9, 9], [4, 4, 4])]
    told = [[[10, 11], []], [[12], [13, 14]]]
    how = dict(width=16, most=2, horizon=2, pad=0)
    got = information_gain.reward(cfg, single(), theta, phi, forks, told, (OPEN, CLOSE), **how)
    for b, fork in enumerate(forks):
        base = plain_logp(phi, cfg, [*fork.prefix, *fork.suffix[:2]], len(fork.prefix)).sum()
        for k, thought in enumerate(told[b]):
            before = [*fork.prefix, OPEN, *thought, CLOSE]
            own = plain_logp(theta, cfg, [*before, *fork.suffix[:2]], len(before)).sum()
            np.testing.assert_allclose(got[b, k], own - base, atol=1e-4)
    assert np.abs(got).max() > 0.05


def recipe(tmp_path, reward="match", **changes):
    """The smallest recipe of the task, on bytes of a text file."""
    common, rules = importlib.import_module("_common"), importlib.import_module("_rl")
    (tmp_path / "t.txt").write_text("\n\n".join(f"text {i} and more of it" for i in range(120)))
    config = importlib.import_module("text").get_config("debug")
    config.data.path = str(tmp_path / "t.txt")
    config.data.cut = dict(prefix_min=4, prefix_max=8, suffix=2)
    config.tokenizer.update(kind="byte", path="", vocab_size=259, prompts=(), symbols=())
    run = rules.thinking_run(
        reward=reward,
        thoughts=dict(tags=TAGS, tokens=3),
        suffix=2,
        probe=dict(prefixes=4, samples=2, generic="x"),
        model=dataclasses.asdict(tiny.BYTES),
        split="train",
        steps=2,
        batch=4,
        optim=common.adamw(1e-2, warmup_steps=0, weight_decay=0.0),
        rollouts=3,
        sampling=common.section(temperature=1.0, top_k=0, top_p=1.0),
        objective=rules.policy_gradient(advantage="dr_grpo", denominator="constant"),
        log_every=1,
        evals_every=2,
        evals_batch=4,
    )
    run.log.update(tensorboard=False, progress=False)
    for key, value in changes.items():
        run[key].update(value) if hasattr(run[key], "update") else run.update({key: value})
    config.runs, config.order = dict(think=run), ("think",)
    config.report = dict(rows=("think",), judge="", standard="")
    return config


@pytest.mark.slow  # a long compilation
def test_the_loss_is_that_of_the_sampled_tokens_in_plain_sequences(tmp_path):
    """Prompt and sampled tokens are read from the rollouts, and counted one by one."""
    config = recipe(tmp_path)
    run, c = Run(config, "think", str(tmp_path / "work")), rl.resolve(config, "think")
    task = thinking.build(run, c, single())
    params = closing(tiny.params(tiny.BYTES), task.prompts(0))
    task = dataclasses.replace(task, reward=lambda at, ids: rewarded(ids))
    with jax.set_mesh(single()):
        batch, found, _ = rl.collect(c, task, params, 0, 0)
    terms = losses.policy_terms(c.model, c.objective)
    grads, loss, _ = jax.jit(
        lambda p, b: step.gradient(terms, p, None, b, {"policy": 1.0}, 1)
    )(params, batch)  # fmt: skip

    writer, asked = task.writer, task.prompts(0)
    with jax.set_mesh(single()):
        key = jax.random.fold_in(jax.random.key(0), 0)
        out = writer.write(params, writer.trunks(asked), c.rollouts, c.sampling, key)
    sampled = rl_task.ids_of(out.tokens_BCR, out.mask_BCR)
    weight_NT, rows, counted = [], [], 0
    reward_BK, *_ = rewarded(sampled)
    for b, prompt in enumerate(asked):
        assert prompt[-1] == OPEN
        for k, ids in enumerate(sampled[b]):
            advantage = reward_BK[b, k] - reward_BK[b].mean()
            row = [*prompt, *ids]
            weight = [0.0] * len(prompt) + [advantage / (4 * 3 * c.answer)] * len(ids)
            rows.append(row + [-1] * (32 - len(row)))
            weight_NT.append(weight + [0.0] * (32 - len(row)))
            counted += len(ids)
    assert found["rl/answer_tokens"] == (counted, 12)
    closed = [CLOSE in ids for row in sampled for ids in row]
    assert 2 < sum(closed) < 11 and len({len(ids) for row in sampled for ids in row}) > 2
    weight_NT = jnp.asarray(weight_NT, jnp.float32)

    def objective(p):
        return -(tiny.forward(p, c.model, tiny.trunk_only(rows))[2] * weight_NT).sum()

    wanted = jax.jit(jax.grad(objective))(params)
    check = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
    jax.tree.map(check, grads, wanted)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(wanted)) > 1e-4


def closing(params, prompts):
    """Returns parameters that write the closing tag often."""
    hidden_BTD = tiny.forward(params, tiny.BYTES, tiny.trunk_only([prompts[0]]))[0]
    mean_D = hidden_BTD[0].mean(0)
    column_D = 3 * mean_D / jnp.linalg.norm(mean_D)
    return {**params, "unembed": params["unembed"].at[:, CLOSE].set(column_D)}


def rewarded(ids):
    """Rewards the first answer of each prompt."""
    reward_BK = np.zeros((len(ids), len(ids[0])), np.float32)
    reward_BK[:, 0] = 1
    return reward_BK, reward_BK >= 0, {}


def test_the_average_follows_the_parameters():
    two = lambda x: {"a": jnp.full(2, x), "b": jnp.full((), -x)}
    count = lambda: jnp.zeros((), jnp.int32)
    made = TrainState(count(), two(1.0), (), two(0.0), count(), count())
    follow = step.make_average(0.75)
    for wanted in (0.25, 0.4375):
        made = follow(made)
        np.testing.assert_allclose(made.reference["a"], wanted)
        np.testing.assert_allclose(made.reference["b"], -wanted)
    np.testing.assert_allclose(made.params["a"], 1.0)


WRONG = {
    "answer": (dict(answer=9), r"answer must be 6 \(thought and closing tag, and data.cut.suffix"),
    "judge": (dict(task=dict(reward="judge")), "reward 'judge' and the section judge"),
    "reward": (dict(task=dict(reward="poem")), "task.reward='poem'"),
    "tags": (dict(task=dict(thoughts=dict(tags=("a", "a")))), "thoughts.tags must be two"),
    "room": (dict(model=dict(max_len=14)), "these are 15 tokens, more than model.max_len 14"),
    "horizon": (dict(task=dict(horizon=3)), "task.horizon 3: must be at most data.cut.suffix 2"),
    "file": (dict(task=dict(thoughts=dict(annotated="no*.jsonl"))), "task.thoughts.annotated: no"),
    "split": (
        dict(split="test[:", task=dict(thoughts=dict(annotated="a.jsonl"))),
        "split 'test.:'",
    ),
    "truth": (
        dict(task=dict(thoughts=dict(annotated="truth"))),
        "annotated 'txt': needs a corpus with a rule that thinks",
    ),
    "decay": (dict(task=dict(decay=1.0)), "task.decay=1.0"),
}
RLP_WRONG = {
    "beta": (dict(objective=dict(beta=0.1)), "objective.beta must be 0 with task.reward rlp"),
    "answer": (dict(answer=6), r"answer must be 4 \(thought and closing tag\), not 6"),
    "dtype": (dict(model=dict(param_dtype="bfloat16")), "param_dtype must be float32"),
}


def changed(run, changes):
    for key, value in changes.items():
        if isinstance(value, dict):
            changed(run[key], value)
        else:
            run[key] = value


@pytest.mark.parametrize(
    ("reward", "changes", "message"),
    [*(("match", *x) for x in WRONG.values()), *(("rlp", *x) for x in RLP_WRONG.values())],
)
def test_what_cannot_be_is_named(reward, changes, message, tmp_path):
    config = recipe(tmp_path, reward)
    with config.unlocked():
        changed(config.runs.think, changes)
    with pytest.raises(UserError, match=message):
        recipes.check(config, str(tmp_path))


def test_without_tags_in_the_tokenizer_the_way_out_is_named(tmp_path):
    config = recipe(tmp_path, task=dict(thoughts=dict(tags=("<think>", "</think>"))))
    run = Run(config, "think", str(tmp_path / "work"))
    with pytest.raises(UserError, match=r"'<think>' is 7 tokens .* tokenizer.symbols"):
        thinking.build(run, rl.resolve(config, "think"), single())


def test_a_judge_says_if_continuations_match(tmp_path):
    """It sees those alone that exist; what it cannot say is masked, what is missing is 0."""
    seen = {}

    def score(prefixes, texts, references, mask_BK):
        seen.update(prefixes=prefixes, texts=texts, references=references, mask_BK=mask_BK)
        scores_BK = np.array([[0.9, 0.4, 0.9], [0.9, 0.9, 0.9]])
        valid_BK = mask_BK & np.array([[True] * 3, [False, True, True]])
        return SimpleNamespace(scores_BK=scores_BK, valid_BK=valid_BK, metrics={}, heard=())

    run = SimpleNamespace(workdir="", tokenizer=Byte(), seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared.judges, "build", lambda *_: SimpleNamespace(score=score))
        judging = shared.judge_of(run, think(), MatchConfig(), object(), 0, [])
    yes = Answer([7], [*b"cd"])
    answers = [[yes, yes, Answer([7], None)], [yes, Answer([7], [32]), yes]]
    reward_BK, valid_BK, _ = judging(FORKS, answers)
    assert seen["prefixes"] == ["ab", "xyz"] and seen["references"] == ["cd", "cd"]
    assert seen["texts"] == [["cd", "cd", ""], ["cd", " ", "cd"]]
    assert seen["mask_BK"].tolist() == [[True, True, False], [True, False, True]]
    assert reward_BK.tolist() == [[1, 0, 0], [0, 0, 1]]
    assert valid_BK.tolist() == [[True, True, True], [False, True, True]]


def test_judge_and_quotes_see_the_text_without_earlier_thoughts():
    wanted = ThoughtsConfig(tags=TAGS, quote=thoughts.QuoteConfig(run=2, target=9))
    t = dataclasses.replace(think(), wanted=wanted)
    fork = Fork([*b"a ", OPEN, *b"c d", CLOSE, *b"b "], [*b"c d"])
    assert t.before(fork) == "a b "
    assert t.quotes([fork], [[Answer([*b"c d"], None)]]).tolist() == [[True]]


def test_prefixes_have_the_thoughts_that_sft_has_learned(tmp_path):
    """Those of the control have none, at the same places."""
    found = {}
    for keep in (True, False):
        run, c = sft_run(tmp_path, keep=keep)
        t = sft.thinking(run, c, single())
        texts = shared.texts(run, c.task.thoughts, "test")
        found[keep] = shared.held(run, t, texts, "test", 9)
    assert [fork.prefix.count(OPEN) for fork in found[True]] == [0, 1, 0, 1]
    assert not any(OPEN in fork.prefix for fork in found[False])
    assert [f.suffix for f in found[True]] == [f.suffix for f in found[False]]


def test_the_probe_of_sft_may_ask_a_judge(tmp_path, monkeypatch):
    """Its rewards are those of RL with the same judge; the rule is not asked."""
    judge = JudgeConfig("local", (("match", 1.0),), init_from="x")
    run, c = sft_run(tmp_path, judge=judge)
    scores = SimpleNamespace(scores_BK=np.array([[0.9, 0.1]]), metrics={}, heard=())
    scores.valid_BK = np.array([[True, False]])
    asked = SimpleNamespace(score=lambda *_: scores)
    monkeypatch.setattr(shared.judges, "build", lambda wanted, *_: wanted == judge and asked)
    answers = [[Answer([7], [*b"x"]), Answer([7], [*b"x"])]]
    monkeypatch.setattr(
        shared, "probe", lambda *args, judging, **_: judging(args[3][:1], answers)[:2]
    )
    reward_BK, valid_BK = sft.probing(run, c, single())(None, "test")
    assert reward_BK.tolist() == [[1, 0]] and valid_BK.tolist() == [[True, False]]
    assert c.task.sources() == {"task.judge.init_from": "x"}
    with pytest.raises(UserError, match="must name one pointwise aspect that shows a reference"):
        sft_run(tmp_path, judge=JudgeConfig("local", (("quality", 1.0),), init_from="x"))


def sft_run(tmp_path, **task):
    """Returns a run of the task "thoughts" and its config, on a file of two texts of each part."""
    text = "\n".join(
        json.dumps({"text": f"abc\x01{i}\x02 de\x01f\x02 gh", "part": part})
        for part in ("validation", "test")
        for i in range(2)
    )
    (tmp_path / "a.jsonl").write_text(text)
    wanted = ThoughtsConfig(annotated=str(tmp_path / "a.jsonl"), tags=TAGS, tokens=3)
    task = sft.Config(name="thoughts", thoughts=wanted, probe=ProbeConfig(4, 2, "no"), **task)
    cut, evals = CutConfig(2, 9, 2), SimpleNamespace(batch=4)
    run = SimpleNamespace(tokenizer=Byte(), cut=cut, left_out={}, workdir="", seed=0)
    return run, SimpleNamespace(task=task, model=tiny.BYTES, evals=evals)


# --- the probe -------------------------------------------------------------------------------


def test_swapped_thoughts_are_those_of_half_of_all_prefixes_further():
    """Neighbours are often of one text: their thoughts may help each other's continuations."""
    own = [[[e]] for e in range(5)]
    found = evals.others(own, [9], None, direct=False)["swapped"]
    assert found == [[[2]], [[3]], [[4]], [[0]], [[1]]]
    assert evals.others(own[:2], [9], None, direct=False)["swapped"] == [[[1]], [[0]]]


def test_figures_have_means_errors_and_paired_differences():
    rewards = {
        "own": np.array([[1.0, 1], [1, 0], [1, 1], [0, 1]]),
        "blank": np.array([[0.0, 0], [1, 0], [0, 0], [0, 1]]),
        "generic": np.array([[0.0, 0], [0, 0], [1, 0], [0, 0]]),
        "swapped": np.array([[0.0, 0], [0, 0], [0, 0], [1, 0]]),
        "teacher": np.array([[1.0, 1], [1, 1], [1, 1], [1, np.nan]]),
    }
    found = evals.figures(rewards)
    assert found["own"] == 0.75 and found["teacher"] == 1 and found["best_of_2"] == 1
    assert found["own/error"] == pytest.approx(np.std([1, 0.5, 1, 0.5], ddof=1) / 2)
    assert found["own_minus_blank"] == 0.5
    assert found["own_minus_blank/error"] == pytest.approx(np.std([1, 0, 1, 0], ddof=1) / 2)
    assert found["unknown"] == pytest.approx(1 / 40)
    assert found["used"] == 0  # 0.5 is less than two errors of 0.289 over blank
    rewards["blank"] = np.zeros((4, 2))
    assert evals.figures(rewards)["used"] == 1
    rewards["swapped"] = np.array([[1.0, 0], [1, 0], [0, 0], [1, 0]])  # half of own, not below
    assert evals.figures(rewards)["used"] == 0
    assert set(found) == set(evals.names(2, teacher=True, direct=False))


class Copier:
    """A model whose answers are known: it thinks of the fact of its prefix, and says what the
    thought says; without one it says "0". The fact of prefix "pN" is the digit N."""

    def __init__(self):
        self.prompts, self.noise = [], []

    def rollouts(self, rows):
        R = max(len(ids) for row in rows for ids in row)
        tokens = np.array([[ids + [0] * (R - len(ids)) for ids in row] for row in rows])
        mask = np.array([[[True] * len(x) + [False] * (R - len(x)) for x in row] for row in rows])
        return Rollouts(tokens, mask, np.zeros(mask.shape), np.zeros(mask.shape))

    def write(self, writer, params, trunks, branches, how, key):
        rows = []
        for ids, live in zip(np.asarray(trunks.tokens_BT), np.asarray(trunks.mask_BT), strict=True):
            prompt = ids[live].tolist()
            assert prompt[-1] == OPEN
            fact = prompt[-2]
            # The last sample of every prefix is never closed.
            told = [[fact, CLOSE, fact, 46]] * (branches - 1) + [[fact] * 4]
            rows.append(told)
        return self.rollouts(rows)

    def answering(self, cfg, votes, steps, sampling, stop):
        assert (votes, steps) == (1, 2) and {EOS, OPEN} <= set(stop)

        def run(params, tree, noise_BC, key):
            self.noise.append(np.asarray(noise_BC))
            rows = []
            for b, C in enumerate(np.asarray(tree.tokens_BCR)):
                row = []
                for c, ids in enumerate(C):
                    branch = ids[np.asarray(tree.mask_BCR)[b, c]].tolist()
                    trunk = np.asarray(tree.tokens_BT)[b][np.asarray(tree.mask_BT)[b]].tolist()
                    assert trunk[-1] == ord("p")
                    thought = branch[2:-1] if OPEN in branch else []
                    self.prompts.append(bytes(branch))
                    row.append([thought[0] if len(thought) == 1 else 48, 46])
                rows.append(row)
            return self.rollouts(rows)

        return run


def test_the_probe_of_a_model_that_uses_its_thoughts(monkeypatch):
    copier = Copier()
    monkeypatch.setattr(
        rl_task.AnswerWriter, "write", lambda self, *args: copier.write(self, *args)
    )
    monkeypatch.setattr(evals, "answering", copier.answering)
    forks = [Fork([Byte.bos, ord("p"), 48 + i], [48 + i, 46], [48 + i]) for i in range(1, 8)]
    t = think()
    found = shared.probe(
        t,
        ProbeConfig(prefixes=7, samples=4, generic="no"),
        None,
        forks,
        judging=lambda f, a: shared.matched(t, MatchConfig(), f, a),
        gaining=None,
        taught=True,
        batch=3,
        seed=0,
    )
    assert found["own"] == 0.75 and found["unclosed"] == 0.25 and found["best_of_4"] == 1
    assert found["blank"] == found["generic"] == found["direct"] == 0
    # The swapped thoughts are those of another prefix; an unclosed one is cut and says nothing.
    assert found["swapped"] == 0 and found["teacher"] == 1 and found["used"] == 1
    noise = np.concatenate(copier.noise)[:7]
    assert len(np.unique(noise)) == noise.size, "no two continuations share their noise"
    said = set(copier.prompts)
    assert bytes([49, OPEN, 52, CLOSE]) in said and bytes([49, OPEN, *b"no", CLOSE]) in said
    assert bytes([49, OPEN, CLOSE]) in said and bytes([49]) in said
    assert set(found) == {x.removeprefix("eval/probe/") for x in
                          shared.names(4, taught=True, direct=True)}  # fmt: skip


def test_the_probe_by_gain_compares_likelihoods(monkeypatch):
    copier = Copier()
    monkeypatch.setattr(
        rl_task.AnswerWriter, "write", lambda self, *args: copier.write(self, *args)
    )
    forks = [Fork([Byte.bos, ord("p"), 48 + i], [48 + i, 46], [48 + i]) for i in range(1, 6)]

    def gaining(params, forks, told):
        right = [[x[:1] == f.suffix[:1] for x in row] for f, row in zip(forks, told, strict=True)]
        return np.where(right, 1.0, -0.5)

    how = dict(judging=None, gaining=gaining, taught=True, batch=2, seed=0)
    found = shared.probe(think(suffix=0), ProbeConfig(5, 2, "no"), None, forks, **how)
    assert found["own"] == found["teacher"] == 1 and found["swapped"] == found["blank"] == -0.5
    assert found["own_minus_generic"] == 1.5 and found["used"] == 1 and "direct" not in found


# --- SFT ---------------------------------------------------------------------------------------

PIECES = [("ab", "t", "cd"), ("e", "uv", "f", "w", "g")]


def test_sft_learns_all_tokens_and_the_control_the_raw_texts():
    t = think()
    told = sft.encoded(t, PIECES, keep=True)
    assert told[0] == (
        [Byte.bos, *b"ab", OPEN, *b"t", CLOSE, *b"cd", EOS],
        [False] * 3 + [True] * 3 + [False] * 3,
    )
    raw = packing.joined((ids, [True] * len(ids)) for ids, _ in sft.encoded(t, PIECES, keep=False))
    wanted = packing.documents(map(thoughts.original, PIECES), Byte())
    for one, other in zip(vars(raw).values(), vars(wanted).values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_likelihoods_of_texts_and_thoughts_are_those_of_plain_sequences():
    t, params = think(), tiny.params(tiny.BYTES)
    rows = sft.encoded(t, PIECES, keep=True)
    found = sft.likelihoods(t, params, rows, 16, batch=2)
    sums = {False: [], True: []}
    for ids, of_thought in rows:
        logp = plain_logp(params, tiny.BYTES, ids, 0)
        for x, inside in list(zip(logp, of_thought, strict=True))[1:]:
            sums[inside].append(-float(x))
    assert found["nll_text"] == pytest.approx(np.mean(sums[False]), abs=1e-4)
    assert found["nll_thoughts"] == pytest.approx(np.mean(sums[True]), abs=1e-4)
    assert set(sft.likelihoods(t, params, sft.encoded(t, PIECES, keep=False), 16, batch=2)) == {
        "nll_text"
    }


# --- whole runs --------------------------------------------------------------------------------


@pytest.mark.slow  # programs of its own
@pytest.mark.parametrize("reward", ["match", "rlp"])
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(
    reward, quick, tmp_path, monkeypatch, capsys
):
    """And the command evaluates its checkpoint to the same figures."""
    changes = dict(steps=6, evals=dict(every_steps=3, batch=4), task=dict(decay=0.5))
    if reward == "rlp":
        changes["objective"] = dict(advantage="rloo", denominator="sequence")
    config = recipe(tmp_path, reward, **changes)
    once, twice = tmp_path / "once", tmp_path / "twice"
    figures = rl.train(Run(config, "think", str(once)))
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(loop.Stopped):
            rl.train(Run(config, "think", str(twice)))
    assert rl.train(Run(config, "think", str(twice))) == figures
    assert lines(once, "think") == lines(twice, "think")
    states = [state(config, workdir, "think")[0] for workdir in (once, twice)]
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert (states[0].reference is not None) == (reward == "rlp")
    written = lines(once, "think")
    assert {"thought/unclosed", "thought/quotes", "reward/all"} <= set(written[0])
    assert any("eval/probe/own" in line for line in written)
    assert json.loads((once / "runs/think/eval.json").read_text()) == figures
    workdirs.write_json(once / "config.json", plain(config))
    flags = f"--checkpoint={once}/runs/think", "--run=think", "--split=test"
    capsys.readouterr()
    assert call(evaluate, "--evals=thoughts", *flags) == 0
    assert json.loads(capsys.readouterr().out) == workdirs.finite(figures)
    trained = [line for line in written if "approx_kl" in line]
    assert all(abs(x["approx_kl"]) < 1e-5 for x in trained)  # the sampler's are the update's
    if reward == "rlp":
        params, slow = states[0].params, states[0].reference
        gap = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), params, slow)
        assert max(jax.tree.leaves(gap)) > 0


@pytest.mark.slow  # the recipe's programs
@pytest.mark.parametrize("arg", ["debug", "rlp,debug"])
def test_the_recipe_runs_its_debug_variants(arg, quick, tmp_path):
    """With a gate of its own before each run of RL, and figures of the start beside those after."""
    config = tiny_recipe.shrink(importlib.import_module("thinking").get_config(arg))
    config.data.world.update(entities=8, train=300, validation=60, test=60)
    by_gain, found = config.runs.rl.task.reward == "rlp", {}
    for name in ("base", "thoughts", "rl") if by_gain else config.order:
        stage = supervised if config.runs[name].stage == "supervised" else rl
        found[name] = stage.train(Run(config, name, str(tmp_path)))
        first = lines(tmp_path, name)[0]
        assert ("gate/mixed" in first) == (stage is rl)
        if name.endswith("_post"):
            assert found[name]["start/mean@2"] == first["eval/start/mean@2"]
            assert found[name].keys() >= {"mean@2", "maj@2", "pass@2"}
        elif name != "base":
            # Gains are in nats; "direct" is no gain.
            least = -np.inf if name == "rl" and by_gain else 0
            assert least < found[name]["probe/own"] + 1e-9 <= 1 - least
            assert ("probe/direct" in found[name]) == (least == 0)
            assert "probe/teacher/error" in found[name]
    assert "nll_thoughts" in found["thoughts"]
    assert by_gain or "nll_thoughts" not in found["raw"]
