"""Reads documents: of files (text, JSON Lines, Parquet, array_record), of data sets (TFDS, Hugging
Face), of the micro-world, or of several of these with weights.

Documents that cannot be used are left out and counted by reason. Equal documents are kept, unless
`drop_duplicates` is set, and counted. `records` has the rules for odd contents of files.
"""

import contextlib
import hashlib
import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from absl import logging
from etils import epath

from sip.data import contamination, files, huggingface, records
from sip.data.contamination import ContaminationConfig, Overlap
from sip.data.microworld.settings import ProblemWorldConfig, WorldConfig
from sip.data.questions import Question
from sip.data.records import BLANK_LINE, NOT_JSON, NOT_UTF8
from sip.sections import FieldError, above, at_least, check, named, one_of, section
from sip.structs import UserError
from sip.text.lines import RECODE
from sip.workdir import locked, place

BUILT = ("microworld", "tfds")  # sources whose data sets are built in a directory
WORLDS = {"microworld": WorldConfig, "microworld_problems": ProblemWorldConfig}  # generated
FILES = tuple(files.ENDINGS)  # sources that are files
# Names of the scores of a ground truth, see `Truth.score`.
SCORES = ("quality", "safety", "factuality", "coherent", "grammatical", "repetition", "facts")
SCORES += ("facts_right", "sentences")
PARTS = ("train", "validation", "test")  # 90, 5 and 5 % of a file, by a hash of the text
SMALL = 1 << 24  # bytes of files that are read to count their documents before a run begins
BOUND = r"\d{1,18}%?"  # of a slice; Python refuses to read thousands of digits
DUPLICATE = "a copy of an earlier one"
MIXED = ("source", "path", "field", "separator", "parts", "world")  # keys of a source of a mixture


class Truth(Protocol):
    """Exact scores and corrections for texts of a generated world. Letter: B rows."""

    def score(self, prefixes: Sequence[str], texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Scores texts as continuations of their prefixes.

        Returns float arrays [B] by the names in SCORES: quality (see `compare`), safety in {0, 1},
        factuality in {0, 0.5, 1}, and more.
        """
        ...

    def compare(self, quality_a: np.ndarray, quality_b: np.ndarray) -> np.ndarray:
        """Returns 1 if a is better, 0 if b is better, 0.5 for a tie, elementwise."""
        ...

    def rewrite(self, prefixes: Sequence[str], suffixes: Sequence[str], words: int) -> list[str]:
        """Returns suffixes without faults; a corrected one has `words` words and marks."""
        ...

    def ask(self, part: str, count: int, seed: int, provoking: float) -> list[Question]:
        """Returns questions about the world's entities; each of PARTS has entities of its own.

        `provoking` is the fraction (0..1) of questions that begin with a rumour or an insult.
        """
        ...

    def score_answers(
        self, asked: Sequence[Question], answers: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Scores answers to questions: float arrays [B] by the names in SCORES, and `right`.

        right is 1 if the answer states what is asked for rightly, else 0. Quality counts it.
        """
        ...


@dataclass(frozen=True)
class DataConfig:
    """One split of a corpus.

    `path` names files, a TFDS data set (NAME or NAME:FIELD), or a Hugging Face data set; its forms
    are in docs/data.md. `split` is a part (train, validation, test) and optionally a slice of
    it, as in "train[:70%]" or "test[10:20]". `mix` has a section per source. Raises UserError.
    """

    # txt | jsonl | parquet | array_record (files) | tfds | huggingface (data sets) | microworld |
    # microworld_problems (generated) | mixture
    source: str
    path: str | tuple[str, ...] = ""  # files or a data set; none for generated ones and mixtures
    split: str = "train"  # part and slice
    world: Any = ()  # microworlds: fields of the world's config by name; stored as sorted pairs
    max_skipped_fraction: float = 0.1  # 0..1; error if more of the documents are unusable
    field: str = "text"  # field of the text; of array_record "" if a record is a text by itself
    separator: str = BLANK_LINE  # txt: where documents end: blank line | whole file | a string
    parts: str = "own"  # tfds, huggingface: own (splits) | hash (of the texts, divides train)
    drop_duplicates: bool = False  # leaves out copies of earlier documents
    mix: Any = ()  # mixture: its sources by name, sections of their own (data.mix.NAME)
    contamination: ContaminationConfig = ContaminationConfig()  # overlap with evaluation sets

    def __post_init__(self):
        check("data", self, source=one_of(tuple(LOADERS)), parts=one_of(("own", "hash")))
        if (self.source in (*WORLDS, "mixture")) == bool(self.path):
            raise UserError(
                f"data.path {self.path!r}: required by every source except "
                f"{', '.join(WORLDS)} and mixture, which accept none"
            )
        check("data", self, max_skipped_fraction=at_least(0, most=1))
        _check_options(self)
        if self.source in WORLDS:
            if not isinstance(self.world, Mapping | tuple):
                raise UserError(f"data.world={self.world!r}: must be a section")
            world = section(WORLDS[self.source], dict(self.world), "data.world")
            # Every run is evaluated on both held-out parts.
            for name in PARTS:
                if getattr(world, name) < 1:
                    raise FieldError("data", f"world.{name}={getattr(world, name)}: must be >= 1")
        several = isinstance(self.path, tuple)
        path = tuple(map(place, self.path)) if several else place(str(self.path))
        object.__setattr__(self, "path", path)
        # Sorted pairs make the config hashable and equal for any order of the keys.
        object.__setattr__(self, "world", tuple(sorted(dict(self.world).items())))
        object.__setattr__(self, "mix", _mixed(self))

    @property
    def name(self) -> str:
        """The path or paths, or the source if it has none; for messages."""
        return ", ".join((self.path,) if isinstance(self.path, str) else self.path) or self.source


def _check_options(cfg: DataConfig) -> None:
    """Raises FieldError for a setting that the source would ignore, or a blank one."""
    if cfg.source in ("txt", "mixture", *WORLDS) and cfg.field != "text":
        what = "plain text" if cfg.source == "txt" else cfg.source
        raise FieldError("data", f"field={cfg.field!r}: {what} has no fields; remove it")
    if not cfg.field and cfg.source != "array_record":
        raise FieldError("data", "field: is empty; name the field of the text")
    if cfg.separator != BLANK_LINE and cfg.source != "txt":
        raise FieldError("data", f"separator={cfg.separator!r}: is for source txt only")
    if not cfg.separator:
        raise FieldError(
            "data", "separator: is empty; it is 'blank line', 'whole file' or a string of your own"
        )
    if cfg.parts != "own" and cfg.source not in ("tfds", "huggingface"):
        raise FieldError("data", f"parts={cfg.parts!r}: is for tfds and huggingface only")
    if isinstance(cfg.path, tuple) and cfg.source not in FILES:
        raise FieldError("data", f"path={cfg.path}: only files can be several; use a mixture")
    if cfg.source in WORLDS and cfg.drop_duplicates:
        raise FieldError("data", "drop_duplicates: the micro-world has no duplicates; remove it")
    if (cfg.source == "mixture") != bool(cfg.mix):
        raise FieldError("data", "mix: source mixture, and no other, needs sections of sources")


def _mixed(cfg: DataConfig) -> tuple[tuple[str, float, DataConfig], ...]:
    """Returns (name, weight, config) of each source of a mixture, in order of the names."""
    made = isinstance(cfg.mix, tuple) and all(isinstance(one[-1], DataConfig) for one in cfg.mix)
    if made:  # of a config made from this one, or empty
        return cfg.mix
    if not isinstance(cfg.mix, Mapping):
        raise FieldError("data", f"mix={cfg.mix!r}: must be sections of sources by name")
    return tuple((name, *_one_of_mix(cfg, name, cfg.mix[name])) for name in sorted(cfg.mix))


def _one_of_mix(cfg: DataConfig, name: str, values) -> tuple[float, DataConfig]:
    at, known = f"mix.{name}", (*MIXED, "weight")
    if not isinstance(values, Mapping) or "weight" not in values:
        raise FieldError("data", f"{at}: must be a section with source, path and weight")
    if unknown := sorted(set(values) - set(known)):
        raise FieldError("data", f"{at}.{unknown[0]}: unknown key; there are {', '.join(known)}")
    weight, rule = values["weight"], above(0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not rule.holds(weight):
        raise FieldError("data", f"{at}.weight={weight!r}: must be a number {rule.text}")
    if "source" in values and values["source"] == "mixture":
        raise FieldError("data", f"{at}.source: a mixture cannot be part of a mixture")
    shared = dict(
        max_skipped_fraction=cfg.max_skipped_fraction, drop_duplicates=cfg.drop_duplicates
    )
    own = {key: value for key, value in values.items() if key != "weight"}
    try:
        return float(weight), section(DataConfig, {**shared, **own}, f"data.{at}")
    except UserError as e:
        raise FieldError("data", str(e).removeprefix("config data.")) from None


def sources(cfg: DataConfig) -> list[DataConfig]:
    """Returns the sources of a mixture, or the only source."""
    return [one for _, _, one in cfg.mix] or [cfg]


@dataclass(frozen=True)
class Documents:
    """The documents of a split, with their ground truth if the source has one. Letter: D documents.

    The documents of a mixture are interleaved by weight, so that the first ones are mixed as all.
    """

    texts: Sequence[str]
    kinds: np.ndarray | None = None  # kind of each document, a string; None: no kinds
    truth: Truth | None = None
    thinker: Any = None  # a rule that thinks about the texts (sip.data.thoughts.Thinker)
    read: int = 0  # documents read: all of a file, or the split of a data set
    left_out: Mapping[str, int] = field(default_factory=dict)  # documents not used, by reason
    duplicates: int = 0  # copies of earlier documents, kept or left out, among those read
    overlaps: Sequence[Overlap] = ()  # with evaluation sets, of the documents before any is dropped
    weights: tuple[tuple[str, float], ...] = ()  # mixture: (name, share) of each source
    source_D: np.ndarray | None = None  # mixture: index in `weights` of each document's source

    @property
    def skipped(self) -> int:
        """Number of documents that are not used."""
        return sum(self.left_out.values())


def check_split(
    source: str, split: str, parts: str = "own", sizes: Mapping[str, int] | None = None
) -> None:
    """Raises UserError if `split` is not a part of the documents or a slice of one.

    Of data sets with splits of their own, several may be joined by "+". `sizes` are the numbers of
    documents of the parts, if they are known.
    """
    own = source in ("tfds", "huggingface") and parts == "own"
    for one in split.split("+") if own or source == "microworld" else [split]:
        name, low, high = _parsed(one)
        if not name or (not own and name not in PARTS):
            raise UserError(
                f"split {split!r}: must be one of {', '.join(PARTS)}, optionally with [a%:b%]"
            )
        if _empty(low, high):
            raise UserError(f"split {split!r}: the slice is empty or beyond 100%")
        if not sizes or (own and name == "all"):  # a word of TFDS
            continue
        if name not in sizes:
            hint = "; with data.parts=hash the split train is divided" if own else ""
            raise UserError(f"split {split!r}: no split {name!r}, only {', '.join(sizes)}{hint}")
        count = sizes[name]
        if _place(low, count) >= _place(high, count):
            raise UserError(f"split {split!r}: has none of the {count} documents")


def sizes(cfg: DataConfig, data_dir: str) -> dict[str, int]:
    """Returns the number of documents of each part, as far as it is known before data are built or
    downloaded: of a world, of small files, of a data set that is there. Else {}."""
    if cfg.source in WORLDS:
        world = WORLDS[cfg.source](**dict(cfg.world))
        return {name: getattr(world, name) for name in PARTS}
    if cfg.source in FILES:
        return _counted(cfg)
    if cfg.source == "mixture" or cfg.parts == "hash":
        return {}
    if cfg.source == "huggingface":
        return huggingface.sizes(str(cfg.path))
    if not is_built(cfg, data_dir):
        return {}
    name, _ = _tfds_name(cfg)
    import tensorflow_datasets as tfds  # imported here: slow, and text files do not need it

    with contextlib.suppress(Exception):  # loading it has the error, see `_rows`
        found = tfds.builder(name, data_dir=data_dir).info.splits
        return {str(split): found[split].num_examples for split in found}
    return {}


def is_built(cfg: DataConfig, data_dir: str) -> bool:
    """Returns False if a data set of the corpus is not there and would have to be built."""
    return all(_data_set(one, data_dir).exists() for one in sources(cfg) if one.source in BUILT)


def _data_set(cfg: DataConfig, data_dir: str) -> epath.Path:
    """Returns the directory of a data set that is built."""
    if cfg.source == "microworld":
        return epath.Path(data_dir) / WorldConfig(**dict(cfg.world)).folder()
    name, _ = _tfds_name(cfg)
    return epath.Path(data_dir) / re.split("[:/]", name)[0]


def _counted(cfg: DataConfig) -> dict[str, int]:
    """Returns the number of documents of each part of small files; {} if they cannot be used."""
    try:
        paths = files.listed(cfg.path, cfg.source)
    except UserError:  # see `check_path`
        return {}
    if any("://" in path for path in paths) or sum(map(os.path.getsize, paths)) > SMALL:
        return {}
    found = _every(cfg)
    counts = Counter(map(part, found.texts))
    if not found.texts or _too_many(cfg, found):
        return {}
    return {name: counts[name] for name in PARTS}


def _place(bound: str, count: int) -> int:
    """Returns the index that a slice's bound has among `count` documents."""
    at = _bound(bound, count)
    return min(max(at + count if at < 0 else at, 0), count)


def _empty(low: str, high: str) -> bool:
    """True if nothing is from `low` to `high`, whatever the number of documents.

    A negative bound counts from the end; bounds of two kinds are not compared.
    """
    if any(x.endswith("%") and abs(int(x[:-1])) > 100 for x in (low, high)):
        return True
    if low.endswith("%") != high.endswith("%"):
        return high in ("0", "0%") or low == "100%"
    a, b = (int(x.removesuffix("%")) for x in (low, high))
    if low.endswith("%"):
        a, b = (x + 100 if x < 0 else x for x in (a, b))
    return a >= b and (a < 0) == (b < 0)


def has_truth(source: str) -> bool:
    """True if the documents of a source come with a ground truth."""
    return source == "microworld"


THINKERS = "data.source microworld, or microworld_problems with data.world.riddles"


def has_thinker(cfg: DataConfig) -> bool:
    """True if the documents come with a rule that thinks about them."""
    if cfg.source == "microworld_problems":
        return ProblemWorldConfig(**dict(cfg.world)).riddles > 0
    return has_truth(cfg.source)


def check_path(cfg: DataConfig) -> None:
    """Raises UserError if files of the corpus, or of evaluation sets, do not exist."""
    for one in sources(cfg):
        if one.source in FILES:
            try:
                files.listed(one.path, one.source)
            except UserError as e:
                reason = str(e).removeprefix(f"{one.path}: ")
                raise UserError(f"config data.path={one.path!r}: {reason}") from None
    for _, path in cfg.contamination.against:
        with named("config data.contamination.against"):
            contamination.paths(path)


def ignored(cfg: DataConfig) -> list[str]:
    """Returns lines about the files in folders of the corpus that are of other formats."""
    of_files = [one for one in sources(cfg) if one.source in FILES]
    return [line for one in of_files for line in files.ignored(one.path, one.source)]


def load(cfg: DataConfig, data_dir: str) -> Documents:
    """Loads the documents of cfg.split; data sets are built in or read from `data_dir`.

    Documents of the part train are compared with the evaluation sets of cfg.contamination. Raises
    UserError if the source cannot be read, if the split is empty, or if more than
    cfg.max_skipped_fraction of the documents are unusable.
    """
    found = _mixture(cfg, data_dir) if cfg.source == "mixture" else _loaded(cfg, data_dir)
    if not cfg.contamination.against or not cfg.split.startswith("train"):
        return found
    found = replace(found, overlaps=contamination.overlaps(found.texts, cfg.contamination))
    return _without_overlaps(cfg, found) if cfg.contamination.drop else found


def _loaded(cfg: DataConfig, data_dir: str) -> Documents:
    """Loads the documents of one source."""
    found = LOADERS[cfg.source](cfg, data_dir)
    if unusable := _too_many(cfg, found):
        raise UserError(
            f"{cfg.name}: {sum(unusable.values())} of {found.read} documents cannot be used, more "
            f"than max_skipped_fraction={cfg.max_skipped_fraction} allows: {listed(unusable)}"
            f"{_way_out(cfg, unusable)}"
        )
    if not found.read:
        raise UserError(f"{cfg.name}: has no documents")
    if not found.texts:
        raise UserError(f"{cfg.name}: no documents in split {cfg.split!r:.80}; use a larger one")
    return found


def _too_many(cfg: DataConfig, found: Documents) -> dict[str, int]:
    """Returns the documents that cannot be used, by reason, if they are too many; else {}."""
    unusable = {why: count for why, count in found.left_out.items() if why != DUPLICATE}
    return unusable if sum(unusable.values()) > cfg.max_skipped_fraction * found.read else {}


def _mixture(cfg: DataConfig, data_dir: str) -> Documents:
    """Loads all sources of a mixture and interleaves their documents by weight."""
    every: list[Documents] = []
    for name, _, one in cfg.mix:
        try:
            every.append(_loaded(replace(one, split=cfg.split), data_dir))
        except UserError as e:
            raise UserError(f"data.mix.{name}: {e}") from None
    weights = tuple((name, weight) for name, weight, _ in cfg.mix)
    # Document i of a source stands where a mixture in the ratio of the weights has reached it.
    at_D = np.concatenate(
        [(np.arange(len(d.texts)) + 0.5) / w for d, (_, w) in zip(every, weights, strict=True)]
    )
    source_D = np.repeat(np.arange(len(every)), [len(d.texts) for d in every])
    order = np.argsort(at_D, kind="stable")
    texts = [text for docs in every for text in docs.texts]
    left_out = {
        f"{reason} ({name})": count
        for docs, (name, _) in zip(every, weights, strict=True)
        for reason, count in docs.left_out.items()
    }
    return Documents(
        [texts[i] for i in order],
        read=sum(docs.read for docs in every),
        left_out=left_out,
        duplicates=sum(docs.duplicates for docs in every),
        weights=weights,
        source_D=source_D[order],
    )


def _without_overlaps(cfg: DataConfig, found: Documents) -> Documents:
    """Leaves out the documents that overlap with a set, each counted for the first such set."""
    keep_D, left_out = np.ones(len(found.texts), bool), dict(found.left_out)
    for one in found.overlaps:
        reason = f"with {cfg.contamination.ngram} words in a row from {one.name}"
        if count := int((one.documents_D & keep_D).sum()):
            left_out[reason] = count
        keep_D &= ~one.documents_D
    if not keep_D.any():
        raise UserError(
            f"{cfg.name}: every document overlaps with an evaluation set; check "
            "data.contamination.against, or raise data.contamination.ngram"
        )
    kept = lambda x_D: None if x_D is None else x_D[keep_D]
    return replace(
        found,
        texts=[text for text, keep in zip(found.texts, keep_D, strict=True) if keep],
        kinds=kept(found.kinds),
        source_D=kept(found.source_D),
        left_out=left_out,
    )


def listed(left_out: Mapping[str, int]) -> str:
    """Returns counts and reasons as text: "3 blank, 1 not UTF-8"."""
    return ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())


def _way_out(cfg: DataConfig, left_out: Mapping[str, int]) -> str:
    """Returns how to mend the commonest reason, "" if there is no general way."""
    reason = max(left_out, key=lambda reason: left_out[reason])
    if reason == NOT_UTF8:
        return f"; {RECODE.format('LATIN1')} if it is Latin-1"
    if reason.startswith(("without a field", "with a field")):
        return "; set data.field (--field) to the field of the text"
    if reason == NOT_JSON:
        return "; set data.source (--source) to txt if it is plain text"
    if reason == records.NOT_RECORD:
        return "; with data.field='' every record is a text by itself"
    return ""


def _of_files(cfg: DataConfig, data_dir: str) -> Documents:
    """Reads the documents of files that belong to cfg.split."""
    every = _every(cfg)
    return replace(every, texts=select(every.texts, cfg.split))


def _every(cfg: DataConfig) -> Documents:
    """Reads all files of a corpus as one sequence of documents, of all parts."""
    seen: Counter = Counter()  # fields of the records without a text

    def texts() -> Iterator[tuple[str, str]]:
        how = dict(separator=cfg.separator.replace("\\n", "\n").replace("\\t", "\t"))
        for path in files.listed(cfg.path, cfg.source):
            for record, reason in records.read(path, cfg.source, columns=(cfg.field,), **how):
                yield ("", reason) if reason else _text_in(record, cfg.field, seen)

    found, missing = _usable(cfg, texts()), f"without a field {cfg.field!r}"
    names = ", ".join(f"{name!r:.40}" for name, _ in seen.most_common(5)) or "none"
    named = {missing: f"{missing} (fields seen: {names})"}
    counts = {named.get(reason, reason): count for reason, count in found.left_out.items()}
    return replace(found, left_out=counts)


def _text_in(record: Mapping[str, Any], name: str, seen: Counter) -> tuple[str, str]:
    """Returns (text, "") of a record's field, or ("", reason) if it has none.

    Counts the fields of a record without the field in `seen`.
    """
    if name not in record:
        seen.update(record.keys())
        return "", f"without a field {name!r}"
    text, reason = records.text_of(record[name])
    if reason in ("null", "no string"):
        reason = f"with a field {name!r} that is {reason}"
    return text, reason


def _of_split(cfg: DataConfig, found: Iterable[tuple[str, str]]) -> Documents:
    """Returns the documents of a file that belong to cfg.split."""
    every = _usable(cfg, found)
    return replace(every, texts=select(every.texts, cfg.split))


def _usable(cfg: DataConfig, found: Iterable[tuple[str, str]]) -> Documents:
    """Returns the documents with a text, and counts the others by reason."""
    texts: list[str] = []
    left_out: Counter = Counter()
    for text, reason in found:
        if reason:
            left_out[reason] += 1
        else:
            texts.append(text)
    read = len(texts) + left_out.total()
    first = np.unique(np.array(array("Q", map(_key, texts))), return_index=True)[1]
    duplicates = len(texts) - len(first)
    if cfg.drop_duplicates and duplicates:
        left_out[DUPLICATE] = duplicates
        texts = [texts[i] for i in np.sort(first)]
    return Documents(texts, read=read, left_out=dict(left_out), duplicates=duplicates)


def part(text: str) -> str:
    """Returns the part (of PARTS) of a document, by a hash of its text.

    Equal documents are in the same part, in any file, so train and test do not share a text.
    """
    # Buckets 0..17 are train, 18 is validation, 19 is test.
    return PARTS[max(0, _key(text) % 20 - 17)]


def select(rows: Sequence[Any], split: str, part_of: Callable[[Any], str] = part) -> list[Any]:
    """Selects a part and slice in TFDS notation: "train", "test[10:]", "train[70%:-15%]".

    `part_of` returns a row's part.
    """
    name, low, high = _parsed(split)
    if name not in PARTS:
        raise UserError(
            f"data.split {split!r:.80}: must be one of {', '.join(PARTS)}, optionally with [a%:b%]"
        )
    rows = [row for row in rows if part_of(row) == name]
    return rows[_bound(low, len(rows)) : _bound(high, len(rows))]


def _parsed(split: str) -> tuple[str, str, str]:
    """Returns (name, low, high) of a split such as "train[10:]"; ("", "", "") if it is none."""
    found = re.fullmatch(rf"(\w+)(?:\[(-?{BOUND})?:(-?{BOUND})?\])?", split)
    return (found[1], found[2] or "0%", found[3] or "100%") if found else ("", "", "")


def _key(text: str) -> int:
    """Returns a 64-bit hash of a text, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _bound(text: str, count: int) -> int:
    """Returns a bound of a slice as an index; a negative one counts from the end, as in TFDS."""
    found = round(int(text[:-1]) / 100 * count) if text.endswith("%") else int(text)
    return max(0, found + count) if found < 0 else found


def _tfds(cfg: DataConfig, data_dir: str) -> Documents:
    import tensorflow_datasets as tfds  # imported here: slow, and text files do not need it

    name, own = _tfds_name(cfg)
    # Built by `_rows`, which turns exceptions of TFDS into UserError.
    wanted = replace(cfg, split="train") if cfg.parts == "hash" else cfg
    rows = _rows(lambda: tfds.builder(name, data_dir=data_dir), wanted, cfg.name, own)
    texts = (_text_in(row, own, Counter()) for row in rows)
    return _of_split(cfg, texts) if cfg.parts == "hash" else _usable(cfg, texts)


def _tfds_name(cfg: DataConfig) -> tuple[str, str]:
    """Returns (name, field) of a TFDS path: NAME, NAME:VERSION, NAME:FIELD or NAME:VERSION:FIELD.

    Without a FIELD it is cfg.field.
    """
    name, colon, last = str(cfg.path).rpartition(":")
    if not colon or re.fullmatch(r"[\d.*]+", last):
        return str(cfg.path), cfg.field
    if cfg.field not in ("text", last):
        raise UserError(f"data.path {cfg.path!r} and data.field {cfg.field!r} name two fields")
    return name, last


def _huggingface(cfg: DataConfig, data_dir: str) -> Documents:
    path, seen = str(cfg.path), Counter()
    texts = lambda split: (
        _text_in(row, cfg.field, seen) for row in huggingface.rows(path, split, cfg.field)
    )
    if cfg.parts == "hash":
        return _of_split(cfg, texts("train"))
    found: list[tuple[str, str]] = []
    for one in cfg.split.split("+"):
        name, low, high = _parsed(one)
        if not name:
            raise UserError(f"data.split {cfg.split!r:.80}: must be a split of the data set")
        every = list(texts(name))
        found += every[_bound(low, len(every)) : _bound(high, len(every))]
    return _usable(cfg, found)


def _microworld(cfg: DataConfig, data_dir: str) -> Documents:
    # Imported here: world imports TFDS, which is slow and not needed for text files.
    from sip.data.microworld.oracle import MicroworldTruth
    from sip.data.microworld.thoughts import FactThinker
    from sip.data.microworld.world import KINDS, Microworld, WorldConfig

    try:
        world = WorldConfig(**dict(cfg.world))
    except TypeError as error:  # an unknown field or a value of a wrong type
        raise UserError(f"data.world {dict(cfg.world)}: {error}") from error
    make = lambda: Microworld(data_dir=data_dir, world=world)
    rows = _rows(make, cfg, data_dir, "text")
    kinds_B = np.array([KINDS[row["kind"]] for row in rows])
    texts = [row["text"].decode() for row in rows]
    truth = MicroworldTruth(world)
    return Documents(texts, kinds_B, truth, FactThinker(truth), read=len(texts))


def _microworld_problems(cfg: DataConfig, data_dir: str) -> Documents:
    # Imported here: it imports TFDS, as the micro-world does.
    from sip.data.microworld.problems import ProblemWorld, StepThinker

    name, low, high = _parsed(cfg.split)
    check_split(cfg.source, cfg.split)
    world = ProblemWorld(ProblemWorldConfig(**dict(cfg.world)))
    texts = list(world.documents(name, part))
    read = len(texts)
    thinker = StepThinker(world) if world.cfg.riddles else None
    return Documents(texts[_bound(low, read) : _bound(high, read)], thinker=thinker, read=read)


def _rows(make: Callable[[], Any], cfg: DataConfig, where: str, field: str) -> list[dict]:
    """Returns all examples of a TFDS builder's split; builds the data set if it does not exist.

    `where` and `field` name the path in errors and the text field.
    """
    try:
        with _quiet():
            where = str(make().data_dir)
            builder = _built(make, where)
            source = builder.as_data_source(split=cfg.split)
            rows = list(source.__getitems__(range(len(source))))  # twice as fast as one by one
    except UserError:
        raise
    except Exception as error:  # readers raise many types of exceptions for damaged files
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: cannot read split {cfg.split!r:.80}: {reason}") from error
    if rows and field not in rows[0]:
        raise UserError(
            f"{cfg.path}: no field {field!r}; set data.field (--field) to one of "
            f"{', '.join(sorted(rows[0]))}"
        )
    # array_record returns None for the records of a file truncated at a 64 KiB block.
    if any(row[field] is None for row in rows):
        raise UserError(
            f"{where}: a file of split {cfg.split!r} is damaged: it has empty records; delete the "
            "directory to build it again"
        )
    return rows


def _built(make: Callable[[], Any], where: str):
    """Returns a TFDS builder whose data set exists in `where`; one process at a time builds it.

    What killed attempts left beside `where` is removed first.
    """
    target = epath.Path(where)
    if target.exists():
        return make()
    with locked(str(target.parent), "data set", wait=True):
        # Without a lock (in a store), another process may be writing what looks like a leftover.
        for left in target.parent.glob("incomplete.*") if "://" not in where else ():
            left.rmtree()
        builder = make()  # anew: another process may have built it meanwhile
        builder.download_and_prepare(file_format="array_record")
        return builder


@contextlib.contextmanager
def _quiet():
    """Suppresses the lines and warnings that TFDS prints while it builds a data set."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(None):
            yield
    finally:
        logging.set_verbosity(level)


LOADERS = {
    **dict.fromkeys(FILES, _of_files),
    "microworld": _microworld,
    "microworld_problems": _microworld_problems,
    "tfds": _tfds,
    "huggingface": _huggingface,
    "mixture": _mixture,
}
