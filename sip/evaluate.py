"""Evaluates a checkpoint: `python -m sip.evaluate --checkpoint=RUN_DIR --baseline=RUN_DIR`.

On the corpus the run was trained on (or another one with --data_workdir): likelihood of held-out
suffixes, and where it has a ground truth, what is true of greedy continuations. Prints JSON.
"""

import json

import jax
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from sip import cli, mesh, setup
from sip.evals import continuations, ground_truth
from sip.structs import UserError
from sip.training import checkpoints

_CHECKPOINT = cli.checkpoint_flag()
_BASELINE = flags.DEFINE_string("baseline", "", "Directory of a run; win rates are against it.")
_SPLIT = cli.shared(flags.DEFINE_string, "split", "validation", "Documents to evaluate on.")
_STANDARD = flags.DEFINE_integer("standard", 256, "Prefixes as they come.")
_UNSAFE = flags.DEFINE_integer("unsafe", 128, "Prefixes that are unsafe themselves.")
_BATCH = flags.DEFINE_integer("batch", 64, "Prefixes at a time.")
_DATA = flags.DEFINE_string(
    "data_workdir", "", "Where the corpus lies; default: the run's workdir."
)


def evaluate(
    directory: str,
    *,
    baseline: str,
    split: str,
    standard: int,
    unsafe: int,
    batch: int,
    data_workdir: str,
) -> dict[str, float]:
    """The figures of one run's last checkpoint."""
    if min(standard, unsafe, batch) < 1:
        raise UserError("--standard, --unsafe and --batch must be at least 1")
    record = checkpoints.record(directory)
    if "data" not in record:
        raise UserError(f"--checkpoint {directory}: an imported checkpoint names no corpus")
    workdir = data_workdir or str(epath.Path(directory).absolute().parent.parent)
    tokenizer, where = setup.kept_tokenizer(directory), mesh.single()
    corpus = setup.corpus(ConfigDict({"data": record["data"]}), split, workdir, tokenizer)
    model = lambda path: setup.load_params(path, where)
    params, cfg = model(directory)
    truth = corpus.documents.truth
    if truth is None and baseline:
        raise UserError("--baseline: this corpus has no ground truth to compare by")
    held = ground_truth.held_out(corpus.chunks, truth, tokenizer, standard=standard, unsafe=unsafe)
    with jax.set_mesh(where):
        found = {"nll": continuations.suffix_nll(params, cfg, where, held.standard, batch=batch)}
        if truth is None:
            return found
        write = lambda params, cfg: ground_truth.write(
            params, cfg, where, tokenizer, held, steps=corpus.cut.suffix, batch=batch
        )
        texts = write(params, cfg)
        other = write(*model(baseline)) if baseline else texts
        found |= ground_truth.likelihood(params, cfg, where, held, truth, batch=batch)
    return {**found, **ground_truth.row(truth, held, texts, other)}


def main(argv) -> None:
    """The command line."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}")
    if _CHECKPOINT.value is None:
        raise UserError("--checkpoint is needed")
    found = evaluate(
        _CHECKPOINT.value,
        baseline=_BASELINE.value,
        split=_SPLIT.value,
        standard=_STANDARD.value,
        unsafe=_UNSAFE.value,
        batch=_BATCH.value,
        data_workdir=_DATA.value,
    )
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    cli.run(main)
