"""A model's own answers to problems that pass a filter: learned from as conversations.

    rejection sampling    K answers to each problem; right ones are learned. Rounds are runs of a
                          recipe, each of which samples from the one before.
    self-made chains      the model answers and is asked again by one of several instructions (to
                          check, to go back, to set sub-goals, to work backwards). Both turns are
                          joined into one answer to the problem.
    by difficulty         of harder problems more answers are kept, of those that are always or
                          never solved none

The two phases of self-made chains and difficulty are our own design. They follow the abstract of
arXiv 2601.05616, whose templates, rules and settings are not published. The answers are kept in
RUN_DIR/answers, what is learned in RUN_DIR/conversations.jsonl.
"""

import copy
import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from etils import epath

from sip import processes
from sip.data import conversations, documents, packing
from sip.data import prompts as prompt_files
from sip.data.conversations import Conversation, Conversations, Format, Unusable
from sip.data.documents import PARTS
from sip.data.problems import ProblemsConfig
from sip.data.prompts import Prompt
from sip.evals.continuations import SAMPLES
from sip.rewards import answers, majority
from sip.rewards.answers import RIGHT, AnswersConfig
from sip.run import Run
from sip.sampling import SamplingConfig
from sip.sections import at_least, check, one_of
from sip.structs import UserError
from sip.tasks import sampled
from sip.tasks.rl import problems
from sip.tasks.rl.problems import Solved
from sip.tasks.rl.task import AnswerWriter
from sip.tasks.sampled import Sampled, Wanted
from sip.tasks.supervised.conversations import (
    ChatConfig,
    Instructions,
    check_split,
    fitting,
    rows,
)
from sip.tasks.supervised.task import SupervisedTask, tokens_loss
from sip.text.ngrams import ngrams
from sip.workdir import to_json, write_atomically

INSTRUCTIONS: Instructions = (
    (
        'Check your solution step by step and correct what is wrong. Begin with "Let me check:".',
        "Let me check:",
    ),
    (
        "Find the first step of your solution that you are least sure of, go back to it and go on "
        'from there in another way. Begin with "Wait,".',
        "Wait,",
    ),
    (
        "Solve the problem again in parts: name a sub-goal, reach it, then name the next one. "
        'Begin with "First goal:".',
        "First goal:",
    ),
    (
        "Solve the problem again from its end: say what would give the answer, and go back to what "
        'is known. Begin with "Working backwards:".',
        "Working backwards:",
    ),
)
RIGHT_ONES, MAJORITY = "right", "majority"
ALL, HARDER = "all", "harder"
# Reasons why an answer is left out.
CUT, UNREAD, OTHER = "without an end", "without an answer", "with an answer that is not accepted"
LONG, LOOP, UNMARKED = "too long", "with a loop", "without the instruction's marker"
COPY, ENOUGH = "copies of others", "more than are kept of a problem"
# A loop: so many words that occur more often than this. A chain of two turns may say all twice.
LOOP_WORDS, LOOP_TIMES = 8, 3
FIGURES = ("eval/accuracy", "eval/answer_tokens", "eval/cut")
CONVERSATIONS = "conversations.jsonl"


@dataclass(frozen=True, kw_only=True)
class Config(ChatConfig):
    """The task "self_made": a model's own answers to problems that pass a filter.

    Raises UserError.
    """

    problems: ProblemsConfig
    answers: AnswersConfig  # the check of answers
    sampling: SamplingConfig = SamplingConfig()  # of all answers, also those of the evaluation
    source: str = ""  # run or checkpoint directory that answers; empty: the run's init_from
    start: str = ""  # run or directory with which the evaluation compares; empty: the source
    rollouts: int = 8  # K, answers to each problem
    answer: int = 512  # most tokens of an answer, of each of its turns
    instructions: Instructions = ()  # (instruction, marker) of a second turn; none: one turn
    accept: str = "right"  # right: right answers | majority: those of the majority, without labels
    keep: str = "all"  # all | harder: more of problems with a lower pass rate, none at 0 and 1
    most: int = 4  # most answers that are kept of a problem
    longest: int = 0  # tokens; longer answers are left out, both turns together; 0: no limit
    limit: int = 0  # number of problems that are answered, the first of the split; 0: all
    samples: int = 8  # N, answers to each test problem in the final evaluation

    def __post_init__(self):
        super().__post_init__()
        check(
            "task",
            self,
            rollouts=at_least(1, most=1024),
            answer=at_least(1),
            accept=one_of((RIGHT_ONES, MAJORITY)),
            keep=one_of((ALL, HARDER)),
            most=at_least(1),
            longest=at_least(0),
            limit=at_least(0),
            samples=at_least(1, most=1024),
        )
        for instruction, marker in self.instructions:
            if not instruction.strip() or not marker.strip():
                raise UserError("task.instructions: needs pairs of an instruction and its marker")
        answers.check_fits(self.answers, self.problems)
        if self.sampling.temperature == 0 and self.rollouts > 1:
            raise UserError("task.sampling.temperature 0 gives equal answers: set rollouts to 1")
        if self.rollouts == 1 and (self.accept == MAJORITY or self.keep == HARDER):
            raise UserError("task.rollouts 1: a majority and a pass rate need several answers")

    def check(self, c):
        """Raises UserError if the run has no model to answer, or no room for the answers."""
        super().check(c)
        check_split(self.problems, c.split)
        if not self.source and not c.init_from:
            raise UserError("task.source is empty, and so is init_from: name a model to answer")
        if self.answer >= c.model.max_len:
            raise UserError(f"task.answer {self.answer}: must be below model.max_len")

    def sources(self):
        """The models that answer, by config key."""
        return {"task.source": self.source, "task.start": self.start}

    def reads(self):
        """The files of problems."""
        return self.problems.reads()

    def reach(self):
        """Raises UserError if a file of problems does not exist."""
        self.problems.reach()

    def figures(self, truth):
        """Names of the figures of the evaluation during the run."""
        return FIGURES

    def wanted(self, c, stops: tuple[int, ...], key: str) -> Wanted:
        """The answers of `source` or `start`, by key."""
        source = self.source or c.init_from
        return Wanted(
            source=source if key == "source" else self.start or source,
            key=f"task.{key}",
            problems=self.problems,
            answers=self.answers,
            sampling=self.sampling,
            samples=self.rollouts if key == "source" else self.samples,
            most=self.answer,
            batch=c.evals.batch,
            stops=stops,
        )


def build(run: Run, c, mesh) -> SupervisedTask:
    """Builds the task: the source answers first, unless RUN_DIR has its answers already.

    `c` is the config of a supervised run; its evals.validation and evals.standard are numbers of
    problems. Raises UserError if no answer passes the filter.
    """
    wanted: Config = c.task
    form = conversations.named_format(wanted.chat, run.tokenizer, run.workdir)
    encode, room = prompt_files.chatted(form), c.model.max_len - wanted.answer
    checker = answers.checker(wanted.answers)
    parts, left_out = problems.prompts_of(wanted.problems, run.config.data, encode, room, checker)
    run.left_out["problems"] = left_out
    split = lambda which, most: documents.select(
        [(part, p) for part in PARTS for p in parts[part]], which, lambda one: one[0]
    )[: most or None]
    learned, validation, test = (
        [p for _, p in split(*each)]
        for each in (
            (c.split, wanted.limit),
            ("validation", c.evals.validation),
            (c.evals.split, c.evals.standard),
        )
    )
    c.checkpoint.check_held_out(validation, "task.problems")
    for which, some in ((c.split, learned), (c.evals.split, test)):
        if not some:
            raise UserError(f"task.problems: no problem in split {which!r}")
    found = _answers(run, c, mesh, form, learned)
    talks, kept, left_out = chosen(wanted, learned, found)
    run.left_out["answers"] = left_out
    read = _written(run, talks, kept)
    train = rows(run, c, fitting(run, c, read, CONVERSATIONS), "train", CONVERSATIONS)
    run.say(f"{run.name}: {packing.described(train, c.steps * c.batch)}")
    start = sampled.solved(run, "start", wanted.wanted(c, form.stops, "start"), test, mesh)
    writer = AnswerWriter(c.model, mesh, run.tokenizer, 0, wanted.answer, form.stops)

    def during(params) -> dict[str, Any]:
        if not validation:
            return {}
        solved = _greedy(wanted, writer, params, validation, c.evals.batch)
        pairs = zip(validation[: c.log.samples], solved, strict=False)
        texts = [(asked.text, one.texts[0]) for asked, one in pairs]
        return {**_figures(solved), **({SAMPLES: texts} if texts else {})}

    def finish(params) -> dict[str, Any]:
        how = wanted.wanted(c, form.stops, "start")
        now = sampled.solve(run, how, params, writer, test)
        after = problems.figures(now, problems.votes_of(now, checker))
        found = problems.compared(start, now, sampled.figures(start), after)
        return run.write_eval({**after, **found, **kept})

    batch = lambda at: train.batch(at, c.batch, seed=run.seed)
    return SupervisedTask(batch, *tokens_loss(c), during, finish)


def _greedy(wanted: Config, writer: AnswerWriter, params, asked, batch: int) -> list[Solved]:
    """Checks one greedy answer to each problem."""
    ids = writer.greedy_ids(params, [p.ids for p in asked], batch)
    checker = answers.checker(wanted.answers)
    return problems.judged(writer, wanted.problems, checker, asked, [[one] for one in ids])


def _figures(solved: Sequence[Solved]) -> dict[str, float]:
    """Figures of one answer to each problem."""
    values = [
        ([one.passes for one in solved if one.checked]),
        [one.tokens[0] for one in solved],
        [one.cut[0] for one in solved],
    ]
    return {key: float(np.mean(each)) for key, each in zip(FIGURES, values, strict=True) if each}


def _answers(run: Run, c, mesh, form: Format, asked: Sequence[Prompt]) -> list[Sampled]:
    """Returns the source's answers, of one turn or of two that are joined."""
    wanted: Config = c.task
    how = wanted.wanted(c, form.stops, "source")
    if not wanted.instructions:
        return sampled.solved(run, "answers", how, asked, mesh)

    def opened() -> sampled.Solve:
        params, writer = sampled.model(run, how, mesh)

        def solve(some: Sequence[Prompt], start: int) -> list[Solved]:
            first = sampled.solve(run, how, params, writer, some, start)
            return again(wanted, form, params, writer, some, first, run.seed, start, how.batch)

        return solve

    more = {"instructions": wanted.instructions}
    return sampled.kept(run, "answers", how, more, asked, opened)


def again(
    wanted: Config,
    form: Format,
    params,
    writer: AnswerWriter,
    asked: Sequence[Prompt],
    first: Sequence[Solved],
    seed: int,
    start: int,
    batch: int,
) -> list[Solved]:
    """Asks once more after each finished answer, and returns both turns as one answer.

    Answer k gets instruction k, counted around. An answer that was cut, has no final answer or
    leaves no room for a second turn stays as it is, without a marker.
    """
    places, prompts = [], []
    for b, (prompt, one) in enumerate(zip(asked, first, strict=True)):
        for k, text in enumerate(one.texts):
            instruction, _ = wanted.instructions[k % len(wanted.instructions)]
            if one.cut[k] or one.answers[k] is None:
                continue
            try:
                talk = [("user", prompt.text), ("assistant", text.strip()), ("user", instruction)]
                said = [{"role": role, "content": content} for role, content in talk]
                ids = conversations.prompt(form, conversations.checked(said, answered=False))
            except Unusable:
                continue
            if len(ids) + wanted.answer <= writer.cfg.max_len:
                places.append((b, k))
                prompts.append(replace(prompt, ids=ids))
    second = _continued(wanted, params, writer, prompts, seed, start, batch)
    return _joined(first, places, second)


def _continued(wanted: Config, params, writer: AnswerWriter, asked, seed: int, start: int, batch):
    """Samples one answer to each of the second prompts, `batch` at a time."""
    # A stream of its own: the first turns have drawn from that of `start`.
    stream = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), start), 1)
    prompts = [p.ids for p in asked]
    ids = writer.sampled_ids(params, prompts, batch, 1, wanted.sampling, stream)
    return problems.judged(writer, wanted.problems, answers.checker(wanted.answers), asked, ids)


def _joined(
    first: Sequence[Solved], places: Sequence[tuple[int, int]], second: Sequence[Solved]
) -> list[Solved]:
    """Returns the answers with their second turns; the final answer is that of the second turn."""
    found = copy.deepcopy(list(first))
    for (b, k), one in zip(places, second, strict=True):
        found[b].texts[k] = f"{found[b].texts[k].strip()}\n{one.texts[0].strip()}"
        found[b].answers[k], found[b].verdicts[k] = one.answers[0], one.verdicts[0]
        found[b].cut[k], found[b].tokens[k] = one.cut[0], found[b].tokens[k] + one.tokens[0]
    return found


def fault(
    text: str,
    answer: str | None,
    *,
    cut: bool,
    accepted: bool,
    tokens: int,
    longest: int,
    marker: str,
) -> str:
    """Returns the reason why an answer is left out; empty if it passes the filter.

    `marker` is a string that the text must have; empty if there is none.
    """
    if cut:
        return CUT
    if answer is None:
        return UNREAD
    if not accepted:
        return OTHER
    if longest and tokens > longest:
        return LONG
    if looped(text):
        return LOOP
    return UNMARKED if marker not in text else ""


def looped(text: str) -> bool:
    """True if some LOOP_WORDS words in a row occur more than LOOP_TIMES times."""
    return max(Counter(ngrams(text.split(), LOOP_WORDS)).values(), default=0) > LOOP_TIMES


def quota(passed: int, of: int, most: int, keep: str) -> int:
    """Returns the number of answers that are kept of a problem with `passed` of `of` accepted.

    harder: most * (1 - passed / of), rounded up, and 0 for a problem that is always or never
    solved. So of a harder problem more is kept, as far as there are accepted answers.
    """
    if keep == ALL:
        return most
    return -(-most * (of - passed) // of) if 0 < passed < of else 0


def accepted(wanted: Config, one: Sampled) -> tuple[list[bool], int, int]:
    """Returns (accepted_K, number of accepted answers, number of answers that were decided)."""
    if wanted.accept == RIGHT_ONES:
        return [verdict == RIGHT for verdict in one.verdicts], one.right, one.checked
    label = one.vote.label
    found = [group == label and label >= 0 for group in one.groups]
    return found, sum(found), sum(group != majority.UNSURE for group in one.groups)


def chosen(
    wanted: Config, asked: Sequence[Prompt], solved: Sequence[Sampled]
) -> tuple[list[tuple[Prompt, str]], dict[str, float], dict[str, int]]:
    """Returns ([(problem, answer to learn)], figures, left_out by reason).

    Each text of a problem is learned once. The figures are numbers of answers and of problems.
    """
    markers = [marker for _, marker in wanted.instructions] or [""]
    found, left_out, lengths = [], Counter(), []
    for prompt, one in zip(asked, solved, strict=True):
        yes_K, passed, of = accepted(wanted, one)
        room, seen = quota(passed, of, wanted.most, wanted.keep), set()
        for k, text in enumerate(one.texts):
            why = fault(
                text,
                one.answers[k],
                cut=one.cut[k],
                accepted=yes_K[k],
                tokens=one.tokens[k],
                longest=wanted.longest,
                marker=markers[k % len(markers)],
            )
            why = why or (COPY if text in seen else "") or (ENOUGH if len(seen) >= room else "")
            if why:
                left_out[why] += 1
            else:
                seen.add(text)
                found.append((prompt, text))
                lengths.append(one.tokens[k])
    figures = {
        "self_made/answers": len(solved) * wanted.rollouts,
        "self_made/kept": len(found),
        "self_made/problems": len({prompt.text for prompt, _ in found}),
        "self_made/tokens": float(np.mean(lengths)) if lengths else 0.0,
    }
    return found, figures, dict(left_out)


def _written(run: Run, talks, kept: dict[str, float]) -> Conversations:
    """Writes the conversations that are learned to a file, and returns them.

    Raises UserError if there is none.
    """
    said = f"{kept['self_made/kept']:,} of {kept['self_made/answers']:,} own answers are learned"
    reasons = documents.listed(run.left_out["answers"])
    if not talks:
        raise UserError(
            f"task.source: {said}; left out: {reasons}; use a better model, more rollouts, easier "
            "problems, or keep=all"
        )
    run.say(f"{run.name}: {said}; left out: {reasons}" if reasons else f"{run.name}: {said}")
    path = epath.Path(run.directory) / CONVERSATIONS
    lines = [to_json({"prompt": p.given, "completion": text}) + "\n" for p, text in talks]
    processes.on_lead(functools.partial(write_atomically, path, "".join(lines).encode()))
    made: list[Conversation] = [
        replace(
            conversations.answered(p.given, text.strip()), at=f"{path}:{line}", own_part="train"
        )
        for line, (p, text) in enumerate(talks, 1)
    ]
    return Conversations(made, len(made))
