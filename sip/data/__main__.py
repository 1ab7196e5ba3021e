"""Build a corpus where that is needed, and describe it.

python -m sip.data --source=microworld --split=train --data_dir=/tmp/sip-data
python -m sip.data --source=txt --path=book.txt [--tokenizer=book.model]
python -m sip.data --source=jsonl --path=a.jsonl --questions=asked.jsonl    # for sip.judge
python -m sip.data --source=jsonl --path=a.jsonl --scores=judged.jsonl --out=unsafe.jsonl

The last two, with `python -m sip.judge < asked.jsonl > judged.jsonl` between them, keep the
documents of --split whose --aspect has a score below --below.
"""

import argparse
import ast
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from sip.data import documents, screening
from sip.structs import UserError
from sip.text.tokenizer import SentencePiece

EXAMPLES, SHOWN = 3, 300  # documents, and characters of each


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m sip.data", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--source", required=True, choices=list(documents.LOADERS))
    parser.add_argument("--path", default="", help="file, or name:field of a TFDS data set")
    parser.add_argument("--split", default="train", help="such as train[:70%%]")
    parser.add_argument("--data_dir", default="data", help="where data sets are built")
    parser.add_argument("--world", default="", help="of the micro-world: entities=48,train=1000")
    parser.add_argument("--tokenizer", default="", help="SentencePiece model, to count tokens")
    parser.add_argument("--questions", default="", help="file to write: a line per document")
    parser.add_argument("--characters", type=int, default=2000, help="of a document, to be judged")
    parser.add_argument("--scores", default="", help="file with what the judge said of each")
    parser.add_argument("--aspect", default="safety", help="of --scores")
    parser.add_argument("--below", type=float, default=0.5, help="scores of what is kept")
    parser.add_argument("--out", default="", help="file to write: what is kept, as .jsonl")
    flags = parser.parse_args(argv)
    if bool(flags.scores) != bool(flags.out):
        parser.error("--scores and --out: both or none are wanted")
    return flags


def world(text: str) -> dict:
    """ "a=1,b=0.5" -> {"a": 1, "b": 0.5}"""
    try:
        pairs = [item.split("=") for item in text.split(",") if item]
        return {name: ast.literal_eval(value) for name, value in pairs}
    except (ValueError, SyntaxError) as error:
        raise UserError(f"--world={text}: wanted name=number,name=number") from error


def describe(docs: documents.Documents, tokenizer: SentencePiece | None) -> str:
    """A small table: how many documents, of which kinds, how long; and the first few."""
    count = tokenizer.encode if tokenizer else str.split
    lengths = [len(count(text)) for text in docs.texts]
    rows = [("documents", f"{len(docs.texts):,}"), ("skipped", f"{docs.skipped:,}")]
    if docs.kinds is not None:
        for kind, number in zip(*np.unique(docs.kinds, return_counts=True), strict=True):
            rows.append((f"  {kind}", f"{number:,} ({number / len(docs.kinds):.1%})"))
    unit = "tokens" if tokenizer else "words"
    rows.append((f"{unit} each", f"{np.mean(lengths):.1f} ({min(lengths)} to {max(lengths)})"))
    for i, text in enumerate(docs.texts[:EXAMPLES]):
        rows.append((f"example {i}", " ".join(text[:SHOWN].split())))
    return "\n".join(f"{name:<16}{value}" for name, value in rows)


def screen(flags: argparse.Namespace, texts: Sequence[str]) -> None:
    """Writes the questions about documents, or the documents of low score, where that is asked."""
    try:
        if flags.questions:
            write(flags.questions, [screening.question(t, flags.characters) for t in texts])
        if flags.scores:
            lines = Path(flags.scores).read_bytes().splitlines()
            lows = list(screening.low(lines, flags.aspect, flags.below))
            write(flags.out, screening.keep(texts, lows))
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from error


def write(path: str, lines: Sequence[str]) -> None:
    Path(path).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    print(f"{len(lines):,} lines in {path}")


def main(argv: list[str] | None = None) -> int:
    flags = parse(argv)
    try:
        cfg = documents.DataConfig(
            source=flags.source, path=flags.path, split=flags.split, world=world(flags.world)
        )
        tokenizer = SentencePiece(flags.tokenizer) if flags.tokenizer else None
        docs = documents.load(cfg, flags.data_dir)
        screen(flags, docs.texts)
        print(describe(docs, tokenizer))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
