"""Tests RL on problems: the task, the gate before it, overlong answers, figures of many answers."""

import dataclasses
import importlib
import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny
from workdirs import call, lines

from sip import evaluate, loading
from sip import workdir as workdirs
from sip.data import problems as problem_sets
from sip.data.problems import ProblemsConfig
from sip.data.prompts import Prompt
from sip.evals import problems as evals
from sip.mesh import single
from sip.rewards import answers
from sip.rewards.answers import AnswersConfig, Checker, Gold
from sip.run import Run
from sip.sampling import SamplingConfig
from sip.sections import plain, section
from sip.stages import rl
from sip.stages.rl import GateConfig
from sip.structs import UserError
from sip.tasks import sampled
from sip.tasks.rl import problems, prompts
from sip.tasks.rl.prompts import Config
from sip.tasks.sampled import Sampled
from sip.tasks.supervised import conversations
from sip.text.tokenizer import Byte

pytest_plugins = ["tiny_fixtures"]
MODEL = tiny.model(vocab_size=259, layers=1, max_len=256)
GSM8K = Path(__file__).resolve().parents[2] / "shared/data/gsm8k/test.jsonl"
ROWS = [
    dict(
        question=f"Tom has {i} eggs and gets 2. How many?",
        answer=f"{i}+2=<<{i}+2={i + 2}>>{i + 2}\n#### {i + 2}",
    )
    for i in range(40)
]


# Questions, worked solutions and answers in the format of GSM8K, with its calculator marks.
GRADE_SCHOOL = [
    (
        "Mara bakes 4 trays of 12 rolls and sells 30. How many rolls are left?",
        "She bakes 4*12=<<4*12=48>>48 rolls.\n48-30=<<48-30=18>>18 are left.",
        "18",
    ),
    (
        "A ticket costs $7. How much do 3 tickets and a $4 map cost?",
        "The tickets cost 3*7=$<<3*7=21>>21.\nIn all it is 21+4=$<<21+4=25>>25.",
        "25",
    ),
    (
        "Half of 36 sheep are black. How many are not black?",
        "36/2=<<36/2=18>>18 are black.\n36-18=<<36-18=18>>18 are not.",
        "18",
    ),
    (
        "A pump fills 150 litres an hour. How many does it fill in 8 hours?",
        "It fills 150*8=<<150*8=1200>>1,200 litres.",
        "1,200",
    ),
    (
        "Ivo reads 20 pages a day. How many days do 140 pages take?",
        "It takes 140/20=<<140/20=7>>7 days.",
        "7",
    ),
    (
        "Rosa had $50, spent $18 and earned $6. How much has she?",
        "After spending she has 50-18=$<<50-18=32>>32.\nThen 32+6=$<<32+6=38>>38.",
        "38",
    ),
    (
        "A box has 6 rows of 5 eggs. 4 are broken. How many are whole?",
        "There are 6*5=<<6*5=30>>30 eggs.\n30-4=<<30-4=26>>26 are whole.",
        "26",
    ),
    (
        "A car drives 60 km an hour for 2.5 hours. How far does it drive?",
        "It drives 60*2.5=<<60*2.5=150>>150 km.",
        "150",
    ),
    (
        "Twins are 9. Their sister is 4 years older. What is the sum of the ages?",
        "The sister is 9+4=<<9+4=13>>13.\nThe sum is 9+9+13=<<9+9+13=31>>31.",
        "31",
    ),
    (
        "A shirt of $40 is 25% off. What does it cost?",
        "The discount is 40*.25=$<<40*.25=10>>10.\nIt costs 40-10=$<<40-10=30>>30.",
        "30",
    ),
    (
        "Nine friends share 63 nuts evenly. How many does each get?",
        "Each gets 63/9=<<63/9=7>>7.",
        "7",
    ),
    (
        "A class of 28 has 4 more girls than boys. How many girls are there?",
        "Boys: 28-4=<<28-4=24>>24, 24/2=<<24/2=12>>12.\nGirls: 12+4=<<12+4=16>>16.",
        "16",
    ),
    (
        "Leo saves $15 a week. How much has he after 10 weeks?",
        "He has 15*10=$<<15*10=150>>150.",
        "150",
    ),
    (
        "A rope of 90 cm is cut into 3 equal parts. How long are 2 of them?",
        "A part has 90/3=<<90/3=30>>30 cm.\nTwo have 30*2=<<30*2=60>>60 cm.",
        "60",
    ),
    (
        "A farm ships 25 crates of 48 pears. How many pears is that?",
        "It is 25*48=<<25*48=1200>>1200 pears.",
        "1200",
    ),
    (
        "Tea is $3 and cake $5. How much do 2 teas and 2 cakes cost?",
        "Teas: 2*3=$<<2*3=6>>6. Cakes: 2*5=$<<2*5=10>>10.\n6+10=$<<6+10=16>>16.",
        "16",
    ),
    (
        "It is 5 degrees and falls by 8. What is the temperature?",
        "It is 5-8=<<5-8=-3>>-3 degrees.",
        "-3",
    ),
    (
        "A tank of 80 litres is 3/4 full. How many litres fit in?",
        "It holds 80*3/4=<<80*3/4=60>>60.\n80-60=<<80-60=20>>20 fit in.",
        "20",
    ),
    (
        "Uma runs 3 km on 5 days a week. How far does she run in 4 weeks?",
        "A week has 3*5=<<3*5=15>>15 km.\n15*4=<<15*4=60>>60 km.",
        "60",
    ),
    (
        "A library has 2,000 books and lends 350. How many stay?",
        "2000-350=<<2000-350=1650>>1,650 stay.",
        "1,650",
    ),
]


def recipe(of_bytes, tmp_path, rows=ROWS, **task):
    """Returns configs/rl_problems.py:CHECKPOINT,debug for a file in the format of GSM8K."""
    path = tmp_path / "train.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    config = importlib.import_module("rl_problems").get_config(f"{of_bytes('start', MODEL)},debug")
    run = config.runs.rlvr
    run.task.problems.path = str(path)
    run.task.problems.template = "{problem}"
    run.task.answers.check = "numeric"
    run.task.update(held_out=4, **task)
    run.log.update(every_steps=1, tensorboard=False, progress=False)
    run.evals.update(every_steps=2, batch=4)
    return config


def built(config, tmp_path):
    run = Run(config, "rlvr", str(tmp_path / "work"))
    return prompts.build(run, rl.resolve(config, "rlvr"), single())


def test_answers_to_problems_are_rewarded_and_a_cut_one_is_masked(of_bytes, tmp_path, capsys):
    bad = [dict(question="no answer?"), dict(question="long " * 50, answer="#### 1")]
    task = built(recipe(of_bytes, tmp_path, [*ROWS, *bad], samples=0), tmp_path)
    said = capsys.readouterr().err
    assert "rlvr: prompts: " in said and "1 without an answer" in said
    assert "1 longer than 248 tokens" in said
    asked = task.prompts(0)
    numbers = [int(bytes(x for x in ids if x < 256).decode().split()[2]) for ids in asked]
    right = [[*b"So \\boxed{%d}" % (n + 2), Byte.eos] for n in numbers]
    cut = [[*b"\\boxed{%d}" % (n + 2)] for n in numbers]
    reward_PBK, valid_BK, metrics = task.reward(
        0, [[*pair] for pair in zip(right, cut, strict=True)]
    )
    assert reward_PBK[0].tolist() == [[1, 1]] * 2 and valid_BK.tolist() == [[True, False]] * 2
    assert metrics["rl/cut"] == (2, 4) and metrics["answers/unread"] == (0, 4)
    assert "reward answers was 1 for every answer of a batch" in capsys.readouterr().err
    none = [[[*b"5", Byte.eos], [*b"\\boxed{-1}", Byte.eos]]] * 2
    reward_PBK, valid_BK, metrics = task.reward(0, none)
    assert not reward_PBK.any() and valid_BK.all()
    assert metrics["answers/unread"] == (2, 4) and metrics["answers/wrong"] == (2, 4)


def test_answers_of_a_model_of_documents_are_scored_and_their_thoughts_read():
    """The text goes on after the answer and is cut; tags are no part of the steps."""
    data = dict(source="microworld_problems", world=dict(entities=6, train=50))
    cfg = importlib.import_module("thinking").get_config().runs.base_post.task.problems
    cfg = section(ProblemsConfig, cfg, "problems")
    world = problem_sets.world(data)
    asked = next(x for x in world.problems("two_hop", 1, 9) if "home" not in x.text)
    (first, second), name = asked.steps, world.world.names[0]
    false = f"The friend of {name} is {name}."
    more = " The home of Bado is Oxmoor. What is the home of Bado? The answer is Oxmoor."
    right = f"The answer is {asked.answer}."
    texts = {  # -> reward, the thought supports the answer
        f" <think>{first} {second}</think> {right}{more}": (1, 1),
        f" <think>{false} {first} {second}</think> {right}{more}": (1, 0),
        f" {right}{more}": (1, 0),
        f" <think>{first} {second}</think> The answer is not known.{more}": (0, 0),
        f" <think>{first} {second}</think> The answer is {asked.answer}": (0, 0),
    }
    checker, oracle = Checker(AnswersConfig(check="exact")), problem_sets.oracle(cfg, data)
    fields = dict(problem=asked.text, answer=asked.answer, entry=None)
    prompt = Prompt([1], asked.text, asked.text, fields)
    for text, (reward, supported) in texts.items():
        args = [prompt], [[[1]]], [[text]], np.array([[True]])  # cut
        reward_BK, _, metrics = problems.reward(cfg, checker, oracle, *args)
        assert reward_BK.tolist() == [[reward]], text
        assert metrics["answers/supported"] == (supported, reward), text


def test_a_failed_check_masks_the_answer_and_too_many_stop_the_run(of_bytes, tmp_path, monkeypatch):
    task = built(recipe(of_bytes, tmp_path, samples=0), tmp_path)
    fails = lambda verdicts: (
        lambda self, golds, answers: list(itertools.islice(itertools.cycle(verdicts), len(golds)))
    )
    monkeypatch.setattr("sip.rewards.answers.Checker.verdicts", fails(["right", "timeout"]))
    ids = [[[5, Byte.eos], [6, Byte.eos]]] * 2
    reward_PBK, valid_BK, metrics = task.reward(0, ids)
    assert valid_BK.tolist() == [[True, False]] * 2 and metrics["answers/timeout"] == (2, 4)
    assert metrics["reward/answers"] == (2, 2) and metrics["reward/answers/skipped"] == (2, 4)
    monkeypatch.setattr("sip.rewards.answers.Checker.verdicts", fails(["died"]))
    with pytest.raises(UserError, match="100% of a batch's answers have no reward.*answers 100%"):
        task.reward(0, ids)


def test_a_run_shows_the_figures_of_its_start_beside_its_own(
    of_bytes, tmp_path, monkeypatch, capsys
):
    """A quarter of the answers is right before, three quarters after; a fresh start has none."""
    of = lambda *verdicts: Sampled(
        problem="p", texts=["a", "b"], answers=["1", "2"], verdicts=[*verdicts], cut=[False] * 2,
        tokens=[2, 4], groups=[0, 1],
    )  # fmt: skip
    start, asked, after = [of("right", "wrong"), of("wrong", "wrong")], [], []
    now = [of("right", "right"), of("right", "wrong")]
    solved = lambda run, name, how, held, mesh: asked.append((name, how, len(held))) or start
    monkeypatch.setattr(sampled, "solved", solved)
    monkeypatch.setattr(sampled, "solve", lambda run, how, *_: after.append(how) or now)
    ended = lambda self, params, ids, batch: [[Byte.eos]] * len(ids)
    monkeypatch.setattr("sip.tasks.rl.task.AnswerWriter.greedy_ids", ended)
    config = recipe(of_bytes, tmp_path)
    task = built(config, tmp_path)
    ((name, how, count),) = asked
    assert (name, how.source, how.samples, count) == ("start", config.runs.rlvr.init_from, 2, 2)
    assert task.before["eval/start/mean@2"] == 0.25 and task.before["eval/start/pass@2"] == 0.5
    assert (
        "before the first step, on 2 test problems: mean@2 0.250, maj@2" in capsys.readouterr().err
    )
    found = task.finish(None)
    assert after == [how], "asked alike"
    assert (found["start/mean@2"], found["mean@2"]) == (0.25, 0.75)
    assert (found["start/pass@2"], found["pass@2"], found["tokens_ratio"]) == (0.5, 1.0, 1.0)
    config.runs.rlvr.init_from = ""
    task = built(config, tmp_path)
    assert not task.before and "start/mean@2" not in task.finish(None) and len(asked) == 1


def test_the_soft_penalty_grows_in_the_last_tokens():
    """DAPO: 0 up to 6 of 10 tokens with 4 soft ones, then 1/4 for each, 1 for a cut answer."""
    ids = [[[0] * n for n in (2, 6, 7, 9, 10, 10)]]
    cut = np.array([[False] * 5 + [True]])
    assert prompts.overlong(ids, cut, 4, 10).tolist() == [[0, 0, 0.25, 0.75, 1, 1]]
    assert prompts.overlong(ids, cut, 0, 10).tolist() == [[0, 0, 0, 0, 0, 1]]


PROBLEMS = dict(problems=ProblemsConfig(path="p.jsonl"), answers=AnswersConfig())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(reward="answers"), "'answers' needs the sections problems and answers"),
        (dict(reward="run", answers=AnswersConfig()), "needs the sections problems and answers"),
        (
            dict(reward="answers", prompts="p.jsonl", **PROBLEMS),
            "prompts, questions and problems: give one",
        ),
        (dict(reward="answers", mask_cut=True, cut_penalty=1.0, **PROBLEMS), "mask_cut and cut_pe"),
        (dict(reward="answers", soft_tokens=4, **PROBLEMS), "soft_tokens needs cut_penalty"),
        (dict(reward="run", mask_cut=True), "mask_cut need"),
        (
            dict(reward="answers", **{**PROBLEMS, "answers": AnswersConfig(check="own")}),
            "check own and problems.source reasoning_gym need each other",
        ),
    ],
)
def test_wrong_settings_are_named(values, message):
    with pytest.raises(UserError, match=message):
        Config(name="prompts", **values)


def test_held_out_problems_and_test_sets_are_never_learned(of_bytes, tmp_path):
    config = recipe(of_bytes, tmp_path)
    config.runs.rlvr.split = "test"
    with pytest.raises(UserError, match="split must be train with task.problems, not 'test'"):
        rl.resolve(config, "rlvr")
    config.runs.rlvr.split = "train"
    config.runs.rlvr.task.problems.path = "gsm8k/test.jsonl"
    with pytest.raises(UserError, match="problems.path .*is a test set by its name"):
        rl.resolve(config, "rlvr")


def measured(monkeypatch, flat, gate, kept):
    found = [{"rl/flat_groups": (n, 4.0), "reward/all": (n, 8.0)} for n in flat]
    monkeypatch.setattr(
        rl, "draw", lambda c, task, params, at, *_, **__: rl.Drawn(None, None, found[at], None)
    )
    run = SimpleNamespace(name="rlvr", seed=0, say=kept.append)
    c = SimpleNamespace(gate=gate, answered=4, rollouts=2)
    return rl.measure(run, c, None, None)


def test_the_gate_says_the_share_of_mixed_prompts_and_stops_below_its_own(monkeypatch):
    """The share of mixed prompts is a quarter, as 6 of 8 are flat."""
    said = []
    found = measured(monkeypatch, (4, 2), GateConfig(5, 0.25), said)
    assert found == {"gate/mixed": 0.25, "gate/reward": 6 / 16}
    assert said == [
        "rlvr: 25% of 8 prompts have answers of different rewards, with 2 answers each; mean "
        "reward 0.375"
    ]
    with pytest.raises(UserError, match=r"rlvr: 0% of 8 prompts .*less than gate.mixed=0.25: cho"):
        measured(monkeypatch, (4, 4), GateConfig(5, 0.25), said)


def test_pass_at_k_is_the_share_of_draws_with_a_right_answer():
    """All ways to draw k of n answers, counted."""
    for n, c, k in itertools.product((1, 4, 6), (0, 1, 3, 6), (1, 2, 4)):
        if c <= n and k <= n:
            draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
            assert evals.pass_at(k, n, c) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_figures_by_hand():
    right = [[1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    valid = [[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]]  # no failed check counts
    votes = [["2", "2", "3", "4"], ["5", "6", "", "7"], ["", "", "", ""]]
    found = evals.figures(right, valid, votes)
    assert found == {
        "mean@4": (1 / 2 + 0) / 2,
        "maj@4": (1 + 0) / 2,
        "pass@1": (1 / 2 + 0) / 2,
        "pass@2": (1 - 1 / 6 + 0) / 2,
        "pass@4": 1.0,  # the second problem has three answers only
    }
    assert evals.majority([True, False], [True, True], ["a", "b"]) == 0.5, "a tie"
    assert evals.majority([True, True], [True, True], ["", ""]) == 0, "no votes"
    assert math.isnan(evals.figures([[1]], [[0]], [["a"]])["mean@1"])


def test_worked_solutions_become_conversations_in_the_parts_of_the_problems(of_bytes, tmp_path):
    """No problem that RL on the same file holds out is learned, whatever the template."""
    path = tmp_path / "gsm.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    cfg = ProblemsConfig(path=str(path), template="Solve: {problem}")
    wanted = conversations.Config(name="conversations", problems=cfg, chat="turns")
    c = SimpleNamespace(
        task=wanted, split="train", model=MODEL, evals=SimpleNamespace(split="test")
    )
    run = SimpleNamespace(
        config=SimpleNamespace(data={}), tokenizer=Byte(), workdir="", say=print, left_out={}
    )
    found = conversations.examples(run, c)
    assert len(found) == 40
    first = next(one for one, _ in found if "has 0 eggs" in one.key)
    assert first.messages[0]["content"] == f"Solve: {ROWS[0]['question']}"
    assert first.messages[1]["content"] == "0+2=2\n\\boxed{2}"
    parts, _ = problem_sets.load(cfg, {})
    for part, some in parts.items():
        ours = {one.key for one, _ in found if one.part == part}
        assert ours == {f"Solve: {p.text}" for p in some}
    with pytest.raises(UserError, match="task.path, task.questions and task.problems: give one"):
        conversations.Config(name="conversations", path="x", problems=cfg, chat="turns")


def grade_school(of_bytes, tmp_path, **task):
    """Returns the recipe for GRADE_SCHOOL, checked by math-verify; weight decay moves a model."""
    rows = [dict(question=q, answer=f"{steps}\n#### {a}") for q, steps, a in GRADE_SCHOOL]
    config = recipe(of_bytes, tmp_path, rows, **task)
    run = config.runs.rlvr
    run.task.problems.template, run.task.answers.check = "", "math"
    run.optim.update(warmup_steps=0, lr=0.1, weight_decay=0.5)
    run.evals.every_steps = 1
    return config


def test_the_format_of_gsm8k_end_to_end_in_one_step(of_bytes, quick, tmp_path, capsys):
    """Loader, prompt, one RL step and evaluation; nothing is left out."""
    config = grade_school(of_bytes, tmp_path)
    config.runs.rlvr.steps = 1
    figures = rl.train(Run(config, "rlvr", str(tmp_path / "work")))
    said = capsys.readouterr().err
    assert "prompts: " in said and "left out" not in said
    start, first, evaluation = lines(tmp_path / "work", "rlvr")
    assert start["step"] == 0 and start["eval/start/mean@2"] == 0
    assert first["step"] == 1 and first["answers/unread"] == 1 and first["grad/norm"] == 0
    assert evaluation["eval/reward/answers"] == 0
    assert {"mean@2", "maj@2", "pass@2"} <= figures.keys() and figures["mean@2"] == 0
    task = built(config, tmp_path)
    right = {q: a.replace(",", "") for q, _, a in GRADE_SCHOOL}
    texts = [Byte().decode(ids) for ids in task.prompts(0)]
    asked = [text.removeprefix("<|user|>").partition("\nReason step by step")[0] for text in texts]
    ids = [
        [[*b"So \\boxed{%s}" % right[q].encode(), Byte.eos], [*b"\\boxed{0}", Byte.eos]]
        for q in asked
    ]
    reward_PBK, valid_BK, _ = task.reward(0, ids)
    assert reward_PBK[0].tolist() == [[1, 0]] * 2 and valid_BK.all()


def test_a_run_that_ends_early_is_evaluated_with_its_best_parameters(
    of_bytes, quick, tmp_path, monkeypatch, capsys
):
    """No answer is right, so the first of equal evaluations is the best one, and the second ends
    the run."""
    config = grade_school(of_bytes, tmp_path)
    run = config.runs.rlvr
    run.steps, run.evals.patience, run.checkpoint.best = 4, 1, "eval/reward/answers"
    build, finished = prompts.build, []
    keep = lambda params: finished.append(params) or {}
    kept = lambda *args: dataclasses.replace(build(*args), finish=keep)
    monkeypatch.setitem(rl.TASKS, "prompts", (Config, kept))
    work = tmp_path / "work"
    figures = rl.train(Run(config, "rlvr", str(work)))
    assert (figures["stopped_early_after"], figures["evaluated_step"]) == (2, 1)
    assert "the best parameters are evaluated, step 1" in capsys.readouterr().err
    best, last = (
        loading.load_params(str(work / "runs" / name), single())[0]
        for name in ("rlvr/best", "rlvr")
    )
    jax.tree.map(np.testing.assert_array_equal, finished, [best])
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (best, last)), strict=True))


def test_missing_files_to_evaluate_are_named(capsys):
    argv = ["--evals=problems", "--problems=nowhere/*.jsonl", "--checkpoint=."]
    assert call(evaluate, *argv) == 2
    assert "error: --problems: nowhere/*.jsonl: no file has such a name" in capsys.readouterr().err


def test_a_best_checkpoint_without_held_out_problems_is_refused_at_the_start(of_bytes, tmp_path):
    config = recipe(of_bytes, tmp_path, ROWS[2:6])
    config.runs.rlvr.checkpoint.best = "eval/reward/answers"
    said = "checkpoint.best 'eval/reward/answers' needs evaluations, but .* nothing in the part val"
    with pytest.raises(UserError, match=said):
        built(config, tmp_path)
    config.runs.rlvr.checkpoint.best = ""
    built(config, tmp_path)


def test_answers_vote_by_verified_equivalence():
    """By their texts the wrong 6 has most votes, by the check the 5."""
    checker, said = Checker(AnswersConfig(check="numeric")), ["$5", "\\$5", "5", "6", "6"]
    verdicts = checker.verdicts([Gold("5")] * 5, said)
    one = problems.Solved("p", said, [*said], verdicts, [False] * 5, [1] * 5)
    found = problems.figures([one], problems.votes_of([one], checker))
    assert found["maj@5"] == 1 and found["mean@5"] == 0.6 and found["distinct_answers"] == 2
    keys = [[answers.key(x) for x in said]]
    assert problems.figures([one], keys)["maj@5"] == 0


@pytest.mark.parametrize(
    ("check", "answer", "said"),
    [
        ("numeric", r"\frac{\pi}{2}", "1 whose right answer is unread by the check numeric"),
        ("exact", "(" * 13, "1 with an answer that is too long or too deep to check"),
    ],
    ids=["unread", "too deep"],
)
def test_what_the_check_cannot_read_is_left_out_and_said_at_the_start(
    check, answer, said, of_bytes, tmp_path, capsys
):
    bad = [dict(problem="Which angle?", answer=answer)]
    config = recipe(of_bytes, tmp_path, [*ROWS, *bad])
    config.runs.rlvr.task.answers.check = check
    built(config, tmp_path)
    assert said in capsys.readouterr().err
    config = recipe(of_bytes, tmp_path, [*ROWS[:8], *bad])
    config.runs.rlvr.task.answers.check = check
    with pytest.raises(UserError, match=f"1 of 9 problems cannot be used.*allows: {said}"):
        built(config, tmp_path)


def test_an_evaluation_leaves_out_what_the_check_cannot_read(of_bytes, tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps(dict(problem="Which angle?", answer=r"\frac{\pi}{2}")))
    how = dict(samples=1, most=8, template="none", batch=1, limit=0, seed=0)
    asked = ProblemsConfig(test=str(path)), AnswersConfig(check="numeric"), SamplingConfig(1.0)
    with pytest.raises(UserError, match="1 of 1 problems .* unread by the check numeric"):
        evaluate.solve(of_bytes("start", MODEL), *asked, **how)


def test_generated_problems_have_limits_too(monkeypatch):
    made = [problem_sets.Problem("a?", "1"), problem_sets.Problem("b?", "1" * 41)]
    monkeypatch.setattr(problem_sets, "_of_world", lambda cfg, data: made)
    cfg = ProblemsConfig(source="microworld", kinds=("two_hop",), max_skipped_fraction=0.5)
    checker = Checker(AnswersConfig(check="exact"))
    parts, left_out = problems.prompts_of(cfg, {}, lambda text: [1], 9, checker)
    assert sum(map(len, parts.values())) == 1
    assert left_out == {"whose right answer is refused by the check exact": 1}


BAD = {
    "no file": ([], "--evals=problems needs --problems=FILE, or --run=NAME"),
    "no workdir": (
        ["--run=rlvr", "--workdir={none}"],
        "is no workdir of sip.train; give --workdir",
    ),
    "no run": (["--run=rl"], "has no such run; there are base, rlvr"),
    "twice": (["--run=rlvr", "--form=Answer:"], "--form: is that of --run; leave one of the two"),
    "no problems": (["--run=base"], "--run base: is no RL run on problems whose answers"),
    # In one process with other commands the default of --split may be theirs.
    "no probe": (
        ["--evals=thoughts", "--run=rlvr", "--split=validation"],
        "--run rlvr: has no probe; its task must be",
    ),
    "no name": (["--evals=thoughts"], "--run is needed with --evals=thoughts"),
    "no room": (
        ["--problems={none}/train.jsonl", "--max_tokens=4096"],
        "an answer of 4096 tokens (--max_tokens) leaves no room",
    ),
    "train": (["--evals=thoughts", "--run=rlvr", "--split=train"], "must be validation or test"),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_runs_and_flags_are_one_line(name, of_bytes, tmp_path, capsys):
    flags, message = BAD[name]
    config, work = recipe(of_bytes, tmp_path), tmp_path / "work"
    config.runs.base = importlib.import_module("rl_problems").get_config("debug").runs.base
    workdirs.write_json(work / "config.json", plain(config))
    given = [flag.format(none=tmp_path) for flag in flags]
    where = f"--checkpoint={config.runs.rlvr.init_from}", f"--workdir={work}"
    assert call(evaluate, "--evals=problems", *where, *given) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and message in line


@pytest.mark.slow
def test_gsm8k_end_to_end(of_bytes, quick, tmp_path, capsys):
    """Loader, prompt, RL steps and evaluation, in the real format; scores are what they are."""
    config = recipe(of_bytes, tmp_path)
    run = config.runs.rlvr
    run.gate.update(prompts=2, mixed=0.0)
    figures = rl.train(Run(config, "rlvr", str(tmp_path / "work")))
    assert {"reward/answers", "mean@2", "maj@2", "pass@1", "pass@2", "cut"} <= set(figures)
    gate, first, *_ = lines(tmp_path / "work", "rlvr")
    assert figures["start/mean@2"] == gate["eval/start/mean@2"]
    assert gate["step"] == 0 and 0 <= gate["gate/mixed"] <= 1
    assert {"answers/wrong_tokens", "answers/unread", "rl/entropy", "rl/cut"} <= set(first)
    assert 0 < first["rl/entropy"] < math.log(259) + 0.01
    assert "of 2 prompts have answers of different rewards" in capsys.readouterr().err
    work, start = tmp_path / "work", config.runs.rlvr.init_from
    workdirs.write_json(work / "config.json", plain(config))
    for asked, prefix in ((f"{work}/runs/rlvr", ""), (start, "start/")):
        flags = f"--checkpoint={asked}", f"--workdir={work}", "--run=rlvr"
        capsys.readouterr()
        assert call(evaluate, "--evals=problems", *flags) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["problems"] == 2 and found["mean@2"] == figures[f"{prefix}mean@2"]
        assert found["answer_tokens"] == figures[f"{prefix}answer_tokens"]
    path = GSM8K if GSM8K.exists() else tmp_path / "train.jsonl"
    found = evaluate.solve(
        str(tmp_path / "work" / "runs" / "rlvr"),
        ProblemsConfig(test=str(path), template="{problem}"),
        AnswersConfig(),
        SamplingConfig(1.0),
        samples=4,
        most=16,
        template="",
        batch=4,
        limit=4,
        seed=0,
    )
    assert found["problems"] == 4 and 0 <= found["mean@4"] <= found["pass@4"] <= 1
