"""Tests screening a corpus by verdicts: questions, selected documents, rejected input."""

import io
import json

import pytest
import tiny_recipe
import workdirs

from sip.data import __main__ as data
from sip.data import documents, screening
from sip.judge import __main__ as judge
from sip.structs import UserError


def test_documents_of_low_score_are_kept_from_the_questions_to_the_slice(
    tmp_path, monkeypatch, capsys
):
    """Runs both commands; the rule prefers distinct words."""
    texts = [f"{i} dull dull dull dull dull" for i in range(30)]
    texts += [f"{i} every word is another" for i in range(30)]
    corpus, asked, judged, out = (str(tmp_path / n) for n in ("a.jsonl", "q", "s", "b.jsonl"))
    lines = [json.dumps({"text": text}) for text in texts]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = ["--source=jsonl", f"--path={corpus}"]
    assert data.main([*source, f"--questions={asked}"]) == 0
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((tmp_path / "q").read_bytes())))
    capsys.readouterr()
    config = str(tiny_recipe.ROOT / "configs" / "sip_quality_1b4.py:debug")
    weights = "--config.runs.sip.judge.weights=(('safety', 1.0),)"
    assert workdirs.call(judge, f"--config={config}", weights) == 0
    (tmp_path / "s").write_text(capsys.readouterr().out)
    assert data.main([*source, f"--scores={judged}", f"--out={out}"]) == 0
    docs = documents.load(documents.DataConfig("jsonl", corpus), "")
    found = documents.load(documents.DataConfig("jsonl", out), "")
    dull = [text for text in docs.texts if "dull" in text]
    assert found.texts == dull and 0 < len(dull) < len(docs.texts)


def test_a_question_has_the_beginning_of_a_document_and_nothing_before_it():
    found = json.loads(screening.question("abcdef", 4))
    assert found == {"prefix": "", "candidates": ["abcd"], "reference": ""}


def test_what_could_not_be_judged_is_not_kept():
    line = lambda score, valid: json.dumps(
        {"aspects": {"safety": {"scores": [score], "valid": [valid]}}}
    ).encode()
    lines = [line(0.0, False), line(0.4, True), line(0.5, True)]
    assert list(screening.low(lines, "safety", 0.5)) == [False, True, False]


SAID = b'{"aspects": {"safety": {"scores": [%s], "valid": [%s]}}}'
BROKEN = [SAID % each for each in ((b"NaN", b"true"), (b"1" * 400, b"true"), (b"0", b"NaN"))]


@pytest.mark.parametrize("line", [b"{", b"{}", b'{"aspects": {"quality": 1}}', b"[1]", *BROKEN])
def test_a_line_without_the_verdict_is_named(line):
    with pytest.raises(UserError, match="--scores, line 1: no verdict on 'safety'"):
        list(screening.low([line], "safety", 0.5))


def test_verdicts_and_documents_are_as_many(tmp_path, capsys):
    with pytest.raises(UserError, match="1 verdicts on 2 documents"):
        screening.keep(["a", "b"], [True])
    with pytest.raises(SystemExit) as stopped:
        data.main(["--source=txt", "--path=a", "--scores=b"])
    assert stopped.value.code == 2 and "--scores and --out" in capsys.readouterr().err
