"""Evaluates a checkpoint: `python -m sip.evaluate --checkpoint=RUN_DIR --baseline=RUN_DIR`.

Evaluates on the corpus that the run was trained on, or on another one with --data_workdir. Measures
the negative log-likelihood of held-out suffixes and, if the corpus has a ground truth, the quality,
safety and factuality of greedy continuations. Prints JSON.

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
or with --template= plain texts.
"""

import os
from dataclasses import asdict
from typing import Any

from sip import cli  # first, as it tells of a variable that JAX cannot use

# isort: split
import jax
from absl import flags

from sip import loading, mesh
from sip import workdir as workdirs
from sip.data import corpus as corpora
from sip.data import documents, problems, prompts
from sip.data.problems import ProblemsConfig
from sip.evals import continuations, ground_truth, harness
from sip.hf import hub
from sip.mesh import MeshConfig
from sip.rewards import answers
from sip.rewards.answers import AnswersConfig
from sip.sampling import SamplingConfig
from sip.structs import UserError
from sip.tasks.rl import problems as rl_problems
from sip.tasks.rl.task import AnswerWriter
from sip.text import chat
from sip.textgen import dialogue
from sip.training import checkpoints
from sip.workdir import to_json, workdir_of

_EVALS = flags.DEFINE_enum(
    "evals", "ground_truth", ["ground_truth", "lm_eval", "problems"], "Kind of evaluation."
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
_OUT = cli.shared(cli.path_flag, "out", None, "File to write the results to, as JSON.")
_TASKS = flags.DEFINE_list("tasks", [], "lm_eval: comma-separated names or patterns of tasks.")
_TASKS_DIR = cli.path_flag("tasks_dir", "", "lm_eval: directory of task files (*.yaml).")
_DATA_DIR = cli.path_flag("data_dir", "", "lm_eval: directory of the task files' data.")
_LIMIT = flags.DEFINE_integer("limit", 0, "Documents of each task of lm_eval, or problems; 0: all.")
_FEWSHOT = flags.DEFINE_integer(
    "num_fewshot", -1, "lm_eval: examples before each question; -1: the task's own number."
)
_TENSOR = cli.tensor_flag()
_PROBLEMS = cli.path_flag("problems", "", "problems: JSON Lines file of problems with answers.")
_SAMPLES = cli.count_flag("samples", 1, "problems: answers to each problem.")
_FORM = flags.DEFINE_string(
    "form", problems.BOXED, "problems: boxed, or a marker before the answer, such as Answer:"
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

    `nll` is in nats per suffix token. Raises UserError if the checkpoint names no corpus.
    """
    if min(standard, unsafe, batch) < 1:
        raise UserError("--standard, --unsafe and --batch must be at least 1")
    record = checkpoints.record(directory)
    if "data" not in record:
        raise UserError(
            f"--checkpoint {directory}: an imported checkpoint has no corpus; use --evals=lm_eval"
        )
    workdir = data_workdir or workdir_of(directory)
    data = corpora.data_config(record["data"], split)
    if data_workdir or any(one.source in documents.BUILT for one in documents.sources(data)):
        workdirs.existing(workdir, "--data_workdir")
    tokenizer, where = loading.kept_tokenizer(directory), mesh.single()
    corpus = corpora.load(record["data"], split, workdir, tokenizer)
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
    samples: int,
    most: int,
    template: str,
    batch: int,
    limit: int,
    seed: int,
) -> dict[str, float]:
    """Samples answers of up to `most` tokens to the problems of `cfg.test`, and checks them.

    `limit`: number of problems; 0: all. Returns mean@n, maj@n, pass@k and shares of verdicts.
    Raises UserError for a file without problems.
    """
    checker = answers.checker(checks)
    tokenizer, where = loading.kept_tokenizer(directory), mesh.build(MeshConfig(1, -1, 1))
    encode, stops = prompts.encoding(_chat_template(directory, template), tokenizer)
    room = loading.recorded_model(directory).max_len - most
    parts, left_out = rl_problems.prompts_of(cfg, {}, encode, room)
    if left_out:
        corpora.say(f"{cfg.test}: left out: {documents.listed(left_out)}")
    asked = parts["test"][: limit or None]
    if not asked:
        raise UserError(f"--problems {cfg.test}: no problem fits {room} tokens beside --max_tokens")
    model = loading.load_model(directory, where)
    writer = AnswerWriter(model.cfg, where, tokenizer, 0, most, stops)
    how: Any = dict(samples=samples, sampling=sample, batch=min(batch, len(asked)), seed=seed)
    return rl_problems.sampled(model.params, writer, cfg, checker, asked, **how)


def _chat_template(directory: str, name: str) -> str:
    """Returns the name of the chat template of the prompts; empty for plain texts."""
    if name:
        return "" if name == "none" else name
    if tuned := dialogue.tuned_in(directory):
        return tuned
    try:
        chat.of_tokenizer(loading.tokenizer_of(directory)[1])
    except UserError:
        return ""
    return chat.OWN


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


def solved(directory: str) -> dict[str, float]:
    """The evaluation on problems that the flags describe. Raises UserError."""
    if not _PROBLEMS.value:
        raise UserError("--problems is needed with --evals=problems")
    if not os.path.isfile(_PROBLEMS.value):
        raise UserError(f"--problems {_PROBLEMS.value!r}: there is no such file")
    if _LIMIT.value < 0 or _BATCH.value < 1:
        raise UserError("--limit must be at least 0, and --batch at least 1")
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


def main(argv) -> None:
    """The command line."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}")
    if not _CHECKPOINT.value:
        raise UserError("--checkpoint is needed")
    if _OUT.value:
        harness.check_out(_OUT.value)
    directory, baseline = hub.local(_CHECKPOINT.value), hub.local(_BASELINE.value)
    if _EVALS.value == "problems":
        found = solved(directory)
        print(to_json(found, indent=1))
    elif _EVALS.value == "lm_eval":
        found = standard(directory, wanted(), batch=_BATCH.value, tensor=_TENSOR.value)
        print(harness.table(found))
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
    if _OUT.value:
        workdirs.write_json(_OUT.value, found)


if __name__ == "__main__":
    cli.run(main)
