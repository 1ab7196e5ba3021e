"""Compiles the sentence templates into one minimal acyclic automaton over word classes.

State 0 is dead: a broken sentence stays there. A state without edges is the end of a sentence; it
has a kind. Letters: S states, C word classes.
"""

import functools
from dataclasses import dataclass

import numpy as np

from sip.data.microworld import lexicon

DEAD = 0
ENDERS = (".", "!", "?")  # marks that end a sentence
MARKS = (".", ",", "!", "?")  # marks written without a space before them


@dataclass(frozen=True)
class Automaton:
    """The automaton as a transition table."""

    table_SC: np.ndarray  # next state, int16; class 0 is any word outside the language
    kind_S: np.ndarray  # kind of the sentence along the shortest path to an end; -1 for dead
    start: int  # state at the beginning of a sentence
    classes: dict[str, int]  # symbol -> class
    edges: tuple[tuple[tuple[str, int], ...], ...]  # per state: (symbol, next) in a fixed order


@functools.cache
def automaton() -> Automaton:
    """Returns the automaton of all sentences, built at the first call."""
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
    """Yields (kind, symbols) of every sentence of the language, with duplicates."""
    for group, templates in lexicon.TEMPLATES.items():
        for template in templates:
            for symbols in lexicon.expand(template):
                yield lexicon.sentence_kind(group, symbols), symbols


def _trie() -> dict:
    """Returns the prefix tree of all sentences; a leaf is the kind of its sentence."""
    root: dict = {}
    for kind, symbols in sentences():
        node = root
        for symbol in symbols[:-1]:
            node = node.setdefault(symbol, {})
        node.setdefault(symbols[-1], kind)  # of duplicates, the first kind counts
    return root


class _States:
    """Merges the trie's nodes: nodes with equal subtrees become one state."""

    def __init__(self):
        self.edges: list[tuple[tuple[str, int], ...]] = [()]
        self.shortest: list[tuple[int, int]] = [(0, -1)]  # (distance to the end, kind there)
        self._known: dict = {}

    def intern(self, node: dict | str) -> int:
        """Returns the state of a trie node, after those of its children (depth first)."""
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
