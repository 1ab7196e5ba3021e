"""Tests a run with a Hugging Face tokenizer, from the config to samples of its checkpoint."""

import shutil

import published
import pytest
import tiny_recipe
from workdirs import lines

from sip import generate, loading, train
from sip import run as runs
from sip.sampling import SamplingConfig
from sip.structs import UserError
from sip.text import tokenizer as tokenizers

pytest.importorskip("tokenizers", reason="needs tokenizers")
pytest_plugins = ["tiny_fixtures"]


def config_of(tmp_path):
    """Returns configs/text.py with its first run only."""
    import text

    config = tiny_recipe.shrink(text.get_config("debug"))
    sentence = "the other one went there, and then the rest of them followed. "
    (tmp_path / "my.txt").write_text("\n\n".join(f"{i} {sentence * 3}" for i in range(60)))
    path = published.small(tmp_path / "theirs", words=("th", "the"))
    config.data.path = str(tmp_path / "my.txt")
    config.tokenizer.update(kind="huggingface", path=str(path))
    for run in config.runs.values():
        run.model.vocab_size = 100
    config.order, config.report.rows, config.report.standard = ("base",), ("base",), ""
    return config


@pytest.mark.slow
def test_a_run_keeps_its_tokenizer_and_goes_on_with_it(tmp_path, quick):
    config, workdir = config_of(tmp_path), tmp_path / "work"
    train.train(config, str(workdir))
    before = lines(workdir, "base")
    (workdir / "runs" / "base" / "done.json").unlink()
    train.train(config, str(workdir))  # goes on from its last checkpoint: nothing is left to do
    assert lines(workdir, "base") == before
    directory = shutil.move(workdir / "runs" / "base", tmp_path / "moved")
    shutil.rmtree(tmp_path / "theirs")
    kept = loading.kept_tokenizer(directory)
    assert (
        kept.encode("the end") and kept.vocab_size == loading.recorded_model(directory).vocab_size
    )
    greedy = SamplingConfig(temperature=0.0)
    ((one,),) = generate.generate(
        directory, ["the rest <eos>"], num=1, max_tokens=3, sample=greedy, seed=0
    )
    assert len(one["tokens"]) <= 3 and max(one["tokens"]) < kept.vocab_size


def test_a_tokenizer_bigger_than_the_model_is_refused_and_a_smaller_one_is_said(caplog):
    tok = tokenizers.Byte()
    with pytest.raises(UserError, match="vocab_size 258 is smaller than the tokenizer's 259"):
        tokenizers.check_width(tok, 258)
    tokenizers.check_width(tok, 259)
    assert not caplog.text
    tokenizers.check_width(tok, 264)
    assert "vocab_size 264: 5 rows more" in caplog.text


def test_kind_huggingface_wants_a_path():
    with pytest.raises(UserError, match="tokenizer.path"):
        runs.TokenizerConfig(kind="huggingface")


@pytest.mark.parametrize(
    ("path", "kind"), [("byte", "byte"), ("a.model", "sentencepiece"), ("a.json", "huggingface")]
)
def test_a_tokenizer_is_known_by_its_path(path, kind):
    assert tokenizers.guess(path) == (kind, "" if kind == "byte" else path)
