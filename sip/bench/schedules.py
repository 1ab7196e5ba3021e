"""Benchmarks comparison schedules against all pairs, with simulated judges.

A judge's verdicts on all ordered pairs are drawn once. The full ranking is the mean number of wins
over all pairs. A schedule sees only some of the verdicts. Its best and worst candidates are then
looked up in the full ranking.
"""

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
from sip.workdir import to_json

SAME = 1e-9  # scores closer than this are equal
LOGITS = 0.5  # standard deviation of the noise on a verdict, log-odds
BIAS = 1.0  # log-odds in favour of the candidate shown first
FLIPPED = 0.15  # share of wrong verdicts of the judge `flipped`


@dataclass(frozen=True)
class Simulated:
    """A simulated judge: draws the qualities of candidates and compares two of them."""

    quality: Callable[[np.random.Generator, tuple[int, int]], np.ndarray]  # rng, (B, K)
    judge: Callable[
        [np.random.Generator, np.ndarray], np.ndarray
    ]  # rng, quality gap first - second

    def verdicts(self, rng: np.random.Generator, quality_BK: np.ndarray) -> np.ndarray:
        """Returns outcome_BKK: P(i is better than j) at [b, i, j], with i shown first."""
        return self.judge(rng, quality_BK[:, :, None] - quality_BK[:, None])


def _normal(rng, shape):
    return rng.normal(0, 2, shape)


def _levels(rng, shape):
    return rng.integers(0, 4, shape).astype(float)


def _sure(rng, gap):
    """Returns 1 or 0 without error, and 1/2 for candidates of equal quality."""
    del rng
    return np.where(gap == 0, 0.5, gap > 0)


def _calibrated(rng, gap, bias=0.0):
    return 1 / (1 + np.exp(-gap - bias - LOGITS * rng.normal(size=gap.shape)))


def _biased(rng, gap):
    return _calibrated(rng, gap, BIAS)


def _drawn(rng, gap):
    """Draws 1 or 0; about 17 % of verdicts are wrong, mostly for candidates of similar quality."""
    return (rng.random(gap.shape) < 1 / (1 + np.exp(-gap))).astype(float)


def _flipped(rng, gap):
    """Returns 1 or 0; 15 % of verdicts are wrong, independent of the quality gap."""
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
    """Measures each schedule on the same verdicts.

    The result has one more key, `again`: all pairs judged a second time.

    Args:
        simulated: The judge.
        wanted: Schedules by name.
        prefixes: Number B of prefixes.
        candidates: Number K of candidates per prefix.
        seed: Random seed.
    """
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
    """Returns the cost of a schedule and its agreement with the full ranking, means over prefixes.

    `comparisons` per prefix and `share` of all pairs are the cost. `chosen`: the schedule's best
    candidate is in the top 2 of the full ranking, ties included. `rejected`: its worst candidate is
    in the bottom 2. `agree`: both. `regret_chosen` and `regret_rejected` are distances in mean wins
    to the best and the worst candidate of the full ranking.

    Args:
        wins: Result of the schedule.
        full_BK: Mean wins of each candidate over all pairs.
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


# Minimum agreement and maximum regret of COMPARED, an adaptive schedule with 25 % of the pairs.
BAR, REGRET = 0.9, 0.03


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
    """Runs the `schedules` benchmark; prints its result and writes the plot of --png."""
    if PREFIXES.value < 1 or CANDIDATES.value < 3:
        raise UserError("--prefixes must be at least 1 and --candidates at least 3")
    if PNG.value and not (PNG.value.endswith(".png") and epath.Path(PNG.value).parent.is_dir()):
        raise UserError(f"--png {PNG.value}: must be a .png file in an existing directory")
    shape = {"prefixes": PREFIXES.value, "candidates": CANDIDATES.value, "seed": SEED.value}
    judges = {**JUDGES, "world": world()}
    found = {name: measure(judge, WANTED, **shape) for name, judge in judges.items()}
    print(to_json(found)) if JSON.value else show(found)
    if PNG.value:
        plot(found, PNG.value)


def world() -> Simulated:
    """Returns a judge that is the micro-world's ground truth, on candidates from its documents."""

    def quality(rng, shape):
        truth = MicroworldTruth(WorldConfig(train=shape[0]))
        prefixes, pools = world_pools(truth, rng, shape[1])
        rows = [prefix for prefix in prefixes for _ in range(shape[1])]
        known = truth.score(rows, [text for pool in pools for text in pool])
        return known["quality"].reshape(shape)

    return Simulated(quality, lambda rng, gap: MicroworldTruth.compare(gap, 0.0))


def world_pools(truth: MicroworldTruth, rng, K: int) -> tuple[list[str], list[list[str]]]:
    """Returns (prefixes, pools), with a pool of K different candidates per document.

    Candidates are the suffix, its rewrite, and corrupted versions of both.
    """
    documents = [text for text, _, _ in truth.world.documents("train")]
    ends = [[found.end() for found in lexicon.WORD.finditer(text)] for text in documents]
    cuts = [(end[PREFIX_WORDS - 1], end[PREFIX_WORDS + SUFFIX_WORDS - 2]) for end in ends]
    prefixes = [text[:a] for text, (a, _) in zip(documents, cuts, strict=True)]
    suffixes = [text[a:b] for text, (a, b) in zip(documents, cuts, strict=True)]
    rewrites = truth.rewrite(prefixes, suffixes, SUFFIX_WORDS)
    pools, phrases = [], Phrases(suffixes)
    for prefix, suffix, rewrite in zip(prefixes, suffixes, rewrites, strict=True):
        pool = dict.fromkeys([suffix, rewrite])
        while len(pool) < K:  # a dict drops duplicates; draw until K texts differ
            spoil = list(CORRUPTIONS.values())[int(rng.integers(len(CORRUPTIONS)))]
            others = Others(suffixes[int(rng.integers(len(suffixes)))], phrases, prefix)
            pool[spoil((suffix, rewrite)[int(rng.integers(2))], others, rng)] = None
        pools.append(list(pool))
    return prefixes, pools


def show(found: dict) -> None:
    """Prints a row per schedule and a column per judge, and compares COMPARED with its bounds."""
    table = Table(title="agreement, regret of the chosen candidate")
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
            f"{COMPARED}, {judge}: {figures['share']:.2f} of all pairs, agreement "
            f"{figures['agree']:.3f} (at least {BAR}), regret "
            f"{figures['regret_chosen']:.4f} (at most {REGRET}): "
            f"{'met' if met else 'NOT met'}"
        )


def plot(found: dict, path: str) -> None:
    """Plots agreement over the share of all pairs: a panel per judge, a line per schedule kind."""
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
        axis.axhline(by_schedule["again"]["agree"], color="grey", ls=":", label="all, second time")
        axis.axhline(BAR, color="black", lw=0.5)
        axis.set(title=judge, xlabel="share of all pairs", ylabel="agree", ylim=(0, 1.02))
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
