"""Measures ways of doing one thing in turn: A B A B, so that other load meets all of them alike."""

import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sip.bench import peer
from sip.structs import UserError

PAUSE_SECONDS = 0.2  # before each turn: threads of the way before may still spin for work


@dataclass(frozen=True)
class Turn:
    """One timed execution."""

    seconds: float
    peak: int  # bytes, largest resident memory of its process
    value: Any


@dataclass(frozen=True)
class Measured:
    """The timed executions of one way, in order."""

    turns: list[Turn] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Median seconds."""
        return statistics.median(turn.seconds for turn in self.turns)

    @property
    def peak(self) -> int:
        """Largest resident memory, bytes."""
        return max(turn.peak for turn in self.turns)


def alternate(ways: Mapping[str, Callable[[], Turn]], turns: int) -> dict[str, Measured]:
    """Runs all ways once to compile and warm up, and then `turns` times in turn."""
    found = {name: Measured() for name in ways}
    for i in range(1 + turns):
        for name, run in ways.items():
            time.sleep(PAUSE_SECONDS)
            turn = run()
            if i:
                found[name].turns.append(turn)
    return found


def here(do: Callable[[], Any]) -> Callable[[], Turn]:
    """Returns a way that runs `do` in this process and waits for its device arrays."""

    def run() -> Turn:
        peer.reset_peak()
        start = time.perf_counter()
        value = jax.block_until_ready(do())
        return Turn(time.perf_counter() - start, peer.peak_bytes(), value)

    return run


@dataclass(frozen=True)
class Ratio:
    """Seconds of the other way / ours: ratio of medians, and range over the turns."""

    median: float
    low: float
    high: float


def ratio(ours: Measured, other: Measured, scale: float = 1.0) -> Ratio:
    """Compares two ways that took turns; the other's seconds are multiplied by `scale`."""
    each = [scale * b.seconds / a.seconds for a, b in zip(ours.turns, other.turns, strict=True)]
    return Ratio(scale * other.seconds / ours.seconds, min(each), max(each))


class PeerProcess:
    """The peer in a process of its own, which stays alive and answers requests over a pipe."""

    def __init__(self, python: str, script: str = peer.__file__):
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen([python, script], stdin=pipe, stdout=pipe)
        except OSError as error:
            raise UserError(f"--peer_python {python}: {error.strerror}") from None
        said = self._receive("its start")
        if "missing" in said:
            self.close()
            raise UserError(
                f"--against=hf: {python} has no package {said['missing']}; pip install torch "
                "transformers, or name another Python with --peer_python"
            )
        self.versions: dict[str, str] = said["versions"]

    def ask(self, action: str, **how: Any) -> Turn:
        """Sends a request and waits for its answer. Raises UserError if the peer fails."""
        peer.send(self._stream("stdin"), {"do": action, "with": how})
        said = self._receive(action)
        if "error" in said:
            raise UserError(f"--against=hf: {action} failed in the peer: {said['error']}")
        return Turn(said["seconds"], said["peak"], said["value"])

    def way(self, action: str, **how: Any) -> Callable[[], Turn]:
        """Returns a way that sends a request."""
        return lambda: self.ask(action, **how)

    def close(self) -> None:
        """Ends the process."""
        self._stream("stdin").close()
        self._process.wait()
        self._stream("stdout").close()

    def _receive(self, action: str) -> Any:
        try:
            return peer.receive(self._stream("stdout"))
        except EOFError:
            code = self._process.wait()
            raise UserError(f"--against=hf: the peer ended ({code}) during {action}") from None

    def _stream(self, name: str) -> Any:
        return {"stdin": self._process.stdin, "stdout": self._process.stdout}[name]


@dataclass(frozen=True)
class Ceilings:
    """Limits of the machine as measured; of both libraries, the better figure."""

    flops: float  # per second, product of square matrices
    bytes: float  # per second, read and written by a copy


def ceilings(size: int, megabytes: int, dtype: str, other: PeerProcess | None) -> Ceilings:
    """Measures the ceilings by products of `size` x `size` matrices and copies of `megabytes`."""
    a = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    x = jnp.zeros(megabytes << 18, jnp.float32)
    product, copy = jax.jit(jnp.matmul), jax.jit(lambda x: x + 1.0)
    ways = {"product": here(lambda: product(a, a)), "copy": here(lambda: copy(x))}
    found = alternate(ways, peer.REPEATS)
    least = {name: min(turn.seconds for turn in way.turns) for name, way in found.items()}
    flops, moved = 2 * size**3 / least["product"], 2 * x.nbytes / least["copy"]
    if other is not None:
        theirs = other.ask("ceiling", size=size, megabytes=megabytes, dtype=dtype).value
        flops, moved = max(flops, theirs["flops"]), max(moved, theirs["bytes"])
    return Ceilings(flops, moved)


def difference(a: Any, b: Any) -> float:
    """Returns the largest absolute difference of two arrays of numbers."""
    return float(np.max(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)), initial=0.0))
