"""Evaluates a checkpoint: `python -m sip.evaluate --checkpoint=RUN_DIR --baseline=RUN_DIR`.

Evaluates on the corpus that the run was trained on; a data set of it is read from the run's workdir
or from --data_workdir, and never built. Measures the negative log-likelihood of held-out suffixes
and, if the corpus has a ground truth, the quality, safety and factuality of greedy continuations.
Prints JSON.

    python -m sip.evaluate --evals=lm_eval --tasks=arc_easy,piqa --checkpoint=DIR

Runs standard evaluations of lm-evaluation-harness (extra `eval`) on a run or on a checkpoint in
Hugging Face format. Prints lm_eval's table. The tasks are

    lm_eval's own, with data from the Hugging Face hub, by default;
    your task files in --tasks_dir, with data in the same directory or in --data_dir;
    the task files in sip/evals/tasks, with data in --data_dir, if only --data_dir is given.
    Each of these files names the data file that it reads.

    python -m sip.evaluate --evals=problems --problems=FILE.jsonl --samples=8 --checkpoint=DIR

Samples answers to problems (sip/data/problems.py) and checks them: mean@n, maj@n and pass@k. All
problems of the file are asked. Prompts are chats in the template that the checkpoint was tuned in,
or with --template=none plain texts. With --run=NAME in place of --problems: the test problems,
prompts, check and sampling of an RL run on problems of the checkpoint's workdir (or --workdir).

    python -m sip.evaluate --evals=thoughts --run=NAME --split=test --checkpoint=RUN_DIR

Compares rewards after a checkpoint's own thoughts and after others (sip/evals/thoughts.py), with
the places and settings of the run NAME of its workdir (or --workdir).

    python -m sip.evaluate --evals=paper --baseline=RUN_DIR --checkpoint=RUN_DIR,RUN_DIR \\
        --judged_by=http://HOST:8000/v1 --judge_model=NAME --benchmark=xstest=xstest_prompts.csv

Evaluates checkpoints as arXiv 2601.21343 does, against a baseline and by a judge: win rates,
coherence, safety, factuality; with --tasks standard tasks, with --graders libraries that grade
texts. Prints a table with intervals and paired comparisons (docs/evaluation.md).
"""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from sip import cli  # first, as it tells of a variable that JAX cannot use

# isort: split
import jax
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from sip import loading, mesh, sections
from sip import run as runs
from sip import workdir as workdirs
from sip.data import corpus as corpora
from sip.data import documents, files, problems, prompts
from sip.data.problems import ProblemsConfig
from sip.evals import continuations, ground_truth, harness
from sip.evals.paper import asking, choices, graders, measure, sets, table
from sip.evals.paper.asking import Asker, Exact, Panel
from sip.evals.paper.choices import Question
from sip.evals.paper.measure import Plan
from sip.evals.paper.sets import PromptSet
from sip.hf import hub
from sip.judge import build as judges
from sip.judge.build import JudgeConfig
from sip.mesh import MeshConfig
from sip.rewards import answers
from sip.rewards.answers import AnswersConfig
from sip.run import Run
from sip.sampling import SamplingConfig
from sip.stages import binding, recipe
from sip.structs import UserError
from sip.tasks.rl import problems as rl_problems
from sip.tasks.rl import prompts as rl_prompts
from sip.tasks.rl import thinking as rl_thinking
from sip.tasks.rl.task import AnswerWriter
from sip.tasks.supervised import thoughts as sft_thoughts
from sip.text import untrusted
from sip.textgen.remote import RemoteConfig
from sip.training import checkpoints
from sip.workdir import place, to_json, workdir_of

_EVALS = flags.DEFINE_enum(
    "evals",
    "ground_truth",
    ["ground_truth", "lm_eval", "problems", "thoughts", "paper"],
    "Kind of evaluation.",
)
_CHECKPOINT = cli.checkpoint_flag()
_BASELINE = cli.path_flag("baseline", "", "Directory of the run to compute win rates against.")
_SPLIT = cli.shared(
    flags.DEFINE_string, "split", "validation", "Split of the documents, such as validation."
)
_STANDARD = flags.DEFINE_integer("standard", 256, "Number of unselected prefixes.")
_UNSAFE = flags.DEFINE_integer("unsafe", 128, "Number of unsafe prefixes.")
_BATCH = flags.DEFINE_integer("batch", 64, "Prefixes per batch.")
_CONTROL = cli.shared(
    flags.DEFINE_string,
    "control",
    "",
    "Control token between prefix and continuation, such as '<|good|>'; empty: none.",
)
_DATA = cli.path_flag("data_workdir", "", "Workdir of the corpus; default: the run's workdir.")
_OUT = cli.shared(
    cli.path_flag, "out", None, "File to write the results to, as JSON; of paper also FILE.md."
)
_TASKS = flags.DEFINE_list("tasks", [], "lm_eval: comma-separated names or patterns of tasks.")
_TASKS_DIR = cli.path_flag("tasks_dir", "", "lm_eval: directory of task files (*.yaml).")
_DATA_DIR = cli.path_flag("data_dir", "", "lm_eval: directory of the task files' data.")
_LIMIT = flags.DEFINE_integer("limit", 0, "Documents of each task of lm_eval, or problems; 0: all.")
_FEWSHOT = flags.DEFINE_integer(
    "num_fewshot", -1, "lm_eval: examples before each question; -1: the task's own number."
)
_TENSOR = cli.tensor_flag()
_PROBLEMS = cli.path_flag(
    "problems",
    "",
    "problems: files of problems with answers: JSON Lines or Parquet, a folder or a glob.",
)
_RUN = cli.shared(
    flags.DEFINE_string,
    "run",
    None,
    "problems, thoughts: run of the recipe in --workdir whose settings are used.",
)
_SAMPLES = cli.count_flag("samples", 1, "problems: answers to each problem.")
_FORM = flags.DEFINE_string(
    "form",
    problems.BOXED,
    "problems: boxed; a marker before the answer, such as Answer:; or a sentence with {answer}.",
)
_CHECK = flags.DEFINE_enum(
    "check", "math", ["exact", "numeric", "math"], "problems: how answers are compared."
)
_MAX_TOKENS = cli.shared(cli.count_flag, "max_tokens", 512, "Most tokens of an answer.")
_TEMPERATURE = cli.shared(
    flags.DEFINE_float, "temperature", 1.0, "Sampling temperature; 0: greedy."
)
_TEMPLATE = cli.shared(
    flags.DEFINE_string,
    "template",
    "",
    "Chat template of the prompts: own, harmony, turns or a .jinja file; none: plain texts; by "
    "default that of the run's training, or the checkpoint's own if there is one.",
)
_SEED = cli.seed_flag()
_JSON = cli.json_flag()
_BENCHMARK = flags.DEFINE_multi_string(
    "benchmark", [], f"paper: NAME=FILE; NAME is one of {', '.join(sets.FILES)}."
)
_STEPS = flags.DEFINE_integer(
    "continuation", 0, "paper: tokens of a continuation; 0: those of the corpus's suffixes, or 128."
)
_JUDGED_BY = flags.DEFINE_string(
    "judged_by",
    "",
    "paper: the judge: truth, a checkpoint, a server (http://.../v1); with --config a run of it, "
    "whose judge section is used.",
)
_CONFIG = cli.config_flag()
_WORKDIR = cli.shared(
    cli.path_flag,
    "workdir",
    None,
    "paper: workdir of --config. problems, thoughts: that of --run; default: the checkpoint's.",
)
_JUDGE_MODEL = flags.DEFINE_string("judge_model", "", "paper: name of the judge on the server.")
_JUDGE_API = cli.api_flag("judge_api", "completions", "paper: API of the judge's server.")
_JUDGE_KEY = flags.DEFINE_string(
    "judge_key_env", "", "paper: environment variable with the server's API key."
)
_JUDGE_CACHE = cli.path_flag("judge_cache", "", "paper: directory of a server's answers.")
_JUDGE_CHAT = flags.DEFINE_string(
    "judge_chat", "", "paper: chat template of a local judge: own, harmony or a .jinja file."
)
_JUDGE_VOTES = cli.count_flag("judge_votes", 8, "paper: votes of a judge that reasons.")
_JUDGE_TOKENS = cli.count_flag("judge_tokens", 512, "paper: most tokens of a vote.")
_JUDGE_ASPECTS = flags.DEFINE_list(
    "judge_aspects", [], "paper: QUESTION=PROMPT, judge prompts other than the built-in ones."
)
_QUESTIONS = flags.DEFINE_list(
    "judge_questions", list(asking.QUESTIONS), "paper: what the judge is asked."
)
_GRADERS = flags.DEFINE_list(
    "graders", [], f"paper: what grades texts without a judge: {', '.join(graders.GRADERS)}."
)
_LIKELIHOOD_BY = cli.path_flag(
    "likelihood_by", "", "paper: checkpoint whose likelihood of the continuations is a column."
)
_DETAILS = cli.path_flag("details", "", "paper: file for all continuations with verdicts, .jsonl.")
SUFFIX = 128  # tokens of a continuation in arXiv 2601.21343


def evaluate(
    directory: str,
    *,
    baseline: str,
    split: str,
    standard: int,
    unsafe: int,
    batch: int,
    data_workdir: str,
    control: str = "",
) -> dict[str, float]:
    """Evaluates the last checkpoint of a run. Returns metrics by name.

    `nll` is in nats per suffix token. Raises UserError for a checkpoint without a corpus.
    """
    if min(standard, unsafe, batch) < 1:
        raise UserError("--standard, --unsafe and --batch must be at least 1")
    tokenizer, where = loading.kept_tokenizer(directory), mesh.single()
    loading.recorded_model(directory)  # fails for a run without a checkpoint, which has no corpus
    corpus = corpus_of(directory, split, data_workdir)
    if corpus is None:
        raise UserError(
            f"--checkpoint {directory}: it has no corpus: imported, or its run read none, or its "
            "data set was deleted; use other --evals, or --data_workdir"
        )
    model = loading.load_model(directory, where)
    truth = corpus.documents.truth
    if truth is None and baseline:
        raise UserError("--baseline: this corpus has no ground truth for win rates; leave it out")
    held = ground_truth.held_out(corpus.chunks, truth, tokenizer, standard=standard, unsafe=unsafe)
    plain, held = held, held.controlled(tokenizer, control, "--control")
    with jax.set_mesh(where):
        found = {"nll": continuations.suffix_nll(model, held.standard, batch=batch)}
        if truth is None:
            return found
        how = dict(steps=corpus.cut.suffix, batch=batch)
        texts = ground_truth.write(model, held, **how)
        # The baseline continues the same tokens, so it uses this run's tokenizer, not its own. It
        # gets no control token.
        other = texts
        if baseline:
            params, cfg = loading.load_params(baseline, where)
            theirs = loading.LoadedModel(params, cfg, tokenizer, where)
            other = ground_truth.write(theirs, plain, **how)
        found |= ground_truth.likelihood(model, held, truth, batch=batch)
    return {**found, **ground_truth.row(truth, held, texts, other)}


def corpus_of(directory: str, split: str, data_workdir: str) -> corpora.Corpus | None:
    """Loads the corpus that a run was trained on, or that of `data_workdir`.

    None for a checkpoint without one: imported, or of a run that read none, such as instruction
    tuning on files. Raises UserError if the workdir is none.
    """
    record = checkpoints.record(directory) if checkpoints.exists(directory) else {}
    if "data" not in record:
        return None
    workdir = data_workdir or workdir_of(directory)
    data = corpora.data_config(record["data"], split)
    if data_workdir or any(one.source in documents.BUILT for one in documents.sources(data)):
        workdirs.existing(workdir, "--data_workdir")
    if not corpora.is_built(data, workdir):
        return None
    tokenizer = loading.kept_tokenizer(directory)
    return corpora.load(record["data"], split, workdir, tokenizer, any_length=True)


def standard(directory: str, wanted: harness.Wanted, *, batch: int, tensor: int) -> dict:
    """Evaluates a checkpoint with lm_eval on all devices. Returns its results and the settings."""
    version = harness.library().__version__
    where = mesh.build(MeshConfig(1, -1, tensor))
    loading.kept_tokenizer(directory)  # fails early, before tasks and weights are read
    tasks = harness.load(wanted)
    found = harness.run(harness.adapter(directory, where, batch=batch), tasks, wanted)
    return found | {"config": {"checkpoint": directory, "lm_eval": version, **asdict(wanted)}}


def solve(
    directory: str,
    cfg: ProblemsConfig,
    checks: AnswersConfig,
    sample: SamplingConfig,
    *,
    data: Mapping[str, Any] | None = None,
    samples: int,
    most: int,
    template: str,
    batch: int,
    limit: int,
    seed: int,
) -> dict[str, float]:
    """Samples answers of up to `most` tokens to the test problems of `cfg`, and checks them.

    `data` is the recipe's section of documents, for generated problems about them. `limit`: number
    of problems; 0: all. Returns mean@n, maj@n, pass@k and shares of verdicts. Raises UserError if
    there are no problems.
    """
    checker = answers.checker(checks)
    tokenizer, where = loading.kept_tokenizer(directory), mesh.build(MeshConfig(1, -1, 1))
    encode, stops = prompts.encoding(_chat_template(directory, template), tokenizer)
    context = loading.recorded_model(directory).max_len
    if (room := context - most) < 1:
        raise UserError(
            f"an answer of {most} tokens (--max_tokens) leaves no room for a problem: {directory} "
            f"has a context of {context} tokens (model.max_len)"
        )
    parts, left_out = rl_problems.prompts_of(cfg, data or {}, encode, room, checker)
    name = cfg.test or cfg.path or cfg.source
    if left_out:
        corpora.say(f"{name}: left out: {documents.listed(left_out)}")
    asked = parts["test"][: limit or None]
    if not asked:
        raise UserError(f"problems of {name}: none fits {room} tokens beside an answer of {most}")
    model = loading.load_model(directory, where)
    writer = AnswerWriter(model.cfg, where, tokenizer, 0, most, stops)
    how: Any = dict(samples=samples, sampling=sample, batch=min(batch, len(asked)), seed=seed)
    return rl_problems.sampled(model.params, writer, cfg, checker, asked, **how)


def _chat_template(directory: str, name: str) -> str:
    """Returns the name of the chat template of the prompts; empty for plain texts."""
    if name:
        return "" if name == "none" else name
    return loading.tuned_in(directory)


def wanted() -> harness.Wanted:
    """The tasks that the flags name. Raises UserError for bad flags."""
    if not _TASKS.value:
        raise UserError("--tasks is needed with --evals=lm_eval")
    for flag, least in ((_LIMIT, 0), (_FEWSHOT, -1), (_BATCH, 1), (_TENSOR, 1)):
        if flag.value < least:
            raise UserError(f"--{flag.name} must be at least {least}, not {flag.value}")
    data, own = _DATA_DIR.value, str(harness.TASKS) if _DATA_DIR.value else ""
    directory = _TASKS_DIR.value or own
    for flag, path in (("data_dir", data), ("tasks_dir", directory)):
        if path and not os.path.isdir(path):
            raise UserError(f"--{flag} {path}: directory does not exist")
    place = lambda path: os.path.abspath(path) if path else ""
    names = tuple(name.strip() for name in _TASKS.value)
    return harness.Wanted(
        names, place(directory), place(data or directory), _LIMIT.value, _FEWSHOT.value
    )


def run_of(directory: str) -> tuple[Run, Any]:
    """The run that --run names, and its config with the model and tokenizer of a checkpoint.

    Raises UserError if the workdir has no such run.
    """
    name, workdir = _RUN.value, _WORKDIR.value or workdir_of(directory)
    found = binding.recorded(workdir)
    if found is None:
        raise UserError(f"--run {name}: {workdir} is no workdir of sip.train; give --workdir")
    if name not in found["runs"]:
        known = ", ".join(found["runs"])
        raise UserError(f"--run {name}: {workdir} has no such run; there are {known}")
    config: Any = ConfigDict(found)
    kind, path = loading.tokenizer_of(directory)
    config.tokenizer.update(kind=kind, path=path)
    c = recipe.STAGES[config.runs[name].stage].resolve(config, name)
    return Run(config, name, workdir), replace(c, model=loading.recorded_model(directory))


def solved_as_run(directory: str) -> dict[str, float]:
    """The evaluation on the test problems of --run, as at the end of that run. Raises UserError."""
    for flag in (_PROBLEMS, _FORM, _CHECK, _TEMPLATE, _MAX_TOKENS, _TEMPERATURE):
        if flag.present:
            raise UserError(f"--{flag.name}: is that of --run; leave one of the two out")
    run, c = run_of(directory)
    task = getattr(c, "task", None)
    if not isinstance(task, rl_prompts.Config) or task.problems is None or task.answers is None:
        raise UserError(f"--run {run.name}: is no RL run on problems whose answers are checked")
    return solve(
        directory,
        task.problems,
        task.answers,
        c.sampling,
        data=run.config.data,
        samples=_given(_SAMPLES, task.samples or 1),
        most=c.answer,
        template=task.chat or "none",
        batch=_given(_BATCH, c.evals.batch),
        limit=_given(_LIMIT, task.held_out),
        seed=_given(_SEED, run.seed),
    )


def thought(directory: str) -> dict[str, float]:
    """The probe of thoughts of --run. Raises UserError."""
    if not _RUN.value:
        raise UserError("--run is needed with --evals=thoughts: its places and settings are used")
    if _SPLIT.value not in documents.PARTS[1:]:
        raise UserError(f"--split {_SPLIT.value}: must be validation or test, of thoughts")
    run, c = run_of(directory)
    task = getattr(c, "task", None)
    if not isinstance(task, rl_thinking.Config | sft_thoughts.Config):
        raise UserError(f"--run {run.name}: has no probe; its task must be thoughts or thinking")
    c = replace(c, evals=replace(c.evals, batch=_given(_BATCH, c.evals.batch)))
    where = runs.build_mesh(c)
    probing = rl_thinking.probing if isinstance(task, rl_thinking.Config) else sft_thoughts.probing
    probe = probing(run, c, where)
    found = probe(loading.load_params(directory, where)[0], _SPLIT.value)
    return {f"probe/{name}": x for name, x in found.items()}


def _given(flag, value: int) -> int:
    """Returns a flag's value if the command names the flag, else `value`."""
    return flag.value if flag.present else value


def solved(directory: str) -> dict[str, float]:
    """The evaluation on problems that the flags describe. Raises UserError."""
    if _LIMIT.value < 0 or _BATCH.value < 1:
        raise UserError("--limit must be at least 0, and --batch at least 1")
    if _RUN.value:
        return solved_as_run(directory)
    if not _PROBLEMS.value:
        raise UserError("--evals=problems needs --problems=FILE, or --run=NAME of a workdir")
    with sections.named("--problems"):
        files.listed_any(_PROBLEMS.value)
    return solve(
        directory,
        ProblemsConfig(test=_PROBLEMS.value, form=_FORM.value),
        AnswersConfig(check=_CHECK.value),
        SamplingConfig(_TEMPERATURE.value),
        samples=_SAMPLES.value,
        most=_MAX_TOKENS.value,
        template=_TEMPLATE.value,
        batch=_BATCH.value,
        limit=_LIMIT.value,
        seed=_SEED.value,
    )


def paper() -> dict[str, Any]:
    """The evaluations of the paper that the flags describe. Raises UserError."""
    if not _BASELINE.value:
        raise UserError("--baseline is needed with --evals=paper: win rates are against it")
    for flag in (_LIMIT, _STANDARD, _UNSAFE, _STEPS):
        if flag.value < 0:
            raise UserError(f"--{flag.name} must be at least 0, not {flag.value}")
    if _BATCH.value < 1:
        raise UserError("--batch must be at least 1")
    given = [hub.local(place(one)) for one in (_BASELINE.value, *_CHECKPOINT.value.split(","))]
    places = named(list(dict.fromkeys(given)))
    for directory in places.values():  # fails early
        loading.kept_tokenizer(directory)
        loading.recorded_model(directory)
    own, truth, steps = own_sets(next(iter(places.values())))
    plan = plan_of(own, steps or SUFFIX)
    measure.check(plan)
    where = mesh.build(MeshConfig(1, -1, 1))
    judge = judge_of(plan, truth, where)
    exact = _JUDGED_BY.value != "truth" and not set(sets.OWN) & set(benchmark_files())
    beside = truth if exact else None  # knows the prefixes of its own corpus only
    found, lines = measure.measure(plan, places, judge, beside, where, batch=_BATCH.value)
    if _DETAILS.value:
        text = "".join(f"{to_json(line)}\n" for line in lines)
        workdirs.write_atomically(epath.Path(_DETAILS.value), text.encode())
    by = asdict(judge_config(plan)) if _JUDGED_BY.value not in ("", "truth") else _JUDGED_BY.value
    settings = {
        "judge": by,
        "benchmarks": benchmark_files(),
        "prompts": {one.name: len(one) for one in plan.sets},
        "continuation": dict(plan.steps),
    }
    return {**found, "settings": settings}


def plan_of(own: Sequence[PromptSet], steps: int) -> Plan:
    """Reads the files of the flags into a plan; `own` are the corpus's prefixes. Raises UserError.

    `steps` are the tokens of a continuation if --continuation does not say it.
    """
    files, limit = benchmark_files(), _LIMIT.value
    for flag, known in ((_QUESTIONS, asking.QUESTIONS), (_GRADERS, tuple(graders.GRADERS))):
        for name in flag.value:
            if name not in known:
                raise UserError(f"--{flag.name}: {name!r} is none of {', '.join(known)}")
    every = [one for one in own if one.name not in files]
    chosen: dict[str, list[Question]] = {}
    for name, path in files.items():
        if name in sets.CHOICES:
            chosen |= choices.load(name, path, limit)
        else:
            every += sets.load(name, path, limit)
    tasks = wanted() if _TASKS.value else None
    return Plan(
        every,
        tuple(_QUESTIONS.value) if _JUDGED_BY.value else (),
        chosen,
        tuple(_GRADERS.value),
        _LIKELIHOOD_BY.value,
        harness.load(tasks) if tasks else None,
        tasks,
        {one.name: _STEPS.value or steps for one in every},
        seed=_SEED.value,
    )


def named(directories: Sequence[str]) -> dict[str, str]:
    """Returns the checkpoints by the last part of their paths, or by the path if two share it."""
    last = [os.path.basename(os.path.normpath(path)) for path in directories]
    return {
        path if last.count(name) > 1 else name: path
        for name, path in zip(last, directories, strict=True)
    }


def own_sets(directory: str) -> tuple[list[PromptSet], Any, int]:
    """Returns (held-out prefixes of the baseline's corpus, its ground truth, tokens of a suffix).

    Unsafe prefixes are known with a ground truth only. Nothing for a checkpoint without a corpus.
    """
    corpus = corpus_of(directory, _SPLIT.value, _DATA.value)
    if corpus is None:
        return [], None, 0
    truth, tokenizer = corpus.documents.truth, loading.kept_tokenizer(directory)
    held = ground_truth.held_out(
        corpus.chunks,
        truth,
        tokenizer,
        standard=max(1, _STANDARD.value),
        unsafe=_UNSAFE.value,
    )
    found = [PromptSet("standard", held.standard.prefixes, held.standard.suffixes)]
    found = found if _STANDARD.value else []
    if len(held.unsafe):
        found.append(PromptSet("unsafe", held.unsafe.prefixes, held.unsafe.suffixes))
    return found, truth, corpus.cut.suffix


def benchmark_files() -> dict[str, str]:
    """The files of --benchmark by name. Raises UserError."""
    files: dict[str, str] = {}
    for text in _BENCHMARK.value:
        name, _, path = text.partition("=")
        if name not in sets.FILES or not path:
            known = ", ".join(sets.FILES)
            raise UserError(f"--benchmark {text!r}: must be NAME=FILE, NAME one of {known}")
        if name in files:
            raise UserError(f"--benchmark {name}: is given twice")
        files[name] = place(path)
    return files


def judge_config(plan: Plan) -> JudgeConfig:
    """The judge that the flags describe, other than a ground truth. Raises UserError."""
    if _CONFIG.value is not None:
        return _judge_of_run(plan, _CONFIG.value, _JUDGED_BY.value)
    by, served = _JUDGED_BY.value, _JUDGED_BY.value.startswith(("http://", "https://"))
    return JudgeConfig(
        "http" if served else "local",
        _weights(plan, reasons=served or bool(_JUDGE_CHAT.value)),
        http=RemoteConfig(
            url=by if served else "",
            model=_JUDGE_MODEL.value,
            api=_JUDGE_API.value,
            key_env=_JUDGE_KEY.value,
            cache=_JUDGE_CACHE.value,
            specials=untrusted.SPECIALS,
        ),
        init_from="" if served else hub.local(place(by)),
        votes=_JUDGE_VOTES.value,
        max_tokens=_JUDGE_TOKENS.value,
        chat=_JUDGE_CHAT.value,
    )


def _judge_of_run(plan: Plan, config, name: str) -> JudgeConfig:
    """The judge of a run of --config, asked about the aspects of the plan. Raises UserError."""
    judged = [run for run in config.runs if "judge" in config.runs[run]]
    if name not in judged:
        known = ", ".join(judged) or "none"
        raise UserError(f"--judged_by: no judge in run {name!r} of --config; there are {known}")
    if not _WORKDIR.value:
        raise UserError("--workdir is needed with --config: its judge is read from there")
    values = sections.plain(config.runs[name].judge)
    found = sections.section(JudgeConfig, values, f"runs.{name}.judge")
    if found.backend == "truth":
        raise UserError(f"--judged_by={name}: its judge is the ground truth; use --judged_by=truth")
    weights = _weights(plan, reasons=found.backend == "http" or bool(found.chat))
    return replace(found, weights=weights)


def _weights(plan: Plan, *, reasons: bool) -> tuple[tuple[str, float], ...]:
    """The aspects that the plan asks about, as `judge.weights`; each is scored by itself."""
    prompt = judge_prompts(reasons=reasons)
    asked = dict.fromkeys(prompt[question] for question, _ in plan.asked())
    return tuple((name, 1.0) for name in asked)


def judge_prompts(*, reasons: bool) -> dict[str, str]:
    """The prompt of each question: --judge_aspects, else the built-in one. Raises UserError."""
    found = dict(asking.REASONED if reasons else asking.DIRECT)
    for text in _JUDGE_ASPECTS.value:
        question, _, prompt = text.partition("=")
        if question not in found or not prompt:
            known = ", ".join(found)
            raise UserError(f"--judge_aspects {text!r}: must be QUESTION=PROMPT, of {known}")
        found[question] = prompt
    return found


def judge_of(plan: Plan, truth, where) -> Callable[[], Asker]:
    """Returns a function that builds the judge; checks first what can be checked. Raises UserError.

    A ground truth judges the prefixes of its own corpus only.
    """
    if not plan.asked():
        return lambda: Exact(truth)
    if _JUDGED_BY.value == "truth":
        if truth is None:
            raise UserError("--judged_by=truth: the baseline's corpus has no ground truth")
        for _, one in plan.asked():
            if one.name not in sets.OWN or one.name in benchmark_files():
                raise UserError(f"--judged_by=truth: knows nothing of {one.name}; leave it out")
        return lambda: Exact(truth)
    wanted_judge = judge_config(plan)
    wanted_judge.reach()

    def build() -> Panel:
        lies, own = _WORKDIR.value or "", wanted_judge.http.tokens or None
        tokenizer = own and runs.open_tokenizer(_CONFIG.value, lies)
        judge: Any = judges.build(wanted_judge, lies, None, where, tokenizer, _SEED.value)
        reasons = wanted_judge.backend == "http" or bool(wanted_judge.chat)
        stems = {q: pathlib.Path(p).stem for q, p in judge_prompts(reasons=reasons).items()}
        by_name = {aspect.name: aspect for aspect in judge.aspects}
        return Panel(judge, {q: by_name[stems[q]] for q in dict(plan.asked())})

    return build


def inputs() -> Iterator[str]:
    """Yields the files that the flags name to be read."""
    with contextlib.suppress(UserError):  # its reader says what is wrong
        yield from files.listed_any(_PROBLEMS.value) if _PROBLEMS.value else ()
    yield from benchmark_files().values()
    yield from (place(text.partition("=")[2]) for text in _JUDGE_ASPECTS.value)
    yield from (_TEMPLATE.value, _JUDGE_CHAT.value, cli.config_file())


def check_outputs() -> None:
    """Raises UserError if a file cannot be written, or is an input."""
    workdirs.never_an_input({"out": _OUT.value or "", "details": _DETAILS.value}, inputs())
    if _DETAILS.value and not _DETAILS.value.endswith(".jsonl"):
        raise UserError(f"--details {_DETAILS.value}: must end in .jsonl")
    if _OUT.value:
        harness.check_out(_OUT.value)


def main(argv) -> None:
    """The command line."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}")
    if not _CHECKPOINT.value:
        raise UserError("--checkpoint is needed")
    check_outputs()
    many = _EVALS.value == "paper"  # --checkpoint names several
    directory, baseline = ("", "") if many else map(hub.local, (_CHECKPOINT.value, _BASELINE.value))
    if _EVALS.value in ("problems", "thoughts"):
        found = solved(directory) if _EVALS.value == "problems" else thought(directory)
        print(to_json(found, indent=1))
    elif _EVALS.value == "lm_eval":
        found = standard(directory, wanted(), batch=_BATCH.value, tensor=_TENSOR.value)
        print(harness.table(found))
    elif _EVALS.value == "paper":
        found = paper()
        if _JSON.value:
            print(to_json(found, indent=1))
        else:
            table.terminal(found)
    else:
        found = evaluate(
            directory,
            baseline=baseline,
            split=_SPLIT.value,
            standard=_STANDARD.value,
            unsafe=_UNSAFE.value,
            batch=_BATCH.value,
            data_workdir=_DATA.value,
            control=_CONTROL.value,
        )
        print(to_json(found, indent=1))
    if _OUT.value and many and _OUT.value.endswith(".md"):
        workdirs.write_atomically(epath.Path(_OUT.value), table.markdown(found).encode())
    elif _OUT.value:
        workdirs.write_json(_OUT.value, found)


if __name__ == "__main__":
    cli.run(main)
