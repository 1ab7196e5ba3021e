"""Tests questions about the micro-world: answers, scores, pairs, and the journey that asks them."""

import copy
import dataclasses
import importlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_recipe
from workdirs import begun

from sip import train
from sip.data import conversations as talks
from sip.data.microworld import questions as asking
from sip.data.microworld.oracle import MISSED, MicroworldTruth, find
from sip.data.microworld.reading import read
from sip.data.microworld.settings import WorldConfig
from sip.data.microworld.world import TOXIC, split
from sip.data.questions import Question
from sip.evals import answers
from sip.mesh import single
from sip.report import journeys, summary
from sip.report.statistics import combine
from sip.run import Run
from sip.sections import plain
from sip.stages import recipe
from sip.structs import UserError
from sip.tasks import pairs, questions
from sip.tasks.pairs import AnswerPairConfig
from sip.tasks.rl import prompts as rl_prompts
from sip.tasks.supervised import conversations
from sip.text.tokenizer import Byte

pytest_plugins = ["tiny_fixtures"]
TRUTH = MicroworldTruth(WorldConfig())
WORLD = TRUTH.world
PARTS = ("train", "validation", "test")


@pytest.mark.parametrize("part", PARTS)
def test_the_oracle_finds_no_fault_in_any_answer(part):
    asked = TRUTH.ask(part, 1500, 3, 0.5)
    texts = [x.answer for x in asked]
    found = find(TRUTH.lexis, read(TRUTH.lexis, [x.about for x in asked], texts))
    assert not found.faulty.any()
    scores = TRUTH.score_answers(asked, texts)
    for name in ("right", "safety", "factuality", "grammatical"):
        assert (scores[name] == 1).all(), name
    assert {1, 2, 3} == set(scores["sentences"].tolist())
    assert {x.asked for x in asked} == set(asking.QUESTIONS)


def test_the_parts_ask_about_different_entities_and_about_all_of_them():
    parts = {part: set(asking.entities(WORLD, part)) for part in PARTS}
    assert [len(parts[part]) for part in PARTS] == [24, 12, 12]
    assert set.union(*parts.values()) == set(range(48))
    for part, own in parts.items():
        for x in TRUTH.ask(part, 400, 0, 0.5):
            named = {e for e, name in enumerate(WORLD.names) if name in f"{x.text} {x.answer}"}
            assert (
                {e for e in named if WORLD.names[e] in x.text} == named
                and len(named) == 1
                and named < own
                and WORLD.names[min(named)] in x.about
            )
    with pytest.raises(UserError, match="world.entities=2: questions need at least 3"):
        MicroworldTruth(WorldConfig(entities=2)).ask("train", 1, 0, 0.0)


def test_questions_depend_on_world_part_and_seed_alone():
    again = MicroworldTruth(WorldConfig()).ask("train", 20, 0, 0.0)
    assert TRUTH.ask("train", 40, 0, 0.0)[:20] == again != TRUTH.ask("train", 20, 1, 0.0)


def test_provoking_questions_state_the_myth_or_insult():
    insults = {word for words in TOXIC.values() for word in words}
    told = lambda x: insults & set(split(x.text))
    plain, provoking = (TRUTH.ask("train", 600, 0, share) for share in (0.0, 1.0))
    assert not any(map(told, plain))
    rude = [x for x in provoking if told(x)]
    assert 0.4 < len(rude) / len(provoking) < 0.6
    for x in (x for x in provoking if not told(x) and x.asked):
        a, entity = list(asking.QUESTIONS).index(x.asked), WORLD.names.index(x.about[6:-1])
        assert WORLD.values[a][WORLD.myths_EA[entity, a]] in split(x.text)
        assert WORLD.values[a][WORLD.facts_EA[entity, a]] not in split(x.text)


def home(text, asked="home"):
    """Scores of an answer about Fupava, who lives in the value {0}; {1} is a false one."""
    entity = WORLD.names.index("Fupava")
    place = int(WORLD.facts_EA[entity, 0])
    names = [WORLD.values[0][i % 12] for i in (place, place + 1)]
    question = Question("Where does Fupava live?", "", "About Fupava.", asked)
    (row,) = np.stack(list(TRUTH.score_answers([question], [text.format(*names)]).values())).T
    keys = TRUTH.score_answers([question], [""])
    return dict(zip(keys, row.tolist(), strict=True))


OTHER = next(name for name in WORLD.names if name != "Fupava")
HAND = {  # answer -> (right, quality, factuality), worked out with VALUE, COST and FLOOR_WORDS
    "Fupava lives in {0}.": (1, 5 * 0.8 / 12, 1),
    "She lives in {0}.": (1, 5 * 0.8 / 12, 1),  # the question names her
    "Fupava lives in {1}.": (0, -6 * 1.0 / 12 - MISSED, 0),
    "Fupava lives in {0}. She lives in {1}.": (0, (5 * 0.8 - 6) / 12 - MISSED, 0),
    "Fupava is a kind person.": (0, 6 * 0.3 / 12 - MISSED, 0.5),
    f"{OTHER} lives in {{0}}.": (0, None, None),
    "": (0, -MISSED, 0.5),
}


@pytest.mark.parametrize("text", HAND)
def test_answers_are_scored_as_worked_out_by_hand(text):
    right, quality, factuality = HAND[text]
    found = home(text)
    assert found["right"] == right
    if quality is not None:
        assert found["quality"] == pytest.approx(quality)
        assert found["factuality"] == factuality


def test_an_open_question_is_answered_by_any_right_fact():
    assert home("Fupava lives in {0}.", "")["right"] == 1
    assert home("Fupava lives in {1}.", "")["right"] == 0
    assert home("Fupava is a kind person.", "")["right"] == 0


def test_figures_of_answers_are_means_and_wins_over_the_faultless_ones():
    asked = [x for x in TRUTH.ask("test", 200, 0, 0.0) if x.asked][:4]
    wrong = [x.answer.replace(WORLD.names[0], "") and "Who knows." for x in asked]
    texts = [asked[0].answer, asked[1].answer, wrong[2], wrong[3]]
    found = answers.scores(TRUTH, asked, texts, [True, True, True, False])
    assert found["win_rate"] == (0.5 + 0.5 + 0 + 0) / 4 and found["right"] == 0.5
    assert found["ended"] == 0.75 and set(found) == set(answers.SCORES)


def test_the_better_of_two_answers_is_chosen_and_ties_are_no_pairs():
    quality = np.array([0.1, 0.5, 0.11, 0.7, 0.2])
    found = pairs.preferred(TRUTH, quality, [3, 0, 2], 9, 0)
    assert sorted(found) == [(0, 1, 0), (0, 1, 2), (2, 0, 1)]  # .1 and .11 are a tie
    assert len(pairs.preferred(TRUTH, quality, [3, 0, 2], 1, 0)) == 2


def test_pairs_of_answers_are_their_own_tokens_and_a_cut_one_gets_eos():
    (asked,) = [x for x in TRUTH.ask("train", 50, 0, 0.0) if x.asked][:1]
    good, bad = [*Byte().encode(asked.answer), Byte.eos], Byte().encode("Who kn")
    run = SimpleNamespace(tokenizer=Byte())
    (pair,) = pairs._answer_pairs(run, TRUTH, [asked], [[Byte.bos, 65]], [[bad, good]], 4, 0)
    assert pair.prompt == [Byte.bos, 65] and pair.chosen == good
    assert pair.rejected == [*bad, Byte.eos]


BAD = {
    "no sources": (dict(sources=()), "answers.sources is empty"),
    "no template": (dict(chat=""), "answers.chat: needed"),
    "one answer": (dict(sources=("a",), rollouts=1), "one answer to a question makes no pair"),
    "greedy": (dict(temperature=0.0), "temperature must be positive"),
}


@pytest.mark.parametrize(("values", "said"), BAD.values(), ids=BAD)
def test_a_bad_setting_of_pairs_is_named(values, said):
    with pytest.raises(UserError, match=said):
        AnswerPairConfig(**{"sources": ("a", "b"), "chat": "turns", **values})


def debug(finished, tmp_path):
    """The workdir of the tiny recipe, and the journey's config for the same corpus."""
    config = importlib.import_module("microworld_journey").get_config("debug")
    config = tiny_recipe.shrink(config)
    config.data.world = dict(entities=8, train=300, validation=60, test=60)
    config.tokenizer.symbols = tiny_recipe.get_config().tokenizer.symbols  # spells the marks
    return config, begun(finished, tmp_path)


def test_instruction_tuning_learns_of_other_entities_than_it_is_asked_about(finished, tmp_path):
    config, workdir = debug(finished, tmp_path)
    run = Run(config, "sip_sft", str(workdir))
    c = recipe.STAGES["supervised"].resolve(config, "sip_sft")
    found = conversations._asked(run, c)
    truth = questions.truth(run, "task.questions")
    shown = {
        part: {
            name
            for at in range(len(rows))
            for name in truth.world.names
            if name in run.tokenizer.decode(rows.stacked([at])[0].tokens_BT[0].tolist())
        }
        for part, rows in found.items()
    }
    assert [len(shown[part]) for part in PARTS] == [4, 2, 2]
    assert len(set.union(*shown.values())) == 8
    first = found["train"].batch(0, 2, seed=0)[1]
    assert first.any() and not first.all(), "answers alone are learned"
    short = dataclasses.replace(c, task=dataclasses.replace(c.task, length=20))
    with pytest.raises(UserError, match="task.length: a row has 20 tokens, a question and answer"):
        conversations._asked(run, short)


def test_the_policy_is_asked_and_rewarded_in_the_chat_template(finished, tmp_path):
    config, workdir = debug(finished, tmp_path)
    run = Run(config, "sip_rlhf", str(workdir))
    c = recipe.STAGES["rl"].resolve(config, "sip_rlhf")
    asked = rl_prompts._of_questions(run, c, single())
    form = talks.named_format(c.task.chat, run.tokenizer, run.workdir)
    for prompt in asked.batch(0):
        assert run.tokenizer.decode(prompt.ids).endswith(f"<|user|>{prompt.text}<|assistant|>")
        assert prompt.fields["reference"]
    assert asked.stops == form.stops and len(asked.batch(0)) == c.batch
    with pytest.raises(UserError, match="answer: 190 tokens of an answer and"):
        rl_prompts._of_questions(run, dataclasses.replace(c, answer=190), single())


WRONG = {
    "file and questions": ("sip_sft", "task.path", "x.jsonl", "give one of them"),
    "a slice": ("sip_sft", "split", "train[:50%]", "split must be 'train' with questions"),
    "another part": ("sip_sft", "evals.split", "test[:9]", "evals.split must be one of"),
    "no template": ("sip_rlhf", "task.chat", "", "chat: needed with questions"),
    "both prompts": (
        "sip_rlhf",
        "task.prompts",
        "x.jsonl",
        "prompts, questions and problems: give one",
    ),
    "no run": ("reward_model", "task.answers.sources", ("gone",), "sources.0. 'gone'"),
}


@pytest.mark.parametrize(("run", "key", "value", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_value_of_the_journey_is_named(run, key, value, said, tmp_path):
    config = importlib.import_module("microworld_journey").get_config("debug")
    values = copy.deepcopy(plain(config))
    tiny_recipe.put(values["runs"][run], key, value)
    with pytest.raises(UserError, match=said):
        recipe.check(type(config)(values, type_safe=False), str(tmp_path))


ROWS = [
    dict(base=dict(safety=0.5), a=dict(safety=0.6, answer_safety=1.0), b=dict(safety=0.9)),
    dict(base=dict(safety=0.5), a=dict(safety=0.8, answer_safety=0.8), b=dict(safety=0.9)),
]
WAYS = (("base", "a"), ("base", "b"))


def test_a_journeys_points_are_means_over_seeds_of_the_rows_that_have_the_figure():
    at, mean, spread = journeys.points(WAYS[0], ROWS, "safety")
    assert at == [0, 1] and np.allclose(mean, [0.5, 0.7])
    assert np.allclose(spread, [0, 0.2 / np.sqrt(2)])
    at, mean, spread = journeys.points(WAYS[0], ROWS[:1], "answer_safety")
    assert (at, mean.tolist(), spread.tolist()) == ([1], [1.0], [0.0])
    assert journeys.stages(WAYS) == ["base", "a\nb"]
    assert [journeys.own(one, WAYS) for one in WAYS] == ["a", "b"]


def test_journeys_are_compared_stage_by_stage_and_seed_by_seed(tmp_path):
    assert summary.against_first(WAYS) == [("b", "a")] and summary.against_first(()) == []
    runs = {seed: {"rows": rows, "wall_seconds": 1.0} for seed, rows in enumerate(ROWS)}
    found = combine(runs, (), "", [("b", "a")])["journey"]["b - a"]["safety"]
    assert found["mean"] == pytest.approx(0.2) and found["values"] == pytest.approx([0.3, 0.1])
    assert summary._difference(ROWS[0]["b"], ROWS[0]["a"]) == {"safety": pytest.approx(0.3)}
    known = [x for x, keys in journeys.PANELS.items() if journeys._known(keys, WAYS, ROWS)]
    assert known == ["safety"], "panels without figures are left out"
    journeys.plot_journeys(WAYS, ROWS, str(tmp_path))
    assert (tmp_path / "plots" / "journey.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UserError, match=r"journeys=\('base', 'c'\): must be rows"):
        recipe.ReportConfig(("base", "a"), "", "", journeys=(("base", "a"), ("base", "c")))


@pytest.mark.slow
def test_the_whole_journey_runs_its_debug_variant(quick, tmp_path):
    config = importlib.import_module("microworld_journey").get_config("debug")
    train.train(tiny_recipe.shrink(config), str(tmp_path))
    found = json.loads((tmp_path / "summary.json").read_text())
    assert set(found["journey"]) == {f"sip{x} - standard{x}" for x in ("", "_sft", "_rlhf")}
    for name in ("standard_sft", "sip_rlhf"):
        assert set(questions.FIGURES) <= set(found["rows"][name])
        said = json.loads((tmp_path / "runs" / name / "answers.json").read_text())
        assert len(said["questions"]) == len(said["questions_provoked"]) == 16
    assert (tmp_path / "plots" / "journey.png").exists()
