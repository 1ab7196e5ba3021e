"""The host's part of a self-improving step: candidates are generated, judged and chosen."""

import dataclasses
import itertools
from dataclasses import dataclass

import jax
import numpy as np

from sip import sampling, structs
from sip.data import control, pipeline
from sip.data.chunks import texts_of
from sip.judge import build as judges
from sip.judge import diagnostics
from sip.judge.audit import Audit
from sip.judge.judged import Judge, Judged
from sip.mesh import batch_shapes, put_batch
from sip.metrics import pair
from sip.models.config import ModelConfig
from sip.objectives import policy
from sip.processes import divided, fetch
from sip.rewriter import Rewriter
from sip.sections import at_least, check, one_of
from sip.structs import Tree, UserError
from sip.text.tokenizer import Tokenizer, continuations
from sip.training import checkpoints, loop, losses

SOURCES = ("suffix", "rewrite", "rollout")  # of candidates
MOST_ROLLOUTS = 1 << 12  # per prefix; their pairs are compared


@dataclass(frozen=True)
class CandidateConfig:
    """The `candidates` section: the candidates per prefix, and which of them is learned from."""

    suffix: bool = True  # the document's own suffix is a candidate
    rewrite: bool = False  # a rewrite of the suffix is a candidate
    rollouts: tuple[tuple[int, int], ...] = ((0, 4),)  # (first step, K rollouts), by step
    chosen: str = "best"  # best (by the judge) | suffix | rewrite | rollout (the first)
    rejected: str = "worst"  # dpo: worst (by the judge) | suffix | rewrite | rollout (the first)
    epsilon: float = 1e-6  # a pair needs a score margin above this; else it is a tie
    max_invalid: float = 0.5  # share of invalid verdicts at which the run stops

    def __post_init__(self):
        if (
            not self.rollouts
            or self.rollouts[0][0] != 0
            or any(a >= b for (a, _), (b, _) in itertools.pairwise(self.rollouts))
        ):
            raise UserError(
                "candidates.rollouts must be ((0, K), (step, K), ...) in order of steps, not "
                f"{self.rollouts}"
            )
        check(
            "candidates",
            self,
            chosen=one_of(("best", *SOURCES)),
            rejected=one_of(("worst", *SOURCES)),
            epsilon=at_least(0, most=1),
            max_invalid=at_least(0, most=1),
        )
        for _, k in self.rollouts:
            self._check(k)

    def _check(self, k: int):
        have = {"suffix": self.suffix, "rewrite": self.rewrite, "rollout": k > 0}
        if k > MOST_ROLLOUTS:
            raise UserError(f"candidates.rollouts: K = {k} must be at most {MOST_ROLLOUTS}")
        if k < 0 or not any(have.values()):
            raise UserError(
                f"candidates.rollouts: K = {k} leaves no candidate; enable candidates.suffix or "
                "candidates.rewrite, or use K > 0"
            )
        for field, judged in (("chosen", "best"), ("rejected", "worst")):
            value = getattr(self, field)
            if value != judged and not have.get(value, False):
                raise UserError(
                    f"candidates.{field} {value!r} is not among the candidates with K = {k}"
                )

    def count(self, at: int) -> int:
        """Returns K, the number of rollouts per prefix, at step `at` (from 0)."""
        return next(k for since, k in reversed(self.rollouts) if since <= at)


@dataclass(frozen=True)
class Pool:
    """K candidates of B prefixes, on the host."""

    tokens_BKR: np.ndarray
    mask_BKR: np.ndarray
    valid_BK: np.ndarray  # bool: exists, is not empty and repeats no earlier candidate
    sources: list[str]  # of length K: suffix | rewrite | rollout
    texts: list[list[str]]  # texts[b][k]
    logp_BKR: np.ndarray  # of rollouts, under the policy that sampled them; else 0


@dataclass(frozen=True)
class Choice:
    """C of the K candidates of each prefix, which the update learns from."""

    index_BC: np.ndarray
    valid_BC: np.ndarray  # bool
    advantage_BC: np.ndarray | None = None  # of policy gradients


@dataclass(frozen=True)
class Seen:
    """The candidates of a step as they were judged and chosen, on the host."""

    prefixes: list[str]
    references: list[str]  # what the judge was shown beside them
    pool: Pool
    judged: Judged | None  # None: they were chosen without a judge
    valid_BK: np.ndarray  # bool: exists, is no duplicate, and has a verdict
    choice: Choice


@dataclass(frozen=True)
class Collector:
    """The fixed parts of candidate collection in a run: models, data and configs."""

    cfg: ModelConfig
    mesh: jax.sharding.Mesh
    tokenizer: Tokenizer
    batches: pipeline.Batches
    suffix: int  # R, tokens of a suffix and of a candidate
    candidates: CandidateConfig
    objective: losses.ObjectiveConfig
    sampling: sampling.SamplingConfig
    judge: Judge | None
    rewriter: Rewriter | None
    reference: str  # text shown to the judge next to the candidates: suffix | rewrite
    seed: int
    audit: Audit | None = None
    control: int = control.NONE  # token between prefix and candidate; NONE: no control token
    documents: int = 0  # D, last rows of a batch that are learned as they are, without candidates


@dataclass(frozen=True)
class Begun:
    """A begun step: its batch is read and its rollouts are dispatched, nothing more."""

    at: int  # index of the step, from 0
    rows: pipeline.Batch  # as in the corpus, without control tokens
    rollouts: structs.Rollouts | None  # None if K = 0
    staleness: int  # updates between the parameters that sample and those that learn


def begin(
    p: Collector, params, at: int, staleness: int = 0, phase: loop.Phase = loop.unmeasured
) -> Begun:
    """Reads batch `at` and dispatches its rollouts; does not wait for them."""
    with phase("data"):
        rows = p.batches[at]
    return Begun(at, rows, roll(p, params, rows, at), staleness)


def restored(p: Collector, params, manager, at: int) -> Begun | None:
    """Restores the step that was begun when the last checkpoint was saved; None without one.

    Its rollouts come from older parameters, so sampling them again would give others.
    """
    rows, K = p.batches[at], p.candidates.count(at)
    if not K:
        return None
    program = sampling.program(p.cfg, K, p.suffix, p.sampling)
    args = batch_shapes(p.mesh, _asked(p, rows))
    shapes = jax.eval_shape(program, params, *args, jax.random.key(p.seed))
    found = checkpoints.restore_begun(manager, batch_shapes(p.mesh, shapes))
    return found and Begun(at, rows, found, staleness=1)


def collect(p: Collector, params, begun: Begun, phase: loop.Phase = loop.unmeasured):
    """Finishes a begun step: builds, judges and chooses its candidates.

    Returns (Branches, metrics, Seen).
    """
    rollouts, at = begun.rollouts, begun.at
    rows = controlled(p, begun.rows)
    with phase("data"):
        # Judges and rewriters see texts without the control token.
        plain = continued(p, begun.rows)
        prefixes, suffixes, ids = texts_of(p.tokenizer, plain, p.suffix)
    if not begun.staleness:
        # The rollouts are queued behind the previous update. Wait for it under its own name.
        with phase("update"):
            jax.block_until_ready(params)
    pool = build_pool(p, rows, prefixes, suffixes, ids, rollouts, phase)
    scores_BK, valid_BK, found = np.zeros(pool.valid_BK.shape), pool.valid_BK, {}
    beside, judged = suffixes, None
    if p.judge is not None:
        with phase("judge"):
            beside = references(p, pool, suffixes)
            judged = p.judge.score(prefixes, pool.texts, beside, pool.valid_BK)
        scores_BK, valid_BK, found = (
            judged.scores_BK,
            judged.valid_BK & pool.valid_BK,
            judged.metrics | diagnostics.by_source(judged, pool.sources, pool.texts),
        )
        most, key = p.candidates.max_invalid, "candidates.max_invalid"
        judges.check_invalid(pool.valid_BK, valid_BK, most, key, judged.metrics)
        if p.audit is not None and p.audit.due(at):
            theirs = references(p.audit.config.judge, pool, suffixes)
            with phase("audit"):
                found |= p.audit.figures(judged, prefixes, pool, theirs, p.candidates.max_invalid)
    branches, chosen, choice = learned(p, rows, pool, scores_BK, valid_BK)
    if p.documents:
        branches = with_documents(p, branches, begun.rows)
    if rollouts is not None:
        count = float(pool.sources.count("rollout") * len(prefixes))
        found["rollouts/staleness"] = begun.staleness * count, count
    seen = Seen(prefixes, beside, pool, judged, valid_BK, choice)
    return branches, {**found, **chosen, **source_metrics(pool, scores_BK, valid_BK)}, seen


def roll(p: Collector, params, rows, at: int) -> structs.Rollouts | None:
    """Dispatches K rollouts per prefix and returns at once, so that the host works meanwhile."""
    K = p.candidates.count(at)
    if not K:
        return None
    program = sampling.program(p.cfg, K, p.suffix, p.sampling)
    key = jax.random.fold_in(jax.random.key(p.seed), at)
    return program(params, *put_batch(p.mesh, _asked(p, rows)), key)


def continued(p: Collector, rows: pipeline.Batch) -> pipeline.Batch:
    """Returns the rows of a batch that get candidates: all but the last `p.documents`."""
    return {key: x[: len(x) - p.documents] for key, x in rows.items()}


def controlled(p: Collector, rows: pipeline.Batch) -> pipeline.Batch:
    """Returns the rows that get candidates as the policy sees them, with the control token."""
    asked = continued(p, rows)
    if p.control == control.NONE:
        return asked
    control_B = np.full(len(asked["fork_B"]), p.control, np.int32)
    return control.insert(asked, control_B, p.tokenizer.pad)


def _asked(p: Collector, rows):
    """Returns (tokens_BT of the prefixes, fork_B, doc_B). The document number selects the noise."""
    rows = controlled(p, rows)
    return rows["tokens_BT"][:, : -p.suffix], rows["fork_B"], rows["doc_B"]


def build_pool(
    p: Collector, rows, prefixes, suffixes, ids, rollouts, phase: loop.Phase = loop.unmeasured
) -> Pool:
    """Builds the pool: suffix, rewrite and rollouts, in this order along K."""
    B, R = len(prefixes), p.suffix
    parts: list[tuple[str, np.ndarray, np.ndarray, np.ndarray]] = []
    if p.candidates.suffix:
        at_BR = rows["fork_B"][:, None] + np.arange(R)
        tokens_BR = np.take_along_axis(rows["tokens_BT"], at_BR, axis=1)
        parts.append(("suffix", tokens_BR, np.ones((B, R), bool), np.zeros((B, R))))
    # Rewrites before rollouts: the device samples while the host waits for the rewriter.
    if p.rewriter is not None:
        with phase("rewrite"):
            rewritten = encode_rewrites(p, p.rewriter, prefixes, suffixes)
        parts.append(("rewrite", *rewritten, np.zeros((B, R))))
    if rollouts is not None:
        with phase("rollout"):
            tokens, mask, logp = fetch((rollouts.tokens_BCR, rollouts.mask_BCR, rollouts.logp_BCR))
        parts += [("rollout", tokens[:, k], mask[:, k], logp[:, k]) for k in range(tokens.shape[1])]
    sources, *arrays = zip(*parts, strict=True)
    tokens_BKR, mask_BKR, logp_BKR = (np.stack(a, axis=1) for a in arrays)
    valid_BK = merge_duplicates(tokens_BKR, mask_BKR, mask_BKR.any(-1))

    def texts_of_row(b: int) -> list[str]:
        rows = zip(tokens_BKR[b], mask_BKR[b], strict=True)
        return continuations(p.tokenizer, ids[b], [row[live].tolist() for row, live in rows])

    texts = divided(range(B), texts_of_row)
    return Pool(tokens_BKR, mask_BKR, valid_BK, list(sources), texts, logp_BKR)


def references(p: Collector | judges.JudgeConfig, pool: Pool, suffixes: list[str]) -> list[str]:
    """Returns the reference text per prefix that the judge sees next to the candidates.

    It is the suffix, or the rewrite if `p.reference` says so and the rewrite succeeded. A suffix
    of the corpus may contain errors, which its rewrite is meant to correct.
    """
    if p.reference == "suffix":
        return suffixes
    k = pool.sources.index("rewrite")
    return [texts[k] or suffix for texts, suffix in zip(pool.texts, suffixes, strict=True)]


def encode_rewrites(p: Collector, rewriter: Rewriter, prefixes, suffixes):
    """Returns (tokens_BR, mask_BR) of the rewrites, cut to R tokens; failed ones are all False."""
    texts, valid_B = rewriter.rewrite(prefixes, suffixes)
    tokens_BR = np.full((len(texts), p.suffix), p.tokenizer.pad, np.int32)
    mask_BR = np.zeros(tokens_BR.shape, bool)
    for b, (text, ok) in enumerate(zip(texts, valid_B, strict=True)):
        ids = p.tokenizer.encode(text)[: p.suffix] if ok else []
        tokens_BR[b, : len(ids)], mask_BR[b, : len(ids)] = ids, True
    return tokens_BR, mask_BR


def _index(p: Collector, pool: Pool, which: str, scores_BK, valid_BK):
    """Returns (index_B, valid_B) of the best or worst candidate, or the first one of a source."""
    if which in ("best", "worst"):
        return best(scores_BK if which == "best" else -scores_BK, valid_BK)
    k = pool.sources.index(which)
    return np.full(len(valid_BK), k), pool.mask_BKR[:, k].any(-1)


def choice(p: Collector, pool: Pool, scores_BK, valid_BK) -> tuple[np.ndarray, np.ndarray]:
    """Returns (index_BC, ok_B): the chosen candidate, of pairs also the rejected one.

    Nothing is learned from rows that are not ok.
    """
    chosen_B, ok_B = _index(p, pool, p.candidates.chosen, scores_BK, valid_BK)
    if not p.objective.pairs:
        return chosen_B[:, None], np.asarray(ok_B)
    rejected_B, also_B = _index(p, pool, p.candidates.rejected, scores_BK, valid_BK)
    # A pair needs a preference: a score margin, or two different texts without judging.
    both = np.stack([chosen_B, rejected_B], axis=1)
    margin_B = -np.diff(np.take_along_axis(scores_BK, both, axis=1))[:, 0]
    judged = p.candidates.chosen == "best" and p.candidates.rejected == "worst"
    apart_B = np.greater(margin_B, p.candidates.epsilon) & (both[:, 0] != both[:, 1])
    apart_B = apart_B if judged else _differ(pool, both)
    return both, np.asarray(ok_B & also_B & apart_B)


def pick(p: Collector, rows, pool: Pool, scores_BK, valid_BK):
    """Returns what is chosen, of pairs also what is rejected, as (Branches, metrics, Choice)."""
    index_BC, ok_B = choice(p, pool, scores_BK, valid_BK)
    names = np.array(pool.sources)[index_BC[:, 0]]
    found = {f"chosen/{s}": pair(names == s, ok_B) for s in dict.fromkeys(pool.sources)}
    found["chosen/none"] = pair(~ok_B)
    valid_BC = np.repeat(np.reshape(ok_B, (-1, 1)), index_BC.shape[1], axis=1)
    branches = _branches(p, rows, pool, index_BC, valid_BC, np.zeros(index_BC.shape))
    return branches, found, Choice(index_BC, valid_BC)


def _differ(pool: Pool, both_B2):
    """Returns a mask [B], True if the two candidates of a pair have different tokens."""
    two_B2R = np.take_along_axis(pool.tokens_BKR, both_B2[..., None], axis=1)
    return (two_B2R[:, 0] != two_B2R[:, 1]).any(-1)


def learned(p: Collector, rows, pool: Pool, scores_BK, valid_BK):
    """Returns the candidates of a judged pool that the update learns from, as `pick` does."""
    choose = group if p.objective.name == "dr_grpo" else pick
    return choose(p, rows, pool, scores_BK, valid_BK)


def group(p: Collector, rows, pool: Pool, scores_BK, valid_BK):
    """Returns all rollouts with their advantages, (Branches, metrics, Choice)."""
    at = [k for k, source in enumerate(pool.sources) if source == "rollout"]
    valid_BC = valid_BK[:, at]
    advantage_BC = np.asarray(policy.advantages_dr_grpo(scores_BK[:, at], valid_BC))
    index_BC = np.broadcast_to(np.array(at), valid_BC.shape)
    branches = _branches(p, rows, pool, index_BC, valid_BC, advantage_BC)
    return branches, {}, Choice(index_BC, valid_BC, advantage_BC)


def _branches(p: Collector, rows, pool: Pool, index_BC, valid_BC, advantage_BC) -> losses.Branches:
    take = lambda x_BKR: np.take_along_axis(x_BKR, index_BC[..., None], axis=1)
    # The suffix stays in the trunk only if its cross-entropy is learned; else a shorter one is
    # cheaper.
    T = rows["tokens_BT"].shape[1] - (0 if p.objective.blends_ce else p.suffix)
    fork_B = rows["fork_B"].astype(np.int32)
    tokens_BT, mask_BT = rows["tokens_BT"][:, :T], rows["mask_BT"][:, :T]
    tree = Tree(
        tokens_BT,
        mask_BT,
        take(pool.tokens_BKR),
        take(pool.mask_BKR),
        np.repeat(fork_B[:, None], index_BC.shape[1], axis=1),
    )
    # With rows of documents these alone learn their suffixes: here it follows a control token.
    ce_mask_BT = mask_BT & (np.arange(T) >= fork_B[:, None]) & (not p.documents)
    return losses.Branches(
        tree,
        valid_BC,
        advantage_BC.astype(np.float32),
        take(pool.logp_BKR).astype(np.float32),
        ce_mask_BT,
    )


def with_documents(p: Collector, learned: losses.Branches, rows: pipeline.Batch):
    """Returns Branches with the last `p.documents` rows of the batch appended.

    They have no control token and no valid candidate; their suffixes count in the cross-entropy.
    """
    last = {key: x[len(x) - p.documents :] for key, x in rows.items()}
    bare = control.insert(last, np.full(p.documents, control.NONE), p.tokenizer.pad)
    none = jax.tree.map(lambda x: np.zeros((p.documents, *x.shape[1:]), x.dtype), learned)
    tree = dataclasses.replace(none.tree, tokens_BT=bare["tokens_BT"], mask_BT=bare["mask_BT"])
    tree = dataclasses.replace(tree, fork_BC=none.tree.fork_BC + bare["fork_B"][:, None])
    suffix_BT = np.arange(bare["mask_BT"].shape[1]) >= bare["fork_B"][:, None]
    more = dataclasses.replace(none, tree=tree, ce_mask_BT=bare["mask_BT"] & suffix_BT)
    return jax.tree.map(lambda a, b: np.concatenate([a, b]), learned, more)


def source_metrics(pool: Pool, scores_BK, valid_BK):
    """Returns the mean score and the share of valid candidates per source, as pairs."""
    found = {}
    for source in dict.fromkeys(pool.sources):
        at = [k for k, s in enumerate(pool.sources) if s == source]
        live = valid_BK[:, at]
        found[f"reward/{source}"] = pair(scores_BK[:, at], live)
        found[f"valid/{source}"] = pair(live)
    return found


def best(scores_BK: np.ndarray, valid_BK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (index_B, valid_B): the first of the best valid candidates, invalid if none is."""
    return np.argmax(np.where(valid_BK, scores_BK, -np.inf), axis=-1), np.any(valid_BK, axis=-1)


def merge_duplicates(tokens_BKR, mask_BKR, valid_BK) -> np.ndarray:
    """Returns valid_BK without candidates whose tokens repeat those of an earlier valid candidate.

    Masked-out tokens are ignored.
    """
    found_BK = np.array(valid_BK)
    for b, row_K in enumerate(found_BK):
        seen = set()
        for k in np.flatnonzero(row_K):
            text = tokens_BKR[b, k][mask_BKR[b, k]].tobytes(), mask_BKR[b, k].tobytes()
            row_K[k] = text not in seen
            seen.add(text)
    return found_BK
