"""RL mid-training: a policy is rewarded for thoughts that help it to continue a text.

After a prefix and an opening tag the policy samples a thought, the closing tag and a continuation.
The policy gradient is that of exactly these sampled tokens. Rewards:

    match  1 if the continuation matches the true suffix by a rule, else 0
    judge  1 if a judge says so (aspect `match`), else 0 (arXiv 2601.21343, chapter 2)
    rlp    what the thought tells about the true suffix, in nats; no continuation is sampled
           (RLP, arXiv 2510.01265; sip/rewards/information_gain.py)

The reward sees the continuation after the closing tag only. A thought that is not closed in time
has none: its reward is 0 and counts, because a masked failure would never be unlearned. With `rlp`
0 is the reward of no thought at all, better than that of many thoughts at first, so an unclosed
thought is closed for its score; the tag that was not sampled has no gradient.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sip.data.thoughts import Fork
from sip.evals.thoughts import ProbeConfig
from sip.judge import build as judges
from sip.judge.voting import Heard
from sip.metrics import pair
from sip.rewards import information_gain
from sip.rewards.suffix_match import MatchConfig
from sip.rewards.verdicts import Reward
from sip.run import Run, TaskConfig
from sip.sections import at_least, check, fraction, one_of
from sip.structs import Params, UserError
from sip.tasks import thoughts
from sip.tasks.rl.task import RLTask
from sip.tasks.thoughts import TRUTH, Answer, Thinking, ThoughtsConfig
from sip.text.segments import Ids

MATCH, JUDGE, RLP = REWARDS = ("match", "judge", "rlp")


@dataclass(frozen=True, kw_only=True)
class Config(TaskConfig):
    """The task "thinking": thoughts are rewarded by what comes after them. Raises UserError."""

    reward: str  # match: a rule | judge: the section judge | rlp: likelihood of the true suffix
    thoughts: ThoughtsConfig = ThoughtsConfig()
    match: MatchConfig = MatchConfig()
    judge: judges.JudgeConfig | None = None  # reward judge: the judge, which has one aspect
    horizon: int = 0  # reward rlp: scored tokens of the true suffix; 0: all of them
    decay: float = 0.999  # reward rlp: decay per update of the moving average of the parameters
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    max_invalid: float = 0.5  # 0..1; reward judge: error if more verdicts of a batch are invalid

    def __post_init__(self):
        check(
            "task",
            self,
            reward=one_of(REWARDS),
            horizon=at_least(0),
            decay=fraction(),
            max_invalid=at_least(0, most=1),
        )
        if (self.reward == JUDGE) != (self.judge is not None):
            raise UserError("reward 'judge' and the section judge need each other")
        if self.judge is not None:
            thoughts.check_judge(self.judge)

    @property
    def average(self) -> float:
        """Decay of the moving average of the parameters that the reward compares with."""
        return self.decay if self.reward == RLP else 0.0

    def check(self, c):
        """Raises UserError if the other settings of the run do not fit the reward."""
        self.thoughts.check_split(c.split)
        if self.reward != RLP:
            return
        if c.objective.beta:
            raise UserError(
                "objective.beta must be 0 with task.reward rlp: a run has one reference, here the "
                "moving average"
            )
        if c.lora.rank:
            raise UserError("lora.rank must be 0 with task.reward rlp: it averages all parameters")
        if c.model.param_dtype != "float32":
            raise UserError(
                "model.param_dtype must be float32 with task.reward rlp: a moving average needs "
                "its digits"
            )

    def check_cut(self, c, cut):
        """Raises UserError if thought and suffix do not fit the model, or are not the answer."""
        thoughts.check_room(c, cut, self.thoughts.tokens)
        wanted = self.thoughts.tokens + 1 + (cut.suffix if self.reward != RLP else 0)
        if c.answer != wanted:
            said = "thought and closing tag"
            said += "" if self.reward == RLP else ", and data.cut.suffix"
            raise UserError(f"answer must be {wanted} ({said}), not {c.answer}")
        if self.horizon > cut.suffix:
            raise UserError(
                f"task.horizon {self.horizon}: must be at most data.cut.suffix {cut.suffix}"
            )

    def needs_thinker(self):
        """The thoughts may be those of the corpus's rule."""
        return "task.thoughts.annotated" if self.thoughts.annotated == TRUTH else ""

    def sources(self):
        """The runs or directories that the judge reads."""
        found = self.judge.sources() if self.judge else {}
        return {f"task.{key}": value for key, value in found.items()}

    def judges(self):
        """The judge of the rewards."""
        return {"task.judge": self.judge} if self.judge else {}

    def reads(self):
        """The files of annotated texts."""
        return self.thoughts.reads()

    def reach(self):
        """Raises UserError if there are no annotated texts, or a judge does not answer."""
        self.thoughts.reach()
        if self.judge:
            self.judge.reach()

    def figures(self, truth):
        """Names of the figures of the probe."""
        taught, direct = bool(self.thoughts.annotated), self.reward != RLP
        return thoughts.names(self.probe.samples, taught=taught, direct=direct)


def build(run: Run, c, mesh) -> RLTask:
    """Builds the task. `c` is the config of a policy-gradient run. Raises UserError."""
    wanted: Config = c.task
    t = _thinking(run, c, mesh)
    places = thoughts.places(
        run,
        t,
        c.split,
        batch=c.answered,
        steps=c.steps // c.updates_per_batch,
        held_out=wanted.probe.prefixes,
    )
    heard: list[Heard] = []  # of the judge's last call
    judging = _judging(run, c, t, heard)
    gaining = functools.partial(_gains, c, t, run.cut.suffix)

    # Cached: both `prompts` and `reward` ask for the same batch.
    batch = functools.lru_cache(maxsize=2)(places.batch)

    def reward(at: int, ids: Sequence[Sequence[Ids]]) -> Reward:
        assert judging is not None
        forks, answers = batch(at), t.answers(ids)
        reward_BK, valid_BK, found = judging(forks, answers)
        if wanted.judge is not None:
            asked_BK = np.array([[x.continuation is not None for x in row] for row in answers])
            read_BK, most = valid_BK & asked_BK, wanted.max_invalid
            judges.check_invalid(asked_BK, read_BK, most, "task.max_invalid", found)
        return reward_BK, valid_BK, found | figures(t, forks, answers, reward_BK, valid_BK)

    def gain(theta: Params, phi: Params, at: int, ids: Sequence[Sequence[Ids]]) -> Reward:
        forks, answers = batch(at), t.answers(ids)
        told = [[x.thought for x in row] for row in answers]
        gain_BK = gaining(theta, phi, forks, told)
        valid_BK = np.isfinite(gain_BK)
        found = figures(t, forks, answers, gain_BK, valid_BK)
        return np.where(valid_BK, gain_BK, 0.0), valid_BK, found

    probe = _probe(run, c, t, judging, places.held_out.__getitem__)

    def finish(params: Params) -> dict[str, Any]:
        return run.write_eval({f"probe/{k}": x for k, x in probe(params, "test").items()})

    return RLTask(
        lambda at: [t.prompt(fork) for fork in batch(at)],
        t.writer(),
        reward,
        lambda params: thoughts.named(probe(params, "validation")),
        finish,
        references=lambda at: [t.text(fork, fork.suffix) for fork in batch(at)],
        heard=lambda: tuple(heard),
        gain=gain if wanted.reward == RLP else None,
    )


def probing(run: Run, c, mesh) -> thoughts.Probe:
    """Returns the probe that a run of this config has. Raises UserError."""
    t, most = _thinking(run, c, mesh), c.task.probe.prefixes
    held = functools.cache(lambda part: thoughts.held_out_places(run, t, part, most))
    return _probe(run, c, t, _judging(run, c, t, []), held)


def _thinking(run: Run, c, mesh) -> Thinking:
    by_gain = c.task.reward == RLP
    return thoughts.thinking(run, c, mesh, c.task.thoughts, c.sampling, suffix=not by_gain)


def _judging(run: Run, c, t: Thinking, heard: list[Heard]) -> thoughts.Judging | None:
    """Returns the function that rewards continuations; None for rewards by likelihood."""
    if c.task.reward == RLP:
        return None
    return thoughts.judge_of(run, t, c.task.match, c.task.judge, c.log.heard, heard)


def _gains(c, t: Thinking, suffix: int, theta: Params, phi: Params, forks, told) -> np.ndarray:
    """Returns what thoughts tell about the true suffixes of `suffix` tokens."""
    return information_gain.reward(
        c.model,
        t.mesh,
        theta,
        phi,
        forks,
        told,
        t.tags,
        width=t.width,
        most=t.wanted.tokens,
        horizon=c.task.horizon or suffix,
        pad=t.tokenizer.pad,
    )


def _probe(
    run: Run, c, t: Thinking, judging: thoughts.Judging | None, held: Callable[[str], list[Fork]]
) -> thoughts.Probe:
    """Returns the probe on the held-out places of a part; of likelihoods without `judging`."""
    gaining = lambda params, *rest: _gains(c, t, run.cut.suffix, params, params, *rest)
    return lambda params, part: thoughts.probe(
        t,
        c.task.probe,
        params,
        held(part),
        judging=judging,
        gaining=gaining if judging is None else None,
        taught=bool(t.wanted.annotated),
        batch=c.evals.batch,
        seed=run.seed,
    )


def figures(
    t: Thinking,
    forks: Sequence[Fork],
    answers: Sequence[Sequence[Answer]],
    reward_BK: np.ndarray,
    valid_BK: np.ndarray,
) -> dict[str, tuple[float, float]]:
    """Returns the figures of the sampled thoughts, as (total, denom) by name."""
    of = lambda function: np.array([[function(x) for x in row] for row in answers])
    tokens_BK = of(lambda x: len(x.thought))
    wrong_BK = valid_BK & (reward_BK <= 0)
    return {
        "thought/unclosed": pair(of(lambda x: x.continuation is None)),
        "thought/quotes": pair(t.quotes(forks, answers)),
        "thought/empty": pair(of(lambda x: not t.tokenizer.decode(x.thought).strip())),
        "thought/tokens": pair(tokens_BK),
        # Thoughts of failures that grow while the reward does not are a sign of collapse.
        "thought/tokens_wrong": pair(tokens_BK, wrong_BK),
    }
