"""Watches for reward hacking: the judge's score rises while other signs say that texts get worse.

A policy learns to exploit the faults of its judge (arXiv 2210.10760). What the policy writes itself
is compared over the updates: the mean over the last ones with that over the first ones.

    proxy        mean score of the rollouts by the judge, or mean reward of the answers
    audit        mean score of the rollouts by the held-out judge (section `audit`)
    length       characters of a text
    repetition   share of word triples of a text that occurred in it before
    phrase       share of texts with the commonest phrase of three words
    distinct     distinct-2: share of word pairs, of all texts, that are different ones
    entropy      mean of -log p per sampled token, in nats
    kl           KL to the start, in nats per answer; RL with objective.beta
    verdicts     the judge's mean score of the documents' suffixes: these do not change, so that a
                 change is one of the judge; for aspects that are no comparisons

The alarm is raised if proxy and audit part, or the proxy rises while one of the others moves by
more than a threshold. It asks to look at the texts (candidates.jsonl) and is no proof: a score may
rise, and a text may get longer, for good reasons. Nothing is stopped; section `audit` stops.
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sip.metrics import ratio
from sip.sections import above, at_least, check
from sip.stages.candidate_log import Answered
from sip.stages.collect import Seen
from sip.text.ngrams import ngrams, repeated
from sip.text.tokenizer import Tokenizer, continuation
from sip.training import checkpoints

FILE = "alarms.jsonl"
TEXTS = 64  # texts of an update that are looked at, at most
WORDS = 3  # of a phrase
CONSTANT = 1e-6  # spread below which the proxy is constant, as that of wins among rollouts alone


@dataclass(frozen=True)
class WatchConfig:
    """Thresholds of the watch for reward hacking."""

    window: int = 0  # first updates, with which the last ones are compared; 0: no watch
    recent: int = 5  # last updates
    audits: int = 3  # first and last audits that are compared; an audit is not at every update
    deviations: float = 3.0  # least change of each mean, in its standard errors
    rise: float = 0.05  # least rise of the proxy
    audit: float = 0.05  # least fall of the audit's score
    length: float = 1.2  # least ratio of lengths, longer or shorter
    repetition: float = 0.1  # least rise of the share of repeated word triples
    phrase: float = 0.15  # least rise of the share of texts with one phrase
    distinct: float = 0.8  # most ratio of distinct-2
    entropy: float = 0.8  # most ratio of the entropy
    kl: float = 10.0  # least rise of the KL to the start, nats per answer
    verdicts: float = 0.1  # least change of the judge's score of the documents' suffixes
    cooldown: int = 50  # updates without another alarm; doubles after each alarm

    def __post_init__(self):
        share = at_least(0, most=1)
        check(
            "watch",
            self,
            window=at_least(0),
            recent=at_least(1),
            audits=at_least(2),
            deviations=above(0),
            rise=at_least(0),
            audit=at_least(0),
            length=at_least(1),
            repetition=share,
            phrase=share,
            distinct=share,
            entropy=share,
            kl=at_least(0),
            verdicts=at_least(0),
            cooldown=at_least(1),
        )


Values = dict[str, float]  # signals of an update by name


@dataclass(frozen=True)
class Watched:
    """The first and last values of each signal, and the last alarm."""

    first: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    last: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    alarm: int = 0  # update of the last alarm; 0: none
    alarms: int = 0  # number of alarms so far


@dataclass(frozen=True)
class Alarm:
    """A reason to look at what the policy writes."""

    step: int
    said: str
    signals: dict[str, tuple[float, float]]  # name -> (mean of the first updates, of the last)


def kept(directory: str) -> Watched:
    """Returns the state in a run's last checkpoint; a new one without it."""
    record = checkpoints.record(directory) if checkpoints.exists(directory) else {}
    if "signals" not in record:
        return Watched()
    found = record["signals"]
    lists = {key: {k: tuple(v) for k, v in found[key].items()} for key in ("first", "last")}
    return Watched(**{**found, **lists})


def plain(watched: Watched) -> dict[str, Any]:
    """Returns the state as an entry of a checkpoint's record."""
    return {"signals": dataclasses.asdict(watched)}


def of_candidates(cfg: WatchConfig, seen: Seen, found: Mapping[str, Any]) -> Values:
    """Returns the signals of a self-improving update; none without a watch, a judge or rollouts.

    `found` are the update's metrics.
    """
    pool, at = seen.pool, [k for k, source in enumerate(seen.pool.sources) if source == "rollout"]
    if not cfg.window or seen.judged is None or not at:
        return {}
    who = seen.judged.who
    pointwise = [n for n in seen.judged.aspects if f"{who}/comparisons/{n}" not in found]
    named = {
        "proxy": ["reward/rollout"],
        "audit": ["audit/score/rollout", "audit_truth/score/rollout"],
        "audited": ["audit/judge_score/rollout", "audit_truth/judge_score/rollout"],
        "verdicts": [f"{who}/score/{name}/suffix" for name in pointwise],
    }
    mask_BKR = pool.mask_BKR[:, at]
    rows = zip(pool.texts, pool.valid_BK, strict=True)
    texts = [row[k] for row, valid_K in rows for k in at if valid_K[k]]
    entropy = {"entropy": -float(pool.logp_BKR[:, at][mask_BKR].mean())} if mask_BKR.any() else {}
    return {**_means(named, found), **of_texts(texts), **entropy}


def of_answers(
    cfg: WatchConfig, seen: Answered, found: Mapping[str, Any], tokenizer: Tokenizer
) -> Values:
    """Returns the signals of a policy-gradient update; none without a watch."""
    if not cfg.window:
        return {}
    named = {"proxy": ["reward/all"], "entropy": ["rl/entropy"], "kl": ["rl/kl"]}
    rows = zip(seen.prompts, seen.ids, strict=True)
    every = ((prompt, ids) for prompt, row in rows for ids in row)
    texts = [continuation(tokenizer, *both) for both in itertools.islice(every, TEXTS)]
    return {**_means(named, found), **of_texts(texts)}


def of_update(cfg: WatchConfig, learned: Mapping[str, Any], found: Mapping[str, Any]) -> Values:
    """Returns the KL to the start if it is a term of the loss (`objective.kl` "loss").

    `learned` are the metrics of the first update on the answers, whose `kl` is in nats per token;
    `found` those of the answers. Waits for the update.
    """
    if not cfg.window or "kl" not in learned:
        return {}
    each, tokens = ratio(learned["kl"]), ratio(found["rl/answer_tokens"])
    return {} if each is None or tokens is None else {"kl": each * tokens}


def _means(named: Mapping[str, Sequence[str]], found: Mapping[str, Any]) -> Values:
    """Returns the mean of those metrics of each signal that there are."""
    values = {
        name: [x for key in keys if key in found and (x := ratio(found[key])) is not None]
        for name, keys in named.items()
    }
    return {name: float(np.mean(x)) for name, x in values.items() if x}


def of_texts(texts: Iterable[str]) -> Values:
    """Returns the signals of some texts; of the first TEXTS that are not empty."""
    words = [(len(text), text.split()) for text in texts if text.strip()][:TEXTS]
    if not words:
        return {}
    triples = [list(ngrams(x, WORDS)) for _, x in words]
    pairs = [pair for _, x in words for pair in ngrams(x, 2)]
    commonest = Counter(gram for grams in triples for gram in set(grams)).most_common(1)
    repeats = [repeated(x) for x in triples if x]
    return {
        "length": float(np.mean([size for size, _ in words])),
        "repetition": float(np.mean(repeats)) if repeats else 0.0,
        "phrase": commonest[0][1] / len(words) if commonest else 0.0,
        "distinct": len(set(pairs)) / len(pairs) if pairs else 1.0,
    }


def figures(values: Values) -> dict[str, tuple[float, float]]:
    """Returns the signals of texts as metrics; the others are in the log by their own names."""
    own = ("length", "repetition", "phrase", "distinct", "entropy")
    return {f"watch/{name}": (values[name], 1.0) for name in own if name in values}


def observed(cfg: WatchConfig, watched: Watched, values: Values) -> Watched:
    """Returns the state with the signals of one more update."""
    first, last = dict(watched.first), dict(watched.last)
    for name, value in values.items():
        size, recent = (cfg.audits,) * 2 if "audit" in name else (cfg.window, cfg.recent)
        before = first[name] if name in first else ()
        if len(before) < size:
            first[name] = (*before, value)
        else:
            last[name] = (*(last[name] if name in last else ()), value)[-recent:]
    return dataclasses.replace(watched, first=first, last=last)


def raised(cfg: WatchConfig, watched: Watched, done: int) -> tuple[Watched, Alarm | None]:
    """Returns (state after update `done`, its alarm or None)."""
    cool = cfg.cooldown * 2 ** (watched.alarms - 1) if watched.alarms else 0
    if not cfg.window or done < watched.alarm + cool:
        return watched, None
    found = parted(cfg, watched)
    if not found:
        return watched, None
    changes = [f"{NAMES[name]} {_change(*pair)}" for name, pair in found.items()]
    rose, others = changes[0], changes[1:]
    said = f"{rose} since its first updates, but {', '.join(others)}: read candidates.jsonl"
    state = dataclasses.replace(watched, alarm=done, alarms=watched.alarms + 1)
    return state, Alarm(done, said, found)


NAMES = {
    "proxy": "the judge's score of the policy's texts went",
    "audited": "the judge's score of the audited texts went",
    "audit": "the audit's score of them went",
    "length": "their length in characters went",
    "repetition": "the share of repeated phrases in a text went",
    "phrase": "the share of texts with one and the same phrase went",
    "distinct": "the share of different word pairs went",
    "entropy": "the entropy of a token went",
    "kl": "the KL to the start went",
    "verdicts": "the judge's score of the documents' own suffixes went",
}


def _change(before: float, now: float) -> str:
    return f"from {before:.3g} to {now:.3g}"


def parted(cfg: WatchConfig, watched: Watched) -> dict[str, tuple[float, float]]:
    """Returns (mean of the first updates, of the last) of the proxy and the signals that part from
    it; empty if none does."""
    found = {name: _moved(cfg, watched, name) for name in NAMES}
    for proxy, others in (("audited", ("audit",)), ("proxy", tuple(NAMES)[3:])):
        rise = found[proxy] or _constant(watched, proxy)
        if rise is None or not (rise[1] - rise[0] >= cfg.rise or rise[0] == rise[1]):
            continue
        pairs = {name: x for name in others if (x := found[name]) and _far(cfg, name, *x)}
        if pairs:
            return {proxy: rise, **pairs}
    return {}


def _moved(cfg: WatchConfig, watched: Watched, name: str) -> tuple[float, float] | None:
    """Returns the two means of a signal if they differ by more than their noise."""
    recent = cfg.audits if "audit" in name else cfg.recent
    if name not in watched.last or len(watched.last[name]) < recent:
        return None
    first_N, last_N = np.array(watched.first[name]), np.array(watched.last[name])
    noise = first_N.std(ddof=1) if len(first_N) > 1 else 0.0
    error = noise * math.sqrt(1 / len(first_N) + 1 / len(last_N))
    before, now = float(first_N.mean()), float(last_N.mean())
    return (before, now) if abs(now - before) > cfg.deviations * error else None


def _constant(watched: Watched, name: str) -> tuple[float, float] | None:
    """Returns the two equal means of a score that cannot change, such as wins among rollouts."""
    if name not in watched.last:
        return None
    values = [*watched.first[name], *watched.last[name]]
    return (values[0], values[0]) if max(values) - min(values) < CONSTANT else None


def _far(cfg: WatchConfig, name: str, before: float, now: float) -> bool:
    """True if a signal has changed by as much as its threshold, in its bad direction."""
    if name == "length":
        return max(before, now) >= cfg.length * max(min(before, now), 1.0)
    if name in ("distinct", "entropy"):
        return now <= getattr(cfg, name) * before
    if name == "audit":
        return before - now >= cfg.audit
    if name == "verdicts":
        return abs(now - before) >= cfg.verdicts
    return now - before >= getattr(cfg, name)
