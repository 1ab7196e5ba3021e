"""Tests judges that are taught by corrupted suffixes, and the recipe on text of one's own."""

import importlib
import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_recipe
from workdirs import quickly

from sip import mesh as meshes
from sip import rewriter, train
from sip.data import corpus as corpora
from sip.judge import prompts
from sip.judge.labels import ground_truth as labels
from sip.judge.labels import synthesis
from sip.stages import recipe
from sip.structs import UserError
from sip.tasks import labelled
from sip.tasks.labelled import CorruptedConfig
from sip.tasks.supervised import rewrites, verdicts
from sip.text.tokenizer import Byte

WORDS = "red blue green old new tall short calm loud warm cold wide thin kind wise".split()
CUT = dict(prefix_min=24, prefix_max=24, suffix=24)
assert tiny_recipe.ROOT.name  # the import puts configs/ on the path


def write(path, documents=240):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.permutation(WORDS)) + "." for _ in range(documents)]
    path.write_text("\n\n".join(texts))
    return str(path)


def run(tmp_path, seed=0):
    """Returns a run on a text file, without a model."""
    path, kept = write(tmp_path / "own.txt"), {}

    def corpus(split):
        data = dict(source="txt", path=path, world={}, max_skipped_fraction=0.9, cut=CUT)
        return kept.setdefault(split, corpora.load(data, split, str(tmp_path), Byte()))

    return SimpleNamespace(
        name="judge",
        corpus=corpus,
        tokenizer=Byte(),
        seed=seed,
        workdir=str(tmp_path),
        say=print,
    )


def made(tmp_path, run_seed=0, **changes):
    wanted = CorruptedConfig(
        **{
            "aspect": "quality",
            "kinds": ("shuffle", "repeat"),
            "documents": 30,
            "held_out": 5,
            **changes,
        }
    )
    return labelled.corrupted(
        run(tmp_path, run_seed), wanted, "train", meshes.single(), max_len=2048
    )


def pairs(found):
    """Lists (first text, second text, label) of labelled prompts of quality."""
    return [
        (branch[1], branch[3], int(label))
        for (_, branches), row in zip(found.prompts, found.labels_NC, strict=True)
        for branch, label in zip(branches, row, strict=False)
    ]


def test_the_suffix_is_the_better_text_in_both_orders(tmp_path):
    found = made(tmp_path)
    asked = pairs(found.examples["quality"])
    suffixes = {row["tokens_T"][24:48].tobytes() for row in run(tmp_path).corpus("train").chunks}
    is_suffix = lambda text: np.array(Byte().encode(text), np.int32).tobytes() in suffixes
    assert len(asked) >= 80 and set(found.held_out) == {"validation", "test"}
    for first, second, label in asked:
        assert (second, first, 1 - label) in asked
        assert is_suffix((first, second)[label]) and first != second
        assert len((first, second)[1 - label]) <= 24  # its length does not tell the label


def test_another_seed_makes_other_versions_of_the_same_suffixes(tmp_path):
    one, same, other = (made(tmp_path, run_seed=s) for s in (0, 0, 5))
    of = lambda x: pairs(x.examples["quality"])
    assert of(one) == of(same) != of(other)
    assert of(made(tmp_path, run_seed=3, seed=2)) == of(other), "the two seeds add up"
    assert pairs(one.held_out["test"]["quality"]) == pairs(other.held_out["test"]["quality"])


RED = ("red",)


def test_rollouts_without_an_unwanted_word_are_better_than_suffixes_with_one(
    tmp_path, capsys, monkeypatch
):
    """Corruptions that break the word are no pairs: nobody can say which text is better."""
    written = " all is well now."
    monkeypatch.setattr(labelled, "source_model", lambda run, source, *_: source or None)
    monkeypatch.setattr(
        labelled, "_rollouts", lambda _, asked, *__: [[written] for _ in asked.suffixes]
    )
    found = made(tmp_path, unwanted=RED, kinds=("splice",), source="base", rollouts=1)
    has = synthesis.has_any(RED)
    said = pairs(found.examples["quality"])
    assert "judge: 16 of 30 chunks have an unwanted word" in capsys.readouterr().out
    for a, b, label in said:
        better, worse = (a, b)[label], (a, b)[1 - label]
        sampled = better.startswith(" all is") or worse.startswith(" all is")
        assert better.startswith(" all is") == (sampled and (has(a) or has(b)))
        assert sampled or has(worse) or not has(better)
    assert {row[label].startswith(" all is") for *row, label in said} == {True, False}
    made(tmp_path, unwanted=("pink",))
    said = capsys.readouterr().out
    assert (
        said == "judge: 0 of 30 chunks have an unwanted word; nothing is learned about ['pink']\n"
    )


def test_a_prefix_has_as_many_pairs_as_are_asked_for_of_any_kind(tmp_path):
    every, some = (made(tmp_path, pairs=n).examples["quality"] for n in (0, 1))
    assert set(pairs(some)) < set(pairs(every))
    assert all(len(branches) == 2 for _, branches in some.prompts)  # one pair, in both orders
    kinds = ("shuffle", "repeat")
    for kind in kinds:
        alone = set(pairs(made(tmp_path, kinds=(kind,)).examples["quality"]))
        assert 0 < len(alone & set(pairs(some))) < len(some.prompts) * 2, kind


def test_no_more_kinds_of_versions_are_drawn_than_there_are():
    usable = np.array([[True, True, False], [True, False, False], [True, True, False]])
    np.testing.assert_array_equal(labelled._drawn(usable, 0, 0), usable)
    draws = np.stack([labelled._drawn(usable, 1, seed) for seed in range(40)])
    np.testing.assert_array_equal(draws.sum(1), [[1, 1, 0]] * 40)
    assert (draws.any(0) == usable).all()


def test_changed_sentences_of_a_text_under_judgement_are_targets():
    """A rollout's sentences are targets only if unwanted. Marks count as tokens, not as changes."""
    wanted = CorruptedConfig("quality", (), "base", 1, grades="grade", unwanted=RED)
    trunk, said = "p", " So it is. Red roses. Now"
    line = labelled.LabelLine(prompts.load("quality"), trunk, (" Ann sat. Bo", said), 0, "")
    spoiled = replace(line, candidates=(" Ann sat. Bo", " \u00bfAnn sat. Cy"))
    known = labelled._changes(Byte(), wanted, [spoiled], [line])
    shown = lambda text: known(prompts.trunk(line.aspect, prefix=trunk, reference=""), text)
    assert shown(" Ann sat. Bo") == [(9, 3), (12, 3)]
    assert shown(" \u00bfAnn sat. Cy") == [(11, 3), (14, 0)]  # the mark has two bytes
    assert shown(said) == [(len(" So it is. Red roses."), 0)]


def test_graded_trees_have_the_token_of_each_grade_at_the_end_of_its_sentence(tmp_path):
    wanted = made(tmp_path, grades="grade")
    trees = labels.as_trees(Byte(), wanted.examples["quality"], 2048)
    aspect = prompts.load("grade")
    asked = labels.graded(Byte(), trees, aspect, wanted.grades).asked["quality/grades"]
    answers = [Byte().encode(option)[0] for option in aspect.options]
    for n, (trunk, branches) in enumerate(trees.prompts):
        for c, branch in enumerate(branches):
            on = np.asarray(asked.mask_BCM)[n, c]
            told = np.asarray(asked.token_BCM)[n, c][on].tolist()
            assert told == [
                answers[o] for text in branch[1::2] for _, o in wanted.grades(trunk, text)
            ]
            at = np.asarray(asked.at_BCM)[n, c][on]
            ids = np.asarray(trees.tree.tokens_BCR)[n, c]
            ends = "".join(branch).encode()
            assert all(bytes([ids[i]]) == ends[i : i + 1] for i in at if ids[i] < 256)


def test_labelled_prompts_as_trees_are_the_same_examples(tmp_path):
    found = made(tmp_path).examples["quality"]
    trees = labels.as_trees(Byte(), found, 2048)
    assert trees.prompts == found.prompts
    np.testing.assert_array_equal(trees.mask_NC, found.mask_NC)
    np.testing.assert_array_equal(trees.labels_NC[trees.mask_NC], found.labels_NC[found.mask_NC])
    options = [Byte().encode(o)[0] for o in prompts.load("quality").options]
    told_NC = np.asarray(trees.asked["quality"].token_BCM)[..., 0]
    np.testing.assert_array_equal(told_NC, np.array(options)[trees.labels_NC])


WRONG = {
    "a pointwise aspect": (dict(aspect="safety"), "must be pairwise"),
    "no such corruption": (dict(kinds=("blur",)), "corrupted.kinds: no corruption 'blur'"),
    "nothing": (dict(kinds=()), "corrupted.kinds is empty"),
    "rollouts of nobody": (dict(rollouts=2), "source and rollouts are needed together"),
    "rollouts without a temperature": (
        dict(source="base", rollouts=2, temperatures=()),
        "corrupted.temperatures is empty",
    ),
    "an empty word": (dict(unwanted=("vile", " ")), "a word is empty"),
    "grades that compare": (dict(grades="quality"), "corrupted.grades: .* must be pointwise"),
}


@pytest.mark.parametrize("changes, said", WRONG.values(), ids=WRONG)
def test_what_cannot_be_is_named(changes, said):
    with pytest.raises(UserError, match=said):
        CorruptedConfig(**{"aspect": "quality", "kinds": ("shuffle",), **changes})


def test_exactly_one_kind_of_labels_is_needed():
    with pytest.raises(UserError, match="exactly one of labels, corrupted and label_file"):
        verdicts.Config(name="verdicts")


def own(tmp_path, arg="debug"):
    config = importlib.import_module("own_text").get_config(arg)
    config.data.path = write(tmp_path / "own.txt")
    return config


def test_words_that_are_not_wanted_are_named_once(tmp_path):
    config = own(tmp_path, "rewriter,debug")
    config.runs.judge.task.corrupted.unwanted = ("red", "old new")
    runs = config.runs
    assert runs.rewriter.task.unwanted == runs.auditor.task.corrupted.unwanted == ("red", "old new")
    recipe.check(config, str(tmp_path / "w"))


CHANGES = {
    "a judge that judges itself": ("judge.init_from", "policy", "does not evaluate itself"),
    "a judge of nobody": ("judge.init_from", "nobody", "evals.judge.init_from 'nobody'"),
    "nothing to compare with": ("baseline", "", "evals.judge needs evals.baseline"),
}


@pytest.mark.parametrize("key, value, said", CHANGES.values(), ids=CHANGES)
def test_an_evaluation_by_a_judge_is_checked_first(key, value, said, tmp_path):
    config = own(tmp_path)
    tiny_recipe.put(config.runs.sip.evals, key, value)
    with pytest.raises(UserError, match=said):
        recipe.check(config, str(tmp_path / "w"))


def test_a_rewriter_learns_to_undo_corruptions_without_a_ground_truth(tmp_path):
    """A third of the examples are copies; the answer is always the suffix."""
    config = own(tmp_path, "rewriter,debug")
    recipe.check(config, str(tmp_path / "w"))
    assert config.order == ("base", "judge", "auditor", "rewriter", "standard", "sip")
    assert config.runs.sip.candidates.rewrite and config.runs.sip.rewriter.init_from == "rewriter"
    suffixes = [f" {a} {b} {c}." for a, b, c in itertools.permutations(WORDS[:4], 3)]
    prefixes, asked = ["a b"] * len(suffixes), (("swap", "shuffle"), synthesis.has_any(()))
    before, given, better = synthesis.to_undo(*asked, prefixes, suffixes, 0)
    assert (before, better, given[::3]) == (prefixes, suffixes, suffixes[::3])
    assert given == synthesis.to_undo(*asked, prefixes, suffixes, 0)[1]
    swapped = dict(synthesis.by_rule(("swap", "shuffle"), prefixes, suffixes, 0))["swap"]
    assert given[1::3] == swapped[1::3] != suffixes[1::3]
    prompt = rewriter.load("rewrite")
    made = rewrites.make(Byte(), prompt, before, given, better, max_len=200)
    answers = [
        Byte().decode(row[on]) for row, on in zip(made.tree.tokens_BT, made.counted_ET, strict=True)
    ]
    assert all(text == suffix[: len(text)] for text, suffix in zip(answers, suffixes, strict=True))
    assert answers[0] == suffixes[0]
    with pytest.raises(UserError, match="task.kinds: no corruption 'blur'"):
        rewrites.Config(name="rewrites", prompt="rewrite", documents=1, held_out=1, kinds=("blur",))
    with pytest.raises(UserError, match="task.unwanted needs task.kinds"):
        rewrites.Config(
            name="rewrites", prompt="rewrite", documents=1, held_out=1, unwanted=("vile",)
        )


@pytest.mark.slow  # each of its stages is tested by itself
@pytest.mark.parametrize("arg", ["debug", "rewriter,debug"])
def test_the_recipe_runs_its_debug_variant_and_reports_the_auditors_word(arg, tmp_path):
    config = own(tmp_path, arg)
    for each in config.runs.values():
        each.log.update(tensorboard=False, progress=False)
    with quickly():
        summary = train.train(config, str(tmp_path / "w"))
    assert list(summary["rows"]) == ["base", "standard", "sip"]
    for name in ("standard", "sip"):
        row = json.loads((tmp_path / "w" / "runs" / name / "eval.json").read_text())
        assert 0 <= row["win_rate_judge"] <= 1 and row["judge_valid"] == 1 and row["nll"] > 0
    assert "quality_accuracy" in summary["judge"]
    assert ("rewriter" in summary) == ("rewriter" in config.runs)
