"""Measures what trunk sharing saves: all comparisons of a prefix as branches of one trunk.

The alternative is one full prompt per comparison. Texts are random letters, one token each. The
judge is a small untrained decoder, because the cost of verdicts does not depend on their values.
Both variants run through `textgen.local.Local`.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from sip import mesh as meshes
from sip.bench.flags import CANDIDATES, JSON, REPEATS, SAMPLE, SEED
from sip.judge import prompts, verdicts
from sip.loading import LoadedModel
from sip.models import decoder
from sip.models.config import ModelConfig
from sip.structs import UserError
from sip.text.segments import Ids, Text, tokens_of
from sip.text.tokenizer import Byte
from sip.textgen import stems
from sip.textgen.local import Local
from sip.workdir import to_json

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
ASPECT = dataclasses.replace(prompts.load("quality"), options=("1", "2"))  # one byte token each
SUFFIX = 128  # tokens per candidate
BATCHES = (2, 8)  # batch sizes tried for unshared prompts; the faster one counts


def questions(
    prefix: int, candidates: int, seed: int, *, suffix: int = 0
) -> tuple[Text, list[Text]]:
    """Returns (trunk, branches): all ordered pairs of `candidates` suffixes of a random prefix.

    The prefix has `prefix` tokens, a suffix `suffix` (0: SUFFIX).
    """
    rng = np.random.default_rng(seed)
    letters = lambda n: "".join(map(chr, rng.integers(ord("a"), ord("z") + 1, n)))
    trunk = prompts.trunk(ASPECT, prefix=letters(prefix), reference="")
    texts = [letters(suffix or SUFFIX) for _ in range(candidates)]
    orders = itertools.permutations(range(len(texts)), 2)
    return trunk, [*prompts.pairs(ASPECT, texts, orders)]


def prompt_tokens(
    trunk: Ids, branches: Sequence[Ids], found: stems.Stems | None = None
) -> tuple[int, int]:
    """Returns the prompt tokens (shared, unshared).

    Shared counts the trunk once plus all branches, or plus the stems and leaves `found`; unshared
    counts the trunk again for each branch. Each prompt starts with BOS.
    """
    shared, own = (sum(map(len, x)) for x in (found.parts(0) if found else branches, branches))
    return 1 + len(trunk) + shared, len(branches) * (1 + len(trunk)) + own


def measure(
    prefix: int, *, candidates: int, sample: int, repeats: int, seed: int, cfg: ModelConfig = MODEL
) -> dict[str, float]:
    """Measures tokens, seconds and the largest difference of verdicts for one prefix length.

    Wall seconds and CPU seconds (all cores) are minima over the repeats; a first run compiles and
    does not count. Of the unshared prompts only `sample` are run, and their time is scaled to all.

    Args:
        prefix: Tokens of the prefix.
        candidates: Number of candidates; all their ordered pairs are compared.
        sample: Number of unshared prompts to run.
        repeats: Number of timed runs.
        seed: Random seed.
        cfg: Config of the judge's model.
    """
    trunk, branches = questions(prefix, candidates, seed)
    drawn = np.random.default_rng(seed).permutation(len(branches))[:sample]
    some = [branches[c] for c in drawn]
    params = decoder.init(cfg, jax.random.key(seed))
    judge = lambda batch: Local(LoadedModel(params, cfg, Byte(), meshes.single()), batch=batch)
    # An unshared prompt has everything in its trunk except the branch's last segment, because
    # `choose` needs at least one branch.
    whole = [(*trunk, *branch[:-1]) for branch in some]
    ways: dict[int, Callable] = {0: lambda: judge(1).choose([trunk], [branches], ASPECT.options)}
    for batch in BATCHES:
        ways[batch] = lambda batch=batch: judge(batch).choose(
            whole, [[branch[-1:]] for branch in some], ASPECT.options
        )
    said, seconds = _timed(ways, repeats)
    batch = min(BATCHES, key=lambda batch: seconds[batch][0])
    (shared, shared_cpu), unshared_2 = seconds[0], seconds[batch] * (len(branches) / len(some))
    unshared, unshared_cpu = map(float, unshared_2)
    ids = _ids(trunk, branches)
    tokens = prompt_tokens(*ids, stems.divided([branches], Byte(), 0))
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
    """Returns (answers, minimum [wall seconds, CPU seconds]) of each variant.

    Variants take turns, so that other load on the machine affects all of them equally.
    """
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
    """Returns P(first candidate is better)."""
    return verdicts.direct(logp_BCO, ASPECT.values, min_mass=0.0)[0]


# Prefix tokens: minimum ratios unshared / shared of (prompt tokens, seconds).
FEWER = {1024: (4.5, 3.5), 1920: (7.0, 5.0)}


SAME = 1e-5  # maximum difference of verdicts with and without a shared trunk, probability


def bench_sharing() -> None:
    """Runs the `sharing` benchmark at the prefix lengths of FEWER and prints its result."""
    if CANDIDATES.value < 2 or min(SAMPLE.value, REPEATS.value) < 1:
        raise UserError("--candidates must be at least 2, --sample and --repeats at least 1")
    found = {}
    for prefix, bars in FEWER.items():
        found[prefix] = measure(
            prefix,
            candidates=CANDIDATES.value,
            sample=SAMPLE.value,
            repeats=REPEATS.value,
            seed=SEED.value,
        )
        if not JSON.value:
            print(sharing_lines(prefix, found[prefix], *bars), flush=True)
    if JSON.value:
        print(to_json(found))


def sharing_lines(prefix: int, f: dict[str, float], tokens: float, seconds: float) -> str:
    """Formats the figures of one prefix length, their bounds, and whether they meet the bounds.

    Args:
        prefix: Tokens of the prefix.
        f: Figures from `measure`.
        tokens: Minimum ratio of prompt tokens.
        seconds: Minimum ratio of seconds.
    """
    met = lambda ok: "met" if ok else "NOT met"
    return (
        f"prefix {prefix}, {f['pairs']} ordered pairs\n"
        f"  prompt tokens: {f['tokens_unshared']} -> {f['tokens_shared']}, "
        f"{f['tokens_ratio']:.2f}x fewer (at least {tokens}x): {met(f['tokens_ratio'] >= tokens)}\n"
        f"  seconds: {f['seconds_unshared']:.2f} -> {f['seconds_shared']:.2f}, "
        f"{f['seconds_ratio']:.2f}x less (at least {seconds}x): "
        f"{met(f['seconds_ratio'] >= seconds)}; CPU seconds {f['cpu_unshared']:.2f} -> "
        f"{f['cpu_shared']:.2f}, {f['cpu_ratio']:.2f}x less; unshared scaled from "
        f"{f['sampled']} pairs in batches of {f['batch']}, the fastest of {BATCHES}\n"
        f"  verdicts of these pairs differ by {f['difference']:.1e} at most (at most {SAME}): "
        f"{met(f['difference'] <= SAME)}; they range over {f['spread']:.3f}"
    )
