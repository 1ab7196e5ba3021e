"""Rewriters: prefix and suffix in, a better suffix out.

A learned one is asked as in arXiv 2601.21343: the prefix's last words stand again before the text
to rewrite and before the answer, which so goes on where the prefix ends.
"""

import pathlib
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import jax
import numpy as np

from sip import sampling
from sip.data.corpus import Corpus
from sip.data.documents import Truth
from sip.loading import LoadedModel, load_model, source_dir
from sip.mesh import full_rows, put_batch
from sip.models.config import check_storage_dtype
from sip.padding import bucket, padded_tree
from sip.processes import fetch
from sip.structs import UserError
from sip.text import chat, template
from sip.text.chat import Turn
from sip.text.segments import Ids, Markup, prompt_of
from sip.text.tokenizer import Cached, Encoder, Tokenizer, continuation

BACKENDS = ("local", "truth")
WORDS = 5  # of the prefix that are repeated and primed
FIELDS = {"prefix", "suffix", "words"}


class Rewriter(Protocol):
    """Writes one better suffix per prefix. A failed rewrite is invalid, never a copy."""

    def rewrite(
        self, prefixes: Sequence[str], suffixes: Sequence[str]
    ) -> tuple[list[str], np.ndarray]:
        """(texts, valid_B)."""
        ...


@dataclass(frozen=True)
class TruthRewriter:
    """The corpus's ground truth as a rewriter: the corrected suffix, of about `words` words."""

    truth: Truth
    words: int

    def rewrite(self, prefixes, suffixes) -> tuple[list[str], np.ndarray]:
        """(texts, valid_B); nothing written is invalid."""
        texts = self.truth.rewrite(list(prefixes), list(suffixes), self.words)
        return texts, np.array([bool(text.strip()) for text in texts], bool)


@dataclass(frozen=True)
class RewriterConfig:
    """Who rewrites, where rewrites are candidates."""

    backend: str  # local | truth
    init_from: str  # local: a run or a directory with a checkpoint
    prompt: str  # local: a built-in one's name, or the path of a .txt file
    temperature: float  # local; 0 is greedy
    top_p: float
    batch: int  # local: suffixes rewritten at a time
    chat: str = ""  # local: asked in a chat, by its "own" template | harmony | a .jinja file
    param_dtype: str = ""  # local: held in float32 | bfloat16 | int8; empty: as saved

    def __post_init__(self):
        if self.backend not in BACKENDS:
            raise UserError(f"rewriter.backend must be one of {BACKENDS}, not {self.backend!r}")
        check_storage_dtype(self.param_dtype, "rewriter.param_dtype")
        for key in ("chat", "param_dtype"):
            if getattr(self, key) and self.backend != "local":
                raise UserError(f"rewriter.{key}: for backend local alone, not {self.backend}")
        if self.batch < 1:
            raise UserError(f"rewriter.batch must be at least 1, not {self.batch}")
        self.sampling()

    def sampling(self) -> sampling.SamplingConfig:
        """The distribution sampled from. Raises UserError where there is none."""
        return sampling.SamplingConfig(temperature=self.temperature, top_p=self.top_p)


@dataclass(frozen=True)
class Prompt:
    """How a rewriter is asked: a template that ends with the primed words of the prefix.

    In a chat all before these is one message of a user's, and the answer begins with them.
    """

    name: str
    template: str
    turn: Turn | None = None

    def __post_init__(self):
        named = template.fields(self.template)
        if not set(named) <= FIELDS or "suffix" not in named:
            raise UserError(
                f"rewriter prompt {self.name!r}: it names {{suffix}}, of {sorted(FIELDS)}"
            )
        if not self.template.endswith("{words}"):
            raise UserError(f"rewriter prompt {self.name!r}: it does not end with {{words}}")

    def segments(self, prefix: str, suffix: str) -> tuple[str, ...]:
        """The filled template; its own words stand at even places."""
        texts = {"prefix": prefix, "suffix": suffix, "words": last_words(prefix)}
        filled = template.fill(self.template, texts)
        if self.turn is None:
            return filled
        *asked, words, end = filled
        return (Markup(self.turn.head), "", *asked, "", Markup(self.turn.direct), words, end)


def load(name: str, turn: Turn | None = None) -> Prompt:
    """A built-in prompt by its name, or a user's own by the path of its .txt file."""
    text = template.read("rewriter prompt", name).removesuffix("\n")
    return Prompt(pathlib.Path(name).stem, text, turn)


def last_words(text: str, count: int = WORDS) -> str:
    """The last words of a text and what stands between and before them."""
    starts = [found.start() for found in re.finditer(r"\s*\S+", text)]
    return text[starts[-count] :] if len(starts) > count else text


def prompt_ids(
    prompt: Prompt, tokenizer: Tokenizer, encoder: Encoder, prefix: str, suffix: str
) -> Ids:
    """The tokens of a prompt, BOS and its segments' joined."""
    return prompt_of(tokenizer, encoder, prompt.segments(prefix, suffix))


def answer_ids(
    tokenizer: Tokenizer, encode: Callable[[str], Ids], suffix: str, rewrite: str
) -> Ids:
    """The tokens that should follow a prompt: a rewrite as long as the suffix at most, and EOS."""
    length = len(encode(template.quote(suffix)))
    return [*encode(template.quote(rewrite))[:length], tokenizer.eos]


@dataclass(frozen=True)
class RewriteRequest:
    """One suffix to rewrite, as tokens."""

    ids: Ids  # the prompt
    words: Ids  # its end, the primed words
    suffix: Ids
    noise: int  # addresses what is drawn

    @property
    def limit(self) -> int:
        """Tokens within which the rewrite has to end, the stop token included."""
        return most(len(self.suffix))


def most(suffix: int) -> int:
    """The tokens that a suffix's rewrite may have until it ends, the stop token included."""
    return suffix + suffix // 4 + 1


class Exchange:
    """How a decoder is asked for a rewrite and how its answer is read, in training and in use.

    A rewrite ends with EOS or a newline and is cut to the suffix's number of tokens. Not usable is:
    no end within 5/4 of the suffix, less than half of it, nothing but space, the primed words once
    more where the suffix does not have them.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Prompt):
        self._tokenizer, self._prompt = tokenizer, prompt
        self._cached = Cached(tokenizer, 1 << 14)
        self._encode = self._cached.encode
        newline = self._encode("\n")
        self.stops = (*tokenizer.stops, *(newline if len(newline) == 1 else ()))

    def ask(self, prefix: str, suffix: str) -> RewriteRequest:
        """The prompt of one suffix."""
        words = template.quote(last_words(prefix))
        return RewriteRequest(
            prompt_ids(self._prompt, self._tokenizer, self._cached, prefix, suffix),
            self._encode(words),
            self._encode(template.quote(suffix)),
            zlib.crc32(f"{prefix}|{suffix}".encode("utf-8", "replace")),
        )

    def read(self, asked: RewriteRequest, new: Ids) -> str:
        """The rewrite in a row of new tokens; empty where it is not usable."""
        ends = [i for i, token in enumerate(new[: asked.limit]) if token in self.stops]
        size = len(asked.suffix)
        if not ends or 2 * ends[0] < size:
            return ""
        ids = new[: min(ends[0], size)]
        first = min(len(asked.words), size)
        echoes = first and new[:first] == asked.words[:first] != asked.suffix[:first]
        text = continuation(self._tokenizer, asked.words, ids)
        return text if text.strip() and not echoes else ""


class LocalRewriter:
    """Our own decoder on its own mesh.

    Invalid is what an `Exchange` cannot use, and a prompt too long for the model's `max_len`.
    Noise is addressed by prefix and suffix: the same two are rewritten alike in any batch.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        prompt: Prompt,
        sampling: sampling.SamplingConfig,
        seed: int = 0,
        batch: int = 32,
        multiple: int = 16,
    ):
        self._params, self._cfg, self._mesh = model.params, model.cfg, model.mesh
        self._pad, self._sampling = model.tokenizer.pad, sampling
        self._seed, self._batch, self._multiple = seed, batch, multiple
        self._exchange = Exchange(model.tokenizer, prompt)

    def rewrite(self, prefixes, suffixes) -> tuple[list[str], np.ndarray]:
        """(texts, valid_B); of an invalid rewrite the text is empty."""
        asked = [self._exchange.ask(p, s) for p, s in zip(prefixes, suffixes, strict=True)]
        fits = [i for i, a in enumerate(asked) if len(a.ids) + a.limit <= self._cfg.max_len]
        starts = range(0, len(fits), self._batch)
        batches = [[asked[i] for i in fits[start : start + self._batch]] for start in starts]
        # All batches are dispatched before the first result is waited for.
        runs = [self._run(rows) for rows in batches]
        texts = [""] * len(asked)
        for start, run in zip(starts, runs, strict=True):
            new = fetch(run.tokens_BCR)[:, 0].tolist()
            for i, ids in zip(fits[start : start + self._batch], new, strict=False):
                texts[i] = self._exchange.read(asked[i], ids)
        return texts, np.array([bool(text) for text in texts], bool)

    def _run(self, rows: Sequence[RewriteRequest]):
        """Rollouts of one continuation each, dispatched; sizes are bucketed."""
        B = full_rows(self._mesh, min(1 << (len(rows) - 1).bit_length(), self._batch))
        rows = [*rows, *[rows[0]] * (B - len(rows))]
        T = bucket(max(len(row.ids) for row in rows), self._multiple)
        steps = bucket(max(row.limit for row in rows))
        tree = padded_tree([row.ids for row in rows], [[]] * len(rows), self._pad, T, 0, 1)
        fork_B = np.array([len(row.ids) for row in rows], np.int32)
        noise_B = np.array([row.noise for row in rows], np.uint32)
        run = sampling.program(self._cfg, 1, steps, self._sampling, self._exchange.stops)
        with jax.set_mesh(self._mesh):
            args = put_batch(self._mesh, (tree.tokens_BT, fork_B, noise_B))
            return run(self._params, *args, jax.random.key(self._seed))


def build(wanted: RewriterConfig, workdir: str, corpus: Corpus, mesh, seed: int) -> Rewriter:
    """Builds the rewriter of the `rewriter` section; a local one is loaded on `mesh`."""
    if wanted.backend == "truth":
        truth = corpus.ground_truth("rewriter.backend truth")
        return TruthRewriter(truth, corpus.cut.suffix)
    source = source_dir(workdir, wanted.init_from, "rewriter.init_from")
    model = load_model(source, mesh, wanted.param_dtype)
    turn = chat.turn(chat.load(wanted.chat, model.tokenizer)) if wanted.chat else None
    return LocalRewriter(
        model,
        prompt=load(wanted.prompt, turn),
        sampling=wanted.sampling(),
        seed=seed,
        batch=wanted.batch,
    )
