"""Helpers for exported models, served by `transformers serve`."""

import contextlib
import os
import socket
import subprocess
import sys
import time

import jax.numpy as jnp
import tiny


def wordy(cfg, tokenizer):
    """Returns parameters of a model whose most likely token is a word.

    Single-byte tokens are avoided, because libraries decode incomplete characters differently.
    """
    params = tiny.params(cfg)
    words = [len(tokenizer.decode([i]).strip("\ufffd")) > 1 for i in range(tokenizer.vocab_size)]
    kept_V = jnp.array(words + [False] * (cfg.vocab_size - len(words)))
    params = {**params, "embed": params["embed"] * kept_V[:, None]}
    return params if cfg.tied else {**params, "unembed": params["unembed"] * kept_V[None]}


@contextlib.contextmanager
def behind_transformers(path, tmp_path):
    """Serves the exported model in `path` with `transformers serve` on loopback; yields the URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(path)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        try:
            for _ in range(1200):
                assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(60)
