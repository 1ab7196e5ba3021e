"""Predicts what a judge is worth to a self-improving run, before any training.

The candidates of the run's first batches are written, judged and chosen as the run would do it; the
chosen ones are then valued by the corpus's ground truth or by the run's audit judge:

    own      mean utility of the policy's own continuations (rollouts)
    chosen   utility of what the run would learn; where it learns nothing, of the own ones
    gain     chosen - own, the gap of the judge on these candidates
    ceiling  best candidate of each prefix by the utility itself - own: the gain of a perfect judge

A policy that learns the choice perfectly would rise by the gain. For a run that is already trained,
`trained` is the rise on the same prefixes.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from etils import epath

from sip import loading
from sip import workdir as workdirs
from sip.data.chunks import texts_of
from sip.evals import generation_verification_gap as arithmetic
from sip.evals import intervals
from sip.evals.intervals import Estimate, IntervalConfig
from sip.gap.utility import WHOLE, ByJudge, ByTruth, Utility, true_weights
from sip.judge import build as judges
from sip.judge import diagnostics
from sip.models import decoder
from sip.run import Run, build_meshes
from sip.stages import collect, selfimprove, session
from sip.stages.collect import Collector, Pool
from sip.stages.selfimprove import SelfImproveConfig
from sip.structs import Params, UserError

LEAST_ROLLOUTS = 4  # per prefix, for the policy's own mean, if the run has fewer candidates
YES, NO, HARMFUL, UNCLEAR = "yes", "no", "no, harmful", "unclear"


@dataclass(frozen=True)
class Judged:
    """The candidates of a batch, judged and chosen, beside the policy's own continuations.

    Letters: B prefixes, K candidates, R own continuations.
    """

    prefixes: list[str]
    suffixes: list[str]
    pool: list[list[str]]  # texts [B][K]
    exist_BK: np.ndarray  # candidates that are judged: neither empty nor a copy
    score_BK: np.ndarray
    valid_BK: np.ndarray
    chosen_B: np.ndarray  # index of the chosen candidate
    rejected_B: np.ndarray | None  # of pairs: index of the rejected one
    learned_B: np.ndarray  # something is learned from the prefix
    own: list[list[str]]  # continuations of the policy [B][R]
    trained: list[list[str]] | None  # continuations of the trained policy [B][R]
    why: str  # reasons for invalid verdicts


def preflight(run: Run, c: SelfImproveConfig, prefixes: int, how: IntervalConfig) -> dict[str, Any]:
    """Returns the figures of one run's pre-flight. Raises UserError if it has nothing to judge."""
    key = f"config runs.{run.name}"
    if not c.judged:
        raise UserError(f"{key}: its candidates are chosen by their source; there is no judge")
    if not c.init_from:
        raise UserError(f"{key}.init_from is empty: fresh parameters write noise; name a policy")
    mesh, judge_mesh = build_meshes(c)
    utility = _utility(run, c, judge_mesh)
    collector, more = _collector(run, c, mesh, judge_mesh)
    trained = _trained(run, c, mesh)
    rows, chunks = c.batch - c.documents, len(run.corpus(c.split).chunks)
    batches = min(-(-prefixes // rows), max(chunks // c.batch, 1))  # no prefix twice
    params = _params(run, c, mesh)
    if c.judge.own:
        judge = judges.of_policy(c.judge, c.model, run.workdir, mesh, run.tokenizer, run.seed)
        collector = dataclasses.replace(collector, judge=judge(params))
    with jax.set_mesh(mesh):
        parts = [_judged(collector, more, params, trained, at) for at in range(batches)]
    found = figures(parts, utility, how, seed=run.seed)
    return {"run": run.name, "policy": c.init_from, **found}


def _utility(run: Run, c: SelfImproveConfig, mesh) -> Utility:
    """The ground truth, or the audit judge on a corpus without one. Raises UserError."""
    truth = run.corpus(c.split).documents.truth
    if truth is not None:
        return ByTruth(truth, true_weights(c.judge.weights))
    wanted = c.audit.judge
    if wanted.backend == "truth":
        raise UserError(
            f"config runs.{run.name}.audit.judge: this corpus has no ground truth; name a second "
            "judge there, which says what the choice is worth"
        )
    how = (run.workdir, None, mesh, run.tokenizer, run.seed)
    return ByJudge(judges.build(wanted, *how), dict(wanted.weights))


def _collector(run: Run, c: SelfImproveConfig, mesh, judge_mesh) -> tuple[Collector, int]:
    """Returns (the run's collector with as many rollouts as at its end, own continuations R)."""
    made = selfimprove.build_collector(run, c, mesh, judge_mesh)
    K = c.candidates.count(c.steps - 1)
    fixed = dataclasses.replace(c.candidates, rollouts=((0, K),))
    return dataclasses.replace(made, candidates=fixed), max(K, LEAST_ROLLOUTS)


def _params(run: Run, c: SelfImproveConfig, mesh) -> Params:
    """The parameters that the run starts from."""
    start = session.start_dir(run, c)
    params, found = loading.load_params(start, mesh, c.model.param_dtype)
    session.check_same_model(found, c.model, start)
    return decoder.deepen(params, c.model) if found.layers < c.model.layers else params


def _trained(run: Run, c: SelfImproveConfig, mesh) -> Params | None:
    """The parameters of the finished run; None if it is not finished."""
    if not (epath.Path(run.directory) / workdirs.DONE).exists():
        return None
    params, found = loading.load_params(run.directory, mesh, c.model.param_dtype)
    session.check_same_model(found, c.model, run.directory)
    return params


def _judged(p: Collector, more: int, params: Params, trained: Params | None, at: int) -> Judged:
    """Writes, judges and chooses the candidates of batch `at` as the run would do it."""
    assert p.judge is not None
    rows = p.batches[at]
    prefixes, suffixes, ids = texts_of(p.tokenizer, collect.continued(p, rows), p.suffix)
    rollouts = collect.roll(p, params, rows, at)
    pool = collect.build_pool(p, collect.controlled(p, rows), prefixes, suffixes, ids, rollouts)
    beside = collect.references(p, pool, suffixes)
    found = p.judge.score(prefixes, pool.texts, beside, pool.valid_BK)
    valid_BK = found.valid_BK & pool.valid_BK
    eligible_BK = valid_BK
    if p.objective.name == "dr_grpo":  # only rollouts are learned from
        eligible_BK = valid_BK & (np.array(pool.sources) == "rollout")
    index_BC, ok_B = collect.choice(p, pool, found.scores_BK, eligible_BK)
    write = lambda other: _written(p, other, rows, prefixes, suffixes, ids, at, more)
    first = len(pool.sources) - more
    enough = pool.sources.count("rollout") == more
    own = [texts[first:] for texts in pool.texts] if enough else write(params)
    return Judged(
        prefixes,
        suffixes,
        pool.texts,
        pool.valid_BK,
        found.scores_BK,
        valid_BK,
        index_BC[:, 0],
        index_BC[:, 1] if index_BC.shape[1] > 1 else None,
        ok_B,
        own,
        None if trained is None else write(trained),
        diagnostics.reasons(found.metrics),
    )


def _written(p: Collector, params: Params, rows, prefixes, suffixes, ids, at: int, count: int):
    """Samples `count` continuations of each prefix as texts [B][R], without other candidates."""
    only = collect.CandidateConfig(suffix=False, rewrite=False, rollouts=((0, count),))
    writer = dataclasses.replace(p, candidates=only, rewriter=None)
    rollouts = collect.roll(writer, params, rows, at)
    asked = collect.controlled(p, rows)
    made: Pool = collect.build_pool(writer, asked, prefixes, suffixes, ids, rollouts)
    return made.texts


def figures(
    parts: Sequence[Judged], utility: Utility, how: IntervalConfig, *, seed: int
) -> dict[str, Any]:
    """Returns the figures over all prefixes, from judged candidates alone."""
    valued = [_valued(part, utility) for part in parts]
    join = lambda name, key: np.concatenate([one[name][key] for one in valued])
    asked_B = join("asked", WHOLE)
    estimate = lambda x_B: intervals.mean(x_B, asked_B, how, seed=seed)
    report = lambda x_B: dataclasses.asdict(estimate(x_B))
    own_B, chosen_B, best_B = (join(name, WHOLE) for name in ("own", "chosen", "best"))
    gain, ceiling = estimate(chosen_B - own_B), estimate(best_B - own_B)
    aspects = [key for key in valued[0]["own"] if key != WHOLE]
    exist = sum(int(part.exist_BK.sum()) for part in parts)
    valid = sum(int(part.valid_BK.sum()) for part in parts)
    why = "; ".join(dict.fromkeys(part.why for part in parts if part.why))
    verdict, words = verdict_of(gain, ceiling, valid)
    found = {
        "verdict": verdict,
        "words": f"{words}; {why}" if why and not valid else words,
        "utility": utility.text,
        "prefixes": int(asked_B.sum()),
        "confidence": how.confidence,
        "own": report(own_B),
        "chosen": report(chosen_B),
        "random": report(join("random", WHOLE)),
        "gain": dataclasses.asdict(gain),
        "ceiling": dataclasses.asdict(ceiling),
        "share": _ratio(gain.mean, ceiling.mean),
        "aspects": {key: report(join("chosen", key) - join("own", key)) for key in aspects},
        "correlation": _correlation(parts, valued),
        "learned": float(np.concatenate([part.learned_B for part in parts]).mean()),
        "invalid": 1.0 - valid / max(exist, 1),
        "why": why,
    }
    if parts[0].rejected_B is not None:
        found["rejected"] = report(join("rejected", WHOLE))
    if parts[0].trained is not None:
        found["trained"] = report(join("trained", WHOLE) - own_B)
    return found


def _valued(part: Judged, utility: Utility) -> dict[str, dict[str, np.ndarray]]:
    """Values all texts of a batch in one call. Returns {figure: {WHOLE and aspects: value_B}}."""
    rows = [
        [*pool, *own, *more]
        for pool, own, more in zip(
            part.pool, part.own, part.trained or [[]] * len(part.pool), strict=True
        )
    ]
    K, R = part.exist_BK.shape[1], len(part.own[0])
    exist_BN = np.array([[bool(text.strip()) for text in row] for row in rows], bool)
    exist_BN[:, :K] &= part.exist_BK
    value, known_BN = utility.value(part.prefixes, part.suffixes, rows, exist_BN)
    known_BN = known_BN & exist_BN
    pool_BK, own_BR, new_BR = known_BN[:, :K], known_BN[:, K : K + R], known_BN[:, K + R :]
    found: dict[str, dict[str, np.ndarray]] = {}
    for key, u_BN in value.items():
        own_B, best_B = _mean(u_BN[:, K : K + R], own_BR), _best(value[WHOLE], u_BN, pool_BK)
        each = {"own": own_B, "random": _mean(u_BN[:, :K], pool_BK), "best": best_B}
        # The policy's own where nothing is learned.
        learned = lambda index_B, u_BN=u_BN, own_B=own_B: np.where(
            part.learned_B & _pick(pool_BK, index_B), _pick(u_BN, index_B), own_B
        )
        each["chosen"] = learned(part.chosen_B)
        if part.rejected_B is not None:
            each["rejected"] = learned(part.rejected_B)
        asked_B = own_BR.any(1) & pool_BK.any(1)
        if part.trained is not None:
            each["trained"] = _mean(u_BN[:, K + R :], new_BR)
            asked_B = asked_B & new_BR.any(1)
        each["asked"] = np.asarray(asked_B)
        for name, x_B in each.items():
            found.setdefault(name, {})[key] = x_B
    found["pool"] = {WHOLE: value[WHOLE][:, :K], "known": pool_BK}
    return found


def _mean(u_BK, known_BK) -> np.ndarray:
    return np.where(known_BK, u_BK, 0.0).sum(1) / np.maximum(known_BK.sum(1), 1)


def _best(whole_BN, u_BN, pool_BK) -> np.ndarray:
    """The value of the candidate with the highest utility."""
    return _pick(u_BN, np.where(pool_BK, whole_BN[:, : pool_BK.shape[1]], -np.inf).argmax(1))


def _pick(x_BN, index_B) -> np.ndarray:
    """The entry of each row at its index."""
    return np.take_along_axis(x_BN, index_B[:, None], axis=1)[:, 0]


def _correlation(parts: Sequence[Judged], valued) -> float | None:
    """Pearson's correlation of score and utility of the candidates within prefixes."""
    score_BK, valid_BK = (
        np.concatenate([getattr(part, key) for part in parts]) for key in ("score_BK", "valid_BK")
    )
    u_BK, known_BK = (np.concatenate([v["pool"][key] for v in valued]) for key in (WHOLE, "known"))
    _, within = arithmetic.correlations([score_BK, u_BK], [valid_BK, known_BK])
    return float(within[0, 1]) if np.isfinite(within[0, 1]) else None


def _ratio(gain: float | None, ceiling: float | None) -> float | None:
    return gain / ceiling if gain is not None and ceiling and ceiling > arithmetic.SAME else None


def verdict_of(gain: Estimate, ceiling: Estimate, valid: int) -> tuple[str, str]:
    """Returns (verdict, its reason) from the intervals of gain and ceiling."""
    if not valid:
        return NO, "none of the verdicts is valid"
    if gain.mean is None or ceiling.mean is None or gain.low is None or gain.high is None:
        return UNCLEAR, "too few prefixes with a known utility; raise --prefixes"
    if ceiling.mean <= arithmetic.SAME:
        return NO, "no candidate is better than the policy's own continuations"
    if gain.low > 0:
        return YES, "the judge's choice is better than the policy's own continuations"
    if gain.high < 0:
        return HARMFUL, "the judge's choice is worse than the policy's own continuations"
    if gain.low == gain.high == 0:
        return NO, "the judge's choice is worth as much as the policy's own continuations"
    return UNCLEAR, "the interval of the gain contains 0; raise --prefixes"
