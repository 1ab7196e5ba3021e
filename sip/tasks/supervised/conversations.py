"""Instruction tuning: answers of conversations in a chat template.

The conversations are those of a JSON Lines file, questions about the corpus's world with faultless
answers, or the worked solutions of problems (sip/data/problems.py).
"""

import functools
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from sip.data import conversations, documents, files, packing, problems
from sip.data.conversations import Conversation, Conversations, Example, Unusable
from sip.data.packing import Rows
from sip.data.problems import ProblemsConfig
from sip.evals import answers, ground_truth
from sip.loading import LoadedModel
from sip.run import Run, TaskConfig
from sip.sections import at_least, check
from sip.structs import UserError
from sip.tasks import questions
from sip.tasks.questions import HELD_OUT, QuestionsConfig
from sip.tasks.supervised.task import SupervisedTask, check_length, tokens_loss
from sip.text import chat
from sip.workdir import place


@dataclass(frozen=True, kw_only=True)
class ChatConfig(TaskConfig):
    """Settings of a task that learns the answers of conversations. Raises UserError."""

    chat: str  # chat template: own (the tokenizer's) | harmony | turns | a .jinja file
    packed: bool = True  # several conversations in a row, without attention between them
    length: int = 0  # tokens of a row; longer conversations are left out; 0: model.max_len
    max_skipped_fraction: float = 0.1  # 0..1; error if more conversations of a split are left out

    def __post_init__(self):
        check("task", self, length=at_least(0), max_skipped_fraction=at_least(0, most=1))
        if not self.chat:
            raise UserError("task.chat: needed; the name of a chat template")
        chat.check(self.chat, "task.chat")

    def check(self, c):
        """Raises UserError if a row is longer than the model or too short for an answer."""
        check_length(self, c.model.max_len)

    def width(self, max_len: int) -> int:
        """Tokens of a row, for a model of `max_len`."""
        return self.length or max_len


# (instruction, marker that its answer has to contain)
Instructions = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Config(ChatConfig):
    """The task "conversations": answers of conversations are learned. Raises UserError.

    Exactly one of `path`, `questions` and `problems` is needed.
    """

    path: str = ""  # JSON Lines with messages, or prompt and completion: files, a folder or a glob
    questions: QuestionsConfig | None = None  # instead of a file: about the corpus's world
    problems: ProblemsConfig | None = None  # instead of a file: problems with worked solutions
    instructions: Instructions = ()  # problems: (instruction, marker) of a second turn; none: one

    def __post_init__(self):
        super().__post_init__()
        if bool(self.path) + (self.questions is not None) + (self.problems is not None) > 1:
            raise UserError("task.path, task.questions and task.problems: give one of them")
        if self.instructions and self.problems is None:
            raise UserError("task.instructions needs task.problems: a file has its own turns")
        object.__setattr__(self, "path", place(self.path))

    @property
    def named(self) -> str:
        """The path, or the source of the problems, for messages."""
        return self.path or (self.problems.path or self.problems.source if self.problems else "")

    def check(self, c):
        """Raises UserError as for other chats, or if held-out problems are to be learned."""
        check_split(self.problems, c.split)
        if self.questions is not None:
            questions.check_splits(c.split, c.evals.split)
        super().check(c)

    def reach(self):
        """Raises UserError if the file of conversations does not exist."""
        if self.questions is not None:
            return None
        if self.problems is not None:
            return self.problems.reach()
        if not self.path:
            raise UserError("task.path: needed; a JSON Lines file of conversations")
        files.check_json("task.path", self.path)

    def reads(self):
        """The files of conversations or problems."""
        return self.problems.reads() if self.problems else files.json_files(self.path)

    def needs_truth(self):
        """Questions are the ground truth's."""
        return "task.questions" if self.questions is not None else ""

    def continues(self):
        """Questions about the corpus's world: the model is also to continue the corpus."""
        return self.questions is not None

    def figures(self, truth):
        """Names of the figures of the evaluation on held-out answers, and by continuations."""
        own = tuple(f"eval/{name}" for name in answers.FIGURES)
        if not self.continues():
            return own
        asked = tuple(f"eval/{name}" for name in questions.FIGURES)
        return (*own, *asked, *ground_truth.figures(truth))


def check_split(problems: ProblemsConfig | None, split: str) -> None:
    """Raises UserError if held-out problems are to be learned."""
    if problems is not None and not split.startswith("train"):
        raise UserError(f"split must be of train with task.problems, not {split!r}")


def build(run: Run, c, mesh) -> SupervisedTask:
    """Builds the task: rows of conversations, evaluated by the likelihood of held-out answers.

    With questions, answers to held-out ones and continuations are evaluated too. `c` is the config
    of a supervised run; its evals.validation and evals.standard are numbers of rows. Raises
    UserError for a template without the turns that it needs, or an empty split.
    """
    found = splits(run, c)
    train = found[c.split]
    run.say(f"{run.name}: {packing.described(train, c.steps * c.batch)}")
    asked, suite = _evaluations(run, c, mesh) if c.task.questions else (None, None)

    def figures(params, split, most):
        model = LoadedModel(params, c.model, run.tokenizer, mesh)
        own = answers.evaluate(model, found[split], most=most, batch=c.evals.batch)
        return own if asked is None else {**own, **asked(params, split)}

    def during(params):
        now = figures(params, "validation", c.evals.validation)
        own = {f"eval/{name}": value for name, value in now.items()}
        return own if suite is None else {**own, **ground_truth.during(suite, params)}

    def finish(params):
        own = figures(params, c.evals.split, c.evals.standard)
        return run.write_eval(own) if suite is None else ground_truth.finish(suite, params, **own)

    return SupervisedTask(
        lambda at: train.batch(at, c.batch, seed=run.seed), *tokens_loss(c), during, finish
    )


def splits(run: Run, c) -> dict[str, Rows]:
    """Returns the rows of the run's split and of the held-out ones, by split. Raises UserError."""
    return _asked(run, c) if c.task.questions else _of_file(run, c)


def _of_file(run: Run, c) -> dict[str, Rows]:
    """The rows of the conversations of a file, or of worked problems, by split."""
    found, parts = examples(run, c), (c.split, "validation", c.evals.split)
    return {each: rows(run, c, found, each, c.task.named) for each in parts}


def _asked(run: Run, c) -> dict[str, Rows]:
    """The rows of the questions of the run's split and of the held-out parts, by split."""
    wanted: QuestionsConfig = c.task.questions
    form = conversations.named_format(c.task.chat, run.tokenizer, run.workdir)
    truth = questions.truth(run, "task.questions")

    def of(part: str, *how: Any) -> Rows:
        asked = [conversations.answered(x.text, x.answer) for x in truth.ask(part, *how)]
        found = [(one, conversations.examples(form, one)) for one in asked]
        longest = max(len(each.ids) for _, some in found for each in some)
        if longest > (width := c.task.width(c.model.max_len)):
            raise UserError(
                f"task.length: a row has {width} tokens, a question and answer {longest}"
            )
        return packed(run, c, found)

    held_out = {part: of(part, wanted.held_out, 0, 0.0) for part in HELD_OUT}
    return {**held_out, c.split: of(c.split, wanted.count, run.seed, wanted.provoking)}


def _evaluations(run: Run, c, mesh):
    """The evaluations of answers to questions and of continuations."""
    form = conversations.named_format(c.task.chat, run.tokenizer, run.workdir)
    asked = questions.evaluation(run, c.task.questions, form, c.model, mesh, c.evals.batch)
    return asked, ground_truth.suite(run, c.evals, c.model, mesh, c.log.samples)


Found = list[tuple[Conversation, list[Example]]]


def examples(run: Run, c) -> Found:
    """Returns the conversations of the task with their examples. Raises UserError as `fitting`."""
    wanted: Config = c.task
    read = _worked(run, wanted) if wanted.problems else None
    read = read or _read(wanted.path, wanted.max_skipped_fraction)
    return fitting(run, c, read, wanted.named)


def fitting(run: Run, c, read: Conversations, named: str) -> Found:
    """Returns conversations with their examples, all of which fit a row.

    `named` is their source, for messages. Raises UserError if too many cannot be used, or for a
    template that cannot teach.
    """
    wanted: ChatConfig = c.task
    form = conversations.named_format(wanted.chat, run.tokenizer, run.workdir)
    width, kept, first = wanted.width(c.model.max_len), [], {}
    left_out = Counter(read.left_out)
    for one in read.rows:
        try:
            some = conversations.examples(form, one)
            if max(len(example.ids) for example in some) > width:
                raise Unusable(f"longer than {width} tokens")
            kept.append((one, some))
        except Unusable as error:
            left_out[str(error)] += 1
            first.setdefault(str(error), one.at)
    said = f"{left_out.total():,} of {read.read:,} conversations"
    if first and (left_out.total() > wanted.max_skipped_fraction * read.read or not kept):
        at = next(iter(first.values()))
        raise UserError(
            f"{at}: {said} cannot be used, more than task.max_skipped_fraction="
            f"{wanted.max_skipped_fraction} allows: {documents.listed(left_out)}; choose another "
            "task.chat, a larger task.length, or raise task.max_skipped_fraction"
        )
    if left_out:
        run.say(f"{named}: {said} are left out: {documents.listed(left_out)}")
        run.left_out[c.split] = dict(left_out)
    return kept


def rows(run: Run, c, found: Found, split: str, named: str) -> Rows:
    """Returns the rows of a split. Raises UserError if it has no conversation."""
    chosen = documents.select(found, split, lambda one: one[0].part)
    if not chosen:
        raise UserError(
            f"{named}: no conversation in split {split!r}; the first question decides about "
            "train (90 %), validation (5 %) and test (5 %), so a file needs some hundred of them"
        )
    return packed(run, c, chosen)


def packed(run: Run, c, found: Found) -> Rows:
    """Packs the examples of conversations into rows."""
    pairs = ((each.ids, each.learned) for _, some in found for each in some)
    return packing.pack(
        packing.joined(pairs),
        width=c.task.width(c.model.max_len),
        pad=run.tokenizer.pad,
        packed=c.task.packed,
    )


@functools.lru_cache(maxsize=8)
def _read(path: str, max_skipped_fraction: float) -> Conversations:
    """Reads a file once per process."""
    return conversations.read(path, max_skipped_fraction=max_skipped_fraction)


def _worked(run: Run, wanted: Config) -> Conversations:
    """Returns problems and their worked solutions as conversations, in the parts of the problems.

    Those without a solution are left out. With instructions a conversation has a second turn, whose
    answer is the marker and the solution once more.
    """
    cfg = wanted.problems
    assert cfg is not None  # `build` has asked
    parts, left_out = problems.load(cfg, run.config.data)
    rows, counts = [], Counter(left_out)
    for part, some in parts.items():
        for problem in some:
            if problem.solution:
                asked, said = problems.prompt(cfg, problem), problems.completion(cfg, problem)
                row = conversations.answered(asked, said)
                if wanted.instructions:
                    instruction, marker = wanted.instructions[len(rows) % len(wanted.instructions)]
                    row = conversations.talk(asked, said, instruction, f"{marker} {said}")
                rows.append(replace(row, at=f"{cfg.path or cfg.source}: {part}", own_part=part))
            else:
                counts["without a worked solution"] += 1
    return Conversations(rows, len(rows) + counts.total(), dict(counts))
