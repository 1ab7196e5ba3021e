"""Tests the paper's evaluations: verdicts by hand, tiny checkpoints end to end, the command."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
import tiny
from workdirs import call

from sip import evaluate, mesh
from sip.evals import harness
from sip.evals.paper import asking, graders, measure, table, writing
from sip.evals.paper.asking import Exact, Panel
from sip.evals.paper.measure import Plan, Row
from sip.evals.paper.sets import PromptSet
from sip.evals.paper.writing import Written
from sip.judge import prompts
from sip.judge.scoring import TextJudge
from sip.models import decoder
from sip.structs import UserError
from sip.text.tokenizer import Byte
from sip.textgen.scripted import Scripted
from sip.training import checkpoints

pytest_plugins = ["tiny_fixtures"]
NAN = np.nan
STANDARD = PromptSet("standard", ["p1", "p2", "p3", "p4"], [" r"] * 4)


def panel(fn, *questions, names=asking.DIRECT, words=lambda trunk, branch, vote: None):
    aspects = {q: prompts.load(names[q]) for q in questions}
    some = tuple(aspects.values())
    return Panel(TextJudge(Scripted(fn, words), some, {a.name: 1.0 for a in some}), aspects)


def good_wins(trunk, branch, options):
    """Prefers the text with "good"; of two equal ones the first."""
    first, second = (part.count("good") for part in branch.split("Two:"))
    return [1.0, 0.0] if first >= second else [0.0, 1.0]


OURS = [" good", " bad", " x", " "]
THEIRS = [" bad", " good", " x", " good"]


def test_comparisons_by_hand():
    found = panel(good_wins, "quality").ask("quality", STANDARD.prompts, OURS, THEIRS, ())
    np.testing.assert_array_equal(found.value_E, [1, 0, 0.5, NAN])  # equal ones are not asked
    assert found.counts["first"] == (2.0, 4.0) and found.counts["flips"] == (0.0, 2.0)


def test_a_judge_of_positions_calls_everything_a_draw():
    judge = panel(lambda *_: [0.9, 0.1], "quality")
    found = judge.ask("quality", STANDARD.prompts, OURS, THEIRS, ())
    np.testing.assert_array_equal(found.value_E, [0.5, 0.5, 0.5, NAN])
    assert found.counts["flips"] == (2.0, 2.0) and found.counts["first"] == (4.0, 4.0)


def test_votes_are_averaged_and_unreadable_ones_left_out():
    said = {" good": "FINAL DECISION: YES", " bad": "FINAL DECISION: NO", " x": "well"}
    words = lambda trunk, branch, vote: next((w for t, w in said.items() if t in branch), None)
    judge = panel(None, "safety", names=asking.REASONED, words=words)
    found = judge.ask("safety", STANDARD.prompts, OURS, OURS, ())
    np.testing.assert_array_equal(found.value_E, [1, 0, NAN, NAN])
    assert "without a verdict" in found.why


def test_a_prompt_of_another_kind_is_refused():
    with pytest.raises(UserError, match="quality=safety: the prompt must be pairwise"):
        panel(good_wins, "quality", names={"quality": "safety"})
    with pytest.raises(UserError, match="'factuality' shows a reference, and these .* none"):
        panel(good_wins, "factuality").ask("factuality", ["p"], [" a"], [" a"], ())


class Counts:
    """A ground truth that counts the word "good", and repetitions of "x"."""

    def score(self, prefixes, texts):
        good = np.array([text.count("good") for text in texts], float)
        again = np.array([text.count("x") for text in texts], float)
        safe = (good > 0).astype(float)
        return {"quality": good, "repetition": again, "safety": safe, "factuality": safe / 2}

    def compare(self, a, b):
        return np.where(a == b, 0.5, (a > b).astype(float))


def test_exact_verdicts_by_hand():
    exact = Exact(Counts())
    ask = lambda q, ours, theirs: exact.ask(q, ["p"] * len(ours), ours, theirs, ()).value_E
    np.testing.assert_array_equal(ask("quality", OURS, THEIRS), [1, 0, 0.5, NAN])
    np.testing.assert_array_equal(ask("coherence", [" xx", " x"], [" x", " xx"]), [0, 1])
    np.testing.assert_array_equal(ask("safety", OURS, OURS), [1, 0, 0, NAN])
    np.testing.assert_array_equal(ask("factuality", OURS, THEIRS), [0.5, 0, 0, NAN])


def rows(**texts) -> dict[str, Row]:
    return {name: Row(written={"standard": Written(some, 0)}) for name, some in texts.items()}


def test_the_bias_of_a_judge_by_hand():
    """A judge to which everything is safe, and one that knows."""
    plan = Plan([STANDARD], ["safety"])
    made = rows(base=[" bad"] * 4, a=[" good", " bad", " good", " x"], b=[" good"] * 4)
    measure.ask(plan, made, panel(lambda *_: [1.0, 0.0], "safety"))
    (line,) = measure.trust(plan, made, {}, Counts())
    assert line["bias"]["mean"] == pytest.approx(np.mean([[1] * 4, [0, 1, 0, 1], [0] * 4]))
    assert (
        line["exact"] == {"base": 0, "a": 0.5, "b": 1} and line["rank"]["mean"] is None
    )  # constant
    assert measure.unranked([line, line])[0].startswith(
        "no rank correlation in safety, standard; safety, standard: it needs three checkpoints"
    )
    knows = lambda trunk, branch, options: [0.8, 0.2] if "good" in branch else [0.2, 0.8]
    measure.ask(plan, made, panel(knows, "safety"))
    (line,) = measure.trust(plan, made, {}, Counts())
    assert line["bias"]["mean"] == pytest.approx(0) and line["rank"]["mean"] == pytest.approx(1)
    assert line["valid"] == 1 and line["checkpoints"] == 3 and not measure.unranked([line])
    low, high = line["rank"]["low"], line["rank"]["high"]
    shown = table._judge({"judge": [line]}).rows[0][-1]
    assert shown == f"1.00 [{low:.2f}, {high:.2f}] of 3" and -1 <= low <= high <= 1


def test_a_judge_without_a_valid_verdict_is_an_error():
    plan, made = Plan([STANDARD], ["safety"]), rows(base=[" a"] * 4)
    with pytest.raises(
        UserError, match="base: no valid verdict on safety of 4 prompts of standard"
    ) as e:
        measure.ask(plan, made, panel(lambda *_: [0.1, 0.1], "safety"))
    assert "min_mass" in str(e.value)
    made = rows(base=[" "] * 4)
    with pytest.raises(UserError, match="4 continuations are empty"):
        measure.ask(plan, made, panel(good_wins, "safety"))


def test_figures_of_standard_tasks():
    piqa = {"alias": "piqa", "acc,none": 0.5, "acc_norm,none": 0.6, "acc_norm_stderr,none": 0.1}
    gsm8k = {"exact_match,strict": 0.2, "exact_match_stderr,strict": "N/A"}
    results = {"piqa": piqa, "gsm8k": gsm8k}
    assert measure.task_figures(results) == {"piqa": (0.6, 0.1), "gsm8k": (0.2, None)}
    plan, row = Plan([], []), Row(tasks={"task/piqa": (0.6, 0.1)})
    assert measure.part(plan, row, "task/piqa").low == pytest.approx(0.6 - 0.1959964)
    with pytest.raises(UserError, match="--tasks x: has none of the figures"):
        measure.task_figures({"x": {"bleu,none": 1.0}})


BOOK = PromptSet("realtoxicityprompts", ["The lamp", "A", "x" * 90, "Mira said"])


def test_long_prompts_are_cut_from_the_left_and_counted(of_bytes):
    model = harness.adapter(of_bytes("base"), mesh.single(), batch=4)
    found = writing.write(model, BOOK.prompts, steps=8)
    assert found.cut == 1 and len(found.texts) == 4
    again = writing.write(model, [BOOK.prompts[2][-(64 - 8) :]], steps=8)
    assert again.texts[0] == found.texts[2] and again.cut == 1  # BOS does not fit either


def test_a_stop_token_is_no_part_of_a_continuation(of_bytes, monkeypatch):
    model = harness.adapter(of_bytes("base"), mesh.single(), batch=4)
    stop = model.tokenizer.stops[0]
    new = [[65, 66, stop], [stop], [65, 66]]
    monkeypatch.setattr(writing.likelihoods, "generate", lambda *args, **how: new)
    found = writing.write(model, ["p"] * 3, steps=8)
    assert found.texts == ["AB", "", "AB"] and found.empty == 1


@pytest.fixture
def places(of_bytes, tmp_path):
    """Returns a baseline and another tiny checkpoint, and prompts."""
    other = tmp_path / "other"
    record = {"model": dataclasses.asdict(tiny.BYTES)}
    checkpoints.save_params(str(other), tiny.params(tiny.BYTES, seed=1), record)
    (other / "tokenizer.json").write_text('{"kind": "byte"}')
    own = [
        {"prefix": f"{word} and", "reference": " so on"} for word in ("Mira", "Tebano", "x" * 80)
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    toxic = "".join(json.dumps({"prompt": {"text": text}}) + "\n" for text in BOOK.prompts)
    (tmp_path / "rtp.jsonl").write_text(toxic)
    qa = dict(knowledge="K.", question="Q?", right_answer="yes", hallucinated_answer="nonsense")
    (tmp_path / "qa.jsonl").write_text(json.dumps(qa) + "\n")
    mc = dict(question="Q?", mc1_targets={"a": 1, "b": 0}, mc2_targets={"a": 1, "bc": 1, "d": 0})
    (tmp_path / "mc.json").write_text(json.dumps([mc, mc]))
    return of_bytes("base"), str(other)


def flags_of(places, path, *more):
    files = dict(standard="own.jsonl", realtoxicityprompts="rtp.jsonl", halueval="qa.jsonl")
    given = [f"--benchmark={name}={path / file}" for name, file in files.items()]
    return ["--evals=paper", f"--baseline={places[0]}", f"--checkpoint={places[1]}", *given, *more]


def judge_of_lengths(monkeypatch):
    """Puts a scripted judge in the place of a local one: short is good, and all is safe."""

    def fn(trunk, branch, options):
        if "Two:" not in branch:
            return [1.0] + [0.0] * (len(options) - 1)
        first, second = branch.split("Two:")
        return [0.9, 0.1] if len(first) - len("One:") < len(second) else [0.2, 0.8]

    def build(wanted, *rest):
        some = wanted.aspects()
        return TextJudge(Scripted(fn), some, {a.name: 1.0 for a in some})

    monkeypatch.setattr(evaluate.judges, "build", build)


def test_tiny_checkpoints_end_to_end(places, tmp_path, capsys, monkeypatch):
    judge_of_lengths(monkeypatch)
    out, told = tmp_path / "out.json", tmp_path / "told.jsonl"
    argv = flags_of(
        places, tmp_path, f"--benchmark=truthfulqa={tmp_path / 'mc.json'}", "--continuation=8",
        f"--judged_by={places[0]}", "--judge_questions=quality,safety,factuality",
        f"--details={told}", "--batch=4",
    )  # fmt: skip
    assert call(evaluate, *argv, f"--out={out}") == 0
    shown = capsys.readouterr().out
    found = json.loads(out.read_text())
    names = [column["name"] for column in found["columns"]]
    assert names == ["quality, standard", "factuality", "safety"]
    assert list(found["rows"]) == ["base", "other"]
    assert found["rows"]["base"]["quality, standard"]["mean"] == 0.5
    parts = found["parts"]["other"]
    assert {"halueval", "truthfulqa_mc1", "truthfulqa_mc2", "factuality/standard"} < set(parts)
    four = [parts[m]["mean"] for m in parts if m.split("/")[0] not in ("quality", "safety")]
    assert found["rows"]["other"]["factuality"]["mean"] == pytest.approx(np.mean(four))
    assert found["rows"]["other"]["safety"]["mean"] == 1
    assert {d["column"] for d in found["differences"]} == set(names)
    assert any("1 prompts of standard were cut" in note for note in found["notes"])
    lines = [json.loads(line) for line in told.read_text().splitlines()]
    assert len(lines) == 2 * (3 + 4)
    mine = [x["values"]["quality"] for x in lines if x["set"] == "standard" and x["row"] == "other"]
    assert parts["quality/standard"]["mean"] == pytest.approx(np.mean(mine))
    assert "quality, standard" in shown and "halueval" in shown and "were cut" in shown
    assert call(evaluate, *argv, f"--out={tmp_path / 'out.md'}", "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"] == found["rows"]
    text = (tmp_path / "out.md").read_text()
    assert "| checkpoint | quality, standard | factuality | safety |" in text
    assert text == table.markdown(found)


def test_a_real_judge_without_verdicts_is_one_line(places, tmp_path, capsys):
    """The random judge is about to write something else than the options."""
    byte = tmp_path / "mine.txt"
    byte.write_text(
        'version: 1\nkind: pointwise\noptions: ["Y", "N"]\nvalues: [1, 0]\n=== trunk\nSafe?\n'
        "=== branch\nText:{text}\n"
    )
    argv = flags_of(places, tmp_path, f"--judged_by={places[1]}", "--judge_questions=safety")
    assert (
        call(evaluate, *argv, "--continuation=8", f"--judge_aspects=safety={byte}", "--batch=4")
        == 2
    )
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert "no valid verdict on safety" in line and "min_mass" in line


BAD = {
    "no baseline": (["--baseline="], "--baseline is needed"),
    "no such set": (["--benchmark=toxic=x"], "NAME=FILE, NAME one of standard"),
    "twice": (["--benchmark=halueval=x"], "halueval: is given twice"),
    "no truth": (["--judged_by=truth"], "has no ground truth"),
    "no question": (["--judge_questions=poetry"], "--judge_questions: 'poetry' is none of"),
    "no grader": (["--graders=poetry"], "--graders: 'poetry' is none of"),
    "no model": (["--judged_by=http://127.0.0.1:9/v1"], "model is needed"),
    "no aspect": (["--judged_by=x", "--judge_aspects=poetry"], "must be QUESTION=PROMPT"),
    "no room": (["--continuation=64"], "leave no room for a prompt in max_len 64"),
    "no details": (["--details=config.json"], "--details config.json: must end in .jsonl"),
    "negative": (["--limit=-1"], "--limit must be at least 0"),
}


@pytest.mark.parametrize("flags, named", BAD.values(), ids=BAD)
def test_bad_flags_are_one_line(flags, named, places, tmp_path, capsys):
    assert call(evaluate, *flags_of(places, tmp_path, *flags)) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert named in line


def test_nothing_to_evaluate_is_an_error(places, capsys):
    argv = ["--evals=paper", f"--baseline={places[0]}", f"--checkpoint={places[1]}"]
    assert call(evaluate, *argv) == 2
    assert "nothing to evaluate" in capsys.readouterr().err
    assert call(evaluate, *argv, "--graders=grammar") == 2
    assert "no set of prompts that it grades" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, module",
    [("profanity", "profanity_check"), ("grammar", "harper"), ("words", "wordfreq")],
)
def test_a_grader_without_its_package_says_how_to_get_it(name, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"--graders=\w+ needs [\w-]+: pip install .*graders"):
        graders.load(name)


def test_profanity_is_a_share_of_texts():
    pytest.importorskip("profanity_check")
    found = graders.load("profanity")(["p"] * 3, [" you stupid idiot", " a kind word", " "])
    np.testing.assert_array_equal(found, [1, 0, NAN])


def test_grammar_counts_the_lints_of_the_continuation_alone():
    pytest.importorskip("harper")
    grade = graders.load("grammar")
    found = grade(
        ["He go to the the store and"] * 2, [" bought the the milk today.", " bought milk today."]
    )
    assert found[0] == pytest.approx(100 / 5) and found[1] == 0


def test_unknown_words_are_a_share_of_words():
    pytest.importorskip("wordfreq")
    found = graders.load("words")(["p"] * 3, [" the blorptic house sings", " a house", "  "])
    np.testing.assert_array_equal(found, [1 / 4, 0, NAN])


def test_repetition_is_a_share_of_runs_of_three_words():
    grade = graders.load("repetition")
    found = grade(["x"] * 4, [" a b c a b c", " a b c d", " a b", ""])
    # Runs: abc, bca, cab, abc.
    np.testing.assert_array_equal(found, [1 / 4, 0, 0, NAN])


def test_the_likelihood_is_the_second_models_of_the_continuation(of_bytes):
    directory = of_bytes("second")
    prompts, texts = ["one", "another one"], [" more", " "]
    found = graders.likelihood(directory, mesh.single(), batch=2)(prompts, texts)
    ids = [*Byte().encode(prompts[0]), *Byte().encode(texts[0])]
    tree = tiny.trunk_only(np.array([[Byte.bos, *ids]]))
    params = tiny.params(tiny.BYTES)
    trunk_BTD = decoder.apply(params, tiny.BYTES, tree).trunk_BTD
    logp_TV = jax.nn.log_softmax(trunk_BTD[0] @ decoder.unembed(params, tiny.BYTES))
    at = range(len(prompts[0]), len(ids))
    want = -np.mean([logp_TV[t, ids[t]] for t in at])
    assert found[0] == pytest.approx(want, rel=1e-4) and np.isnan(found[1])


def test_checkpoints_of_one_name_are_shown_by_their_paths():
    assert evaluate.named(["/a/base", "/b/sip/", "/c/base"]) == {
        "/a/base": "/a/base", "sip": "/b/sip/", "/c/base": "/c/base",
    }  # fmt: skip


def test_the_ground_truth_judges_the_runs_of_its_corpus(finished, quick, tmp_path, capsys):
    """Against `sip.evaluate` on the same prefixes; texts are encoded anew here, so nearly equal."""
    run = finished / "runs"
    argv = [
        "--evals=paper", f"--baseline={run / 'base'}", f"--checkpoint={run / 'sip_oracle'}",
        "--judged_by=truth", "--split=test", "--standard=16", "--unsafe=8", "--batch=16", "--json",
    ]  # fmt: skip
    assert call(evaluate, *argv) == 0
    found = json.loads(capsys.readouterr().out)["parts"]["sip_oracle"]
    wrote = json.loads((run / "sip_oracle" / "eval.json").read_text())
    assert found["quality/standard"]["mean"] == pytest.approx(wrote["win_rate_standard"], abs=0.13)
    assert found["factuality/standard"]["mean"] == pytest.approx(wrote["factuality"], abs=0.13)
    assert found["quality/standard"]["count"] == 16 and found["safety/unsafe"]["count"] == 8
