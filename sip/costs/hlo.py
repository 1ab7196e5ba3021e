"""Parses compiled HLO text: computations, instructions, shapes and trip counts of loops."""

import re
from dataclasses import dataclass

BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "s4": 0.5, "u4": 0.5, "token": 0}
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
DEFINED = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
NAME = re.compile(r"%([\w.\-]+)")


@dataclass(frozen=True)
class Instruction:
    """One instruction, which is one line of HLO text."""

    name: str
    shape: str  # type as written, such as f32[8,128]{1,0}
    op: str
    given: str  # text in parentheses: operands, a constant's value or a parameter's number
    rest: str  # text after the parentheses: attributes and metadata
    root: bool

    @property
    def operands(self) -> tuple[str, ...]:
        """The names of the operand instructions."""
        return tuple(NAME.findall(self.given))

    @property
    def number(self) -> int:
        """The value of an integer constant, or the index of a parameter."""
        return int(self.given)

    def called(self, key: str) -> str:
        """Returns the computation named by attribute `key`, such as `body`; "" if absent."""
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.rest)
        return found[1] if found else ""

    @property
    def path(self) -> str:
        """The op_name of the metadata: the place in the traced program; "" if absent."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""


@dataclass(frozen=True)
class Computation:
    """Instructions of a computation by name, in order."""

    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The instruction whose value the computation returns."""
        return next(i for i in self.instructions.values() if i.root)


@dataclass(frozen=True)
class Module:
    """Computations of a program by name."""

    computations: dict[str, Computation]
    entry: str  # name of the entry computation


def parse(text: str) -> Module:
    """Parses the text that `compiled.as_text()` returns."""
    computations: dict[str, Computation] = {}
    entry, current = "", {}
    for line in text.splitlines():
        header = HEADER.match(line)
        if header:
            current = {}
            computations[header[2]] = Computation(current)
            entry = header[2] if header[1] else entry
        elif DEFINED.match(line):
            found = _instruction(line)
            current[found.name] = found
    return Module(computations, entry)


def _instruction(line: str) -> Instruction:
    head = DEFINED.match(line)
    assert head
    text = line[head.end() :]
    # A tuple type has parentheses and spaces, any other type has no space.
    end = _closed(text, 0) if text.startswith("(") else text.index(" ")
    op, _, _ = text[end:].lstrip().partition("(")
    start = text.index("(", end)
    stop = _closed(text, start)
    return Instruction(
        head[2], text[:end], op, text[start + 1 : stop - 1], text[stop:], bool(head[1])
    )


def _closed(text: str, start: int) -> int:
    """Returns the index after the parenthesis that closes the one at `start`."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if not depth:
            return at + 1
    raise ValueError(f"unbalanced: {text[:80]}")


def size(shape: str, *, everywhere: bool = False) -> float:
    """Returns the bytes of a type in HBM.

    With `everywhere`, arrays in on-chip memories (layouts with S(1), S(2), ...) count too.
    """
    total = 0.0
    for kind, dims, layout in ARRAY.findall(shape):
        if everywhere or not re.search(r"S\([1-9]", layout):
            total += _width(kind) * _elements(dims)
    return total


def _width(kind: str) -> float:
    if kind in BYTES:
        return BYTES[kind]
    digits = re.search(r"\d+", kind)  # s32, u8, c64; in f8e4m3 the first number is the width
    return int(digits[0]) / 8 if digits else 0


def _elements(dims: str) -> int:
    product = 1
    for n in filter(None, dims.split(",")):
        product *= int(n)
    return product


def trips(module: Module, loop: Instruction, unknown: int) -> int:
    """Returns the trip count of a `while` loop.

    Uses XLA's known_trip_count. Without it, uses the constant that the condition compares the
    counter with: our loops count from 0 in steps of 1. Returns `unknown` if neither exists.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
    if known:
        return int(known[1])
    condition = module.computations[loop.called("condition")].instructions
    for inner in condition.values():
        if inner.op == "compare" and "direction=LT" in inner.rest:
            limits = [condition[o] for o in inner.operands if o in condition]
            found = [i.number for i in limits if i.op == "constant"]
            if found:
                return found[0]
    return unknown
