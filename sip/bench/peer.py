"""The peer of the speed benchmarks: transformers and torch, run as a program of its own.

python sip/bench/peer.py

It reads requests from stdin and writes answers to stdout, until stdin ends. Both are pickled dicts
after their length in bytes. It imports nothing of sip, so that it runs in an environment that has
torch and no JAX. Three forms of one computation:

plain   every continuation is a sequence of its own, prefix included
mask    prefix and continuations are one sequence with a 4D attention mask and position ids
cached  the prefix runs once, continuations run on its keys and values (`past_key_values`)

Letters: B prefixes, P tokens of a prefix, C continuations of R tokens, N = P + C * R.
"""

import copy
import os
import pickle
import struct
import sys
import time
import warnings
from typing import Any, BinaryIO

NEEDED = ("numpy", "torch", "transformers")
REPEATS = 8  # products of a measurement of the ceiling


def send(stream: BinaryIO, message: Any) -> None:
    """Writes a message to a pipe."""
    data = pickle.dumps(message, protocol=5)
    stream.write(struct.pack("<Q", len(data)))
    stream.write(data)
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """Reads a message from a pipe. Raises EOFError at its end."""
    head = stream.read(8)
    if len(head) < 8:
        raise EOFError
    return pickle.loads(stream.read(struct.unpack("<Q", head)[0]))


def reset_peak() -> None:
    """Makes `peak_bytes` start from the memory that the process holds now (Linux)."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak_bytes() -> int:
    """Returns the largest resident memory of this process since `reset_peak`."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


class Peer:
    """A model of transformers, and its optimiser.

    `answer` lists the methods that requests call; their arguments are those of the request.
    """

    def __init__(self):
        import torch  # pyright: ignore[reportMissingImports]

        self.torch: Any = torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    def load(self, config: dict, tensors: dict, dtype: str) -> None:
        """Builds the model of a config.json with the given weights."""
        import transformers  # pyright: ignore[reportMissingImports]

        kind = config.pop("model_type")
        known = transformers.AutoConfig.for_model(kind, **config)
        torch = self.torch
        model = transformers.AutoModelForCausalLM.from_config(known, dtype=getattr(torch, dtype))
        named = {name: torch.tensor(x) for name, x in tensors.items()}
        missing, unknown = model.load_state_dict(named, strict=False)
        if unknown or (
            missing and not (known.tie_word_embeddings and missing == ["lm_head.weight"])
        ):
            raise ValueError(f"weights of another model: missing {missing}, unknown {unknown}")
        self.model = model.to(self.device).eval()
        self.trained: dict[str, tuple[Any, Any]] = {}

    def begin(self, forms: list, lr: float, weight_decay: float) -> None:
        """Makes a copy of the model with a fresh AdamW for each form of the coming updates."""
        self.trained.clear()
        for form in forms:
            model = copy.deepcopy(self.model)
            groups = [
                {"params": [p for p in model.parameters() if p.ndim > 1]},
                {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
            ]
            how: Any = dict(lr=lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=weight_decay)
            self.trained[form] = model, self.torch.optim.AdamW(groups, fused=True, **how)

    def ceiling(self, size: int, megabytes: int, dtype: str) -> dict:
        """Measures products of square matrices (FLOPs per second) and copies (bytes per second)."""
        torch = self.torch
        a = torch.randn(size, size).to(self.device, getattr(torch, dtype))
        x = torch.zeros(megabytes << 18, dtype=torch.float32, device=self.device)
        y = torch.empty_like(x)
        product = min(self._seconds(lambda: a @ a) for _ in range(REPEATS))
        moved = min(self._seconds(lambda: y.copy_(x)) for _ in range(REPEATS))
        return {"flops": 2 * size**3 / product, "bytes": 2 * x.nbytes / moved}

    def update(self, batch: dict, form: str, loss: str, rows: int) -> dict:
        """Runs one update and returns its loss.

        `batch` is {tokens_BP, tokens_BCR, and for loss group advantage_BC, old_BCR}. `loss` is ce
        (of the whole prefix; C = 0), dpo (C = 2) or group (a clipped surrogate). `rows` prefixes
        run at a time, in form plain so many sequences; their gradients add up.
        """
        prefix = self._tensor(batch["tokens_BP"])
        branch = self._tensor(batch["tokens_BCR"])
        old = self._tensor(batch["old_BCR"]) if loss == "group" else None
        advantage = self._tensor(batch["advantage_BC"]) if loss == "group" else None
        model, optimiser = self.trained[form]
        optimiser.zero_grad()
        if loss == "ce":
            value = self._ce(model, prefix)
            value.backward()
            total = float(value.detach())
        elif loss == "dpo":
            total = self._dpo(model, prefix, branch, form)
        else:
            total = self._group(model, prefix, branch, old, advantage, form, rows)
        self.torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        return {"loss": total}

    def _ce(self, model, tokens):
        hidden = model.model(tokens, use_cache=False).last_hidden_state[:, :-1]
        return -self._picked(hidden, tokens[:, 1:], model).mean()

    def _dpo(self, model, prefix, branch, form: str) -> float:
        with self.torch.no_grad():  # the first weights are the reference
            reference = self._logp(self.model, prefix, branch, form).sum(-1)
        ratio = self._logp(model, prefix, branch, form).sum(-1) - reference
        margin = 0.1 * (ratio[:, 0] - ratio[:, 1])
        value = -self.torch.nn.functional.logsigmoid(margin).mean()
        value.backward()
        return float(value.detach())

    def _group(self, model, prefix, branch, old, advantage, form: str, rows: int) -> float:
        total, size = 0.0, branch.numel()
        step = rows if form == "plain" else branch.shape[1]
        for at in range(0, branch.shape[1], step):
            part = slice(at, at + step)
            logp = self._logp(model, prefix, branch[:, part], form)
            ratio, a = (logp - old[:, part]).exp(), advantage[:, part, None]
            clipped = ratio.clamp(0.8, 1.2) * a
            value = -self.torch.minimum(ratio * a, clipped).sum() / size
            value.backward()
            total += float(value.detach())
        return total

    def score(self, batch: dict, form: str) -> dict:
        """Returns logp_BCR of the continuations."""
        prefix, branch = self._tensor(batch["tokens_BP"]), self._tensor(batch["tokens_BCR"])
        with self.torch.no_grad():
            return {"logp": self._numpy(self._logp(self.model, prefix, branch, form))}

    def choose(self, trunk: list, branches: list, options: list, form: str, rows: int) -> dict:
        """Returns logp_CO of the option tokens after each branch; `rows` branches run at a time."""
        torch, found = self.torch, []
        with torch.no_grad():
            prefix = self._tensor([trunk])
            past = self.model.model(prefix, use_cache=True).past_key_values
            for at in range(0, len(branches), rows):
                part = branches[at : at + rows]
                ends = torch.tensor([len(ids) - 1 for ids in part], device=self.device)
                width = max(map(len, part))
                ids = self._tensor([[*one, *[0] * (width - len(one))] for one in part])
                if form == "cached":
                    out = self.model.model(ids, past_key_values=self._fanned(past, len(part)))
                    last = ends
                else:
                    whole = torch.cat([prefix.expand(len(part), -1), ids], 1)
                    out = self.model.model(whole, use_cache=False)
                    last = ends + prefix.shape[1]
                rows_at = torch.arange(len(part), device=self.device)
                logits = self.model.lm_head(out.last_hidden_state[rows_at, last]).float()
                found.append(logits.log_softmax(-1)[:, options])
        return {"logp": self._numpy(torch.cat(found))}

    def rollout(self, prefix: list, count: int, steps: int, form: str, seed: int) -> dict:
        """Samples `count` continuations at temperature 1: {tokens_KR, logp_KR}."""
        torch = self.torch
        torch.manual_seed(seed)
        tokens, logps = [], []
        with torch.no_grad():
            ids = self._tensor([prefix])
            ids = ids.expand(count, -1) if form == "plain" else ids
            out = self.model.model(ids, use_cache=True)
            past, hidden = out.past_key_values, out.last_hidden_state[:, -1]
            if form == "cached":
                past.batch_repeat_interleave(count)
                hidden = hidden.expand(count, -1)
            for i in range(steps):
                logp = self.model.lm_head(hidden).float().log_softmax(-1)
                token = torch.multinomial(logp.exp(), 1)
                tokens.append(token)
                logps.append(logp.gather(1, token))
                if i + 1 < steps:
                    out = self.model.model(token, past_key_values=past, use_cache=True)
                    past, hidden = out.past_key_values, out.last_hidden_state[:, -1]
        whole = torch.cat(tokens, 1), torch.cat(logps, 1)
        return {"tokens": self._numpy(whole[0]), "logp": self._numpy(whole[1])}

    def _logp(self, model, prefix, branch, form: str):
        """Returns logp_BCR of branches after their prefixes."""
        torch, (B, P), (_, C, R) = self.torch, prefix.shape, branch.shape
        if form == "plain":
            ids = torch.cat([prefix.repeat_interleave(C, 0), branch.reshape(B * C, R)], 1)
            hidden = model.model(ids, use_cache=False).last_hidden_state[:, P - 1 : -1]
            return self._picked(hidden, ids[:, P:], model).reshape(B, C, R)
        if form == "cached":
            out = model.model(prefix, use_cache=True)
            last = out.last_hidden_state[:, -1:].repeat_interleave(C, 0)
            past = self._fanned(out.past_key_values, C)
            ids = branch.reshape(B * C, R)
            own = model.model(ids, past_key_values=past).last_hidden_state[:, :-1]
            return self._picked(torch.cat([last, own], 1), ids, model).reshape(B, C, R)
        ids = torch.cat([prefix, branch.reshape(B, C * R)], 1)
        owner = torch.arange(C, device=ids.device).repeat_interleave(R)
        place = torch.cat([torch.arange(P), P + torch.arange(R).repeat(C)]).to(ids.device)
        owner = torch.cat([torch.full((P,), -1, device=ids.device), owner])
        order = torch.arange(P + C * R, device=ids.device)
        shared = (owner[None] == -1) | (owner[:, None] == owner[None])
        seen = shared & (order[:, None] >= order[None])
        how: Any = dict(attention_mask=seen[None, None].expand(B, 1, -1, -1), use_cache=False)
        hidden = model.model(ids, position_ids=place[None].expand(B, -1), **how).last_hidden_state
        # The state that predicts a branch's first token is the prefix's last.
        before = P + torch.arange(C * R).reshape(C, R) - 1
        before[:, 0] = P - 1
        hidden = hidden[:, before.reshape(-1).to(ids.device)]
        return self._picked(hidden, ids[:, P:], model).reshape(B, C, R)

    def _picked(self, hidden, tokens, model):
        """Returns the log-probabilities of `tokens`, which the states `hidden` predict."""
        logits = model.lm_head(hidden).float()
        lost = self.torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), tokens.flatten(), reduction="none"
        )
        return -lost.reshape(tokens.shape)

    def _fanned(self, past, count: int):
        """Returns a copy of a cache with `count` rows for each of its rows."""
        own = copy.copy(past)
        own.layers = [copy.copy(layer) for layer in past.layers]
        own.batch_repeat_interleave(count)
        return own

    def _tensor(self, x):
        found = self.torch.as_tensor(x, device=self.device)
        return found if found.is_floating_point() else found.long()

    def _numpy(self, x):
        return x.float().cpu().numpy() if x.is_floating_point() else x.cpu().numpy()

    def _seconds(self, do) -> float:
        start = time.perf_counter()
        do()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        """Waits until the device has finished."""
        if self.device == "cuda":
            self.torch.cuda.synchronize()


def answer(peer: Any, request: dict) -> dict:
    """Returns the answer to a request: its value, seconds and peak of memory, or an error."""
    actions = {
        "load": peer.load,
        "begin": peer.begin,
        "ceiling": peer.ceiling,
        "update": peer.update,
        "score": peer.score,
        "choose": peer.choose,
        "rollout": peer.rollout,
    }
    try:
        reset_peak()
        start = time.perf_counter()
        value = actions[request["do"]](**request["with"])
        peer.wait()
        seconds = time.perf_counter() - start
        return {"value": value, "seconds": seconds, "peak": peak_bytes()}
    except Exception as error:  # of any kind: the other process says it
        return {"error": f"{type(error).__name__}: {error}"}


def serve(peer: Any, source: BinaryIO, sink: BinaryIO) -> None:
    """Answers requests until `source` ends."""
    while True:
        try:
            request = receive(source)
        except EOFError:
            return
        send(sink, answer(peer, request))


def pipes() -> tuple[BinaryIO, BinaryIO]:
    """Returns the pipes of requests and answers. What libraries print goes to stderr instead."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return source, sink


def main() -> None:
    """Imports the libraries and serves."""
    source, sink = pipes()
    sys.path.pop(0)  # the modules beside this file hide none of the same name
    try:
        for name in NEEDED:
            __import__(name)
    except ImportError as error:
        send(sink, {"missing": error.name})
        return
    sys.modules["transformers"].logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    send(sink, {"versions": {name: str(sys.modules[name].__version__) for name in NEEDED}})
    serve(Peer(), source, sink)


if __name__ == "__main__":
    main()
