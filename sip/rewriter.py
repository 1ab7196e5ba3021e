"""Rewriters: prefix and suffix in, a better suffix out.

The prompt of a learned rewriter follows arXiv 2601.21343: the last words of the prefix are repeated
before the suffix to rewrite and again before the answer (they "prime" it), so that the rewrite
continues where the prefix ends.
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
from sip.loading import LoadedModel, kept_tokenizer, load_model, source_dir
from sip.mesh import full_rows, put_batch
from sip.models.config import check_storage_dtype
from sip.padding import bucket, padded_tree
from sip.processes import fetch
from sip.sections import at_least, check, one_of
from sip.structs import UserError
from sip.text import chat, template
from sip.text.chat import Turn
from sip.text.segments import Ids, Markup, prompt_of
from sip.text.tokenizer import Cached, Encoder, Tokenizer, continuation

BACKENDS = ("local", "truth")
WORDS = 5  # words at the prefix's end that are repeated in the prompt and before the answer
FIELDS = {"prefix", "suffix", "words"}  # of a prompt template


class Rewriter(Protocol):
    """Writes one better suffix per (prefix, suffix) pair.

    A failed rewrite is marked invalid; it is never replaced by a copy of the suffix.
    """

    def rewrite(
        self, prefixes: Sequence[str], suffixes: Sequence[str]
    ) -> tuple[list[str], np.ndarray]:
        """Returns (texts, valid_B), bool; the text of an invalid rewrite is not usable."""
        ...


@dataclass(frozen=True)
class TruthRewriter:
    """A rewriter that uses the corpus's ground truth.

    It keeps a faultless suffix; a corrected one has about `words` words.
    """

    truth: Truth
    words: int

    def rewrite(self, prefixes, suffixes) -> tuple[list[str], np.ndarray]:
        """Returns (texts, valid_B); an empty text is invalid."""
        texts = self.truth.rewrite(list(prefixes), list(suffixes), self.words)
        return texts, np.array([bool(text.strip()) for text in texts], bool)


@dataclass(frozen=True)
class RewriterConfig:
    """The rewriter of a run: the model or ground truth that writes rewrite candidates.

    Raises UserError for an invalid value.
    """

    backend: str  # local (our own decoder) | truth (the corpus's ground truth)
    init_from: str  # local: name of a run, or a directory with a checkpoint
    prompt: str  # local: name of a built-in prompt, or path of a .txt file
    temperature: float  # local: sampling temperature; 0 is greedy
    top_p: float  # local: nucleus sampling, in (0, 1]; 1 samples from all tokens
    batch: int  # local: number of suffixes rewritten at a time
    chat: str = ""  # local: chat template, own | harmony | a .jinja file; empty: no chat
    param_dtype: str = ""  # local: storage dtype, float32 | bfloat16 | int8; empty: as saved

    def __post_init__(self):
        check("rewriter", self, backend=one_of(BACKENDS), batch=at_least(1))
        check_storage_dtype(self.param_dtype, "rewriter.param_dtype")
        for key in ("chat", "param_dtype"):
            if getattr(self, key) and self.backend != "local":
                raise UserError(f"rewriter.{key}: for backend local only, not {self.backend}")
        chat.check(self.chat, "rewriter.chat")
        load(self.prompt)  # checks that it exists
        self.sampling()  # checks temperature and top_p

    def sampling(self) -> sampling.SamplingConfig:
        """Returns the sampling config. Raises UserError if temperature or top_p is invalid."""
        return sampling.SamplingConfig(temperature=self.temperature, top_p=self.top_p)


@dataclass(frozen=True)
class Prompt:
    """A rewriter's prompt: a template that ends with {words}, the repeated words of the prefix.

    With a chat `turn`, the text before {words} is one user message, and the assistant's answer
    begins with {words}. Raises UserError if the template lacks {suffix}, has an unknown field or
    does not end with {words}.
    """

    name: str
    template: str
    turn: Turn | None = None

    def __post_init__(self):
        named = template.fields(self.template)
        if not set(named) <= FIELDS or "suffix" not in named:
            raise UserError(
                f"rewriter prompt {self.name!r}: it must contain {{suffix}} and no fields other "
                f"than {sorted(FIELDS)}"
            )
        if not self.template.endswith("{words}"):
            raise UserError(f"rewriter prompt {self.name!r}: it must end with {{words}}")

    def segments(self, prefix: str, suffix: str) -> tuple[str, ...]:
        """Returns the filled template as segments; the template's own text is at even places."""
        texts = {"prefix": prefix, "suffix": suffix, "words": last_words(prefix)}
        filled = template.fill(self.template, texts)
        if self.turn is None:
            return filled
        *asked, words, end = filled
        # The empty segments keep markup and template text at even places.
        return (Markup(self.turn.head), "", *asked, "", Markup(self.turn.direct), words, end)


def load(name: str, turn: Turn | None = None) -> Prompt:
    """Loads a built-in prompt by name, or a prompt file by its path (.txt).

    Raises UserError if there is no such file or it is not a valid prompt.
    """
    text = template.read("rewriter prompt", name, "rewriter").removesuffix("\n")
    return Prompt(pathlib.Path(name).stem, text, turn)


def last_words(text: str, count: int = WORDS) -> str:
    """Returns the last `count` words of a text, with the white space before each."""
    starts = [found.start() for found in re.finditer(r"\s*\S+", text)]
    return text[starts[-count] :] if len(starts) > count else text


def prompt_ids(
    prompt: Prompt, tokenizer: Tokenizer, encoder: Encoder, prefix: str, suffix: str
) -> Ids:
    """Returns the token ids of a filled prompt: BOS and the ids of its segments."""
    return prompt_of(tokenizer, encoder, prompt.segments(prefix, suffix))


def answer_ids(
    tokenizer: Tokenizer, encode: Callable[[str], Ids], suffix: str, rewrite: str
) -> Ids:
    """Returns the target token ids after a prompt: the rewrite and EOS.

    The rewrite is cut to the suffix's number of tokens.
    """
    length = len(encode(template.quote(suffix)))
    return [*encode(template.quote(rewrite))[:length], tokenizer.eos]


@dataclass(frozen=True)
class RewriteRequest:
    """One suffix to rewrite, as token ids."""

    ids: Ids  # the whole prompt
    words: Ids  # the repeated words of the prefix, at the prompt's end
    suffix: Ids
    noise: int  # uint32 hash of prefix and suffix; the sampler folds it into its key

    @property
    def limit(self) -> int:
        """Maximum number of tokens of the rewrite, including the stop token."""
        return most(len(self.suffix))


def most(suffix: int) -> int:
    """Returns the maximum length of a rewrite in tokens, including the stop token.

    `suffix` is the length of the suffix in tokens; a rewrite may be 5/4 as long.
    """
    return suffix + suffix // 4 + 1


class Exchange:
    """Builds rewrite prompts for a decoder and parses its answers, in training and in inference.

    A rewrite ends with EOS or a newline and is cut to the suffix's number of tokens. A rewrite is
    unusable if it has no end within 5/4 of the suffix's length, has less than half of that length,
    is only white space, or repeats the primed words although the suffix does not begin with them.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Prompt):
        self._tokenizer, self._prompt = tokenizer, prompt
        self._cached = Cached(tokenizer, 1 << 14)
        self._encode = self._cached.encode
        newline = self._encode("\n")
        # A newline can stop the decoder only if it is a single token.
        self.stops = (*tokenizer.stops, *(newline if len(newline) == 1 else ()))

    def ask(self, prefix: str, suffix: str) -> RewriteRequest:
        """Returns the request for one suffix: prompt, primed words and suffix as token ids."""
        words = template.quote(last_words(prefix))
        return RewriteRequest(
            prompt_ids(self._prompt, self._tokenizer, self._cached, prefix, suffix),
            self._encode(words),
            self._encode(template.quote(suffix)),
            zlib.crc32(f"{prefix}|{suffix}".encode("utf-8", "replace")),
        )

    def read(self, asked: RewriteRequest, new: Ids) -> str:
        """Returns the rewrite in the generated token ids `new`; "" if it is unusable."""
        ends = [i for i, token in enumerate(new[: asked.limit]) if token in self.stops]
        size = len(asked.suffix)
        if not ends or 2 * ends[0] < size:
            return ""
        ids = new[: min(ends[0], size)]
        # An echo: the answer begins with the primed words again and the suffix does not.
        first = min(len(asked.words), size)
        echoes = first and new[:first] == asked.words[:first] != asked.suffix[:first]
        text = continuation(self._tokenizer, asked.words, ids)
        return text if text.strip() and not echoes else ""


class LocalRewriter:
    """A rewriter that runs our own decoder on its mesh, `batch` suffixes at a time.

    A rewrite is invalid if `Exchange` finds it unusable or if prompt and rewrite exceed the model's
    `max_len`. The random key depends on `seed`, prefix and suffix only: a pair gets the same
    rewrite in any batch. Prompt lengths are rounded up to multiples of `multiple`.
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
        """Returns (texts, valid_B); the text of an invalid rewrite is empty."""
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
        """Dispatches one continuation per row and returns the rollouts; sizes are bucketed."""
        B = full_rows(self._mesh, min(1 << (len(rows) - 1).bit_length(), self._batch))
        rows = [*rows, *[rows[0]] * (B - len(rows))]  # pad with copies; their results are dropped
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
    """Builds the rewriter of the `rewriter` section; a local one is loaded onto `mesh`.

    Raises UserError if the corpus has no ground truth (backend truth), or if checkpoint, prompt or
    chat template cannot be read (backend local).
    """
    if wanted.backend == "truth":
        truth = corpus.ground_truth("rewriter.backend truth")
        return TruthRewriter(truth, corpus.cut.suffix)
    source = source_dir(workdir, wanted.init_from, "rewriter.init_from")
    # Tokenizer, chat template and prompt first: a mistake in them is reported before weights load.
    tokenizer = kept_tokenizer(source)
    turn = chat.turn(chat.load(wanted.chat, tokenizer, workdir)) if wanted.chat else None
    prompt = load(wanted.prompt, turn)
    return LocalRewriter(
        load_model(source, mesh, wanted.param_dtype),
        prompt=prompt,
        sampling=wanted.sampling(),
        seed=seed,
        batch=wanted.batch,
    )
