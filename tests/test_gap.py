"""Tests verifiers, costs, the command sip.gap and its pre-flight."""

import dataclasses
import importlib
import json

import numpy as np
import pytest
import tiny
import tiny_recipe
from ml_collections import ConfigDict
from workdirs import call

from sip import train
from sip.evals.intervals import IntervalConfig
from sip.gap import __main__ as command
from sip.gap import costs, measure, preflight, settings, show, verify
from sip.gap.settings import GapConfig
from sip.gap.utility import WHOLE, ByJudge, ByTruth
from sip.gap.verify import Answers, Verified
from sip.judge import prompts
from sip.judge.scoring import TextJudge, TruthJudge
from sip.judge.voting import Voting
from sip.sampling import SamplingConfig
from sip.stages import collect
from sip.structs import UserError
from sip.text.tokenizer import Byte
from sip.textgen.protocol import Cut
from sip.textgen.scripted import Scripted

pytest_plugins = ["tiny_fixtures"]
ACCURACY = dict(exact=1.0, good=0.9, weak=0.65, adversarial=0.0)
QUICK = IntervalConfig(resamples=200)


class MadeUp:
    """A truth of texts such as " q3 bad no": quality 3, unsafe, not factual."""

    def score(self, prefixes, texts):
        return {
            "quality": np.array([float(text.split("q")[1][0]) for text in texts]),
            "safety": np.array([float("bad" not in text) for text in texts]),
            "factuality": np.array([float("no" not in text) for text in texts]),
        }

    def compare(self, a, b):
        return np.where(a > b, 1.0, np.where(a < b, 0.0, 0.5))


def made_up(seed=0, B=64, K=6):
    """Draws texts [B][K] of a policy: of any quality, half of them unsafe, half not factual."""
    rng = np.random.default_rng(seed)
    row = lambda b: [
        f" q{rng.integers(10)}{' bad' * rng.integers(2)}{' no' * rng.integers(2)} {b} {k}"
        for k in range(K)
    ]
    return [f"prefix {b}" for b in range(B)], [row(b) for b in range(B)]


def judged(judge, prefixes, texts, suffixes):
    """Judges pools of a suffix and rollouts, as a run does."""
    pool = [[suffix, *row] for suffix, row in zip(suffixes, texts, strict=True)]
    exist_BK = np.ones((len(pool), len(pool[0])), bool)
    found = judge.score(prefixes, pool, suffixes, exist_BK)
    index_B, ok_B = collect.best(found.scores_BK, found.valid_BK)
    return preflight.Judged(
        prefixes, suffixes, pool, exist_BK, found.scores_BK, found.valid_BK,
        np.asarray(index_B), None, np.asarray(ok_B), texts, None, "",
    )  # fmt: skip


def flights(weights=(("quality", 1.0), ("safety", 1.0), ("factuality", 1.0))):
    prefixes, texts = made_up()
    suffixes = [f" q5 {b}" for b in range(len(prefixes))]
    truth, weights = MadeUp(), dict(weights)
    make = lambda accuracy: TruthJudge(truth, weights, accuracy=accuracy)
    return {
        name: preflight.figures(
            [judged(make(accuracy), prefixes, texts, suffixes)],
            ByTruth(truth, weights), QUICK, seed=0,
        )
        for name, accuracy in ACCURACY.items()
    }  # fmt: skip


def test_the_preflight_ranks_judges_by_their_accuracy():
    found = flights()
    gains = [found[name]["gain"]["mean"] for name in ACCURACY]
    assert gains == sorted(gains, reverse=True) and min(-np.diff(gains)) > 0.03
    assert [found[name]["verdict"] for name in ACCURACY][:2] == ["yes", "yes"]
    assert found["adversarial"]["verdict"] == "no, harmful"
    assert len({one["ceiling"]["mean"] for one in found.values()}) == 1
    correlations = [found[name]["correlation"] for name in ACCURACY]
    assert correlations == sorted(correlations, reverse=True)


def test_an_exact_judge_of_the_utilitys_own_aspects_reaches_the_ceiling():
    one = flights((("safety", 1.0), ("factuality", 1.0)))["exact"]
    assert one["share"] == 1 and one["gain"] == one["ceiling"] and one["invalid"] == 0
    assert one["aspects"].keys() == {"safety", "factuality"}


def test_the_preflights_figures_by_hand():
    """Two prefixes; nothing is learned from the second one, which keeps the policy's own mean."""
    one = preflight.Judged(
        ["a", "b"], [" q5", " q5"], [[" q5 no", " q5", " q5"], [" q5 bad", " q5 no", " q5"]],
        np.array([[True, True, False]] * 2),  # the third repeats another one
        np.array([[0.2, 0.7, 0.0], [0.0, 0.0, 0.0]]),
        np.array([[True, True, False], [False] * 3]), np.array([1, 0]), np.array([0, 1]),
        np.array([True, False]),
        [[" q5", " q5 no"], [" q5 bad", " q5 bad no"]], [[" q5"], [" q5"]], "",
    )  # fmt: skip
    truth = ByTruth(MadeUp(), {"safety": 1.0, "factuality": 1.0})
    found = preflight.figures([one], truth, QUICK, seed=0)
    mean = lambda name: found[name]["mean"]
    assert mean("own") == (0.75 + 0.25) / 2 and mean("chosen") == (1.0 + 0.25) / 2
    assert mean("rejected") == (0.5 + 0.25) / 2 and mean("gain") == 0.125
    assert mean("ceiling") == ((1.0 - 0.75) + (0.5 - 0.25)) / 2 and found["share"] == 0.5
    assert mean("trained") == (0.25 + 0.75) / 2 and mean("random") == (0.75 + 0.5) / 2
    assert (found["learned"], found["invalid"]) == (0.5, 0.5)


def test_a_judge_without_verdicts_and_candidates_without_differences_are_refused_a_yes():
    prefixes, texts = made_up(B=8)
    suffixes = [" q5"] * 8
    truth = ByTruth(MadeUp(), {"safety": 1.0})
    none = judged(TruthJudge(MadeUp(), {"safety": 1.0}), prefixes, texts, suffixes)
    none = dataclasses.replace(none, valid_BK=none.exist_BK & False, learned_B=np.zeros(8, bool))
    found = preflight.figures([none], truth, QUICK, seed=0)
    assert (found["verdict"], found["words"]) == ("no", "none of the verdicts is valid")
    same = [[" q5"] * 6] * 8
    flat = judged(TruthJudge(MadeUp(), {"safety": 1.0}), prefixes, same, suffixes)
    found = preflight.figures([flat], truth, QUICK, seed=0)
    assert found["verdict"] == "no" and "no candidate is better" in found["words"]
    assert found["correlation"] is None and found["share"] is None


def test_a_judge_of_known_accuracy_inverts_that_share_of_its_verdicts():
    prefixes, texts = made_up(B=200, K=3)
    mask, weights = np.ones((200, 3), bool), {"safety": 1.0, "quality": 1.0}
    score = lambda **how: TruthJudge(MadeUp(), weights, **how).score(prefixes, texts, [], mask)
    exact, good, worst = (score(accuracy=x) for x in (1.0, 0.8, 0.0))
    for name in weights:
        assert np.allclose(worst.aspects[name][0], 1 - exact.aspects[name][0])
    wrong = good.aspects["safety"][0] != exact.aspects["safety"][0]
    assert abs(wrong.mean() - 0.2) < 4 * np.sqrt(0.2 * 0.8 / wrong.size)
    assert (score(accuracy=0.8).scores_BK == good.scores_BK).all(), "always the same ones"
    assert (score().scores_BK == exact.scores_BK).all()


LONGER = prompts.parse("longer", 'kind: pairwise\noptions: ["1", "2"]\nvalues: [1, 0]\n'
                       "=== trunk\n{prefix}\n=== branch\n{first}|{second}")  # fmt: skip


def by_length(trunk, branch, options):
    first, second = (len(text.strip()) for text in branch.split("|"))
    if "silent" in branch:
        return (0.0, 0.0)
    return (0.5, 0.5) if first == second else (0.9, 0.1) if first > second else (0.1, 0.9)


def length_judge(fn=by_length):
    return TextJudge(Scripted(fn), (LONGER,), {"longer": 1.0})


@pytest.mark.parametrize("N", [8, 5])
def test_a_tournament_leaves_half_of_the_answers_and_the_best_in_the_end(N):
    rng = np.random.default_rng(N)
    texts = [[" x" * n for n in rng.permutation(N) + 1] for _ in range(20)]
    asked = Answers(["p"] * 20, [""] * 20, texts)
    found = verify.tournament(length_judge(), 3, asked, seed=0)
    left = N
    for r in range(1, 4):
        left = -(-left // 2)  # an odd one goes on
        assert ((found.score_BN >= r).sum(1) == left).all()
    assert left == 1 and found.invalid == 0
    longest = np.array([[len(text) for text in row] for row in texts]).argmax(1)
    assert (found.score_BN.argmax(1) == longest).all()
    again = verify.tournament(length_judge(), 3, asked, seed=1)
    assert (again.score_BN != found.score_BN).any(), "another draw"


def test_a_match_without_a_verdict_has_no_winner_and_equal_answers_are_drawn():
    silent = Answers(["p"] * 4, [""] * 4, [[" silent", " silent too"]] * 4)
    found = verify.tournament(length_judge(), 1, silent, seed=0)
    assert (found.score_BN == 0).all() and found.invalid == 1 and "min_mass" in found.why
    equal = Answers(["p"] * 400, [""] * 400, [[" a", " b"]] * 400)
    won = verify.tournament(length_judge(), 1, equal, seed=0).score_BN
    assert (won.sum(1) == 1).all() and 0.4 < won[:, 0].mean() < 0.6


def test_scores_are_divided_by_the_weights_and_empty_answers_are_not_asked():
    judge = TruthJudge(MadeUp(), {"safety": 3.0})
    asked = Answers(["p"], [""], [[" q1", " q1 bad", " "]])
    found = verify.scores(judge, 3.0, asked)
    assert found.score_BN.tolist() == [[1.0, 0.0, 0.0]]
    assert found.valid_BN.tolist() == [[True, True, False]] and found.invalid == pytest.approx(
        1 / 3
    )


def test_quality_is_valued_against_the_documents_own_suffix():
    truth = ByTruth(MadeUp(), {"quality": 1.0, "safety": 3.0})
    mask = np.array([[True, True, True, False]])
    value, known = truth.value(["p"], [" q5"], [[" q6", " q5 bad", " q1", ""]], mask)
    assert value["quality"].tolist() == [[1.0, 0.5, 0.0, 0.0]] and (known == mask).all()
    assert value[WHOLE][known].tolist() == [1.0, 0.125, 0.75]


def test_an_audit_judge_gives_utilities_in_0_to_1():
    value, known = ByJudge(TruthJudge(MadeUp(), {"safety": 2.0}), {"safety": 2.0}).value(
        ["p"], [""], [[" q1", " q1 bad"]], np.ones((1, 2), bool)
    )
    assert value == {WHOLE: pytest.approx(np.array([[1.0, 0.0]]))} and known.all()


def test_flops_equal_the_products_counted_by_hand():
    cfg = dataclasses.replace(tiny.CFG, layers=3)
    D, F, T = cfg.width, cfg.hidden, 8
    heads, groups = cfg.kv_heads * cfg.queries_per_kv * cfg.head_dim, cfg.kv_heads * cfg.head_dim
    matrices = 2 * D * (2 * heads + 2 * groups) + 6 * D * F
    attention = 4 * T * heads  # scores and values, over all T positions
    assert costs.reading(cfg, T) == cfg.layers * (matrices + attention)
    assert costs.reading(cfg, 7) == costs.reading(cfg, 8), "lengths are rounded up"
    one, two, four = (costs.writing(cfg, T, n, 5) for n in (1, 2, 4))
    assert two - one == (four - two) / 2 > 5 * cfg.layers * matrices
    assert one > T * cfg.layers * matrices


def test_a_meter_counts_a_trunk_once_and_every_branch():
    said = {0: "abc", 1: Cut("abcd")}
    meter = costs.Metered(Scripted(lambda *_: (1.0, 0.0), lambda t, b, j: said[j]), Byte())
    meter.choose(["trunk"], [["ab", "abc"]], ("y", "n"))
    assert (meter.read, meter.written, meter.longest) == (10, 0, 8)
    how = dict(votes=2, max_tokens=9, sampling=SamplingConfig(), seed=0)
    meter.generate(["trunk", "none"], [["ab"], []], **how)
    assert (meter.read, meter.written) == (17, 7)
    reading = costs.reading(tiny.BYTES, 8)
    unembed = 2 * tiny.BYTES.width * tiny.BYTES.vocab_size
    assert meter.flops(tiny.BYTES) == 17 * reading + 7 * (reading + unembed)


def test_chain_of_thought_scores_are_read_from_the_answer():
    aspect = prompts.load("reasoned_score")
    words = lambda _, branch, __: "Fine. Score: 10" if "good" in branch else "Hm. Score: 7-8"
    judge = TextJudge(Scripted(lambda *_: (), words), (aspect,), {aspect.name: 1.0},
                      voting=Voting(votes=1))  # fmt: skip
    found = verify.scores(judge, 1.0, Answers(["p"], [""], [[" good", " bad"]]))
    assert found.score_BN[0, 0] == 1.0 and found.valid_BN.tolist() == [[True, False]]
    assert "without a verdict" in found.why


def cells(cfg):
    """Two policies and two judges by hand."""
    utility = np.array([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]])
    own = measure.Written(
        Answers(["p", "q"], ["", ""], [[" a", " b", " c", " a"]] * 2),
        {WHOLE: utility}, np.ones((2, 4), bool), None, 1e9,
    )  # fmt: skip
    solved = dataclasses.replace(own, value={WHOLE: np.ones((2, 4))}, flops=4e9)
    good = Verified(utility, np.ones((2, 4), bool), 0.0, "", flops=1e9)
    none = Verified(0 * utility, np.zeros((2, 4), bool), 1.0, "all failed")
    written = {"small": own, "large": solved}
    served = dataclasses.replace(good, flops=None)
    kinds = {"good": good, "none": none, "served": served}
    judges = {(p, j): v for p in written for j, v in kinds.items()}
    return measure.results(cfg, written, judges, "by hand", seed=0)


def gap_config(**changes):
    how = dict(
        policies=("small", "large"), judges={"good": {}, "none": {}, "served": {}}, intervals=QUICK
    )
    return GapConfig(**{**how, "answers": 4, "quantiles": (0.75,), **changes})


def test_all_figures_of_a_small_measurement_by_hand():
    found = cells(gap_config(ensembles=(("good", "none"),)))
    rows = {(r["policy"], r["judge"]): r for r in found["rows"]}
    row = rows["small", "good"]
    assert (row["after"]["mean"], row["gap"]["mean"], row["relative"]["mean"]) == (1.0, 0.625, 1.0)
    assert (row["kept"], row["empty"], row["solved"], row["flops"]) == (0.25, 0, 0, 2e9)
    assert row["gap_per_gigaflop"] == 0.3125 and row["compute_optimal"]
    assert not rows["large", "good"]["compute_optimal"], "as good, but for more"
    assert (
        rows["large", "good"]["solved"] == 1 and rows["large", "good"]["relative"]["mean"] is None
    )
    assert not rows["small", "none"]["verdicts"] and rows["small", "none"]["flops"] is None
    assert rows["small", "good & none"]["empty"] == 1
    assert not rows["small", "served"]["compute_optimal"], "its cost is not known"
    assert (
        found["policies"]["small"]["pass@1"] == 0.375 and found["policies"]["small"]["pass@4"] == 1
    )
    assert (
        found["policies"]["large"]["constant"] == 1
        and found["policies"]["small"]["distinct"] == 0.75
    )
    assert found["policies_compared"][0]["difference"]["mean"] == 0.625
    best = {(b["policy"], b["judge"]): b["utility"] for b in found["best_of"]}
    assert best["small", "good"] == best["small", measure.CEILING] and len(best) == 6
    means = [best["small", "good"][k]["mean"] for k in ("1", "2", "4")]
    assert np.allclose(means, [0.375, (5 / 6 + 1 / 2) / 2, 1.0]), "pass@k of 2 and 1 right of 4"
    paired = found["judges_compared"][0]
    assert (paired["a"], paired["difference"]["mean"]) == ("good, top 0.75", 0.625)


def test_tables_say_what_has_no_verdict_and_markdown_escapes():
    heads, grids = show.gaps(cells(gap_config()))
    text = show.markdown(heads, grids)
    assert "small/none: 100.0% of the verifications are invalid (all failed)" in text
    assert text.count("no verdict") == 4, "in the rows and in the matrix"
    assert "| small | good | top 0.75 | 1.000 | +0.625 [" in text.replace(
        "1.000 [1.000, 1.000]", "1.000"
    )
    assert "a \\| b" in show.markdown([], [show.Grid("t", ("a | b",), [["x"]])])


WRONG = [
    (dict(answers=1), "answers=1: must be >= 2"),
    (dict(policies=()), "policies"),
    (dict(judges={}), "judges"),
    (dict(quantiles=(1.0,)), r"quantiles: 1.0 must be in \[0, 1\)"),
    (dict(betas=(0.0,)), "betas: 0.0 must be > 0"),
    (dict(thresholds=(7.0,)), "thresholds: 7.0 must be in 0..1"),
    (dict(ensembles=(("good",),)), "ensembles"),
    (dict(ensembles=(("good", "best"),)), "two or more of good, none, served"),
    (dict(utility=settings.UtilityConfig(by="answers")), "need each other"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[m for _, m in WRONG])
def test_a_wrong_measurement_is_refused_by_its_key(changes, message):
    with pytest.raises(UserError, match=message):
        gap_config(**changes)


@pytest.mark.parametrize("name", ["gap", "microworld_gap"])
@pytest.mark.parametrize("arg", ["", "debug"])
def test_the_section_of_the_shipped_configs_is_right(name, arg):
    config = importlib.import_module(name).get_config(arg)
    cfg, verifiers = settings.read(config)
    assert set(cfg.policies) <= set(config.order) and set(verifiers) == set(cfg.judges)
    named = {v.judge.init_from for v in verifiers.values() if v.judge.init_from}
    assert named <= set(config.order)


def test_a_config_with_a_wrong_section_is_refused_before_it_is_trained():
    config = ConfigDict(importlib.import_module("gap").get_config("debug"))
    config.gap.judges.small_safety.judge.batch = 0
    with pytest.raises(UserError, match=r"gap\.judges\.small_safety\.judge\.batch=0"):
        settings.check_section(config)
    config.gap = None
    settings.check_section(config)
    with pytest.raises(UserError, match="no section `gap`; use configs/gap.py"):
        settings.read(config)


RECIPE = f"--config={tiny_recipe.ROOT}/tests/tiny_recipe.py"


def test_the_preflight_of_a_trained_run_shows_what_it_gained(finished, quick, capsys, tmp_path):
    out = tmp_path / "flight.json"
    argv = (RECIPE, f"--workdir={finished}", "--run=sip_oracle", "--prefixes=16")
    assert call(command, *argv, "--markdown", f"--out={out}") == 0
    text, (oracle,) = capsys.readouterr().out, json.loads(out.read_text())["runs"]
    assert text.startswith("sip_oracle: YES, ") and "| trained |" in text
    assert oracle["trained"]["count"] == oracle["prefixes"] == 16 and oracle["policy"] == "base"
    assert 0 < oracle["share"] <= 1 and oracle["invalid"] == 0
    assert oracle["gain"]["mean"] <= oracle["ceiling"]["mean"]


@pytest.mark.slow  # compiles proofreader, judge and rewriter
def test_the_preflight_compares_runs_with_their_own_judges(finished, quick, capsys):
    runs = "--run=sip_learned,sip_oracle,sip_learned"  # a name given twice is one run
    argv = (RECIPE, f"--workdir={finished}", runs, "--prefixes=8")
    assert call(command, *argv, "--json") == 0
    learned, oracle = json.loads(capsys.readouterr().out)["runs"]
    assert learned["own"] == oracle["own"] and learned["ceiling"]["count"] == 8
    assert oracle["gain"]["mean"] > learned["gain"]["mean"], "the truth chooses by the utility"


MEASURED = """
import tiny_recipe
from tiny_recipe import common

def get_config(arg=""):
    config = tiny_recipe.get_config()
    local = lambda aspect, **more: common.judge(
        "local", init_from="judge", weights=((aspect, 1.0),), **more)
    judges = dict(
        truth=common.judge("truth"),
        safety=local("safety", min_mass=0.0),
        unread=local("factuality", min_mass=1.0),
        self=common.judge("local", init_from="policy", weights=(("safety", 1.0),), min_mass=0.0),
        tournament=(local("quality", min_mass=0.0), 2),
    )
    config.gap = common.gap(("base", "sip_oracle"), judges, prompts=6, answers=4, batch=4,
                            quantiles=(0.5,), thresholds=(0.5,), ensembles=(("truth", "safety"),))
    return config
"""


@pytest.mark.slow  # compiles the programs of three judges
def test_policies_are_measured_under_judges(finished, quick, capsys, tmp_path):
    (tmp_path / "measured.py").write_text(MEASURED)
    out, lines = tmp_path / "gap.json", tmp_path / "answers.jsonl"
    argv = (f"--config={tmp_path}/measured.py", f"--workdir={finished}")
    assert call(command, *argv, f"--out={out}", f"--answers={lines}") == 0
    text, found = capsys.readouterr().out, json.loads(out.read_text())
    assert "ground truth: quality, safety, factuality; 6 prompts, 4 answers" in text
    rows = {(r["policy"], r["judge"], r["filter"]): r for r in found["rows"]}
    assert {r["filter"] for r in found["rows"] if r["judge"] == "tournament"} == {
        "round 1",
        "round 2",
    }
    for policy in ("base", "sip_oracle"):
        assert rows[policy, "truth", "top 0.5"]["gap"]["mean"] > 0
        assert rows[policy, "truth", "top 0.5"]["aspects"].keys() == {
            "quality",
            "safety",
            "factuality",
        }
        assert not rows[policy, "unread", "top 0.5"]["verdicts"]
        assert rows[policy, "tournament", "round 1"]["kept"] == 0.5
        spent = found["policies"][policy]["flops"]
        assert rows[policy, "truth", "top 0.5"]["flops"] == spent
        assert (
            rows[policy, "tournament", "round 2"]["flops"]
            > rows[policy, "safety", "top 0.5"]["flops"]
        )
        assert rows[policy, "self", "top 0.5"]["flops"] > spent > 0
    assert "unread: 100.0% of the verifications are invalid" in text
    written = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(written) == 12 and len(written[0]["answers"]) == 4
    assert written[0]["answers"][0]["scores"].keys() == {
        "truth",
        "safety",
        "unread",
        "self",
        "tournament",
    }
    u = [a["utility"] for line in written if line["policy"] == "base" for a in line["answers"]]
    assert np.isclose(np.mean(u), found["policies"]["base"]["utility"]["mean"])


def brute_force(line, keeps) -> tuple[float, float | None]:
    """Returns (gap, relative gap) of one prompt; `keeps` says of an answer if it is kept."""
    u_N = [a["utility"] for a in line["answers"]]
    kept = [a["utility"] for a in line["answers"] if keeps(a["scores"])]
    before = sum(u_N) / len(u_N)
    gap = sum(kept) / len(kept) - before if kept else 0.0
    return gap, gap / (1 - before) if before < 1 else None


@pytest.mark.slow  # trains configs/gap.py:debug, nine judges: two CPU minutes
def test_three_sizes_are_measured_under_judges_of_three_sizes(quick, capsys, tmp_path):
    recipe = (f"--config={tiny_recipe.ROOT}/configs/gap.py:debug", f"--workdir={tmp_path}/work")
    assert call(train, *recipe) == 0
    out, lines = tmp_path / "gap.json", tmp_path / "answers.jsonl"
    capsys.readouterr()
    assert call(command, *recipe, f"--out={out}", f"--answers={lines}") == 0
    text, found = capsys.readouterr().out, json.loads(out.read_text())
    assert "the figures mean nothing" in text
    sizes, aspects = ("small", "middle", "large"), ("quality", "safety", "factuality")
    bases, judges = [f"base_{s}" for s in sizes], [f"{s}_{a}" for s in sizes for a in aspects]
    filters = [f"top {q}" for q in (0.5, 0.7, 0.9)] + [f"tau {t}" for t in (0.5, 0.7, 0.9)]
    every = " & ".join(f"large_{a}" for a in aspects)
    rows = {(r["policy"], r["judge"], r["filter"]): r for r in found["rows"]}
    assert rows.keys() == {(p, j, f) for p in bases for j in (*judges, every) for f in filters}
    written = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(written) == 3 * found["prompts"] and found["answers"] == 4
    for policy in bases:
        asked = [line for line in written if line["policy"] == policy]
        for tau in (0.5, 0.7, 0.9):
            alone = {j: (lambda s, j=j, t=tau: s[j] >= t) for j in judges}
            alone[every] = lambda s, t=tau: all(s[f"large_{a}"] >= t for a in aspects)
            for judge, keeps in alone.items():
                row, pairs = (
                    rows[policy, judge, f"tau {tau}"],
                    [brute_force(x, keeps) for x in asked],
                )
                assert row["gap"]["mean"] == pytest.approx(
                    np.mean([gap for gap, _ in pairs]), abs=1e-9
                )
                relative = np.mean([part for _, part in pairs if part is not None])
                assert row["relative"]["mean"] == pytest.approx(relative, abs=1e-9)
    check_costs(found, rows, bases, aspects)
    check_cross_verification(text, rows, bases, judges)
    again = tmp_path / "again.json"
    assert call(command, *recipe, f"--out={again}") == 0
    assert again.read_bytes() == out.read_bytes(), "nothing is kept; the draws are the same"


def check_costs(found, rows, bases, aspects):
    """Larger policies and larger judges cost more; the gap per FLOP is the gap by that cost."""
    spent = [found["policies"][policy]["flops"] for policy in bases]
    assert spent == sorted(set(spent)), "small, middle, large"
    for policy in bases:
        for aspect in aspects:
            costs = [rows[policy, f"{s}_{aspect}", "top 0.5"]["flops"]
                     for s in ("small", "middle", "large")]  # fmt: skip
            assert costs == sorted(set(costs)) and costs[0] > found["policies"][policy]["flops"]
    for row in rows.values():
        assert row["gap_per_gigaflop"] == pytest.approx(row["gap"]["mean"] * 1e9 / row["flops"])
    best = [r for r in rows.values() if r["compute_optimal"]]
    for one in best:
        cheaper = [r for r in rows.values() if r["flops"] <= one["flops"]]
        assert one["after"]["mean"] >= max(r["after"]["mean"] for r in cheaper) - 1e-9
    assert best


def check_cross_verification(text, rows, bases, judges):
    """The matrix has each policy's gap under each judge with its first filter."""
    lines = text[text.index("Cross-verification: gap") :].splitlines()
    (head,) = [line for line in lines[:4] if line.strip().startswith("policy")]
    order = sorted(judges, key=lambda judge: head.index(f"{judge}, top 0.5"))
    for policy in bases:
        (line,) = [x for x in lines[:8] if x.strip().startswith(policy)]
        shown = [x for x in line.split() if x[0] in "+-" and not x.endswith("]")]
        want = [format(rows[policy, judge, "top 0.5"]["gap"]["mean"], "+.3f") for judge in order]
        assert shown[: len(want)] == want


REFUSED = [
    (("--workdir=W",), "--config is needed"),
    ((RECIPE,), "--workdir is needed"),
    ((RECIPE, "--workdir=W"), "no section `gap`"),
    (
        (RECIPE, "--workdir=W", "--run=base"),
        "'base' is no self-improving run; there are sft_one_rollout, sip",
    ),
    ((RECIPE, "--workdir=W", "--run=sft_one_rollout"), "chosen by their source"),
    ((RECIPE, "--workdir=W", "--run=sip_oracle", "--out=x.txt"), "must end in .json or .md"),
    (
        (RECIPE, "--workdir=W", "--run=sip_oracle", "--answers=x.jsonl"),
        "--answers is for the measurement",
    ),
    ((RECIPE, "--workdir=W", "--answers=W/config.json"), "config.json: must end in .jsonl"),
    (
        (RECIPE, "--workdir=W", "--run=sip_oracle", "--config.runs.sip_oracle.init_from="),
        "init_from is empty: fresh parameters",
    ),
]


def test_a_workdir_that_is_not_there_is_named_before_its_policies(tmp_path, capsys):
    argv = ("--config=configs/gap.py:debug", f"--workdir={tmp_path / 'none'}")
    assert call(command, *argv) == 2
    assert "none: not a workdir of sip.train" in capsys.readouterr().err


@pytest.mark.parametrize(("argv", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_a_wrong_command_is_one_line(argv, message, finished, quick, capsys):
    assert call(command, *(a.replace("=W", f"={finished}") for a in argv)) == 2
    assert message in capsys.readouterr().err


PROBLEMS = """
import gap
from tiny_recipe import common

def get_config(arg=""):
    config = gap.get_config("{source},debug")
    judge = lambda **how: common.judge(weights=(("reasoned_correct", 1.0),), max_tokens=4, **how)
    rule = common.judge("rule", rule="distinct_words", weights=(("correct", 1.0),))
    own = judge(backend="local", init_from="policy")
    config.gap.judges = dict(rule=dict(judge=rule, rounds=0), own=dict(judge=own, rounds=0))
    config.gap.ensembles = ()
    config.gap.utility.check.check = "exact"
    config.gap.chat = ""
    config.gap.prompts = 3
    return config
"""


@pytest.fixture
def problems(of_bytes, tmp_path):
    """Returns a function that measures a tiny model of bytes on a file of problems."""
    cfg = dataclasses.replace(tiny.BYTES, max_len=512)
    source = of_bytes("solver", cfg)
    (tmp_path / "solved.py").write_text(PROBLEMS.format(source=source))
    path = tmp_path / "asked.jsonl"

    def run(*argv, asked="What is 1 + {}?"):
        rows = [{"problem": asked.format(n), "answer": str(n + 1)} for n in range(3)]
        path.write_text("\n".join(map(json.dumps, rows)))
        config = f"--config={tmp_path}/solved.py"
        return call(
            command, config, f"--workdir={tmp_path}", f"--config.gap.problems.test={path}", *argv
        )

    return run


def test_a_checkpoint_is_measured_on_problems(problems, quick, capsys):
    """An untrained model answers nothing rightly and writes no verdict; both are said."""
    assert problems("--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["utility"] == "the check of answers: exact" and found["prompts"] == 3
    (policy,) = found["policies"].values()
    assert policy["utility"]["mean"] == 0 and policy["constant"] == 1 and "maj@2" in policy
    rows = {r["judge"]: r for r in found["rows"]}
    assert rows["rule"]["verdicts"] and rows["rule"]["gap"]["mean"] == 0
    assert not rows["own"]["verdicts"]
    invalid = {key.rpartition("/")[2]: one for key, one in found["judges"].items()}
    assert invalid["own"]["invalid"] == 1 and "cut before their end" in invalid["own"]["why"]


def test_problems_longer_than_the_context_are_counted_and_none_is_an_error(problems, quick, capsys):
    assert problems(asked="Long" * 200 + " {}") == 2
    said = capsys.readouterr().err
    assert "no problem fits every policy" in said and "3 longer than 504 tokens" in said
    assert problems("--config.gap.problems.test=nowhere.jsonl") == 2
    assert "gap.problems.test: nowhere.jsonl: there is no such file" in capsys.readouterr().err


def test_a_judge_without_a_key_is_one_line(finished, quick, capsys, tmp_path):
    at = "--config.runs.sip_oracle.judge"
    served = (f"{at}.backend=http", f"{at}.http.url=http://127.0.0.1:1/v1", f"{at}.http.model=m")
    argv = (
        RECIPE,
        f"--workdir={finished}",
        "--run=sip_oracle",
        *served,
        f"{at}.http.key_env=NO_KEY",
    )
    assert call(command, *argv) == 2
    said = capsys.readouterr().err
    assert "NO_KEY" in said and len([x for x in said.splitlines() if "error" in x]) == 1
