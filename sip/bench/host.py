"""Measures the host's part of a self-improving step at the paper's size, in CPU seconds.

256 prefixes of 1920 tokens with a suffix and 16 rollouts of 128 tokens each. No model runs.
`candidates`: tokens become texts, duplicates are merged, and a pair is chosen by random scores.
`prompts`: all ordered pairs become the token trees of a judge. Several processes divide the texts
among themselves; here one process does all.
"""

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from sip import mesh as meshes
from sip.bench import flags
from sip.bench.setup import TINY as MODEL
from sip.data.chunks import texts_of
from sip.judge import prompts
from sip.padding import bucketed
from sip.sampling import SamplingConfig
from sip.stages import collect
from sip.structs import Rollouts
from sip.text import tokenizer as tokenizers
from sip.text.segments import prompt_of, tokens_of
from sip.textgen import stems
from sip.training.losses import ObjectiveConfig
from sip.workdir import to_json

ROWS, PREFIX, SUFFIX, ROLLOUTS = 256, 1920, 128, 16
FEW = 4, 48, 8, 3  # the same of --tiny
BATCH = 16  # prefixes of a judge's batch
BAR = 0.5  # CPU seconds per step
WORDS = 400  # of the text that the tokenizer is trained on
VOCABULARY = 800


def bench_host() -> None:
    """Measures the host's part and prints it."""
    found = measure(*(FEW if flags.TINY.value else (ROWS, PREFIX, SUFFIX, ROLLOUTS)))
    if flags.JSON.value:
        print(to_json(found))
        return
    for name, seconds in found["seconds"].items():
        print(f"{name}: {seconds:.2f} CPU s per step")
    met = "met" if found["seconds"]["candidates"] <= BAR else "NOT met"
    print(f"candidates: at most {BAR} CPU s: {met}")


def measure(rows: int, prefix: int, suffix: int, rollouts: int) -> dict[str, Any]:
    """Returns the sizes and the median CPU seconds of each part over --turns turns."""
    rng = np.random.default_rng(flags.SEED.value)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = trained(os.path.join(folder, "host.model"), rng)
    ordinary = [i for i in range(tokenizer.vocab_size) if tokenizer.starts(i)]
    draw = lambda *shape: rng.choice(ordinary, shape).astype(np.int32)
    batch = dict(
        tokens_BT=draw(rows, prefix + suffix),
        mask_BT=np.ones((rows, prefix + suffix), bool),
        fork_B=np.full(rows, prefix, np.int32),
        doc_B=np.arange(rows, dtype=np.int32),
    )
    tokens_BKR = draw(rows, rollouts, suffix)
    zeros = np.zeros(tokens_BKR.shape, np.float32)
    sampled = Rollouts(tokens_BKR, tokens_BKR >= 0, zeros, zeros)
    scores_BK = rng.random((rows, 1 + rollouts))
    of = collector(tokenizer, suffix, rollouts)

    def candidates():
        texts = texts_of(tokenizer, batch, suffix)
        pool = collect.build_pool(of, batch, *texts, sampled)
        collect.learned(of, batch, pool, scores_BK, pool.valid_BK)
        return texts[0], pool.texts

    known = candidates()
    turns = 1 if flags.TINY.value else flags.TURNS.value
    seconds = {
        "candidates": _cpu(candidates, turns),
        "prompts": _cpu(lambda: trees(tokenizer, *known), turns),
    }
    sizes = dict(prefixes=rows, prefix=prefix, suffix=suffix, candidates=1 + rollouts)
    return {"sizes": sizes, "seconds": seconds, "bar": BAR}


def trained(path: str, rng) -> tokenizers.SentencePiece:
    """Returns a tokenizer trained on random words, with byte fallback."""
    letters = lambda: "".join(map(chr, rng.integers(ord("a"), ord("z") + 1, rng.integers(2, 9))))
    words = [letters() for _ in range(WORDS)]
    texts = [" ".join(rng.choice(words, 50)) for _ in range(WORDS)]
    return tokenizers.train_sentencepiece(texts, path, vocab_size=VOCABULARY)


def collector(tokenizer, suffix: int, rollouts: int) -> collect.Collector:
    """Returns the parts of a run that choosing candidates needs, without models and corpus."""
    nothing: Any = None
    return collect.Collector(
        cfg=MODEL,
        mesh=meshes.single(),
        tokenizer=tokenizer,
        batches=nothing,
        suffix=suffix,
        candidates=collect.CandidateConfig(rollouts=((0, rollouts),)),
        objective=ObjectiveConfig("dpo"),
        sampling=SamplingConfig(),
        judge=None,
        rewriter=None,
        reference="suffix",
        seed=0,
    )


def trees(tokenizer, prefixes: list[str], texts: list[list[str]]) -> int:
    """Builds the trees of all ordered pairs, as sip/textgen/local.py does; returns their number."""
    aspect = prompts.load("quality")
    cached, made = tokenizers.Cached(tokenizer, 1 << 14), 0
    for start in range(0, len(prefixes), BATCH):
        rows = slice(start, start + BATCH)
        trunks = [prompts.trunk(aspect, prefix=p, reference="") for p in prefixes[rows]]
        pairs = [
            prompts.pairs(aspect, row, itertools.permutations(range(len(row)), 2))
            for row in texts[rows]
        ]
        trunk_ids = [prompt_of(tokenizer, cached, trunk) for trunk in trunks]
        found = stems.divided(pairs, cached, len(pairs[0]))
        if found is None:
            branch_ids = [[tokens_of(cached, branch) for branch in row] for row in pairs]
            bucketed(trunk_ids, branch_ids, tokenizer, rows=len(trunks), width=len(pairs[0]))
        else:
            K, _, W = found.sizes
            bucketed(trunk_ids, found.stems, tokenizer, rows=len(trunks), width=K, longest=W)
            found.padded(range(len(trunks)), len(trunks), tokenizer.pad)
        made += 1
    return made


def _cpu(do: Callable[[], Any], turns: int) -> float:
    found = []
    for _ in range(turns):
        start = time.process_time()
        do()
        found.append(time.process_time() - start)
    return statistics.median(found)
