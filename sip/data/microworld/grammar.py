"""The templates compiled into one minimal acyclic automaton over word classes.

State 0 is dead and absorbs; a state without edges is the end of a sentence of a known kind.
Letters here: S states, C word classes.
"""

import functools
from dataclasses import dataclass

import numpy as np

from sip.data.microworld import lexicon

DEAD = 0
ENDERS = (".", "!", "?")
MARKS = (".", ",", "!", "?")  # written without a space before them


@dataclass(frozen=True)
class Automaton:
    table_SC: np.ndarray  # next state; class 0 is any word outside the language
    kind_S: np.ndarray  # kind of the sentence when ended the shortest way; -1 for dead
    start: int
    classes: dict[str, int]  # symbol -> class
    edges: tuple[tuple[tuple[str, int], ...], ...]  # per state, (symbol, next) in a fixed order


@functools.cache
def automaton() -> Automaton:
    states = _States()
    start = states.intern(_trie())
    symbols = sorted({symbol for edges in states.edges for symbol, _ in edges})
    classes = {symbol: c for c, symbol in enumerate(symbols, start=1)}
    table_SC = np.zeros((len(states.edges), len(classes) + 1), np.int16)
    for state, edges in enumerate(states.edges):
        for symbol, following in edges:
            table_SC[state, classes[symbol]] = following
    kind_S = np.array([kind for _, kind in states.shortest], np.int8)
    return Automaton(table_SC, kind_S, start, classes, tuple(states.edges))


def sentences():
    """(kind, symbols) of every sentence of the language, with doubles."""
    for group, templates in lexicon.TEMPLATES.items():
        for template in templates:
            for symbols in lexicon.expand(template):
                yield lexicon.sentence_kind(group, symbols), symbols


def _trie() -> dict:
    root: dict = {}
    for kind, symbols in sentences():
        node = root
        for symbol in symbols[:-1]:
            node = node.setdefault(symbol, {})
        node.setdefault(symbols[-1], kind)
    return root


class _States:
    """Nodes with equal futures become one state."""

    def __init__(self):
        self.edges: list[tuple[tuple[str, int], ...]] = [()]
        self.shortest: list[tuple[int, int]] = [(0, -1)]  # (distance to the end, kind there)
        self._known: dict = {}

    def intern(self, node: dict | str) -> int:
        if isinstance(node, str):
            return self._state(node, (), (0, lexicon.KINDS.index(node)))
        edges = tuple(sorted((symbol, self.intern(child)) for symbol, child in node.items()))
        distance, kind = min(self.shortest[following] for _, following in edges)
        return self._state(edges, edges, (distance + 1, kind))

    def _state(self, key, edges, shortest) -> int:
        if key not in self._known:
            self._known[key] = len(self.edges)
            self.edges.append(edges)
            self.shortest.append(shortest)
        return self._known[key]
