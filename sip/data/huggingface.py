"""Hugging Face data sets: by name on the hub, or a local directory. Needs the extra `data`.

A path is NAME or NAME:CONFIG on the hub, such as roneneldan/TinyStories (hf:// may stand before
it), or a directory: of
`save_to_disk`, or of files that `load_dataset` reads (Parquet, JSON, CSV, Arrow, text). Data sets
are downloaded whole, into the cache of the package (HF_HOME).
"""

import functools
import hashlib
import os
from collections.abc import Iterator
from typing import Any

from sip.data.records import rows_of
from sip.structs import UserError

SAVED = ("dataset_dict.json", "state.json")  # files of save_to_disk: of several splits, of one
ROWS = 1024  # rows that are read at once


def rows(path: str, split: str, field: str) -> Iterator[dict[str, Any]]:
    """Yields {field: value} of each row of a split.

    Raises UserError if the data set cannot be loaded, or if it has no such split or field.
    """
    found = splits(path)
    if split not in found:
        raise UserError(
            f"{path}: no split {split!r}, only {', '.join(found)}; with data.parts=hash (--parts) "
            "the split train is divided"
        )
    if field not in found[split].column_names:
        raise UserError(
            f"{path}: no field {field!r}; set data.field (--field) to one of "
            f"{', '.join(found[split].column_names)}"
        )
    for batch in found[split].select_columns([field]).with_format("arrow").iter(ROWS):
        for part in batch.to_batches():
            yield from rows_of(part)


def digest(path: str, field: str) -> str:
    """Returns a SHA-256 of the values of a field in all splits, in any version of the package."""
    found = hashlib.sha256()
    for name in sorted(splits(path)):
        found.update(f"{name}\0".encode())
        for row in rows(path, name, field):
            data = repr(row[field]).encode(errors="surrogatepass")
            found.update(b"%d\0" % len(data) + data)
    return found.hexdigest()


@functools.lru_cache(maxsize=8)
def splits(path: str) -> dict[str, Any]:
    """Loads a data set, once per process. Returns its splits by name. Raises UserError."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            "data.source huggingface needs datasets: pip install 'sip-jax[data]'"
        ) from None
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    try:
        found = _load(datasets, path)
    except Exception as error:  # errors of several libraries: network, rights, names, files
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path}: cannot load the Hugging Face data set: {reason}") from error
    # A data set that was saved without splits is one split.
    return {str(k): v for k, v in found.items()} if isinstance(found, dict) else {"train": found}


def _load(datasets, path: str):
    if os.path.isdir(path):
        if any(os.path.exists(os.path.join(path, name)) for name in SAVED):
            return datasets.load_from_disk(path)
        return datasets.load_dataset(path)
    if os.path.exists(path) or path.startswith(("/", ".", "~")):
        raise UserError("not a directory; a file is read with data.source txt, jsonl or parquet")
    name, _, config = path.removeprefix("hf://").partition(":")
    return datasets.load_dataset(name, config or None)
