"""Training a policy by rewards of its answers to prompts: RLHF, RLAIF, and rewards of your own.

Prompts are those of a JSON Lines file (sip/data/prompts.py), of problems (sip/data/problems.py) or
questions about the corpus's world, answered up to a stop token; or prefixes of the corpus,
continued by `answer` tokens. A reward is a reward model, the judge of the section `judge`, the
check of answers to problems (sip/rewards/answers.py), the vote of the answers themselves
(sip/rewards/majority.py), chance, or a Python function (sip/rewards/functions.py). Several have
weights, and each is logged by its own name. An answer that one of them skips is masked, except
where votes have no majority: there the other rewards count alone.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sip.data import chunks, conversations, files, pipeline
from sip.data import problems as problem_sets
from sip.data import prompts as prompt_files
from sip.data.documents import PARTS, Truth, listed
from sip.data.problems import ProblemsConfig
from sip.data.prompts import Prompt
from sip.evals import ground_truth
from sip.evals.continuations import SAMPLES
from sip.evals.ground_truth import EvalConfig
from sip.judge import build as judges
from sip.judge.voting import Heard
from sip.loading import source_dir
from sip.metrics import pair
from sip.rewards import answers as answer_checks
from sip.rewards import functions, majority, reward_model
from sip.rewards.answers import AnswersConfig
from sip.rewards.majority import MajorityConfig
from sip.rewards.verdicts import Reward
from sip.run import Run, TaskConfig
from sip.sections import at_least, check
from sip.structs import Params, UserError
from sip.tasks import questions, sampled
from sip.tasks.questions import QuestionsConfig
from sip.tasks.rl import problems, self_training
from sip.tasks.rl.task import AnswerWriter, RLTask
from sip.tasks.sampled import Sampled, Wanted
from sip.text import chat
from sip.text.segments import Ids
from sip.text.tokenizer import Tokenizer
from sip.training import loop
from sip.workdir import place

JUDGE, ANSWERS, MAJORITY, RANDOM = "judge", "answers", "majority", "random"
OF_PROBLEMS = (ANSWERS, MAJORITY, RANDOM)
WITHOUT_LABELS = (MAJORITY, RANDOM)  # their evaluation is by the check of answers


@dataclass(frozen=True, kw_only=True)
class Config(TaskConfig):
    """The task "prompts": a policy is rewarded for its answers. Raises UserError.

    A reward is "answers", "majority", "random", "judge", FILE.py:FUNCTION, or a run or checkpoint
    directory of a reward model.
    """

    # A reward, or several: "reward*weight,reward,.." or ((reward, weight), ..).
    reward: str | tuple[tuple[str, float], ...]
    prompts: str = ""  # JSON Lines with `prompt`: files, folder, glob; empty: problems or prefixes
    questions: QuestionsConfig | None = None  # about the corpus's world, in the place of prompts
    problems: ProblemsConfig | None = None  # problems with answers, in the place of prompts
    answers: AnswersConfig | None = None  # the check of answers: rewards answers, majority, random
    samples: int = 0  # answers to each test problem before and after the run, for mean@n; 0: none
    chat: str = ""  # chat template of the prompts, as in `pairs`; empty: prompts are plain texts
    majority: MajorityConfig | None = None  # votes, if they are among the rewards
    judge: judges.JudgeConfig | None = None  # the judge, if it is among the rewards
    continuations: EvalConfig | None = None  # no file: also the evaluation of runs on documents
    held_out: int = 64  # number of prompts of each evaluation
    cut_penalty: float = 0.0  # subtracted from the reward of an answer without a stop token
    soft_tokens: int = 0  # tokens before the limit in which cut_penalty grows from 0; 0: none
    mask_cut: bool = False  # leaves answers without a stop token out, as if they had no reward
    max_skipped_fraction: float = 0.1  # 0..1; error if more of the prompts are unusable
    max_invalid: float = 0.5  # 0..1; error if more of a batch have no reward; ties do not count

    def __post_init__(self):
        unit = dict.fromkeys(("max_skipped_fraction", "max_invalid"), at_least(0, most=1))
        check("task", self, held_out=at_least(1), cut_penalty=at_least(0), **unit)
        check("task", self, soft_tokens=at_least(0), samples=at_least(0, most=1024))
        object.__setattr__(self, "prompts", place(self.prompts))
        object.__setattr__(self, "reward", _several(self.reward))
        self._check_prompts()
        self._check_rewards()

    def _check_prompts(self):
        chat.check(self.chat, "chat")
        self._check_cut()
        given = (bool(self.prompts), self.questions is not None, self.problems is not None)
        if sum(given) > 1:
            raise UserError("prompts, questions and problems: give one of them")
        if self.questions is not None and not self.chat:
            raise UserError("chat: needed with questions; the name of a chat template")
        if self.continuations is not None and (self.prompts or self.problems is not None):
            raise UserError("continuations needs a corpus, not a file of prompts or problems")

    def _check_rewards(self):
        if not self.rewards or not all(name for name, _ in self.rewards):
            raise UserError("reward is empty: name judge, FILE.py:FUNCTION or a reward model's run")
        for name, weight in self.rewards:
            if not np.isfinite(weight) or weight <= 0:
                raise UserError(f"reward: the weight of {name!r} must be positive, not {weight}")
            if functions.is_function(name):
                functions.load(name)  # checks that it exists
        labels = [label(name) for name, _ in self.rewards]
        if len(set(labels)) < len(labels):
            raise UserError(f"reward: names in the log must differ, not {', '.join(labels)}")
        judged = JUDGE in (name for name, _ in self.rewards)
        if judged != (self.judge is not None):
            raise UserError("reward 'judge' and the section judge need each other")
        self._check_answers()
        if self.judge is not None and self.judge.own:
            raise UserError("judge.init_from: a policy in training cannot judge itself here")

    def _check_cut(self) -> None:
        if not self.ends and (self.chat or self.cut_penalty or self.mask_cut):
            raise UserError(
                "chat, cut_penalty and mask_cut need a file of prompts or problems: prefixes have "
                "no turns"
            )
        if self.mask_cut and self.cut_penalty:
            raise UserError("mask_cut and cut_penalty: give one of the two")
        if self.soft_tokens and not self.cut_penalty:
            raise UserError("soft_tokens needs cut_penalty, the penalty that grows in them")

    def _check_answers(self) -> None:
        names = [name for name, _ in self.rewards]
        checked = any(name in OF_PROBLEMS for name in names)
        if checked != (self.answers is not None) or (checked and self.problems is None):
            said = " and ".join(repr(name) for name in names if name in OF_PROBLEMS) or "'answers'"
            raise UserError(f"reward {said} needs the sections problems and answers, and they it")
        if (MAJORITY in names) != (self.majority is not None):
            raise UserError("reward 'majority' and the section majority need each other")
        if self.samples and not checked:
            raise UserError("samples needs the reward 'answers', which checks them")
        if self.problems is not None and self.answers is not None:
            answer_checks.check_fits(self.answers, self.problems)

    @property
    def ends(self) -> bool:
        """True if an answer ends with a stop token: not for continuations of prefixes."""
        return bool(self.prompts) or self.problems is not None or self.questions is not None

    @property
    def rewards(self) -> tuple[tuple[str, float], ...]:
        """The rewards with their weights."""
        return ((self.reward, 1.0),) if isinstance(self.reward, str) else self.reward

    @property
    def evaluated(self) -> tuple[tuple[str, float], ...]:
        """The rewards of the evaluation: the check of answers in the place of votes and chance."""
        kept = tuple((name, x) for name, x in self.rewards if name not in WITHOUT_LABELS)
        none = len(kept) == len(self.rewards) or ANSWERS in (name for name, _ in kept)
        return kept if none else (*kept, (ANSWERS, 1.0))

    def check(self, c):
        """Raises UserError if the run's split does not fit the prompts."""
        if self.questions is not None:
            questions.check_splits(c.split, "test")
        if self.prompts and c.split not in PARTS:
            raise UserError(f"split must be one of {PARTS} with task.prompts, not {c.split!r}")
        if self.problems is not None and c.split != "train":
            raise UserError(
                f"split must be train with task.problems, not {c.split!r}: the other parts are for "
                "evaluation"
            )
        if self.majority is not None and self.majority.easiest < 1 and not c.init_from:
            raise UserError("task.majority.easiest needs init_from, whose answers rank problems")
        if self.soft_tokens >= c.answer:
            raise UserError(f"task.soft_tokens {self.soft_tokens}: must be below answer {c.answer}")

    def sources(self):
        """The runs or directories that the task reads: reward models, the judge."""
        found = {
            f"task.reward[{i}]" if len(self.rewards) > 1 else "task.reward": name
            for i, (name, _) in enumerate(self.rewards)
            if name not in (JUDGE, *OF_PROBLEMS) and not functions.is_function(name)
        }
        theirs = self.judge.sources() if self.judge is not None else {}
        if self.majority is not None:
            found["task.majority.teacher"] = self.majority.teacher
        if self.continuations is not None:
            found |= self.continuations.sources("task.continuations")
        return found | {f"task.{key}": value for key, value in theirs.items()}

    def reads(self):
        """The files of prompts or problems, and of rewards."""
        own = [name for name, _ in self.rewards if functions.is_function(name)]
        asked = self.problems.reads() if self.problems else files.json_files(self.prompts)
        return {**asked, **{path: [path] for path in map(functions.file_of, own)}}

    def needs_truth(self):
        """Questions are the ground truth's, and the judge may be."""
        if self.questions is not None:
            return "task.questions"
        judged = self.judge is not None and self.judge.backend == "truth"
        return "task.judge.backend" if judged else ""

    def figures(self, truth):
        """Names of the figures of the evaluation: each reward, their sum, and by the truth."""
        own = [f"eval/reward/{label(name)}" for name, _ in self.evaluated]
        own += ["eval/reward", "eval/answer_tokens", *(["eval/cut"] if self.ends else [])]
        own += [f"eval/{name}" for name in questions.FIGURES if self.questions is not None]
        return (*own, *(ground_truth.figures(truth) if self.continuations else ()))

    def judges(self):
        """The judges of the rewards and of the evaluation by continuations."""
        found = {"task.judge": self.judge} if self.judge else {}
        evals = self.continuations
        return found | ({"task.continuations.judge": evals.judge} if evals and evals.judge else {})

    def reach(self):
        """Raises UserError if the file of prompts does not exist, or a server does not answer."""
        files.check_json("task.prompts", self.prompts)
        for asked in (self.judge, self.continuations, self.problems):
            if asked is not None:
                asked.reach()


def _several(reward: str | tuple) -> str | tuple[tuple[str, float], ...]:
    """Returns the (reward, weight) pairs of "reward*weight,reward,.."; one reward as it stands."""
    if not isinstance(reward, str) or not set(",*") & set(reward) or Path(place(reward)).exists():
        return reward
    found = []
    for part in reward.split(","):
        name, star, weight = part.strip().rpartition("*")
        try:
            found.append((name.strip(), float(weight)) if star else (weight, 1.0))
        except ValueError:
            raise UserError(f"reward {part!r}: no number after *, as in my.py:f*0.5") from None
    return tuple(found)


def label(name: str) -> str:
    """Returns the name of a reward in the log: the function, or the last part of a path."""
    return name.rpartition(":")[2] if functions.is_function(name) else Path(name).name


@dataclass(frozen=True)
class Answers:
    """K answers to each of B prompts, as token ids and as texts; cut_BK: without a stop token."""

    prompts: Sequence[Prompt]
    ids: Sequence[Sequence[Ids]]
    texts: Sequence[Sequence[str]]
    cut_BK: np.ndarray
    at: int = 0  # number of the batch


@dataclass(frozen=True)
class Part:
    """The rewards of one source.

    silent_B is True for a prompt about which it says nothing, without a failure: votes without a
    majority.
    """

    reward_BK: np.ndarray
    valid_BK: np.ndarray
    metrics: dict[str, Any]
    silent_B: np.ndarray

    @property
    def failed_BK(self) -> np.ndarray:
        """True for an answer without a reward because the source failed or skipped it."""
        return ~self.valid_BK & ~self.silent_B[:, None]


Source = Callable[[Answers], Part]


@dataclass(frozen=True)
class Prompts:
    """The prompts of a run: those of a batch number, and held-out ones by part.

    `teacher` has a frozen model's answers by problem, if they are the labels.
    """

    batch: Callable[[int], list[Prompt]]
    held_out: Mapping[str, list[Prompt]]
    stops: tuple[int, ...]  # token ids that end an answer; none if it has a fixed length
    truth: Truth | None = None  # scores continuations of prefixes
    teacher: Mapping[str, Sequence[str | None]] | None = None
    figures: Callable[[Params, str], dict[str, float]] | None = None  # of answers to questions


def build(run: Run, c, mesh) -> RLTask:
    """Builds the task. `c` is the config of a policy-gradient run. Raises UserError."""
    wanted: Config = c.task
    asked = _asked(run, c, mesh)
    every = dict((*wanted.rewards, *wanted.evaluated))
    heard: list[Heard] = []  # of the judge's last call
    made = {name: _source(name, run, c, mesh, asked, heard) for name in every}
    sources, weights = _weighted(wanted, wanted.rewards, made)
    evaluated, eval_weights = _weighted(wanted, wanted.evaluated, made)
    writer = AnswerWriter(c.model, mesh, run.tokenizer, 0, c.answer, asked.stops)
    read = functools.partial(_read, run.tokenizer, asked.stops)

    def reward(at: int, ids: Sequence[Sequence[Ids]]) -> Reward:
        read_ids = dataclasses.replace(read(asked.batch(at), ids), at=at)
        parts = {name: source(read_ids) for name, source in sources.items()}
        _check_failed(parts, wanted.max_invalid)
        found = _rewarded(parts, wanted, read_ids, c.answer)
        for name, part_BK in zip(sources, found[0], strict=False):
            _say_constant(run, name, part_BK[found[1]])
        return _without_cut(found, read_ids.cut_BK) if wanted.mask_cut else found

    def figures(params, part: str) -> tuple[dict[str, float], list[tuple[str, str]]]:
        held = asked.held_out[part]
        if not held:
            return {}, []
        ids = writer.greedy_ids(params, [x.ids for x in held], c.evals.batch)
        answers = read(held, [[each] for each in ids])
        parts = {name: source(answers) for name, source in evaluated.items()}
        scored = _rewarded(parts, wanted, answers, c.answer)
        found = _figures(scored, eval_weights, answers)
        texts = [(x.text, text) for x, (text,) in zip(held, answers.texts, strict=True)]
        more = {} if asked.figures is None else asked.figures(params, part)
        return {**found, **more}, texts

    start = _of_start(run, c, mesh, asked)

    def sampled_figures(params) -> dict[str, float]:
        held = asked.held_out["test"]
        checks = wanted.answers
        if not wanted.samples or checks is None or not held:
            return {}
        now = sampled.solve(run, _wanted(c, asked), params, writer, held)
        after = problems.figures(now, problems.votes_of(now, answer_checks.checker(checks)))
        return after | _against(start, now, after)

    evals, cfg, count = wanted.continuations, c.model, c.log.samples
    suite = evals and ground_truth.suite(run, evals, cfg, mesh, count)

    def during(params) -> dict[str, Any]:
        found, texts = figures(params, "validation")
        own: dict[str, Any] = {f"eval/{k}": v for k, v in found.items()}
        own[SAMPLES] = texts[: c.log.samples]
        return own if suite is None else {**own, **ground_truth.during(suite, params)}

    def finish(params) -> dict[str, Any]:
        own = {**figures(params, "test")[0], **sampled_figures(params)}
        return run.write_eval(own) if suite is None else ground_truth.finish(suite, params, **own)

    return RLTask(
        lambda at: [prompt.ids for prompt in asked.batch(at)],
        writer,
        reward,
        during,
        finish,
        weights,
        names=(*sources, *(["cut_penalty"] if wanted.cut_penalty else [])),
        references=lambda at: [_reference(prompt) for prompt in asked.batch(at)],
        heard=lambda: tuple(heard),
        before=_before(run, start),
    )


def _wanted(c, asked: Prompts) -> Wanted:
    """The answers that the final evaluation samples, as those of the run's start."""
    return Wanted(
        source=c.init_from,
        key="init_from",
        problems=c.task.problems,
        answers=c.task.answers,
        sampling=c.sampling,
        samples=c.task.samples,
        most=c.answer,
        batch=c.evals.batch,
        stops=asked.stops,
    )


def _of_start(run: Run, c, mesh, asked: Prompts) -> list[Sampled]:
    """Returns the start's answers to the test problems; none if the run starts afresh.

    RUN_DIR/start keeps them for a resumed run.
    """
    held = asked.held_out["test"]
    if not c.task.samples or not c.init_from or not held:
        return []
    return sampled.solved(run, "start", _wanted(c, asked), held, mesh)


def _against(start: Sequence[Sampled], now, after: Mapping[str, float]) -> dict[str, float]:
    """Returns the figures of answers against those of the start, if there is one."""
    return problems.compared(start, now, sampled.figures(start), after) if start else {}


def _before(run: Run, start: Sequence[Sampled]) -> dict[str, float]:
    """Returns the figures of the start's answers by their names in the log, and says them."""
    if not start:
        return {}
    found = {key: x for key, x in sampled.figures(start).items() if "@" in key}
    said = ", ".join(f"{key} {x:.3f}" for key, x in found.items())
    run.say(f"{run.name}: before the first step, on {len(start):,} test problems: {said}")
    return {f"eval/start/{key}": x for key, x in found.items()}


def _reference(prompt: Prompt) -> str | None:
    """Returns the right answer, or what follows a prefix in its document; None if unknown."""
    texts = (_text(prompt, key) for key in ("reference", "suffix", "answer"))
    return next((text for text in texts if text), None)


def _weighted(wanted: Config, rewards, made) -> tuple[dict[str, Source], tuple[float, ...]]:
    """Returns the sources of some rewards by their names in the log, and their weights."""
    weights = tuple(weight for _, weight in rewards)
    weights += (wanted.cut_penalty,) if wanted.cut_penalty else ()
    return {label(name): made[name] for name, _ in rewards}, weights


def _asked(run: Run, c, mesh) -> Prompts:
    if c.task.questions is not None:
        return _of_questions(run, c, mesh)
    return _of_file(run, c, mesh) if c.task.ends else _of_corpus(run, c)


def _of_file(run: Run, c, mesh) -> Prompts:
    wanted: Config = c.task
    encode, stops = prompt_files.encoding(wanted.chat, run.tokenizer, run.workdir)
    max_len = c.model.max_len - c.answer
    if wanted.problems is not None:
        name = wanted.problems.path or wanted.problems.source
        checker = answer_checks.checker(wanted.answers) if wanted.answers is not None else None
        how = encode, max_len, checker
        parts, left_out = problems.prompts_of(wanted.problems, run.config.data, *how)
    else:
        name, most = wanted.prompts, wanted.max_skipped_fraction
        parts, left_out = prompt_files.read(
            name, encode, max_len=max_len, max_skipped_fraction=most
        )
    run.left_out["prompts"] = left_out
    learned = parts[c.split]
    c.checkpoint.check_held_out(parts["validation"], name)
    if not learned:
        raise UserError(f"{name}: no prompt in split {c.split!r}, by its hash")
    run.say(_said(run.name, learned, parts, left_out))
    learned, teacher = self_training.prepared(run, c, mesh, learned, stops)
    held = {p: parts[p][: wanted.held_out] for p in PARTS[1:]}
    return Prompts(_epochs(run, c, learned), held, stops, teacher=teacher)


def _epochs(run: Run, c, learned: list[Prompt]) -> Callable[[int], list[Prompt]]:
    """Returns the prompts of a batch number, in epochs over the prompts to learn from."""
    return lambda at: [
        learned[i] for i in pipeline.epochs(len(learned), at, c.answered, seed=run.seed)
    ]


def _of_questions(run: Run, c, mesh) -> Prompts:
    """Questions about the corpus's world; the field `reference` is a faultless answer."""
    wanted: Config = c.task
    asks: Any = wanted.questions
    form = conversations.named_format(wanted.chat, run.tokenizer, run.workdir)
    truth = questions.truth(run, "task.questions")

    def made(*how: Any) -> list[Prompt]:
        found = truth.ask(*how)
        ids = questions.prompts(form, found)
        questions.check_room(ids, c.answer, c.model, "answer")
        return [
            Prompt(own, x.text, x.text, {"reference": x.answer})
            for own, x in zip(ids, found, strict=True)
        ]

    learned = made(c.split, asks.count, run.seed, asks.provoking)
    held = {part: made(part, wanted.held_out, 0, asks.provoking) for part in PARTS[1:]}
    figures = questions.evaluation(run, asks, form, c.model, mesh, c.evals.batch)
    return Prompts(_epochs(run, c, learned), held, form.stops, truth, figures=figures)


def _said(name: str, learned, parts, left_out) -> str:
    """The line about the prompts of a run."""
    counts = ", ".join(f"{len(parts[part]):,} {part}" for part in PARTS)
    median = int(np.median([len(x.ids) for x in learned]))
    line = f"{name}: prompts: {counts}; median tokens: {median}"
    return f"{line}; left out: {listed(left_out)}" if left_out else line


def _of_corpus(run: Run, c) -> Prompts:
    """Prefixes of the corpus; the field `suffix` is what follows in the document."""
    corpus = run.corpus(c.split)
    batches = pipeline.Batches(corpus.chunks, batch=c.answered, seed=run.seed)

    def made(rows, suffix: int) -> list[Prompt]:
        prefixes, suffixes, ids = chunks.texts_of(run.tokenizer, rows, suffix)
        return [
            Prompt(own, text, text, {"suffix": after})
            for own, text, after in zip(ids, prefixes, suffixes, strict=True)
        ]

    # Cached: both `prompts` and `reward` ask for the same batch.
    @functools.lru_cache(maxsize=2)
    def batch(at: int) -> list[Prompt]:
        return made(batches[at], corpus.cut.suffix)

    def held_out(part: str) -> list[Prompt]:
        other = run.corpus(part)
        size = min(c.task.held_out, len(other.chunks))
        rows = pipeline.Batches(other.chunks, batch=size, seed=0, shuffle=False)[0]
        return made(rows, other.cut.suffix)

    held = {part: held_out(part) for part in PARTS[1:]}
    return Prompts(batch, held, (), corpus.documents.truth)


def _read(tokenizer: Tokenizer, stops, prompts: Sequence[Prompt], ids) -> Answers:
    """Decodes answers as continuations of their prompts."""
    texts = problems.read(tokenizer, prompts, ids)
    cut = [[bool(stops) and not (one and one[-1] in stops) for one in row] for row in ids]
    return Answers(prompts, ids, texts, np.array(cut, bool))


def _source(name: str, run: Run, c, mesh, asked: Prompts, heard: list[Heard]) -> Source:
    """Builds a source of rewards; `heard` gets the judge's words of each call."""
    if name == MAJORITY:
        return _voted(c.task, asked.teacher)
    reward = _reward(name, run, c, mesh, asked, heard)
    return lambda x: Part(*reward(x), np.zeros(len(x.prompts), bool))


def _reward(
    name: str, run: Run, c, mesh, asked: Prompts, heard: list[Heard]
) -> Callable[[Answers], Reward]:
    """Builds a reward: a function, the judge, the check of answers, chance, or a reward model."""
    if functions.is_function(name):
        function = functions.load(name)
        return lambda x: (
            *function.reward([p.given for p in x.prompts], x.texts, [p.fields for p in x.prompts]),
            {},
        )
    if name == JUDGE:
        return _judged(run, c, mesh, asked, heard)
    if name == ANSWERS:
        return _checked(run, c.task)
    if name == RANDOM:
        return lambda x: majority.random(x.cut_BK.shape, run.seed, x.at)
    directory = source_dir(run.workdir, name, "task.reward")
    model = reward_model.load(directory, mesh, run.tokenizer, "task.reward", c.task.chat)
    return lambda x: (*model.reward([p.ids for p in x.prompts], x.ids), {})


def _checked(run: Run, wanted: Config) -> Callable[[Answers], Reward]:
    """The check of answers to problems."""
    cfg, checks = wanted.problems, wanted.answers
    assert cfg is not None and checks is not None  # Config has checked it
    checker = answer_checks.checker(checks)
    oracle = problem_sets.oracle(cfg, run.config.data)
    return lambda x: problems.reward(cfg, checker, oracle, x.prompts, x.ids, x.texts, x.cut_BK)


def _voted(wanted: Config, teacher) -> Source:
    """The majority vote of answers to problems."""
    cfg, checks, votes = wanted.problems, wanted.answers, wanted.majority
    assert cfg is not None and checks is not None and votes is not None  # Config has checked it
    checker = answer_checks.checker(checks)

    def voted(x: Answers) -> Part:
        how = teacher, x.prompts, x.texts, x.cut_BK
        found, silent_B = problems.by_majority(cfg, checker, votes, *how)
        return Part(*found, silent_B)

    return voted


def _judged(run: Run, c, mesh, asked: Prompts, heard: list[Heard]) -> Callable[[Answers], Reward]:
    """The judge's score of each answer, in the place of a reward model (RLAIF)."""
    wanted: judges.JudgeConfig = c.task.judge
    how = (run.workdir, asked.truth, mesh, run.tokenizer, run.seed, c.log.heard)
    judge = judges.build(wanted, *how)
    shows = [aspect.name for aspect in wanted.aspects() if aspect.reference]
    key = "reference" if c.task.ends else "suffix"

    def score(x: Answers) -> Reward:
        missing = [p for p in x.prompts if not _text(p, key)]
        if shows and missing:
            raise UserError(
                f"judge aspect {shows[0]!r} shows a reference, but the prompt "
                f"{missing[0].text!r:.60} has no field {key!r} with a text"
            )
        references = [_text(p, key) for p in x.prompts]
        every_BK = np.ones(x.cut_BK.shape, bool)
        found = judge.score([p.text for p in x.prompts], x.texts, references, every_BK)
        heard[:] = found.heard
        scores = np.where(found.valid_BK, found.scores_BK, 0.0).astype(np.float32)
        return scores, np.asarray(found.valid_BK), found.metrics

    return score


def _text(prompt: Prompt, key: str) -> str:
    """Returns a field of a prompt that is a text; empty if there is none."""
    found = prompt.fields[key] if key in prompt.fields else ""
    return found if isinstance(found, str) else ""


def _rewarded(parts: Mapping[str, Part], wanted: Config, x: Answers, most: int) -> Reward:
    """Returns (reward_PBK, valid_BK, metrics): an answer is valid if all rewards are.

    A reward that is silent about a prompt counts 0 for all its answers, so that the others decide;
    if all are silent, the prompt is invalid. `most` is the limit of an answer's tokens.
    """
    rewards, metrics = [], {}
    valid_BK, silent_B = np.ones(x.cut_BK.shape, bool), np.ones(len(x.prompts), bool)
    for name, part in parts.items():
        rewards.append(np.where(part.silent_B[:, None], 0.0, part.reward_BK))
        valid_BK &= part.valid_BK | part.silent_B[:, None]
        silent_B &= part.silent_B
        metrics |= {**part.metrics, f"reward/{name}": pair(part.reward_BK, part.valid_BK)}
        metrics[f"reward/{name}/skipped"] = pair(~part.valid_BK)
    if wanted.ends:
        metrics["rl/cut"] = pair(x.cut_BK)
    if wanted.cut_penalty:
        rewards.append(-overlong(x.ids, x.cut_BK, wanted.soft_tokens, most))
    return np.stack(rewards), valid_BK & ~silent_B[:, None], metrics


def overlong(ids: Sequence[Sequence[Ids]], cut_BK: np.ndarray, soft: int, most: int) -> np.ndarray:
    """Returns penalty_BK in 0..1: 1 for an answer that was cut at `most` tokens.

    In the last `soft` tokens before that it grows from 0 in proportion (DAPO's soft overlong
    punishment, arXiv 2503.14476, eq. 13).
    """
    length_BK = np.array([[len(one) for one in row] for row in ids], np.float32)
    soft_BK = (
        np.clip((length_BK - (most - soft)) / soft, 0, 1) if soft else np.zeros_like(length_BK)
    )
    return np.where(cut_BK, 1.0, soft_BK).astype(np.float32)


def _without_cut(found: Reward, cut_BK: np.ndarray) -> Reward:
    """Masks answers that were cut (DAPO's overlong filtering)."""
    reward_PBK, valid_BK, metrics = found
    return reward_PBK, valid_BK & ~cut_BK, metrics


def _say_constant(run: Run, name: str, values: np.ndarray) -> None:
    """Says, once per value, that a reward was the same for all answers of a batch."""
    if values.size > 1 and np.ptp(values) == 0:
        run.say(
            f"{run.name}: reward {name} was {values[0]:g} for every answer of a batch; a constant "
            "reward teaches nothing"
        )


def _check_failed(parts: Mapping[str, Part], most: float) -> None:
    """Raises UserError if rewards of more than the share `most` of the answers have failed."""
    failed = {name: part.failed_BK for name, part in parts.items()}
    share = np.any([*failed.values()], axis=0).mean()
    if share > most:
        why = ", ".join(f"{name} {x_BK.mean():.0%}" for name, x_BK in failed.items() if x_BK.any())
        raise UserError(
            f"{share:.0%} of a batch's answers have no reward, more than task.max_invalid={most} "
            f"allows; skipped by: {why}"
        )


def _figures(found: Reward, weights, x: Answers) -> dict[str, float]:
    """Figures of one answer per prompt: mean rewards, and length in tokens."""
    parts_PBK, valid_BK, metrics = found
    total_BK = np.einsum("P,PBK->BK", np.asarray(weights, np.float32), parts_PBK)
    shown = {k: v for k, v in metrics.items() if k.startswith("reward/") and "/skipped" not in k}
    shown |= {"reward": pair(total_BK, valid_BK)}
    shown |= {"answer_tokens": pair(np.array([[len(one) for one in row] for row in x.ids]))}
    shown |= {"cut": metrics["rl/cut"]} if "rl/cut" in metrics else {}
    return loop.ratios([shown])
