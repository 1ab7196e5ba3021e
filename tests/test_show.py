"""Tests that examples are shown as the model sees them: tokens, loss mask, odd characters."""

import json
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
SFT = TEXT.replace("text.py", "sft.py")
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


def test_packed_documents_are_shown_one_by_one(tmp_path, capsys):
    flags = ["--config.runs.base.task.packed=True", "--config.runs.base.task.length=64"]
    code, out, _ = shown(tmp_path, capsys, "--show=3", *flags)
    titles = [one.split("\n")[0] for one in out.rstrip("\n").split("\n\n")[1:]]
    # BOS and EOS stand around 32 or 33 bytes, so one document fills a row.
    assert code == 0 and " texts, " in out and len(titles) == 3
    for title in titles:
        place, tokens, learned = title.rsplit(", ", 2)
        count = int(learned.split()[0])
        assert " of 1: " in title and title.endswith(f": {count + 1} tokens, {count} learned")


def read(out):
    """Returns (title, lines) of each shown example."""
    _, *examples = out.rstrip("\n").split("\n\n")
    return [
        (title, [x.strip() for x in lines]) for title, *lines in (e.split("\n") for e in examples)
    ]


def test_conversations_are_shown_with_their_template_and_learned_answers(tmp_path, capsys):
    talks = [
        [("user", f"Hello {i}?"), ("assistant", "Yes."), ("user", "So?"), ("assistant", "No.")]
        for i in range(60)
    ]
    path = tmp_path / "talks.jsonl"
    row = lambda talk: {"messages": [dict(role=r, content=c) for r, c in talk]}
    path.write_text("".join(f"{json.dumps(row(talk))}\n" for talk in talks))
    own = [f"--config={SFT}:debug", f"--config.runs.assistant.task.path={path}"]
    for packed in (True, False):
        flags = [*own, f"--config.runs.assistant.task.packed={packed}", "--show=5"]
        assert cli.main(flags) == 0
        out = capsys.readouterr().out
        assert out.startswith("assistant: ") and " rows of 256" in out
        (title, lines), *others = read(out)
        assert len(others) == 4 and (" text 1 of 1:" in title) != packed
        said = lines[0].split("<|user|>Hello ")[1].split("?")[0]
        assert lines == [
            f"context  «<s>»<|user|>Hello {said}?<|assistant|>",
            "learned  Yes.«</s>»",
            "context  <|user|>So?<|assistant|>",
            "learned  No.«</s>»",
        ]
        assert title.endswith(" 9 learned")  # four bytes and EOS, three and EOS


def pairs(tmp_path, name, *flags, rejected=(" Never.",)):
    path = tmp_path / "pairs.jsonl"
    every = [(f"Why {i}?", answer) for i in range(60) for answer in rejected]
    rows = [dict(prompt=prompt, chosen=" So.", rejected=answer) for prompt, answer in every]
    path.write_text("".join(f"{json.dumps({**row, 'margin': 2})}\n" for row in rows))
    config = tmp_path / f"{name}_bytes.py"
    config.write_text(PAIRS.format(folder=str(Path(TEXT).parent), name=name, path=str(path)))
    return cli.main([f"--config={config}", "--show=1", *flags])


# A recipe of the checkpoint "none", which is not needed to look at the pairs.
PAIRS = """
import sys

sys.path.append({folder!r})
import _common as common
import microworld
from ml_collections import ConfigDict


def get_config(arg=""):
    config = microworld.get_config("debug")
    how = dict(model=microworld.MODEL, split="train", steps=2, batch=4, init_from="none")
    how |= dict(optim=common.adamw(1e-3, warmup_steps=1), pairs=dict(path={path!r}))
    if {name!r} == "dpo":
        how["evals"] = common.evals(baseline="")
    make = dict(dpo=common.preference_run, reward_model=common.reward_model_run)[{name!r}]
    config.tokenizer.kind, config.runs, config.order = "byte", dict(run=make(**how)), ("run",)
    return config
"""


@pytest.mark.parametrize("name", ["dpo", "reward_model"])
def test_pairs_are_shown_with_both_answers(tmp_path, capsys, name):
    assert pairs(tmp_path, name) == 0
    out = capsys.readouterr().out
    ((title, lines),) = read(out)
    assert out.startswith("run: ") and " pairs to learn from; " in out
    assert title.startswith("step 0, row 0: prompt ")
    assert title.endswith(", chosen 5, rejected 8 tokens, margin 2")
    said = lines[0].split("Why ")[1].split("?")[0]
    prompt = f"context  prompt    «<s>»Why {said}?"
    if name == "dpo":  # both answers count
        assert lines == [
            prompt,
            "learned  chosen    ␣So.«</s>»",
            "learned  rejected  ␣Never.«</s>»",
        ]
    else:  # the reward is read at the last token
        assert lines == [
            prompt,
            "context  chosen    ␣So.",
            "learned  chosen    «</s>»",
            "context  rejected  ␣Never.",
            "learned  rejected  «</s>»",
        ]


def test_pairs_of_a_row_are_shown_one_by_one(tmp_path, capsys):
    flags = ["--show=2", "--config.runs.run.task.together=3"]
    assert pairs(tmp_path, "reward_model", *flags, rejected=(" Never.", " No.")) == 0
    (title, lines), (other, others) = read(capsys.readouterr().out)
    assert title.startswith("step 0, row 0, pair 1 of 2: prompt ")
    assert other.startswith("step 0, row 0, pair 2 of 2: prompt ")
    assert lines[:3] == others[:3] and lines[1] == "context  chosen    ␣So."
    assert (lines[3], others[3]) == ("context  rejected  ␣Never.", "context  rejected  ␣No.")


def test_a_chunk_is_shown_with_its_control_token(tmp_path, capsys):
    flags = ["--run=dpo_suffix_rollouts", "--show=8", "--config.runs.dpo_suffix_rollouts.batch=8"]
    name = "--config.runs.dpo_suffix_rollouts"
    flags += [f"{name}.objective.name=rf_nll", f"{name}.objective.ce_weight=1.0"]
    flags += [f"{name}.control=</s>", f"{name}.documents=2"]
    code, out, _ = shown(tmp_path, capsys, *flags)
    examples = read(out)
    assert code == 0 and len(examples) == 8
    for at, (title, lines) in enumerate(examples):
        assert title.endswith("the suffix is one candidate" if at < 6 else "as in the document")
        assert any(line.endswith("«</s>»") for line in lines) == (at < 6)
        assert ", 9 learned" in title


def test_a_run_without_such_examples_is_refused(tmp_path, capsys):
    config = Path(TEXT).with_name("microworld.py")
    flags = [f"--config={config}:debug", "--run=judge", "--show=1", "--config.tokenizer.kind=byte"]
    assert cli.main(flags) == 2
    assert "--run=judge: task verdicts has no examples to show" in capsys.readouterr().err
    assert cli.main([flag for flag in flags if flag != "--show=1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("documents ") and "epochs of" in out


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
