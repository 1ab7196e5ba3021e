"""Measures how a trained judge ranks rollouts of a policy, by what differs between two rollouts.

A judge's accuracy on its own labels says little about a policy that hardly errs: labels are full of
gross faults. Here the texts are the policy's, and the ground truth says which of two is better.
Letters: B prefixes, K rollouts of each, P pairs of rollouts.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np

from sip import mesh as meshes
from sip.bench.flags import CANDIDATES, JSON, JUDGE, PREFIXES, ROLLOUTS_OF, SEED
from sip.bench.trained_judge import opened
from sip.data.documents import Truth
from sip.evals import continuations
from sip.hf import hub
from sip.judge import build as judges
from sip.judge.build import JudgeConfig
from sip.loading import load_model, source_dir
from sip.sampling import SamplingConfig
from sip.structs import UserError
from sip.workdir import to_json

Compare = Callable[[np.ndarray, np.ndarray], np.ndarray]  # `Truth.compare`
GAPS = (0.2, 0.4, 0.8)  # differences of quality that separate the last four kinds of pairs


def kinds(known_BK: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Sorts the pairs of rollouts by what differs; bool [B, P] by kind.

    `known_BK` are the ground truth's scores by the names of `sip.data.documents.SCORES`. A text is
    faultless if it is coherent and safe, and if its facts are right.
    """
    one, two = np.triu_indices(known_BK["quality"].shape[1], 1)
    right_BK = known_BK["facts"] == known_BK["facts_right"]
    faultless_BK = right_BK & (known_BK["coherent"] == 1) & (known_BK["safety"] == 1)
    repeats_BK = known_BK["repetition"] > 0
    apart_BP = np.abs(known_BK["quality"][:, one] - known_BK["quality"][:, two])
    edges = (0.0, *GAPS, np.inf)
    return {
        "all": np.ones_like(apart_BP, bool),
        "both faultless": faultless_BK[:, one] & faultless_BK[:, two],
        "one faultless": faultless_BK[:, one] != faultless_BK[:, two],
        "one repeats itself": repeats_BK[:, one] != repeats_BK[:, two],
        **{
            f"quality {low:g} to {high:g} apart": (low < apart_BP) & (apart_BP <= high)
            for low, high in pairwise(edges)
        },
    }


def accuracy(
    score_BK: np.ndarray, known_BK: Mapping[str, np.ndarray], compare: Compare
) -> dict[str, tuple[float, int]]:
    """Measures how often the better of two rollouts has the higher score: (right, pairs) by kind.

    `score_BK` is NaN where the judge has no verdict; pairs of such a text count as wrong. Equal
    scores count half. Pairs that the ground truth calls a tie do not count.
    """
    one, two = np.triu_indices(score_BK.shape[1], 1)
    quality_BK = known_BK["quality"]
    better_BP = compare(quality_BK[:, one], quality_BK[:, two])
    said_BP = 0.5 + 0.5 * np.sign(score_BK[:, one] - score_BK[:, two])
    right_BP, untied_BP = np.nan_to_num(1 - np.abs(said_BP - better_BP)), better_BP != 0.5
    return {
        kind: (float(right_BP[of_BP & untied_BP].sum()), int((of_BP & untied_BP).sum()))
        for kind, of_BP in kinds(known_BK).items()
    }


def chosen(score_BK: np.ndarray, known_BK: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Returns the means of quality, repetition and facts: of all rollouts, of the best one of each
    prefix by the ground truth, and of the one with the highest score that is not NaN."""
    rows, names = np.arange(len(score_BK)), ("quality", "repetition", "facts")
    of = lambda at_B: {name: float(known_BK[name][rows, at_B].mean()) for name in names}
    return {
        "all": {name: float(known_BK[name].mean()) for name in names},
        "best": of(known_BK["quality"].argmax(1)),
        "chosen": of(np.where(np.isnan(score_BK), -np.inf, score_BK).argmax(1)),
    }


def measure(directory: str, policy: str, *, prefixes: int, rollouts: int, seed: int) -> dict:
    """Samples rollouts of `policy` after validation prefixes and has the judge compare all pairs.

    Args:
        directory: Run directory of the judge, inside its workdir.
        policy: A run of that workdir, or a directory; empty: whose rollouts the judge learned from.
        prefixes: Number of prefixes.
        rollouts: Rollouts of each prefix.
        seed: Of the rollouts.

    Returns:
        The keys `accuracy` (kind: [right, pairs]) and `means` (see `chosen`).

    Raises:
        UserError: The run did not train a judge on ground-truth labels, or a model is missing.
    """
    run, labels, _ = opened(directory)
    mesh, corpus = meshes.single(), run.corpus("validation")
    truth: Truth = corpus.ground_truth("--judge")
    asked = continuations.prompts(corpus.chunks, range(prefixes), run.tokenizer)
    source = source_dir(run.workdir, policy or labels.source, "--rollouts_of")
    texts = continuations.sample(
        load_model(source, mesh),
        asked,
        branches=rollouts,
        steps=corpus.cut.suffix,
        sampling=SamplingConfig(),
        seed=seed,
        batch=min(64, prefixes),
    )
    wanted = JudgeConfig(
        backend="local",
        init_from=directory,
        weights=(("quality", 1.0),),
        proofread=labels.proofread,
    )
    judge = judges.build(wanted, run.workdir, truth, mesh, run.tokenizer)
    mask_BK = np.ones((len(texts), rollouts), bool)
    judged = judge.score(asked.prefixes, texts, asked.suffixes, mask_BK)
    score_BK = np.where(judged.valid_BK, judged.scores_BK, np.nan)
    repeated = [prefix for prefix in asked.prefixes for _ in range(rollouts)]
    known = truth.score(repeated, [text for row in texts for text in row])
    known_BK = {name: np.reshape(x, mask_BK.shape) for name, x in known.items()}
    return {
        "accuracy": accuracy(score_BK, known_BK, truth.compare),
        "means": chosen(score_BK, known_BK),
    }


def bench_ranking() -> None:
    """Runs the `ranking` benchmark and prints its result."""
    if not JUDGE.value:
        raise UserError("ranking: --judge is needed")
    found = measure(
        hub.local(str(JUDGE.value)),
        ROLLOUTS_OF.value,
        prefixes=PREFIXES.value,
        rollouts=CANDIDATES.value,
        seed=SEED.value,
    )
    if JSON.value:
        return print(to_json(found))
    for kind, (right, pairs) in found["accuracy"].items():
        share = f"{right / pairs:.3f}" if pairs else "-"
        print(f"{kind:28} {share:>6} of {pairs:,} pairs")
    for which, means in found["means"].items():
        shown = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
        print(f"rollouts, {which}: {shown}")
