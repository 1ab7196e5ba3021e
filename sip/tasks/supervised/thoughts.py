"""Next-token prediction on texts with a teacher's thoughts: all tokens of texts, thoughts and tags.

Whole texts are packed into rows (arXiv 2601.21343, chapter 2: SFT mid-training). The control
without thoughts (`keep` False) learns the same texts. Both are evaluated by the probe of thoughts
and by the likelihood of held-out texts.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from sip.data import packing, thoughts
from sip.data.thoughts import Pieces
from sip.evals import continuations
from sip.evals.thoughts import ProbeConfig
from sip.judge.build import JudgeConfig
from sip.mesh import full_rows, put_batch
from sip.padding import trunk_only
from sip.rewards.suffix_match import MatchConfig
from sip.run import Run, TaskConfig
from sip.sampling import SamplingConfig
from sip.sections import at_least, check
from sip.structs import Params, UserError
from sip.tasks import thoughts as shared
from sip.tasks.supervised.task import SupervisedTask, check_length, tokens_loss
from sip.tasks.thoughts import TRUTH, Thinking, ThoughtsConfig
from sip.text.segments import Ids


@dataclass(frozen=True, kw_only=True)
class Config(TaskConfig):
    """The task "thoughts": next-token prediction on annotated texts. Raises UserError."""

    thoughts: ThoughtsConfig  # `annotated` is needed
    keep: bool = True  # learn the thoughts; False: the same texts without them, the control
    length: int = 0  # tokens of a row; 0: model.max_len
    match: MatchConfig = MatchConfig()  # the probe's reward without a judge
    judge: JudgeConfig | None = None  # the probe's reward: the judge, which has one aspect
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    sampling: SamplingConfig = SamplingConfig()  # of the probe's answers

    def __post_init__(self):
        check("task", self, length=at_least(0))
        if not self.thoughts.annotated:
            raise UserError(
                "thoughts.annotated is empty: name JSON Lines of sip.annotate, or truth"
            )
        if not self.sampling.temperature:
            raise UserError("sampling.temperature must be positive: the probe's samples differ")
        if self.judge is not None:
            shared.check_judge(self.judge)

    def width(self, max_len: int) -> int:
        """Tokens of a row, for a model of `max_len`."""
        return self.length or max_len

    def check(self, c):
        """Raises UserError if a row is longer than the model, or for a split that a file lacks."""
        self.thoughts.check_split(c.split)
        check_length(self, c.model.max_len)

    def check_cut(self, c, cut):
        """Raises UserError if the probe's prefixes, thoughts and suffixes do not fit the model."""
        shared.check_room(c, cut, self.thoughts.tokens)

    def reads(self):
        """The files of annotated texts."""
        return self.thoughts.reads()

    def sources(self):
        """The runs or directories that the judge reads."""
        found = self.judge.sources() if self.judge else {}
        return {f"task.{key}": value for key, value in found.items()}

    def judges(self):
        """The judge of the probe."""
        return {"task.judge": self.judge} if self.judge else {}

    def reach(self):
        """Raises UserError if there are no annotated texts, or a judge does not answer."""
        self.thoughts.reach()
        if self.judge:
            self.judge.reach()

    def needs_thinker(self):
        """The thoughts may be those of the corpus's rule."""
        return "task.thoughts.annotated" if self.thoughts.annotated == TRUTH else ""

    def figures(self, truth):
        """Names of the figures of the evaluation."""
        own = shared.names(self.probe.samples, taught=True, direct=True)
        return (*own, "eval/nll_text", *(["eval/nll_thoughts"] if self.keep else []))


def build(run: Run, c, mesh) -> SupervisedTask:
    """Builds the task. `c` is the config of a supervised run. Raises UserError."""
    wanted: Config = c.task
    t = thinking(run, c, mesh)
    learned = encoded(t, shared.texts(run, wanted.thoughts, c.split), keep=wanted.keep)
    width = wanted.width(c.model.max_len)
    every = packing.joined((ids, [True] * len(ids)) for ids, _ in learned)
    rows = packing.pack(every, width=width, pad=run.tokenizer.pad)
    run.say(f"{run.name}: {packing.described(rows, c.steps * c.batch)}")
    annotated = functools.cache(lambda part: shared.texts(run, wanted.thoughts, part))
    probe = _probe(run, c, t, annotated)

    @functools.cache
    def told(part: str) -> list[Row]:
        return encoded(t, annotated(part)[: wanted.probe.prefixes], keep=wanted.keep)

    def figures(params: Params, part: str) -> dict[str, float]:
        found = probe(params, part)
        nll = likelihoods(t, params, told(part), width, batch=c.evals.batch)
        return {**{f"probe/{name}": x for name, x in found.items()}, **nll}

    def finish(params: Params) -> dict[str, Any]:
        return run.write_eval(figures(params, "test"))

    return SupervisedTask(
        lambda at: rows.batch(at, c.batch, seed=run.seed),
        *tokens_loss(c),
        lambda params: {f"eval/{name}": x for name, x in figures(params, "validation").items()},
        finish,
    )


def thinking(run: Run, c, mesh) -> Thinking:
    """Builds the parts of the probe. The control has learned no thoughts, so its prefixes have
    none."""
    wanted: Config = c.task
    own = replace(wanted.thoughts, earlier=wanted.thoughts.earlier and wanted.keep)
    return shared.thinking(run, c, mesh, own, wanted.sampling, suffix=True)


def probing(run: Run, c, mesh) -> shared.Probe:
    """Returns the probe that a run of this config has. Raises UserError."""
    return _probe(
        run, c, thinking(run, c, mesh), lambda part: shared.texts(run, c.task.thoughts, part)
    )


def _probe(run: Run, c, t: Thinking, annotated: Callable[[str], list[Pieces]]) -> shared.Probe:
    """Returns the probe on held-out places of the annotated texts of a part."""
    wanted: Config = c.task
    judging, most = (
        shared.judge_of(run, t, wanted.match, wanted.judge, 0, []),
        wanted.probe.prefixes,
    )
    held = functools.cache(lambda part: shared.held(run, t, annotated(part), part, most))
    return lambda params, part: shared.probe(
        t,
        wanted.probe,
        params,
        held(part),
        judging=judging,
        gaining=None,
        taught=True,
        batch=c.evals.batch,
        seed=run.seed,
    )


Row = tuple[Ids, list[bool]]  # token ids, and True at thoughts and their tags


def encoded(t: Thinking, texts: list[Pieces], *, keep: bool) -> list[Row]:
    """Returns annotated texts as token ids; without `keep` their thoughts are left out."""
    rows = [thoughts.encode(t.tokenizer, pieces, t.tags) for pieces in texts]
    if keep:
        return rows
    raw = [[i for i, of_thought in zip(*row, strict=True) if not of_thought] for row in rows]
    return [(ids, [False] * len(ids)) for ids in raw]


def likelihoods(
    t: Thinking, params: Params, rows: list[Row], width: int, *, batch: int
) -> dict[str, float]:
    """Returns nats per token: of texts after their thoughts, and of thoughts if there are any.

    Rows are cut to `width` tokens.
    """
    size = full_rows(t.mesh, batch)
    sums = {name: np.zeros(2) for name in ("nll_text", "nll_thoughts")}
    with jax.set_mesh(t.mesh):
        for start in range(0, len(rows), size):
            tree, of_thought_BT = _tree(rows[start : start + size], size, width, t.tokenizer.pad)
            for name, mask_BT in (("nll_text", ~of_thought_BT), ("nll_thoughts", of_thought_BT)):
                given = put_batch(t.mesh, (tree, mask_BT & tree.mask_BT))
                sums[name] += np.array(continuations.nll_program(t.cfg)(params, given), float)
    return {name: float(total / count) for name, (total, count) in sums.items() if count}


def _tree(rows: list[Row], size: int, width: int, pad: int):
    """Returns (tree without branches, of_thought_BT) of `size` rows, the last ones empty."""
    tokens_BT = np.full((size, width), pad, np.int32)
    mask_BT, of_thought_BT = np.zeros((2, size, width), bool)
    for b, (ids, of_thought) in enumerate(rows):
        n = min(len(ids), width)
        tokens_BT[b, :n], mask_BT[b, :n] = ids[:n], True
        of_thought_BT[b, :n] = of_thought[:n]
    return trunk_only(tokens_BT, mask_BT), of_thought_BT
