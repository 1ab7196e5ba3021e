"""JSON over HTTP with bounded patience: timeouts, retries, counters, a cache of answers.

The key is read from the environment and stands in the requests' header alone: it is in no message,
log, repr or file, and errors carry no exception of the HTTP library behind them.
"""

import contextlib
import email.utils
import hashlib
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sip.structs import UserError
from sip.workdir import write_atomically

Read = Callable[[Any], Any]  # JSON -> what is wanted of it; raises one of UNREADABLE
BUSY = (408, 409, 429)  # try again, as on 5xx
REFUSED = (400, 413, 422)  # this request, such as one that is too long
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds
UNREADABLE = (ValueError, LookupError, TypeError, ArithmeticError, RecursionError)


@dataclass(frozen=True)
class Answer:
    """What was read of an answer, or None and the problem."""

    value: Any
    problem: str = ""
    fatal: bool = False  # asking anything again cannot help
    final: bool = False  # asking this again cannot help
    after: float | None = None  # seconds, by the server's wish


def check_url(url: str) -> None:
    """Raises UserError unless it is http(s)://host[:port][/path] alone: secrets go elsewhere."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        plain = not (parts.query or parts.fragment or "@" in parts.netloc)
    except ValueError:
        usable, plain = False, True
    if not plain:
        raise UserError("url must hold no user, password, query or fragment")
    if not usable or any(c.isspace() or not c.isprintable() for c in url):
        raise UserError(f"url must be like http://HOST:PORT/v1, not {url!r}")


def key_of(name: str) -> str:
    """The key in environment variable `name`; "" where no variable is named."""
    key = os.environ.get(name, "").strip() if name else ""
    if name and not (key and key.isascii() and key.isprintable() and " " not in key):
        raise UserError(f"key_env: environment variable {name} holds no usable key")
    return key


class Endpoint:
    """A server that is posted JSON; counts what that took.

    `ask` posts many from threads of its own, so it works inside a running event loop as well; it is
    itself called from one thread at a time.
    Connection errors, silence, 408, 409, 429, 5xx and answers that cannot be read are tried again,
    after a random wait (exponential, full jitter) or what Retry-After says, both bounded. `seconds`
    bounds an attempt as a whole, a server that drips bytes included.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str,
        concurrency: int,
        seconds: float,
        retries: int,
        cache: str = "",
        sleep: Callable[[float], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        check_url(url)
        self._url, self._concurrency = url.rstrip("/"), concurrency
        self._seconds, self._retries, self._clock = seconds, retries, clock
        self._stopped = threading.Event()
        self._sleep = sleep or self._stopped.wait
        self._cache = Path(cache) if cache else None
        self._lock, self._counts, self._proven = threading.Lock(), Counter(), False
        self._http, self._headers = _http(), {"content-type": "application/json"}
        self._tls = self._http.create_ssl_context()  # slow, so once
        self._said = lambda text: _one_line(text.replace(key, "[key]") if key else text)
        if key:
            self._headers["authorization"] = f"Bearer {key}"

    def __repr__(self):
        return f"Endpoint({self._url!r})"

    def ask(
        self, path: str, payloads: Sequence[Mapping], wanted: Read, whole: Read | None
    ) -> list[Answer]:
        """An answer per payload; equal payloads are asked once.

        `wanted` reads the server's JSON. `whole` returns what that gave, or raises where it is not
        to be kept; it also reads the cache. Without `whole` the cache is left alone.
        Raises UserError where no further request can succeed (wrong key, model or url), or where
        the cache cannot be written.
        """
        if not payloads:
            return []
        keys = [digest(path, payload) for payload in payloads]
        self._stopped.clear()
        with self._client() as client, ThreadPoolExecutor(self._concurrency) as pool:
            jobs = {
                key: pool.submit(self._job, client, path, payload, key, wanted, whole)
                for key, payload in dict(zip(keys, payloads, strict=True)).items()
            }
            try:
                answers = {key: job.result() for key, job in jobs.items()}
            finally:  # interrupted, nothing more is asked
                self._stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
        for answer in answers.values():
            if answer.fatal:
                raise UserError(answer.problem)
        return [answers[key] for key in keys]

    def stats(self) -> dict[str, tuple[float, float]]:
        """Per answer asked for: requests, retries, failed, cached, as (total, denom); then zero."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        names = ("requests", "retries", "failed", "cached")
        return {name: (float(counts[name]), float(counts["asked"])) for name in names}

    def _client(self):
        limit = self._http.Timeout(self._seconds, connect=min(self._seconds, 10.0))
        return self._http.Client(timeout=limit, verify=self._tls, follow_redirects=False)

    def _count(self, **more: int) -> None:
        with self._lock:
            self._counts.update(more)

    def _job(self, *job) -> Answer:
        answer = self._kept(*job)
        if answer.fatal:
            self._stopped.set()
        return answer

    def _kept(self, client, path, payload, key, wanted: Read, whole: Read | None) -> Answer:
        """From the cache, or from the server and into the cache."""
        self._count(asked=1)
        if self._cache is None or whole is None:
            return self._answer(client, path, payload, wanted)
        kept = load(self._cache, key, whole)
        if kept is not None:
            self._count(cached=1)
            return Answer(kept)
        answer = self._answer(client, path, payload, wanted)
        with contextlib.suppress(*UNREADABLE):
            whole(answer.value)
            problem = store(self._cache, key, answer.value)
            return Answer(None, problem, fatal=True) if problem else answer
        return answer

    def _answer(self, client, path, payload, wanted: Read) -> Answer:
        """From the server, after its retries."""
        body = json.dumps(payload).encode()  # ASCII
        answer = Answer(None, "stopped")
        for attempt in range(self._retries + 1):
            if self._stopped.is_set():
                break
            if attempt:
                self._count(retries=1)
            answer = self._attempt(client, path, body, wanted)
            if not answer.problem or answer.final:
                break
            if attempt < self._retries:
                self._sleep(_wait(attempt, answer.after))
        self._count(failed=int(bool(answer.problem)))
        return answer

    def _attempt(self, client, path: str, body: bytes, wanted: Read) -> Answer:
        self._count(requests=1)
        try:
            status, after, data = self._exchange(client, f"{self._url}/{path}", body)
        except (self._http.HTTPError, TimeoutError) as error:
            reason = self._said(f"{type(error).__name__} {error}")
            return Answer(None, f"{self._url}: no answer: {reason}")
        if status != 200:
            return self._refusal(status, after, data)
        try:
            value = wanted(json.loads(data))
        except UNREADABLE as error:
            reason = self._said(f"{type(error).__name__} {error}")
            return Answer(None, f"{self._url}: answered with what cannot be read: {reason}")
        self._proven = True
        return Answer(value)

    def _exchange(self, client, url: str, body: bytes) -> tuple[int, float | None, bytes]:
        start, parts = self._clock(), []
        with client.stream("POST", url, content=body, headers=self._headers) as response:
            for part in response.iter_bytes():
                parts.append(part)
                if self._clock() - start > self._seconds:
                    raise TimeoutError(f"no whole answer in {self._seconds:g} s")
            after = response.headers.get("retry-after")
            return response.status_code, _seconds(after), b"".join(parts)

    def _refusal(self, status: int, after: float | None, data: bytes) -> Answer:
        """Once a server has answered, a request that it refuses is at fault itself."""
        said = self._said(data[:2000].decode(errors="replace"))[:300]
        problem = f"{self._url}: status {status}: {said}"
        if status in BUSY or status >= 500:
            return Answer(None, problem, after=after)
        return Answer(None, problem, fatal=not (status in REFUSED and self._proven), final=True)


def _http():
    try:
        import httpx
    except ImportError:
        raise UserError("the HTTP backend needs httpx: pip install 'sip-jax[serve]'") from None
    return httpx


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _wait(attempt: int, after: float | None) -> float:
    """Seconds before the next attempt."""
    jitter = random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2**attempt))
    return min(LONGEST_WAIT, (after or 0.0) + jitter)


def _seconds(after: str | None) -> float | None:
    """A Retry-After header: seconds or a date."""
    if after is None:
        return None
    try:
        seconds = float(after)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(after).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(seconds, LONGEST_WAIT) if seconds > 0 else None  # NaN is not


def digest(path: str, payload: Mapping) -> str:
    """What names an answer to `payload` at `path` in a cache."""
    return hashlib.sha256(json.dumps([path, payload], sort_keys=True).encode()).hexdigest()


def load(cache: Path, key: str, whole: Read) -> Any:
    """A kept answer; None where there is none that can be read."""
    with contextlib.suppress(OSError, *UNREADABLE):
        return whole(json.loads(_file(cache, key).read_text()))
    return None


def store(cache: Path, key: str, value: Any) -> str:
    """Keeps an answer, atomically; "" or the problem. Several processes may share a cache."""
    path = _file(cache, key)
    try:
        write_atomically(path, json.dumps(value).encode())
    except OSError as error:
        return f"cache {cache}: cannot be written: {error.strerror}"
    return ""


def _file(cache: Path, key: str) -> Path:
    return cache / key[:2] / f"{key}.json"
