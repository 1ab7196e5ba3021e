"""Parses the variant of a config file: the words after the colon in --config=FILE.py:WORDS."""


def words(arg: str) -> list[str]:
    """Returns the comma-separated words of a variant."""
    return [word for word in arg.split(",") if word]


def named(asked: list[str], known, others: tuple[str, ...], name: str) -> list[str]:
    """Returns the words of `asked` that are in `known`, or all of `known` if there are none.

    Args:
        asked: Words of the variant.
        known: Valid names.
        others: Words with another meaning, which are skipped.
        name: File name for error messages.

    Raises:
        ValueError: A word is in neither `known` nor `others`.
    """
    names = [word for word in asked if word not in others] or list(known)
    for each in names:
        if each not in known:
            raise ValueError(
                f"configs/{name} has no variant {each!r}; use {', '.join((*others, *known))}"
            )
    return names
