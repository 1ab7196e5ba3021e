"""Tables of texts, for the terminal and as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, OverflowMethod
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Grid:
    """A table of texts."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def console() -> Console:
    """Returns a console as wide as the terminal or, in a file, as wide as its tables."""
    found = Console()
    return Console(width=found.width if found.is_terminal else 10_000, highlight=False)


def show(to: Console, grids: Sequence[Grid], overflow: OverflowMethod) -> None:
    """Prints tables; all columns but the first are aligned to the right.

    `overflow` says what becomes of a word that is wider than its column.
    """
    for grid in grids:
        table = Table(title=Text(grid.title), title_justify="left", box=box.SIMPLE)
        for i, name in enumerate(grid.columns):
            table.add_column(Text(name), justify="right" if i else "left", overflow=overflow)
        for row in grid.rows:
            table.add_row(*map(Text, row))
        to.print(table)


def markdown(grids: Sequence[Grid], rule: str) -> list[str]:
    """Returns the lines of tables as Markdown; `rule` is below all columns but the first."""
    cell = lambda text: text.replace("|", "\\|").replace("\n", " ")
    parts: list[str] = []
    for grid in grids:
        parts += [f"**{grid.title}**", "", f"| {' | '.join(map(cell, grid.columns))} |"]
        parts += ["|---|" + f"{rule}|" * (len(grid.columns) - 1)]
        parts += [f"| {' | '.join(map(cell, row))} |" for row in grid.rows] + [""]
    return parts
