"""Tests the HTML page of the report: its texts are inert, its verdict and figures by hand."""

import base64
import gzip
import json
import shutil
from html.parser import HTMLParser

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
    of = lambda *kinds: [dict(source=s, chosen=c, rejected=r) for s, c, r in kinds]
    three = [("suffix", False, False), ("rollout", False, True), ("rollout", True, False)]
    assert candidates.compared(of(*three)) == [2, 1]
    assert candidates.compared(of(three[0], three[2])) == [1, 0]
    assert candidates.compared(of(three[0], three[1])) is None
    assert candidates.compared(of(("suffix", True, False))) is None


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


def run(name="sip_learned", lines=(), texts=(), alarms=(), **figures):
    """A run's files by hand."""
    files = dict(lines=list(lines), texts=list(texts), alarms=list(alarms), figures=figures)
    return contents.RunFiles(name, None, "", steps=2, done=True, **files)


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
    assert made_of and made_of.low == pytest.approx(0.1) == made_of.high  # the same gain each time


def test_win_rates_against_different_baselines_are_not_compared():
    rows = dict(standard=dict(win_rate_judge=0.7, win_rate_judge_se=0.01))
    rows["sip_learned"] = dict(win_rate_judge=0.6, win_rate_judge_se=0.01)
    ask = lambda c: verdict.difference(c, "sip_learned", "standard", rows, [], "win_rate_judge")
    assert ask(config()).theirs == 0.7  # both against base
    against = ask(config(runs__sip_learned__evals__baseline="standard"))
    assert against.theirs == 0.5 and against.low == pytest.approx(0.1 - 1.96 * 0.01, abs=1e-4)
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
