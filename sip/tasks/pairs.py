"""Preference pairs to learn from and held-out ones, shared by DPO and reward models.

Pairs come from a JSON Lines file (sip/data/preferences.py), or are compared by a corpus's ground
truth: candidates of its prefixes, or answers that models sample to questions about its world.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from sip.data import conversations, documents, files, pipeline, preferences
from sip.data import prompts as prompt_files
from sip.data.documents import PARTS, Truth
from sip.data.preferences import Tokens
from sip.data.questions import Question
from sip.evals import continuations
from sip.judge.labels import ground_truth as labels
from sip.judge.labels.corruptions import CORRUPTIONS
from sip.mesh import put_batch
from sip.padding import multiple, padded_tree
from sip.run import Run, TaskConfig
from sip.sampling import SamplingConfig
from sip.sections import at_least, check
from sip.structs import UserError
from sip.tasks import labelled, questions, ranked
from sip.tasks.questions import QuestionsConfig
from sip.tasks.ranked import RankSet
from sip.tasks.rl.task import AnswerWriter
from sip.text import chat
from sip.text.segments import Ids
from sip.text.tokenizer import beginning, continuation
from sip.training import loop, step
from sip.training.losses import PairBatch
from sip.workdir import place

HELD_OUT = ("validation", "test")
SAMPLED = 64  # questions that are answered at a time


@dataclass(frozen=True)
class PairsConfig:
    """JSON Lines of pairs. Raises UserError for an invalid value."""

    path: str  # JSON Lines with prompt, chosen and rejected: files, a folder or a glob
    chat: str = ""  # chat template: own (the tokenizer's), a built-in name, a .jinja file; "": none
    max_skipped_fraction: float = 0.1  # 0..1; error if more of the lines are unusable

    def __post_init__(self):
        check("pairs", self, max_skipped_fraction=at_least(0, most=1))
        object.__setattr__(self, "path", place(self.path))
        chat.check(self.chat, "pairs.chat")


@dataclass(frozen=True)
class PairLabelConfig:
    """Pairs by the corpus's ground truth: of two candidates of a prefix the better one is chosen.

    Raises UserError for contradicting keys.
    """

    source: str  # run or checkpoint directory that samples rollouts; "": no rollouts
    documents: int = 2000  # number of prefixes to learn from
    held_out: int = 200  # number of prefixes of each held-out split
    per_prefix: int = 4  # most pairs of a prefix
    rollouts: int = 2  # rollouts per prefix and temperature
    temperatures: tuple[float, ...] = (1.0,)  # of rollouts
    rewrites: bool = True  # corrected suffixes are among the candidates
    corruptions: int = 2  # number of kinds of corrupted text per prefix

    def __post_init__(self):
        counts = dict.fromkeys(("documents", "held_out", "per_prefix"), at_least(1))
        most = len(CORRUPTIONS)
        check("labels", self, rollouts=at_least(0), corruptions=at_least(0, most), **counts)
        if bool(self.source) != (self.rollouts > 0):
            raise UserError("labels.source names who samples: set it if and only if rollouts > 0")
        if self.rollouts and not self.temperatures:
            raise UserError("labels.temperatures is empty, but labels.rollouts is not 0")
        for temperature in self.temperatures:
            SamplingConfig(temperature=temperature)  # checks it


@dataclass(frozen=True)
class AnswerPairConfig:
    """Pairs by the corpus's ground truth: of two sampled answers to a question the better one is
    chosen. Raises UserError for contradicting keys."""

    sources: tuple[str, ...]  # runs or checkpoint directories that sample answers
    chat: str  # chat template, as in `pairs`; needed
    questions: QuestionsConfig = QuestionsConfig()  # held_out: of each held-out split
    per_question: int = 4  # most pairs of a question
    rollouts: int = 2  # answers of each source to a question
    temperature: float = 1.0  # of these answers

    def __post_init__(self):
        check("answers", self, per_question=at_least(1), rollouts=at_least(1))
        chat.check(self.chat, "answers.chat")
        if not self.chat:
            raise UserError("answers.chat: needed; the name of a chat template")
        if not self.sources or not all(self.sources):
            raise UserError("answers.sources is empty: name runs that sample answers")
        if len(self.sources) * self.rollouts < 2:
            raise UserError("answers.rollouts: one answer to a question makes no pair")
        if not SamplingConfig(temperature=self.temperature).temperature:  # checks it
            raise UserError("answers.temperature must be positive: equal answers make no pair")


@dataclass(frozen=True, kw_only=True)
class PairTaskConfig(TaskConfig):
    """Settings of tasks that learn from pairs. Exactly one of the three sections is needed."""

    pairs: PairsConfig | None = None  # pairs from a file
    labels: PairLabelConfig | None = None  # continuations, compared by the corpus's ground truth
    answers: AnswerPairConfig | None = None  # answers to questions, compared by the ground truth

    def __post_init__(self):
        if sum(x is not None for x in (self.pairs, self.labels, self.answers)) != 1:
            raise UserError("exactly one of pairs, labels and answers is needed")

    def check(self, c):
        """Raises UserError if the run's split or z_loss does not fit the task."""
        if self.answers is not None:
            questions.check_splits(c.split, "test")
        if self.pairs is not None and c.split not in PARTS:
            raise UserError(f"split must be one of {PARTS} with task.pairs, not {c.split!r}")
        if c.z_loss:
            raise UserError("z_loss must be 0: a loss on pairs is no cross-entropy")

    def sources(self):
        """The runs or directories that the task reads: the sources of rollouts."""
        if self.answers:
            names = enumerate(self.answers.sources)
            return {f"task.answers.sources[{i}]": name for i, name in names}
        return {"task.labels.source": self.labels.source} if self.labels else {}

    def reads(self):
        """The files of pairs."""
        return files.json_files(self.pairs.path) if self.pairs else {}

    def needs_truth(self):
        """Labels and comparisons of answers are the ground truth's."""
        if self.answers:
            return "task.answers"
        return "task.labels" if self.labels else ""

    def reach(self):
        """Raises UserError if the file of pairs does not exist."""
        if self.pairs is None:
            return
        if not self.pairs.path:
            raise UserError("task.pairs.path: needed; a JSON Lines file of pairs")
        files.check_json("task.pairs.path", self.pairs.path)


@dataclass(frozen=True, eq=False)
class PairSet:
    """Pairs by part: of the split to learn from, validation and test. All batches have one shape:
    T tokens of a prompt, R of an answer."""

    parts: Mapping[str, Sequence[Tokens]]  # learned | validation | test
    pad: int

    @functools.cached_property
    def widths(self) -> tuple[int, int]:
        """(T, R), rounded up."""
        every = list(itertools.chain.from_iterable(self.parts.values()))
        longest = max(max(len(x.chosen), len(x.rejected)) for x in every)
        return multiple(max(len(x.prompt) for x in every), 8), multiple(longest, 8)

    def count(self, part: str) -> int:
        """Returns the number of pairs of a part."""
        return len(self.parts[part])

    def batch(self, step: int, size: int, *, seed: int) -> PairBatch:
        """Returns the pairs of a step. Each epoch is a permutation that depends on `seed`."""
        found = self.parts["learned"]
        rows = pipeline.epochs(len(found), step, size, seed=seed)
        return self._batch([found[i] for i in rows], size)

    def held_out(self, part: str, size: int) -> Iterator[PairBatch]:
        """Yields all pairs of a part in batches; the last one is filled up with invalid rows."""
        found = self.parts[part]
        for start in range(0, len(found), size):
            yield self._batch(found[start : start + size], size)

    def _batch(self, rows: Sequence[Tokens], size: int) -> PairBatch:
        T, R = self.widths
        valid_B = np.arange(size) < len(rows)
        rows = [*rows, *[rows[0]] * (size - len(rows))]
        tree = padded_tree(
            [x.prompt for x in rows], [[x.chosen, x.rejected] for x in rows], self.pad, T, 2, R
        )
        return PairBatch(tree, valid_B, np.array([x.margin or 0.0 for x in rows], np.float32))


def made(run: Run, c, mesh, *, end: bool) -> PairSet:
    """Reads or labels the pairs of a run `c`, and prints how many there are and how long.

    `end`: EOS follows the candidates of a corpus's prefixes, which are parts of documents. Raises
    UserError.
    """
    parts, left_out = _parts(run, c, mesh, end)
    run.say(_said(run.name, parts, left_out))
    return PairSet(parts, run.tokenizer.pad)


def together(run: Run, c, mesh) -> RankSet:
    """As `made`, for a reward model: answers of a prompt share its row. Raises UserError."""
    parts, left_out = _parts(run, c, mesh, True)
    rows = {part: ranked.grouped(pairs, c.task.together) for part, pairs in parts.items()}
    said = _said(run.name, parts, left_out)
    if c.task.together > 2:
        learned = rows["learned"]
        prompts = len({tuple(row.prompt) for row in learned})
        said += f"; learned together: {len(learned):,} rows of {prompts:,} prompts"
    run.say(said)
    return RankSet(rows, run.tokenizer.pad)


def _parts(run: Run, c, mesh, end: bool) -> tuple[Mapping[str, list[Tokens]], Mapping[str, int]]:
    """Returns ({learned | validation | test: pairs}, left_out by reason)."""
    if c.task.pairs is not None:
        parts, left_out = _read(run, c)
    elif c.task.answers is not None:
        parts, left_out = _answered(run, c, mesh), {}
    else:
        parts, left_out = _compared(run, c, mesh, end), {}
    run.left_out["pairs"] = dict(left_out)
    return parts, left_out


def stops(run: Run, wanted: PairTaskConfig) -> tuple[int, ...]:
    """Returns the token ids that end an answer of a task's pairs."""
    chatted = wanted.pairs or wanted.answers
    return prompt_files.encoding(chatted.chat if chatted else "", run.tokenizer, run.workdir)[1]


def _said(name: str, parts: Mapping[str, list[Tokens]], left_out: Mapping[str, int]) -> str:
    """The line about the pairs of a run."""
    counts = ", ".join(f"{len(rows):,} {part}" for part, rows in parts.items())
    rows = parts["learned"]
    sizes = [(len(x.prompt), len(x.chosen), len(x.rejected)) for x in rows]
    prompt, chosen, rejected = np.median(sizes, axis=0).astype(int).tolist()
    margins = sum(x.margin is not None for x in rows)
    line = f"{name}: pairs: {counts}; median tokens: prompt {prompt}, chosen {chosen}, "
    line += f"rejected {rejected}; with a margin: {margins:,}"
    return f"{line}; left out: {documents.listed(left_out)}" if left_out else line


def _read(run: Run, c) -> tuple[dict[str, list[Tokens]], Mapping[str, int]]:
    wanted: PairsConfig = c.task.pairs
    encode = preferences.plain(run.tokenizer)
    if wanted.chat:
        form = conversations.named_format(wanted.chat, run.tokenizer, run.workdir)
        encode = preferences.chatted(form)
    how: Any = dict(path=wanted.path, max_skipped_fraction=wanted.max_skipped_fraction)
    found = preferences.read(**how)
    parts, left_out = preferences.tokens(found, encode, max_len=c.model.max_len, **how)
    if not parts[c.split]:
        raise UserError(f"{wanted.path}: no pair in split {c.split!r}, by the hash of its prompt")
    return {"learned": parts[c.split], **{part: parts[part] for part in HELD_OUT}}, left_out


def _compared(run: Run, c, mesh, end: bool) -> dict[str, list[Tokens]]:
    """Pairs by the ground truth: of `c.split` to learn from, and of the held-out splits."""
    wanted: PairLabelConfig = c.task.labels
    run.corpus(c.split).ground_truth("task.labels")  # for its error, before a model is loaded
    source = labelled.source_model(run, wanted.source, "task.labels.source", mesh)

    def of(split: str, count: int, seed: int) -> list[Tokens]:
        corpus = run.corpus(split)
        asked = continuations.prompts(corpus.chunks, range(count), run.tokenizer)
        pools = labelled.pools(wanted, corpus, asked, seed, source)
        trim = lambda text: beginning(run.tokenizer, text, corpus.cut.suffix)
        found = labels.candidates(
            asked.prefixes,
            asked.suffixes,
            pools,
            corruptions=wanted.corruptions,
            seed=seed,
            trim=trim,
        )
        pairs = compared(
            corpus.ground_truth("task.labels"),
            asked.prefixes,
            [each.texts for each in found],
            per_prefix=wanted.per_prefix,
            seed=seed,
        )
        last = [run.tokenizer.eos] if end else []
        ids = lambda text: [*run.tokenizer.encode(text), *last]
        prompt = lambda i: asked.tokens_ET[i, : asked.fork_E[i]].tolist()
        rows = [Tokens(prompt(i), ids(a), ids(b)) for i, a, b in pairs]
        room = lambda x: len(x.prompt) + max(len(x.chosen), len(x.rejected)) <= c.model.max_len
        return [x for x in rows if room(x) and x.chosen != x.rejected]

    learned = of(c.split, wanted.documents, run.seed)
    if not learned:
        raise UserError(
            f"task.labels: no pair of {wanted.documents} prefixes differs in quality and fits "
            f"{c.model.max_len} tokens (model.max_len)"
        )
    return {"learned": learned, **{part: of(part, wanted.held_out, 0) for part in HELD_OUT}}


def _answered(run: Run, c, mesh) -> dict[str, list[Tokens]]:
    """Pairs of answers to questions: of `c.split` to learn from, and of the held-out splits."""
    wanted: AnswerPairConfig = c.task.answers
    asks = wanted.questions
    form = conversations.named_format(wanted.chat, run.tokenizer, run.workdir)
    truth = questions.truth(run, "task.answers")
    sources = [
        labelled.loaded(run, name, f"task.answers.sources[{i}]", mesh)
        for i, name in enumerate(wanted.sources)
    ]
    how = SamplingConfig(temperature=wanted.temperature)

    def of(part: str, count: int, seed: int) -> list[Tokens]:
        asked = truth.ask(part, count, seed, asks.provoking)
        prompts = questions.prompts(form, asked)
        found: list[list[Ids]] = [[] for _ in asked]
        for i, source in enumerate(sources):
            questions.check_room(prompts, asks.answer + 1, source.cfg, "task.answers.questions")
            writer = AnswerWriter(source.cfg, mesh, run.tokenizer, 0, asks.answer, form.stops)
            key = jax.random.key(2 * seed + i)
            rows = writer.sampled_ids(source.params, prompts, SAMPLED, wanted.rollouts, how, key)
            found = [[*row, *more] for row, more in zip(found, rows, strict=True)]
        return _answer_pairs(run, truth, asked, prompts, found, wanted.per_question, seed)

    learned = of(c.split, asks.count, run.seed)
    if not learned:
        raise UserError("task.answers: no two answers to a question differ in quality")
    return {"learned": learned, **{part: of(part, asks.held_out, 0) for part in HELD_OUT}}


def _answer_pairs(
    run: Run, truth: Truth, asked: Sequence[Question], prompts, found, most: int, seed: int
) -> list[Tokens]:
    """Returns at most `most` pairs of each question's answers `found`, as token ids.

    A cut answer gets EOS, where its reward is read.
    """
    stops = (run.tokenizer.eos, *run.tokenizer.specials.values())
    ends = lambda ids: ids if ids and ids[-1] in stops else [*ids, run.tokenizer.eos]
    texts = [
        [continuation(run.tokenizer, prompt, ids) for ids in row]
        for prompt, row in zip(prompts, found, strict=True)
    ]
    flat = [(x, text) for x, row in zip(asked, texts, strict=True) for text in row]
    quality = truth.score_answers([x for x, _ in flat], [text for _, text in flat])["quality"]
    better = preferred(truth, quality, [len(row) for row in texts], most, seed)
    rows = [(i, ends(found[i][a]), ends(found[i][b])) for i, a, b in better]
    return [Tokens(prompts[i], a, b) for i, a, b in rows if a != b]


def compared(
    truth: Truth,
    prefixes: Sequence[str],
    texts: Sequence[Sequence[str]],
    *,
    per_prefix: int,
    seed: int,
) -> list[tuple[int, str, str]]:
    """Lists (index of the prefix, better text, worse text), without ties.

    Of the pairs of a prefix at most `per_prefix` are drawn.
    """
    rows = [(i, text) for i, row in enumerate(texts) for text in row]
    known = truth.score([prefixes[i] for i, _ in rows], [text for _, text in rows])["quality"]
    found = preferred(truth, known, [len(row) for row in texts], per_prefix, seed)
    return [(i, texts[i][a], texts[i][b]) for i, a, b in found]


def preferred(
    truth: Truth, quality: np.ndarray, sizes: Sequence[int], most: int, seed: int
) -> list[tuple[int, int, int]]:
    """Lists (row, index of the better text, index of the worse one), without ties.

    Row i has sizes[i] texts, and `quality` is that of all texts. Of the pairs of a row at most
    `most` are drawn.
    """
    rng, found, ends = np.random.default_rng((seed, 1)), [], np.cumsum(sizes)
    for i, size in enumerate(sizes):
        own = quality[ends[i] - size : ends[i]]
        both = np.array(list(itertools.combinations(range(size), 2)), int).reshape(-1, 2)
        won = truth.compare(own[both[:, 0]], own[both[:, 1]])
        clear = np.flatnonzero(won != 0.5)
        for at in rng.permutation(clear)[:most]:
            a, b = both[at].tolist() if won[at] == 1 else both[at][::-1].tolist()
            found.append((i, a, b))
    return found


def figures(
    program: Callable[..., Any], found: PairSet | RankSet, part: str, mesh, size: int, *args
) -> dict[str, float]:
    """Returns the averages of a part's metrics: those of `program(*args, batch)`, and `pairs`."""
    with jax.set_mesh(mesh):
        rows = [program(*args, put_batch(mesh, b)) for b in found.held_out(part, size)]
        averages = loop.ratios([{**metrics, **step.pairs(terms, terms)} for terms, metrics in rows])
    return {**averages, "pairs": float(found.count(part))}
