"""Tests rewriters: the ground truth, and a trained one's prompts, determinism and failures."""

import jax
import numpy as np
import pytest
import tiny

from sip import mesh as meshes
from sip import rewriter as rewriters
from sip import sampling
from sip.judge import prompts
from sip.loading import LoadedModel
from sip.rewriter import LocalRewriter, Prompt, TruthRewriter
from sip.structs import Rollouts, UserError
from sip.text import template
from sip.text.tokenizer import Byte

PREFIXES = ["ab ba ab ba cd ab dc", "a b", "", "ef fe ef ag ga h hh"]
SUFFIXES = [" abc ba", " cdcd ab cd", "ffe ab", " h"]


class Letters:
    """A tokenizer of sixteen tokens: a newline, a space, eleven letters, and the special ones."""

    letters = "\n abcdefghijk"
    vocab_size, bos, eos, pad, stops = 16, 13, 14, 15, (14,)

    def encode(self, text):
        return [self.letters.index(c) for c in text]

    plain = encode_special = encode

    def decode(self, ids):
        return "".join(self.letters[i] for i in ids if i < 13)

    def starts(self, token):
        return True


GREEDY = sampling.SamplingConfig(temperature=0.0)
PROMPT = Prompt("tiny", "k{prefix}\n{words}{suffix}\nk{words}")


def local(sample=GREEDY, **options):
    options = {"prompt": PROMPT, "sampling": sample, **options}
    return LocalRewriter(
        LoadedModel(tiny.params(), tiny.CFG, Letters(), meshes.single()), **options
    )


class FakeTruth:
    def rewrite(self, prefixes, suffixes, words):
        return [" ".join((p + s).split()[:words]) for p, s in zip(prefixes, suffixes, strict=True)]


def test_the_truth_rewrites_to_the_words_asked_for():
    texts, valid = TruthRewriter(FakeTruth(), 2).rewrite(["a", "b"], [" c d", " e f"])
    assert texts == ["a c", "b e"] and valid.tolist() == [True, True]


def test_an_empty_rewrite_is_invalid():
    texts, valid = TruthRewriter(FakeTruth(), 2).rewrite(["a", " "], [" c", " "])
    assert texts == ["a c", ""] and valid.tolist() == [True, False]


def test_the_prompt_repeats_and_primes_the_last_five_words():
    segments = rewriters.load("rewrite").segments("One. Two three four five six", " seven.")
    text = "".join(segments)
    assert text == (
        "Better continuation?\nText:One. Two three four five six\n"
        "Continuation: Two three four five six seven.\nBetter: Two three four five six"
    )


def test_a_tokenizer_made_for_the_judges_prompts_has_the_rewriters_words_too():
    known = prompts.symbols(prompts.load(name) for name in ("quality", "grade"))
    assert {s for s in template.pieces(rewriters.load("rewrite").template)[::2] if s} <= set(known)


@pytest.mark.parametrize(
    ("text", "words"),
    [("", ""), ("a b", "a b"), ("a b c d e", "a b c d e"), ("x a b c d e", " a b c d e"),
     ("x  a b\nc d e ", "  a b\nc d e "), ("a b c d e fr", " b c d e fr")],
)  # fmt: skip
def test_last_words_keep_the_space_around_them(text, words):
    assert rewriters.last_words(text) == words


def test_a_prompts_tokens_are_its_segments_tokens():
    prompt, byte = rewriters.load("rewrite"), Byte()
    ids = rewriters.prompt_ids(prompt, byte, byte, "a b", " c")
    joined = sum((byte.encode(s) for s in prompt.segments("a b", " c")), [byte.bos])
    assert (
        ids
        == joined
        == [
            byte.bos,
            *byte.encode("Better continuation?\nText:a b\nContinuation:a b c\nBetter:a b"),
        ]
    )


@pytest.mark.parametrize(
    "text", [" x\nBetter: y", "\r\n\u2028", " {words}{prefix}", "", " \0 \ud800"]
)
def test_text_to_be_rewritten_moves_no_line_of_the_prompt(text):
    prompt = rewriters.load("rewrite")
    for segments in (prompt.segments("a b", text), prompt.segments(text, " c")):
        assert segments[::2] == prompt.segments("a b", " c")[::2]
        assert all(s.isprintable() for s in segments[1::2])
        assert len("".join(segments).splitlines()) == 4


def test_a_users_own_prompt_is_read_from_its_path(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("Better, please.\n{suffix}\n{words}\n")
    assert "".join(rewriters.load(str(file)).segments("a b", " c")) == "Better, please.\n c\na b"
    with pytest.raises(UserError, match="'mine': no such prompt file"):
        rewriters.load("mine")


@pytest.mark.parametrize(
    ("text", "problem"),
    [("{prefix}{words}", "must contain {suffix}"), ("{suffix}{reference}{words}", "no fields"),
     ("{words}{suffix}", "must end with {words}")],
)  # fmt: skip
def test_a_prompt_that_cannot_be_asked_is_a_user_error(text, problem):
    with pytest.raises(UserError, match=problem):
        Prompt("odd", text)


def test_an_answer_is_as_long_as_the_suffix_at_most_and_ends_with_eos():
    byte = Byte()
    answer = lambda text: rewriters.answer_ids(byte, byte.encode, " abc", text)
    assert answer(" xyz and more") == [*b" xyz", byte.eos]
    assert answer(" x\ny") == [*b" x y", byte.eos]


def plain(sample, prefix, suffix, seed=0):
    """Computes the tokens of one rewrite from one unpadded prompt."""
    letters = Letters()
    ids = rewriters.prompt_ids(PROMPT, letters, letters, prefix, suffix)
    noise = rewriters.Exchange(letters, PROMPT).ask(prefix, suffix).noise
    run = sampling.program(tiny.CFG, 1, 16, sample, ())
    args = np.array([ids]), np.array([len(ids)]), np.array([noise], np.uint32)
    return np.asarray(run(tiny.params(), *args, jax.random.key(seed)).tokens_BCR)[0, 0].tolist()


@pytest.mark.slow  # test_textgen has batches
def test_a_rewrite_is_one_continuation_of_its_own_prompt_in_any_batch():
    sample = sampling.SamplingConfig(temperature=1.0, top_p=0.95)
    prefixes = PREFIXES * 3
    suffixes = [(s + " abc de"[i:] + "fg" * 4)[:8] for i in range(3) for s in SUFFIXES]
    texts, valid_B = local(sample, batch=8).rewrite(prefixes, suffixes)
    assert 2 <= valid_B.sum() < len(texts)
    single = local(sample, batch=1)
    for text, prefix, suffix, ok in zip(texts, prefixes, suffixes, valid_B, strict=True):
        alone, also = single.rewrite([prefix], [suffix])
        assert alone == [text] and also == [ok]
    for i in np.flatnonzero(valid_B)[:2]:
        new = plain(sample, prefixes[i], suffixes[i])
        stop = next(at for at, token in enumerate(new) if token in (0, Letters.eos))
        assert texts[i] == Letters().decode(new[: min(stop, len(suffixes[i]))])


@pytest.mark.slow  # test_sampling draws by seed
def test_another_seed_draws_another_rewrite_and_the_same_one_the_same():
    sample = sampling.SamplingConfig(temperature=1.0)
    one, two, other = (local(sample, seed=s).rewrite(PREFIXES, SUFFIXES)[0] for s in (0, 0, 5))
    assert one == two != other


def scripted(monkeypatch, answers):
    """Returns a rewriter whose model answers with these texts; `$` is the end token."""
    letters = Letters()
    ids = [[letters.eos if c == "$" else letters.encode(c)[0] for c in text] for text in answers]

    def program(cfg, branches, steps, sample, stop):
        assert branches == 1 and set(stop) == {letters.eos, 0}

        def run(params, tokens_BT, fork_B, rows_B, key):
            tokens_BCR = np.zeros((len(tokens_BT), 1, steps), np.int32)
            for row, new in zip(tokens_BCR, ids, strict=False):
                row[0, : len(new)] = new[:steps]
            return Rollouts(tokens_BCR, None, None, None)

        return run

    monkeypatch.setattr(sampling, "program", program)
    return local()


PREFIX, SUFFIX = "a b c d e f", " g h i j"  # a suffix of 8 tokens: a limit of 8 + 2 and the end
FATES = {
    "a copy": (" g h i j$", " g h i j"),
    "another": (" a a a a$", " a a a a"),
    "ended by a newline": (" g h i\n j", " g h i"),
    "the longest": (" g h i j k$", " g h i j"),
    "too long by one": (" g h i j kk$", ""),
    "never ended": (" g h i j k a b c d e", ""),
    "half as long": (" g h$", " g h"),
    "less than half": (" gh$", ""),
    "nothing": ("$", ""),
    "space": ("        $", ""),
    "the primed words again": (" b c d e f$", ""),
}


@pytest.mark.parametrize("fate", FATES)
def test_a_failed_rewrite_is_invalid_and_a_long_one_is_cut(fate, monkeypatch):
    answer, text = FATES[fate]
    texts, valid = scripted(monkeypatch, [answer]).rewrite([PREFIX], [SUFFIX])
    assert texts == [text] and valid.tolist() == [bool(text)]


def test_the_primed_words_are_no_failure_where_the_suffix_has_them(monkeypatch):
    made = scripted(monkeypatch, [" b c d e f$"])
    assert made.rewrite([PREFIX], [" b c d e f"])[0] == [" b c d e f"]


def test_a_prompt_too_long_is_invalid_and_its_neighbours_are_not(monkeypatch):
    made = scripted(monkeypatch, [" g h i j$"] * 2)
    texts, valid = made.rewrite([PREFIX, "a " * 40, PREFIX], [SUFFIX] * 3)
    assert valid.tolist() == [True, False, True] and texts == [SUFFIX, "", SUFFIX]
    assert made.rewrite(["a " * 40], [SUFFIX])[0] == [""] and made.rewrite([], [])[0] == []


def test_the_longest_prompt_that_fits_leaves_room_for_the_longest_rewrite(monkeypatch):
    letters, room = Letters(), tiny.CFG.max_len - 11
    size = lambda n: len(rewriters.prompt_ids(PROMPT, letters, letters, "a" * n, SUFFIX))
    n = max(n for n in range(40) if size(n) <= room)
    made = scripted(monkeypatch, [SUFFIX + "$"] * 2)
    assert made.rewrite(["a" * n, "a" * (n + 1)], [SUFFIX] * 2)[1].tolist() == [True, False]


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
@pytest.mark.slow  # test_sharding has rollouts on meshes
def test_a_mesh_of_eight_rewrites_as_one_device_does():
    from sip.models import decoder

    mesh = meshes.build(meshes.MeshConfig(2, 2, 2))
    places = jax.tree.map(lambda x: x.sharding, decoder.abstract(tiny.CFG, mesh))
    many = LocalRewriter(
        LoadedModel(jax.device_put(tiny.params(), places), tiny.CFG, Letters(), mesh),
        prompt=PROMPT, sampling=sampling.SamplingConfig(temperature=1.0),
    )  # fmt: skip
    texts, valid = many.rewrite(PREFIXES[:3], SUFFIXES[:3])
    one, also = local(sampling.SamplingConfig(temperature=1.0)).rewrite(PREFIXES[:3], SUFFIXES[:3])
    assert texts == one and valid.tolist() == also.tolist()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [(dict(backend="guess"), "rewriter.backend"), (dict(batch=0), "rewriter.batch"),
     (dict(temperature=-1.0), "temperature"), (dict(top_p=0.0), "top_p")],
)  # fmt: skip
def test_a_section_that_cannot_be_is_a_user_error(changes, problem):
    values = dict(
        backend="local", init_from="", prompt="rewrite", temperature=0.0, top_p=1.0, batch=1
    )
    with pytest.raises(UserError, match=problem):
        rewriters.RewriterConfig(**{**values, **changes})
