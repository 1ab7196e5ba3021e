"""Tests the README's commands: a published checkpoint is imported, trained, exported and served."""

import re
import shlex
import subprocess
import sys

import exports
import families
import pytest
import tiny_recipe

from sip import generate, loading
from sip.hf import configs, tokens, writing
from sip.judge import prompts
from sip.sampling import SamplingConfig
from sip.text import tokenizer as tokenizers
from sip.textgen.protocol import Cut
from sip.textgen.remote import Remote, RemoteConfig

SECTION = "## From a published model and back"
TEXTS = [
    "The lamp of Mira is green. He drinks cider every morning, she does not!",
    "A river carries light; two spaces and more of it.",
    " one is better than two, none is safe.",
]


def commands() -> list[list[str]]:
    """Returns the words of each command in that section of the README."""
    text = (tiny_recipe.ROOT / "README.md").read_text().split(SECTION)[1].split("\n## ")[0]
    block = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)[0]
    return [shlex.split(line, comments=True) for line in block.replace("\\\n", "").splitlines()]


def checkpoint(path, case, vocab, texts):
    """Writes a tiny checkpoint of a family, with its own tokenizer."""
    symbols = prompts.symbols([prompts.load("quality")])
    made = tokenizers.train_sentencepiece(
        texts * 12, path.with_suffix(".model"), vocab_size=vocab, symbols=symbols
    )
    raw = {**families.config(case), "vocab_size": vocab + 92, "max_position_embeddings": 512}
    params = exports.wordy(cfg := configs.parse(raw), made)
    writing.save(params, cfg, path, tokens.files(made, cfg.max_len))
    return path


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Maps the README's place names to paths of this test."""
    path = tmp_path_factory.mktemp("published")
    policy = checkpoint(path / "policy", "llama31", 420, TEXTS)
    judge = checkpoint(path / "judge", "qwen3", 440, [text.upper() + text for text in TEXTS])
    documents = [f"{a} It has number {i}. {b} {a}" for i in range(4) for a in TEXTS for b in TEXTS]
    (path / "documents.txt").write_text("\n\n".join(documents))
    return {
        "HF_DIR": policy, "JUDGE_DIR": judge, "FILE.txt": path / "documents.txt",
        "/tmp/start": path / "start", "/tmp/tuned": path / "tuned", "/tmp/served": path / "served",
    }  # fmt: skip


def here(word: str, places) -> str:
    """Replaces place names in a word of a command, and selects the config's debug size."""
    for name, path in places.items():
        word = re.sub(rf"(?<![\w/]){re.escape(name)}(?!\w)", str(path), word)
    return f"{word},debug" if word.startswith("--config=") else word


@pytest.mark.slow
def test_the_commands_of_the_readme(places, tmp_path):
    pytest.importorskip("torch", reason="needs torch")
    pytest.importorskip("transformers", reason="needs transformers")
    *three, serve = [[here(word, places) for word in words] for words in commands()]
    assert [words[:3] for words in three] == [
        ["python", "-m", f"sip.{name}"] for name in ("convert", "train", "convert")
    ]
    for words in three:
        subprocess.run([sys.executable, *words[1:]], cwd=tiny_recipe.ROOT, check=True)
    out, run = places["/tmp/served"], places["/tmp/tuned"] / "runs" / "sip"
    assert serve == ["transformers", "serve", str(out)]
    assert loading.recorded_model(str(out)).layers == loading.recorded_model(str(run)).layers
    greedy, asked = SamplingConfig(temperature=0.0), "The lamp of Mira"
    with exports.behind_transformers(out, tmp_path) as url:
        one = Remote(RemoteConfig(url=url, model=str(out), logprobs=0, retries=0))
        one.check()
        ((said,),) = one.generate([asked], [[""]], votes=1, sampling=greedy, max_tokens=8, seed=0)[
            0
        ]
    said = said.text if isinstance(said, Cut) else said
    for directory in (run, out):
        told = generate.generate(
            str(directory), [asked], num=1, max_tokens=8, sample=greedy, seed=0
        )
        assert told[0][0]["text"] == said and said
