"""Tests control tokens and filters: batches by hand, losses and evaluations in a second way."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny
import tiny_recipe
from workdirs import begun, call, lines

from sip import evaluate, generate
from sip import mesh as meshes
from sip.data import chunks, control, pipeline
from sip.evals import continuations, ground_truth
from sip.judge import chunk_scores
from sip.judge.build import JudgeConfig
from sip.judge.judged import Judged
from sip.loading import LoadedModel
from sip.run import Run
from sip.stages import collect, recipe, selfimprove, supervised
from sip.structs import UserError
from sip.tasks.supervised import documents
from sip.text.tokenizer import Byte
from sip.training import losses

pytest_plugins = ["tiny_fixtures"]
TOK = Byte()
PAD, BOS, GOOD, BAD = TOK.pad, TOK.bos, 97, 98  # any two ids
SAFE = JudgeConfig("truth", (("safety", 1.0),))


def corpus(texts=("abcdefghijk", "ABCDEFGHIJKL")):
    return chunks.cut(texts, TOK, prefix_min=4, prefix_max=6, suffix=3)


def batch(**changes):
    """Returns two chunks: BOS abc + def and defghi + jkl, padded to nine tokens."""
    found = chunks.batch(corpus(["abcdefghijkl"])[i] for i in (0, 2))
    assert found["tokens_BT"].tolist() == [[BOS, *b"abcdef", PAD, PAD], [*b"defghijkl"]]
    return {**found, **changes}


def test_a_batch_with_control_tokens_is_the_batch_with_tokens_inserted():
    found = control.insert(batch(), np.array([GOOD, BAD]), PAD)
    assert found["tokens_BT"].tolist() == [
        [BOS, *b"abc", GOOD, *b"def", PAD, PAD],
        [*b"defghi", BAD, *b"jkl"],
    ]
    assert found["mask_BT"].tolist() == [[True] * 8 + [False] * 2, [True] * 10]
    assert found["fork_B"].tolist() == [5, 7] and found["doc_B"].tolist() == [0, 0]
    assert [list(np.flatnonzero(row)) for row in found["given_BT"]] == [[4], [6]]


def test_a_row_without_a_control_token_is_only_padded():
    found = control.insert(batch(), np.array([control.NONE, BAD]), PAD)
    assert found["tokens_BT"][0].tolist() == [BOS, *b"abcdef", PAD, PAD, PAD]
    assert found["mask_BT"][0].tolist() == [True] * 7 + [False] * 3
    assert found["fork_B"].tolist() == [4, 7] and not found["given_BT"][0].any()


@pytest.mark.parametrize("tokens", ["all", "suffix"])
def test_the_loss_counts_the_same_text_and_no_control_token(tokens):
    plain, put = batch(), control.insert(batch(), np.array([GOOD, BAD]), PAD)
    texts = [rows["tokens_BT"][documents.counted(rows, tokens)].tolist() for rows in (plain, put)]
    assert texts[0] == texts[1] and GOOD not in texts[1][:1]
    assert documents.counted(put, tokens).sum() == {"all": 7 + 9, "suffix": 6}[tokens]


def test_a_label_is_the_threshold_and_unmarked_the_rest():
    score_B, valid_B = np.array([0.5, 0.4, 1.0, 1.0]), np.array([True, True, False, True])
    how = dict(threshold=0.5, good=GOOD, bad=BAD, unmarked=0.2)
    found = control.labels(score_B, valid_B, np.array([0.2, 0.9, 0.9, 0.1]), **how)
    assert found.tolist() == [GOOD, BAD, control.NONE, control.NONE]


def test_a_control_token_is_one_token():
    assert control.token(TOK, "</s>", "key") == TOK.eos
    with pytest.raises(UserError, match=r"evals.control '<\|good\|>': is 8 tokens .*not one; add"):
        control.token(TOK, "<|good|>", "evals.control")


class Likes:
    """A judge that gives 1 to a text without the letter, 0 to others; "?" is not valid."""

    def __init__(self, letter):
        self.letter, self.asked = letter, []

    def score(self, prefixes, candidates, references, mask_BK):
        self.asked += [(p, *texts) for p, texts in zip(prefixes, candidates, strict=True)]
        score_BK = np.array([[float(self.letter not in x) for x in row] for row in candidates])
        valid_BK = np.array([["?" not in x for x in row] for row in candidates])
        return Judged(score_BK, valid_BK, {}, {}, "judge", {})


def test_a_filter_drops_exactly_the_chunks_of_low_score(monkeypatch):
    found, judge = corpus(["abcdefghijkl", "ABCDEFGHIJ", "abc?ef?hijkl"]), Likes("e")
    wanted = chunk_scores.FilterConfig(SAFE)
    # Suffixes: def, ghi, jkl; DEF, GHI; ?ef has no verdict, ?hi neither, jkl.
    kept, left_out = chunk_scores.filtered(wanted, judge, TOK, found)
    texts = [
        bytes(row["tokens_T"][row["fork"] : row["length"]].tolist())
        for row in map(kept.__getitem__, range(len(kept)))
    ]
    assert judge.asked[0] == ("abc", "def") and len(judge.asked) == len(found)
    assert texts == [b"ghi", b"jkl", b"DEF", b"GHI", b"jkl"]
    assert left_out == {"with a score below 0.5": 1, "without a valid score": 2}
    monkeypatch.setattr(chunk_scores, "ROWS", 2)
    again, also = chunk_scores.filtered(wanted, judge, TOK, found)
    assert also == left_out and again.start_B.tolist() == kept.start_B.tolist()
    with pytest.raises(UserError, match=r"filter: no chunk is left \(.* lower filter.threshold"):
        chunk_scores.filtered(wanted, Likes(""), TOK, found)  # dislikes all
    with pytest.raises(UserError, match=r"25% of the verdicts are invalid \(filter.max_invalid"):
        monkeypatch.setattr(chunk_scores, "ROWS", 99)
        chunk_scores.filtered(dataclasses.replace(wanted, max_invalid=0.2), judge, TOK, found)


def test_the_share_without_a_token_is_drawn_by_seed_and_step():
    # A shuffle of few documents is slow: grain draws from 65,536 places until it hits one of them.
    order = pipeline.Batches(corpus(("abcdefghijk", "ABCDEFGHIJKL") * 50), batch=200, seed=0)
    wanted = chunk_scores.ControlConfig(SAFE, good="<s>", bad="</s>", unmarked=0.3)

    def labelled(seed, at):
        rows = chunk_scores.Labeller(wanted, Likes("d"), TOK, 3, seed)(order[0], at)
        first = np.argmax(rows["given_BT"], axis=1)
        ids = np.take_along_axis(rows["tokens_BT"], first[:, None], axis=1)[:, 0]
        return np.where(rows["given_BT"].any(1), ids, control.NONE)

    one = labelled(1, 0)
    assert one.tolist() == labelled(1, 0).tolist()
    assert one.tolist() != labelled(2, 0).tolist() and one.tolist() != labelled(1, 1).tolist()
    assert 0.2 < (one == control.NONE).mean() < 0.4
    suffixes = [
        bytes(row[f : f + 3].tolist())
        for row, f in zip(order[0]["tokens_BT"], order[0]["fork_B"], strict=True)
    ]
    said = {
        text: {int(x) for x, s in zip(one, suffixes, strict=True) if s == text}
        for text in set(suffixes)
    }
    assert said[b"def"] == {TOK.eos, control.NONE} and said[b"ghi"] == {TOK.bos, control.NONE}


# Evaluation.


def model():
    return LoadedModel(tiny.params(tiny.BYTES), tiny.BYTES, TOK, meshes.single())


@pytest.mark.slow
def test_an_evaluation_with_a_token_is_that_of_prefixes_with_the_token_inserted():
    found = corpus()
    asked = continuations.prompts(found, range(len(found)), TOK)
    put = continuations.controlled(asked, GOOD, PAD)
    rows = [found[i] for i in range(len(found))]
    by_hand = np.full((len(rows), found.width + 1), PAD, np.int32)
    for row, one in zip(by_hand, rows, strict=True):
        ids, fork = one["tokens_T"][: one["length"]].tolist(), one["fork"]
        row[: len(ids) + 1] = [*ids[:fork], GOOD, *ids[fork:]]
    fork_E = np.array([one["fork"] + 1 for one in rows], np.int32)
    length_E = np.array([one["length"] + 1 for one in rows])
    mask_ET = np.arange(found.width + 1) < length_E[:, None]
    other = dataclasses.replace(asked, tokens_ET=by_hand, mask_ET=mask_ET, fork_E=fork_E)
    assert put.prefixes == asked.prefixes and put.suffixes == asked.suffixes
    texts = lambda some: continuations.greedy(model(), some, steps=3, batch=8)
    nll = lambda some: continuations.suffix_nll(model(), some, batch=8)
    assert texts(put) == texts(other) != texts(asked)
    assert nll(put) == nll(other) != nll(asked)


# Self-improving runs.


def collector(**changes):
    wanted = dict(
        cfg=tiny.BYTES,
        mesh=meshes.single(),
        tokenizer=TOK,
        batches=pipeline.Batches(corpus(), batch=4, seed=0, shuffle=False),
        suffix=3,
        candidates=collect.CandidateConfig(rollouts=((0, 0),), chosen="suffix"),
        objective=losses.ObjectiveConfig("rf_nll", ce_weight=1.0),
        sampling=None,
        judge=None,
        rewriter=None,
        reference="suffix",
        seed=0,
    )
    return collect.Collector(**{**wanted, **changes})


def test_candidates_follow_the_token_and_documents_learn_their_suffix_without_it():
    fixed = collector(control=GOOD, documents=1)
    found, *_ = collect.collect(fixed, None, collect.begin(fixed, None, 0))
    plain = fixed.batches[0]
    tree = found.tree
    assert tree.tokens_BT[:, :10].tolist() == [
        [BOS, *b"abc", GOOD, *b"def", PAD, PAD],
        [*b"abcdef"[-6:], GOOD, *b"ghi"],
        [BOS, *b"ABC", GOOD, *b"DEF", PAD, PAD],
        [*b"ABCDEF", *b"GHI", PAD],
    ]
    assert plain["fork_B"].tolist() == [4, 6, 4, 6] and tree.fork_BC[:, 0].tolist() == [5, 7, 5, 6]
    assert tree.tokens_BCR[:3, 0].tolist() == [[*b"def"], [*b"ghi"], [*b"DEF"]]
    assert found.valid_BC[:, 0].tolist() == [True] * 3 + [False]
    assert found.ce_mask_BT[:3].sum() == 0
    assert tree.tokens_BT[3][found.ce_mask_BT[3]].tolist() == [*b"GHI"]


def test_judges_and_rewriters_see_no_control_token():
    judge, seen = Likes("e"), []
    rewrite = lambda prefixes, suffixes: seen.append(prefixes) or (suffixes, [False] * 3)
    wanted = collect.CandidateConfig(rewrite=True, rollouts=((0, 0),))
    how = dict(judge=judge, rewriter=SimpleNamespace(rewrite=rewrite), candidates=wanted)
    fixed = collector(**how, control=GOOD, documents=1)
    _, metrics, _ = collect.collect(fixed, None, collect.begin(fixed, None, 0))
    assert [row[:2] for row in judge.asked] == [("abc", "def"), ("abcdef", "ghi"), ("ABC", "DEF")]
    assert seen == [["abc", "abcdef", "ABC"]] and metrics["reward/suffix"] == (2, 3)


@pytest.mark.slow
def test_the_loss_is_that_of_the_sequences_one_by_one():
    """Candidates: the suffix after the token. Documents: the suffix after its prefix."""
    fixed = collector(control=GOOD, documents=2)
    found, *_ = collect.collect(fixed, None, collect.begin(fixed, None, 0))
    params = tiny.params(tiny.BYTES)
    values = jax.jit(losses.branch_terms(tiny.BYTES, fixed.objective))(params, None, found)[0]
    plain = fixed.batches[0]
    put = control.insert(plain, np.array([GOOD, GOOD, control.NONE, control.NONE]), PAD)
    nll = jax.jit(losses.tokens_terms(tiny.BYTES))
    for name, at in (("rf_nll", [0, 1]), ("ce", [2, 3])):
        live_B1 = np.isin(np.arange(4), at)[:, None]
        asked = tiny.trunk_only(put["tokens_BT"]), documents.counted(put, "suffix") & live_B1
        tree = dataclasses.replace(asked[0], mask_BT=put["mask_BT"])
        want = nll(params, None, (tree, asked[1]))[0]["ce"]
        np.testing.assert_allclose(values[name], want, rtol=1e-5)
    assert values["ce"][1] == values["rf_nll"][1] == 6


# Runs.


def tagged(name="standard", **task):
    """Returns the tiny recipe with special tokens of its tokenizer as control tokens."""
    config = tiny_recipe.get_config()
    common = tiny_recipe.common
    safety = common.judge("truth", weights=(("safety", 1.0),))
    if name == "standard":
        config.runs.standard.task.filter = common.filtering(safety)
        config.runs.standard.task.control = common.control_tokens(safety, "</s>", "<pad>")
    else:
        config.runs[name].update(control="</s>", documents=4)
        config.runs[name].objective = common.objective("rf_nll", ce_weight=1.0, ce_weight_last=1.0)
    config.runs[name].evals.control = "</s>"
    return config


def test_a_run_learns_the_chunks_that_the_filter_leaves_and_says_so(finished, capsys):
    config = tagged()
    run = Run(config, "standard", str(finished))
    c, split = recipe.STAGES["supervised"].resolve(config, "standard"), config.runs.standard.split
    rows_of = documents.batches(run, c, split, meshes.single())
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "the filter leaves out" in x]
    corpus = run.corpus(split)
    every = continuations.prompts(corpus.chunks, range(len(corpus.chunks)), run.tokenizer)
    safe = np.asarray(corpus.ground_truth("").score(every.prefixes, every.suffixes)["safety"])
    low = int((safe == 0).sum())
    assert f"of {len(safe):,} chunks ({low} with a score below 0.5)" in line and low > 0
    assert run.left_out[f"{split}, chunks"] == {"with a score below 0.5": low}
    tokens = {"</s>": run.tokenizer.eos, "<pad>": run.tokenizer.pad}
    for at in range(3):  # what is left is safe, so no token is the bad one
        rows = rows_of(at)
        given = rows["tokens_BT"][rows["given_BT"]]
        assert len(given) in (7, 8) and set(given.tolist()) == {tokens["</s>"]}


@pytest.mark.slow
def test_a_run_is_evaluated_with_its_token_and_asked_with_it(finished, quick, tmp_path, capsys):
    config, workdir = tagged(), begun(finished, tmp_path, "base")
    run = Run(config, "standard", str(workdir))
    recipe.check(config, str(workdir))
    recipe.check_tokens(config, run.tokenizer)
    wrote = supervised.train(run)
    asked = dict(split="test", standard=16, unsafe=8, batch=16, data_workdir="")
    asked |= dict(baseline=str(workdir / "runs" / "base"))
    directory = str(workdir / "runs" / "standard")
    found = evaluate.evaluate(directory, control="</s>", **asked)
    assert found.pop("nll") > 0 and found == pytest.approx(wrote)
    other = evaluate.evaluate(directory, **asked)
    assert other["nll_clean"] != found["nll_clean"]
    capsys.readouterr()
    flags = [f"--checkpoint={directory}", "--prompt=A note.", "--temperature=0", "--json"]
    flags.append("--max_tokens=8")  # `evaluate` in this process has another default
    said = []
    for more in ([], ["--control=</s>"]):
        assert call(generate, *flags, *more) == 0
        said.append(json.loads(capsys.readouterr().out)["logp"])
    assert said[0] != said[1]
    assert call(generate, *flags, "--control=none such") == 2
    assert "--control 'none such': is " in capsys.readouterr().err


@pytest.mark.slow
def test_a_switched_run_learns_candidates_and_documents(finished, quick, tmp_path):
    config, workdir = tagged("sip_oracle"), begun(finished, tmp_path, "base")
    recipe.check(config, str(workdir))
    selfimprove.train(Run(config, "sip_oracle", str(workdir)))
    last = [line for line in lines(workdir, "sip_oracle") if "loss/ce" in line][-1]
    assert last["loss/ce"] > 0 and last["loss/rf_nll"] > 0


WRONG = {
    "quality is a comparison": (
        lambda: chunk_scores.FilterConfig(JudgeConfig("truth", (("quality", 1.0),))),
        "filter.judge.weights: 'quality' compares two texts",
    ),
    "equal tokens": (
        lambda: chunk_scores.ControlConfig(SAFE, good="a", bad="a"),
        "control.good 'a' and control.bad 'a' must be two tokens",
    ),
    "packed": (
        lambda: documents.Config(
            name="documents", tokens="all", packed=True, filter=chunk_scores.FilterConfig(SAFE)
        ),
        "task.filter: scores suffixes",
    ),
}


@pytest.mark.parametrize("make, said", WRONG.values(), ids=WRONG)
def test_a_section_that_makes_no_sense_is_refused(make, said):
    with pytest.raises(UserError, match=said):
        make()


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(control=""), "documents: needs control"),
        (dict(documents=0), "with control set both, or neither"),
        (dict(documents=8), r"documents=8: must be in 0..7"),
    ],
)
def test_the_cross_entropy_belongs_to_rows_without_the_token(changes, said):
    config = tagged("sip_oracle")
    config.runs.sip_oracle.update(changes)
    with pytest.raises(UserError, match=said):
        selfimprove.resolve(config, "sip_oracle")


def test_a_token_that_is_not_one_or_has_no_room_is_found_before_anything_is_trained(finished):
    config = tagged("sip_oracle")
    config.runs.sip_oracle.evals.control = "good"
    tokenizer = Run(config, "base", str(finished)).tokenizer
    with pytest.raises(UserError, match=r"config runs.sip_oracle.evals.control 'good': is \d tok"):
        recipe.check_tokens(config, tokenizer)
    config.runs.sip_oracle.model.max_len = 64
    config.runs.base.model.max_len = 64
    with pytest.raises(UserError, match="prefix_max, a control token and suffix are 65 tokens"):
        config.order = ("base", "sip_oracle")
        config.report = dict(rows=("base",), judge="", standard="", rewriter="")
        recipe.check(config, str(finished))


def test_a_ground_truth_scores_a_set_without_its_texts_being_changed():
    held = ground_truth.HeldOut(*[continuations.prompts(corpus(), range(3), TOK)] * 3)
    put = held.controlled(TOK, "</s>", "evals.control")
    assert put.unsafe.prefixes == held.unsafe.prefixes and held.controlled(TOK, "", "") is held
    assert put.clean.tokens_ET.shape[1] == held.clean.tokens_ET.shape[1] + 1
