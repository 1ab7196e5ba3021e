"""A small OpenAI-compatible server on loopback that can be made to fail, backed by a decoder."""

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

Fault = tuple[str, Any]  # kind and detail: see Handler.fail


@functools.partial(jax.jit, static_argnums=1)
def _logits(params, cfg, tokens_BT):
    """All logits of one plain sequence: no branches, no sharing."""
    tree = tiny.trunk_only(tokens_BT)
    return decoder.apply(params, cfg, tree).trunk_BTD @ decoder.unembed(params, cfg)


class Parsing:
    """A tokenizer that, as servers do, parses special tokens out of any text."""

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
    """Answers requests; `seen` are the token ids of each prompt, in order of arrival.

    `most` is how many choices it gives at once, whatever `n` says.
    """

    params: Any
    cfg: Any
    tokenizer: Any
    most: int = 99
    seen: list[list[int]] = field(default_factory=list)

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
        """Sampled by Gumbel noise of (seed + index); the tokenizer's eos ends it."""
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
    """Answers everything with the likeliest token " one", and with as many texts as asked for."""
    texts = [f"text {asked['seed'] + i}" for i in range(asked["n"])] if "n" in asked else [" one"]
    tops = {"top_logprobs": [{" one": -0.25, " two": -1.75}]}
    return {"choices": [{"text": text, "logprobs": tops} for text in texts]}


@dataclass
class Server:
    """What was asked of it: (path, headers, JSON); `faults` come first, one per request."""

    url: str
    faults: list[Fault]
    asked: list[tuple[str, dict, dict]] = field(default_factory=list, repr=False)
    closing: threading.Event = field(default_factory=threading.Event)
    lock: Any = field(default_factory=threading.Lock)
    live: int = 0
    most_live: int = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm, wbufsize = True, -1  # or each answer takes 40 ms
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
        return None  # "drop": the connection is closed without a word

    def log_message(self, *args):
        del args


@contextlib.contextmanager
def serve(answer=echo, faults=()):
    """A Server whose `answer(path, JSON)` is what requests get once the faults are used up."""
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
