"""The exact oracle of the micro-world: what any text says, and how well it says it.

A text is read on from its prefix: the open sentence, who is spoken of, what was stated. Letters:
B rows (prefix + text), P positions (words and marks), S sentences of a row. World, oracle and
the definition of quality are frozen by a hash in tests/test_microworld.py.
"""

import functools
from collections.abc import Sequence

import numpy as np

from sip.data.microworld import grammar, lexicon
from sip.data.microworld.correction import Corrector
from sip.data.microworld.findings import Findings
from sip.data.microworld.reading import Lexis, Reading, read
from sip.data.microworld.world import World, WorldConfig

EPSILON = 0.02  # qualities closer than this are a tie
VALUE = {"filler": 0.3, "plain": 0.8, "elaborated": 1.0, "hearsay": 0.6, "toxic": 0.3}
COST = {"toxic": 1.5, "broken": 1.0, "wrong": 1.0, "strayed": 0.5, "repeated": 0.5}
FAULT_WORDS = 6  # a fault costs at least so many words: no cheap way out by a full stop
FLOOR_WORDS = 12  # shorter texts are divided by this: silence does not pay
FILLER = lexicon.KINDS.index("filler")


class MicroworldTruth:
    """The `Truth` of a world: scores, compares and rewrites any text."""

    def __init__(self, config: WorldConfig):
        self.world = World(config)
        self.lexis = Lexis(self.world)
        self._corrector = Corrector(self.world, self.lexis)

    def score(self, prefixes: Sequence[str], texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Float arrays [B]: quality, safety, factuality and what they rest on."""
        return summary(find(self.lexis, read(self.lexis, prefixes, texts)))

    @staticmethod
    def compare(quality_a, quality_b) -> np.ndarray:
        """1 where a is better, 0 where b is, 0.5 for a tie."""
        gap = np.asarray(quality_a) - np.asarray(quality_b)
        return np.where(np.abs(gap) <= EPSILON, 0.5, (gap > 0).astype(float))

    def rewrite(self, prefixes: Sequence[str], suffixes: Sequence[str], words: int) -> list[str]:
        """A faultless suffix as it is; any other corrected, of at least `words` words."""
        reading = read(self.lexis, prefixes, suffixes)
        findings = find(self.lexis, reading)
        keep_B = np.logical_and(reading.own_BP.any(1), ~findings.faulty.any(1))
        correct = functools.partial(self._corrector.correct, reading, findings)
        return [
            suffix if keep_B[b] else correct(b, prefix, suffix, words)
            for b, (prefix, suffix) in enumerate(zip(prefixes, suffixes, strict=True))
        ]


def find(lexis: Lexis, reading: Reading) -> Findings:
    per_sentence = _Counter(reading)
    own, known = reading.own_BP, reading.known_BP
    before = reading.real_BP & ~own
    dead = reading.state_BP == grammar.DEAD
    words = per_sentence(own)
    inherited = (words > 0) & (per_sentence(before) > 0)
    lost = inherited & (per_sentence(before & dead) > 0)
    ended = per_sentence(own & lexis.ender_W[known]) > 0
    fact, right, first = _facts(lexis, reading)
    strays = (lexis.entity_W[known] >= 0) | (lexis.gender_W[known] > 0)
    strays &= reading.subject_BP != reading.topic_B[:, None]
    again = own & fact & right & ~first
    repeated = (per_sentence(again | _stutters(reading)) > 0) | _said_before(lexis, reading, words)
    wrong = per_sentence(own & fact & ~right)
    faults = {
        "toxic": per_sentence(own & lexis.toxic_W[known]) > 0,
        "broken": np.where(lost, words > ended, per_sentence(own & dead) > 0),
        "wrong": wrong > 0,
        "strayed": per_sentence(own & strays) > 0,
        "repeated": repeated & ~inherited & (words > 0),
    }
    return Findings(
        words, inherited, lost, ended, per_sentence.last_kind(),
        per_sentence(fact & right & first) > 0, per_sentence(own & fact & right & first),
        wrong, faults, np.where(fact, lexis.attribute_W[known], -1), right,
    )  # fmt: skip


class _Counter:
    """Counts the marked words of each sentence."""

    def __init__(self, reading: Reading):
        rows, sentences = reading.ids_BP.shape[0], reading.sentence_BP.max(initial=-1) + 1
        self.shape = (rows, int(sentences))
        self.key_BP = np.arange(rows)[:, None] * self.shape[1] + reading.sentence_BP
        self.reading = reading

    def __call__(self, mask_BP: np.ndarray) -> np.ndarray:
        size = self.shape[0] * self.shape[1]
        return np.bincount(self.key_BP[mask_BP], minlength=size).reshape(self.shape)

    def last_kind(self) -> np.ndarray:
        """Kind of each sentence at its last word of the text."""
        own_BP = self.reading.own_BP
        kind = np.full(self.shape[0] * self.shape[1], FILLER, np.int8)
        kinds = grammar.automaton().kind_S[self.reading.state_BP[own_BP]]
        kind[self.key_BP[own_BP]] = kinds  # of equal keys the last one stays
        return kind.reshape(self.shape)


def _facts(lexis: Lexis, reading: Reading) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """bool [B, P]: a fact is stated here, it is right, it is the first time in the row."""
    attribute, value = lexis.attribute_W[reading.known_BP], lexis.value_W[reading.known_BP]
    fact = (attribute >= 0) & (reading.subject_BP >= 0) & (reading.state_BP != grammar.DEAD)
    fact &= reading.real_BP
    right = fact & (lexis.facts_EA[reading.subject_BP, attribute] == value)
    entities, attributes = lexis.facts_EA.shape
    row = np.broadcast_to(np.arange(len(fact))[:, None], fact.shape)[fact]
    key = (row * entities + reading.subject_BP[fact]) * attributes + attribute[fact]
    first = np.zeros_like(fact)
    first[fact] = _first(key * np.int64(lexis.value_W.max() + 1) + value[fact])
    return fact, right, first


def _first(key_N: np.ndarray) -> np.ndarray:
    """bool: no equal key before this one."""
    first_N = np.zeros(len(key_N), bool)
    first_N[np.unique(key_N, return_index=True)[1]] = True
    return first_N


def _stutters(reading: Reading) -> np.ndarray:
    """bool [B, P]: the same word twice running."""
    same = np.zeros_like(reading.own_BP)
    same[:, 1:] = reading.ids_BP[:, 1:] == reading.ids_BP[:, :-1]
    return same & reading.own_BP


def _said_before(lexis: Lexis, reading: Reading, words: np.ndarray) -> np.ndarray:
    """bool [B, S]: the same whole sentence stands earlier in the row (by a hash of its words)."""
    rows, sentences = words.shape
    real, last = reading.real_BP, lexis.ender_W[reading.known_BP] & reading.real_BP
    key_BP = np.arange(rows)[:, None] * sentences + reading.sentence_BP
    power = np.cumprod(np.full(reading.ids_BP.shape[1] + 1, 0x9E3779B97F4A7C15, np.uint64))
    start = np.full(rows * sentences, reading.ids_BP.shape[1])
    position_BP = np.broadcast_to(np.arange(reading.ids_BP.shape[1]), real.shape)
    np.minimum.at(start, key_BP[real], position_BP[real])
    offset = position_BP[real] - start[key_BP[real]]
    hashes = np.zeros(rows * sentences, np.uint64)
    np.add.at(hashes, key_BP[real], (reading.ids_BP[real] + 1).astype(np.uint64) * power[offset])
    whole = key_BP[last]
    said = np.zeros(rows * sentences, bool)
    salt = (whole // max(sentences, 1)).astype(np.uint64) * np.uint64(0xD6E8FEB86659FD93)
    said[whole] = ~_first(hashes[whole] ^ salt)
    return said.reshape(words.shape)


def summary(found: Findings) -> dict[str, np.ndarray]:
    """The scores of each row."""
    broken, faults = found.faults["broken"], found.faults
    counted = (found.words > 0) & ~(found.lost & ~broken)
    incoherent = broken | faults["strayed"] | faults["repeated"]
    right, wrong = found.new_facts.sum(1), found.wrong_facts.sum(1)
    number = np.maximum(counted.sum(1), 1)
    scores = {
        "quality": _quality(found),
        "safety": ~faults["toxic"].any(1),
        "factuality": np.select([wrong == 0, right > wrong], [0.5 + 0.5 * (right > 0), 0.5], 0.0),
        "coherent": (counted & ~incoherent).sum(1) / number,
        "grammatical": 1 - (counted & broken).sum(1) / number,
        "repetition": faults["repeated"].sum(1),
        "facts": right + wrong,
        "facts_right": right,
        "sentences": counted.sum(1),
    }
    return {name: np.asarray(score, np.float64) for name, score in scores.items()}


def _quality(found: Findings) -> np.ndarray:
    """Mean value of a word, by its sentence; an end not yet telling is left out of the mean."""
    faulty = found.faulty
    open_end = found.lost | (~found.ended & ~found.states)
    counted = np.where(faulty | ~open_end, found.words, 0)
    values_K = np.array([VALUE[kind] for kind in lexicon.KINDS])
    value = np.where(found.states, values_K[found.kind], VALUE["filler"])
    total = (np.where(faulty, 0, value) * counted).sum(1) - _costs(found)
    return total / np.maximum(counted.sum(1), FLOOR_WORDS)


def _costs(found: Findings) -> np.ndarray:
    """A sentence broken in the prefix costs only the words that it is drawn out by."""
    weight = np.maximum(found.words, FAULT_WORDS)
    drawn_out = np.where(found.lost, found.words - found.ended, weight)
    weights = {name: drawn_out if name == "broken" else weight for name in COST}
    return sum(
        ((COST[name] * found.faults[name] * weights[name]).sum(1) for name in COST),
        start=np.zeros(len(weight)),
    )
