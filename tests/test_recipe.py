"""Tests that a recipe's check reads what runs need hours later: other models' tokenizers and chat
templates, and how many documents a split has."""

import importlib
import json

import families
import pytest
import tiny_recipe

from sip.data import documents
from sip.data.documents import DataConfig
from sip.judge import chunk_scores, prompts
from sip.judge.build import JudgeConfig
from sip.stages import recipe
from sip.structs import UserError
from sip.text import tokenizer as tokenizers

TEXTS = ["The lamp of Mira is green, he drinks cider.", "A river carries light and more of it."]
SAFE = JudgeConfig("truth", (("safety", 0.5), ("factuality", 0.5)))


def checkpoint(path, aspects):
    """Writes config.json and a tokenizer whose single tokens are the words of `aspects`."""
    path.mkdir()
    raw = {**families.config("llama31"), "vocab_size": 600, "max_position_embeddings": 512}
    (path / "config.json").write_text(json.dumps(raw))
    symbols = prompts.symbols([prompts.load(name) for name in aspects])
    tokenizers.train_sentencepiece(
        TEXTS * 30, path / "tokenizer.model", vocab_size=380, symbols=symbols
    )
    return str(path)


def config(**changes):
    found = tiny_recipe.get_config()
    for key, value in changes.items():
        tiny_recipe.put(found.runs.sip_learned, key.replace("__", "."), value)
    return found


def test_a_judge_that_is_no_run_must_have_the_options_as_tokens(tmp_path):
    good = checkpoint(tmp_path / "good", ("quality", "safety", "factuality"))
    recipe.check(config(judge__init_from=good), str(tmp_path))
    bad = checkpoint(tmp_path / "bad", ("safety",))
    said = r"runs\.sip_learned: judge: aspect 'quality': option ' one' is \d+ tokens"
    with pytest.raises(UserError, match=said):
        recipe.check(config(judge__init_from=bad), str(tmp_path))


@pytest.mark.parametrize("section", ["judge", "rewriter"])
def test_a_broken_template_is_found_before_a_run_begins(section, tmp_path):
    """By the check for a model that is there, with the tokenizer for a run of the recipe."""
    pytest.importorskip("jinja2")
    where = checkpoint(tmp_path / "model", ("quality", "safety", "factuality"))
    broken = tmp_path / "broken.jinja"
    broken.write_text("{% for m in messages %}{{ m.content }")
    given = {f"{section}__chat": str(broken)}
    with pytest.raises(UserError, match=rf"sip_learned: {section}.*broken.jinja"):
        recipe.check(config(**given, **{f"{section}__init_from": where}), str(tmp_path))
    ours = config(**given, **{f"{section}__init_from": "base"})
    ours.order, ours.report.rows = ("base", "sip_learned"), ("sip_learned",)
    with pytest.raises(UserError, match=rf"sip_learned\.{section}.*broken.jinja"):
        recipe.check_tokens(ours, tokenizers.load("sentencepiece", f"{where}/tokenizer.model"))


def test_a_split_of_a_small_file_must_have_documents(tmp_path):
    own = importlib.import_module("own_text").get_config("debug")
    own.data.path = str(tmp_path / "own.txt")
    (tmp_path / "own.txt").write_text("\n\n".join(f"Document {i}." for i in range(40)))
    recipe.check(own, str(tmp_path))
    own.runs.sip.split = "train[:1%]"
    with pytest.raises(UserError, match=r"sip\.split: split 'train\[:1%\]': has none of the 3\d "):
        recipe.check(own, str(tmp_path))
    own.runs.sip.split = "train"
    (tmp_path / "own.txt").write_text("\n\n".join(f"Document {i}." for i in range(4)))
    with pytest.raises(UserError, match="split 'test': has none of the 0 documents"):
        recipe.check(own, str(tmp_path))


def test_the_documents_of_a_split_are_counted_as_they_are_loaded(tmp_path, monkeypatch):
    path = tmp_path / "own.jsonl"
    rows = [{"text": f"Document {i % 50}."} for i in range(70)] + [{"text": None}]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for drop in (False, True):
        cfg = DataConfig("jsonl", str(path), drop_duplicates=drop)
        found = documents.sizes(cfg, "")
        for split, count in found.items():
            loaded = documents.load(DataConfig("jsonl", str(path), split, drop_duplicates=drop), "")
            assert len(loaded.texts) == count > 0
        assert sum(found.values()) == (50 if drop else 70)
    monkeypatch.setattr(documents, "SMALL", 10)
    assert documents.sizes(cfg, "") == {}


def test_splits_of_a_data_set_that_is_there_are_known(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the extra data")
    own = {name: datasets.Dataset.from_dict({"text": TEXTS}) for name in ("train", "test")}
    datasets.DatasetDict(own).save_to_disk(str(tmp_path / "set"))
    found = documents.sizes(DataConfig("huggingface", str(tmp_path / "set")), "")
    assert found == {"train": 2, "test": 2}
    documents.check_split("huggingface", "train[:50%]+test", sizes=found)
    for split, said in (("tran", "no split 'tran', only train, test"), ("test[:1%]", "none of")):
        with pytest.raises(UserError, match=said):
            documents.check_split("huggingface", split, sizes=found)
    assert documents.sizes(DataConfig("huggingface", "org/name"), "") == {}


@pytest.mark.parametrize("threshold", [5.0, 1.01, -0.1])
def test_a_threshold_that_no_score_reaches_is_refused(threshold):
    with pytest.raises(UserError, match=r"filter.threshold=.*must be in 0\.\.1,"):
        chunk_scores.FilterConfig(SAFE, threshold)
    with pytest.raises(UserError, match=r"control.threshold=.*must be in 0\.\.1,"):
        chunk_scores.ControlConfig(SAFE, "<s>", "</s>", threshold)
    chunk_scores.FilterConfig(SAFE, 1.0)
