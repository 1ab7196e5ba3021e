"""Several processes as one program: start-up, agreement, and work that only process 0 does.

Every process runs the same program on the same texts. Batches, candidates and verdicts are whole on
every host; only device arrays are sharded. So all processes make the same decisions and dispatch
programs in the same order. Only process 0 writes files and sends requests to servers.
"""

import glob
import importlib.util
import itertools
import os
import pickle
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from sip.structs import UserError

S = TypeVar("S")
T = TypeVar("T")
HEARTBEAT_SECONDS = 60  # a process silent for so long counts as dead, and all processes end
MEETING_SECONDS = 300  # time limit of start-up
_asking: list[bool] = []  # not empty while process 0 asks and the others wait for it
GONE = "another process seems to have ended or cannot be reached"


def start(coordinator: str = "", count: int = 0, index: int = -1, detect: bool = False) -> None:
    """Connects to the other processes. Call it before any other use of JAX.

    `coordinator` is the address of process 0, HOST:PORT; it needs `count`, the number of processes,
    and `index`, the index of this process from 0. `detect` asks the cluster instead (Cloud TPU,
    GKE, Slurm, Open MPI); on a host with TPUs this is the default. Otherwise there is one process.
    Raises UserError if the flags contradict each other or a process cannot be reached within
    MEETING_SECONDS.
    """
    if bool(coordinator) != (count > 0) or bool(coordinator) != (index >= 0):
        raise UserError("--coordinator, --processes and --process must be given together")
    if coordinator and not 0 <= index < count:
        raise UserError(f"--process={index} must be below --processes={count}")
    if coordinator and not coordinator.rpartition(":")[2].isdigit():
        raise UserError(f"--coordinator={coordinator} must have the form HOST:PORT")
    if not (coordinator or detect or on_tpu()):
        return
    try:
        jax.distributed.initialize(
            coordinator or None,
            count or None,
            index if coordinator else None,
            initialization_timeout=MEETING_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError) as e:
        words = " ".join(str(e).split())[:200]
        raise UserError(
            f"cannot connect to the other processes ({coordinator or 'detected'}): {words}"
        ) from e
    # A default directory is for a single process (`cli.keep_programs`).
    jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR"))
    if jax.default_backend() == "cpu":
        # Only process 0 would load programs from the compilation cache, and cached CPU programs do
        # not keep the order of their collectives (jaxlib 0.10.2): all processes would deadlock.
        jax.config.update("jax_enable_compilation_cache", False)


def on_tpu() -> bool:
    """Returns True if this host has TPUs and JAX may use them (JAX_PLATFORMS).

    It looks at device files, since asking JAX would initialise its backend too early for `start`.
    """
    wanted = os.environ.get("JAX_PLATFORMS", "tpu")
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    return "tpu" in wanted and bool(chips) and importlib.util.find_spec("libtpu") is not None


def is_distributed() -> bool:
    """Returns True if there is more than one process."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def lead() -> bool:
    """Returns True on process 0, the only one that writes."""
    return jax.process_index() == 0


def fetch(tree: Any) -> Any:
    """Returns a tree of device arrays as whole numpy arrays, on every process."""

    def one(x):
        whole = not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
        return np.asarray(x if whole else multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(one, tree)


def on_lead(do: Callable[[], Any]) -> None:
    """Runs `do` on process 0 while the others wait. A UserError is raised on every process."""
    broadcast(lambda: (do(), None)[1])


def broadcast(ask: Callable[[], T]) -> T:
    """Runs `ask` on process 0 and returns its result on every process.

    The result must be picklable. A UserError is raised on every process. `ask` may call functions
    that broadcast: inside it process 0 is alone, so they ask without an exchange.
    """
    if not is_distributed() or _asking:
        return ask()
    said: tuple[bool, Any] = (True, None)
    if lead():
        _asking.append(True)
        try:
            said = True, ask()
        except UserError as e:
            said = False, str(e)
        finally:
            _asking.pop()
    ok, value = pickle.loads(_broadcast(pickle.dumps(said)))
    if not ok:
        raise UserError(value)
    return value


def _broadcast(data: bytes) -> bytes:
    """Returns process 0's bytes on every process."""
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    room = _padded(data if lead() else b"", length)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(room), np.uint8)[:length])


def _padded(data: bytes, length: int) -> np.ndarray:
    """Returns the bytes in an array for `length` bytes.

    Sizes are powers of two, so that few programs are compiled to exchange them.
    """
    room = np.zeros(1 << max(length - 1, 1).bit_length(), np.uint8)
    room[: len(data)] = np.frombuffer(data, np.uint8)
    return room


def divided(items: Sequence[S], do: Callable[[S], T]) -> list[T]:
    """Returns [do(x) for x in items] on every process; each process does its share of the items.

    Results must be picklable. A UserError of any process is raised on every process.
    """
    if not is_distributed():
        return [do(x) for x in items]
    count, index = jax.process_count(), jax.process_index()
    said: tuple[bool, Any]
    try:
        said = True, [do(x) for x in items[index::count]]
    except UserError as e:
        said = False, str(e)
    shares: list[list[T]] = []
    for ok, value in map(pickle.loads, _gathered(pickle.dumps(said))):
        if not ok:
            raise UserError(value)
        shares.append(value)
    return [shares[i % count][i // count] for i in range(len(items))]


def _gathered(data: bytes) -> list[bytes]:
    """Returns the bytes of all processes, in their order, on every process."""
    lengths = np.asarray(multihost_utils.process_allgather(np.int32(len(data)))).ravel()
    rooms = multihost_utils.process_allgather(_padded(data, int(lengths.max())))
    rooms = np.asarray(rooms, np.uint8).reshape(len(lengths), -1)
    return [bytes(room[:length]) for room, length in zip(rooms, lengths, strict=True)]


def agree(step: int, tree: Any) -> None:
    """Raises UserError if the arrays of `tree` differ between processes.

    Processes compare checksums (CRC-32). Without this check a difference would go unnoticed: every
    process would train on its own shards of another batch.
    """
    if not is_distributed():
        return
    known = zlib.crc32(str(step).encode())
    for x in jax.tree.leaves(tree):
        known = zlib.crc32(np.ascontiguousarray(x).tobytes(), known)
    every = np.asarray(multihost_utils.process_allgather(np.uint32(known)))
    if (every != every[0]).any():
        odd = np.flatnonzero(every != every[0]).tolist()
        raise UserError(
            f"step {step}: processes {odd} have another batch or other metrics than process 0; "
            "use the same code, config and corpus on all hosts"
        )


_calls = itertools.count(1)  # a sync point's number must grow; steps restart in every run


def preempted() -> bool:
    """Returns True if any process was asked to end; all processes get the same answer.

    All processes must make the same number of calls.
    """
    return is_distributed() and multihost_utils.reached_preemption_sync_point(next(_calls))
