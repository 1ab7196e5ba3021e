"""Verifiable rewards: 1 for a right answer to a problem, else 0.

    exact    equal texts, but for spaces, capitals and a final full stop
    numeric  equal numbers: integers, decimals, fractions; without $ and %
    math     equal by math-verify (extra `rlvr`), in processes of their own
    own      by the generator of reasoning-gym that made the problem

A text without an answer in the wanted form is wrong, and so is an answer that is longer or deeper
than any right one. A check that fails, by a timeout or a worker that dies, says nothing about the
answer: it is masked and counted. Equal pairs of a call are checked once, and an answer whose check
has timed out is not checked again in it: a policy that collapses may write one such answer only.
"""

import contextlib
import functools
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from sip import processes
from sip.data.problems import GYM, ProblemsConfig, within_limits
from sip.metrics import pair
from sip.rewards.checking import DIED, FAILED, RIGHT, TIMEOUT, UNREAD, WRONG
from sip.rewards.verdicts import Reward
from sip.sections import above, at_least, check, one_of
from sip.structs import UserError

CHECKS = ("exact", "numeric", "math", "own")
REFUSED = "refused"
VERDICTS = (RIGHT, WRONG, UNREAD, REFUSED, TIMEOUT, DIED, FAILED)
FAILURES = (TIMEOUT, DIED, FAILED)
NUMBER = re.compile(r"[-+]?(\d+|\d{1,3}(,\d{3})+)?(\.\d+)?")
RATIO = re.compile(r"([-+]?\d+)\s*/\s*(\d+)")
MIB = 2048  # memory of a worker
# An answer that hangs does so beside a number. Beside itself it may not: equal texts are not looked
# into.
PROBE = "17"
LIBRARIES = dict.fromkeys(CHECKS, ()) | dict(math=("math_verify", "pebble"), own=("reasoning_gym",))
SCRIPT = Path(__file__).with_name("checking.py")


@dataclass(frozen=True)
class AnswersConfig:
    """The check of answers."""

    check: str = "math"  # exact | numeric | math | own (reasoning_gym)
    seconds: float = 3.0  # math: time of one check; then it is stopped and the answer is masked
    workers: int = 2  # math: number of worker processes

    def __post_init__(self):
        check(
            "answers",
            self,
            check=one_of(CHECKS),
            seconds=above(0),
            workers=at_least(1, most=64),
        )


@dataclass(frozen=True)
class Gold:
    """A right answer; `entry` is the record of the generator that made the problem."""

    answer: str
    entry: Any = None


def check_fits(cfg: AnswersConfig, asked: ProblemsConfig) -> None:
    """Raises UserError if the check is not one of problems from this source."""
    if (asked.source == GYM) != (cfg.check == "own"):
        raise UserError("answers.check own and problems.source reasoning_gym need each other")


class Checker:
    """Checks answers; the process with the workers starts when it is first needed."""

    def __init__(self, cfg: AnswersConfig):
        for library in LIBRARIES[cfg.check]:
            if importlib.util.find_spec(library) is None:
                raise UserError(
                    f"answers.check {cfg.check}: needs {library}: pip install 'sip-jax[rlvr]'"
                )
        self.cfg = cfg
        self._process: list[Any] = []  # none or one
        weakref.finalize(self, _stop, self._process)

    def verdicts(self, golds: Sequence[Gold], answers: Sequence[str | None]) -> list[str]:
        """Returns one of VERDICTS for each answer; None is an answer that was not found.

        With several processes only process 0 checks.
        """
        return processes.broadcast(lambda: self._verdicts(golds, answers))

    def readable(self, golds: Sequence[Gold]) -> list[str]:
        """Returns the verdict about each right answer as an answer to its own problem.

        In `verdicts` equal texts are right. Here only what the check can read is, and what it can
        compare with a number in time.
        """
        return processes.broadcast(lambda: self._readable(golds))

    def _verdicts(self, golds, answers) -> list[str]:
        found = [self._at_once(g, a) for g, a in zip(golds, answers, strict=True)]
        pairs = [(gold.answer, str(answer)) for gold, answer in zip(golds, answers, strict=True)]
        asked = self._asked([both for both, v in zip(pairs, found, strict=True) if not v])
        return [v or asked[both] for both, v in zip(pairs, found, strict=True)]

    def _readable(self, golds: Sequence[Gold]) -> list[str]:
        found = [self._of_itself(gold) for gold in golds]
        texts = [gold.answer for gold, v in zip(golds, found, strict=True) if not v]
        asked = self._asked([both for text in texts for both in ((PROBE, text), (text, text))])
        failed = {text for text in texts if asked[PROBE, text] in FAILURES}
        probed = {x: asked[(PROBE if x in failed else x), x] for x in texts}
        return [v or probed[gold.answer] for gold, v in zip(golds, found, strict=True)]

    def _at_once(self, gold: Gold, answer: str | None) -> str:
        """Returns the verdict, or "" if math-verify has to decide."""
        if answer is None:
            return UNREAD
        if not within_limits(answer):
            return REFUSED
        if self.cfg.check == "own":
            return _by_generator(gold, answer)
        if normal(answer) == normal(gold.answer):
            return RIGHT
        return self._by_value(gold.answer, answer)

    def _of_itself(self, gold: Gold) -> str:
        """Returns the verdict about a right answer, or "" if math-verify has to decide."""
        if not within_limits(gold.answer):
            return REFUSED
        if self.cfg.check == "own":
            return _by_generator(gold, gold.answer)
        return self._by_value(gold.answer, gold.answer)

    def _by_value(self, gold: str, answer: str) -> str:
        """Returns the verdict without math-verify, "" if it has to decide."""
        if self.cfg.check == "exact":
            return RIGHT if normal(answer) == normal(gold) else WRONG
        strip = self.cfg.check == "numeric"
        right, said = number(gold, strip=strip), number(answer, strip=strip)
        if right is not None and said is not None:
            return RIGHT if right == said else WRONG
        if self.cfg.check == "math":
            return ""
        return UNREAD if said is None else WRONG

    def _asked(self, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
        """Asks math-verify about each pair (right answer, answer) once.

        First about one pair of each answer: one that has timed out would do so beside another right
        answer too.
        """
        by_answer: dict[str, tuple[str, str]] = {}
        for gold, answer in pairs:
            by_answer.setdefault(answer, (gold, answer))
        first = list(by_answer.values())
        found = dict(zip(first, self._compared(first), strict=True))
        hung = {answer for (_, answer), verdict in found.items() if verdict == TIMEOUT}
        rest = [both for both in dict.fromkeys(pairs) if both not in found]
        left = [both for both in rest if both[1] not in hung]
        found |= dict.fromkeys(rest, TIMEOUT)
        return found | dict(zip(left, self._compared(left), strict=True))

    def _compared(self, pairs: list[tuple[str, str]]) -> list[str]:
        """Asks the worker processes; if their parent dies, no answer of this call has a verdict."""
        if not pairs:
            return []
        if self._process and self._process[0].poll() is not None:
            _stop(self._process)
        if not self._process:
            self._process.append(_start(self.cfg))
        process = self._process[0]
        try:
            process.stdin.write(json.dumps(pairs) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())
        except (OSError, ValueError):
            _stop(self._process)  # the next call starts another one
            return [DIED] * len(pairs)


@functools.cache
def checker(cfg: AnswersConfig) -> Checker:
    """Returns the checker of a config: one for all runs of the process."""
    return Checker(cfg)


def _start(cfg: AnswersConfig) -> subprocess.Popen:
    # -I: nothing of this process's paths and files is imported. A session of its own: Ctrl-C
    # stops the training loop, which finishes its step first.
    args = [sys.executable, "-I", str(SCRIPT), str(cfg.workers), str(cfg.seconds), str(MIB)]
    return subprocess.Popen(
        args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def _stop(kept: list[Any]) -> None:
    """Ends the process and its workers, which are a process group of their own."""
    for process in kept:
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # what was not read yet is lost
                pipe.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    kept.clear()


def _by_generator(gold: Gold, answer: str) -> str:
    from reasoning_gym import get_score_answer_fn

    score: Any = get_score_answer_fn(gold.entry["metadata"]["source_dataset"])
    try:
        return RIGHT if score(answer, gold.entry) >= 1 else WRONG  # a part of it is not right
    except Exception:
        return FAILED


def normal(answer: str) -> str:
    """Returns an answer with single spaces, without $ around it, capitals and a full stop."""
    text = " ".join(answer.split()).casefold()
    text = text.removesuffix(".").strip()
    return text[1:-1].strip() if len(text) > 2 and text[0] == text[-1] == "$" else text


def number(answer: str, *, strip: bool = False) -> Fraction | None:
    """Returns the value of an integer, decimal or fraction; None for anything else.

    `strip`: a dollar sign and a percent sign are left out.
    """
    text = normal(answer)
    if strip:
        text = text.replace("\\$", "").replace("$", "").removesuffix("%").removesuffix("\\")
    text = text.replace("−", "-").replace("{,}", ",").strip()
    if (found := RATIO.fullmatch(text)) and int(found[2]):
        return Fraction(int(found[1]), int(found[2]))
    if NUMBER.fullmatch(text) and any(c.isdigit() for c in text):
        return Fraction(text.replace(",", ""))
    return None


def key(answer: str | None) -> str:
    """Returns the text by which answers vote for a majority; empty if there is no answer."""
    if answer is None or not within_limits(answer):
        return ""
    value = number(answer)
    return normal(answer) if value is None else str(value)


def reward(verdicts: Sequence[Sequence[str]], tokens: Sequence[Sequence[int]]) -> Reward:
    """Rewards K answers to each of B problems. Returns (reward_BK, valid_BK, metrics).

    `tokens` are the answers' lengths: those of wrong ones grow when a policy rambles.
    """
    verdict_BK, tokens_BK = np.array(verdicts), np.array(tokens)
    right_BK = verdict_BK == RIGHT
    valid_BK = ~np.isin(verdict_BK, FAILURES)
    metrics = {f"answers/{name}": pair(verdict_BK == name) for name in VERDICTS[1:]}
    metrics |= {"answers/right_tokens": pair(tokens_BK, right_BK)}
    metrics |= {"answers/wrong_tokens": pair(tokens_BK, valid_BK & ~right_BK)}
    return right_BK.astype(np.float32), valid_BK, metrics
