"""Builds the data set that the configs of the paper's size read, from text of your own.

    python tpu/corpus.py --source=jsonl --path=sample.jsonl --data_dir=gs://BUCKET/run/data

The configs sip_*_1b4.py read the TFDS data set `slim_pajama`, field `text`, under WORKDIR/data.
TFDS has no builder of that name, so it is made here, once and from any machine: documents of files
or of another data set become array_record files, in parts train, validation and test (90, 5 and 5 %
by a hash of the text, as for the file itself). Workers then read only the files of the split.

Every process keeps the documents of a run's split in memory: take a sample, not the whole of
SlimPajama. 2000 steps read 512,000 prefixes, and a document of 2,000 tokens gives 14. Exit codes:
0 done, 2 an error that you can fix.
"""

import argparse
import sys

import tensorflow_datasets as tfds
from etils import epath

from sip.data import documents
from sip.data.documents import FILES, PARTS, DataConfig
from sip.data.records import BLANK_LINE
from sip.structs import UserError
from sip.workdir import check_reachable, place

VERSION = "1.0.0"
SOURCES = (*FILES, "tfds", "huggingface")


class Texts(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set of texts: field `text`, splits `PARTS`."""

    VERSION = tfds.core.Version(VERSION)
    url_infos = None  # no downloads; TFDS's own look-up needs a package that is not a dependency
    name = "texts"

    def __init__(self, *, data_dir: str, texts: dict[str, list[str]]):
        self.texts = texts
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        return {part: self._generate_examples(part) for part in PARTS}

    def _generate_examples(self, part: str):
        for i, text in enumerate(self.texts[part]):
            yield i, {"text": text}


def build(name: str, data_dir: str, **how) -> dict[str, int]:
    """Builds DATA_DIR/NAME from documents; returns their number in each part.

    `how` are settings of `DataConfig`. Raises UserError if the documents cannot be read, or if the
    data set exists.
    """
    if not name.isidentifier() or name != name.lower():
        raise UserError(f"--name={name}: must be lower-case letters, digits and '_'")
    check_reachable(data_dir, "--data_dir")
    where = epath.Path(data_dir) / name
    if where.exists():
        raise UserError(f"{where} exists; delete it, or give another --name")
    texts = {}
    for part in PARTS:
        texts[part] = list(documents.load(DataConfig(split=part, **how), data_dir).texts)
    # TFDS names a data set after its class.
    made = type("Named", (Texts,), {"name": name}, skip_registration=True)
    tfds.disable_progress_bar()
    made(data_dir=data_dir, texts=texts).download_and_prepare()
    return {part: len(found) for part, found in texts.items()}


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = lambda message: parser.exit(2, f"error: {message}\n")
    parser.add_argument("--name", default="slim_pajama")
    parser.add_argument("--source", required=True, choices=SOURCES)
    parser.add_argument("--path", required=True, help="as data.path of a config")
    parser.add_argument("--field", default="text", help="as data.field")
    parser.add_argument("--separator", default=BLANK_LINE, help="as data.separator")
    parser.add_argument("--parts", default="own", choices=("own", "hash"), help="as data.parts")
    parser.add_argument(
        "--max_skipped_fraction",
        type=float,
        default=DataConfig.max_skipped_fraction,
        help="0..1; error if more of the documents are unusable",
    )
    parser.add_argument("--data_dir", required=True, help="WORKDIR/data, local or gs://")
    flags = parser.parse_args(argv)
    how = {k: x for k, x in vars(flags).items() if k not in ("name", "data_dir")}
    try:
        found = build(flags.name, place(flags.data_dir), **how)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    said = ", ".join(f"{count:,} {part}" for part, count in found.items())
    print(f"{flags.data_dir}/{flags.name}/{VERSION}: {said}")
    print(f"--config.data.path={flags.name}:text")
    return 0


if __name__ == "__main__":
    sys.exit(main())
