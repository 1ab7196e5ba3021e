"""Several processes as one program: how they meet, agree, and who writes.

Every process runs the same program on the same texts: batches, candidates and verdicts are whole on
each host, and only what lies on devices is divided. So all decide alike, and dispatch their
programs in one order. What one alone may do (write a file, ask a server) process 0 does.
"""

import glob
import importlib.util
import itertools
import os
import pickle
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from sip.structs import UserError

T = TypeVar("T")
HEARTBEAT_SECONDS = 60  # after which one that says nothing is given up, and so are all
MEETING_SECONDS = 300
GONE = "another process seems to have ended, or is out of reach"


def start(coordinator: str = "", count: int = 0, index: int = -1, detect: bool = False) -> None:
    """Joins the other processes, before anything else is asked of JAX.

    coordinator: HOST:PORT of process 0, then `count` and `index` too. detect: as the cluster says
    (Cloud TPU, GKE, Slurm, Open MPI), which a host with TPUs does unasked. Otherwise one process.
    Raises UserError where the flags do not fit together or the others cannot be reached in time.
    """
    if bool(coordinator) != (count > 0) or bool(coordinator) != (index >= 0):
        raise UserError("--coordinator, --processes and --process belong together")
    if coordinator and not 0 <= index < count:
        raise UserError(f"--process={index} is not below --processes={count}")
    if coordinator and not coordinator.rpartition(":")[2].isdigit():
        raise UserError(f"--coordinator={coordinator}: no HOST:PORT")
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
        raise UserError(f"the processes do not meet ({coordinator or 'detected'}): {words}") from e
    if jax.default_backend() == "cpu":
        # Process 0 alone would have programs from the cache, and XLA's CPU programs that are read
        # back do not keep the order of their collectives (jaxlib 0.10.2): all would wait for ever.
        jax.config.update("jax_enable_compilation_cache", False)


def on_tpu() -> bool:
    """Whether this host has TPUs and JAX is to use them."""
    wanted = os.environ.get("JAX_PLATFORMS", "tpu")
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    return "tpu" in wanted and bool(chips) and importlib.util.find_spec("libtpu") is not None


def is_distributed() -> bool:
    """Whether there is more than this process."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def lead() -> bool:
    """Whether this is process 0, the only one that writes."""
    return jax.process_index() == 0


def fetch(tree: Any) -> Any:
    """Arrays on devices as whole numpy arrays, on every process."""

    def one(x):
        whole = not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
        return np.asarray(x if whole else multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(one, tree)


def on_lead(do: Callable[[], Any]) -> None:
    """Process 0 does it; the others wait until it is done. Raises its UserError everywhere."""
    broadcast(lambda: (do(), None)[1])


def broadcast(ask: Callable[[], T]) -> T:
    """What process 0 gets by asking, on every process; a UserError likewise."""
    if not is_distributed():
        return ask()
    said: tuple[bool, Any] = (True, None)
    if lead():
        try:
            said = True, ask()
        except UserError as e:
            said = False, str(e)
    ok, value = pickle.loads(_broadcast(pickle.dumps(said)))
    if not ok:
        raise UserError(value)
    return value


def _broadcast(data: bytes) -> bytes:
    """Process 0's bytes; in sizes that are powers of two, so that few programs are compiled."""
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    room = np.zeros(1 << max(length - 1, 1).bit_length(), np.uint8)
    if lead():
        room[:length] = np.frombuffer(data, np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(room), np.uint8)[:length])


def agree(step: int, tree: Any) -> None:
    """Raises UserError where the processes hold different values of what is to be the same."""
    if not is_distributed():
        return
    known = zlib.crc32(str(step).encode())
    for x in jax.tree.leaves(tree):
        known = zlib.crc32(np.ascontiguousarray(x).tobytes(), known)
    every = np.asarray(multihost_utils.process_allgather(np.uint32(known)))
    if (every != every[0]).any():
        odd = np.flatnonzero(every != every[0]).tolist()
        raise UserError(
            f"step {step}: processes {odd} have another batch or other figures than process 0: are "
            "the code, the config and the corpus the same on all hosts?"
        )


_calls = itertools.count(1)  # over all runs of a recipe, where steps begin anew


def preempted() -> bool:
    """Whether one of the processes was told to end, true on all of them at the same call."""
    return is_distributed() and multihost_utils.reached_preemption_sync_point(next(_calls))
