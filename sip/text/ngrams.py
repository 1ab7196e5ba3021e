"""Words in a row."""

from collections.abc import Iterator, Sequence


def ngrams(words: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """Returns all runs of `n` successive words, in order; none of fewer words."""
    return zip(*(words[i:] for i in range(n)), strict=False)


def repeated(found: Sequence[tuple[str, ...]]) -> float:
    """Returns the share of n-grams that stand before among them; 0 without any."""
    return 1 - len(set(found)) / len(found) if found else 0.0
