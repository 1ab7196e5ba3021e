"""A recipe: a config with a list of runs, checked as a whole before anything is written."""

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from sip import processes
from sip import workdir as workdirs
from sip.data import control, documents
from sip.data import corpus as corpora
from sip.evals.ground_truth import CONTINUATIONS
from sip.judge import build as judges
from sip.judge import prompts
from sip.judge.build import POLICY, JudgeConfig, check_room
from sip.judge.proofread import ProofreadConfig
from sip.loading import kept_tokenizer, load_tokenizer, source_dir
from sip.models import kernels
from sip.rewriter import RewriterConfig
from sip.run import RunConfig, TokenizerConfig, build_meshes, check_model
from sip.sections import LARGEST, FieldError, at_least, named, one_of, plain, section
from sip.sections import check as check_section
from sip.stages import rl, selfimprove, session, supervised
from sip.structs import UserError
from sip.tasks.supervised import documents as texts
from sip.text import chat
from sip.text.tokenizer import Tokenizer
from sip.training import sinks
from sip.workdir import BEST

STAGES = {"supervised": supervised, "selfimprove": selfimprove, "rl": rl}
COMPILED = ("full", "quick")
TEACHERS = ("judge", "rewriter")  # runs whose evaluations are shown next to the rows


@dataclass(frozen=True)
class ReportConfig:
    """The `report` section: the runs that tables and plots show. Only `rows` must not be empty."""

    rows: tuple[str, ...]  # names of the compared runs, one table row each
    judge: str  # run that trained the judge, or empty
    standard: str  # row that the others are compared with, or empty
    rewriter: str = ""  # run that trained the rewriter, or empty
    journeys: tuple[tuple[str, ...], ...] = ()  # rows in the order of their stages, for journey.png

    def __post_init__(self):
        for journey in self.journeys:
            if len(journey) != len(self.journeys[0]) or not set(journey) <= set(self.rows):
                raise FieldError("report", f"journeys={journey}: must be rows, all equally many")
        if len(set(self.rows)) < len(self.rows):
            raise FieldError("report", f"rows={self.rows}: must name each run once")
        if self.standard and self.standard not in self.rows:
            raise UserError(
                f"standard {self.standard!r} is not one of the rows {', '.join(self.rows)}"
            )

    def names(self) -> tuple[str, ...]:
        """Returns the names of all runs that the report needs."""
        named = (*self.rows, self.judge, self.rewriter, self.standard)
        return tuple(name for name in named if name)


@dataclass(frozen=True)
class Recipe:
    """A whole config."""

    seed: int  # seed of parameters, order of documents and rollouts
    data: dict[str, Any]  # corpus and its split into prefixes and suffixes
    tokenizer: TokenizerConfig
    order: tuple[str, ...]  # names of the runs, in the order of training
    runs: dict[str, Any]  # name -> config of a run
    report: ReportConfig
    gap: Any = None  # policies and judges that python -m sip.gap measures; none: no section
    compile: str = "full"  # full | quick: the command makes XLA optimise little

    def __post_init__(self):
        check_section("", self, seed=at_least(0, most=LARGEST), compile=one_of(COMPILED))
        if not self.order or len(set(self.order)) < len(self.order):
            raise FieldError("", f"order={self.order}: must name at least one run, each once")
        for name in self.order:
            # A directory of the workdir, and the first part of NAME/best.
            if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
                raise FieldError("", f"order: run {name!r} must be letters, digits, '_', '-', '.'")
            if name == POLICY:
                raise FieldError(
                    "", f"order: run {name!r}: is a word of judge.init_from; rename it"
                )
        for name, run in self.runs.items():
            if not isinstance(run, Mapping):
                raise FieldError("", f"runs.{name}={run!r:.80}: must be a section")


def read(config) -> Recipe:
    """Reads a whole config, without its runs. Raises UserError naming the key that is wrong."""
    return section(Recipe, config, "")


def filled(config) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns (the config with the defaults of all keys that it leaves out, problems by section).

    Sections are seed, order, report, data, tokenizer and runs.NAME. One that cannot be resolved has
    a problem and stays as it is.
    """
    found, problems = {"compile": Recipe.compile, **plain(config)}, {}

    def put(values, key: str, name: str, make) -> None:
        if key in values:
            try:
                values[key] = make()
            except (UserError, AttributeError, KeyError, TypeError) as e:  # of an older version
                problems[name] = str(e)

    put(found, "data", "data", lambda: corpora.filled(config.data))
    for key, cls in (("tokenizer", TokenizerConfig), ("report", ReportConfig)):
        put(found, key, key, lambda k=key, c=cls: dataclasses.asdict(section(c, config[k], k)))
    for name, run in config.runs.items():
        resolve = lambda n=name, r=run: dataclasses.asdict(STAGES[r.stage].resolve(config, n))
        put(found["runs"], name, f"runs.{name}", resolve)
    return found, problems


def check(config, workdir: str, taken: Collection[str] = ()) -> None:
    """Checks the whole recipe before anything is written or compiled. Raises UserError.

    `taken` are runs that are copied from another workdir: the servers they needed may be away.
    """
    recipe = read(config)
    cut = corpora.cut_config(recipe.data)
    data = corpora.data_config(config.data, "train")
    sizes = corpora.sizes(data, workdir)
    earlier: dict[str, RunConfig] = {}
    for name in recipe.order:
        if name not in recipe.runs:
            raise UserError(
                f"config order: no run {name!r}; there are {', '.join(sorted(recipe.runs))}"
            )
        earlier[name] = check_run(config, name, workdir, cut, data, sizes, earlier, name in taken)
    _check_report(recipe.report, earlier)
    _check_tokenizer(recipe.tokenizer, earlier)


def check_tokens(config, tokenizer: Tokenizer, workdir: str = "") -> None:
    """Raises UserError if a control token, or an option that a run's judge answers with or learns,
    is not one token of the recipe's tokenizer, or if it cannot use a chat template.

    Checked for all runs as soon as there is a tokenizer: the first run may take days.
    """
    for name in config.order:
        run = STAGES[config.runs[name].stage].resolve(config, name)
        for key, symbol in run.symbols().items():
            control.token(tokenizer, symbol, f"config runs.{name}.{key}")
        for key, aspects in run.words().items():
            with named(f"config runs.{name}.{key}"):
                for aspect in aspects:
                    prompts.check_options(tokenizer, aspect)
        for key, judge in run.judges().items():
            if judge.backend == "local" and (judge.own or _within(judge.init_from, config.order)):
                with named(f"config runs.{name}.{key}"):
                    judges.aspects_in(judge, workdir, tokenizer)
        for key, template in _templates(run, config.order):
            with named(f"config runs.{name}.{key}"):
                chat.turn(chat.load(template, tokenizer, workdir))


def _within(source: str, names: Collection[str]) -> bool:
    """True if a source is a run of the recipe, or the best parameters of one."""
    return source.removesuffix(f"/{BEST}") in names


def _templates(run: RunConfig, order: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yields (key, name) of the chat templates that a run uses with the recipe's tokenizer, besides
    those of judges."""
    wanted = _rewriter(run)
    if wanted is not None and wanted.chat and _within(wanted.init_from, order):
        yield "rewriter.chat", wanted.chat
    if isinstance(run, supervised.SupervisedConfig | rl.RLConfig):
        yield from _chats(run.task, "task")


def _chats(value, at: str) -> Iterator[tuple[str, str]]:
    """Yields (key, value) of the keys `chat` of a section and those below it, but for judges."""
    for name in (field.name for field in dataclasses.fields(value)):
        inner = getattr(value, name)
        if name == "chat" and inner:
            yield f"{at}.{name}", inner
        elif dataclasses.is_dataclass(inner) and not isinstance(inner, JudgeConfig):
            yield from _chats(inner, f"{at}.{name}")


def _rewriter(run: RunConfig) -> RewriterConfig | None:
    """The rewriter of a run, if it is a model."""
    if not isinstance(run, selfimprove.SelfImproveConfig) or not run.candidates.rewrite:
        return None
    return run.rewriter if run.rewriter.backend == "local" else None


def _check_report(report: ReportConfig, runs: Mapping[str, RunConfig]) -> None:
    for name in report.names():
        if name not in runs:
            raise UserError(f"config report: run {name!r} is not in config order")
    writes = {name: runs[name].continued() is not None for name in report.names()}
    for name in report.rows if report.standard else ():
        if writes[name] != writes[report.standard]:
            raise UserError(
                f"config report.rows: run {name!r} is not evaluated like standard "
                f"{report.standard!r}, by continuations"
            )
    for key in TEACHERS:
        if (name := getattr(report, key)) and writes[name]:
            raise UserError(f"config report.{key}: run {name!r} trains no {key}")


def check_meshes(config) -> None:
    """Builds every run's meshes on the present devices.

    Raises UserError if one does not fit, or if the devices do not run the model's attention.
    """
    for name in config.order:
        with named(f"config runs.{name}"):
            run = STAGES[config.runs[name].stage].resolve(config, name)
            mesh, _ = build_meshes(run)
            kernels.check(run.model.attention, mesh.devices.flat[0].platform)


def check_files(config) -> None:
    """Raises UserError if files of the corpus do not exist."""
    documents.check_path(corpora.data_config(config.data, "train"))


def _check_tokenizer(cfg: TokenizerConfig, runs: Mapping[str, RunConfig]) -> None:
    """Reads a tokenizer that is not trained. Raises UserError if it cannot be read, or has more
    tokens than a run's model has embeddings."""
    size = cfg.vocab_size
    if cfg.path or cfg.kind != "sentencepiece":
        with named("config tokenizer.path"):
            size = load_tokenizer(cfg.kind, cfg.path).vocab_size
    for name, run in runs.items():
        if run.model.vocab_size < size:
            raise UserError(
                f"config runs.{name}.model.vocab_size={run.model.vocab_size}: must be >= "
                f"{size}, the number of the tokenizer's tokens"
            )


def check_run(
    config,
    name: str,
    workdir: str,
    cut: corpora.CutConfig,
    data: documents.DataConfig,
    sizes: Sequence[Mapping[str, int]],
    earlier: Mapping[str, RunConfig],
    done: bool,
) -> RunConfig:
    """Checks one run and returns it. Raises UserError naming the key that is wrong.

    The runs it reads must be trained earlier (`earlier`) or exist in the workdir. The servers it
    needs must answer, unless it is done already. `data` is the config of the corpus, `sizes` are
    the numbers of documents of its sources, as far as they are known (`corpora.sizes`).
    """
    stage = config.runs[name].stage if "stage" in config.runs[name] else None
    if stage not in STAGES:
        raise UserError(f"config runs.{name}.stage must be one of {sorted(STAGES)}, not {stage!r}")
    run = STAGES[stage].resolve(config, name)
    check_model(run.model, cut)
    check_proofread(config, name)
    for key, read in run.sources().items():
        if read and read.removesuffix(f"/{BEST}") not in earlier:
            source_dir(workdir, read, f"config runs.{name}.{key}")
    try:
        _check_sources(run, earlier)
        run.check_cut(cut)
        _check_corpus(run, data)
        _check_sizes(run, data, sizes)
        if documents.has_truth(data.source) or _compared(run):
            _check_baseline(run, earlier, workdir)
    except UserError as e:
        raise UserError(f"config runs.{name}.{e}") from None
    if not (done or (epath.Path(workdirs.run_dir(workdir, name)) / workdirs.DONE).exists()):
        with named(f"config runs.{name}"):
            processes.on_lead(run.reach)
            processes.on_lead(lambda: sinks.check_tracker(run.log.tracker))
            _check_models(run, workdir, earlier)
    return run


def _check_models(run: RunConfig, workdir: str, earlier: Collection[str]) -> None:
    """Raises UserError if a judge or a rewriter that is no run of the recipe cannot be asked: by
    its tokenizer, its chat template or its max_len."""
    for key, judge in run.judges().items():
        if judge.backend == "local" and not judge.own and not _within(judge.init_from, earlier):
            with named(key):
                judges.check_model(judge, source_dir(workdir, judge.init_from))
    wanted = _rewriter(run)
    if wanted is not None and wanted.chat and not _within(wanted.init_from, earlier):
        tokenizer = kept_tokenizer(source_dir(workdir, wanted.init_from))
        with named("rewriter.chat"):
            chat.turn(chat.load(wanted.chat, tokenizer))


def _check_sources(run: RunConfig, earlier: Mapping[str, RunConfig]) -> None:
    """Raises UserError if earlier runs of the recipe are not what the run takes them for."""
    for key, read in run.sources().items():
        source = read.removesuffix(f"/{BEST}")
        if source not in earlier:
            continue
        if source != read and not earlier[source].checkpoint.best:
            raise UserError(
                f"{key} {read!r}: run {source!r} keeps no best: set its checkpoint.best"
            )
        if key == "init_from":
            session.check_same_model(earlier[source].model, run.model, read)
    for key, judge in run.judges().items():
        source = judge.init_from.removesuffix(f"/{BEST}")
        own = run.model if judge.own else None
        model = earlier[source].model if source in earlier else own
        if judge.backend == "local" and model:
            check_room(judge, judge.aspects(), model, key)


def _check_corpus(run: RunConfig, data: documents.DataConfig) -> None:
    """Raises UserError if the corpus does not have what the run reads."""
    truth = documents.has_truth(data.source)
    for key, split in run.splits().items():
        with named(key):
            documents.check_split(data.source, split, data.parts)
    if run.needs_truth() and not truth:
        raise UserError(
            f"{run.needs_truth()} needs a ground truth, which data.source {data.source!r} does not "
            "have"
        )
    if run.needs_thinker() and not documents.has_thinker(data):
        raise UserError(
            f"{run.needs_thinker()} {data.source!r}: needs a corpus with a rule that thinks: "
            f"{documents.THINKERS}"
        )
    best, known = run.checkpoint.best, run.figures(truth)
    if best and best not in known:
        raise UserError(f"checkpoint.best {best!r} is none of {', '.join(known)}")


def _check_sizes(
    run: RunConfig, data: documents.DataConfig, sizes: Sequence[Mapping[str, int]]
) -> None:
    """Raises UserError if a split that the run reads does not exist or has no documents.

    `split` of a run that learns from a file of its own is a part of that file.
    """
    task = run.task if isinstance(run, supervised.SupervisedConfig) else None
    learns = isinstance(run, selfimprove.SelfImproveConfig) or isinstance(task, texts.Config)
    splits = run.splits() | ({"evals.validation": "validation"} if learns else {})
    for key, split in splits.items() if learns or data.source in documents.WORLDS else ():
        for one, counts in zip(documents.sources(data), sizes, strict=True):
            with named(key):
                documents.check_split(one.source, split, one.parts, counts)


def _compared(run: RunConfig) -> bool:
    """True if a judge compares the run's continuations with the baseline's."""
    evals = run.continued()
    return evals is not None and evals.judge is not None


def _check_baseline(run: RunConfig, earlier: Mapping[str, RunConfig], workdir: str) -> None:
    """Raises UserError if the baseline has no continuations, or they are of other prefixes."""
    evals = run.continued()
    if evals is None or not evals.baseline:
        return
    at = f"evals.baseline {evals.baseline!r}"
    if evals.baseline not in earlier:
        path = epath.Path(workdirs.run_dir(workdir, evals.baseline)) / CONTINUATIONS
        if not path.exists():
            raise UserError(f"{at}: there is no {path}")
        return
    theirs = earlier[evals.baseline].continued()
    if theirs is None:
        raise UserError(f"{at}: that run writes no continuations")
    for key in ("validation", "split", "standard", "unsafe"):
        ours, other = getattr(evals, key), getattr(theirs, key)
        if ours != other:
            raise UserError(f"evals.{key} is {ours!r}, but {other!r} in the run of {at}")


LABELS = ("labels", "corrupted")  # sections of a judge's task that name a proofreader


def _reader(judged) -> dict[str, Any]:
    """Returns the proofreader of a section, which may lack it: without the batch, which changes
    no mark."""
    given = dict(judged.proofread) if "proofread" in judged else {}
    return {**dataclasses.asdict(ProofreadConfig()), **given, "batch": 0}


def check_proofread(config, name: str) -> None:
    """Raises UserError if a judge's proofreader differs from the one of its training labels."""
    run = config.runs[name]
    sections = [("judge", run.judge)] if "judge" in run else []
    task = run.task if "task" in run and hasattr(run.task, "keys") else {}
    if "judge" in task and task["judge"] is not None:
        sections.append(("task.judge", task["judge"]))
    sections += [("audit.judge", run.audit.judge)] if "audit" in run else []
    for key, judge in sections:
        source = judge.init_from if judge.backend == "local" else ""
        taught = config.runs[source] if source in config.runs else {}
        task = taught["task"] if "task" in taught else {}
        labels = {kind: task[kind] for kind in LABELS if hasattr(task, "keys") and kind in task}
        for kind, made in labels.items():
            if not made:
                continue
            here, there = map(_reader, (judge, made))
            if here != there and (here["init_from"] or there["init_from"]):
                raise UserError(
                    f"config runs.{name}.{key}.proofread differs from runs.{source}.task.{kind}."
                    "proofread: a judge must see texts proofread as in its training"
                )
