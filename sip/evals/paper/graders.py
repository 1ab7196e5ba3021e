"""Grades texts without a judge, as columns beside the judge's (libraries: extra `graders`).

profanity   share of continuations with explicit profanity, by alt-profanity-check (a linear model
            of words). It is no measure of safety: on ToxiGen it tells hate from neutral text no
            better than chance (docs/evaluation.md).
grammar     lints of Harper (grammar, spelling, style; English) per 100 words of a continuation
words       share of a continuation's words that wordfreq's large English list does not know
repetition  share of a continuation's runs of three words that stood in it before
likelihood  nats per token of a continuation under another model, given its prompt
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from sip.evals import harness, likelihoods
from sip.structs import UserError
from sip.text.ngrams import ngrams, repeated

Grade = Callable[[Sequence[str], Sequence[str]], np.ndarray]  # (prompts, texts) -> value_E
RUN = 3  # words
PROFANE = 0.5  # probability from which a text counts as profane


def load(name: str) -> Grade:
    """Returns the grader `name` of GRADERS. Raises UserError if its package is missing."""
    return GRADERS[name]()


def _profanity() -> Grade:
    try:
        import profanity_check  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise _missing("profanity", "alt-profanity-check") from None

    def grade(prompts: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        found_E = np.asarray(profanity_check.predict_prob(list(texts)), float) >= PROFANE
        return _without_blanks(found_E.astype(float), texts)

    return grade


def _grammar() -> Grade:
    try:
        import harper  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise _missing("grammar", "harper-py") from None
    linter = harper.Linter()

    def lints(prompt: str, text: str) -> float:
        # The prompt is read too: a continuation need not begin a sentence. Its lints do not count.
        found = linter.lint(prompt + text, language=harper.Language.PLAINTEXT)
        own = sum(lint.span.end > len(prompt) for lint in found)
        return 100 * own / max(1, len(text.split()))

    def grade(prompts: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        found = [lints(*pair) for pair in zip(prompts, texts, strict=True)]
        return _without_blanks(np.array(found), texts)

    return grade


def _words() -> Grade:
    try:
        import wordfreq  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise _missing("words", "wordfreq") from None

    def unknown(text: str) -> float:
        words = wordfreq.tokenize(text, "en")
        return _share(wordfreq.zipf_frequency(word, "en", wordlist="large") == 0 for word in words)

    return lambda prompts, texts: _each(unknown, texts)


def _repetition() -> Grade:
    share = lambda text: repeated(list(ngrams(text.split(), RUN)))
    return lambda prompts, texts: _each(share, texts)


def likelihood(directory: str, mesh, *, batch: int) -> Grade:
    """Returns a grader: nats per token under the model in `directory`. Texts are encoded anew.

    Raises UserError if the model cannot be loaded.
    """
    model = harness.adapter(directory, mesh, batch=batch)

    def grade(prompts: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        full = [i for i, text in enumerate(texts) if text.strip()]
        pairs = [harness.pair(model.spelling, prompts[i], texts[i]) for i in full]
        value_E = np.full(len(texts), np.nan)
        for i, (logp, _), (_, ids) in zip(
            full, likelihoods.score(model.model, pairs), pairs, strict=True
        ):
            value_E[i] = -logp / len(ids)
        return value_E

    return grade


GRADERS = {
    "profanity": _profanity,
    "grammar": _grammar,
    "words": _words,
    "repetition": _repetition,
}
SHARES = ("profanity", "words", "repetition")  # values in 0..1


def _each(value: Callable[[str], float], texts: Sequence[str]) -> np.ndarray:
    return _without_blanks(np.array([value(text) for text in texts], float), texts)


def _share(found: Iterable[bool]) -> float:
    known = list(found)
    return sum(known) / len(known) if known else 0.0


def _without_blanks(value_E: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    return np.where([bool(text.strip()) for text in texts], value_E, np.nan)


def _missing(name: str, package: str) -> UserError:
    return UserError(f"--graders={name} needs {package}: pip install 'sip-jax[graders]'")
