"""What every stage and CLI builds from its config: paths, sections, corpus, states, judges."""

import dataclasses
import functools
import json
import os
from dataclasses import dataclass
from typing import Any

import jax
from etils import epath

from sip import loading, processes
from sip import mesh as meshes
from sip import tokenizer as tokenizers
from sip.data import chunks, documents
from sip.hf import configs, tokens
from sip.judge import prompts
from sip.mesh import MeshConfig, PartConfig
from sip.models import decoder
from sip.models.config import ModelConfig
from sip.models.lora import OFF, LoraConfig
from sip.sections import plain, section
from sip.structs import Params, TrainState, UserError
from sip.tokenizer import Tokenizer
from sip.training import checkpoints, loop, step
from sip.training.optim import OptimConfig

TEACHERS = ("judge", "rewriter")  # whose figures are reported beside the rows
SEEDS = "seeds.json"  # in the workdir of a job over several seeds: which, and what they share


@dataclass(frozen=True)
class TokenizerConfig:
    """A tokenizer file, or a SentencePiece model trained on the corpus when `path` is empty.

    `prompts`: aspects of judging whose words and verdicts it must hold as single tokens, and
    `symbols` whatever else must be one.
    """

    kind: str = "sentencepiece"  # sentencepiece | huggingface | byte
    path: str = ""  # huggingface: a tokenizer.json, or the directory it lies in
    vocab_size: int = 768
    documents: int = 20000  # of the training split, to train on
    prompts: tuple[str, ...] = ()
    symbols: tuple[str, ...] = ()

    def __post_init__(self):
        if self.kind not in tokenizers.KINDS:
            raise UserError(f"tokenizer.kind must be one of {tokenizers.KINDS}, not {self.kind!r}")
        if self.kind == "huggingface" and not self.path:
            raise UserError("tokenizer.path: needed by kind 'huggingface'")


@dataclass(frozen=True)
class CutConfig:
    """Tokens of prefix (between min and max) and suffix."""

    prefix_min: int
    prefix_max: int
    suffix: int


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every run of a recipe has; stages add their own."""

    stage: str
    split: str  # of the documents, to learn from
    init_from: str  # a run of the recipe or a directory; empty: fresh parameters
    steps: int
    batch: int
    microbatches: int
    model: ModelConfig
    optim: OptimConfig  # its `steps` are the run's, unless it says otherwise
    mesh: MeshConfig
    checkpoint: loop.CheckpointConfig
    log: loop.LogConfig
    lora: LoraConfig = OFF  # rank 0: all parameters are trained

    def __post_init__(self):
        if self.lora.rank and not self.init_from:
            raise UserError("lora.rank: needs init_from; fresh parameters would stay as drawn")
        self.lora.check(self.model)
        for name in ("batch", "microbatches"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.batch % self.microbatches:
            raise UserError(
                f"batch {self.batch} is not divisible by microbatches {self.microbatches}"
            )

    def sources(self) -> dict[str, str]:
        """The runs or directories it needs, by the key that names them."""
        return {"init_from": self.init_from}

    def reach(self) -> None:
        """Raises UserError where a service that it needs does not answer."""

    @property
    def apart(self) -> PartConfig | None:
        """Where models run that the run does not train; None: on its own mesh."""
        return None


@dataclass(frozen=True)
class ReportConfig:
    """Which runs are shown; all but the rows may be empty."""

    rows: tuple[str, ...]
    judge: str
    standard: str  # what the share of closed headroom is measured from
    rewriter: str = ""

    def __post_init__(self):
        if self.standard and self.standard not in self.rows:
            raise UserError(f"standard {self.standard!r} is not one of the rows")

    def names(self) -> tuple[str, ...]:
        """All runs it needs."""
        named = (*self.rows, self.judge, self.rewriter, self.standard)
        return tuple(name for name in named if name)


@dataclass(frozen=True, eq=False)  # hashed by identity
class Corpus:
    """Documents of a split, cut into prefix and suffix."""

    documents: documents.Documents
    chunks: chunks.Chunks
    cut: CutConfig


def run_config(cls, config, name: str):
    """`config.runs[name]` resolved into `cls`, a RunConfig; `optim` knows the run's steps."""
    values = plain(config.runs[name])
    if "steps" in values and "optim" in values:
        if type(values["steps"]) is not int or values["steps"] < 1:
            raise UserError(f"config runs.{name}.steps: {values['steps']!r} is not a number from 1")
        values["optim"] = {"steps": values["steps"], **values["optim"]}
    return section(cls, values, f"runs.{name}")


def run_dir(workdir: str, name: str) -> str:
    """Where a run of a recipe lives."""
    return str(epath.Path(workdir) / "runs" / name)


def source_dir(workdir: str, source: str, key: str = "init_from") -> str:
    """The directory of a run named by the recipe, or a path: a run's or Hugging Face's."""
    inside = run_dir(workdir, source)
    path = inside if epath.Path(inside).exists() else source
    if not configs.exists(path) and not checkpoints.exists(path):
        raise UserError(
            f"{key} {source!r}: neither a run before this one nor a directory with a checkpoint"
        )
    return path


def write_json(path, value) -> None:
    """Writes atomically: a reader never finds half a file. Of several processes one writes."""
    if not processes.lead():
        return
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.tmp"
    temporary.write_text(json.dumps(value, indent=1))
    temporary.replace(path)


def shared_dir(workdir: str) -> epath.Path:
    """Where corpus and tokenizer lie: in the workdir, or above it, where seeds share them."""
    own = epath.Path(workdir if "://" in workdir else os.path.abspath(workdir))
    path = own.parent / SEEDS
    found = json.loads(path.read_text()) if path.exists() else {"shared": False, "seeds": []}
    return own.parent if found["shared"] and own.name in map(seed_name, found["seeds"]) else own


def seed_name(seed: int) -> str:
    """The directory of one seed, in the workdir of a job over several."""
    return f"seed{seed}"


def build_mesh(c: RunConfig, devices=None) -> jax.sharding.Mesh:
    """The run's mesh over `devices` (default: all). Raises UserError where a microbatch's rows do
    not divide among them: every device would hold, and compute, all of them."""
    mesh = meshes.build(c.mesh, devices)
    if c.batch // c.microbatches % meshes.ways(mesh, meshes.ACT_RULES["B"]):
        shape = ", ".join(f"{axis} {n}" for axis, n in mesh.shape.items())
        raise UserError(
            f"batch {c.batch} in microbatches {c.microbatches}: {c.batch // c.microbatches} rows "
            f"are not divisible by replica x fsdp of the mesh ({shape})"
        )
    return mesh


def build_meshes(c: RunConfig, devices=None) -> tuple[jax.sharding.Mesh, jax.sharding.Mesh]:
    """(the run's mesh, that of its judges and rewriter) over `devices` (default: all)."""
    if c.apart is None:
        mesh = build_mesh(c, devices)
        return mesh, mesh
    try:
        left, apart = meshes.divide(c.apart, devices)
        other = meshes.build(c.apart, apart)
    except UserError as e:
        raise UserError(f"judge_mesh: {e}") from None
    return build_mesh(c, left), other


def data_config(values, split: str) -> documents.DataConfig:
    """The `data` section for one split."""
    values = plain(values)
    values = {k: v for k, v in values.items() if k != "cut"}
    return section(documents.DataConfig, {**values, "split": split}, "data")


def open_tokenizer(config, workdir: str) -> Tokenizer:
    """The run's tokenizer; trained on the corpus first, in the workdir, if there is none yet."""
    cfg = section(TokenizerConfig, config.tokenizer, "tokenizer")
    path = epath.Path(cfg.path or _trained(workdir))
    if cfg.kind == "sentencepiece" and not cfg.path:
        texts = _documents(data_config(config.data, "train"), str(shared_dir(workdir) / "data"))
        processes.first(lambda: path.exists() or _train_tokenizer(cfg, texts.texts, path))
    return _load_tokenizer(cfg.kind, str(path))


def _train_tokenizer(cfg: TokenizerConfig, texts, path: epath.Path) -> None:
    symbols = prompts.symbols(prompts.load(name) for name in cfg.prompts)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizers.train_sentencepiece(
        [texts[i] for i in range(min(cfg.documents, len(texts)))],
        str(path),
        vocab_size=cfg.vocab_size,
        symbols=tuple(dict.fromkeys((*symbols, *cfg.symbols))),
    )


def _trained(workdir: str) -> epath.Path:
    return shared_dir(workdir) / tokenizers.MODEL


_load_tokenizer = functools.cache(tokenizers.load)


@functools.lru_cache(maxsize=8)
def _documents(data: documents.DataConfig, data_dir: str) -> documents.Documents:
    """A data set that has to be built is built once, by process 0."""
    found: list[documents.Documents] = []
    processes.first(lambda: found.append(documents.load(data, data_dir)))
    return found[0] if found else documents.load(data, data_dir)


@functools.lru_cache(maxsize=8)
def _cut(data: documents.DataConfig, cut: CutConfig, data_dir: str, tokenizer) -> Corpus:
    docs = _documents(data, data_dir)
    found = chunks.cut(
        docs.texts,
        tokenizer,
        **dataclasses.asdict(cut),
        max_skipped_fraction=data.max_skipped_fraction,
    )
    return Corpus(docs, found, cut)


def corpus(config, split: str, workdir: str, tokenizer: Tokenizer) -> Corpus:
    """The documents of a split, loaded, tokenised and cut once per process."""
    cut = section(CutConfig, config.data.cut, "data.cut")
    return _cut(data_config(config.data, split), cut, str(shared_dir(workdir) / "data"), tokenizer)


def check_model(cfg: ModelConfig, cut: CutConfig, tokenizer: Tokenizer | None = None) -> None:
    """The model is long enough for the texts and wide enough for a known tokenizer; one that is
    wider has rows of its embedding that no token uses, and that is said."""
    if cut.prefix_max + cut.suffix > cfg.max_len:
        raise UserError(
            f"config data.cut: prefix_max {cut.prefix_max} + suffix {cut.suffix} is "
            f"longer than model.max_len {cfg.max_len}"
        )
    if tokenizer:
        tokenizers.check_width(tokenizer, cfg.vocab_size)


def recorded_model(directory: str) -> ModelConfig:
    """The model config of a checkpoint, a run's or Hugging Face's."""
    return _recorded(directory)[0]


def _recorded(directory: str) -> tuple[ModelConfig, LoraConfig]:
    """The model of a checkpoint, and the factors that were trained beside it."""
    if configs.exists(directory):
        return configs.read(directory), OFF
    record = checkpoints.record(directory)
    run = record["config"] if "config" in record else {}
    adapter = section(LoraConfig, run["lora"], "checkpoint lora") if "lora" in run else OFF
    return section(ModelConfig, record["model"], "checkpoint model"), adapter


def load_params(directory: str, mesh, dtype: str = "") -> tuple[Params, ModelConfig]:
    """Parameters and model config of a run's last checkpoint, or of Hugging Face's, on `mesh`.

    Held in `dtype`: float32, bfloat16 or int8; empty: as the run held them (Hugging Face's:
    float32). Factors are merged.
    """
    cfg, adapter = _recorded(directory)
    return loading.load(directory, mesh, cfg, adapter, dtype or cfg.param_dtype), cfg


def start_state(
    manager,
    cfg: ModelConfig,
    tx,
    mesh,
    *,
    seed: int,
    init_from: str,
    reference: bool,
    adapter: LoraConfig = OFF,
) -> tuple[TrainState, int, list]:
    """State, step and unwritten metrics to go on from: (1) the run's own last checkpoint,
    (2) `init_from`, (3) fresh.

    The reference of a fresh state is its initial parameters; with an `adapter` it is its base.
    """
    if manager.latest_step() is not None:
        abstract = step.abstract_state(cfg, tx, mesh, reference=reference, adapter=adapter)
        state, kept = checkpoints.restore(manager, abstract)
        return state, int(state.step), [kept["pending"]]
    made = fresh_state(
        cfg, tx, mesh, seed=seed, init_from=init_from, reference=reference, adapter=adapter
    )
    return made, 0, []


def fresh_state(
    cfg: ModelConfig,
    tx,
    mesh,
    *,
    seed: int,
    init_from: str,
    reference: bool,
    adapter: LoraConfig = OFF,
) -> TrainState:
    """The state at step 0, the same every time."""
    if not init_from:
        return step.init_state(cfg, tx, mesh, seed, reference=reference)
    params, found = load_params(init_from, mesh, "int8" if adapter.int8 else cfg.param_dtype)
    if _widths(found) != _widths(cfg) or found.layers > cfg.layers:
        raise UserError(f"init_from {init_from}: its model is {found}, the config says {cfg}")
    if configs.exists(init_from):
        configs.check_same(found, cfg, init_from)
    if found.layers < cfg.layers:
        params = decoder.deepen(params, cfg)
    if adapter.rank:
        return step.adapted_state(params, cfg, tx, mesh, seed, adapter=adapter)
    return step.state_of(params, cfg, tx, mesh, reference=reference)


def _widths(cfg: ModelConfig):
    """Shapes of all but the axis of layers."""
    shapes = jax.eval_shape(lambda: decoder.init(cfg, jax.random.key(0)))
    layers = jax.tree.map(lambda x: x.shape[1:], shapes.pop("blocks"))
    return layers, jax.tree.map(lambda x: x.shape, shapes)


def record(config, name: str, cfg: ModelConfig, pending) -> dict[str, Any]:
    """The JSON record of a checkpoint: enough to use it without the config file, and the sums of
    metrics that are not written yet."""
    return {
        "run": name,
        "seed": config.seed,
        "model": dataclasses.asdict(cfg),
        "data": plain(config.data),
        "config": plain(config.runs[name]),
        "pending": loop.totals(pending),
    }


def keep_tokenizer(config, workdir: str, directory: str) -> None:
    """Copies the tokenizer beside a run's checkpoints, so that the run is complete in itself."""
    if not processes.lead():
        return
    cfg = section(TokenizerConfig, config.tokenizer, "tokenizer")
    write_json(epath.Path(directory) / "tokenizer.json", {"kind": cfg.kind})
    tokenizers.keep(cfg.kind, cfg.path or str(_trained(workdir)), directory)


def kept_tokenizer(directory: str) -> Tokenizer:
    """The tokenizer of a run, or of a checkpoint of Hugging Face's."""
    path = epath.Path(directory)
    theirs = tokens.home(directory)
    if theirs:
        return _load_tokenizer(*tokens.kind_of(theirs))
    if not (path / "tokenizer.json").exists():
        raise UserError(f"{directory} holds no tokenizer.json: is this a run's directory?")
    kind = json.loads((path / "tokenizer.json").read_text())["kind"]
    return _load_tokenizer(kind, tokenizers.kept(kind, directory))
