"""Benchmarks: `python -m sip.bench schedules|sharing|int8|reader`.

`schedules`: comparisons spent against how often the same candidates are chosen and rejected as by
all pairs, for the judges of sip/evals/schedules.py and for `world`: candidates of the micro-world
(suffix, rewrite and spoiled versions of both) as its ground truth compares them. `again` is all
pairs asked once more: how far a judge agrees with itself. With --png a plot.

`sharing`: prompt tokens and seconds of all ordered pairs as branches of one trunk, against a plain
prompt for each pair, and how far the verdicts differ (sip/evals/sharing.py).

`int8`: verdicts of a trained judge (--judge=RUN_DIR, its workdir around it) on its held-out labels,
held in int8 and in bfloat16 against held in float32 (sip/evals/rounding.py).

`reader`: how often a perfect reader of what that judge is shown is right about factuality, on test
prefixes (--prefixes), beside the judge's own accuracy (sip/evals/reader.py).
"""

import dataclasses
import json
from typing import Any

import matplotlib
from absl import flags
from etils import epath
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from sip import cli, mesh, setup
from sip.data import lexicon
from sip.data.microworld import WorldConfig
from sip.data.oracle import MicroworldTruth
from sip.evals import reader, rounding, schedules, sharing
from sip.judge import prompts
from sip.judge.schedules import ScheduleConfig
from sip.judge.spoilers import SPOILERS, Others, Phrases
from sip.stages import best, labelled, supervised
from sip.structs import UserError
from sip.training import checkpoints

_PREFIXES = flags.DEFINE_integer("prefixes", 2000, "Prefixes per judge.")
_CANDIDATES = flags.DEFINE_integer("candidates", 17, "Candidates per prefix.")
_SAMPLE = flags.DEFINE_integer("sample", 8, "sharing: unshared prompts run, then scaled to all.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "sharing: repeats, of which the fastest counts.")
_JUDGE = flags.DEFINE_string("judge", None, "int8, reader: directory of a judge's supervised run.")
_PNG = flags.DEFINE_string("png", None, "File for a plot.")
_SEED = cli.seed_flag()
_JSON = cli.json_flag()

BAR, REGRET = 0.9, 0.03  # what an adaptive schedule of a quarter of the pairs is held to
HELD = "adaptive 0.25"
FEWER = {1024: (4.5, 3.5), 1920: (7.0, 5.0)}  # prefix: tokens and seconds saved, at least
SAME = 1e-5  # verdicts with and without a trunk
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
    if _PREFIXES.value < 1 or _CANDIDATES.value < 3:
        raise UserError("--prefixes must be at least 1 and --candidates at least 3")
    if _PNG.value and not (_PNG.value.endswith(".png") and epath.Path(_PNG.value).parent.is_dir()):
        raise UserError(f"--png {_PNG.value}: not a .png file in a directory that is there")
    shape = {"prefixes": _PREFIXES.value, "candidates": _CANDIDATES.value, "seed": _SEED.value}
    judges = {**schedules.JUDGES, "world": world()}
    found = {name: schedules.measure(judge, WANTED, **shape) for name, judge in judges.items()}
    print(json.dumps(found)) if _JSON.value else show(found)
    if _PNG.value:
        plot(found, _PNG.value)


def world() -> schedules.Simulated:
    """The micro-world's ground truth as the judge of candidates made from its documents."""

    def quality(rng, shape):
        truth = MicroworldTruth(WorldConfig(train=shape[0]))
        prefixes, pools = world_pools(truth, rng, shape[1])
        rows = [prefix for prefix in prefixes for _ in range(shape[1])]
        known = truth.score(rows, [text for pool in pools for text in pool])
        return known["quality"].reshape(shape)

    return schedules.Simulated(quality, lambda rng, gap: MicroworldTruth.compare(gap, 0.0))


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
            spoil = list(SPOILERS.values())[int(rng.integers(len(SPOILERS)))]
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
        figures = by_schedule[HELD]
        met = figures["agree"] >= BAR and figures["regret_chosen"] <= REGRET
        console.print(
            f"{HELD}, {judge}: {figures['share']:.2f} of all pairs, agree {figures['agree']:.3f} "
            f"(at least {BAR}), regret {figures['regret_chosen']:.4f} (at most {REGRET}): "
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


def bench_sharing() -> None:
    """Measures at the prefixes of FEWER, and prints what was found."""
    if _CANDIDATES.value < 2 or min(_SAMPLE.value, _REPEATS.value) < 1:
        raise UserError("--candidates must be at least 2, --sample and --repeats at least 1")
    found = {}
    for prefix, bars in FEWER.items():
        found[prefix] = sharing.measure(
            prefix,
            candidates=_CANDIDATES.value,
            sample=_SAMPLE.value,
            repeats=_REPEATS.value,
            seed=_SEED.value,
        )
        if not _JSON.value:
            print(sharing_lines(prefix, found[prefix], *bars), flush=True)
    if _JSON.value:
        print(json.dumps(found))


def sharing_lines(prefix: int, f: dict[str, float], tokens: float, seconds: float) -> str:
    """A paragraph on a prefix: figures, what they are held to, and whether they meet it."""
    met = lambda ok: "met" if ok else "NOT met"
    return (
        f"prefix {prefix}, {f['pairs']} ordered pairs\n"
        f"  prompt tokens: {f['tokens_unshared']} -> {f['tokens_shared']}, "
        f"{f['tokens_ratio']:.2f}x fewer (at least {tokens}x): {met(f['tokens_ratio'] >= tokens)}\n"
        f"  seconds: {f['seconds_unshared']:.2f} -> {f['seconds_shared']:.2f}, "
        f"{f['seconds_ratio']:.2f}x less (at least {seconds}x): "
        f"{met(f['seconds_ratio'] >= seconds)}; of CPU {f['cpu_unshared']:.2f} -> "
        f"{f['cpu_shared']:.2f}, {f['cpu_ratio']:.2f}x less; unshared scaled from "
        f"{f['sampled']} pairs in batches of {f['batch']}, the fastest of {sharing.BATCHES}\n"
        f"  verdicts of these pairs differ by {f['difference']:.1e} at most (at most {SAME}): "
        f"{met(f['difference'] <= SAME)}; they range over {f['spread']:.3f}"
    )


def bench_int8() -> None:
    """Measures on the test split, and prints what was found."""
    if not _JUDGE.value:
        raise UserError("int8: --judge is needed")
    directory, where = str(_JUDGE.value), mesh.single()
    asked, tokenizer = held_out(directory), setup.kept_tokenizer(directory)
    load = lambda dtype: setup.load_params(directory, where, dtype)
    found = rounding.measure(load, tokenizer, where, asked, ("int8", "bfloat16"))
    if _JSON.value:
        return print(json.dumps(found))
    for dtype, f in found.items():
        print(f"{dtype}: {f['bytes']:,} bytes of parameters, float32 {f['bytes_float32']:,}")
        for name, a in f["aspects"].items():
            print(
                f"  {name}, {a['verdicts']} verdicts: probabilities differ by {a['largest']:.4f} "
                f"at most, {a['mean']:.5f} in the mean; {a['flips']} flips; accuracy "
                f"{a['accuracy_float32']:.4f} -> {a['accuracy']:.4f}"
            )


def bench_reader() -> None:
    """Measures, and prints what was found."""
    if not _JUDGE.value or _PREFIXES.value < 1:
        raise UserError("reader: --judge is needed, and --prefixes of at least 1")
    directory, count = str(_JUDGE.value), int(_PREFIXES.value)
    made, mark, truth = taught(directory, documents=count, held_out=count)
    if FACTS not in made.held_out["test"]:
        raise UserError(f"--judge {directory}: it was not taught {FACTS!r}")
    tokenizer = setup.kept_tokenizer(directory)
    known, asked = (
        reader.examples(truth, tokenizer, labels[FACTS], mark)
        for labels in (made.examples, made.held_out["test"])
    )
    found = {**reader.accuracy(known, asked), "known": len(known), "asked": len(asked)}
    own = json.loads((epath.Path(directory) / "eval.json").read_text())[f"{FACTS}_accuracy"]
    found |= {"judge": own, "share": own / found["marks"]}
    if _JSON.value:
        return print(json.dumps(found))
    print(
        f"{FACTS}, {len(asked)} texts: a perfect reader {found['marks']:.3f} (without marks "
        f"{found['facts']:.3f}), learned from {len(known)}; the judge {own:.3f}, "
        f"{found['share']:.2f} of it"
    )


def held_out(directory: str) -> dict:
    """A judge's labelled prompts of the test split, by aspect, as its run made them."""
    return dict(taught(directory, documents=8)[0].held_out["test"])  # nobody learns from the 8


def taught(directory: str, **sizes) -> tuple[labelled.Labelled, str, Any]:
    """(labelled prompts made as a judge's run made them, the proofreader's mark, the ground truth);
    `sizes`: documents and held_out, if others are wanted."""
    record = checkpoints.record(directory)
    labels = (
        record["config"]["labels"] if "config" in record and "labels" in record["config"] else None
    )
    if not labels:
        raise UserError(f"--judge {directory}: no run that was taught a ground truth's labels")
    workdir = best.workdir_of(directory)
    wanted = setup.section(supervised.LabelConfig, labels, "checkpoint labels")
    wanted = dataclasses.replace(wanted, **sizes)
    config = ConfigDict({"data": record["data"], "seed": record["seed"]})
    tokenizer, where = setup.kept_tokenizer(directory), mesh.single()
    corpus = setup.corpus(config, record["config"]["split"], workdir, tokenizer)
    aspects = [prompts.load(name) for name in wanted.per_prefix]
    max_len = setup.recorded_model(directory).max_len
    made = labelled.made(
        config, wanted, aspects, corpus, workdir, where, tokenizer, max_len=max_len
    )
    return made, wanted.proofread.mark, corpus.documents.truth


FACTS = "factuality"
BENCHES = {
    "schedules": bench_schedules,
    "sharing": bench_sharing,
    "int8": bench_int8,
    "reader": bench_reader,
}


def main(argv) -> None:
    """The command line."""
    if len(argv) != 2 or argv[1] not in BENCHES:
        raise UserError(f"usage: python -m sip.bench {'|'.join(BENCHES)}")
    BENCHES[argv[1]]()


if __name__ == "__main__":
    cli.run(main)
