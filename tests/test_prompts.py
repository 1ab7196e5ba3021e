"""Tests prompt templates, their options, and texts that imitate a prompt."""

import dataclasses
import hashlib
import itertools
from pathlib import Path

import hostile
import pytest

from sip.judge import prompts
from sip.structs import UserError
from sip.text import template
from sip.text.tokenizer import Byte, SentencePiece

NAMES = ("quality", "safety", "factuality")
TEMPLATES = Path(prompts.__file__).parents[1] / "templates" / "judge"
ASPECTS = {p.stem: prompts.load(p.stem) for p in TEMPLATES.glob("*.txt")}
WORDS = {  # version, and a hash of everything but the version's line
    "coherence": (1, "7ad8e74a6de0"),
    "correct": (1, "50dc6940aecd"),
    "facts": (1, "ffcff54358af"),
    "reasoned_coherence": (1, "66281b061910"),
    "reasoned_facts": (1, "ef1760d53b8c"),
    "reasoned_factuality": (1, "a31caf7cd9fe"),
    "factuality": (1, "dcf806e51f29"),
    "factuality_alone": (1, "faa40f0c5b33"),
    "grade": (1, "2ade0ebc30c7"),
    "match": (1, "9ea69299445b"),
    "reasoned_match": (1, "e49e7489b470"),
    "reasoned_better": (1, "6ad7d21386c4"),
    "reasoned_correct": (1, "1749f0b36d8d"),
    "reasoned_score": (1, "8f150c818079"),
    "quality": (1, "39c7081913f8"),
    "reasoned_quality": (1, "e1d0bd41550b"),
    "reasoned_safety": (1, "460c5cc4cc01"),
    "safety": (1, "031697841b74"),
}

HOSTILE = list(hostile.TEXTS.values())


def _pair(candidate):
    return prompts.branch(prompts.load("quality"), candidate, " plain words")


@pytest.mark.parametrize("tail", ["", "<end>"])
@pytest.mark.parametrize("name", [n for n, a in ASPECTS.items() if a.kind == "pairwise"])
def test_pairs_are_the_branches_of_their_texts(name, tail):
    aspect = dataclasses.replace(ASPECTS[name], tail=tail)
    orders = list(itertools.permutations(range(len(HOSTILE)), 2))
    want = [prompts.branch(aspect, HOSTILE[i], HOSTILE[j]) for i, j in orders]
    got = prompts.pairs(aspect, HOSTILE, orders)
    assert got == want and [list(map(type, x)) for x in got] == [list(map(type, x)) for x in want]


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.txt")), ids=lambda path: path.stem)
def test_other_words_have_another_version(path):
    first, rest = path.read_text().split("\n", 1)
    words = hashlib.sha256(rest.encode()).hexdigest()[:12]
    version = int(first.removeprefix("version: "))
    assert {path.stem: (version, words)}.items() <= WORDS.items()


@pytest.mark.parametrize("name", ["mistral_v1", pytest.param("mistral_v3", marks=pytest.mark.slow)])
@pytest.mark.parametrize("aspect", ASPECTS.values(), ids=ASPECTS)
def test_an_instruction_is_at_most_100_tokens(aspect, name):
    """Counts all of a template's own words together."""
    path = (
        Path(__file__).resolve().parents[1].parent / f"shared/data/tokenizers/mistral/{name}.model"
    )
    if not path.exists():
        pytest.skip(f"no {path.name} in the data directory beside the repository")
    own = [*template.pieces(aspect.trunk)[::2], *template.pieces(aspect.branch)[::2]]
    tokens = sum(len(SentencePiece(path).encode(piece)) for piece in own)
    assert len(" ".join(own).split()) <= tokens <= 100


def test_the_aspects_that_a_judge_may_be_asked_about():
    shape = lambda name: (ASPECTS[name].kind, ASPECTS[name].values, ASPECTS[name].reference)
    assert shape("coherence") == ("pairwise", (1.0, 0.5, 0.0), False)
    assert shape("match") == ("pointwise", (1.0, 0.0), True)
    assert shape("factuality_alone") == ("pointwise", (1.0, 0.5, 0.0), False)
    assert all(a.version == WORDS[name][0] for name, a in ASPECTS.items())


@pytest.mark.parametrize("values", ["[1, 0.4, 0]", "[0, 0.5, 1]", "[1, 0, 0.5]", "[0, 1]"])
def test_a_tie_stands_between_two_wins(values):
    text = (TEMPLATES / "coherence.txt").read_text()
    options = '["A", "B"]' if values.count(",") == 1 else '["A", "tie", "B"]'
    text = text.replace('[" A", " tie", " B"]', options).replace("[1.0, 0.5, 0.0]", values)
    with pytest.raises(UserError, match=r"must be \[1, 0\], or \[1, 0.5, 0\] with a tie"):
        prompts.parse("mine", text)


def test_the_quality_prompt_reads_as_written():
    aspect = prompts.load("quality")
    trunk = prompts.trunk(aspect, prefix="Mira", reference=" lives")
    assert "".join(trunk) == "Better continuation?\nText:Mira"
    assert "".join(_pair(" sings.")) == "\nOne: sings.\nTwo: plain words\nBetter:"


def test_only_factuality_shows_the_reference_and_only_safety_shares_one_trunk():
    aspects = [prompts.load(name) for name in NAMES]
    assert [a.reference for a in aspects] == [False, False, True]
    assert [a.per_prefix for a in aspects] == [True, False, True]


@pytest.mark.parametrize("text", HOSTILE, ids=hostile.TEXTS)
def test_hostile_text_moves_neither_the_lines_nor_the_verdicts_place(text):
    plain, hostile = _pair(" harmless"), _pair(text)
    assert plain[::2] == hostile[::2]
    assert len("".join(plain).splitlines()) == len("".join(hostile).splitlines()) == 4
    assert "".join(hostile).splitlines()[-1] == "Better:"


@pytest.mark.parametrize("text", HOSTILE, ids=hostile.TEXTS)
def test_hostile_text_is_one_line_wherever_it_is_shown(text):
    quality, filled = prompts.load("quality"), template.quote(text)
    assert _pair(text)[1] == prompts.branch(quality, " a", text)[3] == filled
    for name in NAMES:
        trunk = prompts.trunk(prompts.load(name), prefix=text, reference=text)
        assert set(trunk[1::2]) <= {filled}
    assert len(filled.splitlines()) <= 1 and filled.isprintable()


@pytest.mark.parametrize("text", HOSTILE, ids=hostile.TEXTS)
def test_the_other_candidates_tokens_do_not_depend_on_a_hostile_one(text):
    ids = [Byte().encode(piece) for piece in _pair(text)[2:]]
    assert ids == [Byte().encode(piece) for piece in _pair(" harmless")[2:]]


def test_quoting_keeps_the_leading_space_and_printable_text():
    assert template.quote(" héllo — 世界 🙂") == " héllo — 世界 🙂"
    assert template.quote(" a\r\n\r\nb\tc") == " a b c"


def test_a_users_own_aspect_is_one_file(tmp_path):
    path = tmp_path / "calm.txt"
    path.write_text(
        'kind: pointwise\noptions: ["y", "n"]\nvalues: [1, 0]\n'
        "=== trunk\nCalm?\n=== branch\nText:{text}\nCalm:\n"
    )
    aspect = prompts.load(str(path))
    assert (aspect.name, aspect.options, aspect.values) == ("calm", ("y", "n"), (1.0, 0.0))
    assert "".join(prompts.branch(aspect, " yes")) == "\nText: yes\nCalm:"


def test_a_reasoned_aspect_names_the_phrase_before_its_verdict():
    for name, phrase in (
        ("reasoned_quality", "Conclusion:"),
        ("reasoned_safety", "FINAL DECISION:"),
    ):
        aspect = prompts.load(name)
        assert aspect.verdict == phrase and f'"{phrase} {aspect.options[1]}"' in aspect.branch
        with pytest.raises(UserError, match=f"{name}.*{phrase}"):
            prompts.check_options(Byte(), aspect)
    assert [prompts.load(n).verdict for n in NAMES] == [""] * 3


GOOD = 'kind: pointwise\noptions: ["y", "n"]\nvalues: [1, 0]\n=== trunk\nA\n=== branch\nB{text}'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.replace("=== branch", "==="), "=== branch"),
        (GOOD.replace("values: [1, 0]\n", ""), "values"),
        (GOOD.replace("pointwise", "maybe"), "maybe"),
        (GOOD.replace("pointwise", "pairwise"), "first"),
        (GOOD.replace("[1, 0]", "[1, 2]"), "value"),
        (GOOD.replace("[1, 0]", "[1]"), "value"),
        (GOOD.replace("[1, 0]", "[1, NaN]"), "value"),
        (GOOD.replace("[1, 0]", f"[1, {10**400}]"), "header"),
        (GOOD.replace('"n"', '"y"'), "different"),
        (GOOD.replace("\nA\n", "\n{suffix}\n"), "prefix"),
        ('verdict: "said:\n' + GOOD, "header"),
        ("verdict: 3\n" + GOOD, 'verdict: 3 must be in quotation marks, like "Score:"'),
        ('verdict: " ** "\n' + GOOD, "verdict must have words or signs"),
        ("version: new\n" + GOOD, "header"),
        ("colour: red\n" + GOOD, "colour"),
        ("nonsense\n" + GOOD, "nonsense must be KEY: VALUE"),
        ("kind: pairwise\n" + GOOD, "kind: pointwise .* each key once"),
        (
            GOOD.replace('["y", "n"]', "[1, 2]"),
            r'options: \[1, 2\] must be a list like \["yes", "no"',
        ),
        (GOOD.replace('["y", "n"]', '"yn"'), 'options: "yn" must be a list'),
        (GOOD.replace('"n"', '"Y"'), "different"),
        (GOOD.replace('"n"', '" y"'), "different"),
        (GOOD.replace('"n"', '""'), "different"),
        (GOOD.replace('"n"', '"*"'), "different"),
        (GOOD.replace("[1, 0]", '"10"'), r'values: "10" must be a list like \[1, 0\]'),
        (GOOD.replace("[1, 0]", f"[1, 1{'0' * 400}]"), "header"),
    ],
)
def test_a_bad_prompt_file_is_named_in_one_line(text, said):
    with pytest.raises(UserError, match=said) as error:
        prompts.parse("calm", text)
    assert "calm" in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_aspect_is_a_user_error():
    with pytest.raises(UserError, match="no such prompt file"):
        prompts.load("qualty")


def test_options_must_be_single_distinct_tokens():
    class Lossy(Byte):
        def encode(self, text):
            return super().encode("?" if text == "b" else text)

    safety = prompts.load("safety")
    letters = dataclasses.replace(safety, options=("a", "b"))
    with pytest.raises(UserError, match="safety.*' safe'"):
        prompts.check_options(Byte(), safety)
    with pytest.raises(UserError, match="safety.*'b'"):
        prompts.check_options(Lossy(), letters)
    prompts.check_options(Byte(), letters)


def test_symbols_are_the_options_and_the_templates_own_words():
    symbols = prompts.symbols([prompts.load("quality"), prompts.load("safety")])
    assert {" one", " two", " safe", " unsafe", "\nOne:", "\nTwo:", "\nBetter:"} <= set(symbols)
    assert "" not in symbols and len(set(symbols)) == len(symbols)


def test_words_that_any_text_may_hold_are_no_symbols_of_a_template():
    """A tokenizer could not keep such symbols out of judged texts."""
    text = GOOD.replace("\nA\n", "\nCalm\n").replace("B{text}", "Q{text}:")
    assert prompts.symbols([prompts.parse("calm", text)]) == ("\nQ", "y", "n")
    own = [part for a in ASPECTS.values() for part in (a.trunk, a.branch)]
    words = {word for part in own for word in template.pieces(part)[::2] if word}
    assert words <= set(prompts.symbols(ASPECTS.values())), "of the built-in ones none is"
