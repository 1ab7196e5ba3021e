"""A JSON-over-HTTP client: timeouts, bounded retries, counters and a disk cache of answers.

The API key is read from the environment and sent in the request header only. It never appears in a
message, log, repr or file, and errors are raised without the HTTP library's exception as context.
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
from sip.textgen.exchange import Network, Wires
from sip.workdir import to_json, write_atomically

Read = Callable[[Any], Any]  # parses JSON into a value; raises one of UNREADABLE if it cannot
BUSY = (408, 409, 429)  # HTTP statuses to retry, like 5xx
LASTING = ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER")  # TLS errors that do not pass
REFUSED = (400, 413, 422)  # HTTP statuses that concern one request, such as a prompt too long
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # bounds of the wait between attempts, seconds
UNREADABLE = (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError,
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """The result of one request: a parsed value, or None and a problem."""

    value: Any
    problem: str = ""  # one line; empty: success
    fatal: bool = False  # no further request to this server can succeed
    final: bool = False  # a retry of this request cannot succeed
    odd: bool = False  # the server answered, but not in the expected form
    after: float | None = None  # the server's Retry-After, seconds


def check_url(url: str) -> None:
    """Raises UserError unless `url` is http(s)://host[:port][/path].

    User, password, query and fragment are rejected: URLs are logged and must hold no secret.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        plain = not (parts.query or parts.fragment or "@" in parts.netloc)
    except ValueError:
        usable, plain = False, True
    if not plain:
        # The URL itself is left out of the message: it may contain a password.
        raise UserError("url must contain no user, password, query or fragment; use key_env")
    if not usable or any(c.isspace() or not c.isprintable() for c in url):
        raise UserError(f"url must be like http://HOST:PORT/v1, not {url!r}")


def key_of(name: str) -> str:
    """Returns the API key in environment variable `name`; "" if `name` is empty.

    Raises UserError if the variable is unset or is not printable ASCII without spaces.
    """
    key = os.environ.get(name, "").strip() if name else ""
    if name and not (key and key.isascii() and key.isprintable() and " " not in key):
        raise UserError(
            f"key_env: environment variable {name} must be set to an API key "
            "(printable ASCII without spaces)"
        )
    return key


class Endpoint:
    """An HTTP server that answers POSTed JSON, with retries, counters and a cache.

    `ask` sends up to `concurrency` requests at a time from its own threads, so it also works inside
    a running event loop. Call `ask` from one thread at a time.
    Connection errors, timeouts and statuses 408, 409, 429 and 5xx are retried up to `retries`
    times. The wait before a retry is random (exponential backoff with full jitter) plus the
    server's Retry-After, at most LONGEST_WAIT seconds. An answer that cannot be parsed is retried
    once: a server of another format would answer alike. `seconds` limits one attempt as a whole,
    also if the server sends its answer in small pieces.
    `cache` is the directory of cached answers; empty: no cache. An answer is cached under url,
    model and request: after another model is served under the same name, use another directory.
    `sleep` is for tests.
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
    ):
        check_url(url)
        self._url, self._concurrency = url.rstrip("/"), concurrency
        self._seconds, self._retries = seconds, retries
        self._stopped = threading.Event()
        self._sleep = sleep or self._stopped.wait
        self._cache = Path(cache) if cache else None
        self._lock, self._counts, self._proven = threading.Lock(), Counter(), False
        self._network = Network(url, seconds)
        # "identity": answers are short, and unpacking is one more thing to bound.
        self._headers = {"content-type": "application/json", "accept-encoding": "identity"}
        # A server may echo the key in its error: mask it before the text reaches a message.
        self._said = lambda text: _one_line(text.replace(key, "[key]") if key else text)
        if key:
            self._headers["authorization"] = f"Bearer {key}"

    def __repr__(self):
        return f"Endpoint({self._url!r})"

    def ask(
        self, path: str, payloads: Sequence[Mapping], wanted: Read, whole: Read | None
    ) -> list[Answer]:
        """Returns one answer per payload; equal payloads are sent once.

        `wanted` parses the server's JSON. `whole` validates the parsed value: it returns the value,
        or raises one of UNREADABLE if the value must not be cached. `whole` also validates values
        read from the cache. If `whole` is None, the cache is neither read nor written.
        Raises UserError if no further request can succeed (wrong key, model or url), or if the
        cache cannot be written.
        """
        if not payloads:
            return []
        keys = [digest(f"{self._url}/{path}", payload) for payload in payloads]
        self._stopped.clear()
        wires = Wires(self._network)
        with contextlib.closing(wires), ThreadPoolExecutor(self._concurrency) as pool:
            jobs = {
                key: pool.submit(self._job, wires, path, payload, key, wanted, whole)
                for key, payload in dict(zip(keys, payloads, strict=True)).items()
            }
            try:
                answers = {key: job.result() for key, job in jobs.items()}
            finally:  # after an exception or Ctrl-C no further request is sent
                self._stopped.set()
                wires.hang_up()
                pool.shutdown(wait=False, cancel_futures=True)
        for answer in answers.values():
            if answer.fatal:
                raise UserError(answer.problem)
        return [answers[key] for key in keys]

    def stats(self) -> dict[str, tuple[float, float]]:
        """Returns requests, retries, failed and cached per answer, as (total, denom); resets them.

        denom is the number of answers asked for since the last call.
        """
        with self._lock:
            counts, self._counts = self._counts, Counter()
        names = ("requests", "retries", "failed", "cached")
        return {name: (float(counts[name]), float(counts["asked"])) for name in names}

    def _count(self, **more: int) -> None:
        with self._lock:
            self._counts.update(more)

    def _job(self, *job) -> Answer:
        answer = self._kept(*job)
        if answer.fatal:
            self._stopped.set()
        return answer

    def _kept(self, wires, path, payload, key, wanted: Read, whole: Read | None) -> Answer:
        """Reads an answer from the cache, or asks the server and caches its answer."""
        self._count(asked=1)
        if self._cache is None or whole is None:
            return self._answer(wires, path, payload, wanted)
        kept = load(self._cache, key, whole)
        if kept is not None:
            self._count(cached=1)
            return Answer(kept)
        answer = self._answer(wires, path, payload, wanted)
        with contextlib.suppress(*UNREADABLE):  # a failed or partial answer is not cached
            whole(answer.value)
            problem = store(self._cache, key, answer.value)
            return Answer(None, problem, fatal=True) if problem else answer
        return answer

    def _answer(self, wires, path, payload, wanted: Read) -> Answer:
        """Asks the server, with retries."""
        body = to_json(payload).encode()  # json.dumps escapes all non-ASCII characters
        answer = Answer(None, "stopped")
        for attempt in range(self._retries + 1):
            if self._stopped.is_set():
                break
            if attempt:
                self._count(retries=1)
            answer = self._attempt(wires, path, body, wanted)
            if not answer.problem or answer.final or (answer.odd and attempt):
                break
            if attempt < self._retries:
                self._sleep(_wait(attempt, answer.after))
        self._count(failed=int(bool(answer.problem)))
        return answer

    def _attempt(self, wires: Wires, path: str, body: bytes, wanted: Read) -> Answer:
        self._count(requests=1)
        http = self._network.http
        try:
            status, headers, data = wires.post(f"{self._url}/{path}", body, self._headers)
        except (http.HTTPError, http.InvalidURL, OSError, UnicodeError) as error:
            return self._unreached(error)
        except ValueError as error:  # too large, or packed oddly
            return Answer(None, f"{self._url}: {self._said(str(error))}", odd=True)
        if status != 200:
            return self._refusal(status, headers, data)
        try:
            found = json.loads(data)
            if (error := _error_of(found)) is not None:
                return self._error(error, data)
            value = wanted(found)
        except UNREADABLE as error:
            reason = self._said(f"{type(error).__name__} {error}")
            problem = f"{self._url}: the answer cannot be read: {reason}: {self._begin(data)}"
            return Answer(None, problem, odd=True)
        self._proven = True  # url, key and model are right
        return Answer(value)

    def _unreached(self, error: Exception) -> Answer:
        """Returns the failed answer of a request that the server did not answer."""
        reason = self._said(f"{type(error).__name__} {error}")
        problem = f"{self._url}: no answer: {reason}{self._network.hint(reason)}"
        lasting = any(known in reason for known in LASTING) and not self._proven
        return Answer(None, problem, fatal=lasting, final=lasting)

    def _begin(self, data: bytes) -> str:
        return self._said(data[:2000].decode(errors="replace"))[:300]

    def _error(self, error: Any, data: bytes) -> Answer:
        """Returns the failed answer for an error that came with status 200."""
        code = error["code"] if isinstance(error, dict) and "code" in error else None
        if isinstance(code, int) and 400 <= code < 600:
            return self._refusal(code, {}, data)
        return Answer(None, f"{self._url}: answered with an error: {self._begin(data)}", odd=True)

    def _refusal(self, status: int, headers: Mapping[str, str], data: bytes) -> Answer:
        """Returns the failed answer for an HTTP status other than 200.

        A status of REFUSED is fatal only before the first success: it then points to a wrong url or
        model. After a success it fails only this request. Statuses of BUSY and 5xx are retried. All
        others, such as 401 or 404, are fatal.
        """
        problem = f"{self._url}: status {status}: {self._begin(data)}"
        if 300 <= status < 400 and "location" in headers:
            problem += f" (redirected to {self._said(headers['location'])[:300]}; change url)"
        if status in BUSY or status >= 500:
            after = _seconds(headers["retry-after"]) if "retry-after" in headers else None
            return Answer(None, problem, after=after)
        return Answer(None, problem, fatal=not (status in REFUSED and self._proven), final=True)


def _error_of(found: Any) -> Any:
    """Returns the error in a parsed answer; None if it is none.

    Some servers and gateways send errors with status 200: {"error": {"message": .., "code": 429}},
    or {"object": "error", "message": .., "code": 404}.
    """
    if not isinstance(found, dict) or "choices" in found:
        return None
    if "object" in found and found["object"] == "error":
        return found
    return found["error"] if "error" in found else None


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _wait(attempt: int, after: float | None) -> float:
    """Returns the wait before the next attempt, in seconds."""
    jitter = random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2**attempt))
    return min(LONGEST_WAIT, (after or 0.0) + jitter)


def _seconds(after: str) -> float | None:
    """Parses a Retry-After header (seconds or a date) into seconds; None if it is unusable."""
    try:
        seconds = float(after)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(after).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(seconds, LONGEST_WAIT) if seconds > 0 else None  # NaN > 0 is False


def digest(path: str, payload: Mapping) -> str:
    """Returns the cache key of the answer to `payload` at `path`: 64 hex digits."""
    return hashlib.sha256(json.dumps([path, payload], sort_keys=True).encode()).hexdigest()


def load(cache: Path, key: str, whole: Read) -> Any:
    """Returns the cached answer `key`, validated by `whole`; None if missing or unreadable."""
    with contextlib.suppress(OSError, *UNREADABLE):
        return whole(json.loads(_file(cache, key).read_text()))
    return None


def store(cache: Path, key: str, value: Any) -> str:
    """Writes an answer to the cache. Returns "" or a one-line problem.

    The write is atomic, so several processes may share a cache.
    """
    path = _file(cache, key)
    try:
        write_atomically(path, to_json(value).encode())
    except OSError as error:
        return f"cache {cache}: cannot be written: {error.strerror}"
    return ""


def _file(cache: Path, key: str) -> Path:
    return cache / key[:2] / f"{key}.json"  # 256 subdirectories: smaller directory listings
