"""Tests the overlap of documents with evaluation sets."""

import gzip
import json

import pytest

from sip.data import __main__ as cli
from sip.data import contamination, documents
from sip.data.contamination import ContaminationConfig
from sip.data.documents import DataConfig
from sip.structs import UserError

WORDS = [f"w{i}" for i in range(100)]


def text(*places):
    return " ".join(WORDS[i] for i in places)


def asked(path, *texts, **more):
    path.write_text("".join(json.dumps({"question": t, **more}) + "\n" for t in texts))
    return str(path)


def test_overlaps_by_hand(tmp_path):
    first = asked(tmp_path / "first.jsonl", text(*range(0, 20)), text(*range(30, 43)), "too short")
    second = asked(tmp_path / "second.jsonl", text(*range(50, 70)))
    found = contamination.overlaps(
        [
            text(*range(7, 20)),  # 13 words of the first text
            text(*range(8, 21)),  # 12 words of it
            f"Before {text(*range(30, 43)).upper()}, after.",  # the whole second text
            text(*range(12, -1, -1)),  # in reverse order
            text(*range(50, 63)) + "! " + text(*range(30, 43)).replace(" ", ", "),
            "",
        ],
        ContaminationConfig((("first", first), ("second", second))),
    )
    assert [one.documents_D.tolist() for one in found] == [
        [True, False, True, False, True, False],
        [False, False, False, False, True, False],
    ]
    assert [(one.found, one.texts, one.short) for one in found] == [(2, 3, 1), (1, 1, 0)]
    assert str(found[0]) == (
        "3 documents overlap with first, with 2 of its 3 texts; 1 texts are too short to be found"
    )


@pytest.mark.parametrize("n", [1, 2, 5])
def test_ngrams_agree_with_a_search_in_the_joined_words(tmp_path, n):
    docs = [text(*(i * k % 10 for i in range(12))) for k in range(9)]
    sets = [text(*((i * k + 1) % 10 for i in range(6))) for k in range(7)]
    cfg = ContaminationConfig((("set", asked(tmp_path / "a.jsonl", *sets)),), ngram=n)
    (found,) = contamination.overlaps(docs, cfg)
    grams = lambda t: {tuple(t.split()[i : i + n]) for i in range(len(t.split()) - n + 1)}
    wanted = [any(grams(d) & grams(s) for s in sets) for d in docs]
    assert found.documents_D.tolist() == wanted
    assert found.found == sum(any(grams(d) & grams(s) for d in docs) for s in sets)


def test_a_character_of_a_language_without_spaces_is_a_word(tmp_path):
    river = "吾輩は猫である。名前はまだ無い。どこで生れたか頓と見当がつかぬ。"
    cfg = ContaminationConfig((("set", asked(tmp_path / "a.jsonl", river)),))
    (found,) = contamination.overlaps(["x" + river[3:20] + "y", river[3:15], "吾輩 GPT3"], cfg)
    assert found.documents_D.tolist() == [True, False, False]


def corpus(tmp_path, **changes):
    """A corpus of 60 documents, some with the words of an evaluation text, and the config."""
    path = tmp_path / "a.jsonl"
    texts = [f"document {i} " + (text(*range(20)) if i % 3 == 0 else "x") for i in range(60)]
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    sets = asked(tmp_path / "set.jsonl", text(*range(5, 25))), asked(tmp_path / "no.jsonl", "a b")
    both = ContaminationConfig(tuple(zip(("set", "none"), sets, strict=True)), **changes)
    return DataConfig("jsonl", str(path), contamination=both), texts


def test_documents_are_reported_or_left_out_and_counted(tmp_path):
    cfg, texts = corpus(tmp_path)
    kept = documents.load(cfg, "")
    hits = [t for t in kept.texts if "w5" in t]
    assert kept.overlaps[0].documents_D.sum() == len(hits) > 5 and not kept.left_out
    dropped = documents.load(corpus(tmp_path, drop=True)[0], "")
    assert list(dropped.texts) == [t for t in kept.texts if "w5" not in t]
    assert dropped.left_out == {"with 13 words in a row from set": len(hits)}
    held_out = documents.load(DataConfig(**{**vars(cfg), "split": "test"}), "")
    assert held_out.overlaps == ()


def test_sets_have_every_format_and_inner_strings(tmp_path):
    words = text(*range(5, 25))
    (tmp_path / "sets").mkdir()
    asked(tmp_path / "sets" / "a.jsonl", "short", choices=[{"text": words}])
    (tmp_path / "sets" / "b.txt.gz").write_bytes(gzip.compress(b"other\n\n" + words.encode()))
    cfg = ContaminationConfig((("sets", str(tmp_path / "sets")),))
    (found,) = contamination.overlaps([words], cfg)
    assert (found.found, found.texts, found.short) == (2, 4, 2)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (dict(against=(("a", "x"), ("a", "y"))), "against=.*two names"),
        (dict(against=(("a", ""),)), "against=.* no path"),
        (dict(ngram=0), "ngram=0"),
        (dict(drop=True), "drop: needs evaluation sets"),
    ],
)
def test_a_wrong_section_is_named(values, said):
    with pytest.raises(UserError, match=f"data.contamination.{said}"):
        ContaminationConfig(**values)


def test_wrong_sets_are_named_before_anything_is_read(tmp_path):
    (tmp_path / "a.csv").write_text("a")
    (tmp_path / "a.dat").write_text("a")
    (tmp_path / "empty.txt").write_text("")
    for name, said in (("no.txt", "no such file"), ("a.csv", "CSV"), ("a.dat", "must be .txt")):
        against = ContaminationConfig((("set", str(tmp_path / name)),))
        with pytest.raises(UserError, match=f"data.contamination.against: .*{said}"):
            documents.check_path(DataConfig("microworld", contamination=against))
    with pytest.raises(UserError, match="empty.txt: the evaluation set has no texts"):
        contamination.overlaps(["a"], ContaminationConfig((("e", str(tmp_path / "empty.txt")),)))


def test_the_command_reports_overlaps(tmp_path, capsys):
    cfg, _ = corpus(tmp_path)
    flags = ["--source=jsonl", f"--path={cfg.path}", f"--against={tmp_path}/set.jsonl"]
    assert cli.main(flags) == 0
    assert "documents overlap with set.jsonl, with 1 of its 1 texts" in capsys.readouterr().out
