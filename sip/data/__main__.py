"""Builds a corpus if it does not exist yet, and describes it.

python -m sip.data --source=microworld --split=train --data_dir=/tmp/sip-data
python -m sip.data --source=txt --path=book.txt [--tokenizer=book.model]
python -m sip.data --source=jsonl --path=a.jsonl --questions=asked.jsonl    # for sip.judge
python -m sip.data --source=jsonl --path=a.jsonl --scores=judged.jsonl --out=unsafe.jsonl
python -m sip.data --source=parquet --path=web/ --field=body --against=gsm8k.jsonl,math.jsonl
python -m sip.data --config=configs/text.py --config.data.path=book.txt --show=5

--config describes what a config's run learns from: documents, conversations or preference pairs.
--show prints its first examples as the model will see them. --against reports how many documents
overlap with evaluation sets.

--questions and --scores screen a corpus. The first command writes one judge request per document.
Then `python -m sip.judge < asked.jsonl > judged.jsonl` scores them. The second command writes the
documents of --split with a score of --aspect below --below to --out.
"""

import argparse
import ast
import contextlib
import dataclasses
import itertools
import math
import os
import sys
from collections.abc import Iterator, Sequence
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import numpy as np

from sip import cli
from sip import mesh as meshes
from sip import workdir as workdirs
from sip.data import contamination, control, documents, files, packing, pipeline, screening, show
from sip.data import corpus as corpora
from sip.data.contamination import ContaminationConfig
from sip.data.packing import Rows
from sip.data.records import BLANK_LINE
from sip.run import Run
from sip.stages import recipe, selfimprove
from sip.structs import Tree, UserError
from sip.tasks import pairs
from sip.tasks.pairs import PairTaskConfig
from sip.tasks.supervised import conversations, reward_model
from sip.tasks.supervised import documents as supervision
from sip.text.lines import opened, read_lines
from sip.text.tokenizer import SentencePiece, Tokenizer
from sip.training.losses import PairBatch, RankBatch
from sip.workdir import place, write_atomically

EXAMPLES, SHOWN = 3, 300  # number of example documents shown, and characters of each


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports errors in one line."""

    def error(self, message: str) -> NoReturn:
        """Prints "error: MESSAGE" to stderr and exits with status 2."""
        self.exit(2, f"error: {message}\n")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line; exits with status 2 on an error."""
    parser = Parser(prog="python -m sip.data", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    known = [name for name in documents.LOADERS if name != "mixture"]
    parser.add_argument("--source", choices=known, help="Format of --path, or a kind of data set.")
    parser.add_argument(
        "--path",
        type=_place,
        default="",
        help="File, folder, glob, several with commas, or the name of a data set.",
    )
    parser.add_argument("--field", default="text", help="Field of the text.")
    parser.add_argument(
        "--separator",
        default=BLANK_LINE,
        help="Where documents of a .txt file end: 'blank line', 'whole file', or a string.",
    )
    parser.add_argument(
        "--parts",
        choices=("own", "hash"),
        default="own",
        help="Splits of a data set: its own, or by a hash of the texts of its split train.",
    )
    parser.add_argument(
        "--split",
        default="",
        help="Part of the corpus and a slice of it: train[:70%%]. Default: train, or the run's.",
    )
    parser.add_argument(
        "--against", default="", help="Evaluation sets to find in the documents: paths with commas."
    )
    parser.add_argument("--ngram", type=int, default=13, help="Words in a row that are an overlap.")
    parser.add_argument("--config", default="", help="Config file, instead of --source.")
    parser.add_argument("--run", default="", help="Run of --config. Default: the first.")
    parser.add_argument(
        "--show", type=int, default=0, help="Number of the run's examples to print."
    )
    parser.add_argument(
        "--workdir",
        type=_place,
        default="",
        help="With --config: workdir whose tokenizer and data sets are used. Default: new ones.",
    )
    parser.add_argument(
        "--data_dir", type=_place, default="data", help="Directory where data sets are built."
    )
    parser.add_argument(
        "--world", default="", help="Parameters of the micro-world: entities=48,train=1000."
    )
    parser.add_argument(
        "--tokenizer",
        type=_place,
        default="",
        help="Path of a SentencePiece model; counts tokens, not words.",
    )
    parser.add_argument(
        "--questions",
        type=_place,
        default="",
        help="Output .jsonl file: one judge request per document.",
    )
    parser.add_argument(
        "--characters", type=int, default=2000, help="Characters of a document that are judged."
    )
    parser.add_argument(
        "--scores",
        type=_place,
        default="",
        help="Output of sip.judge for --questions. Needs --out.",
    )
    parser.add_argument("--aspect", default="safety", help="Aspect of --scores to screen by.")
    parser.add_argument(
        "--below", type=float, default=0.5, help="Keeps documents with a score below this."
    )
    parser.add_argument(
        "--out",
        type=_place,
        default="",
        help="Output .jsonl file: the documents kept. Needs --scores.",
    )
    flags, flags.overrides = parser.parse_known_args(argv)
    if wrong := [arg for arg in flags.overrides if not arg.startswith("--config.")]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if bool(flags.source) == bool(flags.config):
        parser.error("give either --source or --config")
    if flags.overrides and not flags.config:
        parser.error(f"{flags.overrides[0]}: needs --config")
    check_numbers(parser, flags)
    check_outputs(parser, flags)
    return flags


def check_numbers(parser: Parser, flags: argparse.Namespace) -> None:
    """Exits with status 2 if a number is out of range, or given without the flag it belongs to."""
    if flags.show < 0 or (flags.show or flags.run or flags.workdir) and not flags.config:
        parser.error("--show, --run and --workdir: need --config; --show is a number from 0")
    if flags.characters < 1:
        parser.error(f"--characters={flags.characters}: must be at least 1")
    if not math.isfinite(flags.below):
        parser.error(f"--below={flags.below}: must be a number")


def check_outputs(parser: Parser, flags: argparse.Namespace) -> None:
    """Exits with status 2 if an output has no use."""
    if bool(flags.scores) != bool(flags.out):
        parser.error("--scores and --out: set both or neither")
    if flags.config and (flags.questions or flags.out):
        parser.error("--questions and --out: need --source, not --config")


def _place(path: str) -> str:
    try:
        return place(path)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def world(text: str) -> dict:
    """Parses "a=1,b=0.5" into {"a": 1, "b": 0.5}. Raises UserError if it cannot."""
    try:
        pairs = [item.split("=") for item in text.split(",") if item]
        return {name: ast.literal_eval(value) for name, value in pairs}
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise UserError(f"--world={text!r:.100}: must be like name=number,name=number") from error


def describe(
    docs: documents.Documents, tokenizer: Tokenizer | None, examples: int = EXAMPLES
) -> str:
    """Returns a small table: number of documents, kinds, lengths and the first few documents."""
    count = tokenizer.encode if tokenizer else str.split
    lengths = [len(count(text)) for text in docs.texts]
    rows = [("documents", f"{len(docs.texts):,}"), ("skipped", f"{docs.skipped:,}")]
    rows += [("", f"{count:,} {reason}") for reason, count in docs.left_out.items()]
    if docs.kinds is not None:
        for kind, number in zip(*np.unique(docs.kinds, return_counts=True), strict=True):
            rows.append((f"  {kind}", f"{number:,} ({number / len(docs.kinds):.1%})"))
    unit = "tokens" if tokenizer else "words"
    rows.append((f"{unit} each", f"{np.mean(lengths):.1f} ({min(lengths)} to {max(lengths)})"))
    rows += [("copies", f"{docs.duplicates:,} in all splits")] if docs.duplicates else []
    rows += [("overlap", str(overlap)) for overlap in docs.overlaps]
    for i, text in enumerate(docs.texts[:examples]):
        rows.append((f"example {i}", show.escaped(" ".join(text[:SHOWN].split()))))
    return "\n".join(f"{name:<16}{value}" for name, value in rows)


def screen(flags: argparse.Namespace, texts: Sequence[str]) -> None:
    """Writes judge requests (--questions) and the documents of low score (--scores, --out)."""
    try:
        if flags.questions:
            write(flags.questions, [screening.question(t, flags.characters) for t in texts])
        if flags.scores:
            lines = read_lines(opened(flags.scores, "scores"), flags.scores)
            lows = list(screening.low(lines, flags.aspect, flags.below))
            write(flags.out, screening.keep(texts, lows))
    except OSError as error:
        raise UserError(
            f"{error.filename or flags.questions or flags.out}: {error.strerror}"
        ) from error


def write(path: str, lines: Sequence[str]) -> None:
    """Writes lines to a file, UTF-8, whole or not at all, and prints their number."""
    try:
        write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
    print(f"{len(lines):,} lines written to {path}")


def main(argv: list[str] | None = None) -> int:
    """Runs the command. Returns the exit status: 2 for a user error, else 0."""
    return cli.code(run, parse(argv))


def run(flags: argparse.Namespace) -> None:
    """Builds the corpus, screens it and describes it. Raises UserError."""
    if flags.config:
        with contextlib.ExitStack() as stack:
            describe_run(flags, flags.workdir or stack.enter_context(TemporaryDirectory()))
        return
    sets = tuple((os.path.basename(p) or p, p) for p in flags.against.split(",") if p)
    cfg = documents.DataConfig(
        source=flags.source,
        path=flags.path,
        split=flags.split or "train",
        world=world(flags.world),
        field=flags.field,
        separator=flags.separator,
        parts=flags.parts,
        contamination=ContaminationConfig(against=sets, ngram=flags.ngram),
    )
    read = [flags.scores, flags.tokenizer]
    read += files.listed(cfg.path, cfg.source) if cfg.source in documents.FILES else []
    read += [file for _, path in sets for file in contamination.paths(path)]
    workdirs.never_an_input({"questions": flags.questions, "out": flags.out}, read)
    tokenizer = SentencePiece(flags.tokenizer) if flags.tokenizer else None
    docs = documents.load(cfg, flags.data_dir)
    for line in documents.ignored(cfg):
        corpora.say(line)
    screen(flags, docs.texts)
    print(describe(docs, tokenizer))


def describe_run(flags: argparse.Namespace, workdir: str) -> None:
    """Describes what a run of a config learns from, and shows its first examples. Raises
    UserError."""
    config = cli.read_config(flags.config, flags.overrides)
    if flags.workdir:
        workdirs.existing(workdir)
    name = flags.run or config.order[0]
    if name not in config.runs:
        raise UserError(f"--run={name}: there are {', '.join(sorted(config.runs))}")
    made = Run(config, name, workdir)
    c = recipe.STAGES[config.runs[name].stage].resolve(config, name)
    split = flags.split or c.split
    corpus, number = reads_corpus(c), flags.show
    if corpus:
        recipe.check_files(config)
        task = None if isinstance(c, selfimprove.SelfImproveConfig) else c.task
        packed = isinstance(task, supervision.Config) and task.packed
        found = made.corpus(split, any_length=packed)
        print(describe(found.documents, made.tokenizer, 0 if flags.show else EXAMPLES))
        print(corpora.summary(found, split, c.steps * c.batch))
    else:
        number = number or EXAMPLES
    for title, rows in itertools.islice(examples(made, c, split), number) if number else ():
        print(f"\n{show.example(title, rows)}")


def reads_corpus(c: Any) -> bool:
    """Returns False if a run `c` learns from a file of its own, not from the section `data`."""
    if isinstance(c, selfimprove.SelfImproveConfig):
        return True
    file_of_pairs = isinstance(c.task, PairTaskConfig) and c.task.pairs is not None
    return not (file_of_pairs or isinstance(c.task, conversations.Config))


Examples = Iterator[tuple[str, list[show.Span]]]


def examples(run: Run, c: Any, split: str) -> Examples:
    """Yields (title, spans) of the examples that a run trains on, in their order.

    Raises UserError for a run that learns from neither documents, conversations nor pairs.
    """
    if isinstance(c, selfimprove.SelfImproveConfig):
        return continued(run, c, split)
    if isinstance(c.task, supervision.Config):
        if not c.task.packed:
            return chunked(run, c, split)
        return packed(run, c, supervision.packed(run, split, c.task.width(c.model.max_len)))
    if isinstance(c.task, conversations.Config):
        c.task.reach()
        found = conversations.splits(run, dataclasses.replace(c, split=split))
        return packed(run, c, found[split])
    if isinstance(c.task, PairTaskConfig):
        c.task.reach()
        return compared(run, dataclasses.replace(c, split=split))
    raise UserError(
        f"--run={run.name}: task {c.task.name} has no examples to show; name a run that learns "
        "from documents, conversations or pairs"
    )


def chunked(run: Run, c: Any, split: str) -> Examples:
    """Yields the examples of a run on chunks, filtered and with control tokens as it sees them."""
    rows_of = supervision.batches(run, c, split, meshes.single())
    for step in range(c.steps):
        rows = rows_of(step)
        yield from _chunks(run, rows, supervision.counted(rows, c.task.tokens), step, "")


def continued(run: Run, c: selfimprove.SelfImproveConfig, split: str) -> Examples:
    """Yields the examples of a self-improving run. It learns from its judge's choice; the suffix
    stands for it."""
    batches = pipeline.Batches(run.corpus(split).chunks, batch=c.batch, seed=run.seed)
    token = control.token(run.tokenizer, c.control, "control") if c.control else control.NONE
    token_B = np.where(np.arange(c.batch) < c.batch - c.documents, token, control.NONE)
    for step in range(c.steps):
        rows = control.insert(batches[step], token_B, run.tokenizer.pad)
        learned_BT, asked = supervision.counted(rows, "suffix"), c.batch - c.documents
        shown = list(_chunks(run, rows, learned_BT, step, ", the suffix is one candidate"))
        yield from shown[:asked]
        yield from list(_chunks(run, rows, learned_BT, step, ", as in the document"))[asked:]


def _chunks(run: Run, rows: pipeline.Batch, learned_BT, step: int, note: str) -> Examples:
    """Yields the rows of a batch of chunks."""
    for b, (ids_T, mask_T) in enumerate(zip(rows["tokens_BT"], rows["mask_BT"], strict=True)):
        ids, learned = ids_T[mask_T].tolist(), learned_BT[b][mask_T]
        learned[0] = False  # nothing predicts the first token
        fork, doc = int(rows["fork_B"][b]), int(rows["doc_B"][b])
        title = (
            f"step {step}, row {b}: document {doc}, {fork} + {len(ids) - fork} tokens, "
            f"{learned.sum()} learned{note}"
        )
        parts = [("prefix", fork), ("suffix", len(ids))]
        yield title, show.spans(run.tokenizer, ids, learned.tolist(), parts)


def packed(run: Run, c: Any, rows: Rows) -> Examples:
    """Yields the texts in the rows of packed documents or conversations, each by itself, as
    attention stays within a text."""
    print(f"{run.name}: {packing.described(rows, c.steps * c.batch)}")
    for step in range(c.steps):
        tree, learned_BT = rows.batch(step, c.batch, seed=run.seed)
        segment_BT = tree.mask_BT.astype(int) if tree.segment_BT is None else tree.segment_BT
        for b, segment_T in enumerate(np.asarray(segment_BT)):
            for nth in range(1, segment_T.max() + 1):
                live_T = segment_T == nth
                ids, learned = tree.tokens_BT[b][live_T].tolist(), learned_BT[b][live_T]
                learned[0] = False  # nothing predicts the first token
                title = f"step {step}, row {b}, text {nth} of {segment_T.max()}: {len(ids)} tokens"
                title += f", {learned.sum()} learned"
                yield title, show.spans(run.tokenizer, ids, learned.tolist())


def compared(run: Run, c: Any) -> Examples:
    """Yields pairs: the prompt, then the chosen and the rejected answer, which both follow it.

    A loss on preferences counts all tokens of both answers, the chosen one up and the rejected one
    down. A reward model reads its reward at their last token.
    """
    last, mesh = isinstance(c.task, reward_model.Config), meshes.single()
    found = pairs.together(run, c, mesh) if last else pairs.made(run, c, mesh, end=False)
    epochs = c.steps * c.batch / len(found.parts["learned"])
    print(f"{run.name}: {found.count('learned'):,} pairs to learn from; {epochs:.3g} epochs")
    for step in range(c.steps):
        batch = found.batch(step, c.batch, seed=run.seed)
        for b in range(c.batch):
            given = list(_pairs_of(batch, b))
            for nth, (chosen, rejected, weight) in enumerate(given, 1):
                sizes, rows = _pair(run, batch.tree, b, (chosen, rejected), last)
                place = f"step {step}, row {b}"
                place += f", pair {nth} of {len(given)}" if len(given) > 1 else ""
                margin = f", margin {weight:g}" if weight else ""
                yield f"{place}: {sizes} tokens{margin}", rows


def _pairs_of(batch: PairBatch | RankBatch, b: int) -> Iterator[tuple[int, int, float]]:
    """Yields (index of the chosen branch, of the rejected one, margin) of the pairs of a row."""
    if isinstance(batch, PairBatch):
        yield 0, 1, float(batch.margin_B[b])
        return
    for p in np.flatnonzero(batch.valid_BP[b]):
        yield *batch.pair_BP2[b, p].tolist(), float(batch.margin_BP[b, p])


def _pair(run: Run, tree: Tree, b: int, branches: tuple[int, int], last: bool):
    """Returns (numbers of tokens, spans) of a pair in row b; `last`: only last tokens count."""
    prompt = tree.tokens_BT[b][tree.mask_BT[b]].tolist()
    given = [False] * len(prompt)
    rows = show.spans(run.tokenizer, prompt, given, [("prompt", len(prompt))])
    sizes = [f"prompt {len(prompt)}"]
    for k, name in zip(branches, ("chosen", "rejected"), strict=True):
        ids = tree.tokens_BCR[b, k][tree.mask_BCR[b, k]].tolist()
        counts = [*given, *[not last] * (len(ids) - 1), True]
        ends = [("prompt", len(prompt)), (name, len(prompt) + len(ids))]
        both = show.spans(run.tokenizer, [*prompt, *ids], counts, ends)
        rows += [span for span in both if span.part == name]
        sizes.append(f"{name} {len(ids)}")
    return ", ".join(sizes), rows


if __name__ == "__main__":
    cli.prepare()
    sys.exit(main())
