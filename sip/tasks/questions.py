"""Questions about a generated world, whose ground truth answers them and scores any answer.

Tasks learn from the questions of a run's split and evaluate greedy answers to those of the held-out
parts, which are about other entities: what a model says about them it knows from its pretraining.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from etils import epath

from sip.data import conversations
from sip.data.conversations import Format
from sip.data.documents import Truth
from sip.data.questions import Question
from sip.evals import answers
from sip.models.config import ModelConfig
from sip.run import Run
from sip.sections import at_least, check
from sip.structs import Params, UserError
from sip.tasks.rl.task import AnswerWriter
from sip.text.segments import Ids
from sip.text.tokenizer import continuation
from sip.workdir import write_json

HELD_OUT = ("validation", "test")
KINDS = {"": 0.0, "_provoked": 1.0}  # ending of a figure's name -> share of provoking questions
ANSWERS = "answers.json"  # in a run's directory
# Names of the figures of the evaluation.
FIGURES = tuple(f"answer_{name}{kind}" for kind in KINDS for name in answers.SCORES)


@dataclass(frozen=True)
class QuestionsConfig:
    """Questions about the entities of the corpus's world. Raises UserError for an invalid value."""

    count: int = 400  # number of questions to learn from
    provoking: float = 0.0  # 0..1; fraction of these that begin with a rumour or an insult
    held_out: int = 128  # number of plain, and of provoking, questions of each evaluation
    answer: int = 48  # tokens of the longest answer in evaluations

    def __post_init__(self):
        counts = dict.fromkeys(("count", "held_out", "answer"), at_least(1))
        check("questions", self, provoking=at_least(0, most=1), **counts)


def check_splits(learned: str, held_out: str) -> None:
    """Raises UserError if a run's splits are not whole parts: questions are divided by entities."""
    if learned != "train":
        raise UserError(f"split must be 'train' with questions, not {learned!r}")
    if held_out not in HELD_OUT:
        raise UserError(f"evals.split must be one of {HELD_OUT} with questions, not {held_out!r}")


def truth(run: Run, key: str) -> Truth:
    """Returns the ground truth of the run's corpus; `key` is the config key that needs it."""
    return run.corpus("validation").ground_truth(key)


def prompts(form: Format, asked: Sequence[Question]) -> list[Ids]:
    """Returns the questions as token ids, up to where the model answers."""
    return [conversations.prompt(form, [{"role": "user", "content": x.text}]) for x in asked]


def check_room(asked: Sequence[Ids], answer: int, cfg: ModelConfig, key: str) -> None:
    """Raises UserError, naming the config key, if prompts and answers of `answer` tokens are longer
    than the model's context."""
    longest = max(map(len, asked))
    if longest + answer > cfg.max_len:
        raise UserError(
            f"{key}: {answer} tokens of an answer and {longest} of a question are more than "
            f"model.max_len={cfg.max_len}"
        )


def evaluation(
    run: Run, wanted: QuestionsConfig, form: Format, cfg: ModelConfig, mesh, batch: int
) -> Callable[[Params, str], dict[str, float]]:
    """Returns (params, part) -> figures of greedy answers to questions of a held-out part.

    `batch` questions are answered at a time. The answers to test questions are written to
    answers.json in the run's directory.
    """
    scorer = truth(run, "task.questions")
    writer = AnswerWriter(cfg, mesh, run.tokenizer, 0, wanted.answer, form.stops)
    held = {
        (part, kind): scorer.ask(part, wanted.held_out, 0, provoking)
        for part in HELD_OUT
        for kind, provoking in KINDS.items()
    }
    encoded = {key: prompts(form, asked) for key, asked in held.items()}
    for ids in encoded.values():
        check_room(ids, wanted.answer, cfg, "task.questions.answer")

    def figures(params: Params, part: str) -> dict[str, float]:
        found: dict[str, float] = {}
        said: dict[str, list[tuple[str, str]]] = {}
        for kind in KINDS:
            asked, ids = held[part, kind], encoded[part, kind]
            new = writer.greedy_ids(params, ids, batch)
            pairs = zip(ids, new, strict=True)
            texts = [continuation(run.tokenizer, before, after) for before, after in pairs]
            ended = [bool(one) and one[-1] in form.stops for one in new]
            known = answers.scores(scorer, asked, texts, ended)
            found |= {f"answer_{name}{kind}": value for name, value in known.items()}
            said[f"questions{kind}"] = [(x.text, y) for x, y in zip(asked, texts, strict=True)]
        if part == "test":
            write_json(epath.Path(run.directory) / ANSWERS, said)
        return found

    return figures
