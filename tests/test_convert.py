"""Tests import and export of Hugging Face checkpoints: exact values, slices, and rejected files."""

import dataclasses
import errno
import json
import shutil
import sys
import types
from pathlib import Path

import families
import jax
import jax.numpy as jnp
import numpy as np
import published as made
import pytest
from workdirs import call, files

from sip import convert, evaluate, generate, loading
from sip import mesh as meshes
from sip.data import conversations
from sip.hf import configs, hub, reading, shards, tokens, writing
from sip.mesh import MeshConfig
from sip.models import lora
from sip.stages import session
from sip.structs import UserError
from sip.text import chat
from sip.text import tokenizer as tokenizers
from sip.training import checkpoints, optim

TEXTS = ["The lamp of Mira is green.", " one is better than two", "A river carries light;"] * 12
# Every way in which families name or share tensors.
SHARED = ("gpt_oss_odd", "mixtral_odd", "olmo2_odd", "granite_odd", "phi3_odd")
SHARED += (
    "gemma2_odd",
    *(pytest.param(n, marks=pytest.mark.slow) for n in ("qwen3_moe", "qwen3_moe_odd", "gpt_oss")),
)
TX = optim.build(optim.OptimConfig(lr=1e-3, steps=2))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A checkpoint as published: bfloat16, three shards, with a tokenizer."""
    path = tmp_path_factory.mktemp("published")
    tokenizer = tokenizers.train_sentencepiece(TEXTS, path / "tokenizer.model", vocab_size=300)
    raw = {**families.config("llama31"), "vocab_size": 320, "torch_dtype": "bfloat16"}
    families.write(raw, path / "single", "bfloat16")
    params, cfg = reading.load(path / "single", meshes.single())
    found = tokens.files(tokenizer, cfg.max_len)
    found["tokenizer.model"] = (path / "tokenizer.model").read_bytes()
    writing.save(params, cfg, path / "model", found, dtype="bfloat16", shard_bytes=12_000)
    return path / "model"


def converted(to, src, dst, *flags):
    return call(convert, f"--to={to}", f"--src={src}", f"--dst={dst}", *flags)


def equal(a, b):
    """Asserts that two trees of parameters are equal, and their configs if they are given."""
    (a, one), (b, other) = (x if isinstance(x, tuple) else (x, None) for x in (a, b))
    assert one == other
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_shards_hold_every_tensor_once(published):
    from safetensors.numpy import load_file

    index = json.loads((published / shards.INDEX).read_text())
    held = {p.name: load_file(p) for p in published.glob("model-*.safetensors")}
    assert len(held) == 3 and all(f"-of-{len(held):05}" in name for name in held)
    assert {t: f for f, found in held.items() for t in found} == index["weight_map"]
    sizes = [sum(x.nbytes for x in found.values()) for found in held.values()]
    assert sum(sizes) == index["metadata"]["total_size"] and max(sizes) <= 12_000
    together = {t: x for found in held.values() for t, x in found.items()}
    single = load_file(published.parent / "single" / "model.safetensors")
    assert together.keys() == single.keys()
    assert all(together[name].tobytes() == x.tobytes() for name, x in single.items())


@pytest.mark.slow  # test_tensors_in_and_out_again has each family's tensors
def test_in_and_out_again_is_the_same_bit_for_bit(published, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    assert converted("orbax", published, run) == 0
    assert converted("hf", run, out, "--dtype=bfloat16", "--max_shard_gb=12e-6") == 0
    assert files(out) == files(published)
    want, half = loading.load_params(str(run), meshes.single()), tmp_path / "half"
    equal(reading.load(out, meshes.single()), want)
    assert converted("orbax", published, half, "--dtype=bfloat16") == 0
    equal(loading.load_params(str(half), meshes.single()), want)


@pytest.mark.parametrize("name", SHARED)
def test_tensors_in_and_out_again_lie_as_they_lay(name, tmp_path):
    from safetensors.numpy import load_file

    raw = families.config(name)
    params, cfg = reading.load(families.write(raw, tmp_path / "in"), meshes.single())
    writing.save(params, cfg, tmp_path / "out", {writing.GENERATION: b"{}"})
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == families.weights(raw).keys()
    for tensor, want in families.weights(raw).items():
        np.testing.assert_array_equal(found[tensor], want, strict=True)
    equal(reading.load(tmp_path / "out", meshes.single()), (params, cfg))


def test_what_the_written_dtype_cannot_hold_is_named(tmp_path):
    params, cfg = reading.load(
        families.write(families.config("llama2"), tmp_path / "in"), meshes.single()
    )
    params = {**params, "final_norm": params["final_norm"].at[0].set(3.4e38)}  # bfloat16: infinity
    with pytest.raises(UserError, match="tensor model.norm.weight is not finite in bfloat16"):
        writing.save(params, cfg, tmp_path / "out", {}, dtype="bfloat16")
    assert not (tmp_path / "out").exists()


def test_half_precision_is_read_as_it_is_and_rounded_when_asked_to(published):
    whole, _ = reading.load(published, meshes.single())
    half, _ = reading.load(published, meshes.single(), jnp.bfloat16)
    assert {x.dtype.name for x in jax.tree.leaves(half)} == {"bfloat16"}
    equal(whole, jax.tree.map(lambda x: x.astype(jnp.float32), half))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("qwen25", (2, 4, 1)),
        pytest.param("qwen25", (1, 4, 2), marks=pytest.mark.slow),
        pytest.param("qwen3", (1, 4, 2), marks=pytest.mark.slow),
        ("llama32_odd", (2, 4, 1)),
        pytest.param("qwen3_moe", (1, 4, 2), marks=pytest.mark.slow),
        ("gpt_oss", (1, 4, 2)),
        pytest.param("mixtral", (1, 4, 2), marks=pytest.mark.slow),
        pytest.param("olmo2", (1, 4, 2), marks=pytest.mark.slow),
        ("phi3", (1, 4, 2)),
    ],
)
def test_every_device_reads_its_slices_alone(name, shape, tmp_path, monkeypatch):
    raw = families.config(name)
    path, read, seen = families.write(raw, tmp_path), reading._read, []
    monkeypatch.setattr(reading, "_read", lambda *a: seen.append((a[2], read(*a))) or seen[-1][1])
    mesh = meshes.build(MeshConfig(*shape))
    params, cfg = reading.load(path, mesh)
    sizes: dict = {}
    for tensor, x in seen:
        sizes[tensor] = sizes.get(tensor, 0) + x.size
    want = families.weights(raw)
    assert sizes == {tensor: x.size for tensor, x in want.items()}, "once, replicas too"
    assert max(x.size for _, x in seen) <= max(x.size for x in want.values()) / 4
    single, _ = reading.load(path, meshes.single())
    equal(single, params)
    wq = params["blocks"]["block"]["wq"]
    assert wq.sharding.shard_shape(wq.shape)[1:3] == (4, cfg.kv_heads // shape[2])


def test_a_tensor_lies_transposed_there(published):
    params, cfg = reading.load(published.parent / "single", meshes.single())
    raw = json.loads((published / "config.json").read_text())
    theirs = families.weights(raw)["model.layers.1.self_attn.q_proj.weight"]
    G, Q, H = 1, 0, 3
    row = theirs.astype(jnp.bfloat16)[(G * cfg.queries_per_kv + Q) * cfg.head_dim + H]
    np.testing.assert_array_equal(params["blocks"]["block"]["wq"][1, :, G, Q, H], np.float32(row))


@pytest.mark.slow  # test_a_run_starts_from_either_kind
def test_either_kind_of_directory_generates_the_same(published, tmp_path, capsys):
    assert converted("orbax", published, tmp_path / "run") == 0
    flags = ["--prompt=The lamp", "--max_tokens=6", "--temperature=0", "--json"]
    rows = []
    for directory in (published, tmp_path / "run"):
        assert call(generate, f"--checkpoint={directory}", *flags) == 0
        rows.append(json.loads(capsys.readouterr().out))
    assert rows[0] == rows[1] and len(rows[0]["tokens"]) > 0
    assert call(evaluate, f"--checkpoint={tmp_path / 'run'}") == 2
    assert "has no corpus" in capsys.readouterr().err


def test_a_run_starts_from_either_kind_and_not_with_other_numbers(published, tmp_path):
    cfg = configs.read(published)
    start = lambda cfg, path: session.fresh_state(
        cfg, TX, meshes.single(), seed=0, init_from=str(path), reference=False
    )
    assert loading.source_dir(str(tmp_path), str(published)) == str(published)
    assert converted("orbax", published, tmp_path / "run") == 0
    equal(start(cfg, published).params, start(cfg, tmp_path / "run").params)
    with pytest.raises(UserError, match="model.rope_theta is 9.0, but 500.0 in"):
        start(dataclasses.replace(cfg, rope_theta=9.0), published)


@pytest.mark.slow  # test_lora merges them
def test_factors_are_merged_on_export(published, tmp_path):
    """A LoRA run on a published base, exported, equals the adapted model (unmerged here)."""
    params, cfg = reading.load(published, meshes.single())
    wanted = lora.LoraConfig(rank=2, matrices=("wq", "w_down"))
    factors = lora.init(params, wanted, jax.random.key(0))
    factors = {k: x + 0.1 if k.endswith("_b") else x for k, x in factors.items()}
    adapted = lora.Adapted(params, factors, wanted.scale)
    record = {"model": dataclasses.asdict(cfg), "config": {"lora": dataclasses.asdict(wanted)}}
    run, out = tmp_path / "run", tmp_path / "out"
    checkpoints.save_params(str(run), adapted, record)
    assert converted("hf", run, out, f"--tokenizer_from={published}") == 0
    again, found = reading.load(out, meshes.single())
    tree = families.tree(*families.texts(cfg.vocab_size, range(5)))
    exact = dataclasses.replace(found, dtype="float32")
    of = lambda params: families.logits(params, exact, tree)
    for a, b, base in zip(of(adapted), of(again), of(params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
        assert np.abs(a - base).max() > 0.01


def test_a_run_s_own_tokenizer_is_written_as_theirs(published, tmp_path):
    cfg, tokenizer = configs.read(published), loading.kept_tokenizer(str(published))
    run, out = tmp_path / "run", tmp_path / "out"
    params, _ = reading.load(published, meshes.single())
    checkpoints.save_params(str(run), params, {"model": dataclasses.asdict(cfg)})
    (run / "tokenizer.json").write_text('{"kind": "sentencepiece"}')
    shutil.copy(published / "tokenizer.model", run)
    assert converted("hf", run, out) == 0
    assert {"tokenizer.json", "tokenizer_config.json"} <= set(files(out))
    ids = json.loads((out / "config.json").read_text())
    assert (ids["bos_token_id"], ids["eos_token_id"]) == (tokenizer.bos, tokenizer.eos)
    assert converted("hf", run, tmp_path / "given", f"--tokenizer_from={published}") == 0
    assert (tmp_path / "given" / "tokenizer.model").exists()


def tuned(published, directory, template):
    """Saves a run that was tuned in a chat template; its tokenizer is trained here."""
    params, cfg = reading.load(published, meshes.single())
    config = {"init_from": "", "task": {"chat": template}}
    checkpoints.save_params(
        str(directory), params, {"model": dataclasses.asdict(cfg), "config": config}
    )
    (directory / "tokenizer.json").write_text('{"kind": "sentencepiece"}')
    tokenizers.train_sentencepiece(
        TEXTS, directory / "tokenizer.model", vocab_size=300, symbols=chat.MARKS
    )
    return directory


def test_the_template_of_an_assistant_is_exported(published, tmp_path):
    """It is read back, and the exported model counts as tuned in it; a base model has none."""
    run, out = tuned(published, tmp_path / "run", "turns"), tmp_path / "out"
    assert converted("hf", run, out) == 0
    theirs = chat.of_tokenizer(out).source
    assert theirs == chat.load("turns", loading.kept_tokenizer(str(run))).source
    assert loading.tuned_in(str(out)) == "own"
    base = tuned(published, tmp_path / "base", "")
    assert converted("hf", base, tmp_path / "plain") == 0
    assert chat.BESIDE not in files(tmp_path / "plain")


@pytest.mark.slow
def test_transformers_renders_an_exported_assistants_conversation_alike(published, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    run, out = tuned(published, tmp_path / "run", "turns"), tmp_path / "out"
    assert converted("hf", run, out) == 0
    form = conversations.named_format("turns", loading.kept_tokenizer(str(run)))
    said = [{"role": r, "content": f"The {r} light."} for r in ("system", "user", "assistant")]
    said.append({"role": "user", "content": "Is Mira green?"})
    other = transformers.AutoTokenizer.from_pretrained(out)
    got = other.apply_chat_template(said, add_generation_prompt=True)
    assert conversations.prompt(form, said) == got["input_ids"]


def test_ids_of_config_json_make_a_generation_config(published, tmp_path):
    copy = shutil.copytree(published, tmp_path / "copy")
    (copy / writing.GENERATION).unlink()
    found = json.loads(tokens.published(copy)[writing.GENERATION])
    assert found == {k: json.loads((copy / "config.json").read_text())[k] for k in writing.IDS}


def test_an_id_of_the_hub_is_fetched(monkeypatch, tmp_path):
    fetched = lambda name, allow_patterns: f"{tmp_path}/{name}"
    library = types.SimpleNamespace(snapshot_download=fetched)
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)
    assert hub.local("hf://a/b") == f"{tmp_path}/a/b" and hub.local("a/b") == "a/b"

    def fails(*args, **kwargs):
        raise ConnectionError("no\nnetwork")

    library.snapshot_download = fails
    with pytest.raises(UserError, match="hf://a/b: cannot be downloaded"):
        hub.local("hf://a/b")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="hf://a/b: needs huggingface_hub"):
        hub.local("hf://a/b")


def _cut(path):
    shard = path / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])


def _edit(path, change):
    """Changes the tensors of a checkpoint's only file."""
    from safetensors.numpy import load_file, save_file

    found = load_file(path / "model.safetensors")
    change(found)
    save_file(found, path / "model.safetensors")


def _pickle(path):
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def _their_tokenizer(path):
    """Writes a tokenizer.json without the token ids of the checkpoint's own files."""
    (path / "tokenizer.model").unlink()
    made.small(path)
    (path / writing.GENERATION).write_text('{"eos_token_id": [1, 128009]}')


def _config(**changes):
    def change(path):
        raw = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**raw, **changes}))

    return change


def _index(change):
    def edit(path):
        index = json.loads((path / shards.INDEX).read_text())
        change(index)
        (path / shards.INDEX).write_text(json.dumps(index))

    return edit


NORM, UP = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"
EMBED, LAST = "model.embed_tokens.weight", "model-00003-of-00003.safetensors"
DAMAGED = {  # what is done, to a checkpoint of several files or of one, and what is named
    "truncated shard": ("model", _cut, ["model-00002", "model.layers"]),
    "missing shard": (
        "model", lambda p: (p / "model-00002-of-00003.safetensors").unlink(),
        ["model-00002", "model.layers", "missing"],
    ),
    "a shard of another": (
        "model", _index(lambda i: i["weight_map"].update({EMBED: LAST})),
        ["model-00003", EMBED],
    ),
    "no index": ("model", lambda p: (p / shards.INDEX).write_text("{}"), [shards.INDEX]),
    "no weights": ("single", lambda p: (p / "model.safetensors").unlink(), ["model.safetensors"]),
    "not safetensors": (
        "single", lambda p: (p / "model.safetensors").write_bytes(b"\x80\x04pickle"),
        ["model.safetensors"],
    ),
    "pickle": ("single", _pickle, ["pytorch_model.bin", "pickle"]),
    "missing tensor": ("single", lambda p: _edit(p, lambda t: t.pop(NORM)), [NORM, "missing"]),
    "another tensor": (
        "single", lambda p: _edit(p, lambda t: t.update({"model.norm.bias": t[NORM]})),
        ["model.safetensors", "model.norm.bias"],
    ),
    "wrong shape": (
        "single", lambda p: _edit(p, lambda t: t.update({UP: t[UP].T.copy()})),
        ["model.safetensors", UP, "(16, 24)", "(24, 16)"],
    ),
    "wrong type": (
        "single", lambda p: _edit(p, lambda t: t.update({UP: np.zeros((24, 16), np.int8)})),
        ["model.safetensors", UP, "I8"],
    ),
    "architecture": ("single", _config(model_type="gpt_neox"), ["config.json", "gpt_neox"]),
    "field": ("single", _config(attn_scale=2), ["config.json", "attn_scale"]),
    "no config": ("single", lambda p: (p / "config.json").unlink(), ["config.json"]),
    "tokenizer of a larger model": (
        "single", _config(vocab_size=299), ["tokenizer.model", "300", "299", "own tokenizer"],
    ),
    "tokenizer of another model": (
        "single", _their_tokenizer,
        ["tokenizer.json", "token id 128009", "the model's own tokenizer"],
    ),
    "no tokenizer": ("single", lambda p: (p / "tokenizer.model").unlink(), ["tokenizer.model"]),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGED)
def test_what_is_damaged_is_one_line_and_nothing_is_written(what, published, tmp_path, capsys):
    kind, damage, named = DAMAGED[what]
    path = shutil.copytree(published.parent / kind, tmp_path / "in" / kind)
    shutil.copy(published / "tokenizer.model", path)
    damage(path)
    assert converted("orbax", path, tmp_path / "out" / "run") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and all(name in line for name in named), line
    assert not list((tmp_path / "out").glob("*"))


def _no_space(monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def _fills_up(monkeypatch):
    import safetensors.numpy

    def fails(tensors, path, **kwargs):
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    def words_it_otherwise(directory, *args):
        (Path(directory) / "half").mkdir()
        raise ValueError("No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", fails)
    monkeypatch.setattr(checkpoints, "save_params", words_it_otherwise)


@pytest.mark.parametrize("happens", [_no_space, _fills_up])
@pytest.mark.parametrize("to", ["orbax", "hf"])
def test_a_full_disk_leaves_nothing(to, happens, published, tmp_path, capsys, monkeypatch):
    happens(monkeypatch)
    assert converted(to, published, tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(tmp_path / "out") in line and ("are free" in line or "No space left" in line)
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_with_more_tokens_than_the_model_is_not_exported(published, tmp_path, capsys):
    path = shutil.copytree(published.parent / "single", tmp_path / "in")  # embeds 320
    larger = tmp_path / "larger"
    made.small(larger, words=["a" * i for i in range(2, 301)])
    assert converted("hf", path, tmp_path / "out", f"--tokenizer_from={larger}") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    named = "has 397 tokens, more than the model's vocab_size 320"
    assert "larger" in line and named in line and not (tmp_path / "out").exists()


def test_nothing_is_overwritten(published, tmp_path, capsys):
    for to in ("orbax", "hf"):
        assert converted(to, published, tmp_path) == 2
        assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--to=orbax", "--dst=a"], "--src"),
        (["--src=a", "--dst=b"], "--to"),
        (["--to=tf", "--src=a", "--dst=b"], "to"),
        (["--to=orbax", "--src=none", "--dst=b"], "none"),
        (["--to=orbax", "--src=a", "--dst=gs://b/c"], "gs://b/c"),
        (["--to=hf", "--src=none", "--dst=b"], "none"),
        (["--to=hf", "--src=a", "--dst=b", "--max_shard_gb=0"], "max_shard_gb"),
        (["--to=hf", "--src=a", "--dst=b", "--max_shard_gb=-inf"], "max_shard_gb"),
        (["--to=hf", "--src=a", "--dst=b", "--max_shard_gb=nan"], "max_shard_gb"),
        (["--to=hf", "--src=a", "--dst=b", "--tensor=3"], "mesh"),
    ],
)
def test_bad_flags_are_one_line(flags, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(convert, *flags) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and named in line


def test_a_killed_attempt_is_replaced_and_a_running_one_is_not(tmp_path):
    left = tmp_path / ".out.part"
    (left / "tokenizer").mkdir(parents=True)
    (left / "model-00001-of-00003.safetensors").write_text("half a model")
    with writing.whole(tmp_path / "out", 1) as part:
        (part / "config.json").write_text("{}")
        with pytest.raises(UserError, match="in use"), writing.whole(tmp_path / "out", 1):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]
