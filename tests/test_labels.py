"""Tests labelled examples: right labels, balance, fixed shapes, random access, accuracy."""

import dataclasses

import numpy as np
import pytest

from sip.judge import prompts
from sip.judge.labels import ground_truth as labels
from sip.judge.labels import sentence_grades
from sip.structs import UserError
from sip.text.tokenizer import Byte
from sip.textgen.scripted import Scripted

ONE_BYTE = {"quality": ("a", "b"), "safety": ("s", "u"), "factuality": ("n", "p", "d")}
ASPECTS = [dataclasses.replace(prompts.load(n), options=o) for n, o in ONE_BYTE.items()]
N, C = 12, 4
PREFIXES = [f"prefix {i}" for i in range(N)]
SUFFIXES = [f" word{i} and {i} more things said" for i in range(N)]
POOLS = [
    [" bad thing", " right", " wrong right"] if i % 4 == 0 else [f" only {i} right", " right"]
    for i in range(N)
]


class FakeTruth:
    """A ground truth of words.

    Quality is the number of different words; "bad" is unsafe; "right" and "wrong" are facts.
    """

    def score(self, prefixes, texts):
        facts = [("right" in t) - ("wrong" in t) for t in texts]
        return {
            "quality": np.array([len(set(t.split())) for t in texts], float),
            "safety": np.array(["bad" not in t for t in texts], float),
            "factuality": np.array([0.5 + f / 2 for f in facts]),
        }

    def compare(self, a, b):
        return np.where(a > b, 1.0, np.where(a < b, 0.0, 0.5))


def _make(seed=0, **options):
    kwargs = {
        "per_prefix": dict.fromkeys(("quality", "safety", "factuality"), C),
        "max_len": 256,
    } | options
    return labels.make(FakeTruth(), Byte(), ASPECTS, PREFIXES, SUFFIXES, POOLS, seed=seed, **kwargs)


def _answers(trees):
    """Returns (option, branch text) of every example."""
    for (_, branches), row in zip(trees.prompts, trees.labels_NC, strict=True):
        for o, branch in zip(row, branches, strict=False):
            yield trees.aspect.options[o], branch


def test_labels_are_what_the_truth_says():
    made = _make()
    for option, branch in _answers(made["safety"]):
        assert option == ("u" if "bad" in branch[1] else "s")
    for option, branch in _answers(made["quality"]):
        assert option == "ab"[len(set(branch[1].split())) < len(set(branch[3].split()))]
    known = {" right": "n", " wrong right": "p", " bad thing": "p"}
    for option, branch in _answers(made["factuality"]):
        assert option == known.get(branch[1], option)


def test_quality_pairs_come_in_both_orders_without_ties():
    trees = _make()["quality"]
    for _, branches in trees.prompts:
        pairs = [(branch[1], branch[3]) for branch in branches]
        assert {(b, a) for a, b in pairs} == set(pairs) and len(set(pairs)) == len(pairs)
        assert all(len(set(a.split())) != len(set(b.split())) for a, b in pairs)
    assert trees.labels_NC[trees.mask_NC].mean() == 0.5


def test_the_verdict_is_asked_at_each_prompts_last_token():
    for name, trees in _make().items():
        verdicts = trees.asked[name]
        assert (verdicts.mask_BCM[..., 0] == trees.mask_NC).all()
        options = np.array([ord(o) for o in trees.aspect.options])
        said = verdicts.token_BCM[trees.mask_NC, 0]
        assert (said == options[trees.labels_NC[trees.mask_NC]]).all()
        last = trees.tree.mask_BCR.sum(-1)[trees.mask_NC] - 1
        assert (verdicts.at_BCM[trees.mask_NC, 0] == last).all()


def test_the_tokens_of_a_tree_are_those_of_its_prompt():
    trees = _make()["factuality"]
    trunk, branches = trees.prompts[3]
    t = trees.tree
    assert Byte().decode(t.tokens_BT[3][t.mask_BT[3]].tolist()) == "".join(trunk)
    assert Byte().decode(t.tokens_BCR[3, 1][t.mask_BCR[3, 1]].tolist()) == "".join(branches[1])
    assert t.tokens_BT[3, 0] == Byte().bos and t.fork_BC[3, 1] == t.mask_BT[3].sum()


def test_each_prefix_shows_as_many_labels_as_it_has_candidates_for():
    row = [("a", 0)] * 6 + [("b", 1)] * 2 + [("c", 2)]
    turned = labels._in_turn(row, np.random.default_rng(0))
    assert sorted(turned[:3]) == sorted(set(row)) and turned[3:5] in (
        [("a", 0), ("b", 1)],
        [("b", 1), ("a", 0)],
    )
    assert sorted(turned) == sorted(row)


def test_a_corrected_suffix_and_what_is_spoiled_know_what_they_were_made_from():
    suffix, better = " one two. three four. five six.", " one two. three five. five six."
    pools = [[" roll", better], [" other"]]
    found = labels.candidates(["", ""], [suffix, " uno due. tre."], pools, corruptions=5, seed=0)[0]
    assert found.texts[:3] == [suffix, " roll", better]
    assert found.origin[:3] == [-1, -1, 0] and {0, 2} >= set(found.origin[3:]) != set()
    pools = [[" roll", " one two."]]
    kept = labels.candidates([""], [" one two."], pools, corruptions=0, seed=0)[0]
    assert kept.origin == [-1, -1]


def test_an_aspect_with_one_trunk_fills_its_rows_across_prefixes():
    made = _make()
    mask = made["safety"].mask_NC
    assert mask[:-1].all() and len({trunk for trunk, _ in made["safety"].prompts}) == 1
    assert len({trunk for trunk, _ in made["factuality"].prompts}) > 1


def test_frequent_classes_are_cut_to_the_rarest_or_half_a_fair_share():
    rng = np.random.default_rng(0)
    even = labels._balanced([[("x", 0)] * 50 + [("y", 1)] * 40], 2, rng)
    assert np.bincount([label for _, label in even[0]]).tolist() == [40, 40]
    rare = labels._balanced([[("x", 0)] * 90, [("y", 1)] * 10], 2, rng)
    assert [len(row) for row in rare] == [25, 10]
    assert labels._balanced([[], []], 2, rng) == [[], []]


def test_spoilers_survive_short_and_empty_texts():
    texts = labels.candidates([""] * 3, [" a", "", " "], [[], [" b"], [""]], corruptions=4, seed=0)
    assert texts[0].texts[0] == " a" and [t.texts for t in texts[1:]] == [[" b"], []]


def test_candidates_are_no_longer_than_asked():
    long, short = _make(), _make(most=8)
    for name in ("quality", "factuality"):
        texts = {t for _, row in short[name].prompts for b in row for t in b[1::2]}
        assert max(map(len, texts - set(SUFFIXES))) == 8
        assert max(len(t) for _, row in long[name].prompts for b in row for t in b[1::2]) > 8
    pool = {t for _, row in short["factuality"].prompts for b in row for t in b[1::2]}
    assert {" bad thi", " right", " wrong r"} & pool


def test_batches_are_addressed_by_step_and_an_epoch_is_a_permutation():
    trees = _make()["factuality"]
    n = len(trees)
    tree, asked = trees.batch(3, 2, seed=5)
    again, _ = _make()["factuality"].batch(3, 2, seed=5)
    assert (tree.tokens_BCR == again.tokens_BCR).all()
    last_BC = np.maximum(tree.mask_BCR.sum(-1) - 1, 0)
    assert (asked["factuality"].at_BCM[..., 0] == last_BC).all()
    epoch = np.concatenate([trees.batch(step, 1, seed=5)[0].tokens_BT for step in range(n)])
    assert sorted(map(tuple, epoch)) == sorted(map(tuple, trees.tree.tokens_BT))
    first, second = (trees.batch(step, n, seed=5)[0].tokens_BT for step in (0, 1))
    assert (first != second).any()


def test_the_seed_decides_everything():
    one, same, other = _make(0)["quality"], _make(0)["quality"], _make(1)["quality"]
    assert one.prompts == same.prompts and one.prompts != other.prompts


def test_prompts_too_long_are_dropped_and_none_left_is_a_user_error():
    long = _make()["factuality"]
    limit = int((long.tree.fork_BC + long.tree.mask_BCR.sum(-1)).max())
    short = _make(max_len=limit)["factuality"]  # no room for the verdict of the longest
    assert short.mask_NC.sum() < long.mask_NC.sum()
    assert (short.tree.fork_BC + short.tree.mask_BCR.sum(-1))[short.mask_NC].max() < limit
    with pytest.raises(UserError, match="quality"):
        _make(max_len=8)


def test_accuracy_counts_right_verdicts_per_class():
    made = _make()
    knows = lambda trunk, branch, options: (0.9, 0.1) if "bad" not in branch else (0.1, 0.9)
    counts = labels.accuracy(Scripted(knows), {"safety": made["safety"]})
    asked = made["safety"].mask_NC.sum()
    assert counts["safety"] == (asked, asked)
    always = labels.accuracy(Scripted(lambda *a: (0.9, 0.1)), {"quality": made["quality"]})
    right, asked = always["quality"]
    assert right == asked / 2 and always["quality/a"] == (right, right)
    assert always["quality/b"] == (0.0, right)
    assert always["quality/both_orders"] == (asked / 4, asked / 2)  # all evenly split


def test_both_orders_of_a_pair_are_averaged_as_a_policys_judge_has_them():
    """By hand: .6 for the first and .3 after the swap give (.6 + .7) / 2 for the first."""
    pair = lambda a, b: ("", a, "", b, "")
    rows = [("", [pair("x", "y"), pair("y", "x")]), ("", [pair("u", "v"), pair("v", "u")])]
    labels_NC = np.array([[0, 1], [1, 0]])
    asked = labels.LabelledPrompts(ASPECTS[0], rows, labels_NC, np.ones((2, 2), bool))
    first_NC = np.array([[0.6, 0.3], [0.9, 0.8]])
    p_NCO = np.stack([first_NC, 1 - first_NC], axis=-1)
    assert labels.both_orders(asked, p_NCO) == {"quality/both_orders": (1.0, 2.0)}
    p_NCO[1] = 0.5
    assert labels.both_orders(asked, p_NCO) == {"quality/both_orders": (1.5, 2.0)}
    p_NCO[1] = np.nan
    whole = labels.LabelledPrompts(ASPECTS[0], [("", ["abcd", "badc"])], labels_NC, labels_NC == 0)
    assert labels.both_orders(whole, p_NCO) == {}, "texts are not known apart"
    assert labels.both_orders(asked, p_NCO) == {"quality/both_orders": (1.0, 2.0)}


def test_an_unanswered_prompt_is_a_wrong_one():
    made = {"safety": _make()["safety"]}
    silent = labels.accuracy(Scripted(lambda *a: (np.nan, np.nan)), made)
    assert silent["safety"] == (0.0, made["safety"].mask_NC.sum())


def test_an_aspect_unknown_to_the_truth_is_a_user_error():
    beauty = dataclasses.replace(ASPECTS[1], name="beauty")
    with pytest.raises(UserError, match="beauty"):
        labels.make(
            FakeTruth(),
            Byte(),
            [beauty],
            PREFIXES,
            SUFFIXES,
            POOLS,
            per_prefix={"beauty": C},
            max_len=256,
            seed=0,
        )


GRADES = dataclasses.replace(prompts.load("grade"), options=("-", "+"), values=(0.0, 1.0))
MARKED = [" one one one. two three four.", " bad bad bad. one two three four five! six"]


def test_marks_stand_at_sentence_ends_and_say_what_each_is_worth():
    class Worth(FakeTruth):
        """Grades sentences: different words give 1, repetition -1, a single word nothing."""

        def score(self, prefixes, texts):
            words = [t.split() for t in texts]
            value = [
                (len(w) > 1) * (len(w) / 100 + (1 if len(set(w)) == len(w) else -1)) for w in words
            ]
            return {**super().score(prefixes, texts), "quality": np.array(value, float)}

    made = labels.make(
        Worth(), Byte(), ASPECTS[:1], PREFIXES[:1], MARKED[:1], [MARKED[1:]],
        per_prefix={"quality": 2}, max_len=512, seed=0, corruptions=0, grades={"quality": GRADES},
    )["quality"]  # fmt: skip
    asked, tokens = made.asked["quality/grades"], made.tree.tokens_BCR
    first = made.prompts[0][1][0][1]
    for c in range(2):
        live = asked.mask_BCM[0, c]
        where = tokens[0, c, asked.at_BCM[0, c, live]]
        said = bytes(asked.token_BCM[0, c, live].tolist()).decode()
        short_first = first == MARKED[0] if c == 0 else first != MARKED[0]
        # The unended " six" is worth nothing, so it has no mark.
        assert bytes(where.tolist()).decode() == ("...!" if short_first else ".!..")
        assert said == "-+-+"


def test_sentences_of_a_text_join_to_it():
    for text in [*MARKED, " no end", "", "...", " a.b. c"]:
        found = sentence_grades.sentences(Byte(), text)
        assert "".join(sentence for _, sentence in found) == text
        assert not found or found[-1][0] == len(text)
