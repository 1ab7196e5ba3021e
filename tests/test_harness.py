"""Tests standard evaluations: against plain sequences, our sampler, and another adapter."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import serving
import tiny

from sip import generate, mesh
from sip.evals import harness, likelihoods
from sip.evals.harness import Adapter, before_first, generation, pair
from sip.evals.likelihoods import Model
from sip.hf import spelling
from sip.mesh import MeshConfig
from sip.sampling import SamplingConfig
from sip.structs import UserError
from sip.text.tokenizer import Byte
from sip.training import checkpoints

CFG = tiny.model(vocab_size=264, layers=1, max_len=31, logprob_chunk=16)
GREEDY = SamplingConfig(0.0)


def model(**changes) -> Model:
    given = dict(params=tiny.params(CFG), cfg=CFG, mesh=mesh.single(), batch=3)
    return Model(**{**given, **changes})


def adapter(tokenizer=None, **changes) -> Adapter:
    tokenizer = tokenizer or Byte()
    return Adapter(model(**changes), tokenizer, spelling.own(tokenizer))


def asked(*args):
    """Builds requests with the fields that an adapter reads."""
    return [types.SimpleNamespace(args=each) for each in args]


def plainly(pairs):
    """Scores whole sequences one at a time from all logits."""
    found = []
    for before, after in pairs:
        ids = [*before, *after][-(CFG.max_len + 1) :]
        row = jnp.array([ids + [0] * (CFG.max_len + 1 - len(ids))])
        logp_TV = jax.nn.log_softmax(serving._logits(tiny.params(CFG), CFG, row)[0])
        start, n = len(ids) - len(after), len(after)
        own_NV = np.asarray(logp_TV)[start - 1 : start - 1 + n]
        greedy = own_NV.argmax(-1).tolist() == list(after)
        found.append((own_NV[np.arange(n), after].sum(), greedy))
    return found


@functools.cache
def pairs(seed=0):
    """Returns choices with shared contexts, one of them greedy, and too long texts."""
    rng = np.random.default_rng(seed)
    some = lambda n: rng.integers(0, 256, n).tolist()
    found = [(before, some(n)) for before in (some(9), some(14)) for n in (1, 5, 3)]
    likely = likelihoods.generate(model(), [found[0][0]], steps=8, sampling=GREEDY, stop=Byte.stops)
    return [*found, (found[0][0], likely[0]), (some(60), some(3)), (some(5), some(31))]


def same(got, want):
    np.testing.assert_allclose([x for x, _ in got], [x for x, _ in want], atol=1e-4)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in want]


def test_scores_are_those_of_plain_sequences():
    want = plainly(pairs())
    assert [greedy for _, greedy in want].count(True) == 1 and len(want) == 9
    same(likelihoods.score(model(wide=16), pairs()), want)


@pytest.mark.parametrize(
    "changes",
    [dict(batch=1), dict(wide=0), dict(mesh=mesh.build(MeshConfig(2, 2, 2)))],
    ids=["one at a time", "as plain sequences", "eight devices"],
)
def test_scores_do_not_depend_on_batches_order_or_mesh(changes):
    want = likelihoods.score(model(), pairs()[:7])
    same(likelihoods.score(model(**changes), pairs()[:7][::-1])[::-1], want)


def test_few_programs_are_compiled():
    likelihoods.branches_program.cache_clear()
    rng = np.random.default_rng(0)
    asked = [([i] * rng.integers(1, 32), [2] * rng.integers(1, 16)) for i in range(40)]
    assert len({len(x) for x, _ in asked}) > 10 and len({len(y) for _, y in asked}) > 10
    assert len(likelihoods.score(model(), asked)) == 40
    assert likelihoods.branches_program(CFG)._cache_size() == 2


def test_a_continuation_that_no_model_reads_is_an_error():
    for after in ([], [1] * 32):
        with pytest.raises(UserError, match=f"{len(after)} tokens; it needs 1 to 31 "):
            likelihoods.score(model(), [([1], after)])


def test_logits_that_overflow_are_an_error():
    params = tiny.params(CFG)
    large = model(params={**params, "final_norm": jnp.full_like(params["final_norm"], 3e38)})
    with pytest.raises(UserError, match="not finite"):
        likelihoods.score(large, pairs()[:7])
    with pytest.raises(UserError, match="not finite"):
        likelihoods.generate(large, [[1] * 9], steps=8, sampling=GREEDY, stop=Byte.stops)


def test_windows_score_each_token_once_behind_as_many_as_fit():
    """Uses the example in the harness's documentation."""
    found = likelihoods.windows(list(range(10)), 99, 4)
    assert found == [([99], [0, 1, 2, 3]), ([3], [4, 5, 6, 7]), ([5, 6, 7], [8, 9])]
    assert likelihoods.windows([], 99, 4) == []


def test_a_rolling_likelihood_is_the_sum_over_windows():
    text = "A river carries light; the lamp of Mira is green, and she is not."
    got = adapter().loglikelihood_rolling(asked(("ab",), (text,)))
    for value, said in zip(got, ("ab", text), strict=True):
        ids = [Byte.bos, *Byte().encode(said)]
        want = plainly(likelihoods.windows(ids, Byte.bos, CFG.max_len))
        assert value == pytest.approx(sum(x for x, _ in want), abs=1e-4)


A, SPACE, NEWLINE = ord("a"), 32, 10


@pytest.mark.parametrize(
    ("context", "continuation", "want"),
    [
        ("aa", " a", ([257, A, A], [SPACE, A])),
        ("aa \n", "a", ([257, A, A], [SPACE, NEWLINE, A])),
        ("", "aa", ([257], [A, A])),
        (" ", "a", ([257], [SPACE, A])),
    ],
)
def test_the_boundary_of_context_and_continuation(context, continuation, want):
    assert pair(spelling.own(Byte()), context, continuation) == want


def test_a_context_is_split_from_the_whole_where_tokens_cross_the_boundary():
    merged = spelling.Spelling(lambda text: [len(w) for w in text.split()], False, 9)
    assert pair(merged, "one two", "three four") == ([3, 3], [4])
    assert pair(merged, "", "nineteen9 one") == ([9], [3]), "it stands there already"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a run, and its adapter."""
    path = tmp_path_factory.mktemp("run")
    checkpoints.save_params(str(path), tiny.params(CFG), {"model": dataclasses.asdict(CFG)})
    (path / "tokenizer.json").write_text('{"kind": "byte"}')
    return path, harness.adapter(str(path), mesh.single(), batch=3)


TEXTS = ["The lamp of Mira", "a", "It is"]


@pytest.mark.slow  # test_generate has the answers
def test_answers_are_those_of_sip_generate(run):
    path, one = run
    want = generate.generate(str(path), TEXTS, num=1, max_tokens=8, sample=GREEDY, seed=0)
    got = one.generate_until(asked(*((text, {"until": [], "max_gen_toks": 8}) for text in TEXTS)))
    assert got == [row[0]["text"] for row in want] and len(set(got)) == 3
    alone = one.generate_until(asked((TEXTS[1], {"max_gen_toks": 8})))
    assert alone == got[1:2]


@pytest.mark.slow
def test_answers_end_before_a_stop_string(run):
    one = run[1]
    said = {"max_gen_toks": 8}
    (whole,) = one.generate_until(asked((TEXTS[0], said)))
    for n in (1, 2):
        at = next(i for i in range(2, 7) if whole.find(whole[i : i + n]) == i)
        until = ["nowhere", whole[at : at + n]]
        assert one.generate_until(asked((TEXTS[0], said | {"until": until}))) == [whole[:at]]
    assert before_first("a b c", ["c", " b", ""]) == "a" and before_first("ab", []) == "ab"


def test_a_long_prompt_is_cut_from_the_left(run):
    one = run[1]
    text, said = "".join(map(chr, range(65, 65 + 50))), {"max_gen_toks": 8}
    ids = Byte().encode(text)[-(CFG.max_len - 8) :]
    want = likelihoods.generate(one.model, [ids], steps=8, sampling=GREEDY, stop=Byte.stops)
    assert one.generate_until(asked((text, said))) == [Byte().decode(want[0])]
    with pytest.raises(UserError, match="31 new tokens leave no room for a prompt in max_len 31"):
        one.generate_until(asked((text, {"max_gen_toks": 31})))


@pytest.mark.parametrize(
    ("said", "want"),
    [
        ({}, (256, [], GREEDY)),
        ({"until": "x", "max_new_tokens": 3}, (3, ["x"], GREEDY)),
        ({"do_sample": False, "temperature": 0.7}, (256, [], GREEDY)),
        ({"temperature": 0.7, "top_p": 0.9, "top_k": 5}, (256, [], SamplingConfig(0.7, 5, 0.9))),
        ({"do_sample": True, "until": None}, (256, [], SamplingConfig(1.0))),
        ({"temperature": None, "top_p": None, "max_gen_toks": None}, (256, [], GREEDY)),
    ],
)
def test_what_a_task_says_of_generation(said, want):
    assert generation(said) == want


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"num_beams": 4}, "num_beams"),
        ({"max_gen_toks": 0}, "number of tokens must be at least 1, not 0"),
        ({"top_p": 0}, "top_p"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": float("nan")}, "top_k is nan; must be a number"),
        ({"max_gen_toks": float("inf")}, "max_gen_toks is inf"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"until": [3]}, r"until is \[3\]; must be texts"),
    ],
)
def test_what_is_not_known_of_generation_is_an_error(said, named):
    with pytest.raises(UserError, match=named):
        generation(said)
