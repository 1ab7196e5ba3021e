"""Tests host memory while a checkpoint of 2 GB is read onto eight devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LAYERS, WIDTH, HIDDEN, VOCAB = 24, 1024, 4096, 32000
CHILD = """
import json, sys, threading, time
sys.path.insert(0, sys.argv[2])
import families, jax, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
from safetensors.numpy import save_file
from sip import mesh as meshes
from sip.hf import configs, names, reading, shards
from sip.models import decoder
from pathlib import Path

path, said = Path(sys.argv[1]), json.loads(sys.argv[3])
raw = {**families.config("llama31"), **said}
(path / "config.json").write_text(json.dumps(raw))
cfg = configs.parse(raw)
shapes = jax.eval_shape(lambda: decoder.init(cfg, jax.random.key(0)))
file_of, largest, total = {}, 0, 0
for name, place, _ in names.tensors(shapes, cfg):
    x = np.full(place.their_shape, 0.5, np.float32)
    save_file({name: x}, path / f"{name}.safetensors")
    file_of[name] = f"{name}.safetensors"
    largest, total = max(largest, x.nbytes), total + x.nbytes
    del x
(path / shards.INDEX).write_text(json.dumps({"weight_map": file_of}))

def held():
    rows = open("/proc/self/status").read().splitlines()
    return 1024 * sum(int(r.split()[1]) for r in rows if r.startswith("RssAnon"))

mesh = meshes.build(meshes.MeshConfig(1, 4, 2))
jax.block_until_ready(jax.device_put(np.ones(8), meshes.replicated(mesh)))
before, peak, done = held(), [0], threading.Event()

def watch():
    while not done.is_set():
        peak[0] = max(peak[0], held())
        time.sleep(0.002)

watcher = threading.Thread(target=watch)
watcher.start()
params, cfg = reading.load(path, mesh)
done.set()
watcher.join()
assert all(float(x.min()) == 0.5 for x in jax.tree.leaves(params))
print(json.dumps(dict(above=peak[0] - before - total, largest=largest, total=total)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_little_more_than_the_result_is_held(tmp_path):
    said = dict(num_hidden_layers=LAYERS, hidden_size=WIDTH, intermediate_size=HIDDEN)
    said |= dict(vocab_size=VOCAB, num_attention_heads=16, num_key_value_heads=8)
    tests = Path(__file__).parent
    env = os.environ | {"PYTHONPATH": str(tests.parent)}
    command = [sys.executable, "-c", CHILD, str(tmp_path), str(tests), json.dumps(said)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["total"] > 1.7e9
    assert found["above"] < 1.3 * found["largest"], found
