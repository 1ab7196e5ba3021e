"""Builds a corpus if it does not exist yet, and describes it.

python -m sip.data --source=microworld --split=train --data_dir=/tmp/sip-data
python -m sip.data --source=txt --path=book.txt [--tokenizer=book.model]
python -m sip.data --source=jsonl --path=a.jsonl --questions=asked.jsonl    # for sip.judge
python -m sip.data --source=jsonl --path=a.jsonl --scores=judged.jsonl --out=unsafe.jsonl

The last two commands screen a corpus. The first writes one judge request per document. Then
`python -m sip.judge < asked.jsonl > judged.jsonl` scores them. The second writes the documents of
--split with a score of --aspect below --below to --out.
"""

import argparse
import ast
import math
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from sip import cli
from sip.data import documents, screening
from sip.structs import UserError
from sip.text.lines import opened, read_lines
from sip.text.tokenizer import SentencePiece
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
    parser.add_argument("--source", required=True, choices=list(documents.LOADERS))
    parser.add_argument(
        "--path",
        type=place,
        default="",
        help="Path of a .txt or .jsonl file, or name:field of TFDS.",
    )
    parser.add_argument(
        "--split", default="train", help="Part of the corpus and a slice of it: train[:70%%]."
    )
    parser.add_argument(
        "--data_dir", type=place, default="data", help="Directory where data sets are built."
    )
    parser.add_argument(
        "--world", default="", help="Parameters of the micro-world: entities=48,train=1000."
    )
    parser.add_argument(
        "--tokenizer",
        type=place,
        default="",
        help="Path of a SentencePiece model; counts tokens, not words.",
    )
    parser.add_argument(
        "--questions",
        type=place,
        default="",
        help="Output .jsonl file: one judge request per document.",
    )
    parser.add_argument(
        "--characters", type=int, default=2000, help="Characters of a document that are judged."
    )
    parser.add_argument(
        "--scores", type=place, default="", help="Output of sip.judge for --questions. Needs --out."
    )
    parser.add_argument("--aspect", default="safety", help="Aspect of --scores to screen by.")
    parser.add_argument(
        "--below", type=float, default=0.5, help="Keeps documents with a score below this."
    )
    parser.add_argument(
        "--out",
        type=place,
        default="",
        help="Output .jsonl file: the documents kept. Needs --scores.",
    )
    flags = parser.parse_args(argv)
    if bool(flags.scores) != bool(flags.out):
        parser.error("--scores and --out: set both or neither")
    if flags.characters < 1:
        parser.error(f"--characters={flags.characters}: must be at least 1")
    if not math.isfinite(flags.below):
        parser.error(f"--below={flags.below}: must be a number")
    for name in ("questions", "out"):
        path = getattr(flags, name)
        if any(path and same(path, other) for other in (flags.path, flags.scores, flags.tokenizer)):
            parser.error(f"--{name} {path}: is also an input, which is never overwritten")
    if flags.out and same(flags.out, flags.questions):
        parser.error(f"--out and --questions are both {flags.out}")
    return flags


def same(a: str, b: str) -> bool:
    """Returns True if two paths are one file, also through links."""
    return bool(b) and os.path.realpath(a) == os.path.realpath(b)


def world(text: str) -> dict:
    """Parses "a=1,b=0.5" into {"a": 1, "b": 0.5}. Raises UserError if it cannot."""
    try:
        pairs = [item.split("=") for item in text.split(",") if item]
        return {name: ast.literal_eval(value) for name, value in pairs}
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise UserError(f"--world={text!r:.100}: must be like name=number,name=number") from error


def describe(docs: documents.Documents, tokenizer: SentencePiece | None) -> str:
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
    for i, text in enumerate(docs.texts[:EXAMPLES]):
        rows.append((f"example {i}", " ".join(text[:SHOWN].split())))
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
    cfg = documents.DataConfig(
        source=flags.source, path=flags.path, split=flags.split, world=world(flags.world)
    )
    tokenizer = SentencePiece(flags.tokenizer) if flags.tokenizer else None
    docs = documents.load(cfg, flags.data_dir)
    screen(flags, docs.texts)
    print(describe(docs, tokenizer))


if __name__ == "__main__":
    cli.prepare()
    sys.exit(main())
