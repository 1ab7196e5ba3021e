"""Tests lm_eval on Hugging Face checkpoints: our adapter against lm_eval's, and the command."""

import json
import shutil
import sys
from pathlib import Path

import families
import numpy as np
import published
import pytest
from workdirs import call

from sip import evaluate, mesh
from sip.evals import harness
from sip.hf import spelling, tokens
from sip.mesh import MeshConfig
from sip.text import tokenizer as tokenizers

EVALS = published.DATA.parent / "evals"
CHOICES = ("arc_easy", "arc_challenge", "boolq", "hellaswag", "mmlu_all", "openbookqa", "piqa")
QUESTION = "Question: What carries light?\nAnswer: The river. <s> caf\u00e9  \u4e16\n"


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def begun_with(text: str, id: int) -> dict:
    """Returns a post-processor that puts a token before a text."""
    single = [{"SpecialToken": {"id": text, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {text: {"id": text, "ids": [id], "tokens": [text]}}
    return dict(type="TemplateProcessing", pair=[], single=single, special_tokens=special)


def checkpoint(path: Path, kind: str) -> Path:
    """Writes a tiny model with one of three tokenizers.

    They are ours with BOS, a byte-level one without BOS, and a SentencePiece model that puts a
    space before a text.
    """
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    raw = {**families.config("qwen3"), "max_position_embeddings": 512, "eos_token_id": 2}
    if kind == "ours":
        texts = [QUESTION, "The lamp of Mira is green."] * 12
        made = tokenizers.train_sentencepiece(texts, path / "made.model", vocab_size=400)
        vocab, found = made.vocab_size, tokens.files(made, 512)
    else:
        spec, names = published.MADE[kind]()
        if kind == "mistral_v1":
            spec["post_processor"] = begun_with("<s>", 1)
        vocab = len(spec["model"]["vocab"]) + len(spec["added_tokens"])
        found = {
            "tokenizer.json": json.dumps(spec).encode(),
            "tokenizer_config.json": json.dumps(
                {**names, **settings, "add_bos_token": False}
            ).encode(),
        }
    families.write({**raw, "vocab_size": vocab + vocab % 2}, path)  # what a mesh divides
    for name, data in found.items():
        (path / name).write_bytes(data)
    return path


@pytest.fixture(scope="module", params=["ours", "gpt2", "mistral_v1"])
def made(request, tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp(request.param), request.param)


def spelled(path, **parts):
    tokenizer = tokenizers.load("huggingface", str(published.small(path, **parts)))
    return tokenizer, spelling.published(tokenizer, path)


BOS = len(published.CHARS) + 2  # behind the two words of the small tokenizer
POST = begun_with("<bos>", BOS)


def test_how_a_text_begins(tmp_path):
    """A text starts with BOS or a space if the tokenizer adds them."""
    tokenizer, found = spelled(tmp_path / "plain")
    assert found.whole("lamp") == tokenizer.encode("lamp") and found.prefix == BOS
    tokenizer, found = spelled(tmp_path / "bos", post_processor=POST)
    assert found.whole("lamp") == [BOS, *tokenizer.encode("lamp")]
    assert found.whole("<bos>lamp") == found.whole("lamp"), "it has its BOS already"
    said = dict(add_bos_token=True)
    tokenizer, found = spelled(tmp_path / "not", settings=said)
    assert found.whole("lamp") == tokenizer.encode("lamp"), "tokenizer.json alone says it"
    tokenizer, found = spelled(tmp_path / "none", settings=dict(bos_token=None))
    assert found.whole("lamp") == tokenizer.encode("lamp") and found.prefix == tokenizer.eos
    space = {**published.BYTE_LEVEL, "add_prefix_space": True}
    tokenizer, found = spelled(tmp_path / "space", pre_tokenizer=space)
    assert found.whole("lamp") == tokenizer.encode(" lamp") != tokenizer.encode("lamp")


def test_a_sentencepiece_model_spells_as_published(tmp_path):
    path = published.shared("mistral/mistral_v1.model")
    shutil.copy(path, tmp_path / "tokenizer.model")
    for said, bos, space in (("null", [], " "), ("true", [1], " "), ("true", [1], "")):
        settings = f'{{"add_bos_token": {said}, "add_prefix_space": {json.dumps(bool(space))}}}'
        (tmp_path / "tokenizer_config.json").write_text(settings)
        tokenizer = tokenizers.load("sentencepiece", tmp_path / "tokenizer.model")
        found = spelling.published(tokenizer, tmp_path)
        assert found.whole("lamp") == [*bos, *tokenizer.encode(f"{space}lamp")]


FLAGS = {  # what is wrong, and what is named
    "no tasks": ([], "--tasks"),
    "no such directory": (["--tasks=a", "--tasks_dir=nowhere"], "nowhere"),
    "no such data": (["--tasks=a", "--data_dir=nowhere"], "nowhere"),
    "negative limit": (["--tasks=a", "--limit=-1"], "--limit"),
    "no number": (["--tasks=a", "--limit=some"], "limit"),
    "no such evals": (["--evals=glue"], "evals"),
    "out is a directory": (["--tasks=a", "--out=."], "--out ."),
    "no checkpoint": (["--tasks=a", "--checkpoint=nowhere"], "nowhere"),
    "too many devices": (["--tasks=a", "--tensor=3"], "mesh"),
}


@pytest.mark.parametrize("flags, named", FLAGS.values(), ids=FLAGS)
def test_bad_flags_are_one_line(flags, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "lm_eval", type(sys)("lm_eval"))
    sys.modules["lm_eval"].__version__ = "0"
    assert call(evaluate, "--evals=lm_eval", "--checkpoint=.", *flags) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and named in line


def test_without_the_extra_it_says_which(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert call(evaluate, "--evals=lm_eval", "--checkpoint=.", "--tasks=a") == 2
    assert "pip install 'sip-jax[eval]'" in capsys.readouterr().err


# With lm_eval; and with torch and transformers.


@pytest.fixture(scope="module")
def lm_eval():
    return pytest.importorskip("lm_eval", reason="needs lm_eval")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A directory with all files that the task files read."""
    if not EVALS.exists():
        pytest.skip("no evals in the data directory beside the repository")
    path = tmp_path_factory.mktemp("data")
    for file in EVALS.glob("*.jsonl"):
        shutil.copy(file, path)
    shutil.copy(EVALS.parent / "gsm8k" / "test.jsonl", path / "gsm8k_test.jsonl")
    texts = [QUESTION, " ".join([QUESTION] * 40)]
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (path / "texts.jsonl").write_text(rows)
    return path


@pytest.fixture(scope="module")
def theirs():
    pytest.importorskip("torch", reason="needs torch")
    pytest.importorskip("transformers", reason="needs transformers")
    return pytest.importorskip("lm_eval.models.huggingface", reason="needs lm_eval")


def evaluated(model, data, names, limit):
    """Returns lm_eval's results for a model, with samples."""
    from lm_eval.api.model import LM
    from lm_eval.evaluator import simple_evaluate

    LM.register(harness.Adapter)
    manager, tasks = harness.load(harness.Wanted(names, str(harness.TASKS), str(data)))
    return simple_evaluate(model, tasks=tasks, task_manager=manager, limit=limit, num_fewshot=0)


def responses(found, name):
    return [r for sample in found["samples"][name] for r in np.ravel(sample["resps"]).tolist()]


@pytest.mark.slow
def test_the_same_figures_as_the_adapter_for_transformers(made, data, lm_eval, theirs):
    names = (*CHOICES, "text_perplexity")
    ours = harness.adapter(str(made), mesh.build(MeshConfig(2, 2, 2)), batch=8)
    other = theirs.HFLM(pretrained=str(made), device="cpu", dtype="float32", batch_size=8)
    got, want = (evaluated(each, data, names, 25) for each in (ours, other))
    assert got["results"].keys() == set(names)
    for name in CHOICES:
        a, b = (np.float64(responses(each, name)) for each in (got, want))
        assert a.shape == b.shape and a.size >= 100
        np.testing.assert_allclose(a, b, atol=1e-3, err_msg=name)
        for metric, value in want["results"][name].items():
            assert got["results"][name][metric] == value, (name, metric)
    np.testing.assert_allclose(
        *(np.float64(responses(each, "text_perplexity")) for each in (got, want)), rtol=1e-5
    )
    longest = max(len(ours.spelling.whole(d["passage"])) for d in rows(data, "boolq_validation"))
    assert longest > 512 or not made.name.startswith("ours"), "some are cut"


def rows(data, name):
    return map(json.loads, (data / f"{name}.jsonl").read_text().splitlines())


@pytest.mark.slow
def test_the_same_answers_as_the_adapter_for_transformers(data, lm_eval, theirs, tmp_path):
    path = checkpoint(tmp_path, "gpt2")
    ours = harness.adapter(str(path), mesh.single(), batch=2)
    other = theirs.HFLM(pretrained=str(path), device="cpu", dtype="float32", batch_size=2)
    got, want = (responses(evaluated(e, data, ("gsm8k",), 3), "gsm8k") for e in (ours, other))
    assert len(set(got)) == 3 and got == want


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_json(data, lm_eval, tmp_path, capsys):
    path, out = checkpoint(tmp_path, "ours"), tmp_path / "new" / "results.json"
    flags = ["--evals=lm_eval", f"--checkpoint={path}", f"--data_dir={data}", "--limit=10"]
    assert call(evaluate, *flags, "--tasks=arc_*,piqa", f"--out={out}", "--batch=8") == 0
    found, said = json.loads(out.read_text()), capsys.readouterr().out
    assert found["results"].keys() == {"arc_easy", "arc_challenge", "piqa"}
    for name, row in found["results"].items():
        assert name in said and f"{round(row['acc,none'], 4):g}" in said
    assert found["config"]["limit"] == 10 and found["config"]["lm_eval"] == lm_eval.__version__
    again = evaluated(harness.adapter(str(path), mesh.single(), batch=3), data, ("piqa",), 10)
    assert again["results"]["piqa"]["acc,none"] == found["results"]["piqa"]["acc,none"]


WRONG = {  # files in the directory of tasks, and what is named
    "no such task": ({}, ["piqqa", "no such task", "piqa"]),
    "no task file": ({"piqa.yaml": None}, ["no task file (*.yaml)"]),
    "empty task file": ({"other.yaml": ""}, ["other.yaml"]),
    "broken task file": ({"other.yaml": "task: [a"}, ["other.yaml"]),
    "no data": ({"piqa_validation.jsonl": None}, ["--tasks piqa", "piqa_validation.jsonl"]),
    "empty data": ({"piqa_validation.jsonl": ""}, ["--tasks piqa"]),
    "other fields": ({"piqa_validation.jsonl": '{"a": 1}\n'}, ["--tasks piqa", "goal"]),
    "broken data": ({"piqa_validation.jsonl": '{"goal": \n'}, ["--tasks piqa"]),
    "no task": ({"piqa.yaml": "output_type: multiple_choice\n"}, ["'piqa'", "available: none"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", WRONG)
def test_tasks_that_cannot_be_had_are_one_line(what, data, lm_eval, tmp_path, capsys, caplog):
    changes, named = WRONG[what]
    path = tmp_path / "tasks"
    path.mkdir()
    shutil.copy(harness.TASKS / "piqa.yaml", path)
    shutil.copy(data / "piqa_validation.jsonl", path)
    for name, text in changes.items():
        (path / name).unlink(missing_ok=True)
        if text is not None:
            (path / name).write_text(text)
    name = "piqqa" if what == "no such task" else "piqa"
    flags = ["--evals=lm_eval", f"--checkpoint={checkpoint(tmp_path / 'model', 'ours')}"]
    assert call(evaluate, *flags, f"--tasks={name}", f"--tasks_dir={path}", "--limit=2") == 2
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    (line,) = errors
    assert all(part in line for part in named), line
