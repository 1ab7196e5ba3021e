"""A small OpenAI-compatible server on loopback, backed by a decoder, with injectable faults."""

import contextlib
import functools
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from sip.models import decoder

Fault = tuple[str, Any]  # (kind, detail), see Handler.fail


@functools.partial(jax.jit, static_argnums=1)
def _logits(params, cfg, tokens_BT):
    """Returns the logits of one plain sequence, without branches or trunk sharing."""
    tree = tiny.trunk_only(tokens_BT)
    return decoder.apply(params, cfg, tree).trunk_BTD @ decoder.unembed(params, cfg)


class Parsing:
    """A tokenizer that reads strings of special tokens as these tokens, as servers do."""

    def __init__(self, base, specials=()):
        self.base, self.bos = base, base.bos
        self.ids = {special: base.vocab_size + i for i, special in enumerate(specials)}
        longest = sorted(map(re.escape, specials), key=len, reverse=True)
        self._cut = re.compile("(" + "|".join(longest) + ")") if specials else re.compile(r"(\Z.)")

    def encode(self, text: str) -> list[int]:
        ids = []
        for piece in self._cut.split(text):
            ids += [self.ids[piece]] if piece in self.ids else self.base.encode(piece)
        return ids

    def decode(self, ids) -> str:
        return self.base.decode(ids)


@dataclass
class Model:
    """Answers requests with a decoder."""

    params: Any
    cfg: Any
    tokenizer: Any
    most: int = 99  # maximum number of choices per answer, even for a larger `n`
    seen: list[list[int]] = field(default_factory=list)  # token ids of all prompts so far

    def ids(self, path, asked) -> list[int]:
        if path == "/v1/chat/completions":
            (message,) = asked["messages"]
            assert message["role"] == "user"
            turn = self.tokenizer.base.encode
            content = self.tokenizer.encode(message["content"])
            return [self.tokenizer.bos, *turn("U:"), *content, *turn("\nA:")]
        prompt = asked["prompt"]
        text = isinstance(prompt, str)
        return [self.tokenizer.bos, *self.tokenizer.encode(prompt)] if text else prompt

    def logp(self, ids):
        row = jnp.array([ids + [0] * (self.cfg.max_len - len(ids))])
        logits_V = _logits(self.params, self.cfg, row)[0, len(ids) - 1]
        return np.asarray(jax.nn.log_softmax(logits_V), np.float64)

    def __call__(self, path, asked) -> dict:
        ids = self.ids(path, asked)
        self.seen.append(ids)
        logprobs = self.table(ids, asked) if "logprobs" in asked else None
        count = min(asked["n"], self.most) if "n" in asked else 1
        texts = [self.text(ids, asked, i) for i in range(count)]
        choices = [self.choice(path, i, text, logprobs) for i, text in enumerate(texts)]
        return {"object": "answer", "choices": choices}

    def text(self, ids, asked, index) -> str:
        """Samples a text with Gumbel noise from seed + index."""
        rng = np.random.default_rng(asked["seed"] + index if "seed" in asked else 0)
        ids, new = list(ids), []
        for _ in range(asked["max_tokens"]):
            logp_V = self.logp(ids)[: self.tokenizer.base.vocab_size]
            noise_V = rng.gumbel(size=logp_V.shape) * asked["temperature"]
            new.append(int(np.argmax(logp_V + noise_V)))
            ids.append(new[-1])
        return self.tokenizer.decode(new)

    def table(self, ids, asked) -> list[tuple[str, float]]:
        logp_V = self.logp(ids)
        top = np.argsort(-logp_V)[: asked["top_logprobs" if "messages" in asked else "logprobs"]]
        by_id = "return_tokens_as_token_ids" in asked
        name = lambda i: f"token_id:{i}" if by_id else self.tokenizer.decode([i])
        return [(name(int(i)), float(logp_V[i])) for i in top]

    def choice(self, path, index, text, logprobs) -> dict:
        if path == "/v1/chat/completions":
            listed = [{"token": name, "logprob": p, "bytes": []} for name, p in logprobs or ()]
            return {
                "index": index,
                "message": {"role": "assistant", "content": text},
                "logprobs": {"content": [{"top_logprobs": listed}]} if logprobs else None,
            }
        tops = {"top_logprobs": [dict(logprobs)]} if logprobs else None
        return {"index": index, "text": text, "logprobs": tops}


def echo(path, asked) -> dict:
    """Answers every request with `n` texts, with " one" as the most likely token."""
    texts = [f"text {asked['seed'] + i}" for i in range(asked["n"])] if "n" in asked else [" one"]
    tops = {"top_logprobs": [{" one": -0.25, " two": -1.75}]}
    return {"choices": [{"text": text, "logprobs": tops} for text in texts]}


@dataclass
class Server:
    """State of the server: its faults and the requests it has received."""

    url: str
    faults: list[Fault]  # used up first, one per request
    asked: list[tuple[str, dict, dict]] = field(
        default_factory=list, repr=False
    )  # path, headers, JSON
    closing: threading.Event = field(default_factory=threading.Event)
    lock: Any = field(default_factory=threading.Lock)
    live: int = 0  # requests in progress
    most_live: int = 0  # maximum of `live`


class Handler(BaseHTTPRequestHandler):
    """Handles a request: a fault if one is left, else an answer."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm, wbufsize = True, -1  # otherwise each answer takes 40 ms
    server: Any

    def do_POST(self):
        state, body = self.server.state, self.rfile.read(int(self.headers["content-length"]))
        with state.lock:
            payload = json.loads(body)
            state.asked.append((self.path, dict(self.headers), payload))
            fault = state.faults.pop(0) if state.faults else None
            state.live += 1
            state.most_live = max(state.most_live, state.live)
        try:
            if fault:
                self.fail(*fault)
            else:
                self.reply(self.server.answer(self.path, payload))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with state.lock:
                state.live -= 1

    def reply(self, found, status=200, headers=()):
        body = found if isinstance(found, bytes) else json.dumps(found).encode()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def fail(self, kind, detail):
        if kind == "packed":
            packing, data = detail
            return self.reply(data, headers=[("content-encoding", packing)])
        if kind == "status":
            status, *headers = detail
            said = {"error": f"no, {self.headers['authorization']}\nsaid the server"}
            return self.reply(said, status, headers)
        if kind == "body":
            return self.reply(detail)
        self.close_connection = True
        if kind == "silence":
            self.server.state.closing.wait(60)
        elif kind == "half":
            self.send_response(200)
            self.send_header("content-length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [{"te')
        elif kind == "drip":
            self.send_response(200)
            self.send_header("content-length", str(1 << 40))
            self.end_headers()
            while not self.server.state.closing.is_set():
                self.wfile.write(b" ")
        elif kind == "slow headers":
            self.repeat(b"HTTP/1.1 200 OK\r\nx-slow: ", b"x")
        elif kind == "continue":  # answers that announce an answer, without end
            self.repeat(b"", b"HTTP/1.1 100 Continue\r\n\r\n")
        return None  # "drop": the connection is closed without an answer

    def repeat(self, first, again):
        self.wfile.write(first)
        while not self.server.state.closing.wait(0.01):
            self.wfile.write(again)
            self.wfile.flush()

    def log_message(self, *args):
        del args


@contextlib.contextmanager
def serve(answer=echo, faults=()):
    """Runs a server; yields its Server state.

    Requests get the faults first, then `answer(path, JSON)`.
    """
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    http.answer = answer
    http.state = Server(f"http://127.0.0.1:{http.server_port}/v1", list(faults))
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield http.state
    finally:
        http.state.closing.set()
        http.shutdown()
        http.server_close()
        thread.join()
