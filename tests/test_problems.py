"""Tests problems: files, generated ones, those of the micro-world, and the forms of answers."""

import dataclasses
import gzip
import json
import time
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from sip.data import problems
from sip.data.documents import DataConfig, load, part
from sip.data.problems import GYM, ProblemsConfig
from sip.rewards.answers import AnswersConfig, Checker, Gold
from sip.structs import UserError

GSM8K = Path(__file__).resolve().parents[2] / "shared/data/gsm8k"
WORLD = dict(source="microworld_problems", world=dict(entities=6, train=50))


def written(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def test_lines_of_all_formats_are_read_and_others_counted(tmp_path):
    rows = [
        dict(problem="1+1?", answer="2", solution="Count."),
        dict(problem="AIME?", answer=204),
        dict(question="Eggs?", answer="16 - 7 = <<16-7=9>>9 eggs.\n#### 1,009"),
        dict(problem="none?"),
        dict(problem="null?", answer=None),
        dict(problem="blank?", answer=" "),
        dict(problem="list?", answer=[1]),
        dict(problem="long?", answer="1" * 41),
        dict(problem=" ", answer="1"),
        dict(question="steps only?", answer="steps ####"),
        dict(problem="\ud83d", answer="1"),
        [1],
    ]
    found, left_out = problems.read(written(tmp_path / "p.jsonl", rows), 0.9)
    assert [(p.text, p.answer, p.solution) for p in found] == [
        ("1+1?", "2", "Count."),
        ("AIME?", "204", ""),
        ("Eggs?", "1009", "16 - 7 = 9 eggs."),
    ]
    assert left_out == {
        f"{problems.NO_ANSWER} (fields seen: 'problem')": 4,
        problems.NO_SUCH_ANSWER: 1,
        problems.TOO_LARGE: 1,
        problems.NO_PROBLEM: 1,
        "not a JSON object": 1,
        "not UTF-8": 1,
    }
    with pytest.raises(UserError, match="p.jsonl:4: 9 of 12 problems cannot.*4 without an answer"):
        problems.read(str(tmp_path / "p.jsonl"), 0.1)


def test_an_answer_that_is_no_finite_number_is_left_out(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(f'{{"problem": "x?", "answer": {x}}}\n' for x in
                            ("NaN", "1e400", "-Infinity", "1e300")))  # fmt: skip
    found, left_out = problems.read(str(path), 0.9)
    assert [p.answer for p in found] == ["1e+300"] and left_out == {problems.NO_SUCH_ANSWER: 3}


def test_files_of_several_formats_a_folder_and_a_glob_are_read(tmp_path):
    """As the hub has them: Parquet in shards, with the test set beside them."""
    rows = [dict(question=f"{n}?", answer=f"It is <<{n}={n}>>{n}.\n#### {n}") for n in range(6)]
    folder = tmp_path / "main"
    folder.mkdir()
    for shard in range(2):
        table = pyarrow.Table.from_pylist(rows[3 * shard : 3 * shard + 3])
        parquet.write_table(table, folder / f"train-{shard:05}-of-00002.parquet")
    aime = dict(problem="AIME?", answer=204, year=2024)
    with gzip.open(tmp_path / "aime.jsonl.gz", "wt") as file:
        file.write(json.dumps(aime))
    for path, count in (
        (str(folder), 6),
        (f"{folder}/train-*.parquet", 6),
        (f"{folder}/train-00001-of-00002.parquet", 3),
        (f"{tmp_path}/aime.jsonl.gz,{tmp_path}/aime.jsonl.gz", 1),
    ):
        found, left_out = problems.read(path, 0.0)
        assert len(found) == count and not left_out
        ProblemsConfig(path=path).reach()
        assert ProblemsConfig(path=path).reads().keys() == {path}
        if count == 3:
            assert found[0] == problems.Problem("3?", "3", "It is 3.")
    assert found[0].answer == "204"
    parquet.write_table(table, folder / "test-00000-of-00001.parquet")
    assert len(ProblemsConfig(path=f"{folder}/train*").reads()[f"{folder}/train*"]) == 2
    with pytest.raises(UserError, match="test-00000-of-00001.parquet: is a test set by its na"):
        ProblemsConfig(path=str(folder)).reach()
    with pytest.raises(UserError, match="problems.path: .*aime.jsonl.gz: is JSON, not Parquet"):
        ProblemsConfig(path=f"{folder}/train*,{tmp_path}/aime.jsonl.gz").reach()
    parquet.write_table(pyarrow.Table.from_pylist([*rows, {"question": "?"}]), folder / "b.parquet")
    with pytest.raises(UserError, match="1 of 7 problems cannot be used.*1 without an answer"):
        problems.read(f"{folder}/b.parquet", 0.1)
    with pytest.raises(UserError, match=r"problems.test: .*a.csv: CSV is not read"):
        (tmp_path / "a.csv").write_text("problem,answer")
        ProblemsConfig(path=f"{folder}/train-*", test=str(tmp_path / "a.csv")).reach()


def test_no_problem_of_the_test_file_is_learned(tmp_path):
    """In another case and with other spaces too; its own parts are by the hash."""
    rows = [dict(problem=f"Problem {i}?", answer=i) for i in range(60)]
    asked = [dict(problem=f" problem  {i}!", answer=i) for i in range(5)]
    cfg = ProblemsConfig(
        path=written(tmp_path / "all.jsonl", [*rows, rows[7]]),
        test=written(tmp_path / "test.jsonl", asked),
    )
    parts, left_out = problems.load(cfg, {})
    assert left_out == {problems.IN_TEST: 5, problems.REPEATED: 1}
    assert len(parts["test"]) == 5 and len(parts["train"]) + len(parts["validation"]) == 55
    own, _ = problems.load(dataclasses.replace(cfg, test=""), {})
    texts = [{p.text for p in own[part]} for part in own]
    assert sum(map(len, texts)) == 60 == len(set().union(*texts)) and all(texts)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(path="gsm8k/test.jsonl"), "is a test set by its name, which is never trained on"),
        (dict(path="math500.jsonl"), "is a test set"),
        (dict(path="x.jsonl", kinds=("two_hop",)), "kinds is for generated problems"),
        (dict(source="microworld"), r"kinds \(\): must be of two_hop, running_sum"),
        (dict(source="microworld", kinds=("chain_sum",)), "must be of two_hop"),
        (dict(source=GYM, kinds=("chain_sum",), path="x"), "need source file"),
        (dict(source=GYM, kinds=("chain_sum",), level=6), "level=6"),
        (dict(path="x", template="Solve."), "has no {problem}"),
        (dict(path="x", form=" "), "form is empty"),
        (dict(path="x", form="It is {answer}"), "needs a word before {answer} and a mark after"),
    ],
)
def test_wrong_settings_are_named(values, message):
    with pytest.raises(UserError, match=message):
        ProblemsConfig(**values)


def test_a_missing_file_and_another_world_are_named(tmp_path):
    assert ProblemsConfig(path="latest.jsonl")  # not a test set
    with pytest.raises(UserError, match="problems.path 'nowhere.jsonl'|there is no such file"):
        ProblemsConfig(path="nowhere.jsonl").reach()
    with pytest.raises(UserError, match="problems.path: needed"):
        ProblemsConfig().reach()
    cfg = ProblemsConfig(source="microworld", kinds=("two_hop",))
    with pytest.raises(UserError, match="needs data.source microworld_problems, not txt"):
        problems.load(cfg, dict(source="txt"))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"So \boxed{1} or \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed {x} and then \boxed{y", "x"),
        (r"\boxed{ }", None),
        ("1", None),
    ],
)
def test_a_boxed_answer_is_the_last_whole_one(text, answer):
    assert problems.extract("boxed", text) == answer


@pytest.mark.parametrize("text", [r"\boxed{" * 5000, r"\boxed{" * 5000 + "{}", "{" * 40000])
def test_boxes_that_never_close_are_looked_through_once(text):
    """The time grew with the square of their number: 6.5 s for these."""
    started = time.process_time()
    assert problems.extract("boxed", text) is None
    assert time.process_time() - started < 1
    assert problems.extract("boxed", rf"\boxed{{7}} {text}") == "7"


def test_the_last_box_that_closes_is_found_inside_others():
    assert problems.extract("boxed", r"} \boxed{1 \boxed{2} {3}") == "2"
    assert problems.extract("boxed", r"\boxed{1 \fbox{2}} {") == "2"
    assert problems.extract("boxed", r"\boxed{1} \boxed{\frac{2}{3}} \boxed{{4}") == r"\frac{2}{3}"


@pytest.mark.parametrize(
    ("text", "answer", "more"),
    [
        ("Answer: 1\nno, Answer: 2\nDone.", "2", {}),
        ("Answer:", None, {}),
        ("2", None, {}),
        ("Answer: 1 2\n3 4\n5", "1 2\n3 4", dict(lines=2)),
        ("Answer: 12", None, dict(cut=True)),  # of 123?
        ("Answer: 12\nand", "12", dict(cut=True)),
    ],
)
def test_an_answer_after_a_marker_is_its_line(text, answer, more):
    assert problems.extract("Answer:", text, **more) == answer


SENTENCE = "The answer is {answer}."


@pytest.mark.parametrize(
    ("text", "answer", "more"),
    [
        (" The answer is Oxmoor.", "Oxmoor", {}),
        (" The answer is Oxmoor", "Oxmoor", {}),  # the model ends there
        (" The answer is Oxmoor. The friend of Bado is Fihefo.", "Oxmoor", {}),
        (" The answer is 3.5. It is.", "3.5", {}),
        (" The answer is 3.5", "3.5", {}),
        (" The answer is 12 coins.\nThe", "12 coins", {}),
        (" The answer is 5. What is 1 + 1? The answer is 2.", "5", {}),  # the next problem's
        (" The answer is\nThe answer is 2.", "2", {}),
        (" The answer is 1 2\n3 4. So", "1 2\n3 4", dict(lines=2)),
        (" The answer: 2.", None, {}),
        ("2", None, {}),
        (" The answer is 3.", None, dict(cut=True)),  # of 3.5?
        (" The answer is Oxm", None, dict(cut=True)),
        (" The answer is 3. The", "3", dict(cut=True)),
    ],
)
def test_an_answer_in_a_sentence_ends_with_the_sentence(text, answer, more):
    assert problems.extract(SENTENCE, text, **more) == answer


def test_the_thought_is_the_text_before_the_answer_that_counts():
    assert problems.thought(SENTENCE, "So. The answer is 3.5. The answer is 2.") == "So. "
    assert problems.thought("Answer:", "a Answer: 1 Answer: 2") == "a Answer: 1 "
    assert problems.thought("boxed", r"a \boxed{1} b \boxed{2}") == r"a \boxed{1} b "
    assert problems.thought(SENTENCE, "So.") == problems.thought("Answer:", "So.") == ""


@pytest.mark.parametrize("form", ["boxed", "Answer:", SENTENCE])
def test_what_is_taught_is_what_is_read(form):
    cfg = ProblemsConfig(path="x", form=form)
    problem = problems.Problem("1+1?", "2", "One and one.")
    text = problems.completion(cfg, problem)
    assert text.startswith("One and one.\n") and problems.extract(form, text) == "2"
    assert form in problems.prompt(cfg, problem)
    assert problems.prompt(dataclasses.replace(cfg, template="Q: {problem}"), problem) == "Q: 1+1?"


@pytest.mark.parametrize("kind", sorted(problems.GENERATORS))
def test_generated_problems_are_equal_each_time_and_their_answers_right(kind):
    pytest.importorskip("reasoning_gym")
    cfg = ProblemsConfig(source=GYM, kinds=(kind,), count=20)
    one, two = ([p for part in problems.load(cfg, {})[0].values() for p in part] for _ in "12")
    assert one == two and len(one) >= 10
    checker, golds = Checker(AnswersConfig(check="own")), [Gold(p.answer, p.entry) for p in one]
    assert set(checker.verdicts(golds, [p.answer for p in one])) == {"right"}
    assert set(checker.verdicts(golds, ["-1x"] * len(one))) == {"wrong"}
    # A higher level is another distribution; what it is is the library's.
    harder = problems.load(dataclasses.replace(cfg, level=5), {})[0]
    assert {p.text for p in one} != {p.text for part in harder.values() for p in part}


@pytest.fixture(scope="module")
def world():
    """The micro-world of problems with six entities."""
    return problems.world(WORLD)


def test_the_oracle_solves_questions_of_hops_by_its_facts(world):
    """Step by step: the relation nearest to the name first."""
    names, colours = world.world.names, world.world.values[5]
    friend, cousin = (world.related[r] for r in ("friend", "cousin"))
    first, last = friend[0], cousin[friend[0]]
    asked = world.solve(f"What is the colour of the cousin of the friend of {names[0]}?")
    colour = colours[world.world.facts_EA[last, 5]]
    assert asked.answer == colour and asked.steps == (
        f"The friend of {names[0]} is {names[first]}.",
        f"The cousin of {names[first]} is {names[last]}.",
        f"{names[last]} always wears {colour}.",
    )
    assert all(e != f for related in (friend, cousin) for e, f in related.items())


def test_the_oracle_adds_up(world):
    text = "Bado has 7 coins. Bado gets 5. Bado spends 12. How many coins does Bado have?"
    asked = world.solve(text)
    assert asked.steps == ("7 + 5 = 12.", "12 - 12 = 0.") and asked.answer == "0"
    with pytest.raises(ValueError, match="no problem"):
        world.solve("Who are you?")


def test_a_thought_supports_its_conclusion_with_all_true_steps_only(world):
    asked = world.problems("two_hop", 1, 1)[0]
    first, second = asked.steps
    name = world.world.names[0]
    ok = lambda thought, answer=asked.answer: world.supports(asked.text, thought, answer)
    assert ok(asked.thought) and ok(f"Let us see. {first} Hm. {second} Fine.")
    assert not ok(second) and not ok(f"{second} {first}") and not ok("")
    assert not ok(asked.thought, "nothing")
    false = f"The friend of {name} is {name}."
    assert world.holds(false) is False and not ok(f"{asked.thought} {false}")
    assert not ok(f"{asked.thought} 1 + 1 = 3.") and ok(f"{asked.thought} 1 + 1 = 2.")


@pytest.mark.parametrize("kind", ["two_hop", "running_sum"])
@pytest.mark.parametrize("level", [1, 3])
def test_problems_of_the_micro_world_are_solved_and_supported(world, kind, level):
    some = world.problems(kind, level, 30)
    assert len({one.text for one in some}) == 30 and some == world.problems(kind, level, 30)
    assert all(len(one.steps) == level + 1 for one in some)
    assert all(world.supports(one.text, one.thought, one.answer) for one in some)
    assert all(0 <= int(one.answer) <= 12 for one in some if kind == "running_sum")


def test_documents_state_only_what_is_true_and_ask_nothing(world):
    texts = load(DataConfig("microworld_problems", split="train", world=WORLD["world"]), "").texts
    assert len(texts) == len(set(texts)) == 50
    claims = [world.holds(sentence.strip()) for text in texts for sentence in world_sentences(text)]
    assert False not in claims and claims.count(True) > len(claims) / 3
    assert not any("?" in text or "How" in text or "What" in text for text in texts)
    half = DataConfig("microworld_problems", split="train[:50%]", world=WORLD["world"])
    assert load(half, "").texts == texts[:25]


def test_riddles_are_problems_of_the_same_part_with_the_steps_as_thoughts(world):
    made = dict(entities=12, train=60, test=30, riddles=0.5)
    load_part = lambda split: load(DataConfig("microworld_problems", split=split, world=made), "")
    for split in ("train", "test"):
        docs = load_part(split)
        thinker, count = docs.thinker, 0
        for text, row in zip(docs.texts, thinker.thoughts(docs.texts), strict=True):
            assert len(row) == text.count("?") == text.count("The answer is ")
            count += len(row)
            for at, thought in row:
                told = text[:at]
                held = max(told.rfind(" has "), 0)  # a sum starts a word before
                start = max(told.rfind("What is"), told.rfind(" ", 0, held) + 1)
                asked = thinker._world.solve(told[start:])
                assert asked.thought == thought and part(asked.text) == split
                assert text[at:].startswith(f" The answer is {asked.answer}.")
        assert count > len(docs.texts) / 2
    assert load(DataConfig("microworld_problems", world=WORLD["world"]), "").thinker is None


def world_sentences(text):
    return [f"{part}." for part in text.split(".") if part.strip()]


def test_gsm8k_is_read_whole():
    path = GSM8K / "train_2000.jsonl"
    if not path.exists():
        pytest.skip(f"needs {path}")
    found, left_out = problems.read(str(path), 0.0)
    assert len(found) == 2000 and not left_out
    assert all(p.solution and "<<" not in p.solution and "####" not in p.answer for p in found)
