"""A program that tests run as one process or as one of several; prints its results as JSON.

python tests/peers.py [COORDINATOR COUNT INDEX]
"""

import json
import sys
from typing import Any

import jax
import numpy as np
import tiny

from sip import processes
from sip.loading import LoadedModel
from sip.mesh import MeshConfig, PartConfig, build, divide, put_batch
from sip.models import decoder
from sip.sampling import SamplingConfig
from sip.structs import UserError
from sip.text.tokenizer import Byte
from sip.textgen.local import Local
from sip.training import losses, optim, step

CFG = tiny.model(vocab_size=264, kv_heads=4)
PROMPTS = ["a", "bcd", "ef", "the rest"]


def batch():
    """Returns a batch of four prefixes with two branches each."""
    tree = jax.tree.map(np.asarray, tiny.tree(B=4, T=8, C=2, R=3, vocab=264))
    ones_BC = np.ones(tree.fork_BC.shape)
    return losses.Branches(tree, ones_BC > 0, ones_BC, np.zeros(tree.mask_BCR.shape), tree.mask_BT)


def figures(mesh) -> dict:
    """Returns the metrics of three updates, verdicts, and sampled texts."""
    objective = losses.ObjectiveConfig("dpo", ce_weight=0.5, ce_weight_last=0.5)
    tx = optim.build(optim.OptimConfig(lr=0.01, steps=10, eps=1e-3, warmup_steps=1))
    found = []
    with jax.set_mesh(mesh):
        state = step.init_state(CFG, tx, mesh, 0, reference=True)
        weights = losses.branch_weights(objective)
        update = step.make_update(losses.branch_terms(CFG, objective), tx, weights)
        for _ in range(3):
            state, metrics = update(state, put_batch(mesh, batch()))
            found.append({k: [float(x) for x in pair] for k, pair in metrics.items()})
    local = Local(LoadedModel(state.params, CFG, Byte(), mesh), batch=4)
    branches = [["x", "yz"]] * len(PROMPTS)
    asked = dict(votes=2, max_tokens=5, sampling=SamplingConfig(), seed=3)
    return {
        "metrics": found,
        "choose": local.choose(PROMPTS, branches, (" ", "e")).tolist(),
        "words": local.generate(PROMPTS, branches, **asked),
        "unembed": processes.fetch(decoder.unembed(state.params, CFG)).std(axis=0).tolist(),
    }


def apart() -> list:
    """Returns verdicts computed on half of each process's devices."""
    mesh = build(MeshConfig(tensor=2), divide(PartConfig(devices=2))[1])
    tx = optim.build(optim.OptimConfig(lr=0.01, steps=10))
    params = step.init_state(CFG, tx, mesh, 0, reference=False).params
    local = Local(LoadedModel(params, CFG, Byte(), mesh), batch=4)
    return local.choose(PROMPTS, [["x", "yz"]] * len(PROMPTS), (" ", "e")).tolist()


def agreements() -> dict:
    """Returns the results of broadcast, on_lead and agree."""
    index = jax.process_index()

    def fails():
        raise UserError(f"said by process {index}")

    def even(i):
        if i % 2:
            raise UserError(f"{i} is odd")

    done = []
    shares = processes.divided("abcde", lambda text: done.append(text) or text * 100)
    found: dict[str, Any] = {"told": processes.broadcast(lambda: [index, np.arange(3.0)])[0]}
    found |= {"shares": shares, "done": done}
    for name, do in {
        "error": lambda: processes.on_lead(fails),
        "odd": lambda: processes.divided(range(4), even),
        "same": lambda: processes.agree(1, {"x": np.zeros(2)}),
        "differ": lambda: processes.agree(2, {"x": np.full(2, index)}),
    }.items():
        try:
            found[name] = str(do())
        except UserError as e:
            found[name] = str(e)
    return {**found, "preempted": processes.preempted()}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        processes.start(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    mesh = build(MeshConfig(fsdp=2, tensor=2))
    found = {**agreements(), **figures(mesh), "lead": processes.lead()}
    found["cache"] = jax.config.jax_enable_compilation_cache
    if jax.local_device_count() > 1:
        found["apart"] = apart()
    print(json.dumps({**found, "processes": jax.process_count()}, default=str))
