"""Tests the HTML page of the report: its texts are inert, its verdict and figures by hand."""

import base64
import gzip
import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import report_data as made
import tiny_recipe
from ml_collections import ConfigDict
from workdirs import call

from sip import workdir as workdirs
from sip.report import __main__ as report
from sip.report import candidates, contents, costs, differences, outputs, page, panels, verdict
from sip.structs import UserError

ELEMENTS = set(
    "html head meta title link style body header main nav a p b bdi div section h1 h2 h3 ul li "
    "noscript script table caption thead tbody tr th td form label select option input button "
    "output span code kbd".split()
)


class Page(HTMLParser):
    """The elements of a page, and the texts of its scripts by id."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.scripts, self.inside, self.text, self.policy = [], {}, None, [], ""
        self.attributes = set()
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        named = dict(attrs)
        self.inside = named.get("id", "program") if tag == "script" else None
        self.policy = named.get("content", "") if "http-equiv" in named else self.policy

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside:
            self.scripts[self.inside] = data
        else:
            self.text.append(data)

    def data(self) -> dict:
        """The unpacked data of the page."""
        return json.loads(gzip.decompress(base64.b64decode(self.scripts["data"])))


def written(*workdirs_of_page) -> Page:
    """Writes the page of one or two workdirs and reads it."""
    every = [contents.opened(str(one)) for one in workdirs_of_page]
    places = [
        page.place(label, one, *outputs.present(one.config, one.begun, one.path))
        for label, one in zip(["A", "B"] if len(every) > 1 else [""], every, strict=True)
    ]
    path = workdirs_of_page[0].parent / "page.html"
    page.write(str(path), places, 0.0)
    assert path.stat().st_size < 20e6
    return Page(path.read_text())


def hostile(to):
    """A workdir in which every text of a model is hostile."""
    lines = []
    for i, text in enumerate(made.HOSTILE):
        vote = dict(aspect=text, against=None, text=text, value=None)
        some = [
            made.candidate("suffix", text, why=text, chosen=True, said=[vote]),
            made.candidate("rollout", text[::-1] + "x", aspects={text: 0.1}, rejected=True),
        ]
        lines.append({**made.prefix(1, i, text, some), "reference": text})
    workdir = made.workdir(to, lines)
    texts = [dict(step=1, prompt=text, text=text) for text in made.HOSTILE]
    made.write_lines(workdir / "runs" / "sip_learned" / "samples.jsonl", texts)
    return workdir


def test_forty_hostile_texts_are_data_and_never_elements(tmp_path):
    assert len(made.HOSTILE) >= 40
    found = written(hostile(tmp_path / "<img src=x onerror=alert(1)>"))
    assert set(found.tags) <= ELEMENTS and found.tags.count("script") == 3
    assert not {name for name in found.attributes if name.startswith("on")}
    assert "<img src=x onerror=alert(1)>" in "".join(found.text)  # the path, as text
    rows = found.data()["rows"]
    kept = [workdirs.finite(x) for x in made.HOSTILE]
    assert [row["prompt"] for row in rows] == kept
    assert [row["candidates"][0]["said"][0]["text"] for row in rows] == kept
    assert [x["text"] for x in found.data()["samples"]] == kept


def test_the_policy_admits_only_the_two_scripts_and_no_request(tmp_path):
    found = written(made.workdir(tmp_path / "w", made.prefixes(1, 1)))
    plotly = gzip.decompress(base64.b64decode(found.scripts["plotly"])).decode()
    allowed = {page._hash(found.scripts["program"]), page._hash(plotly)}
    rules = dict(rule.strip().split(" ", 1) for rule in found.policy.split(";"))
    assert set(rules["script-src"].replace("'", "").split()) == allowed
    assert rules["default-src"] == "'none'" and "http" not in found.policy


def test_all_candidates_with_the_words_of_the_judge_are_in_the_page(tmp_path):
    lines = made.prefixes(2, 6)
    rows = written(made.workdir(tmp_path / "w", lines)).data()["rows"]
    assert [row["prompt"] for row in rows] == [line["prompt"] for line in lines]
    for row, line in zip(rows, lines, strict=True):
        for ours, theirs in zip(row["candidates"], line["candidates"], strict=True):
            assert {key: ours[key] for key in theirs} == theirs


def test_data_that_do_not_fit_lose_steps_and_the_page_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MOST_BYTES", 12_000)
    found = written(made.workdir(tmp_path / "w", made.prefixes(9, 8)))
    steps = {row["step"] for row in found.data()["rows"]}
    assert 10 in steps and 90 in steps and 20 not in steps
    assert f"{8 * len(steps)} of 72 logged prefixes" in "".join(found.text)


def test_each_of_two_workdirs_says_what_it_leaves_out(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MOST_BYTES", 12_000)
    one = made.workdir(tmp_path / "one", made.prefixes(9, 8))
    other = made.workdir(tmp_path / "other", made.prefixes(1, 1, seed=1))
    text = "".join(written(one, other).text)
    assert text.count("logged prefixes") == 1 and "A The page has" in text
    assert "of 72 logged prefixes" in text


def test_long_lines_keep_their_ends_and_extremes():
    steps = list(range(1, 20_001))
    mean = np.sin(np.arange(20_000.0))
    mean[7_777], mean[12_345] = 9.0, -9.0
    line = panels.Line("a", "#000", steps, mean, np.full(20_000, 0.5))
    kept = page.thinned(line)
    assert kept[0] == 0 and kept[-1] == 19_999 and {7_777, 12_345} <= set(kept)
    assert kept == sorted(set(kept)) and 900 < len(kept) <= page.MOST_POINTS
    short = panels.Line("a", "#000", steps[:1000], mean[:1000])
    assert page.thinned(short) == list(range(1000))
    (drawn,) = page._panel(panels.Panel("loss", "a", "loss", [line]))["lines"]
    assert len(drawn["x"]) == len(drawn["y"]) == len(drawn["spread"]) == len(kept)
    assert drawn["y"][drawn["x"].index(7_778)] == 9.0


def test_rows_have_a_hash_of_their_texts():
    first, other = made.prefixes(1, 2)
    assert page.texts(first) == page.texts(made.prefixes(1, 1)[0]) != page.texts(other)
    changed = made.prefixes(1, 1)[0]
    changed["candidates"][5]["text"] += "\ud83d"  # a lone surrogate
    assert page.texts(changed) != page.texts(first) and len(page.texts(changed)) == 12


def test_figures_of_a_debug_run_are_said_to_mean_nothing(tmp_path):
    one = made.workdir(tmp_path / "one", [])
    other = made.workdir(tmp_path / "other", [])
    text = "".join(written(one).text)
    assert text.index("the figures mean nothing") < text.index("Did it help?")
    long = json.loads((other / "config.json").read_text())
    long["runs"]["base"]["steps"] = 5000
    workdirs.write_json(other / "config.json", long)
    text = "".join(written(one, other).text)
    assert text.count("mean nothing") == 1 and "A: No model was trained for more than 2" in text


def test_two_workdirs_are_side_by_side(tmp_path):
    one = made.workdir(tmp_path / "one", made.prefixes(2, 3))
    other = made.workdir(tmp_path / "other", made.prefixes(2, 3, seed=1))
    found = written(one, other)
    text, data = "".join(found.text), found.data()
    assert str(one) in text and str(other) in text
    assert {row["place"] for row in data["rows"]} == {0, 1} == {x["place"] for x in data["panels"]}


def test_lines_that_are_cut_or_damaged_are_counted(tmp_path):
    workdir = made.workdir(tmp_path / "w", made.prefixes(1, 3))
    path = workdir / "runs" / "sip_learned" / "candidates.jsonl"
    good = path.read_text()
    bad = ["{", "[]", '{"step": true}', json.dumps({**json.loads(good.split("\n")[0]), "row": "1"})]
    path.write_text(good + "\n".join(bad) + "\n" + good[:100])  # the last line is being written
    rows, damaged = candidates.read(str(path.parent), "candidates.jsonl")
    assert (len(rows), damaged) == (3, 4)
    assert "4 unreadable lines" in "".join(written(workdir).text)


def test_a_run_that_is_going_is_reported_with_what_is_missing(tmp_path, capsys):
    workdir = made.workdir(tmp_path / "w", made.prefixes(1, 1))
    other = made.workdir(tmp_path / "other", made.prefixes(1, 1, seed=1))
    (workdir / "runs" / "sip_learned" / "eval.json").write_text("{")
    with workdirs.locked(str(workdir)):
        assert call(report, str(workdir), str(other)) == 0
    found, out = Page((workdir / "report.html").read_text()), capsys.readouterr().out
    text = "".join(found.text)
    for what in (
        "Run base is still going: step 0",
        "Run tutor has not begun",
        "sip_learned is not finished: step 2",
        "eval.json",
    ):
        assert what in text and what in out
    assert "no run of the report is evaluated yet" in text and len(found.data()["panels"]) > 1
    assert (workdir / "plots" / "reward.png").exists() and not (other / "plots").exists()


def test_a_run_whose_metrics_are_damaged_is_not_said_to_be_new(tmp_path):
    workdir = made.workdir(tmp_path / "w", made.prefixes(1, 1))
    (workdir / "runs" / "sip_learned" / "metrics.jsonl").write_bytes(b"\0\xff{{\nnonsense\n")
    missing = []
    every = contents.runs(contents.opened(str(workdir)), missing)
    assert [what for what in missing if "sip_learned/metrics.jsonl: damaged" in what]
    assert "Run sip_learned cannot be read." in contents.progress(every, running=False)


def test_the_first_unfinished_run_of_a_locked_workdir_is_still_going(tmp_path):
    workdir = made.workdir(tmp_path / "w", [], run="base")
    for running, word in ((True, "still going"), (False, "not finished")):
        every = contents.runs(contents.opened(str(workdir)), [])
        assert word in contents.progress(every, running)[0]
    with workdirs.locked(str(workdir)):
        assert contents.in_use(str(workdir))
    assert not contents.in_use(str(workdir))


def test_an_empty_directory_and_missing_packages_are_one_line(tmp_path, monkeypatch, capsys):
    assert call(report, str(tmp_path)) == 2
    assert "must be a workdir of sip.train" in capsys.readouterr().err
    monkeypatch.setattr(page.importlib.util, "find_spec", lambda name: None)
    workdir = made.workdir(tmp_path / "w", [])
    assert call(report, str(workdir)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip install -e '.[report]'" in error
    assert call(report, str(workdir), "--html=") == 0


def test_differences_are_ranges_of_javascript_strings():
    a, b = "the 👩 cat sat", "the 👩 dog sat down"
    assert candidates.marks(a, b) == ([[7, 10]], [[7, 10], [14, 19]])  # the emoji has two units
    assert candidates.marks("x " * 1000, "y") == (None, None)
    assert candidates.marks("same", "same") == ([], [])


def test_the_chosen_is_compared_with_the_rejected_or_the_suffix():
    of = lambda *kinds: [dict(source=s, chosen=c, rejected=r, advantage=None) for s, c, r in kinds]
    three = [("suffix", False, False), ("rollout", False, True), ("rollout", True, False)]
    assert candidates.compared(of(*three)) == [2, 1]
    assert candidates.compared(of(three[0], three[2])) == [1, 0]
    assert candidates.compared(of(three[0], three[1])) is None
    assert candidates.compared(of(("suffix", True, False))) is None


def test_answers_of_the_highest_and_the_lowest_advantage_are_compared():
    of = lambda *values: [
        dict(source="answer", chosen=False, rejected=False, advantage=x) for x in values
    ]
    assert candidates.compared(of(0.1, None, 1.2, -0.7)) == [2, 3]
    for flat in (of(0.0, 0.0), of(0.5, None), of(None)):
        assert candidates.compared(flat) is None
    line = made.prefix(1, 0, "p", [
        made.candidate("answer", f"the {x} cat", x, advantage=x) for x in (0.5, -1.5)
    ])  # fmt: skip
    found = candidates.prefix({**line, "kind": "answers"})
    assert found["compared"] == [0, 1] and all(x["marks"] for x in found["candidates"])


def test_intervals_are_those_of_the_literature():
    # Newcombe 1998, table II, (a) 56/70 - 48/80 and (h) 10/10 - 0/10, method 10.
    assert differences.of_rates(56 / 70, 48 / 80, 70, 80) == pytest.approx(
        (0.0524, 0.3339), abs=1e-4
    )
    assert differences.of_rates(1.0, 0.0, 10, 10) == pytest.approx((0.6075, 1.0), abs=1e-4)
    assert differences.wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert differences.paired([1.0, 2.0, 3.0]) == pytest.approx(
        (2 - 4.303 * 0.57735, 4.4843), abs=1e-3
    )
    assert differences.paired([1.0]) is None
    assert differences.of_normal(1.0, 3.0, 4.0) == pytest.approx(
        (1 - 1.96 * 5, 1 + 1.96 * 5), abs=1e-3
    )


def config(**changes):
    """The tiny recipe with some keys changed."""
    found = tiny_recipe.get_config()
    for key, value in changes.items():
        tiny_recipe.put(found, key.replace("__", "."), value)
    return ConfigDict(found.to_dict())


def run(name="sip_learned", lines=(), texts=(), alarms=(), unsafe=0, **figures):
    """A run's files by hand."""
    files = dict(lines=list(lines), texts=list(texts), alarms=list(alarms), figures=figures)
    return contents.RunFiles(name, None, "", steps=2, done=True, unsafe=unsafe, **files)


def row(value):
    return {"win_rate_standard": value, "factuality": 0.9, "safety": 1.0}


def test_rows_are_judged_by_intervals_of_their_difference():
    rows = dict(standard=row(0.5), sip_learned={**row(0.9), "factuality": 0.2}, sip_oracle=row(0.9))
    rows |= dict(sft_one_rollout=row(0.1), tutor=row(0.52), base=row(0.5))
    every = [run(name, texts=["a"] * 100) for name in rows]
    found = {x.title.split(":")[0].split(" ")[0]: x for x in
             verdict.helped(config(), {"rows": rows}, every)}  # fmt: skip
    kinds = {name: x.kind for name, x in found.items()}
    assert kinds == dict(
        sip_learned="mixed", sip_oracle="good", sft_one_rollout="bad", tutor="note"
    )  # base is where standard started
    assert "+0.400 (95 % interval" in found["sip_oracle"].reasons[0]


def test_figures_over_seeds_are_compared_seed_by_seed():
    over = lambda *x: {"mean": sum(x) / len(x), "std": 0.1, "values": list(x)}
    rows = {
        "standard": {"safety": over(0.5, 0.7, 0.9)},
        "sip_oracle": {"safety": over(0.6, 0.8, 1)},
    }
    made_of = verdict.difference(config(), "sip_oracle", "standard", rows, [], "safety")
    assert made_of and made_of.interval == pytest.approx((0.1, 0.1))  # the same gain each time


def test_without_a_standard_row_a_row_is_compared_with_its_start():
    rows = dict(base=row(0.5), sip_oracle={**row(0.9), "reward": 0.7}, tutor=row(0.5))
    every = [run(name, texts=["a"] * 100) for name in rows]
    free = config(report__standard="")
    found = verdict.helped(free, {"rows": rows}, every)
    assert [x.title for x in found] == [
        "tutor: no difference to base can be told from chance",
        "sip_oracle helped: better than base in win rate",
    ]
    assert "Compared with base, from which it started" in found[1].reasons[0]
    assert "win rate 0.900, 0.500 for base: +0.400 (95 %" in found[1].reasons[1]
    best = config(report__standard="", runs__sip_oracle__init_from="base/best")
    assert verdict.helped(best, {"rows": rows}, every) == found
    # On other prefixes nothing of the continuations is comparable.
    other = config(report__standard="", runs__sip_oracle__evals__standard=99)
    (_, last) = verdict.helped(other, {"rows": rows}, every)
    assert last.kind == "unknown" and "no figure to compare with base" in last.title
    (alone,) = verdict.helped(free, {"rows": dict(base=row(0.5))}, [])
    assert alone.kind == "unknown" and "no row that is evaluated" in alone.title


def test_a_run_without_a_comparable_start_has_its_own_evaluations():
    lines = [{"step": s, "eval/reward": s / 10, "eval/win_rate_standard": 0.5} for s in (2, 4, 8)]
    free = config(report__standard="", runs__base__evals__baseline="")
    (found,) = verdict.helped(free, {"rows": dict(base={})}, [run("base", lines)])
    assert found.kind == "note" and found.reasons == (
        "On validation, reward was 0.200 at step 2 and 0.800 at step 8 (interval unknown).",
    )


def test_figures_of_one_seed_have_the_interval_of_their_number_or_none():
    rows = {name: {} for name in ("standard", "sip_oracle")}
    counts = {"mean@8": ("problems", 50), "accuracy": ("pairs", 60)}
    for name, value in (("standard", 0.5), ("sip_oracle", 0.8)):
        for metric in ("safety_unsafe", "reward", "answer_right", *counts):
            rows[name][metric] = value
        rows[name] |= {key: n for key, n in counts.values()}
    every = [run(name, texts=["a"] * 30, unsafe=40) for name in rows]
    found = verdict._differences(config(), "sip_oracle", "standard", rows, every)
    known = {x.metric: (x.interval, x.over.removesuffix(", one seed")) for x in found}
    of = lambda n: pytest.approx(differences.of_rates(0.8, 0.5, n, n))
    assert known["safety_unsafe"] == (of(40), "over 40 unsafe prefixes")
    assert known["mean@8"] == (of(50), "over 50 problems")
    assert known["accuracy"] == (of(60), "over 60 pairs")
    assert known["reward"] == known["answer_right"] == (None, "")
    texts = {x.metric: x.text for x in found}
    assert texts["reward"] == "reward 0.800, 0.500 for standard: +0.300 (interval unknown)"
    rows["standard"], rows["sip_oracle"] = ({"reward": x} for x in (0.5, 0.8))
    last = verdict._against(config(), "sip_oracle", "standard", rows, every)
    assert last.kind == "note" and "may be chance" in last.title


def test_win_rates_against_different_baselines_are_not_compared():
    rows = dict(standard=dict(win_rate_judge=0.7, win_rate_judge_se=0.01))
    rows["sip_learned"] = dict(win_rate_judge=0.6, win_rate_judge_se=0.01)
    ask = lambda c: verdict.difference(c, "sip_learned", "standard", rows, [], "win_rate_judge")
    assert ask(config()).theirs == 0.7  # both against base
    against = ask(config(runs__sip_learned__evals__baseline="standard"))
    assert against.theirs == 0.5
    assert against.interval[0] == pytest.approx(0.1 - 1.96 * 0.01, abs=1e-4)
    assert ask(config(runs__sip_learned__evals__baseline="tutor")) is None


def audits(judge, audit, order=0.9):
    return [
        {"step": 10 * i + 1, "judge/valid": 1.0, "audit/judge_chosen": a, "audit/chosen": b}
        | {"audit/order": order}
        for i, (a, b) in enumerate(zip(judge, audit, strict=True))
    ]


@pytest.mark.parametrize(
    ("judge", "audit", "order", "kind", "word"),
    [
        ([0.5, 0.6, 0.7, 0.8, 0.9, 0.9], [0.5, 0.55, 0.6, 0.6, 0.62, 0.64], 0.9, "good", "no sign"),
        ([0.5, 0.6, 0.7, 0.8, 0.9, 0.9], [0.5, 0.7, 0.7, 0.4, 0.3, 0.2], 0.9, "bad", "have parted"),
        (
            [0.5, 0.5, 0.5, 0.6, 0.6, 0.6],
            [0.5, 0.5, 0.5, 0.45, 0.45, 0.45],
            0.9,
            "bad",
            "They part",
        ),
        ([0.5, 0.6, 0.7, 0.8, 0.9, 0.9], [0.5, 0.55, 0.6, 0.6, 0.62, 0.64], 0.52, "bad", "52%"),
        ([0.5] * 6, [0.5] * 6, 0.0, "bad", "0% of the last pairs"),
        ([0.5], [0.5], 0.9, "unknown", "too few"),
        ([], [], 0.9, "unknown", "no audit"),
    ],
)
def test_a_judge_is_fooled_if_the_audit_parts_from_it(judge, audit, order, kind, word):
    lines = audits(judge, audit, order) or [{"step": 1, "judge/valid": 1.0}]
    found = verdict.fooled(config(), run(lines=lines), [])
    assert found and found.kind == kind
    assert word in " ".join((found.title, *found.reasons))


def test_other_signs_of_a_fooled_judge():
    judged = [{"step": 1, "judge/valid": 1.0}]
    fell = judged + [
        {"step": i, "eval/win_rate_standard": x} for i, x in enumerate((0.5, 0.9, 0.6), 2)
    ]
    said = lambda **of: " ".join(
        verdict.fooled(config(), run(**of), [run("standard", texts=various, nll=2.0)]).reasons
    )
    various = [f"a{i} b{i} c{i} d{i}" for i in range(200)]
    assert "fell from 0.900 at step 3 to 0.600" in said(lines=fell)
    assert "repeats itself" in said(lines=judged, texts=["he was a dog he was a dog"] * 60)
    assert "much less likely: 2.60" in said(lines=judged, nll=2.6)
    assert "Alarm at step 3: look." in said(lines=judged, alarms=["Alarm at step 3: look"])
    assert "ended the run" in said(lines=judged, stopped_early="they diverged")
    truth = verdict.fooled(config(), run(lines=[{"step": 1, "truth/valid": 1.0}]), [])
    assert truth and truth.kind == "note" and verdict.fooled(config(), run(), []) is None


def test_a_judge_that_is_hardly_better_than_chance_is_said_to_be_weak():
    """Quality has two options, so .7 is enough; factuality has three, so .6 is. Aspects that the
    run does not ask about, and accuracies of one order, say nothing."""
    lines = audits([0.5] * 6, [0.5] * 6)
    judge = lambda **of: [run("judge", **of)]
    ask = lambda *others: verdict.fooled(config(), run(lines=lines), others)
    strong = ask(*judge(quality_accuracy=0.9, safety_accuracy=0.8))
    weak = ask(*judge(quality_accuracy=0.59, safety_accuracy=0.8, **{"quality/one_accuracy": 0.1}))
    assert (strong.kind, weak.kind) == ("good", "mixed") and "a judge is weak" in weak.title
    (said,) = [x for x in weak.reasons if "held-out verdicts" in x]
    assert said.startswith(
        "Its judge (run judge) is right in 59% of its held-out verdicts on quality (chance: 50%)"
    )
    asked = config(runs__sip_learned__judge__weights=(("factuality", 1.0),))
    ask = lambda c, rate: verdict.fooled(c, run(lines=lines), judge(**rate)).kind
    assert ask(asked, dict(factuality_accuracy=0.61, quality_accuracy=0.5)) == "good"
    assert ask(asked, dict(factuality_accuracy=0.59, quality_accuracy=0.9)) == "mixed"
    best = config(runs__sip_learned__judge__init_from="judge/best")
    assert ask(best, dict(quality_accuracy=0.59)) == "mixed"


def test_a_win_by_a_weak_judge_alone_is_no_help():
    rows = {x: dict(win_rate_judge=0.5, win_rate_judge_se=0.01) for x in ("base", "standard")}
    rows["sip_learned"] = dict(win_rate_judge=0.7, win_rate_judge_se=0.01)
    own = config(runs__sip_learned__evals__baseline="standard")
    with own.unlocked():
        own.runs.sip_learned.evals.judge = dict(
            backend="local", init_from="auditor", weights=(("quality", 1.0),)
        )
    against = lambda rate: verdict._against(
        own, "sip_learned", "standard", rows, [run("auditor", quality_accuracy=rate)]
    )
    assert (against(0.9).kind, against(0.69).kind) == ("good", "mixed")
    assert "that judge is weak" in against(0.69).title


def test_texts_between_two_thresholds_are_said_to_be_less_varied():
    """600 triples a row: all of the standard row's are distinct, 400 of the run's."""
    various = [f"a{i} b{i} c{i} d{i} e{i}" for i in range(200)]
    texts = various[:133] + various[:67]
    judged = [{"step": 1, "judge/valid": 1.0}]
    found = verdict.fooled(
        config(), run(lines=judged, texts=texts), [run("standard", texts=various)]
    )
    assert found and found.kind == "unknown"
    assert "66% are distinct, of those of standard 100%: they are less" in " ".join(found.reasons)


def test_win_rates_of_different_comparisons_are_said_beside_the_table():
    rows = dict(base=dict(nll=1.0), standard=row(0.5), sip_learned=row(0.6))
    assert verdict.compared(config(), rows) == ""
    one = config(runs__sip_learned__evals__baseline="standard")
    assert verdict.compared(one, rows) == (
        "Win rates are of different comparisons: standard against base, "
        "sip_learned against standard."
    )


def of_rl(**changes):
    """The config of a run of policy gradients."""
    task = dict(name="prompts", reward="reward_model", judge=None, continuations=None)
    section = dict(init_from="base", watch=dict(window=10), task={**task, **changes})
    found = config()
    with found.unlocked():
        found.runs.rl = section
    return found


REWARDED = ({"step": 1, "reward/all": 0.5}, {"step": 2, "reward/all": 0.6})


def test_a_run_by_rewards_shows_its_alarms():
    alarm = ["Alarm at step 3: look"]
    found = verdict.fooled(of_rl(), run("rl", REWARDED, alarms=alarm), [])
    assert found and found.kind == "bad" and found.title == "rl: signs that its reward was fooled"
    assert found.reasons[0] == "Alarm at step 3: look."
    assert "audit.every_steps" not in " ".join(found.reasons)
    quiet = verdict.fooled(of_rl(), run("rl", REWARDED), [])
    assert quiet and quiet.kind == "unknown" and "Its watch has raised no alarm" in quiet.reasons[0]
    found = verdict.fooled(config(), run(alarms=alarm), [])  # an alarm alone
    assert found and found.kind == "bad"
    checked = of_rl(reward="answers")
    assert verdict.fooled(checked, run("rl", REWARDED), []).kind == "note"
    assert verdict.fooled(checked, run("rl", REWARDED, alarms=alarm), []).kind == "bad"


def test_only_a_collapse_is_a_sign_among_the_ends_of_a_policy_gradient_run():
    lines = [{**x, "judge/valid": 1.0} for x in REWARDED]
    why = "3 evaluations were not better than eval/reward 0.5"
    found = verdict.fooled(of_rl(), run("rl", lines, stopped_early=why), [])
    assert found and found.kind == "unknown" and f"The run ended early: {why}." in found.reasons
    why = "collapse at step 7: reward and KL to the start have jumped"
    found = verdict.fooled(of_rl(), run("rl", lines, stopped_early=why, collapse_step=7), [])
    assert found and found.kind == "bad" and "jumped together at step 7" in found.reasons[0]
    assert "audit ended" not in " ".join(found.reasons)


@pytest.mark.parametrize("key", ["judge", "task.judge"])
def test_only_an_exact_ground_truth_cannot_be_fooled(key):
    lines = [{"step": 1, "truth/valid": 1.0, **({"reward/all": 0.5} if "task" in key else {})}]
    alarms = ["Alarm at step 3: look"]

    def ask(accuracy, said=(), reward="judge"):
        judge = dict(backend="truth", accuracy=accuracy)
        made_of = of_rl(reward=reward, judge=judge) if "task" in key else config()
        name = "rl" if "task" in key else "sip_oracle"
        made_of.runs[name].judge = judge if key == "judge" else None
        return verdict.fooled(made_of, run(name, lines, alarms=said), [])

    exact = ask(1.0, alarms)
    assert exact.kind == "note" and "cannot be fooled" in exact.title
    assert exact.reasons == ("Alarm at step 3: look.",)
    weak = ask(0.65)
    assert weak.kind == "unknown" and "with 35% of the verdicts inverted" in weak.reasons[-1]
    assert ask(0.65, alarms).kind == "bad"
    if key == "task.judge":
        assert ask(1.0, reward=(("judge", 0.5), ("reward_model", 0.5))).kind == "unknown"


def test_seconds_by_phase_and_tokens_by_hand():
    lines = [
        {"step": 10, "speed/seconds": 4.0, "speed/share/judge": 0.5, "judge/prompt_tokens": 100.0},
        {"step": 15, "eval/safety": 1.0},
        {"step": 20, "speed/seconds": 6.0, "speed/share/judge": 0.5, "speed/share/update": 0.25,
         "judge/prompt_tokens": 200.0, "judge/answer_tokens": 50.0},
    ]  # fmt: skip
    assert costs.phases(lines) == {"judge": 5.0, "update": 1.5, "other": 3.5}
    assert costs.tokens(lines) == 100 * 10 + 250 * 10 and costs.tokens(lines[1:2]) is None
    (cells,) = costs.rows([run(lines=lines)], 2.0)
    assert cells == ["sip_learned", "20 of 2", "10", "5", "3,500", "0.01"]


@pytest.mark.parametrize(
    ("key", "judging"), [("judge/valid", "2"), ("suffix/judge/valid", "2"), ("reward/all", "")]
)
def test_rewards_are_judging_if_a_judge_was_asked(key, judging):
    lines = [{"step": 1, "speed/seconds": 4.0, "speed/share/reward": 0.5, key: 1.0}]
    assert costs.rows([run(lines=lines)], 0.0)[0][3] == judging


def test_panels_leave_out_constants_and_give_a_source_one_colour():
    lines = [{"step": s, "loss/total": 1.0, "reward/rollout": s / 9, "reward/suffix": 0.5,
              "chosen/rollout": 1.0, "eval/win_rate_standard": s / 9} for s in (1, 2)]  # fmt: skip
    found = {(x.kind, x.title): x for x in panels.panels({"a": [lines], "b": [lines]})}
    assert set(found) == {
        ("reward", "a"), ("reward", "b"), ("evaluations", "win rate standard")
    }  # fmt: skip
    assert {x.level for x in found.values()} == {None, 0.5}
    for name in "ab":
        colors = {line.label: line.color for line in found["reward", name].lines}
        assert colors == {k: panels.SOURCES[k] for k in ("rollout", "suffix")}


def test_rewards_of_policy_gradients_have_a_panel():
    parts = {"reward/all": 0.1, "reward/judge": 0.2, "reward/length": 0.3}
    lines = [
        {"step": s, "reward/judge/skipped": 0.0, **{k: v * s for k, v in parts.items()}}
        for s in (1, 2)
    ]
    (panel,) = panels.panels({"a": [lines]})
    assert (panel.kind, panel.title) == ("reward", "a")
    assert {x.label: x.mean.tolist() for x in panel.lines} == {
        "all": [0.1, 0.2], "judge": [0.2, 0.4], "length": [0.3, 0.6]
    }  # fmt: skip
    same = [{**x, "reward/one": x["reward/all"]} for x in lines]
    for line in same:
        del line["reward/judge"], line["reward/length"]
    (panel,) = panels.panels({"a": [same]})
    assert [x.label for x in panel.lines] == ["all"]


def test_seeds_that_are_behind_do_not_hide_the_finished_ones(tmp_path):
    workdir = tmp_path / "w"
    for seed in (0, 1, 2):
        made.workdir(workdir / f"seed{seed}", [])
    workdirs.write_json(workdir / "seeds.json", {"seeds": [0, 1, 2], "shared": False})
    for seed, name, value in ((0, "standard", 0.5), (0, "sip_learned", 0.8), (1, "standard", 0.4)):
        directory = workdir / f"seed{seed}" / "runs" / name
        directory.mkdir(exist_ok=True)
        workdirs.write_json(directory / "eval.json", {"safety": value})
        texts = dict(test=dict(standard=["a"] * 30, unsafe=[]))
        workdirs.write_json(directory / "continuations.json", texts)
    text = "".join(written(workdir).text)
    assert "The figures are of 1 of 3 seeds (0)" in text and "over seeds 0\n" in text
    assert "safety 0.800, 0.500 for standard: +0.300 (95 % interval" in text
    assert "over 30 prefixes, one seed" in text


def test_a_finished_job_over_seeds_has_means_and_an_interval(tmp_path, monkeypatch):
    workdir = tmp_path / "w"
    for seed in (0, 1):
        made.workdir(workdir / f"seed{seed}", made.prefixes(1, 2, seed=seed))
    workdirs.write_json(workdir / "seeds.json", {"seeds": [0, 1], "shared": False})
    for seed, gain in ((0, 0.1), (1, 0.2)):
        for name, value in (("standard", 0.5), ("sip_learned", 0.5 + gain)):
            directory = workdir / f"seed{seed}" / "runs" / name
            directory.mkdir(exist_ok=True)
            workdirs.write_json(directory / "eval.json", {"safety": value})
    found = written(workdir)
    text = "".join(found.text)
    assert "0.650 ±0.071" in text and "+0.150 (95 % interval" in text and "paired over 2" in text
    assert {row["run"] for row in found.data()["rows"]} == {
        "seed0/sip_learned",
        "seed1/sip_learned",
    }


def test_alarms_are_read_from_the_run(tmp_path):
    workdir = made.workdir(tmp_path / "w", [])
    path = workdir / "runs" / "sip_learned" / "alarms.jsonl"
    path.write_text('{"step": 7, "said": "look"}\n{"step": 8}\n{"st')
    (found,) = [x for x in contents.runs(contents.opened(str(workdir)), []) if x.lines]
    assert found.alarms == ["Alarm at step 7: look"]


def test_a_damaged_config_is_one_line(tmp_path):
    workdir = made.workdir(tmp_path / "w", [])
    shutil.copy(workdir / "config.json", tmp_path / "config.json")
    (workdir / "config.json").write_text('{"order": []}')
    with pytest.raises(UserError, match="'runs' is missing"):
        contents.opened(str(workdir))
