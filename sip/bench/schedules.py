"""How often fewer comparisons choose what all pairs would have chosen, with simulated judges.

A judge's verdicts on all ordered pairs are drawn once. The full ranking is the mean wins of all of
them; a schedule sees some, and its best and worst candidates are looked up in the full ranking.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib
import numpy as np
from etils import epath
from rich.console import Console
from rich.table import Table

from sip.bench.flags import CANDIDATES, JSON, PNG, PREFIXES, SEED
from sip.data.microworld import lexicon
from sip.data.microworld.oracle import MicroworldTruth
from sip.data.microworld.world import WorldConfig
from sip.judge import schedules
from sip.judge.compare import Pairs, Wins
from sip.judge.labels.corruptions import CORRUPTIONS, Others, Phrases
from sip.judge.schedules import ScheduleConfig
from sip.structs import UserError

SAME = 1e-9  # scores this close are equal
LOGITS = 0.5  # deviation of what a judge's log-odds say of one comparison
BIAS = 1.0  # log-odds in favour of the candidate shown first
FLIPPED = 0.15


@dataclass(frozen=True)
class Simulated:
    """Qualities of candidates, and a judge that compares two of them."""

    quality: Callable[[np.random.Generator, tuple[int, int]], np.ndarray]  # rng, (B, K)
    judge: Callable[[np.random.Generator, np.ndarray], np.ndarray]  # rng, first - second

    def verdicts(self, rng: np.random.Generator, quality_BK: np.ndarray) -> np.ndarray:
        """outcome_BKK: P(first is better), [b, i, j] with i shown first."""
        return self.judge(rng, quality_BK[:, :, None] - quality_BK[:, None])


def _normal(rng, shape):
    return rng.normal(0, 2, shape)


def _levels(rng, shape):
    return rng.integers(0, 4, shape).astype(float)


def _sure(rng, gap):
    """1, 0, or 1/2 for equals."""
    del rng
    return np.where(gap == 0, 0.5, gap > 0)


def _calibrated(rng, gap, bias=0.0):
    return 1 / (1 + np.exp(-gap - bias - LOGITS * rng.normal(size=gap.shape)))


def _biased(rng, gap):
    return _calibrated(rng, gap, BIAS)


def _drawn(rng, gap):
    """Won or lost by chance; wrong in about 17 of 100, mostly where candidates are near."""
    return (rng.random(gap.shape) < 1 / (1 + np.exp(-gap))).astype(float)


def _flipped(rng, gap):
    """Won or lost, and wrong in 15 of 100, however far apart the candidates are."""
    return ((gap > 0) != (rng.random(gap.shape) < FLIPPED)).astype(float)


JUDGES = {
    "calibrated": Simulated(_normal, _calibrated),
    "biased": Simulated(_normal, _biased),
    "drawn": Simulated(_normal, _drawn),
    "flipped": Simulated(_normal, _flipped),
    "ties": Simulated(_levels, _sure),
    "noisy ties": Simulated(_levels, _calibrated),
}


def measure(
    simulated: Simulated,
    wanted: dict[str, ScheduleConfig],
    *,
    prefixes: int,
    candidates: int,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Figures of each schedule on the same verdicts; and of `again`, all pairs asked once more."""
    rng = np.random.default_rng(seed)
    quality_BK = simulated.quality(rng, (prefixes, candidates))
    outcome_BKK, again_BKK = (simulated.verdicts(rng, quality_BK) for _ in range(2))
    draw_BK2 = rng.random((*quality_BK.shape, 2))
    full_BK = _play(ScheduleConfig("all"), outcome_BKK, draw_BK2).score_BK
    found = {name: _play(cfg, outcome_BKK, draw_BK2) for name, cfg in wanted.items()}
    found["again"] = _play(ScheduleConfig("all"), again_BKK, draw_BK2)
    return {name: figures(wins, full_BK) for name, wins in found.items()}


def _play(cfg: ScheduleConfig, outcome_BKK, draw_BK2) -> Wins:
    rows_B1 = np.arange(len(outcome_BKK))[:, None]

    def ask(pairs: Pairs):
        return outcome_BKK[rows_B1, pairs.first_BC, pairs.second_BC], pairs.mask_BC

    return schedules.play(cfg, ask, np.ones(draw_BK2.shape[:2], bool), draw_BK2)


def figures(wins: Wins, full_BK: np.ndarray) -> dict[str, float]:
    """Cost, and what the full ranking says of the best and the worst by `wins`.

    `chosen`: the best is among the full ranking's top 2, equals of the second included; `rejected`:
    the worst is among its bottom 2; `agree`: both. Regrets are in mean wins, from the full best
    and from the full worst.
    """
    at_B1 = lambda index_B: np.take_along_axis(full_BK, index_B[:, None], axis=1)[:, 0]
    ranked_BK = np.sort(full_BK, axis=1)
    best_B, worst_B = at_B1(wins.score_BK.argmax(1)), at_B1(wins.score_BK.argmin(1))
    chosen_B, rejected_B = best_B >= ranked_BK[:, -2] - SAME, worst_B <= ranked_BK[:, 1] + SAME
    return {
        "comparisons": wins.comparisons[0] / wins.comparisons[1],
        "share": wins.share[0] / wins.share[1],
        "agree": float((chosen_B & rejected_B).mean()),
        "chosen": float(chosen_B.mean()),
        "rejected": float(rejected_B.mean()),
        "regret_chosen": float((ranked_BK[:, -1] - best_B).mean()),
        "regret_rejected": float((worst_B - ranked_BK[:, 0]).mean()),
    }


BAR, REGRET = 0.9, 0.03  # what an adaptive schedule of a quarter of the pairs is held to


COMPARED = "adaptive 0.25"


PREFIX_WORDS, SUFFIX_WORDS = 40, 24


WANTED = {
    "all": ScheduleConfig("all"),
    "pivot": ScheduleConfig("pivot", pivot="drawn"),
    **{f"random {m}": ScheduleConfig("random", opponents=m) for m in (2, 4, 6, 8, 12)},
    **{
        f"adaptive {share}": ScheduleConfig("adaptive", budget=share)
        for share in (0.15, 0.2, 0.25, 0.35, 0.5)
    },
}


KINDS = tuple(dict.fromkeys(cfg.name for cfg in WANTED.values() if cfg.name != "all"))


def bench_schedules() -> None:
    """Measures, and prints and plots what was found."""
    if PREFIXES.value < 1 or CANDIDATES.value < 3:
        raise UserError("--prefixes must be at least 1 and --candidates at least 3")
    if PNG.value and not (PNG.value.endswith(".png") and epath.Path(PNG.value).parent.is_dir()):
        raise UserError(f"--png {PNG.value}: not a .png file in a directory that is there")
    shape = {"prefixes": PREFIXES.value, "candidates": CANDIDATES.value, "seed": SEED.value}
    judges = {**JUDGES, "world": world()}
    found = {name: measure(judge, WANTED, **shape) for name, judge in judges.items()}
    print(json.dumps(found)) if JSON.value else show(found)
    if PNG.value:
        plot(found, PNG.value)


def world() -> Simulated:
    """The micro-world's ground truth as the judge of candidates made from its documents."""

    def quality(rng, shape):
        truth = MicroworldTruth(WorldConfig(train=shape[0]))
        prefixes, pools = world_pools(truth, rng, shape[1])
        rows = [prefix for prefix in prefixes for _ in range(shape[1])]
        known = truth.score(rows, [text for pool in pools for text in pool])
        return known["quality"].reshape(shape)

    return Simulated(quality, lambda rng, gap: MicroworldTruth.compare(gap, 0.0))


def world_pools(truth: MicroworldTruth, rng, K: int) -> tuple[list[str], list[list[str]]]:
    """(prefixes, pools): per document K different texts: suffix, rewrite and both spoiled."""
    documents = [text for text, _, _ in truth.world.documents("train")]
    ends = [[found.end() for found in lexicon.WORD.finditer(text)] for text in documents]
    cuts = [(end[PREFIX_WORDS - 1], end[PREFIX_WORDS + SUFFIX_WORDS - 2]) for end in ends]
    prefixes = [text[:a] for text, (a, _) in zip(documents, cuts, strict=True)]
    suffixes = [text[a:b] for text, (a, b) in zip(documents, cuts, strict=True)]
    rewrites = truth.rewrite(prefixes, suffixes, SUFFIX_WORDS)
    pools, phrases = [], Phrases(suffixes)
    for suffix, rewrite in zip(suffixes, rewrites, strict=True):
        pool = dict.fromkeys([suffix, rewrite])
        while len(pool) < K:
            spoil = list(CORRUPTIONS.values())[int(rng.integers(len(CORRUPTIONS)))]
            others = Others(suffixes[int(rng.integers(len(suffixes)))], phrases)
            pool[spoil((suffix, rewrite)[int(rng.integers(2))], others, rng)] = None
        pools.append(list(pool))
    return prefixes, pools


def show(found: dict) -> None:
    """A row per schedule, a column per judge, and whether the bar is met."""
    table = Table(title="agree, regret of the chosen")
    table.add_column("schedule")
    for column in ("comparisons", "share", *found):
        table.add_column(column, justify="right")
    for name in next(iter(found.values())):
        rows = [by_schedule[name] for by_schedule in found.values()]
        cost = (f"{rows[0]['comparisons']:.0f}", f"{rows[0]['share']:.3f}")
        table.add_row(name, *cost, *(f"{r['agree']:.3f} {r['regret_chosen']:.3f}" for r in rows))
    console = Console(width=160)
    console.print(table)
    for judge, by_schedule in found.items():
        figures = by_schedule[COMPARED]
        met = figures["agree"] >= BAR and figures["regret_chosen"] <= REGRET
        console.print(
            f"{COMPARED}, {judge}: {figures['share']:.2f} of all pairs, agree "
            f"{figures['agree']:.3f} (at least {BAR}), regret "
            f"{figures['regret_chosen']:.4f} (at most {REGRET}): "
            f"{'met' if met else 'NOT met'}"
        )


def plot(found: dict, path: str) -> None:
    """A panel per judge: share of all pairs against agreement, a line per kind of schedule."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    wide, high = 4, -(-len(found) // 4)
    figure, axes = plt.subplots(high, wide, figsize=(4 * wide, 3.2 * high), squeeze=False)
    for axis in axes.flat[len(found) :]:
        axis.axis("off")
    for axis, (judge, by_schedule) in zip(axes.flat, found.items(), strict=False):
        for kind in KINDS:
            points = [by_schedule[name] for name, cfg in WANTED.items() if cfg.name == kind]
            axis.plot([p["share"] for p in points], [p["agree"] for p in points], "o-", label=kind)
        axis.axhline(by_schedule["again"]["agree"], color="grey", ls=":", label="all, asked again")
        axis.axhline(BAR, color="black", lw=0.5)
        axis.set(title=judge, xlabel="share of all pairs", ylabel="agree", ylim=(0, 1.02))
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
