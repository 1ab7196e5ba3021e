"""A run of a recipe: its config section as dataclasses, its corpus, its tokenizer, its meshes."""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from etils import epath

from sip import mesh as meshes
from sip import processes, workdir
from sip.data import corpus as corpora
from sip.data.corpus import Corpus, CutConfig
from sip.data.documents import Documents
from sip.judge import prompts
from sip.judge.build import JudgeConfig
from sip.judge.prompts import Aspect
from sip.loading import load_tokenizer
from sip.mesh import MeshConfig, PartConfig
from sip.models.config import ModelConfig
from sip.models.lora import OFF, LoraConfig
from sip.sections import at_least, check, one_of, plain, section
from sip.structs import UserError
from sip.text import tokenizer as tokenizers
from sip.text.tokenizer import Tokenizer
from sip.training import loop
from sip.training.optim import OptimConfig


@dataclass(frozen=True, eq=False)
class Run:
    """One run of a recipe: the whole config, the run's name and the workdir."""

    config: Any
    name: str
    workdir: str
    # Documents of each split that the run has read but not used, by reason.
    left_out: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)

    @property
    def directory(self) -> str:
        """The run's directory in the workdir."""
        return workdir.run_dir(self.workdir, self.name)

    @property
    def seed(self) -> int:
        """The recipe's seed."""
        return self.config.seed

    @property
    def cut(self) -> CutConfig:
        """Lengths of prefix and suffix."""
        return corpora.cut_config(self.config.data)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The recipe's tokenizer, trained first if the workdir has none yet."""
        return open_tokenizer(self.config, self.workdir)

    def corpus(self, split: str, *, any_length: bool = False) -> Corpus:
        """The documents of a split, loaded, tokenised and cut once per process.

        With `any_length` most of them may be too short for a prefix and a suffix.
        """
        how: Any = dict(any_length=any_length)
        found = corpora.load(self.config.data, split, self.workdir, self.tokenizer, **how)
        if found.left_out:
            self.left_out[split] = found.left_out
        return found

    def announce(self, split: str, rows: int) -> None:
        """Prints one line about the documents of a split and the epochs that the run makes of them.

        `rows` is the number of its chunks that the run trains on in all steps.
        """
        line = corpora.summary(self.corpus(split), split, rows)
        corpora.say(f"{self.name} learns from {line}")

    def documents(self, split: str) -> Documents:
        """The documents of a split, loaded once per process, neither tokenised nor cut."""
        found = corpora.load_documents(self.config.data, split, self.workdir)
        if found.left_out:
            self.left_out[split] = dict(found.left_out)
        return found

    def say(self, line: str) -> None:
        """Prints a line about the run to stderr, once for all processes."""
        corpora.say(line)

    def record(self, cfg: ModelConfig, pending) -> dict[str, Any]:
        """The JSON record of a checkpoint: enough to use it without the config file, and the sums
        of the metrics that are not written yet."""
        return {
            "run": self.name,
            "seed": self.seed,
            "model": dataclasses.asdict(cfg),
            "data": plain(self.config.data),
            "config": plain(self.config.runs[self.name]),
            "pending": loop.totals(pending),
        }

    def write_eval(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the run's eval.json and returns its contents."""
        workdir.write_json(epath.Path(self.directory) / "eval.json", dict(figures))
        return dict(figures)


@dataclass(frozen=True)
class TokenizerConfig:
    """The `tokenizer` section: a tokenizer file, or with an empty `path` a SentencePiece model that
    is trained on the corpus."""

    kind: str = "sentencepiece"  # sentencepiece | huggingface | byte
    path: str = ""  # a file; of kind huggingface a tokenizer.json or its directory
    vocab_size: int = 768  # number of tokens of a trained tokenizer
    documents: int = 20000  # documents of the training split that it is trained on
    prompts: tuple[str, ...] = ()  # judge aspects whose words and verdicts become single tokens
    symbols: tuple[str, ...] = ()  # other strings that become single tokens

    def __post_init__(self):
        check(
            "tokenizer",
            self,
            kind=one_of(tokenizers.KINDS),
            vocab_size=at_least(1 if self.kind == "sentencepiece" and not self.path else 0),
            documents=at_least(1),
        )
        for name in self.prompts:
            prompts.load(name)  # checks that it exists
        if not all(self.symbols):
            raise UserError(f"tokenizer.symbols must not be empty strings: {self.symbols}")
        if self.kind == "byte" and self.path.endswith((".model", ".json")):
            raise UserError(f"tokenizer.path {self.path!r}: kind 'byte' has no file")
        if self.kind == "huggingface" and not self.path:
            raise UserError("tokenizer.path: kind 'huggingface' needs a tokenizer.json")
        object.__setattr__(self, "path", workdir.place(self.path))


MOST_ROWS = 1 << 20  # of a batch; more is a slip of the pen, and no memory holds it


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings that every run has; each stage adds its own."""

    stage: str  # supervised | selfimprove | rl
    split: str  # documents to learn from, such as train[:60%]
    init_from: str  # a run of the recipe or a directory; empty: fresh parameters
    steps: int  # updates of the parameters
    batch: int  # examples per step
    microbatches: int  # parts of a batch whose gradients are accumulated
    model: ModelConfig
    optim: OptimConfig  # `optim.steps` is the run's `steps` unless it is set
    mesh: MeshConfig
    checkpoint: loop.CheckpointConfig
    log: loop.LogConfig
    lora: LoraConfig = OFF  # rank 0: all parameters are trained

    def __post_init__(self):
        if self.lora.rank and not self.init_from:
            raise UserError("lora.rank: LoRA needs init_from; fresh parameters would stay random")
        self.lora.check(self.model)
        if self.model.scalar and not self.scores:
            raise UserError("model.scalar: only the task reward_model trains a scalar head")
        if self.scores and not self.model.scalar:
            raise UserError("model.scalar must be True for the task reward_model")
        most = MOST_ROWS
        check("", self, steps=at_least(1), batch=at_least(1, most), microbatches=at_least(1))
        if self.batch % self.microbatches:
            raise UserError(
                f"batch {self.batch} is not divisible by microbatches {self.microbatches}"
            )

    def sources(self) -> dict[str, str]:
        """The runs or directories that the run reads, by the config key that names them."""
        return {"init_from": self.init_from}

    def reads(self) -> dict[str, list[str]]:
        """The files that the run reads besides the corpus, by the path that names them."""
        return {}

    def splits(self) -> dict[str, str]:
        """The splits of the corpus that the run reads, by config key."""
        return {"split": self.split}

    def needs_truth(self) -> str:
        """The config key that needs a corpus with a ground truth; empty if none does."""
        return ""

    def needs_thinker(self) -> str:
        """The config key that needs a corpus with a rule that thinks; empty if none does."""
        return ""

    def figures(self, truth: bool) -> tuple[str, ...]:
        """Names of the figures of the run's evaluations, which `checkpoint.best` can name.

        `truth`: the corpus has a ground truth.
        """
        return ()

    def reach(self) -> None:
        """Raises UserError if a server or file that the run needs is not there."""

    def continued(self) -> Any:
        """The evaluation of a run that writes continuations (an EvalConfig); None if none does."""
        return None

    @property
    def scores(self) -> bool:
        """True if the run trains a reward model, whose head is a scalar."""
        return False

    def judges(self) -> dict[str, JudgeConfig]:
        """The judges that the run asks, by config key."""
        return {}

    def words(self) -> dict[str, tuple[Aspect, ...]]:
        """The aspects whose options must be single tokens of the recipe's tokenizer, besides those
        of judges, by config key."""
        return {}

    def symbols(self) -> dict[str, str]:
        """The control tokens, which must be single tokens of the tokenizer, by config key."""
        return {}

    def check_cut(self, cut: CutConfig) -> None:
        """Raises UserError if prefixes and suffixes of these lengths do not fit the run."""

    @property
    def apart(self) -> PartConfig | None:
        """The mesh of the judges and the rewriter; None if the run has only one mesh."""
        return None


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """The `task` section of a run; each task adds its own settings."""

    name: str  # selects the task

    def sources(self) -> dict[str, str]:
        """The runs or directories that the task reads, by the config key that names them."""
        return {}

    def reads(self) -> dict[str, list[str]]:
        """The files that the task reads, by the path that names them."""
        return {}

    def needs_truth(self) -> str:
        """The task's key that needs a corpus with a ground truth; empty if none does."""
        return ""

    def needs_thinker(self) -> str:
        """The task's key that needs a corpus with a rule that thinks; empty if none does."""
        return ""

    def figures(self, truth: bool) -> tuple[str, ...]:
        """Names of the figures of the task's evaluations."""
        return ()

    @property
    def scores(self) -> bool:
        """True if the task trains a reward model, whose head is a scalar."""
        return False

    @property
    def average(self) -> float:
        """Decay per update of a moving average of the parameters, the run's reference; 0: none."""
        return 0.0

    def continues(self) -> bool:
        """True if the run's evaluation writes continuations of held-out prefixes."""
        return False

    def reach(self) -> None:
        """Raises UserError if a server or file that the task needs is not there."""

    def check(self, c) -> None:
        """Raises UserError if the task does not fit the other settings of the run `c`."""

    def check_cut(self, c, cut: CutConfig) -> None:
        """Raises UserError if prefixes and suffixes of these lengths do not fit the run `c`."""

    def judges(self) -> dict[str, JudgeConfig]:
        """The judges that the task asks, by config key."""
        return {}

    def words(self) -> dict[str, tuple[Aspect, ...]]:
        """The aspects whose options must be single tokens, see `RunConfig.words`."""
        return {}

    def symbols(self) -> dict[str, str]:
        """The control tokens, see `RunConfig.symbols`."""
        return {}


def run_config(cls, config, name: str, tasks: Mapping[str, tuple] | None = None):
    """`config.runs[name]` as the dataclass `cls`, a RunConfig.

    `tasks` are the stage's tasks, {name: (Config, build)}: the `task` section becomes the Config of
    the task that it names. Raises UserError naming the key that is wrong.
    """
    values = plain(config.runs[name])
    if "steps" in values and "optim" in values:
        if type(values["steps"]) is not int or values["steps"] < 1:
            raise UserError(f"config runs.{name}.steps: {values['steps']!r} is not a number from 1")
        values["optim"] = {"steps": values["steps"], **values["optim"]}
    if tasks is not None and "task" in values:
        values["task"] = _task_config(values["task"], tasks, f"runs.{name}.task")
    return section(cls, values, f"runs.{name}")


def _task_config(values, tasks: Mapping[str, tuple], at: str):
    found = values["name"] if isinstance(values, Mapping) and "name" in values else values
    if not isinstance(found, str) or found not in tasks or not isinstance(values, Mapping):
        raise UserError(f"config {at}.name must be one of {sorted(tasks)}, not {found!r}")
    return section(tasks[values["name"]][0], values, at)


def build_mesh(c: RunConfig, devices=None) -> jax.sharding.Mesh:
    """The run's mesh over `devices` (default: all).

    Raises UserError if the rows of a microbatch are not divisible by replica x fsdp: every device
    would then hold and compute all of them.
    """
    mesh = meshes.build(c.mesh, devices)
    if c.batch // c.microbatches % meshes.ways(mesh, meshes.ACT_RULES["B"]):
        shape = ", ".join(f"{axis} {n}" for axis, n in mesh.shape.items())
        raise UserError(
            f"batch {c.batch} in microbatches {c.microbatches}: {c.batch // c.microbatches} rows "
            f"are not divisible by replica x fsdp of the mesh ({shape})"
        )
    return mesh


def build_meshes(c: RunConfig, devices=None) -> tuple[jax.sharding.Mesh, jax.sharding.Mesh]:
    """(mesh of the run, mesh of its judges and rewriter) over `devices` (default: all)."""
    if c.apart is None:
        mesh = build_mesh(c, devices)
        return mesh, mesh
    try:
        left, apart = meshes.divide(c.apart, devices)
        other = meshes.build(c.apart, apart)
    except UserError as e:
        raise UserError(f"judge_mesh: {e}") from None
    return build_mesh(c, left), other


def check_model(cfg: ModelConfig, cut: CutConfig, tokenizer: Tokenizer | None = None) -> None:
    """Raises UserError if the model is shorter than prefix and suffix, or has fewer embeddings than
    the tokenizer has tokens. Unused embeddings are reported."""
    if cut.prefix_max + cut.suffix > cfg.max_len:
        raise UserError(
            f"config data.cut: prefix_max {cut.prefix_max} + suffix {cut.suffix} is "
            f"longer than model.max_len {cfg.max_len}"
        )
    if tokenizer:
        tokenizers.check_width(tokenizer, cfg.vocab_size)


def check_control(cfg: ModelConfig, cut: CutConfig, control: bool, key: str) -> None:
    """Raises UserError, naming `key`, if there is a control token but no room for it."""
    need = cut.prefix_max + 1 + cut.suffix
    if control and need > cfg.max_len:
        raise UserError(
            f"{key}: prefix_max, a control token and suffix are {need} tokens, more than "
            f"model.max_len {cfg.max_len}; lower data.cut.prefix_max"
        )


def open_tokenizer(config, workdir: str) -> Tokenizer:
    """The recipe's tokenizer. A SentencePiece model without a path is trained on the corpus once
    and kept in the workdir."""
    cfg = section(TokenizerConfig, config.tokenizer, "tokenizer")
    path = epath.Path(cfg.path or _trained(workdir))
    if cfg.kind == "sentencepiece" and not cfg.path:
        found = corpora.load_documents(config.data, "train", workdir)
        processes.on_lead(lambda: path.exists() or _train_tokenizer(cfg, found.texts, path))
    return load_tokenizer(cfg.kind, str(path))


def _train_tokenizer(cfg: TokenizerConfig, texts, path: epath.Path) -> None:
    symbols = prompts.symbols(prompts.load(name) for name in cfg.prompts)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizers.train_sentencepiece(
        [texts[i] for i in range(min(cfg.documents, len(texts)))],
        str(path),
        vocab_size=cfg.vocab_size,
        symbols=tuple(dict.fromkeys((*symbols, *cfg.symbols))),
    )


def _trained(where: str) -> epath.Path:
    return workdir.shared_dir(where) / tokenizers.MODEL


def keep_tokenizer(run: Run, directory: str) -> None:
    """Copies the tokenizer into a run's directory, so that the directory is complete in itself."""
    if not processes.lead():
        return
    cfg = section(TokenizerConfig, run.config.tokenizer, "tokenizer")
    workdir.write_json(epath.Path(directory) / "tokenizer.json", {"kind": cfg.kind})
    tokenizers.keep(cfg.kind, cfg.path or str(_trained(run.workdir)), directory)
