"""A compiled program's text: computations, instructions, shapes, and how often a loop runs."""

import re
from dataclasses import dataclass

BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "s4": 0.5, "u4": 0.5, "token": 0}
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
DEFINED = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
NAME = re.compile(r"%([\w.\-]+)")


@dataclass(frozen=True)
class Instruction:
    """One line. `shape` is its type as written, `given` what stands in parentheses (operands, a
    constant's value, a parameter's number), `rest` all behind."""

    name: str
    shape: str
    op: str
    given: str
    rest: str
    root: bool

    @property
    def operands(self) -> tuple[str, ...]:
        """The names of instructions that it reads."""
        return tuple(NAME.findall(self.given))

    @property
    def number(self) -> int:
        """Of an integer constant its value, of a parameter its place."""
        return int(self.given)

    def called(self, key: str) -> str:
        """The computation that an attribute names, or an empty string."""
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.rest)
        return found[1] if found else ""

    @property
    def path(self) -> str:
        """Where in the traced program it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""


@dataclass(frozen=True)
class Computation:
    """Instructions by name, in order."""

    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The one whose value it returns."""
        return next(i for i in self.instructions.values() if i.root)


@dataclass(frozen=True)
class Module:
    """A program's computations by name."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Module:
    """The module written in `text`, as `compiled.as_text()` gives it."""
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
    end = _closed(text, 0) if text.startswith("(") else text.index(" ")
    op, _, _ = text[end:].lstrip().partition("(")
    start = text.index("(", end)
    stop = _closed(text, start)
    return Instruction(
        head[2], text[:end], op, text[start + 1 : stop - 1], text[stop:], bool(head[1])
    )


def _closed(text: str, start: int) -> int:
    """Where the parenthesis at `start` is closed, the place behind it."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if not depth:
            return at + 1
    raise ValueError(f"unbalanced: {text[:80]}")


def size(shape: str, *, everywhere: bool = False) -> float:
    """Bytes of a type in HBM; `everywhere`: in a chip's own memories, S(1) and on, too."""
    total = 0.0
    for kind, dims, layout in ARRAY.findall(shape):
        if everywhere or not re.search(r"S\([1-9]", layout):
            total += _width(kind) * _elements(dims)
    return total


def _width(kind: str) -> float:
    if kind in BYTES:
        return BYTES[kind]
    digits = re.search(r"\d+", kind)  # s32, u8, c64; of f8e4m3 the first number is the width
    return int(digits[0]) / 8 if digits else 0


def _elements(dims: str) -> int:
    product = 1
    for n in filter(None, dims.split(",")):
        product *= int(n)
    return product


def trips(module: Module, loop: Instruction, unknown: int) -> int:
    """How often a `while` runs, as XLA says, or else the constant that its counter is below.

    Our loops count from 0 in steps of 1. `unknown` where the condition holds no such constant.
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
