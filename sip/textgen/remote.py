"""A text generator on an OpenAI-compatible server (vLLM, tpu-inference, `transformers serve`).

`choose` reads the log-probabilities of the first token after the prompt; `generate` reads texts.
Text under judgement is untrusted. With `tokens`, each segment is encoded separately, as for our own
decoder, and token ids are sent. Without it, prompts are sent as text, and the special strings of
the server's tokenizer are broken up in text under judgement (`sip/text/untrusted.py`).
"""

import hashlib
import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sip import processes
from sip.sampling import SamplingConfig
from sip.sections import LARGEST
from sip.structs import UserError
from sip.text import untrusted
from sip.text.segments import Text, tokens_of
from sip.text.tokenizer import Tokenizer
from sip.textgen import transport
from sip.textgen.protocol import Cut, Said
from sip.textgen.transport import Answer
from sip.workdir import place

APIS = {"completions": "completions", "chat": "chat/completions"}
ENDED = ("stop", "eos", "eos_token", "stop_sequence", "end_turn")  # finish_reason of whole answers
LONGEST = 86400  # seconds of one attempt; timers and sockets take no more than some years
# Our names of the counts in an answer's `usage`.
USAGE = {"prompt_tokens": "prompt_tokens", "answer_tokens": "completion_tokens"}
LOWEST = -1e4  # nats, in place of -inf, which JSON (the cache) lacks; its exp is 0
NEGLIGIBLE = 1e-3  # an unlisted option gets probability 0 if its bound is at most this
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteConfig:
    """An OpenAI-compatible server and its request settings.

    `specials` lists strings, or beginnings of strings, that the server's tokenizer parses as
    special tokens: "<|" covers all specials that begin with it. They are broken by a space in text
    under judgement. `tokens` sends token ids of the run's tokenizer instead of text; the server
    must have the same vocabulary and support `return_tokens_as_token_ids` (vLLM).
    Raises UserError for an invalid value.
    """

    url: str = ""  # base URL, up to and including /v1; needed by backend http
    model: str = ""  # the model's name on the server; needed by backend http
    api: str = "completions"  # completions | chat
    key_env: str = ""  # environment variable with the API key; empty: no key is sent
    concurrency: int = 16  # maximum number of simultaneous requests
    timeout_seconds: float = 60.0  # limit of one attempt, seconds
    retries: int = 5  # attempts after the first one
    cache: str = ""  # directory of answers, by url, model and request; empty: no cache
    logprobs: int = 20  # number of top log-probabilities per token to request; 0: texts only
    specials: tuple[str, ...] = ()  # special strings to break up in text under judgement
    tokens: bool = False  # send token ids, not text; completions only

    def __post_init__(self):
        if self.url:
            transport.check_url(self.url)
        if self.api not in APIS:
            raise UserError(f"api must be one of {tuple(APIS)}, not {self.api!r}")
        if self.tokens and self.api == "chat":
            raise UserError("tokens: only the completions API accepts token ids, not chat")
        if self.concurrency < 1:
            raise UserError(f"concurrency must be at least 1, not {self.concurrency}")
        if not 0 < self.timeout_seconds <= LONGEST:
            raise UserError(
                f"timeout_seconds must be above 0 and at most {LONGEST}, not {self.timeout_seconds}"
            )
        for name in ("retries", "logprobs"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be at least 0, not {getattr(self, name)}")
        untrusted.check(self.specials)
        object.__setattr__(self, "cache", place(self.cache))
        if "://" in self.cache:
            raise UserError(f"cache {self.cache!r}: must be a local directory")

    def check_named(self) -> None:
        """Raises UserError unless `url` and `model` are set."""
        for name in ("url", "model"):
            if not getattr(self, name):
                raise UserError(f"{name} is needed by the http backend, but is empty")


class Remote:
    """A TextGenerator on a server. Failed requests give NaN or None and are counted.

    `tokenizer` is needed only with `config.tokens`. `sleep` is for tests.
    """

    def __init__(
        self,
        config: RemoteConfig,
        tokenizer: Tokenizer | None = None,
        *,
        sleep: Callable[[float], object] | None = None,
    ):
        if config.tokens and tokenizer is None:
            raise UserError("tokens: a tokenizer is needed to send token ids; or set tokens=False")
        self._config, self._tokenizer = config, tokenizer
        self._endpoint = _endpoint(config, sleep)
        self._lock, self._spent = threading.Lock(), Counter[str]()

    def check(self) -> None:
        """Requests one token. Raises UserError (one line) if the server gives no usable answer."""
        _check(self._endpoint, self._config)

    def stats(self) -> dict[str, tuple[float, float]]:
        """Returns remote/{requests, retries, failed, cached} as (total, answers asked for), and
        judge/{prompt_tokens, answer_tokens} as (total, 1) if the server reports its usage.

        Each call resets the counts. Answers from the cache cost no tokens.
        """
        with self._lock:
            spent, self._spent = self._spent, Counter()
        told = float(spent["answers"] > 0)
        tokens = {f"judge/{name}": (float(spent[name]), told) for name in USAGE}
        return {f"remote/{name}": x for name, x in self._endpoint.stats().items()} | tokens

    def _count(self, found: Any) -> None:
        """Counts the tokens that the server says an answer took."""
        usage = found["usage"] if isinstance(found, dict) and "usage" in found else None
        if not isinstance(usage, dict):
            return
        told = {name: usage[key] for name, key in USAGE.items() if key in usage}
        if all(isinstance(n, int) and 0 <= n <= LARGEST for n in told.values()):
            with self._lock:
                self._spent.update(answers=1, **told)

    def choose(self, trunks, branches, options) -> np.ndarray:
        """Returns logp_BCO of the options, from the `logprobs` most likely tokens in each answer.

        An option is found by its text; in chat, without its leading space, since the answer is a
        new turn; with `tokens`, by its id. The probability of an unlisted option is bounded by the
        least likely listed token and by the total probability of all unlisted tokens. If this bound
        is at most NEGLIGIBLE, logp is -inf, else NaN (unknown).
        Raises UserError if `config.logprobs` is 0 or if two options have the same text in chat.
        """
        if not self._config.logprobs:
            raise UserError("logprobs must be at least 1 to choose between options, not 0")
        names = [self._name(option) for option in options]
        if len(set(names)) < len(names):
            raise UserError(
                f"textgen: options {options} read alike in chat, where leading spaces are removed"
            )
        payloads = [_first_token(self._config, prompt) for prompt in self._flat(trunks, branches)]
        tables = self._ask(payloads, lambda found: _table(self._config, found), _checked_table)
        C = max(map(len, branches), default=0)
        logp_BCO = np.full((len(trunks), C, len(options)), np.nan, np.float32)
        places = ((b, c) for b, row in enumerate(branches) for c in range(len(row)))
        for at, table in zip(places, tables, strict=True):
            if table.value is not None:
                logp_BCO[at] = _logp(table.value, names, self._config.logprobs)
        _warn_of_unlisted(names, [table.value for table in tables if table.value is not None])
        return logp_BCO

    def generate(
        self,
        trunks: Sequence[Text],
        branches: Sequence[Sequence[Text]],
        *,
        votes: int,
        max_tokens: int,
        sampling: SamplingConfig,
        seed: int,
    ) -> list[list[list[Said]]]:
        """Returns texts[b][c][j], `votes` continuations per prompt; None for a failed one.

        A text whose `finish_reason` is not one of ENDED, such as "length", is a `Cut`. Without a
        `finish_reason` it counts as whole.

        One request asks for all votes of a prompt (`n`). If the server returns fewer, the missing
        ones are requested one by one. Seeds are hashed, so that calls with neighbouring seeds share
        no vote. At temperature 0 all votes are equal, so one is requested and repeated.
        """
        drawn = votes if sampling.temperature else 1
        prompts = self._flat(trunks, branches)
        draw = lambda prompt, j, n: _draw(
            self._config, prompt, n, max_tokens, sampling, _spread(seed) + j
        )
        answers = self._texts([draw(prompt, 0, drawn) for prompt in prompts])
        none: list[Said] = [None] * drawn
        texts = [found[:drawn] if found else list(none) for found in answers]
        # A server that ignores `n` returns one text: request the others, each with its own seed.
        short = [(i, j) for i, found in enumerate(texts) for j in range(len(found), drawn)]
        more = self._texts([draw(prompts[i], j, 1) for i, j in short])
        for (i, _), found in zip(short, more, strict=True):
            texts[i].append(found[0] if found else None)
        rows = iter(found * (votes // max(drawn, 1)) for found in texts)
        return [[next(rows) for _ in row] for row in branches]

    def answers(
        self,
        trunks: Sequence[Text],
        branches: Sequence[Text],
        *,
        max_tokens: int,
        sampling: SamplingConfig,
        seed: int,
    ) -> list[Answer]:
        """Returns one continuation per prompt, each as an `Answer` that says why there is none.

        The texts are those of `generate` with one vote and one branch per trunk.
        """
        prompts = self._flat(trunks, [[branch] for branch in branches])
        how = max_tokens, sampling, _spread(seed)
        found = self._asked_texts([_draw(self._config, prompt, 1, *how) for prompt in prompts])
        return [replace(x, value=x.value and _said(*x.value[0])) for x in found]

    def _flat(self, trunks, branches) -> list[str | list[int]]:
        """Returns the prompts of all branches in one list, as text or token ids."""
        rows = zip(trunks, branches, strict=True)
        return [self._prompt(trunk, branch) for trunk, row in rows for branch in row]

    def _prompt(self, trunk: Text, branch: Text) -> str | list[int]:
        if self._config.tokens and self._tokenizer:
            return [
                self._tokenizer.bos,
                *tokens_of(self._tokenizer, trunk),
                *tokens_of(self._tokenizer, branch),
            ]
        trunk, branch = ((text,) if isinstance(text, str) else text for text in (trunk, branch))
        # Text under judgement is at odd places: pad the trunk so that the branch starts at an even
        # place again.
        between = () if len(trunk) % 2 == 0 else ("",)
        return untrusted.join([*trunk, *between, *branch], self._config.specials)

    def _name(self, option: str) -> str:
        """Returns the key of an option in the server's table of log-probabilities."""
        if self._config.tokens and self._tokenizer:
            ids = self._tokenizer.encode(option)
            if len(ids) != 1:
                raise UserError(
                    f"textgen: option {option!r} is {len(ids)} tokens; an option must be one token"
                )
            return f"token_id:{ids[0]}"
        return option.lstrip() if self._config.api == "chat" else option

    def _texts(self, payloads) -> list[list[Said] | None]:
        """Sends payloads and returns the texts of each answer; None for a failed one."""
        rows = [answer.value for answer in self._asked_texts(payloads)]
        return [None if row is None else [_said(*one) for one in row] for row in rows]

    def _asked_texts(self, payloads) -> list[Answer]:
        """Sends payloads and returns the answers, [text, whether it ended] of each choice."""
        return self._ask(payloads, lambda found: _texts(self._config, found), _whole_texts)

    def _ask(self, payloads, wanted, whole) -> list[Answer]:
        """Sends payloads and returns the answers; the value of a failed one is None."""

        def counted(found: Any) -> Any:
            value = wanted(found)
            self._count(found)
            return value

        answers = self._endpoint.ask(APIS[self._config.api], payloads, counted, whole)
        problems = [answer.problem for answer in answers if answer.problem]
        if problems:
            LOG.warning(
                "%d of %d answers failed; last problem: %s",
                len(problems),
                len(answers),
                problems[-1],
            )
        return answers


def check(config: RemoteConfig) -> None:
    """Requests one token from the server. Raises UserError (one line) if it does not answer.

    Called before a run starts, so that a wrong url, model or key is reported at once.
    """
    _check(_endpoint(config, None), config)


def _check(endpoint: transport.Endpoint, config: RemoteConfig) -> None:
    def wanted(found: Any) -> bool:
        if config.logprobs:
            _table(config, found)
        return _reason(_choices(found)[0]) is not None

    # No cache (whole=None): the check must reach the server.
    prompt = [0] if config.tokens else "."
    payload = _first_token(config, prompt)
    (answer,) = endpoint.ask(APIS[config.api], [payload], wanted, None)
    if answer.problem:
        raise UserError(answer.problem)
    if not answer.value:
        LOG.warning("%s: no finish_reason; texts that max_tokens cuts count as whole", config.url)


@dataclass(frozen=True)
class OnLead:
    """Asks a server from process 0 only and broadcasts its answers to the other processes.

    All processes must call the same methods in the same order.
    """

    server: Remote

    def check(self) -> None:
        """Runs `Remote.check` on process 0. Raises its UserError on every process."""
        processes.on_lead(self.server.check)

    def stats(self) -> dict[str, tuple[float, float]]:
        """Returns `Remote.stats` of process 0 on every process."""
        return processes.broadcast(self.server.stats)

    def choose(self, trunks, branches, options) -> np.ndarray:
        """Returns logp_BCO of `Remote.choose` on every process."""
        return processes.broadcast(lambda: self.server.choose(trunks, branches, options))

    def generate(self, trunks, branches, **how) -> list[list[list[Said]]]:
        """Returns texts[b][c][j] of `Remote.generate` on every process."""
        return processes.broadcast(lambda: self.server.generate(trunks, branches, **how))


def _endpoint(config: RemoteConfig, sleep) -> transport.Endpoint:
    config.check_named()
    return transport.Endpoint(
        config.url,
        key=transport.key_of(config.key_env),
        concurrency=config.concurrency,
        seconds=config.timeout_seconds,
        retries=config.retries,
        cache=config.cache,
        sleep=sleep,
    )


def _asked(config: RemoteConfig, prompt: str | list[int], **how) -> dict[str, Any]:
    """Returns the JSON of a request with the parameters `how`."""
    if config.api == "chat":
        return {"model": config.model, "messages": [{"role": "user", "content": prompt}], **how}
    return {"model": config.model, "prompt": prompt, **how}


def _first_token(config: RemoteConfig, prompt: str | list[int]) -> dict[str, Any]:
    """Returns a request for one greedy token and its log-probabilities.

    Greedy, because servers add a sampled token to the list of the most likely ones.
    """
    how: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0}
    if config.logprobs and config.api == "chat":
        how |= {"logprobs": True, "top_logprobs": config.logprobs}
    elif config.logprobs:
        how |= {"logprobs": config.logprobs}
    if config.tokens:
        how |= {"return_tokens_as_token_ids": True}
    return _asked(config, prompt, **how)


def _draw(config, prompt, n: int, max_tokens: int, sampling: SamplingConfig, seed: int):
    """Returns a request for `n` sampled texts."""
    how = {"max_tokens": max_tokens, "n": n, "seed": seed}
    how |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
    how |= {"top_k": sampling.top_k} if sampling.top_k else {}  # not every server supports top_k
    return _asked(config, prompt, **how)


def _spread(seed: int) -> int:
    """Hashes a seed to 30 bits, so that seed + vote still fits a signed 32-bit integer."""
    return int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4]) >> 2


def _warn_of_unlisted(names: Sequence[str], tables: Sequence[dict[str, float]]) -> None:
    """Warns if no answer lists any option: the server may spell them otherwise."""
    if tables and not any(name in table for name in names for table in tables):
        likely = sorted(tables[0], key=lambda token: -tables[0][token])[:3]
        listed = ", ".join(map(repr, likely))
        LOG.warning("no answer lists %s; likeliest: %s", ", ".join(map(repr, names)), listed)


def _choices(found: Any) -> list[dict]:
    choices = found["choices"] if isinstance(found, dict) and "choices" in found else None
    if not (isinstance(choices, list) and choices):
        raise TypeError("no choices")
    return choices


def _table(config: RemoteConfig, found: Any) -> dict[str, float]:
    """Returns token -> log-probability of the first position; tokens with equal text are summed.

    Raises one of UNREADABLE if the answer has no valid table.
    """
    choice = _choices(found)[0]
    logprobs = choice["logprobs"] if "logprobs" in choice else None
    if logprobs is None:
        raise TypeError("the server returns no log-probabilities")
    pairs = _pairs(logprobs)
    table: dict[str, float] = {}
    # A set: some servers list the sampled token a second time, with the same number.
    for token, logp in sorted(set(pairs)):
        token, logp = _plain(config, token), LOWEST if logp == -math.inf else logp
        table[token] = float(np.logaddexp(table[token], logp)) if token in table else logp
    if config.tokens and not all(token.startswith("token_id:") for token in table):
        raise ValueError("the server does not name tokens by their ids")
    return _checked_table(table)


def _pairs(logprobs: Any) -> list[tuple[str, float]]:
    """Returns (token, log-probability) of the first position, in the form of either API.

    llama.cpp uses the form of chat for completions too. Raises one of UNREADABLE.
    """
    if "content" in logprobs:
        first = logprobs["content"] and logprobs["content"][0]["top_logprobs"]
        pairs = [(one["token"], one["logprob"]) for one in first or ()]
    else:
        first = logprobs["top_logprobs"] and logprobs["top_logprobs"][0]
        pairs = list(first.items()) if first else []
    if not pairs:
        raise TypeError("no log-probabilities of the first token")
    for token, logp in pairs:
        if not isinstance(token, str):
            raise TypeError(f"token {token!r} is no text")
        if isinstance(logp, bool) or not isinstance(logp, int | float):
            raise TypeError(f"the log-probability of {token!r} is {logp!r}")
    return pairs


def _plain(config: RemoteConfig, token: str) -> str:
    """Returns a token's text as an option may have it.

    Some servers send pieces as their vocabulary has them: a space is U+2581 (SentencePiece) or
    U+0120 (GPT-2). In chat an answer is a new turn, so the first token's space says nothing.
    """
    if token[:1] in ("\u2581", "\u0120"):
        token = " " + token[1:]
    return token.lstrip() if config.api == "chat" else token


def _checked_table(table: Any) -> dict[str, float]:
    """Returns the table if it is a valid one; else raises TypeError or ValueError."""
    if not (isinstance(table, dict) and table):
        raise TypeError("no log-probabilities")
    # 1e-3 and 1.01 leave room for rounding on the server; the comparison also rejects NaN.
    for token, logp in table.items():
        if isinstance(logp, bool) or not isinstance(logp, int | float) or not logp <= 1e-3:
            raise ValueError(f"the log-probability of {token!r} is {logp!r}")
    if sum(math.exp(logp) for logp in table.values()) > 1.01:
        raise ValueError("the probabilities sum to more than 1")
    return table


def _logp(table: dict[str, float], names: Sequence[str], asked: int) -> list[float]:
    """Returns the options' log-probabilities; -inf or NaN for an unlisted option.

    `asked` is the number of log-probabilities requested; a server may list one more.
    """
    listed = sorted(table.values(), reverse=True)
    rest = 1.0 - sum(map(math.exp, listed))  # probability of all unlisted tokens together
    most = min(math.exp(listed[:asked][-1]), max(rest, 0.0))
    missing = -math.inf if most <= NEGLIGIBLE else math.nan
    return [table[name] if name in table else missing for name in names]


def _texts(config: RemoteConfig, found: Any) -> list[list]:
    """Returns [text, whether it ended] of each choice, as JSON for the cache.

    The text of a chat model that returned reasoning only is None; "" if it was cut while reasoning.
    """
    rows = []
    for one in _choices(found):
        text = one["message"]["content"] if config.api == "chat" else one["text"]
        reason = _reason(one)
        ended = reason is None or (isinstance(reason, str) and reason.lower() in ENDED)
        rows.append(["" if text is None and not ended else text, ended])
    _whole_texts([row for row in rows if row[0] is not None])
    return rows


def _reason(choice: dict) -> Any:
    """Returns why an answer ended; None if the server says nothing, or "" as some do."""
    reason = choice["finish_reason"] if "finish_reason" in choice else None
    return None if reason == "" else reason


def _whole_texts(rows: Any) -> list[list]:
    if not (isinstance(rows, list) and rows):
        raise TypeError("no texts")
    for text, ended in rows:
        if not (isinstance(text, str) and isinstance(ended, bool)):
            raise TypeError("no texts")
    return rows


def _said(text: str | None, ended: bool) -> Said:
    return text if text is None or ended else Cut(text)
