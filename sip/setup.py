"""What every stage and CLI builds from its config: paths, sections, corpus, states, judges."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from etils import epath

from sip import tokenizer as tokenizers
from sip.data import chunks, documents
from sip.judge import prompts
from sip.models import decoder
from sip.models.config import ModelConfig
from sip.structs import Params, TrainState, UserError
from sip.tokenizer import Tokenizer
from sip.training import checkpoints, step


@dataclass(frozen=True)
class TokenizerConfig:
    """A tokenizer file, or one trained on the corpus when `path` is empty.

    `prompts`: aspects of judging whose words and verdicts it must hold as single tokens.
    """

    kind: str = "sentencepiece"  # sentencepiece | byte
    path: str = ""
    vocab_size: int = 768
    documents: int = 20000  # of the training split, to train on
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True)
class CutConfig:
    """Tokens of prefix (between min and max) and suffix."""

    prefix_min: int
    prefix_max: int
    suffix: int


@dataclass(frozen=True, eq=False)  # hashed by identity
class Corpus:
    """Documents of a split, cut into prefix and suffix."""

    documents: documents.Documents
    chunks: chunks.Chunks
    cut: CutConfig


def plain(value: Any) -> Any:
    """ConfigDicts and lists as dicts and tuples, so that they compare, hash and print."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if hasattr(value, "to_dict"):
        return plain(value.to_dict())
    return tuple(plain(v) for v in value) if isinstance(value, list | tuple) else value


def section(cls, values, name: str, **extra):
    """The frozen dataclass `cls` from a config section. Raises UserError naming a wrong field."""
    values = {**plain(values), **extra}
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise UserError(f"config {name}.{key}: unknown key; there are {sorted(fields)}")
    for key, field in fields.items():
        if key not in values and field.default is dataclasses.MISSING:
            raise UserError(f"config {name}.{key}: missing")
    return cls(**values)


def run_dir(workdir: str, name: str) -> str:
    """Where a run of a recipe lives."""
    return str(epath.Path(workdir) / "runs" / name)


def source_dir(workdir: str, init_from: str) -> str:
    """The directory of a run named by the recipe, or a path."""
    inside = run_dir(workdir, init_from)
    path = inside if epath.Path(inside).exists() else init_from
    if not checkpoints.exists(path):
        raise UserError(f"init_from {init_from!r}: no finished checkpoint in {path}")
    return path


def write_json(path, value) -> None:
    """Writes atomically: a reader never finds half a file."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.tmp"
    temporary.write_text(json.dumps(value, indent=1))
    temporary.rename(path)


def data_config(values, split: str) -> documents.DataConfig:
    """The `data` section for one split."""
    values = plain(values)
    return section(documents.DataConfig, {k: v for k, v in values.items() if k != "cut"}, "data",
                   split=split)


def open_tokenizer(config, workdir: str) -> Tokenizer:
    """The run's tokenizer; trained on the corpus first, in the workdir, if there is none yet."""
    cfg = section(TokenizerConfig, config.tokenizer, "tokenizer")
    path = epath.Path(cfg.path or epath.Path(workdir) / "tokenizer.model")
    if cfg.kind == "sentencepiece" and not cfg.path and not path.exists():
        texts = _documents(data_config(config.data, "train"), str(epath.Path(workdir) / "data")).texts
        symbols = prompts.symbols(prompts.load(name) for name in cfg.prompts)
        path.parent.mkdir(parents=True, exist_ok=True)
        tokenizers.train_sentencepiece(
            [texts[i] for i in range(min(cfg.documents, len(texts)))], str(path),
            vocab_size=cfg.vocab_size, symbols=symbols)
    return _load_tokenizer(cfg.kind, str(path))


_load_tokenizer = functools.cache(tokenizers.load)
_documents = functools.lru_cache(maxsize=8)(documents.load)


@functools.lru_cache(maxsize=8)
def _cut(data: documents.DataConfig, cut: CutConfig, data_dir: str, tokenizer) -> Corpus:
    docs = _documents(data, data_dir)
    found = chunks.cut(docs.texts, tokenizer, **dataclasses.asdict(cut),
                       max_skipped_fraction=data.max_skipped_fraction)
    return Corpus(docs, found, cut)


def corpus(config, split: str, workdir: str, tokenizer: Tokenizer) -> Corpus:
    """The documents of a split, loaded, tokenised and cut once per process."""
    cut = section(CutConfig, config.data.cut, "data.cut")
    return _cut(data_config(config.data, split), cut, str(epath.Path(workdir) / "data"), tokenizer)


def model_config(values, tokenizer: Tokenizer, cut: CutConfig | None = None) -> ModelConfig:
    """The `model` section, checked against the tokenizer and the length of the texts."""
    cfg = section(ModelConfig, values, "model")
    if cfg.vocab_size < tokenizer.vocab_size:
        raise UserError(f"config model.vocab_size {cfg.vocab_size} is smaller than the "
                        f"tokenizer's {tokenizer.vocab_size}")
    if cut and cut.prefix_max + cut.suffix > cfg.max_len:
        raise UserError(f"config data.cut: prefix_max {cut.prefix_max} + suffix {cut.suffix} is "
                        f"longer than model.max_len {cfg.max_len}")
    return cfg


def recorded_model(directory: str) -> ModelConfig:
    """The model config of a run's checkpoint."""
    return section(ModelConfig, checkpoints.record(directory)["model"], "checkpoint model")


def load_params(directory: str, mesh) -> tuple[Params, ModelConfig]:
    """Parameters and model config of a run's last checkpoint, on `mesh`."""
    cfg = recorded_model(directory)
    return checkpoints.restore_params(directory, decoder.abstract(cfg, mesh)), cfg


def start_state(manager, cfg: ModelConfig, tx, mesh, *, seed: int, init_from: str,
                reference: bool) -> tuple[TrainState, int]:
    """State and step to go on from: (1) the run's own last checkpoint, (2) `init_from`, (3) fresh.

    The reference of a fresh state is its initial parameters.
    """
    if manager.latest_step() is not None:
        abstract = step.abstract_state(cfg, tx, mesh, reference=reference)
        state, _ = checkpoints.restore(manager, abstract)
        return state, int(state.step)
    if not init_from:
        return step.init_state(cfg, tx, mesh, seed, reference=reference), 0
    params, found = load_params(init_from, mesh)
    if _shape(found) != _shape(cfg):
        raise UserError(f"init_from {init_from}: its model is {found}, the config says {cfg}")
    return step.state_of(params, cfg, tx, mesh, reference=reference), 0


def _shape(cfg: ModelConfig):
    return jax.eval_shape(lambda: decoder.init(cfg, jax.random.key(0)))


def record(config, name: str, cfg: ModelConfig) -> dict[str, Any]:
    """The JSON record of a run's checkpoints: enough to use them without the config file."""
    return {"run": name, "seed": config.seed, "model": dataclasses.asdict(cfg),
            "data": plain(config.data), "config": plain(config.runs[name])}


def keep_tokenizer(config, workdir: str, directory: str) -> None:
    """Copies the tokenizer beside a run's checkpoints, so that the run is complete in itself."""
    cfg = section(TokenizerConfig, config.tokenizer, "tokenizer")
    write_json(epath.Path(directory) / "tokenizer.json", {"kind": cfg.kind})
    if cfg.kind == "sentencepiece":
        source = epath.Path(cfg.path or epath.Path(workdir) / "tokenizer.model")
        source.copy(epath.Path(directory) / "tokenizer.model", overwrite=True)


def kept_tokenizer(directory: str) -> Tokenizer:
    """The tokenizer of a run."""
    path = epath.Path(directory)
    if not (path / "tokenizer.json").exists():
        raise UserError(f"{directory} holds no tokenizer.json: is this a run's directory?")
    kind = json.loads((path / "tokenizer.json").read_text())["kind"]
    return _load_tokenizer(kind, str(path / "tokenizer.model"))
