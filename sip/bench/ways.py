"""Ways of doing the work of one row: ours, our own plain sequences, and the peer's forms.

Our way runs every prefix once, as the trunk of its continuations (branches). `plain` is our own
decoder on one sequence per continuation. See sip/bench/peer.py for the forms of the peer.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from sip import padding, sampling
from sip.bench.setup import Setup, operations
from sip.bench.sharing import ASPECT, questions
from sip.bench.turns import Measured, Turn, difference, here
from sip.judge import scoring
from sip.judge.schedules import ScheduleConfig
from sip.loading import LoadedModel
from sip.mesh import put_batch
from sip.models.config import ModelConfig
from sip.objectives import preference
from sip.structs import Tree
from sip.text.segments import Ids, tokens_of
from sip.text.tokenizer import Byte
from sip.textgen import stems
from sip.textgen.local import Local
from sip.textgen.stems import Stems
from sip.training import losses, optim, step

# So small a rate that a few updates leave losses to compare: DPO's would be 0 for all at 1e-4.
OPTIM = optim.OptimConfig(lr=1e-6, steps=1000, schedule="constant", weight_decay=0.1)
DPO, GROUP = losses.ObjectiveConfig("dpo"), losses.ObjectiveConfig("dr_grpo")
ROWS = 4  # sequences of a plain update that run at a time: more would not fit in memory
CHUNK = 16  # prompts of the peer's judge that run at a time
Compare = Callable[[Mapping[str, Measured]], dict[str, float]]


@dataclass(frozen=True)
class Ways:
    """The ways of one row, and what is known of the work."""

    ways: dict[str, Callable[[], Turn]]  # `ours` and the others
    needs: float  # FLOPs that the work needs with shared prefixes
    compare: Compare  # largest difference of each other way's results from ours
    scale: dict[str, float] = field(default_factory=dict)  # factor of a way that does only a part


@dataclass(frozen=True)
class Judging:
    """The ways of judging all ordered pairs of some candidates."""

    ways: Ways
    count: int  # ordered pairs
    plain: float  # FLOPs that the prompts need if they share their prefix alone
    executed: float  # operations that our padded tree runs / operations that the prompts need


# Updates.


def ce(s: Setup) -> Ways:
    """A step of next-token cross-entropy on one sequence of prefix and suffix."""
    tokens_BT = s.tokens(1, s.sizes.prefix + s.sizes.suffix)
    mask_BT = tokens_BT >= 0
    batch = padding.trunk_only(tokens_BT, mask_BT), mask_BT
    weights = losses.constant((("ce", 1.0),))
    ours = _trained(s, losses.tokens_terms(s.cfg), weights, batch)
    none = np.zeros((1, 0, 1), np.int32)
    ways = {"ours": ours, **_peers(s, ("plain",), "ce", dict(tokens_BP=tokens_BT, tokens_BCR=none))}
    T = tokens_BT.shape[1]
    return Ways(ways, 3 * operations(s.cfg, T, scored=T), _losses)


def dpo(s: Setup, prefixes: int, forms: Sequence[str]) -> Ways:
    """A DPO update on pairs of continuations, one pair per prefix, with a frozen reference."""
    tree = _tree(s, prefixes, 2)
    batch, weights = _branches(tree), losses.constant((("dpo", 1.0),))
    ways = {
        "ours": _trained(s, losses.branch_terms(s.cfg, DPO), weights, batch, reference=True),
        "plain": _trained(s, _plain_dpo(s.cfg), weights, batch, reference=True),
        **_peers(s, forms, "dpo", _sent(tree)),
    }
    P, R = tree.tokens_BT.shape[1], tree.tokens_BCR.shape[2]
    one = operations(s.cfg, P, 2, R, 2 * R)
    return Ways(ways, prefixes * 4 * one, _losses)  # 4: forward, backward (2), the reference


def group(s: Setup, count: int) -> Ways:
    """An update by a clipped surrogate over `count` continuations of one prefix."""
    tree = _tree(s, 1, count)
    old_BCR = np.asarray(losses.branch_logprobs(s.cfg)(s.params, tree))
    advantage_BC = np.where(np.arange(count) % 2, -1.0, 1.0)[None].astype(np.float32)
    batch = dataclasses.replace(_branches(tree), old_logp_BCR=old_BCR, advantage_BC=advantage_BC)
    terms, weights = losses.branch_terms(s.cfg, GROUP), losses.constant((("dr_grpo", 1.0),))
    micro = max(1, count // ROWS)
    sent = _sent(tree) | {"old_BCR": old_BCR, "advantage_BC": advantage_BC}
    ways = {
        "ours": _trained(s, terms, weights, batch),
        "plain": _trained(s, terms, weights, _alone(batch), microbatches=micro),
        **_peers(s, ("plain", "mask"), "group", sent),
    }
    P, R = tree.tokens_BT.shape[1], tree.tokens_BCR.shape[2]
    return Ways(ways, 3 * operations(s.cfg, P, count, R, count * R), _losses)


def _trained(s: Setup, terms, weights, batch, *, reference=False, microbatches=1):
    """Returns a way that runs one update after another, from the first parameters on."""
    tx = optim.build(OPTIM)
    update = step.make_update(terms, tx, weights, microbatches=microbatches)
    with jax.set_mesh(s.mesh):
        params = jax.tree.map(lambda x: x.copy(), s.params)
        state = [step.state_of(params, s.cfg, tx, s.mesh, reference=reference)]
        batch = put_batch(s.mesh, batch)

    def once():
        with jax.set_mesh(s.mesh):
            state[0], metrics = update(state[0], batch)
        return metrics, state[0].step

    return here(once)


def _peers(s: Setup, forms: Sequence[str], loss: str, batch: dict) -> dict[str, Callable]:
    """Returns the peer's ways of an update, each with parameters of its own."""
    if s.other is None:
        return {}
    other, begun = s.other, [False]
    rates = dict(lr=OPTIM.lr, weight_decay=OPTIM.weight_decay)

    def way(form: str) -> Callable[[], Turn]:
        def run() -> Turn:
            if not begun[0]:  # the rows before have used the peer's copies of the model
                other.ask("begin", forms=list(forms), **rates)
                begun[0] = True
            return other.ask("update", batch=batch, form=form, loss=loss, rows=ROWS)

        return run

    return {f"hf {form}": way(form) for form in forms}


def _losses(took: Mapping[str, Measured]) -> dict[str, float]:
    """Returns the largest difference of the losses: each way has done the same updates."""

    def of(turn: Turn) -> float:
        if isinstance(turn.value, dict):
            return turn.value["loss"]
        total, denom = turn.value[0]["loss/total"]
        return float(total) / float(denom)

    every = {name: [of(turn) for turn in way.turns] for name, way in took.items()}
    return {name: difference(found, every["ours"]) for name, found in every.items()}


def _tree(s: Setup, prefixes: int, count: int) -> Tree:
    """Returns prefixes with `count` continuations each, without padding."""
    P, R = s.sizes.prefix, s.sizes.suffix
    tokens_BT, tokens_BCR = s.tokens(prefixes, P), s.tokens(prefixes, count, R)
    fork_BC = np.full((prefixes, count), P, np.int32)
    return Tree(tokens_BT, tokens_BT >= 0, tokens_BCR, tokens_BCR >= 0, fork_BC)


def _branches(tree: Tree) -> losses.Branches:
    (B, T), (_, C, R) = tree.tokens_BT.shape, tree.tokens_BCR.shape
    zeros = np.zeros((B, C), np.float32), np.zeros((B, C, R), np.float32)
    return losses.Branches(tree, np.ones((B, C), bool), *zeros, np.zeros((B, T), bool))


def _sent(tree: Tree) -> dict[str, np.ndarray]:
    return {"tokens_BP": tree.tokens_BT, "tokens_BCR": tree.tokens_BCR}


def _alone(batch: losses.Branches) -> losses.Branches:
    """Returns a batch in which every continuation has a trunk of its own."""
    C = batch.valid_BC.shape[1]
    own = jax.tree.map(lambda x: x.reshape(-1, 1, *x.shape[2:]), batch)
    tree = _flat(batch.tree)
    return dataclasses.replace(own, tree=tree, ce_mask_BT=np.repeat(batch.ce_mask_BT, C, axis=0))


def _flat(tree: Tree) -> Tree:
    """Returns a tree with a row for each branch."""
    B, C, R = tree.tokens_BCR.shape
    repeat = lambda x: x.repeat(C, axis=0)
    return Tree(
        repeat(tree.tokens_BT),
        repeat(tree.mask_BT),
        tree.tokens_BCR.reshape(B * C, 1, R),
        tree.mask_BCR.reshape(B * C, 1, R),
        tree.fork_BC.reshape(B * C, 1),
    )


@functools.cache
def _plain_dpo(cfg: ModelConfig):
    """Returns the terms of DPO on plain sequences; a batch is `Branches` with C = 2."""

    def terms(params, reference, batch: losses.Branches):
        logp = lambda params: losses.branch_logprobs(cfg)(params, _flat(batch.tree)).sum(-1)
        logp_B2, ref_B2 = (logp(p).reshape(batch.valid_BC.shape) for p in (params, reference))
        total, denom, metrics = preference.dpo(
            logp_B2, ref_B2, batch.valid_BC.all(-1), beta=DPO.beta
        )
        return {"dpo": (total, denom)}, metrics

    return terms


# Rollouts.


def rolling(s: Setup, count: int, *, steps: int = 0, plain: bool = False) -> Callable[[], Turn]:
    """Returns our way of sampling `count` rollouts of one prefix; `steps` 0: whole suffixes."""
    rows = count if plain else 1
    program = sampling.program(
        s.cfg, count // rows, steps or s.sizes.suffix, sampling.SamplingConfig()
    )
    tokens_BT = np.repeat(s.tokens(1, s.sizes.prefix), rows, axis=0)
    fork_B = np.full(rows, s.sizes.prefix, np.int32)
    with jax.set_mesh(s.mesh):
        placed = put_batch(s.mesh, (tokens_BT, fork_B, np.arange(rows, dtype=np.int32)))

    def once():
        with jax.set_mesh(s.mesh):
            found = program(s.params, *placed, jax.random.key(s.seed))
        return found.tokens_BCR, found.logp_BCR

    return here(once)


def rollouts(s: Setup, count: int) -> Ways:
    """Sampling `count` rollouts of one prefix at temperature 1.

    Every library draws its own: ours are scored by the peer, and the peer's by us.
    """
    P, R = s.sizes.prefix, s.sizes.suffix
    ways = {"ours": rolling(s, count), "plain": rolling(s, count, plain=True)}
    asked = dict(prefix=s.tokens(1, P)[0].tolist(), count=count, steps=R, seed=s.seed)
    if s.other is not None:
        ways |= {f"hf {f}": s.other.way("rollout", form=f, **asked) for f in ("plain", "cached")}

    def compare(took: Mapping[str, Measured]) -> dict[str, float]:
        tokens, logp = (np.asarray(x) for x in took["ours"].turns[-1].value)
        found = {}
        if s.other is not None:
            sent = dict(tokens_BP=s.tokens(1, P), tokens_BCR=tokens)
            said = s.other.ask("score", batch=sent, form="plain").value
            found["hf plain"] = difference(logp, said["logp"])
        for name in took:
            if name != "ours":
                value = took[name].turns[-1].value
                own = value.values() if isinstance(value, dict) else value
                tokens, logp = (np.asarray(x).reshape(1, count, R) for x in own)
                scored = losses.branch_logprobs(s.cfg)(s.params, _continued(s, tokens))
                before = found[name] if name in found else 0.0
                found[name] = max(before, difference(logp, scored))
        return found

    return Ways(ways, operations(s.cfg, P, count, R, count * R), compare)


def _continued(s: Setup, tokens_BCR: np.ndarray) -> Tree:
    tree = _tree(s, *tokens_BCR.shape[:2])
    tokens_BCR = tokens_BCR.astype(np.int32)
    return dataclasses.replace(tree, tokens_BCR=tokens_BCR, mask_BCR=tokens_BCR >= 0)


# Judging.


def judge(s: Setup, candidates: int) -> Judging:
    """Comparing all ordered pairs of `candidates` texts that continue one prefix.

    Our way is what a run calls: it tokenises, pads and asks. Plain prompts are a sample.
    """
    trunk, branches = questions(s.sizes.prefix, candidates, s.seed, suffix=s.sizes.suffix)
    drawn = np.random.default_rng(s.seed).permutation(len(branches))[: s.sizes.sample]
    some = [branches[c] for c in drawn]
    model = LoadedModel(s.params, s.cfg, Byte(), s.mesh)
    ours = lambda: Local(model).choose([trunk], [branches], ASPECT.options, len(branches))
    # A plain prompt has everything in its trunk except the branch's last segment, because `choose`
    # needs a branch.
    whole, last = [(*trunk, *b[:-1]) for b in some], [[b[-1:]] for b in some]
    plain = lambda: Local(model, batch=ROWS).choose(whole, last, ASPECT.options)[:, 0]
    ways, factor = {"ours": here(ours), "plain": here(plain)}, len(branches) / len(some)
    scale = {"plain": factor}
    ids = [Byte().bos, *tokens_of(Byte(), trunk)], [tokens_of(Byte(), b) for b in branches]
    if s.other is not None:
        options = [Byte().encode(option)[0] for option in ASPECT.options]
        few = [ids[1][c] for c in drawn]
        how: Any = dict(trunk=ids[0], options=options, rows=CHUNK)
        ways["hf cached"] = s.other.way("choose", branches=ids[1], form="cached", **how)
        ways["hf plain"] = s.other.way("choose", branches=few, form="plain", **how)
        scale["hf plain"] = factor

    def compare(took: Mapping[str, Measured]) -> dict[str, float]:
        said = np.asarray(took["ours"].turns[-1].value)[0]
        found = {}
        for name in took:
            if name != "ours":
                value = took[name].turns[-1].value
                other = value["logp"] if isinstance(value, dict) else value
                found[name] = difference(said[drawn] if len(other) == len(drawn) else said, other)
        return found

    found = stems.divided([branches], Byte(), len(branches))
    needs = needed(s.cfg, *ids, found)
    share = executed(s.cfg, *ids, found) / needs
    plain = needed(s.cfg, *ids, None)
    return Judging(Ways(ways, needs, compare, scale), len(branches), plain, share)


def adaptive(s: Setup, candidates: int) -> Callable[[], Turn]:
    """Returns our way of judging with a quarter of the pairs, in rounds."""
    rng = np.random.default_rng(s.seed)
    letters = lambda n: "".join(map(chr, rng.integers(ord("a"), ord("z") + 1, n)))
    prefix, texts = letters(s.sizes.prefix), [letters(s.sizes.suffix) for _ in range(candidates)]
    model = LoadedModel(s.params, s.cfg, Byte(), s.mesh)
    schedule = ScheduleConfig("adaptive", budget=0.25)
    asked = scoring.TextJudge(
        Local(model), (ASPECT,), {ASPECT.name: 1.0}, min_mass=0.0, schedule=schedule
    )
    live = np.ones((1, candidates), bool)
    return here(lambda: asked.score([prefix], [texts], [""], live).scores_BK)


def needed(cfg: ModelConfig, trunk: Ids, branches: Sequence[Ids], found: Stems | None) -> float:
    """Returns the FLOPs that prompts need, with one trunk, its stems once, and a scored position
    per branch; without `found` no branches share a stem."""
    T = len(trunk)
    until = lambda end, scored=0: operations(cfg, T, 1, end, scored)  # the trunk and one branch
    alone = operations(cfg, T)
    if found is None:
        return alone + sum(until(len(ids), 1) - alone for ids in branches)
    heads = [len(ids) for ids in found.stems[0]]
    leaves = [
        until(head + len(ids), 1) - until(head)
        for head, own in zip(heads, found.leaves[0], strict=True)
        for ids in own
    ]
    return alone + sum(until(head) - alone for head in heads) + sum(leaves)


def executed(cfg: ModelConfig, trunk: Ids, branches: Sequence[Ids], found: Stems | None) -> float:
    """Returns the FLOPs of the same prompts in the padded trees that our judge runs."""
    T = padding.trunk_width(len(trunk))
    if found is None:
        C, R = len(branches), padding.branch_width(max(map(len, branches)))
        return operations(cfg, T, C, R, C)
    K, M, W = found.sizes
    stems = operations(cfg, T, K, W)
    leaf = operations(cfg, T, 1, 2 * W, 1) - operations(cfg, T, 1, W)
    return stems + K * M * leaf
