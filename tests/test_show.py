"""Tests that examples are shown as the model sees them: tokens, loss mask, odd characters."""

from pathlib import Path

import pytest

from sip.data import __main__ as cli
from sip.data import show
from sip.data.show import CONTEXT, LEARNED, SPECIAL, Span
from sip.text.tokenizer import Byte

TOK = Byte()


def test_spans_are_stretches_of_one_role_and_part():
    ids = [TOK.bos, *TOK.encode("ab"), *TOK.encode("cd"), TOK.eos, *TOK.encode("e")]
    learned = [False] * 3 + [True] * 3 + [False]
    assert show.spans(TOK, ids, learned, [("one", 3), ("two", 6)]) == [
        Span("<s>", SPECIAL, False, "one"),
        Span("ab", CONTEXT, False, "one"),
        Span("cd", LEARNED, True, "two"),
        Span("</s>", SPECIAL, True, "two"),
        Span("e", CONTEXT, False, ""),
    ]


@pytest.mark.parametrize("text", ["plain", "<s> is text", "é\u2028\0 «x»\\n\n", "\U0001f469\u200d"])
def test_the_texts_of_spans_are_the_text_of_the_tokens(text):
    ids = [TOK.bos, *TOK.encode(text)]
    for at in range(1, len(ids)):
        rows = show.spans(TOK, ids, [i >= at for i in range(len(ids))])
        whole = "".join(row.text for row in rows if row.role != SPECIAL)
        # A span that ends inside a character shows that, and the next one the whole character.
        assert whole.replace("\ufffd", "") == text
        assert [row.text for row in rows if row.role == SPECIAL] == ["<s>"]


def test_an_example_by_hand():
    rows = [
        Span("<s>", SPECIAL, False, "prefix"),
        Span("The river ", CONTEXT, False, "prefix"),
        Span(" rose.\nIt <s>\\n\0\u2028«fell».\t", LEARNED, True, "suffix"),
        Span("</s>", SPECIAL, True, "suffix"),
    ]
    assert show.example("document 3", rows).split("\n") == [
        "document 3",
        "  context  prefix  «<s>»The river␣",
        "  learned  suffix  ␣rose.\\n",
        "                   It <s>\\\\n\\x00\\u2028\\xabfell\\xbb.\\t«</s>»",
    ]
    assert show.example("one", [Span("a", CONTEXT, False)]) == "one\n  context  a"


def test_an_escaped_text_has_one_meaning():
    text = "\\n \n \x1b[2K \u202e ␣ é 世 \ue000"
    assert show.escaped(text) == "\\\\n \\n \\x1b[2K \\u202e \\u2423 é 世 \\ue000"


TEXT = str(Path(__file__).parents[1] / "configs" / "text.py")
RIVERS = "\n\n".join(f"The river {i} rose.\nIt was long." for i in range(40))


def shown(tmp_path, capsys, *flags):
    path = tmp_path / "rivers.txt"
    path.write_text(RIVERS)
    cut = [f"--config.data.cut.{k}" for k in ("prefix_min=11", "prefix_max=12", "suffix=9")]
    own = [f"--config={TEXT}:debug", f"--config.data.path={path}", "--config.tokenizer.kind=byte"]
    code = cli.main([*own, *cut, *flags])
    return code, *capsys.readouterr()


def test_the_command_shows_the_examples_of_a_run(tmp_path, capsys):
    code, out, _ = shown(tmp_path, capsys, "--show=2", "--config.seed=1")
    first, *examples = out.split("\n\n")
    assert code == 0 and len(examples) == 2 and " documents, " in first and "epochs of" in first
    assert examples[0].startswith("step 0, row 0: document ")
    assert all(f"  learned  {part}  " in one for one in examples for part in ("prefix", "suffix"))
    assert examples != shown(tmp_path, capsys, "--show=2", "--config.seed=2")[1].split("\n\n")[1:]


def test_a_self_improving_run_learns_suffixes(tmp_path, capsys):
    run = "--run=dpo_suffix_rollouts"
    _, out, _ = shown(tmp_path, capsys, "--show=3", run)
    for one in out.rstrip("\n").split("\n\n")[1:]:
        title, *lines = one.split("\n")
        assert title.endswith(", 9 learned, the suffix is one candidate")
        assert [line.split()[:2] for line in lines if line[2] != " "] == [
            ["context", "prefix"],
            ["learned", "suffix"],
        ]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--run=judge", "--show=1"], "--run=judge: there are base, dpo_suffix_rollouts"),
        (["--config.data.cut.sufix=1"], "--config.data.cut.sufix: unknown key"),
        (["--workdir=none"], "--workdir none: not a workdir of sip.train"),
        (["--config.data.path=none.txt"], "data.path='none.txt': there is no such file"),
        (["--config.data.path="], "data.path ''"),
    ],
)
def test_a_wrong_flag_is_one_line(tmp_path, capsys, flags, said):
    code, out, err = shown(tmp_path, capsys, *flags)
    assert code == 2 and not out and said in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "flags", [["--show=1"], ["--config=a.py", "--source=txt"], ["--shw=1"], []]
)
def test_flags_that_do_not_fit_are_one_line(capsys, flags):
    with pytest.raises(SystemExit) as ended:
        cli.main(flags)
    err = capsys.readouterr().err
    assert ended.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1
