"""What a trunk saves: all comparisons of a prefix as its branches, against one prompt for each.

Texts are random letters, a token each, the judge a small decoder that nobody trained: what its
verdicts cost does not depend on what they are. Both sides are asked through `textgen.Local`.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from sip import mesh as meshes
from sip.judge import prompts, verdicts
from sip.models import decoder
from sip.models.config import ModelConfig
from sip.textgen import Ids, Local, Text, tokens_of
from sip.tokenizer import Byte

MODEL = ModelConfig(
    vocab_size=264,
    width=128,
    layers=2,
    kv_heads=2,
    queries_per_kv=1,
    head_dim=64,
    hidden=352,
    max_len=4096,
)
ASPECT = dataclasses.replace(prompts.load("quality"), options=("1", "2"))  # a byte each
SUFFIX = 128
BATCHES = (2, 8)  # unshared prompts at a time: the fastest counts


def questions(prefix: int, candidates: int, seed: int) -> tuple[Text, list[Text]]:
    """(trunk, branches): all ordered pairs of some suffixes of a prefix of `prefix` tokens."""
    rng = np.random.default_rng(seed)
    letters = lambda n: "".join(map(chr, rng.integers(ord("a"), ord("z") + 1, n)))
    trunk = prompts.trunk(ASPECT, prefix=letters(prefix), reference="")
    texts = [letters(SUFFIX) for _ in range(candidates)]
    return trunk, [prompts.branch(ASPECT, a, b) for a in texts for b in texts if a is not b]


def prompt_tokens(trunk: Ids, branches: Sequence[Ids]) -> tuple[int, int]:
    """(shared, unshared): the trunk once and its branches; the trunk anew with each of them.
    Either prompt begins with BOS."""
    own = sum(map(len, branches))
    return 1 + len(trunk) + own, len(branches) * (1 + len(trunk)) + own


def measure(
    prefix: int, *, candidates: int, sample: int, repeats: int, seed: int, cfg: ModelConfig = MODEL
) -> dict[str, float]:
    """Tokens, seconds and the largest difference of verdicts at a prefix of so many tokens.

    Seconds, of the clock and of all cores together, are the least of some repeats, after one to
    compile. Unshared, `sample` of the pairs are run, and their seconds scaled to all.
    """
    trunk, branches = questions(prefix, candidates, seed)
    drawn = np.random.default_rng(seed).permutation(len(branches))[:sample]
    some = [branches[c] for c in drawn]
    params = decoder.init(cfg, jax.random.key(seed))
    judge = lambda batch: Local(params, cfg, Byte(), meshes.single(), batch=batch)
    whole = [(*trunk, *branch[:-1]) for branch in some]  # all but the words that end a prompt
    ways: dict[int, Callable] = {0: lambda: judge(1).choose([trunk], [branches], ASPECT.options)}
    for batch in BATCHES:
        ways[batch] = lambda batch=batch: judge(batch).choose(
            whole, [[branch[-1:]] for branch in some], ASPECT.options
        )
    said, seconds = _timed(ways, repeats)
    batch = min(BATCHES, key=lambda batch: seconds[batch][0])
    (shared, shared_cpu), unshared_2 = seconds[0], seconds[batch] * (len(branches) / len(some))
    unshared, unshared_cpu = map(float, unshared_2)
    tokens = prompt_tokens(*_ids(trunk, branches))
    p_shared, p_unshared = _first(said[0])[0, drawn], _first(said[batch])[:, 0]
    return {
        "pairs": len(branches),
        "sampled": len(some),
        "batch": batch,
        "tokens_shared": tokens[0],
        "tokens_unshared": tokens[1],
        "tokens_ratio": tokens[1] / tokens[0],
        "seconds_shared": float(shared),
        "seconds_unshared": unshared,
        "seconds_ratio": float(unshared / shared),
        "cpu_shared": float(shared_cpu),
        "cpu_unshared": unshared_cpu,
        "cpu_ratio": float(unshared_cpu / shared_cpu),
        "difference": float(abs(p_shared - p_unshared).max()),
        "spread": float(np.ptp(p_shared)),
    }


def _ids(trunk, branches) -> tuple[Ids, list[Ids]]:
    return tokens_of(Byte(), trunk), [tokens_of(Byte(), branch) for branch in branches]


def _timed(ways: dict[int, Callable], repeats: int) -> tuple[dict, dict[int, np.ndarray]]:
    """(answers, least seconds by clock and by CPU); by turns, so that what else the machine does
    meets all alike."""
    said, seconds = {}, {name: np.full(2, np.inf) for name in ways}
    now = lambda: np.array([time.perf_counter(), time.process_time()])
    for turn in range(1 + repeats):
        for name, run in ways.items():
            start = now()
            said[name] = run()
            if turn:
                seconds[name] = np.minimum(seconds[name], now() - start)
    return said, seconds


def _first(logp_BCO):
    """P(first is better)."""
    return verdicts.direct(logp_BCO, ASPECT.values, min_mass=0.0)[0]
