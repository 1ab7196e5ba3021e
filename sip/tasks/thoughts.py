"""Thoughts in training: annotated texts, prefixes to think about, answers, and the probe.

An answer is sampled after the prefix and the opening tag: a thought, the closing tag, and `suffix`
tokens of continuation. It ends there, or earlier with EOS or another opening tag. A thought that is
not closed within `tokens` tokens ends the answer: there is no continuation.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from sip.data import files, pipeline, thoughts
from sip.data.corpus import CutConfig
from sip.data.documents import PARTS, listed
from sip.data.thoughts import TAGS, Fork, Forks, Pieces, QuoteConfig, Rejected, ThoughtRule
from sip.evals import thoughts as evals
from sip.evals.continuations import batches
from sip.evals.thoughts import ProbeConfig, Thoughts
from sip.judge import build as judges
from sip.judge.build import JudgeConfig
from sip.models.config import ModelConfig
from sip.padding import bucket
from sip.rewards import suffix_match
from sip.rewards.suffix_match import MatchConfig
from sip.rewards.verdicts import Reward
from sip.run import Run
from sip.sampling import SamplingConfig
from sip.sections import at_least, check
from sip.structs import Params, Rollouts, UserError
from sip.tasks.rl.task import AnswerWriter
from sip.text.segments import Ids
from sip.text.tokenizer import Tokenizer, continuation
from sip.workdir import place

TRUTH = "truth"
ASPECT = (("match", 1.0),)  # of a judge, as its `weights`
YES = 0.5  # a judge's score above which a continuation matches


@dataclass(frozen=True)
class ThoughtsConfig:
    """Thoughts: where they come from, their tags, and their length. Raises UserError."""

    annotated: str = ""  # JSON Lines of sip.annotate | truth: of the corpus; empty: none (RL)
    tags: tuple[str, ...] = TAGS  # the strings around a thought; each is one token
    tokens: int = 48  # most tokens of a thought, without tags
    earlier: bool = True  # prefixes to think about have earlier thoughts, as texts of SFT have
    quote: QuoteConfig = QuoteConfig()
    max_skipped_fraction: float = 0.1  # 0..1; error if more of the annotated texts are unusable

    def __post_init__(self):
        share = at_least(0, most=1)
        check("thoughts", self, tokens=at_least(1), max_skipped_fraction=share)
        if len(self.tags) != 2 or len(set(self.tags)) != 2 or not all(self.tags):
            raise UserError(f"thoughts.tags must be two different strings, not {self.tags}")
        if self.annotated != TRUTH:
            object.__setattr__(self, "annotated", place(self.annotated))

    @property
    def pair(self) -> thoughts.Tags:
        """The tags."""
        return self.tags[0], self.tags[1]

    def reads(self) -> dict[str, list[str]]:
        """The files of annotated texts, by the path that names them."""
        return files.json_files(self.annotated if self.annotated != TRUTH else "")

    def reach(self) -> None:
        """Raises UserError if there is no file of annotated texts."""
        if self.annotated != TRUTH:
            files.check_json("task.thoughts.annotated", self.annotated)

    def check_split(self, split: str) -> None:
        """Raises UserError if a file has no such split."""
        if self.annotated not in ("", TRUTH):
            thoughts.slice_of(split)


def check_room(c, cut: CutConfig, tokens: int) -> None:
    """Raises UserError if a prefix, a thought of `tokens` tokens and a suffix do not fit a model,
    or if prefixes may have one token only."""
    needed = cut.prefix_max + tokens + 2 + cut.suffix
    if needed > c.model.max_len:
        raise UserError(
            f"task.thoughts.tokens {tokens}: with prefix_max, suffix and tags these are {needed} "
            f"tokens, more than model.max_len {c.model.max_len}"
        )
    if cut.prefix_min < 2:
        raise UserError("data.cut.prefix_min: must be at least 2 to think about a prefix")


def texts(run: Run, wanted: ThoughtsConfig, split: str) -> list[Pieces]:
    """Returns the annotated texts of a split. Raises UserError if there are none."""
    if wanted.annotated != TRUTH:
        found, left_out = thoughts.read(
            wanted.annotated, split, wanted.pair, wanted.max_skipped_fraction
        )
        run.left_out[f"thoughts {split}"] = left_out
        return found
    docs = run.documents(split)
    if docs.thinker is None:
        raise UserError("task.thoughts.annotated: this corpus has no rule that thinks")
    rule, found, left_out = ThoughtRule(quote=wanted.quote), [], Counter()
    for text, row in zip(docs.texts, docs.thinker.thoughts(docs.texts), strict=True):
        try:
            found.append(thoughts.screened(thoughts.placed(text, row), rule).pieces)
        except Rejected as why:
            left_out[str(why)] += 1
    run.left_out[f"thoughts {split}"] = dict(left_out)
    if not found:
        raise UserError(f"split {split!r}: no text with thoughts ({listed(left_out)})")
    return found


@dataclass(frozen=True)
class Places:
    """The places of a run to think about: those of a batch number, and held-out ones by part."""

    batch: Callable[[int], list[Fork]]
    held_out: Mapping[str, list[Fork]]


def places(run: Run, t: "Thinking", split: str, *, batch: int, steps: int, held_out: int) -> Places:
    """Builds the places of a run: where the teacher thought, or without one the forks of data.cut.

    `steps` is the number of batches, `held_out` the number of places of each evaluation.
    """
    held_parts = {part: held_out_places(run, t, part, held_out) for part in PARTS[1:]}
    if not t.wanted.annotated:
        run.announce(split, steps * batch)
        batches = pipeline.Batches(run.corpus(split).chunks, batch=batch, seed=run.seed)
        return Places(lambda at: _cut(run, batches[at]), held_parts)
    learned = _forks(run, t, texts(run, t.wanted, split), split)
    run.say(
        f"{run.name}: {len(learned):,} places to think at in {split}, "
        f"{len(learned.thoughts_T) / len(learned):.1f} tokens of the teacher's each"
    )

    def of(at: int) -> list[Fork]:
        return [learned[i] for i in pipeline.epochs(len(learned), at, batch, seed=run.seed)]

    return Places(of, held_parts)


def held_out_places(run: Run, t: "Thinking", part: str, most: int) -> list[Fork]:
    """Returns up to `most` places of a part, validation or test."""
    if t.wanted.annotated:
        return held(run, t, texts(run, t.wanted, part), part, most)
    other = run.corpus(part).chunks
    size = min(most, len(other))
    return _cut(run, pipeline.Batches(other, batch=size, seed=0, shuffle=False)[0])


def held(run: Run, t: "Thinking", annotated: list[Pieces], part: str, most: int) -> list[Fork]:
    """Returns up to `most` held-out places where the teacher thought, spread over the annotated
    texts of a part."""
    found = _forks(run, t, annotated, part)
    at = np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int)
    return [found[i] for i in dict.fromkeys(at.tolist())]


def _forks(run: Run, t: "Thinking", annotated: list[Pieces], split: str) -> Forks:
    cut, tags = run.cut, t.tags if t.wanted.earlier else None
    lengths = dict(prefix_min=cut.prefix_min, prefix_max=cut.prefix_max, suffix=cut.suffix)
    found = thoughts.forks(run.tokenizer, annotated, **lengths, tags=tags)
    if len(found) < 2:
        raise UserError(
            f"split {split!r}: {len(found)} thoughts have data.cut's {cut.prefix_min} tokens before"
            f" and {cut.suffix} after them; lower data.cut, or annotate more texts"
        )
    return found


def _cut(run: Run, rows: pipeline.Batch) -> list[Fork]:
    """Returns the forks of data.cut."""
    ends, suffix = zip(rows["tokens_BT"], rows["fork_B"].tolist(), strict=True), run.cut.suffix
    return [Fork(row[:f].tolist(), row[f : f + suffix].tolist()) for row, f in ends]


@dataclass(frozen=True)
class ThoughtWriter(AnswerWriter):
    """Samples thoughts of up to `most` tokens, and `suffix` tokens after the token `close`."""

    close: int = -1
    most: int = 0
    suffix: int = 0

    def write(self, params: Params, trunks, branches: int, how: SamplingConfig, key) -> Rollouts:
        """Samples `branches` answers to each prompt."""
        return ended(
            super().write(params, trunks, branches, how, key), self.close, self.most, self.suffix
        )


def ended(rollouts: Rollouts, close: int, most: int, suffix: int) -> Rollouts:
    """Ends each answer `suffix` tokens after its first token `close`, or, without one among the
    first `most` + 1 tokens, there.

    Where an answer ends depends on its own tokens before that alone, so the log-probabilities of
    the rest are those of a sample.
    """
    at_11R = jnp.arange(rollouts.mask_BCR.shape[-1])[None, None]
    closes_BCR = (rollouts.tokens_BCR == close) & rollouts.mask_BCR & (at_11R <= most)
    first_BC1 = jnp.argmax(closes_BCR, -1, keepdims=True)
    last_BC1 = jnp.where(closes_BCR.any(-1, keepdims=True), first_BC1 + suffix, most)
    return dataclasses.replace(rollouts, mask_BCR=rollouts.mask_BCR & (at_11R <= last_BC1))


@dataclass(frozen=True)
class Answer:
    """A sampled answer: its thought, and the continuation after it, both without tags."""

    thought: Ids
    continuation: Ids | None  # None: the thought is not closed


def answer_of(ids: Ids, close: int, most: int, stops: tuple[int, ...]) -> Answer:
    """Splits a sampled answer at the token `close`; a token of `stops` at its end is left out."""
    body = ids[:-1] if ids and ids[-1] in stops else ids
    if close in ids[: most + 1]:
        at = ids.index(close)
        return Answer(ids[:at], body[at + 1 :])
    return Answer(body[:most], None)


# (places, answers [B][K]) -> (reward_BK, valid_BK, metrics)
Judging = Callable[[Sequence[Fork], Sequence[Sequence[Answer]]], Reward]
# (parameters, part) -> figures of the probe
Probe = Callable[[Params, str], dict[str, float]]
# (parameters, places, thoughts [B][C]) -> gain_BC
Gaining = Callable[[Params, Sequence[Fork], Sequence[Sequence[Ids]]], np.ndarray]


@dataclass(frozen=True)
class Thinking:
    """The models, tokens and lengths that tasks of thoughts share."""

    cfg: ModelConfig
    mesh: jax.sharding.Mesh
    tokenizer: Tokenizer
    wanted: ThoughtsConfig
    cut: CutConfig
    sampling: SamplingConfig
    tags: tuple[int, int]  # token ids
    suffix: int  # tokens of continuation that are sampled; 0: thoughts alone

    @property
    def width(self) -> int:
        """Tokens of a padded prefix with its opening tag."""
        return bucket(self.cut.prefix_max + 1, 16)

    @property
    def stops(self) -> tuple[int, ...]:
        """Tokens that end an answer: EOS and its like, and another thought."""
        return (*self.tokenizer.stops, self.tags[0])

    def writer(self) -> ThoughtWriter:
        """Returns the sampler of answers."""
        stops = self.stops if self.suffix else (*self.stops, self.tags[1])
        return ThoughtWriter(
            self.cfg,
            self.mesh,
            self.tokenizer,
            self.width,
            self.wanted.tokens + 1 + self.suffix,
            stops,
            self.tags[1],
            self.wanted.tokens,
            self.suffix,
        )

    def prompt(self, fork: Fork) -> Ids:
        """Returns what an answer follows: the prefix and the opening tag."""
        return [*fork.prefix, self.tags[0]]

    def answers(self, ids: Sequence[Sequence[Ids]]) -> list[list[Answer]]:
        """Splits sampled answers [B][K]."""
        split = lambda one: answer_of(one, self.tags[1], self.wanted.tokens, self.stops)
        return [[split(one) for one in row] for row in ids]

    def before(self, fork: Fork) -> str:
        """Decodes the prefix without the earlier thoughts."""
        return self.tokenizer.decode(thoughts.outside(fork.prefix, self.tags))

    def text(self, fork: Fork, ids: Ids) -> str:
        """Decodes tokens as a continuation of the prefix."""
        return continuation(self.tokenizer, fork.prefix, ids)

    def quotes(self, forks: Sequence[Fork], answers: Sequence[Sequence[Answer]]) -> np.ndarray:
        """Returns quotes_BK: True if a thought quotes the true suffix."""
        rule, found = self.wanted.quote, []
        for fork, row in zip(forks, answers, strict=True):
            forbidden = thoughts.target(self.before(fork), self.text(fork, fork.suffix), rule)
            told = [self.tokenizer.decode(x.thought) for x in row]
            found.append([thoughts.quotes(text, forbidden, rule) for text in told])
        return np.array(found)


def thinking(run: Run, c, mesh, wanted: ThoughtsConfig, sampling, *, suffix: bool) -> Thinking:
    """Builds what tasks of thoughts share; without `suffix` thoughts alone are sampled."""
    tags = thoughts.tag_ids(run.tokenizer, wanted.pair)
    steps = run.cut.suffix if suffix else 0
    return Thinking(c.model, mesh, run.tokenizer, wanted, run.cut, sampling, tags, steps)


def said(
    t: Thinking, forks: Sequence[Fork], answers: Sequence[Sequence[Answer]]
) -> list[list[str]]:
    """Returns the continuations of answers [B][K] as texts; empty where there is none."""
    return [
        ["" if x.continuation is None else t.text(fork, x.continuation) for x in row]
        for fork, row in zip(forks, answers, strict=True)
    ]


def matched(
    t: Thinking, rule: MatchConfig, forks: Sequence[Fork], answers: Sequence[Sequence[Answer]]
) -> Reward:
    """Rewards continuations that match the true suffix by a rule; no continuation is 0."""
    suffixes = [t.text(fork, fork.suffix) for fork in forks]
    reward_BK = suffix_match.reward(said(t, forks, answers), suffixes, rule)
    return reward_BK, np.ones(reward_BK.shape, bool), {}


def check_judge(judge: JudgeConfig) -> None:
    """Raises UserError if a judge cannot say that continuations match the true suffix."""
    if judge.own:
        raise UserError("judge.init_from: a policy in training cannot judge itself here")
    asked = judge.aspects()
    if len(asked) != 1 or asked[0].kind != "pointwise" or not asked[0].reference:
        raise UserError(
            f"judge.weights must name one pointwise aspect that shows a reference, such as "
            f"{ASPECT}, not {judge.weights}"
        )


def judge_of(
    run: Run, t: Thinking, rule: MatchConfig, judge: JudgeConfig | None, rows: int, heard: list
) -> Judging:
    """Returns the function that rewards continuations, by the judge, or without one by the rule.

    `heard` gets the judge's words about the first `rows` forks of each call.
    """
    if judge is None:
        return functools.partial(matched, t, rule)
    asked = judges.build(judge, run.workdir, None, t.mesh, run.tokenizer, run.seed, rows)

    def judged(forks: Sequence[Fork], answers: Sequence[Sequence[Answer]]) -> Reward:
        texts = said(t, forks, answers)
        asked_BK = np.array([[bool(text.strip()) for text in row] for row in texts])
        prefixes = [t.before(fork) for fork in forks]
        suffixes = [t.text(fork, fork.suffix) for fork in forks]
        found = asked.score(prefixes, texts, suffixes, asked_BK)
        heard[:] = found.heard
        read_BK = np.asarray(found.valid_BK)
        reward_BK = (asked_BK & read_BK & (found.scores_BK > YES)).astype(np.float32)
        return reward_BK, read_BK | ~asked_BK, found.metrics

    return judged


def probe(
    t: Thinking,
    wanted: ProbeConfig,
    params: Params,
    forks: Sequence[Fork],
    *,
    judging: Judging | None,
    gaining: Gaining | None,
    taught: bool,
    batch: int,
    seed: int,
) -> dict[str, float]:
    """Compares the rewards of continuations after the model's own thoughts and after others.

    Rewards are those of `judging` (of sampled continuations) or of `gaining` (of the true one).
    """
    prompts, key = [t.prompt(fork) for fork in forks], jax.random.key(seed)
    own = t.writer().sampled_ids(params, prompts, batch, wanted.samples, t.sampling, key)
    answers = t.answers(own)
    generic = t.tokenizer.encode(wanted.generic)[: t.wanted.tokens]
    teacher = [fork.thought[: t.wanted.tokens] for fork in forks] if taught else None
    table = evals.others(
        [[x.thought for x in row] for row in answers], generic, teacher, direct=gaining is None
    )
    rewards = (
        _judged(t, params, forks, answers, table, judging, batch, seed)
        if judging is not None
        else _gained(forks, params, answers, table, gaining, batch, t.mesh)
    )
    found = evals.figures(rewards)
    unclosed = np.mean([[x.continuation is None for x in row] for row in answers])
    quoting = float(t.quotes(forks, answers).mean())
    return {**found, "unclosed": float(unclosed), "quotes": quoting}


def _judged(t: Thinking, params, forks, answers, table, judging, batch, seed):
    """Returns reward_EK by condition, of continuations that are sampled after the thoughts."""
    whole: Thoughts = [
        [x for row in rows for x in row] for rows in zip(*table.values(), strict=True)
    ]
    drawn = evals.continued(
        params,
        t.cfg,
        t.mesh,
        forks,
        whole,
        t.tags,
        width=t.width,
        most=t.wanted.tokens,
        steps=t.suffix,
        sampling=t.sampling,
        stops=t.stops,
        batch=batch,
        pad=t.tokenizer.pad,
        seed=seed + 1,
    )
    K = len(answers[0])
    strip = lambda ids: ids[:-1] if ids and ids[-1] in t.stops else ids
    found = {evals.OWN: answers}
    for i, (name, rows) in enumerate(table.items()):
        ids = [row[i * K : (i + 1) * K] for row in drawn]
        found[name] = [
            [Answer(thought or [], strip(one)) for thought, one in zip(*both, strict=True)]
            for both in zip(rows, ids, strict=True)
        ]
    return {name: _known(judging(forks, rows)) for name, rows in found.items()}


def _known(found: Reward) -> np.ndarray:
    """Returns the rewards, NaN where they are invalid."""
    reward_BK, valid_BK, _ = found
    return np.where(valid_BK, reward_BK, np.nan)


def _gained(forks, params, answers, table, gaining, batch, mesh):
    """Returns gain_EK by condition, of the true continuation after the thoughts."""
    own = [[x.thought for x in row] for row in answers]
    table, K = {evals.OWN: own, **table}, len(own[0])
    whole = [[x for row in rows for x in row] for rows in zip(*table.values(), strict=True)]
    with jax.set_mesh(mesh):
        parts = []
        for at, live in batches(len(forks), batch):
            gain_BC = gaining(params, [forks[e] for e in at], [whole[e] for e in at])
            parts.append(gain_BC[:live])
    gain_EC = np.concatenate(parts)
    return {name: gain_EC[:, i * K : (i + 1) * K] for i, name in enumerate(table)}


def named(found: Mapping[str, float]) -> dict[str, float]:
    """Returns the probe's figures by their names in the log."""
    return {f"eval/probe/{name}": x for name, x in found.items()}


def names(samples: int, *, taught: bool, direct: bool) -> tuple[str, ...]:
    """Returns the names in the log of the probe's figures."""
    own = (*evals.names(samples, teacher=taught, direct=direct), "unclosed", "quotes")
    return tuple(f"eval/probe/{name}" for name in own)
