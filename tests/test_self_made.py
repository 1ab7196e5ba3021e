"""Tests own answers as training data: the filter, quotas by difficulty, two turns, and resuming."""

import dataclasses
import importlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import tiny_recipe  # noqa: F401  (makes configs importable)
from workdirs import files, lines, quickly

from sip import metrics, train
from sip.data import conversations
from sip.data.problems import ProblemsConfig
from sip.data.prompts import Prompt
from sip.evals import problems as evals
from sip.mesh import single
from sip.rewards.answers import AnswersConfig
from sip.rewards.majority import UNSURE
from sip.run import Run
from sip.sampling import SamplingConfig
from sip.structs import UserError
from sip.tasks import sampled
from sip.tasks.rl import problems
from sip.tasks.rl.problems import Solved
from sip.tasks.rl.task import AnswerWriter
from sip.tasks.sampled import Sampled, Wanted
from sip.tasks.supervised import self_made
from sip.tasks.supervised.self_made import Config
from sip.text import chat
from sip.text.tokenizer import Byte
from sip.training import loop

pytest_plugins = ["tiny_fixtures"]
MODEL = tiny.model(vocab_size=259, layers=1, max_len=256)
PROBLEMS = ProblemsConfig(path="p.jsonl", template="{problem}", form="Answer:")
EIGHT = "a b c d e f g h "


def task(**changes) -> Config:
    settings = dict(name="self_made", chat="turns", problems=PROBLEMS, rollouts=4)
    settings |= dict(answers=AnswersConfig(check="numeric"), answer=16)
    return Config(**(settings | changes))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        (dict(cut=True), self_made.CUT),
        (dict(answer=None), self_made.UNREAD),
        (dict(accepted=False), self_made.OTHER),
        (dict(tokens=10), ""),
        (dict(tokens=11), self_made.LONG),
        (dict(tokens=11, longest=0), ""),
        (dict(text=EIGHT * 3 + "Wait, 4"), ""),
        (dict(text=EIGHT * 4 + "Wait, 4"), self_made.LOOP),
        (dict(text="wait, 4"), self_made.UNMARKED),
        (dict(text="4", marker=""), ""),
        (dict(cut=True, answer=None, accepted=False), self_made.CUT),  # the first reason counts
    ],
)
def test_the_rules_of_the_filter(change, why):
    text, answer = "3 + 1 = 4. Wait, Answer: 4", "4"
    one = dict(text=text, answer=answer, cut=False, accepted=True, tokens=5, longest=10)
    one |= dict(marker="Wait,") | change
    assert self_made.fault(one.pop("text"), one.pop("answer"), **one) == why


@pytest.mark.parametrize(
    ("passed", "kept"), [(0, 0), (1, 4), (2, 3), (4, 2), (6, 1), (7, 1), (8, 0)]
)
def test_of_harder_problems_more_is_kept(passed, kept):
    """4 * (1 - p), rounded up: 3.5, 3, 2, 1 and .5 for p = 1/8, 2/8, 4/8, 6/8 and 7/8."""
    assert self_made.quota(passed, 8, 4, "harder") == kept
    assert self_made.quota(passed, 8, 4, "all") == 4
    assert self_made.quota(0, 0, 4, "harder") == 0  # no check succeeded


def solved(verdicts, answers=None, texts=None, groups=None, **more) -> Sampled:
    n = len(verdicts)
    texts = texts or [f"text {i}" for i in range(n)]
    return Sampled(
        problem="p",
        texts=texts,
        answers=answers or ["1"] * n,
        verdicts=verdicts,
        cut=[False] * n,
        tokens=more["tokens"] if "tokens" in more else [3] * n,
        groups=groups or [0] * n,
    )


ASKED = [Prompt([1], f"q{i}", f"q{i}") for i in range(5)]


def test_distinct_right_answers_are_learned_up_to_the_quota():
    r, w = "right", "wrong"
    some = [
        solved([r, r, r, w], texts=["a", "a", "b", "c"]),  # 3 of 4: harder keeps 1 of 2 texts
        solved([r, r, r, r]),
        solved([w, w, w, "timeout"]),
        solved([w, r, "timeout", "failed"]),  # 1 of 2: 1 of 1 text
    ]
    found, figures, left_out = self_made.chosen(task(most=2, keep="harder"), ASKED[:4], some)
    assert [(p.text, text) for p, text in found] == [("q0", "a"), ("q3", "text 1")]
    assert figures == {
        "self_made/answers": 16,
        "self_made/kept": 2,
        "self_made/problems": 2,
        "self_made/tokens": 3.0,
    }
    assert left_out == {self_made.COPY: 1, self_made.ENOUGH: 1 + 4, self_made.OTHER: 1 + 4 + 3}
    every, _, _ = self_made.chosen(task(most=2), ASKED[:4], some)
    assert [(p.text, text) for p, text in every] == [
        ("q0", "a"),
        ("q0", "b"),
        ("q1", "text 0"),
        ("q1", "text 1"),
        ("q3", "text 1"),
    ]


def test_without_labels_the_majority_is_accepted():
    """Right answers that are few are not; a tie has no majority; the pass rate is the share."""
    wrong = ["wrong"] * 4
    some = [
        solved([*wrong[:3], "right"], groups=[0, 0, 0, 1]),
        solved(wrong, groups=[0, 0, 1, 1]),
        solved(wrong, groups=[-1, -1, 0, -1], answers=[None, None, "5", None]),
        solved(["right"] * 4, groups=[0, 0, 0, 0]),
        solved(wrong, groups=[0, 0, 0, UNSURE]),  # 3 of the 3 that could be compared
    ]
    wanted = task(accept="majority", keep="harder", most=4)
    found, _, _ = self_made.chosen(wanted, ASKED, some)
    assert [(p.text, text) for p, text in found] == [("q0", "text 0"), ("q2", "text 2")]


def test_an_answer_needs_the_marker_of_its_own_instruction():
    wanted = task(instructions=(("Check.", "Check:"), ("Go back.", "Wait:")))
    texts = ["Check: 1", "Check: 1", "Wait: 1", "Wait: 2"]  # instructions 0, 1, 0, 1
    found, _, left_out = self_made.chosen(wanted, ASKED[:1], [solved(["right"] * 4, texts=texts)])
    assert [text for _, text in found] == ["Check: 1", "Wait: 2"]
    assert left_out == {self_made.UNMARKED: 2}


def test_thirds_and_diversity_by_hand():
    start, now = [0.5, 0.0, 1.0, 0.25, 0.75, 0.0], [0.75, 0.5, 1.0, 0.5, 0.5, 0.0]
    assert evals.thirds(start, now) == {"easy": 0.75, "middle": 0.625, "hard": 0.25}
    assert evals.thirds(start, start) == {"easy": 0.875, "middle": 0.375, "hard": 0.0}
    found = evals.diversity(
        [["1", "1", "2", ""], ["", "", "", ""]], [["a", "b", "c", "c"], ["d"] * 4]
    )
    assert found == {"distinct_answers": 1.0, "distinct_chains": 2.0}


def test_answers_are_compared_with_those_of_the_start():
    start = [solved(["wrong", "right"], tokens=[2, 4]), solved(["wrong", "wrong"], tokens=[3, 3])]
    now = [solved(["right", "right"], tokens=[6, 6]), solved(["wrong", "right"], tokens=[9, 3])]
    before, after = sampled.figures(start), sampled.figures(now)
    found = problems.compared(start, now, before, after)
    assert found["tokens_ratio"] == 2.0 and found["start/answer_tokens"] == 3.0
    assert found["start/mean@2"] == 0.25 and found["start/pass@2"] == 0.5
    assert (found["passes/easy"], found["start/passes/easy"]) == (1.0, 0.5)
    assert (found["passes/hard"], found["start/passes/hard"]) == (0.5, 0.0)


class Scripted:
    """A writer that answers each prompt by the next of given texts; None: without an end."""

    cfg, tokenizer, mesh, stops = MODEL, Byte(), single(), (Byte.eos,)
    sampled_ids = AnswerWriter.sampled_ids

    def __init__(self, *texts):
        self.texts, self.asked = list(texts), []

    def trunks(self, asked):
        return asked

    def write(self, params, asked, branches, how, key):
        self.asked += [Byte().decode(ids) for ids in asked[: len(self.texts)]]
        tokens, mask = np.zeros((len(asked), 1, 64), int), np.zeros((len(asked), 1, 64), bool)
        for b in range(min(len(asked), len(self.texts))):
            text = self.texts.pop(0)
            ids = [*Byte().encode(text.removesuffix("~")), *([] if "~" in text else [Byte.eos])]
            tokens[b, 0, : len(ids)], mask[b, 0, : len(ids)] = ids, True
        return SimpleNamespace(tokens_BCR=tokens, mask_BCR=mask)


def test_finished_answers_are_asked_again_and_joined():
    form = conversations.open_format(chat.load("turns", Byte()), Byte())
    wanted = task(instructions=(("Check.", "Check:"), ("Go back.", "Wait:")))
    fields = dict(problem="1+1?", answer="2", entry=None)
    asked = [Prompt([5], "1+1?", "1+1?", fields)]
    one = Solved(
        problem="1+1?",
        texts=["3 Answer: 3", "Answer: 2", "none", "Answer: 2", "long " * 60 + "Answer: 2"],
        answers=["3", "2", None, "2", "2"],
        verdicts=["wrong", "right", "unread", "right", "right"],
        cut=[False, False, False, True, False],
        tokens=[4, 3, 2, 3, 5],
    )
    writer = Scripted("Check: Answer: 2", "Wait: Answer: 4~")
    args = dict(seed=0, start=0, batch=2)
    (found,) = self_made.again(wanted, form, None, writer, asked, [one], **args)
    assert found.texts[:2] == ["3 Answer: 3\nCheck: Answer: 2", "Answer: 2\nWait: Answer: 4"]
    assert found.answers[:2] == ["2", None]  # of the second turn alone; a cut line does not count
    assert found.verdicts[:2] == ["right", "unread"] and found.cut[:2] == [False, True]
    assert found.tokens[:2] == [4 + 17, 3 + 15]
    assert found.texts[2:] == one.texts[2:] and found.tokens[2:] == one.tokens[2:]
    assert len(writer.asked) == 2 and "3 Answer: 3" in writer.asked[0]
    assert writer.asked[0].endswith("Check.<|assistant|>") and "Go back." in writer.asked[1]
    assert one.texts[0] == "3 Answer: 3", "the first turns are not changed"


def frozen(source, **changes) -> Wanted:
    return Wanted(**(dict(
        source=source, key="task.source", problems=PROBLEMS, sampling=SamplingConfig(),
        answers=AnswersConfig(check="numeric"), samples=2, most=4, batch=2, stops=(Byte.eos,),
    ) | changes))  # fmt: skip


def run_in(directory):
    config = SimpleNamespace(seed=0)
    said = []
    run = Run(config, "made", str(directory))
    object.__setattr__(run, "say", said.append)
    object.__setattr__(run, "tokenizer", Byte())
    return run, said


def prompts(n):
    fields = lambda i: dict(problem=f"{i}?", answer=str(i), entry=None)
    return [Prompt([Byte.bos, 65 + i], f"{i}?", f"{i}?", fields(i)) for i in range(n)]


def check_resume(of_bytes, tmp_path, solve, model):
    """Stops five problems in three batches in the second one, and compares with an uninterrupted
    run. `solve` and `model` are called as those of `sampled`. Returns the answers."""
    wanted, asked = frozen(of_bytes("start", MODEL)), prompts(5)
    once, twice = (run_in(tmp_path / name) for name in ("once", "twice"))
    calls = []

    def stopping(*args):
        calls.append(args)
        if len(calls) == 2:
            raise loop.Stopped("now")
        return solve(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampled, "solve", solve)
        patch.setattr(sampled, "model", model)
        want = sampled.solved(once[0], "answers", wanted, asked, single())
        patch.setattr(sampled, "solve", stopping)
        with pytest.raises(loop.Stopped):
            sampled.solved(twice[0], "answers", wanted, asked, single())
        assert len(files(tmp_path / "twice")) == 2  # settings and the first batch
        assert sampled.solved(twice[0], "answers", wanted, asked, single()) == want
        assert files(tmp_path / "once") == files(tmp_path / "twice") and len(calls) == 4
        patch.setattr(sampled, "model", lambda *args: pytest.fail("loads a model"))
        assert sampled.solved(twice[0], "answers", wanted, asked, single()) == want
    assert len(once[1]) == 1 and len(twice[1]) == 2  # a line whenever the model answers
    return want


def test_a_sampling_that_was_interrupted_goes_on_where_it_was(of_bytes, tmp_path):
    def solve(run, wanted, params, writer, some, start):
        texts = [f"{start} {p.text}" for p in some]
        return [Solved(p.text, [t, t], ["1", None], ["right", "unread"], [False, True], [1, 2])
                for p, t in zip(some, texts, strict=True)]  # fmt: skip

    found = check_resume(of_bytes, tmp_path, solve, lambda *args: (None, None))
    assert [one.texts[0] for one in found] == ["0 0?", "0 1?", "2 2?", "2 3?", "4 4?"]
    assert found[0].groups == [0, -1]


@pytest.mark.slow  # the same with a model: its noise depends on the place of a problem alone
def test_a_models_sampling_that_was_interrupted_gives_the_same(of_bytes, quick, tmp_path):
    found = check_resume(of_bytes, tmp_path, sampled.solve, sampled.model)
    assert len({text for one in found for text in one.texts}) > 5  # no noise is drawn twice


def test_damaged_settings_of_answers_are_one_line(of_bytes, tmp_path):
    run, _ = run_in(tmp_path)
    path = tmp_path / "runs" / run.name / "answers" / "settings.json"
    path.parent.mkdir(parents=True)
    path.write_text("")
    with pytest.raises(UserError, match="settings.json: cannot be read: it is empty or damaged"):
        sampled.kept(run, "answers", frozen(of_bytes("start", MODEL)), {}, prompts(5), lambda: 0)


@pytest.mark.parametrize("change", [dict(samples=1), dict(most=3), dict(form="x")])
def test_answers_of_other_settings_are_sampled_anew(change, of_bytes, tmp_path):
    start = of_bytes("start", MODEL)
    made = lambda: (
        lambda some, at: [Solved(p.text, ["t"], ["1"], ["right"], [False], [at]) for p in some]
    )
    run, _ = run_in(tmp_path)
    sampled.kept(run, "answers", frozen(start), {}, prompts(5), made)
    other = dict(problems=dataclasses.replace(PROBLEMS, form="x")) if "form" in change else change
    calls = []
    again = lambda: calls.append(1) or made()
    found = sampled.kept(run, "answers", frozen(start, **other), {}, prompts(5), again)
    assert calls == [1] and [one.tokens for one in found] == [[0], [0], [2], [2], [4]]
    assert len(files(tmp_path / "runs")) == 4
    sampled.kept(run, "answers", frozen(start, **other), {}, prompts(3), again)
    assert calls == [1, 1] and len(files(tmp_path / "runs")) == 3  # fewer problems, fewer parts


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(rollouts=1, keep="harder"), "rollouts 1: a majority and a pass rate need several"),
        (dict(accept="mine"), "accept='mine'"),
        (dict(keep="most"), "keep='most'"),
        (dict(instructions=(("Check.", " "),)), "pairs of an instruction and its marker"),
        (dict(sampling=SamplingConfig(0.0)), "temperature 0 gives equal answers"),
        (dict(answers=AnswersConfig(check="own")), "need each other"),
        (dict(chat=""), "task.chat: needed"),
    ],
)
def test_wrong_settings_are_named(values, message):
    with pytest.raises(UserError, match=message):
        task(**values)


def test_a_run_needs_a_model_to_answer():
    c = SimpleNamespace(model=MODEL, split="train", init_from="")
    with pytest.raises(UserError, match="source is empty, and so is init_from"):
        task().check(c)
    with pytest.raises(UserError, match="split must be of train"):
        task(source="x").check(SimpleNamespace(**{**vars(c), "split": "test"}))
    with pytest.raises(UserError, match="task.answer 256: must be below"):
        task(source="x", answer=256).check(c)


def test_no_usable_answer_is_an_error_with_its_reasons(tmp_path):
    run, _ = run_in(tmp_path)
    run.left_out["answers"] = {self_made.CUT: 8}
    kept = {"self_made/kept": 0, "self_made/answers": 8}
    with pytest.raises(
        UserError, match="0 of 8 own answers .* 8 without an end; use a better model"
    ):
        self_made._written(run, [], kept)


@pytest.mark.slow  # its parts are tested above; two minutes
@pytest.mark.parametrize(
    "name", ["rl_problems", "two_phase", "rejection_sampling", "self_training"]
)
def test_every_debug_variant_runs(name, tmp_path):
    config = importlib.import_module(name).get_config("debug")
    for run in config.runs.values():
        run.log.update(tensorboard=False, progress=False)
    with quickly():
        summary = train.train(config, str(tmp_path / "work"))
    assert set(summary["rows"]) == set(config.report.rows)
    last = summary["rows"][config.order[-1]]
    assert 0 <= last["mean@2"] <= 1 and last["distinct_chains"] >= 1
    assert 0 <= last["start/mean@2"] <= 1 and last["tokens_ratio"] > 0
    if name == "two_phase":
        file = tmp_path / "work" / "runs" / "phase_one" / "conversations.jsonl"
        talks = [json.loads(line) for line in file.read_text().splitlines()]
        markers = [marker for _, marker in importlib.import_module(name).INSTRUCTIONS]
        assert talks and all(any(m in one["completion"] for m in markers) for one in talks)
        shown = metrics.read_steps(file.with_name("samples.jsonl"))
        assert shown and all(x["prompt"].strip() and isinstance(x["text"], str) for x in shown)
    if name == "self_training":
        said = lines(tmp_path / "work", "filtered")
        # A model of so few steps may have no majority at all; the share is then left out.
        assert any("majority/no_vote" in line for line in said)
        assert last["collapse_step"] is None
