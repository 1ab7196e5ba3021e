"""What stands behind a config file's colon."""


def words(arg: str) -> list[str]:
    """The words of a variant, by commas."""
    return [word for word in arg.split(",") if word]


def named(asked: list[str], known, others: tuple[str, ...], name: str) -> list[str]:
    """Which of `known` are asked for, all where none is; `others` are words of another kind."""
    names = [word for word in asked if word not in others] or list(known)
    for each in names:
        if each not in known:
            raise ValueError(
                f"configs/{name} knows no {each!r}; there are {', '.join((*others, *known))}"
            )
    return names
