"""A model behind HTTP: any OpenAI-compatible server (vLLM, tpu-inference, `transformers serve`).

`choose` reads the log-probabilities of the first token after the prompt, `generate` the texts.
Text under judgement is untrusted: over `tokens` each segment is encoded on its own, as our own
decoder is asked; else the special strings of the server's tokenizer are broken up in it.
"""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sip import processes
from sip.sampling import SamplingConfig
from sip.structs import UserError
from sip.text import untrusted
from sip.text.segments import Text, tokens_of
from sip.text.tokenizer import Tokenizer
from sip.textgen import transport

APIS = {"completions": "completions", "chat": "chat/completions"}
NEGLIGIBLE = 1e-3  # an option known to be less likely than this has probability 0
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteConfig:
    """A server and how it is asked.

    `specials`: strings, or parts of strings, that the server's tokenizer parses as special tokens;
    "<|" stands for all that begin so. `tokens` sends token ids of the run's own tokenizer instead,
    and needs a server of the same vocabulary that knows `return_tokens_as_token_ids` (vLLM).
    """

    url: str = ""  # up to and including /v1
    model: str = ""
    api: str = "completions"  # completions | chat
    key_env: str = ""  # the environment variable with the API key; empty: none is sent
    concurrency: int = 16  # requests at a time
    timeout_seconds: float = 60.0  # of an attempt
    retries: int = 5
    cache: str = ""  # directory of answers to keep; empty: none
    logprobs: int = 20  # how many tokens' log-probabilities to ask for; 0: texts alone
    specials: tuple[str, ...] = ()
    tokens: bool = False

    def __post_init__(self):
        if self.url:
            transport.check_url(self.url)
        if self.api not in APIS:
            raise UserError(f"api must be one of {tuple(APIS)}, not {self.api!r}")
        if self.tokens and self.api == "chat":
            raise UserError("tokens: only the completions API takes token ids")
        if self.concurrency < 1:
            raise UserError(f"concurrency must be at least 1, not {self.concurrency}")
        if not 0 < self.timeout_seconds < math.inf:
            raise UserError(f"timeout_seconds must be above 0, not {self.timeout_seconds}")
        for name in ("retries", "logprobs"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative, is {getattr(self, name)}")
        untrusted.check(self.specials)

    def check_named(self) -> None:
        """Raises UserError unless it names a server and a model."""
        for name in ("url", "model"):
            if not getattr(self, name):
                raise UserError(f"{name} is needed by the http backend")


class Remote:
    """Text generation by a server; what it does not answer is NaN or None, and counted.

    `tokenizer` is needed with `config.tokens` alone. `sleep` and `clock` are for tests.
    """

    def __init__(
        self,
        config: RemoteConfig,
        tokenizer: Tokenizer | None = None,
        *,
        sleep: Callable[[float], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        if config.tokens and tokenizer is None:
            raise UserError("tokens: a tokenizer is needed to send token ids")
        self._config, self._tokenizer = config, tokenizer
        self._endpoint = _endpoint(config, sleep, clock)

    def check(self) -> None:
        """Asks for one token. Raises UserError, one line, where the server is of no use."""
        _check(self._endpoint, self._config)

    def stats(self) -> dict[str, tuple[float, float]]:
        """What answers took since the last call, each per answer asked for."""
        return {f"remote/{name}": pair for name, pair in self._endpoint.stats().items()}

    def choose(self, trunks, branches, options) -> np.ndarray:
        """logp_BCO of the options' tokens, from the `logprobs` likeliest that the server lists.

        Options are looked up by their own text, in chat without the space before it (a turn starts
        there), with `tokens` by id. One that is not listed is at most as likely as the last one
        listed and as all unlisted ones together: where that is below NEGLIGIBLE it is -inf, else
        unknown, NaN.
        """
        if not self._config.logprobs:
            raise UserError("logprobs must be at least 1 to choose between options")
        names = [self._name(option) for option in options]
        if len(set(names)) < len(names):
            raise UserError(f"textgen: options {options} read alike in chat")
        payloads = [_first_token(self._config, prompt) for prompt in self._flat(trunks, branches)]
        tables = self._ask(payloads, lambda found: _table(self._config, found), _checked_table)
        C = max(map(len, branches), default=0)
        logp_BCO = np.full((len(trunks), C, len(options)), np.nan, np.float32)
        places = ((b, c) for b, row in enumerate(branches) for c in range(len(row)))
        for place, table in zip(places, tables, strict=True):
            if table is not None:
                logp_BCO[place] = _logp(table, names, self._config.logprobs)
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
    ) -> list[list[list[str | None]]]:
        """texts[b][c][j] of `votes` continuations; None where it failed.

        They are asked for together; where a server returns fewer, the others one by one. Seeds are
        spread, so that calls whose seeds are neighbours share no vote. Greedy votes are all the
        same and asked once.
        """
        drawn = votes if sampling.temperature else 1
        prompts = self._flat(trunks, branches)
        draw = lambda prompt, j, n: _draw(
            self._config, prompt, n, max_tokens, sampling, _spread(seed) + j
        )
        answers = self._texts([draw(prompt, 0, drawn) for prompt in prompts])
        none: list[str | None] = [None] * drawn
        texts = [list(found[:drawn]) if found else list(none) for found in answers]
        short = [(i, j) for i, found in enumerate(texts) for j in range(len(found), drawn)]
        more = self._texts([draw(prompts[i], j, 1) for i, j in short])
        for (i, _), found in zip(short, more, strict=True):
            texts[i].append(found[0] if found else None)
        rows = iter(found * (votes // max(drawn, 1)) for found in texts)
        return [[next(rows) for _ in row] for row in branches]

    def _flat(self, trunks, branches) -> list[str | list[int]]:
        """The whole prompt of every branch, as it is sent."""
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
        between = () if len(trunk) % 2 == 0 else ("",)  # the branch starts at an even place again
        return untrusted.join([*trunk, *between, *branch], self._config.specials)

    def _name(self, option: str) -> str:
        """What the server lists an option under."""
        if self._config.tokens and self._tokenizer:
            ids = self._tokenizer.encode(option)
            if len(ids) != 1:
                raise UserError(f"textgen: option {option!r} is {len(ids)} tokens, not one")
            return f"token_id:{ids[0]}"
        return option.lstrip() if self._config.api == "chat" else option

    def _texts(self, payloads) -> list[list[str | None] | None]:
        """The texts of each answer."""
        return self._ask(payloads, lambda found: _texts(self._config, found), _whole_texts)

    def _ask(self, payloads, wanted, whole) -> list[Any]:
        """What was read of each answer, or None."""
        answers = self._endpoint.ask(APIS[self._config.api], payloads, wanted, whole)
        problems = [answer.problem for answer in answers if answer.problem]
        if problems:
            LOG.warning("%d of %d answers failed: %s", len(problems), len(answers), problems[-1])
        return [answer.value for answer in answers]


def check(config: RemoteConfig) -> None:
    """Raises UserError, one line, unless the server answers: before anything is begun."""
    _check(_endpoint(config, None, time.monotonic), config)


def _check(endpoint: transport.Endpoint, config: RemoteConfig) -> None:
    wanted = (lambda found: _table(config, found)) if config.logprobs else _choices
    prompt = [0] if config.tokens else "."
    payload = _first_token(config, prompt)
    (answer,) = endpoint.ask(APIS[config.api], [payload], wanted, None)
    if answer.problem:
        raise UserError(answer.problem)


@dataclass(frozen=True)
class OnLead:
    """A server that process 0 alone asks; the others hear what it said."""

    server: Remote

    def check(self) -> None:
        """As the server's, with its UserError on every process."""
        processes.on_lead(self.server.check)

    def stats(self) -> dict[str, tuple[float, float]]:
        """As the server's."""
        return processes.broadcast(self.server.stats)

    def choose(self, trunks, branches, options) -> np.ndarray:
        """As the server's."""
        return processes.broadcast(lambda: self.server.choose(trunks, branches, options))

    def generate(self, trunks, branches, **how) -> list[list[list[str | None]]]:
        """As the server's."""
        return processes.broadcast(lambda: self.server.generate(trunks, branches, **how))


def _endpoint(config: RemoteConfig, sleep, clock) -> transport.Endpoint:
    config.check_named()
    return transport.Endpoint(
        config.url,
        key=transport.key_of(config.key_env),
        concurrency=config.concurrency,
        seconds=config.timeout_seconds,
        retries=config.retries,
        cache=config.cache,
        sleep=sleep,
        clock=clock,
    )


def _asked(config: RemoteConfig, prompt: str | list[int], **how) -> dict[str, Any]:
    """A request's JSON."""
    if config.api == "chat":
        return {"model": config.model, "messages": [{"role": "user", "content": prompt}], **how}
    return {"model": config.model, "prompt": prompt, **how}


def _first_token(config: RemoteConfig, prompt: str | list[int]) -> dict[str, Any]:
    """One greedy token: a sampled one might be listed beside the likeliest."""
    how: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0}
    if config.logprobs and config.api == "chat":
        how |= {"logprobs": True, "top_logprobs": config.logprobs}
    elif config.logprobs:
        how |= {"logprobs": config.logprobs}
    if config.tokens:
        how |= {"return_tokens_as_token_ids": True}
    return _asked(config, prompt, **how)


def _draw(config, prompt, n: int, max_tokens: int, sampling: SamplingConfig, seed: int):
    how = {"max_tokens": max_tokens, "n": n, "seed": seed}
    how |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
    how |= {"top_k": sampling.top_k} if sampling.top_k else {}  # not in every server
    return _asked(config, prompt, **how)


def _spread(seed: int) -> int:
    """A seed that fits 31 bits with room for votes."""
    return int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4]) >> 2


def _choices(found: Any) -> list[dict]:
    choices = found["choices"]
    if not (isinstance(choices, list) and choices):
        raise TypeError("no choices")
    return choices


def _table(config: RemoteConfig, found: Any) -> dict[str, float]:
    """The listed tokens' log-probabilities; those that read alike are summed."""
    choice = _choices(found)[0]
    logprobs = choice["logprobs"] if "logprobs" in choice else None
    if logprobs is None:
        raise TypeError("the server returns no log-probabilities")
    if config.api == "completions":
        pairs = list(logprobs["top_logprobs"][0].items())
    else:
        pairs = [(one["token"], one["logprob"]) for one in logprobs["content"][0]["top_logprobs"]]
    table: dict[str, float] = {}
    for token, logp in pairs:
        table[token] = float(np.logaddexp(table[token], logp)) if token in table else logp
    if config.tokens and not all(token.startswith("token_id:") for token in table):
        raise ValueError("the server does not name tokens by their ids")
    return _checked_table(table)


def _checked_table(table: Any) -> dict[str, float]:
    if not (isinstance(table, dict) and table):
        raise TypeError("no log-probabilities")
    for logp in table.values():
        if isinstance(logp, bool) or not isinstance(logp, int | float) or not logp <= 1e-3:
            raise ValueError("not a log-probability")
    if sum(math.exp(logp) for logp in table.values()) > 1.01:
        raise ValueError("probabilities of more than 1")
    return table


def _logp(table: dict[str, float], names: Sequence[str], asked: int) -> list[float]:
    """The options' log-probabilities; -inf or NaN where an option is not listed."""
    listed = sorted(table.values(), reverse=True)
    rest = 1.0 - sum(map(math.exp, listed))
    most = min(math.exp(listed[:asked][-1]), max(rest, 0.0))
    missing = -math.inf if most <= NEGLIGIBLE else math.nan
    return [table[name] if name in table else missing for name in names]


def _texts(config: RemoteConfig, found: Any) -> list[str | None]:
    """The texts of the choices; None where a chat model said nothing but its reasoning."""
    chat = config.api == "chat"
    texts = [one["message"]["content"] if chat else one["text"] for one in _choices(found)]
    _whole_texts([text for text in texts if text is not None])
    return texts


def _whole_texts(texts: Any) -> list[str]:
    if not (isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)):
        raise TypeError("no texts")
    return texts
