"""Tests the check of answers: its verdicts, and that no hang, crash or import can harm a run."""

import ast
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from sip.data import problems
from sip.rewards import answers
from sip.rewards.answers import AnswersConfig, Checker, Gold
from sip.rewards.majority import UNSURE, equal_by, grouped
from sip.structs import UserError

pytest.importorskip("math_verify")
pytest.importorskip("pebble")
SHARED = Path(__file__).resolve().parents[2] / "shared/data"
EQUAL = [
    ("1/2", "0.5"),
    (r"\frac{1}{2}", r"\dfrac12"),
    ("p - q", "-q+p"),
    ("x^2-1", "(x-1)(x+1)"),
    (r"\sqrt{8}", r"2\sqrt2"),
    ("1,000", "1000"),
    (r"\frac{\pi}{2}", r"\pi/2"),
    (r"(3, \frac{\pi}{2})", r"\left(3,\frac{\pi}{2}\right)"),
    (r"\{1,2\}", r"\{2,1\}"),
    ("x=5", "5"),
    (r"50\%", "0.5"),
    (r"2^{10}", "1024"),
    (r"\text{Evelyn}", "Evelyn"),
    ("[0,1)", r"\left[0,1\right)"),
    ("3!", "6"),
    ("0.25", r"\frac{1}{4}"),
    (r"90^\circ", "90"),
    (r"-\frac{1}{3}", r"\frac{-1}{3}"),
    (r"1\frac{1}{2}", "3/2"),
    (r"\log_2 8", "3"),
]
DIFFERENT = [
    ("1/2", "0.51"),
    ("x^2-1", "x^2+1"),
    ("p - q", "q-p"),
    (r"\sqrt{8}", r"2\sqrt3"),
    ("1000", "100"),
    (r"\frac{\pi}{2}", r"\pi"),
    ("(1,2)", "(2,1)"),
    (r"\{1,2\}", r"\{1,3\}"),
    ("x=5", "6"),
    (r"50\%", "0.05"),
    (r"2^{10}", "1023"),
    (r"\text{Evelyn}", "Angela"),
    ("[0,1)", "[0,1]"),
    ("3!", "7"),
    (r"\frac{1}{3}", "0.33"),
    ("-5", "5"),
    ("x+y", "x-y"),
    (r"\sqrt{2}", "1.41"),
    ("1,2", "1,2,3"),
    ("2x", "x^2"),
]
HANGS = "9^{9^{9^{9}}}"
HOSTILE = [
    *(f"{n}^{{{n}^{{{n}^{{{n}}}}}}}" for n in range(5, 18)),
    *(f"((({n}!)!)!)!" for n in range(4, 17)),
    *("(" * n + "1" + ")" * n for n in range(40, 52)),
    *(rf"\sum_{{n=1}}^{{10^{{{n}}}}} \frac{{1}}{{n^2+{n}}}" for n in range(8, 20)),
]


@pytest.fixture(scope="module")
def checker():
    """A checker with three seconds for each answer."""
    return Checker(AnswersConfig(seconds=3.0))


def check(checker, *pairs):
    return checker.verdicts([Gold(gold) for gold, _ in pairs], [said for _, said in pairs])


@pytest.mark.parametrize(
    ("how", "gold", "said", "verdict"),
    [
        ("exact", "Oxmoor", " oxmoor. ", "right"),
        ("exact", "12", "12.0", "wrong"),
        ("exact", "12", None, "unread"),
        ("numeric", "1,200", "$1200.00", "right"),
        ("numeric", "70000", "70,000%", "right"),
        ("numeric", "0.5", "1/2", "right"),
        ("numeric", "5", "-5", "wrong"),
        ("numeric", "5", "five", "unread"),
        ("numeric", "five", "5", "wrong"),
        ("numeric", "5", "5" * 41, "refused"),
        ("numeric", "204", "0204", "right"),  # an answer of AIME
    ],
)
def test_a_plain_check_needs_no_process(how, gold, said, verdict):
    checker = Checker(AnswersConfig(check=how))
    assert check(checker, (gold, said)) == [verdict] and not checker._process


@pytest.mark.slow  # processes that start, hang and are killed
def test_an_answer_that_hangs_costs_one_timeout(checker):
    """As the answer of a collapsed policy, and beside other answers that vote."""
    hanging = [(gold, HANGS) for gold in ("5", "x+1", "2x")] * 80
    asked = [[HANGS, "x+1", "1+x", "2x", "y", "x^2", "y^2", "z"]] * 8
    started = time.monotonic()
    assert set(check(checker, *hanging)) == {"timeout"}
    assert grouped(asked, equal_by(checker)) == [[UNSURE, 0, 0, 1, 2, 3, 4, 5]] * 8
    assert time.monotonic() - started < 60  # 240 and 56 timeouts of three seconds otherwise


@pytest.mark.slow  # processes that start, hang and are killed
def test_a_hang_is_masked_and_the_answers_around_it_are_right(checker):
    """Also an answer whose worker dies, and one that is too deep to look at."""
    many = [("x+1", "1+x"), ("5", HANGS), ("5", "(" * 99), ("2x", "x+x"), ("2x", "y")]
    started = time.monotonic()
    verdicts = check(checker, *many)
    assert verdicts == ["right", "timeout", "refused", "right", "wrong"]
    assert time.monotonic() - started < 60
    assert check(checker, ("x+1", "1+x"), ("5", None)) == ["right", "unread"]


def children(pid):
    """Returns the ids of the processes below a process."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], stdout=subprocess.PIPE)
    own = [int(x) for x in found.stdout.split()]
    return own + [below for one in own for below in children(one)]


def running(pid):
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def await_end(pids):
    deadline = time.monotonic() + 20
    while any(map(running, pids)):
        assert time.monotonic() < deadline, "processes outlive their parent"
        time.sleep(0.1)


@pytest.mark.slow  # as large as a training process
def test_a_large_process_has_a_checker():
    """A child counts its parent's size as its own largest one."""
    program = (
        "from sip.rewards.answers import AnswersConfig, Checker, Gold, MIB\n"
        "large = bytearray(b'x') * (MIB * 5 << 17)\n"
        "print(Checker(AnswersConfig()).verdicts([Gold('x+1')] * 2, ['1+x', 'x']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "['right', 'wrong']", done.stderr


def spent(pid):
    """The ticks of CPU time that a process has used."""
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


def kill_at_work(pid):
    """Kills a process once it has worked for a tenth of a second (10 ticks)."""
    before = spent(pid)
    while spent(pid) < before + 10:
        threading.Event().wait(0.01)
    os.kill(pid, signal.SIGKILL)


@pytest.mark.slow  # processes that start, hang and are killed
def test_a_process_that_dies_costs_its_answers_only(checker):
    assert check(checker, ("x+1", "1+x")) == ["right"]
    process = checker._process[0]
    busy = children(process.pid)[0]
    threading.Thread(target=kill_at_work, args=(busy,), daemon=True).start()
    around = [(f"x+{n}", f"{n}+x") for n in range(5)]
    verdicts = check(checker, ("5", HANGS), ("5", "8^{8^{8^{8}}}"), *around)
    assert sorted(verdicts[:2]) == ["died", "timeout"] and verdicts[2:] == ["right"] * 5
    process.kill()
    process.wait()
    # Found dead before it was asked: another one answers.
    assert check(checker, ("x+1", "1+x"), ("7", "7")) == ["right", "right"]
    assert checker._process[0] is not process


@pytest.mark.slow  # a pool that lost its workers is given up after twelve seconds
def test_a_pool_without_workers_is_replaced():
    checker = Checker(AnswersConfig(seconds=1.0))
    assert check(checker, ("x+1", "1+x")) == ["right"]
    for pid in children(checker._process[0].pid):
        os.kill(pid, signal.SIGKILL)
    after = [check(checker, ("x+1", "1+x"))[0] for _ in range(4)]
    assert after[-1] == "right" and set(after) <= {"right", "died"}


@pytest.mark.slow  # processes that start, hang and are killed
def test_a_process_is_gone_when_its_checker_is_also_in_the_middle_of_a_hang():
    checker = Checker(AnswersConfig(seconds=60.0))
    assert check(checker, ("x+1", "1+x")) == ["right"]
    process = checker._process[0]
    below = [process.pid, *children(process.pid)]
    process.stdin.write(f'[["5", "{HANGS}"]]\n')
    process.stdin.flush()
    del checker
    await_end(below)


WATCHED = """
import sys
sys.path.insert(0, {root!r})
import jax
from sip.rewards.answers import AnswersConfig, Checker, Gold
if __name__ == "__main__":
    checker = Checker(AnswersConfig())
    print(checker.verdicts([Gold("x+1")], ["1+x"]), checker._process[0].pid, flush=True)
    input()
"""


@pytest.mark.slow  # processes that start, hang and are killed
def test_workers_import_neither_jax_nor_sip(tmp_path):
    """Read from the files that the processes have mapped. A spawned child of the parent would."""
    file = tmp_path / "main.py"
    file.write_text(WATCHED.format(root=str(Path(__file__).parent.parent)))
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen([sys.executable, str(file)], **pipes) as main:
        said = main.stdout.readline()
        assert said.startswith("['right']")
        mapped = lambda pid: Path(f"/proc/{pid}/maps").read_text()
        assert "jaxlib" in mapped(main.pid), "the parent would show it"
        own = int(said.split()[-1])
        below = [own, *children(own)]
        assert len(below) >= 3
        for pid in below:
            assert "jaxlib" not in mapped(pid)
        main.stdin.write("\n")
        main.stdin.close()
    await_end(below)


def test_the_workers_script_imports_two_libraries_and_the_standard_one():
    nodes = list(ast.walk(ast.parse(answers.SCRIPT.read_text())))
    names = {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    others = {name.split(".")[0] for name in names} - sys.stdlib_module_names
    assert others == {"math_verify", "pebble"}


def test_the_librarys_own_timeout_would_count_a_hang_as_wrong_and_is_off():
    """Its exception is not an Exception: an `except Exception` around it would not catch it."""
    from math_verify.errors import TimeoutException

    assert issubclass(TimeoutException, BaseException)
    assert not issubclass(TimeoutException, Exception)
    text = answers.SCRIPT.read_text()
    assert "parsing_timeout=None" in text and "timeout_seconds=None" in text


@pytest.mark.slow  # math-verify's first comparisons take seconds
def test_equivalent_answers_are_right_and_others_wrong():
    checker = Checker(AnswersConfig(seconds=30.0))
    assert len(EQUAL) == len(DIFFERENT) == 20
    right, wrong = check(checker, *EQUAL), check(checker, *DIFFERENT)
    assert [pair for pair, v in zip(EQUAL, right, strict=True) if v != "right"] == []
    assert [pair for pair, v in zip(DIFFERENT, wrong, strict=True) if v != "wrong"] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gsm8k/test.jsonl", "math/math500_test.jsonl"])
def test_right_answers_of_benchmarks_are_accepted(name):
    """By math-verify too, which a text equal to the right answer does not reach otherwise."""
    if not (SHARED / name).exists():
        pytest.skip(f"needs {SHARED / name}")
    some, left_out = problems.read(str(SHARED / name), 0.0)
    some, checker = some[:200], Checker(AnswersConfig(seconds=30.0))
    said = [problems.extract("boxed", f"So it is $\\boxed{{{p.answer}}}$.") for p in some]
    golds = [Gold(p.answer) for p in some]
    assert checker.verdicts(golds, said) == ["right"] * 200 and not left_out
    assert checker._compared([(p.answer, p.answer) for p in some]) == ["right"] * 200
    assert checker.readable(golds) == ["right"] * 200


@pytest.mark.slow
def test_fifty_hostile_answers_among_a_thousand_take_their_time_and_no_more():
    assert len(HOSTILE) == 50
    pairs = []
    for i in range(1000):
        n, hostile = divmod(i, 20)
        pairs.append(("5", HOSTILE[n]) if hostile == 10 else (f"x+{i}", f"{i}+x"))
    checker, started = Checker(AnswersConfig()), time.monotonic()
    verdicts = np.array(check(checker, *pairs))
    seconds = time.monotonic() - started
    bad = np.arange(1000) % 20 == 10
    counts = {v: int((verdicts[bad] == v).sum()) for v in answers.VERDICTS}
    print(f"{seconds:.0f} s, hostile: {counts}")
    assert (verdicts[~bad] == "right").all()
    assert counts["timeout"] > 20 and not counts["right"] and seconds < 150
    _, valid_BK, _ = answers.reward([verdicts], [[1] * 1000])
    assert not valid_BK[0][verdicts == "timeout"].any()


def test_a_failed_check_is_masked_and_what_was_not_found_is_wrong():
    verdicts = [["right", "wrong", "timeout"], ["unread", "died", "refused"]]
    reward_BK, valid_BK, metrics = answers.reward(verdicts, [[3, 5, 9], [7, 9, 6]])
    assert reward_BK.tolist() == [[1, 0, 0], [0, 0, 0]]
    assert valid_BK.tolist() == [[True, True, False], [True, False, True]]
    assert metrics["answers/unread"] == metrics["answers/timeout"] == (1, 6)
    assert metrics["answers/right_tokens"] == (3, 1)
    assert metrics["answers/wrong_tokens"] == (5 + 7 + 6, 3)


@pytest.mark.parametrize(
    ("said", "votes"),
    [("1/2", "1/2"), ("0.50", "1/2"), (" $X$. ", "x"), (None, ""), ("7" * 99, "")],
)
def test_equal_answers_give_equal_votes(said, votes):
    assert answers.key(said) == votes


class Compares(Checker):
    """A checker that counts its comparisons: HANGS times out, "huge" dies, "{" is unread."""

    def __init__(self, check="math"):
        super().__init__(AnswersConfig(check=check))
        self.asked = []

    def _compared(self, pairs):
        self.asked += pairs
        return [self.compared(*pair) for pair in pairs]

    def compared(self, gold, said):
        if gold != said:  # math-verify does not look into equal ones
            for bad, verdict in ((HANGS, "timeout"), ("huge", "died")):
                if bad in (gold, said):
                    return verdict
        return "unread" if said == "{" else "right" if {*gold} == {*said} else "wrong"


def test_equal_answers_are_checked_once():
    """A policy that collapses to one hanging answer costs one timeout, not 256."""
    checker = Compares()
    pairs = [("xy", HANGS), ("xy", "yx")] * 128
    assert check(checker, *pairs) == ["timeout", "right"] * 128
    assert sorted(checker.asked) == sorted(pairs[:2])


def test_an_answer_that_has_timed_out_is_not_checked_with_other_right_answers():
    checker = Compares()
    pairs = [(gold, said) for gold in ("xy", "x+1", "z") for said in (HANGS, "yx")]
    found = check(checker, *pairs)
    assert found == ["timeout", "right", "timeout", "wrong", "timeout", "wrong"]
    assert [said for _, said in checker.asked].count(HANGS) == 1
    assert not checker.verdicts([], []) and len(checker.asked) == 4


@pytest.mark.parametrize(
    ("how", "golds", "verdicts"),
    [
        ("exact", ["Oxmoor", "1" * 41], ["right", "refused"]),
        ("numeric", ["1,200", r"\frac{\pi}{2}", "50%"], ["right", "unread", "right"]),
        (
            "math",
            ["1/2", "xy", "{", HANGS, "huge", "(" * 13],
            ["right"] * 2 + ["unread", "timeout", "died", "refused"],
        ),
    ],
)
def test_right_answers_are_checked_by_themselves(how, golds, verdicts):
    """Equal texts are right for `verdicts`, also those that the check cannot read."""
    checker = Compares(how)
    assert checker.readable([Gold(gold) for gold in golds]) == verdicts
    assert "1/2" not in {gold for gold, _ in checker.asked}  # plain numbers need no process


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs math_verify: pip install 'sip-jax\[rlvr\]'"):
        Checker(AnswersConfig())
    Checker(AnswersConfig(check="numeric"))
