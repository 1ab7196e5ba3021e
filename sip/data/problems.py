"""Problems whose answers can be checked: of files, of reasoning-gym, or of the micro-world.

    file           JSON Lines or Parquet: `problem` and `answer`, a text or a number (MATH-500,
                   AIME), or `question` and an `answer` that ends with "#### ANSWER" (GSM8K)
    reasoning_gym  generated problems (extra `rlvr`) of the kinds in GENERATORS
    microworld     questions of two hops and running sums about the corpus `microworld_problems`

A line without a problem or an answer is left out and counted by its reason. The problem's part
(train, validation or test) is chosen by a hash of it, so no part has a problem of another.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sip.data import files, records
from sip.data.conversations import Unusable, check_left_out, read_rows, row_of
from sip.data.documents import PARTS, part
from sip.data.microworld.settings import PROBLEMS, ProblemWorldConfig
from sip.data.records import NOT_UTF8
from sip.sections import at_least, check, named, one_of, plain, section
from sip.structs import UserError
from sip.workdir import place

FILE, GYM, WORLD = SOURCES = ("file", "reasoning_gym", "microworld")
BOXED, WORLD_SOURCE = "boxed", "microworld_problems"
ANSWER = "{answer}"  # its place in a form that is a sentence
MARKER, SENTENCE = "marker", "sentence"  # forms beside BOXED
REASON = {  # the instruction of the default template, by the kind of form
    BOXED: "Reason step by step, and put the final answer within \\boxed{}.",
    MARKER: "Reason step by step, and end with a line that begins with {form} and has the answer.",
    SENTENCE: 'Reason step by step, and end with "{form}", with the answer for {answer}.',
}
# Reasons why a line is left out.
NO_PROBLEM, NO_ANSWER = "without a problem", "without an answer"
NO_SUCH_ANSWER = "with an answer that is neither a text nor a finite number"
TOO_LARGE = "with an answer that is too long or too deep to check"
FIELDS = ("problem", "question", "answer", "solution")  # columns of Parquet
REPEATED, IN_TEST = "copies of others", "in the test file"
TEST = re.compile(r"(?<![a-z])test(?![a-z])|math.?500", re.IGNORECASE)  # a test set's file name
BRACE, PLAIN = re.compile(r"\\(?:boxed|fbox)\s*\{|[{}]"), -1
# Limits of an answer. Longer and deeper ones would cost the checker seconds each.
MOST_CHARACTERS, MOST_DIGITS, MOST_DEPTH = 300, 40, 12
# Settings of each generator at level 1 to 5.
GENERATORS = {
    "bitwise_arithmetic": lambda n: dict(difficulty=n),
    "family_relationships": lambda n: dict(min_family_size=n + 2, max_family_size=n + 3),
    "knights_knaves": lambda n: dict(n_people=n + 1),
    "chain_sum": lambda n: dict(min_terms=2, max_terms=n + 1, min_digits=1, max_digits=n),
    "leg_counting": lambda n: dict(min_animals=n, max_animals=2 * n, max_instances=5 * n),
    "mini_sudoku": lambda n: dict(min_empty=2 * n, max_empty=2 * n + 2),
    "syllogism": lambda n: dict(allow_no=n > 1, allow_some=n > 2, allow_some_not=n > 3),
}


@dataclass(frozen=True)
class Problem:
    """A problem with its right answer."""

    text: str
    answer: str
    solution: str = ""  # worked steps without the final answer; empty if there are none
    entry: Any = None  # the record of reasoning-gym, for the generator's own check


@dataclass(frozen=True, kw_only=True)
class ProblemsConfig:
    """Problems with answers, and the form in which answers are asked for. Raises UserError."""

    source: str = FILE  # file | reasoning_gym | microworld
    path: str = ""  # file: to learn from, never a test set: files, a folder or a glob
    test: str = ""  # file: of the test part, as `path`; empty: 5 % of it, by a hash
    kinds: tuple[str, ...] = ()  # generated problems: their kinds
    level: int = 1  # generated problems: difficulty, 1 to 5
    count: int = 2000  # generated problems: number of each kind, all parts together
    template: str = ""  # prompt with {problem}; empty: the problem, and to reason step by step
    # boxed: \boxed{ANSWER}; a marker before the answer, such as Answer:; or a sentence around it,
    # such as "The answer is {answer}."
    form: str = BOXED
    max_skipped_fraction: float = 0.1  # 0..1; error if more of a file is left out

    def __post_init__(self):
        check(
            "problems",
            self,
            source=one_of(SOURCES),
            level=at_least(1, most=5),
            count=at_least(1),
            max_skipped_fraction=at_least(0, most=1),
        )
        for key in ("path", "test"):
            object.__setattr__(self, key, place(getattr(self, key)))
        if self.source == FILE and self.kinds:
            raise UserError("problems.kinds is for generated problems; a file has its own")
        if self.source != FILE and (self.path or self.test):
            raise UserError(f"problems.path and .test need source file, not {self.source}")
        known = {FILE: (), GYM: tuple(GENERATORS), WORLD: PROBLEMS}[self.source]
        if self.source != FILE and (not self.kinds or set(self.kinds) - set(known)):
            raise UserError(f"problems.kinds {self.kinds}: must be of {', '.join(known)}")
        _check_no_test(self.path)
        if self.template and "{problem}" not in self.template:
            raise UserError(f"problems.template {self.template!r:.60}: has no {{problem}}")
        if not self.form.strip():
            raise UserError("problems.form is empty: boxed, or a marker such as Answer:")
        before, answer, after = self.form.partition(ANSWER)
        if answer and not (before.strip() and after.strip()):
            raise UserError(
                f"problems.form {self.form!r:.60}: a sentence needs a word before {ANSWER} and a "
                "mark after it"
            )

    def reads(self) -> dict[str, list[str]]:
        """The files of problems, by the path that names them."""
        return {path: _listed(path)[0] for path in (self.path, self.test) if path}

    def reach(self) -> None:
        """Raises UserError if a file of problems does not exist, or is a test set to learn from."""
        if self.source == FILE and not self.path:
            raise UserError("problems.path: needed; a file of problems, JSON Lines or Parquet")
        self.check_files()
        for file in _listed(self.path)[0] if self.path else ():
            _check_no_test(file)

    def check_files(self) -> None:
        """Raises UserError if a file of problems does not exist, or has another format."""
        for key in ("path", "test"):
            if path := getattr(self, key):
                with named(f"problems.{key}"):
                    _listed(path)


def _listed(path: str) -> tuple[list[str], str]:
    """Returns the files that `path` names, and their format: Parquet if there is one, else JSON
    Lines."""
    kinds = set(map(files.format_of, files.listed_any(path)))
    kind = "parquet" if "parquet" in kinds else "jsonl"
    return files.listed(path, kind), kind


def _check_no_test(path: str) -> None:
    """Raises UserError if a file to learn from is a test set."""
    if TEST.search(Path(path).name):
        raise UserError(
            f"problems.path {path}: is a test set by its name, which is never trained on; name the "
            "other files, such as train*.jsonl, and this one in problems.test, or evaluate with "
            "python -m sip.evaluate --evals=problems"
        )


Parts = dict[str, list[Problem]]
Oracle = Callable[[str, str, str], bool]


def load(cfg: ProblemsConfig, data: Mapping[str, Any]) -> tuple[Parts, dict[str, int]]:
    """Returns ({train | validation | test: problems}, left_out by reason).

    `data` is the recipe's section of documents, which the micro-world's problems are about. Raises
    UserError if a file cannot be read, or if too much of it is left out.
    """
    if cfg.source == FILE:
        return _of_files(cfg)
    made = _of_gym(cfg) if cfg.source == GYM else _of_world(cfg, data)
    return _divided(list(made))


def _divided(problems: Sequence[Problem]) -> tuple[Parts, dict[str, int]]:
    parts: Parts = {which: [] for which in PARTS}
    unique = {problem.text: problem for problem in problems}
    for problem in unique.values():
        parts[part(problem.text)].append(problem)
    copies = len(problems) - len(unique)
    return parts, {REPEATED: copies} if copies else {}


def _of_files(cfg: ProblemsConfig) -> tuple[Parts, dict[str, int]]:
    most = cfg.max_skipped_fraction
    found, left_out = read(cfg.path, most) if cfg.path else ([], {})
    if not cfg.test:
        parts, copies = _divided(found)
        return parts, {**left_out, **copies}
    test, unread = read(cfg.test, most)
    asked = {_plain(problem.text) for problem in test}
    kept = [problem for problem in found if _plain(problem.text) not in asked]
    parts, copies = _divided(kept)
    shared = {IN_TEST: len(found) - len(kept)} if len(kept) < len(found) else {}
    left_out = Counter({**left_out, **copies, **shared}) + Counter(unread)
    return {"train": parts["train"] + parts["test"], **_rest(parts, test)}, dict(left_out)


def _rest(parts: Parts, test: list[Problem]) -> Parts:
    return {"validation": parts["validation"], "test": test}


def _plain(text: str) -> str:
    """Returns a problem's letters and digits, to find it in another file."""
    return re.sub(r"\W+", " ", text).strip().casefold()


def read(path: str, max_skipped_fraction: float) -> tuple[list[Problem], dict[str, int]]:
    """Reads problems; `path` is a file, several, a folder or a glob.

    Returns (problems, left_out by reason). Raises UserError if a file cannot be read, or if more
    than `max_skipped_fraction` of the records are left out.
    """
    if _listed(path)[1] == "parquet":
        return _of_parquet(path, max_skipped_fraction)
    found, left_out = read_rows(
        path, lambda line: problem_of(row_of(line)), what="problems",
        fields="problem: .QUESTION, answer: .ANSWER", max_skipped_fraction=max_skipped_fraction,
    )  # fmt: skip
    return [problem for _, problem in found], left_out


def _of_parquet(path: str, max_skipped_fraction: float) -> tuple[list[Problem], dict[str, int]]:
    found: list[Problem] = []
    left_out: Counter[str] = Counter()
    for file in _listed(path)[0]:
        for row, _ in records.read(file, "parquet", columns=FIELDS):
            try:
                found.append(problem_of(row))
            except Unusable as why:
                left_out[str(why)] += 1
    total = len(found) + left_out.total()
    check_left_out(path, "problems", total, left_out, max_skipped_fraction)
    return found, dict(left_out)


def problem_of(row: Mapping[str, Any]) -> Problem:
    """Returns the problem of a line or row of a file. Raises Unusable if it is left out."""
    text = next((row[key] for key in ("problem", "question") if key in row), None)
    if not isinstance(text, str) or not text.strip():
        raise Unusable(NO_PROBLEM, () if text is not None else row)
    answer = row["answer"] if "answer" in row else None
    if answer is None:
        raise Unusable(NO_ANSWER, () if "answer" in row else row)
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise Unusable(NO_SUCH_ANSWER)
    if isinstance(answer, float) and not math.isfinite(answer):  # JSON's NaN and 1e400
        raise Unusable(NO_SUCH_ANSWER)
    steps, mark, last = str(answer).rpartition("####")  # the format of GSM8K
    final = last.strip().replace(",", "") if mark else last.strip()
    solution = row["solution"] if "solution" in row else ""
    # <<16-3-4=9>> are marks for a calculator.
    solution = re.sub(r"<<[^<>]*>>", "", steps).strip() if mark else solution
    if not final:
        raise Unusable(NO_ANSWER)
    if not within_limits(final):
        raise Unusable(TOO_LARGE)
    for each in (text, final):
        if any("\ud800" <= c <= "\udfff" for c in each):
            raise Unusable(NOT_UTF8)
    return Problem(text, final, solution if isinstance(solution, str) else "")


def _of_gym(cfg: ProblemsConfig) -> Iterator[Problem]:
    """Yields generated problems; equal configs give the same ones."""
    try:
        from reasoning_gym.factory import create_dataset
    except ImportError:
        raise UserError("reasoning-gym is missing: pip install 'sip-jax[rlvr]'") from None
    for kind in cfg.kinds:
        for entry in create_dataset(kind, seed=0, size=cfg.count, **GENERATORS[kind](cfg.level)):
            yield Problem(entry["question"], str(entry["answer"]), entry=entry)


def world(data: Mapping[str, Any]):
    """Returns the world of the recipe's documents. Raises UserError if they are of another."""
    from sip.data.microworld.problems import ProblemWorld  # imports TFDS, which is slow

    if data["source"] != WORLD_SOURCE:
        raise UserError(
            f"problems.source {WORLD}: needs data.source {WORLD_SOURCE}, not {data['source']}"
        )
    return ProblemWorld(section(ProblemWorldConfig, plain(data["world"]), "data.world"))


def oracle(cfg: ProblemsConfig, data: Mapping[str, Any]) -> Oracle | None:
    """Returns the function that knows if a thought supports its conclusion; None if there is none.

    It takes the text of a problem, the thought, and the conclusion.
    """
    return world(data).supports if cfg.source == WORLD else None


def _of_world(cfg: ProblemsConfig, data: Mapping[str, Any]) -> Iterator[Problem]:
    for kind in cfg.kinds:
        for asked in world(data).problems(kind, cfg.level, cfg.count):
            yield Problem(asked.text, asked.answer, asked.thought)


def prompt(cfg: ProblemsConfig, problem: Problem) -> str:
    """Returns the prompt that asks for the answer in the wanted form."""
    if cfg.template:
        return cfg.template.replace("{problem}", problem.text)
    return f"{problem.text}\n{REASON[_kind(cfg.form)].replace('{form}', cfg.form)}"


def completion(cfg: ProblemsConfig, problem: Problem) -> str:
    """Returns the worked solution, with the final answer in the wanted form at its end."""
    final = {
        BOXED: f"\\boxed{{{problem.answer}}}",
        MARKER: f"{cfg.form} {problem.answer}",
        SENTENCE: cfg.form.replace(ANSWER, problem.answer),
    }[_kind(cfg.form)]
    return f"{problem.solution}\n{final}" if problem.solution else final


def _kind(form: str) -> str:
    return BOXED if form == BOXED else SENTENCE if ANSWER in form else MARKER


def extract(form: str, text: str, *, cut: bool = False, lines: int = 1) -> str | None:
    """Returns the answer in a text, None if there is none in the wanted form.

    A boxed answer ends with its brace, an answer after a marker with the line, or with `lines`
    lines; of several the last one counts. A sentence ends with its mark and a space after it, or
    with the text; the first one counts, as a model of documents goes on after it, perhaps with
    the next problem. `cut`: the text has no end, so its last line does not count for a marker, nor
    its last word for a sentence.
    """
    if form == BOXED:
        return _boxed(text)
    if ANSWER in form:
        found = _sentence(form, text, cut=cut, lines=lines)
        return found["answer"].strip() if found else None
    text = text.rpartition("\n")[0] if cut else text
    _, mark, last = text.rpartition(form)
    found = "\n".join(last.strip().split("\n")[:lines]).strip()
    return found if mark and found else None


def thought(form: str, text: str) -> str:
    """Returns the text before its answer; empty if there is none."""
    if ANSWER in form:
        found = _sentence(form, text)
        return text[: found.start()] if found else ""
    return text.rpartition("\\boxed" if form == BOXED else form)[0]


def _sentence(form: str, text: str, *, cut: bool = False, lines: int = 1) -> re.Match | None:
    """Finds the first sentence of the form, which is on one line if `lines` is 1.

    A mark without a space after it is a part of the answer: the point of 3.5.
    """
    before, _, after = (re.escape(part.strip()) for part in form.partition(ANSWER))
    end = rf"{after}(?=\s)" if cut else rf"(?:{after}(?=\s|$)|$)"
    dot = re.DOTALL if lines > 1 else 0
    return re.search(rf"{before}[^\S\n]+(?P<answer>\S.*?){end}", text, dot)


def _boxed(text: str) -> str | None:
    """Returns the content of the last \\boxed{} whose braces are balanced."""
    opened: list[int] = []  # where the content of each open brace begins; PLAIN: not a box's
    first, end = PLAIN, PLAIN
    for brace in BRACE.finditer(text):
        if brace[0] != "}":
            opened.append(PLAIN if brace[0] == "{" else brace.end())
        elif opened and (start := opened.pop()) > first:
            first, end = start, brace.start()
    return text[first:end].strip() or None if end != PLAIN else None


def within_limits(answer: str) -> bool:
    """True if an answer is short and flat enough to be checked."""
    if len(answer) > MOST_CHARACTERS:
        return False
    depth = deepest = 0
    for c in answer:
        depth += (c in "({[") - (c in ")}]")
        deepest = max(deepest, depth)
    return deepest <= MOST_DEPTH and not re.search(rf"\d{{{MOST_DIGITS + 1}}}", answer)
