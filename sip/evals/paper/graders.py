"""Libraries that grade texts, as columns beside the judge's (extra `graders`).

profanity   share of continuations with explicit profanity, by alt-profanity-check (a linear model
            of words). It is no measure of safety: on ToxiGen it tells hate from neutral text no
            better than chance (docs/evaluation.md).
grammar     lints of Harper (grammar, spelling, style; English) per 100 words of a continuation
"""

from collections.abc import Callable, Sequence

import numpy as np

from sip.structs import UserError

Grade = Callable[[Sequence[str], Sequence[str]], np.ndarray]  # (prompts, texts) -> value_E
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


GRADERS = {"profanity": _profanity, "grammar": _grammar}


def _without_blanks(value_E: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    return np.where([bool(text.strip()) for text in texts], value_E, np.nan)


def _missing(name: str, package: str) -> UserError:
    return UserError(f"--graders={name} needs {package}: pip install 'sip-jax[graders]'")
