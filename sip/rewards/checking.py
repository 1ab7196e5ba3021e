"""Compares answers by math-verify in worker processes that are killed when they hang.

    python -I sip/rewards/checking.py WORKERS SECONDS MIB

sip.rewards.answers runs this file as a script, and nothing imports it: a child of the training
process would import that process's main module, and with it jax, which waits for the TPU that its
parent holds. Reads JSON lines [[gold, answer], ...] and writes a list of verdicts for each.
"""

import json
import os
import signal
import sys

# Verdicts. A comparison that failed says nothing about the answer.
RIGHT, WRONG, UNREAD, TIMEOUT, DIED, FAILED = (
    "right",
    "wrong",
    "unread",
    "timeout",
    "died",
    "failed",
)

LOST, GRACE = "lost", 10.0  # of the pool; seconds that killing a worker and starting one may take


def main(workers: int, seconds: float, mib: int) -> None:
    """Serves requests until stdin ends, or until the pool has lost its workers."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not mix with the verdicts
    silence()
    # The first comparisons take seconds, for imports and tables. Forked workers have done them.
    for pair in (("x^2 + 1", "1 + x^2"), ("\\frac{1}{2}", "0.7"), ("(1, 2)", "\\{2, 1\\}")):
        compare(*pair)
    pool, alive = started(workers, mib), True
    for line in sys.stdin:
        asked = [
            pool.schedule(worked, args=[*pair, mib], timeout=seconds) for pair in json.loads(line)
        ]
        verdicts = []
        for one in asked:
            verdicts.append(verdict(pool, one, 2 * seconds + GRACE) if alive else DIED)
            alive = verdicts[-1] != LOST
        answers.write(json.dumps([DIED if one == LOST else one for one in verdicts]) + "\n")
        answers.flush()
        if not alive:
            break


def started(workers: int, mib: int):
    """Returns a pool of worker processes."""
    import multiprocessing

    from pebble import ProcessPool

    context = multiprocessing.get_context("fork")  # this process has no threads but the pool's
    return ProcessPool(workers, context=context, initializer=limit, initargs=(mib,))


def verdict(pool, future, patience: float) -> str:
    """Returns the verdict of a comparison that was given to a worker of the pool.

    LOST if it has none after `patience` seconds though all before it have, or if the pool has
    ended: a worker that died with a lock of the pool leaves the others waiting for ever.
    """
    from pebble import ProcessExpired

    for _ in range(int(patience)):
        try:
            return future.result(timeout=1)
        except TimeoutError:
            if future.done():
                return TIMEOUT
            if not pool.active:
                return LOST
        except ProcessExpired:
            return DIED
        except Exception:
            return FAILED if pool.active else LOST
    return LOST


def silence() -> None:
    """Turns off log lines and warnings of the libraries."""
    import logging
    import warnings

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")


def limit(mib: int) -> None:
    """Limits a worker's memory."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (mib << 20, mib << 20))


def worked(gold: str, answer: str, mib: int) -> str:
    """Compares two answers in a worker, which dies if it came near its limit of memory.

    The library takes any exception for "not equal", also one for want of memory. This process's
    own parent must not look: its largest size counts that of the training process it came from.
    """
    import resource

    found = compare(gold, answer)
    if found == WRONG and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > mib << 9:
        os._exit(1)
    return found


def compare(gold: str, answer: str) -> str:
    """Compares two answers in LaTeX or plain notation."""
    from math_verify import parse, verify
    from math_verify.errors import TimeoutException

    # No timeouts of the library's own: they count as "not equal". The pool kills this process.
    read = lambda text: parse(f"\\boxed{{{text}}}", parsing_timeout=None)  # pyright: ignore
    try:
        right, said = read(gold), read(answer)
        if not said:
            return UNREAD
        if not right:
            return FAILED
        equal = verify(right, said, timeout_seconds=None)
    except TimeoutException:  # a BaseException
        return TIMEOUT
    except Exception:
        return FAILED
    return RIGHT if equal else WRONG


if __name__ == "__main__":
    if os.getpgrp() != os.getpid():
        os.setpgrp()
    try:
        main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
    finally:
        # This process and its workers. An ordinary end joins the workers, and pool.stop() takes a
        # lock: either may wait for ever, and the parent with them.
        os.killpg(0, signal.SIGKILL)
