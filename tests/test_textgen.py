"""Tests text generators: scripted, ruled and local answers."""

import dataclasses

import jax
import jax.numpy as jnp
import jaxprs
import numpy as np
import pytest

from sip import mesh as meshes
from sip import padding
from sip.judge import prompts
from sip.judge.schedules import ScheduleConfig
from sip.judge.scoring import TextJudge
from sip.loading import LoadedModel
from sip.models import decoder
from sip.models.config import ModelConfig
from sip.padding import bucket, padded_tree
from sip.sampling import SamplingConfig
from sip.structs import Tree, UserError
from sip.text.segments import tokens_of
from sip.text.tokenizer import Byte
from sip.textgen import local as local_generator
from sip.textgen.local import Local, encoding, program
from sip.textgen.protocol import Cut
from sip.textgen.scripted import Scripted, ruled

CFG = ModelConfig(
    vocab_size=264,
    width=16,
    layers=2,
    kv_heads=2,
    queries_per_kv=2,
    head_dim=8,
    hidden=24,
    max_len=96,
    logprob_chunk=3,
    branch_chunk=2,
)
TRUNKS = ["One trunk:", ("Another, ", "longer", " trunk:"), "x"]
BRANCHES = [
    ["\na", ("\nb", " long branch", " here")],
    ["\ncc:"],
    [("", "d"), "e", "ff", "ggg", "h\n"],
]
OPTIONS = ("y", "n", "?")


@pytest.fixture(scope="module")
def params():
    return decoder.init(CFG, jax.random.key(0))


def _local(params, mesh=None, cfg=CFG, **options):
    return Local(LoadedModel(params, cfg, Byte(), mesh or meshes.single()), **options)


@jax.jit
def _logits(params, tokens_BT):
    none = jnp.zeros((1, 0, 1), jnp.int32)
    tree = Tree(tokens_BT, tokens_BT >= 0, none, none > 0, jnp.ones((1, 0), jnp.int32))
    return decoder.apply(params, CFG, tree).trunk_BTD @ decoder.unembed(params, CFG)


def _plain(params, text):
    """Computes log-probabilities after one unshared, unpadded sequence from all logits."""
    ids = [Byte().bos, *Byte().encode(text)]
    logits_V = _logits(params, jnp.array([ids + [0] * (CFG.max_len - len(ids))]))[0, len(ids) - 1]
    return np.asarray(jax.nn.log_softmax(logits_V)[jnp.array([ord(o) for o in OPTIONS])])


@pytest.mark.slow  # test_local_writes_what_a_plain_loop_writes
def test_local_equals_a_plain_unshared_forward_pass(params):
    logp_BCO = _local(params).choose(TRUNKS, BRANCHES, OPTIONS)
    assert logp_BCO.shape == (3, 5, 3) and logp_BCO.dtype == np.float32
    for b, row in enumerate(BRANCHES):
        for c, branch in enumerate(row):
            plain = _plain(params, "".join(TRUNKS[b]) + "".join(branch))
            assert np.allclose(logp_BCO[b, c], plain, atol=1e-5)
        assert np.isnan(logp_BCO[b, len(row) :]).all()


def _greedy(params, text, steps):
    """Decodes bytes greedily after one unshared sequence: (text, whether it ended)."""
    ids = [Byte().bos, *Byte().encode(text)]
    for _ in range(steps):
        if ids[-1] != Byte().eos:
            logits_V = _logits(params, jnp.array([ids + [0] * (CFG.max_len - len(ids))]))[0]
            ids.append(int(logits_V[len(ids) - 1].argmax()))
    return Byte().decode(ids)[len(text) :], ids[-1] == Byte().eos


def test_an_answer_that_does_not_end_in_time_is_cut(params):
    ask = lambda stops, steps: Local(
        LoadedModel(params, CFG, Stopping(stops), meshes.single())
    ).generate(["One"], [["a"]], votes=1, max_tokens=steps, sampling=SamplingConfig(0), seed=0)[0][
        0
    ]
    (cut,), (whole,) = ask((Byte.eos,), 3), ask(tuple(range(Byte.vocab_size)), 3)
    assert isinstance(cut, Cut) and isinstance(whole, str) and len(whole) <= 1


def test_logits_that_overflow_are_no_answer_and_no_verdict(params):
    large = {**params, "final_norm": jnp.full_like(params["final_norm"], 3e38)}
    assert _local(large).generate(
        ["One"], [["a"]], votes=2, max_tokens=3, sampling=SamplingConfig(0), seed=0
    ) == [[[None, None]]]
    assert np.isnan(_local(large).choose(["One"], [["a"]], OPTIONS)).all()


class Stopping(Byte):
    """Bytes, with other stop tokens."""

    def __init__(self, stops):
        self.stops = stops


def test_local_writes_what_a_plain_loop_writes(params):
    greedy = SamplingConfig(temperature=0)
    said = _local(params, batch=2).generate(
        TRUNKS, BRANCHES, votes=2, max_tokens=4, sampling=greedy, seed=0
    )
    for b, row in enumerate(BRANCHES):
        assert len(said[b]) == len(row)
        for c in {0, len(row) - 1}:
            plain, ended = _greedy(params, "".join(TRUNKS[b]) + "".join(row[c]), 4)
            assert said[b][c] == [plain if ended else Cut(plain)] * 2


def test_tokens_that_are_read_and_written_are_counted(params):
    one, size = _local(params, batch=2), lambda text: len("".join(text))
    branches = sum(size(text) for row in BRANCHES for text in row)
    read = branches + sum(1 + size(trunk) for trunk in TRUNKS)  # 1: BOS
    one.choose(TRUNKS, BRANCHES, OPTIONS)
    assert one.stats() == {"judge/prompt_tokens": (read, 1), "judge/answer_tokens": (0, 1)}
    ask = one.keep(TRUNKS)
    ask(BRANCHES, OPTIONS)
    ask(BRANCHES, OPTIONS)  # the trunks are kept
    assert one.stats()["judge/prompt_tokens"] == (read + branches, 1)
    how = dict(votes=2, max_tokens=4, sampling=SamplingConfig(temperature=0), seed=0)
    said = one.of(params).generate(TRUNKS, BRANCHES, **how)
    assert all(isinstance(x, Cut) for row in said for votes in row for x in votes)
    assert one.stats() == {"judge/prompt_tokens": (read, 1), "judge/answer_tokens": (8 * 2 * 4, 1)}


@pytest.mark.slow  # test_voting asks the same of texts' votes
def test_local_votes_hang_on_seed_and_prompt_not_on_batch_or_place(params):
    ask = lambda seed, **options: _local(params, **options).generate(
        TRUNKS, BRANCHES, votes=3, max_tokens=4, sampling=SamplingConfig(), seed=seed
    )
    assert ask(0, batch=1) == ask(0) != ask(1)
    assert len(set(ask(0)[0][0])) == 3
    turned = _local(params).generate(
        TRUNKS[::-1], [row[::-1] for row in BRANCHES[::-1]],
        votes=2, max_tokens=4, sampling=SamplingConfig(), seed=0,
    )  # fmt: skip
    first_two = [[said[:2] for said in row[::-1]] for row in ask(0)[::-1]]
    assert turned == first_two, "a vote hangs on no other one"


def test_local_does_not_write_past_its_length(params):
    row = ["b" * 90, "b" * 91, "b"]  # BOS, "x" and 90 more leave four of 96
    said = _local(params).generate(
        ["x"], [row], votes=1, max_tokens=4, sampling=SamplingConfig(0), seed=0
    )
    assert [each[0] is None for each in said[0]] == [False, True, False]


@pytest.mark.parametrize(("batch", "widths"), [(1, 1), (2, 1), (16, 2)])
def test_local_answers_do_not_depend_on_batch_or_padding(params, batch, widths, monkeypatch):
    one = _local(params).choose(TRUNKS, BRANCHES, OPTIONS)
    for name in ("trunk_width", "branch_width"):
        width = getattr(padding, name)
        monkeypatch.setattr(padding, name, lambda n, width=width: widths * width(n))
    two = _local(params, batch=batch).choose(TRUNKS, BRANCHES, OPTIONS)
    assert np.allclose(one, two, atol=1e-5, equal_nan=True)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
def test_local_on_a_mesh_of_eight_equals_one_device(params):
    mesh = meshes.build(meshes.MeshConfig(2, 2, 2))
    places = jax.tree.map(lambda x: x.sharding, decoder.abstract(CFG, mesh))
    many = _local(jax.device_put(params, places), mesh).choose(TRUNKS, BRANCHES, OPTIONS)
    one = _local(params).choose(TRUNKS, BRANCHES, OPTIONS)
    assert np.allclose(one, many, atol=1e-5, equal_nan=True)


def test_a_prompt_too_long_is_unanswered_and_its_neighbours_are_not(params):
    local = _local(params)
    branches = [["\na", "b" * 96], ["c"], ["d"]]
    logp_BCO = local.choose(["x", "y" * 200, "z"], branches, OPTIONS)
    assert np.isnan(logp_BCO).any(-1).tolist() == [[False, True], [True, True], [False, True]]
    assert np.allclose(logp_BCO[0, 0], _plain(params, "x\na"), atol=1e-5)
    # The longest that fits: BOS, trunk and branch are max_len tokens.
    assert np.isfinite(local.choose(["x"], [["b" * 94]], OPTIONS)).all()
    assert np.isnan(local.choose(["x"], [["b" * 95]], OPTIONS)).all()


def test_an_unanswerable_prompt_does_not_lengthen_the_batch(params):
    local = _local(params)
    read = local._trunks(["x", "y" * 200])
    trunks, branches, _ = local._tokens(read, [["a", "b" * 96], ["c"]], 0)
    assert trunks == [[Byte().bos, ord("x")], [Byte().bos]] and branches == [[[ord("a")], []], [[]]]


def test_empty_branches_and_no_branches_are_unanswered(params):
    assert np.isnan(_local(params).choose(["x"], [[""]], OPTIONS)).all()
    assert _local(params).choose(["x", "y"], [[], []], OPTIONS).shape == (2, 0, 3)


def test_an_option_of_several_tokens_is_a_user_error(params):
    with pytest.raises(UserError, match="yes"):
        _local(params).choose(["x"], [["y"]], ("yes", "n"))


def test_segments_that_repeat_are_encoded_once(params):
    calls = []

    class Counting(Byte):
        def encode(self, text):
            calls.append(text)
            return super().encode(text)

    texts = [" a", " b", " c"]
    pairs = [("1", a, "2", b, ":") for a in texts for b in texts if a != b]
    Local(LoadedModel(params, CFG, Counting(), meshes.single())).choose(
        ["t"] * 2, [pairs, pairs], ("y", "n")
    )
    assert sorted(calls) == sorted(["t", "1", "2", ":", "y", "n", *texts])


LONG = ["x" * 70, "y", "z" * 60, "w"]
ONE_EACH = [["\na"], ["\nb", "\nc"], ["\nd"], ["e"]]


def _sizes(monkeypatch):
    """Records (B, T) of each padded batch."""
    found = []

    def spy(trunks, branches, pad, T, C, R):
        found.append((len(trunks), T))
        return padded_tree(trunks, branches, pad, T, C, R)

    monkeypatch.setattr(padding, "padded_tree", spy)
    return found


def test_a_long_prompt_pads_only_those_of_its_own_length(params, monkeypatch):
    sizes = _sizes(monkeypatch)
    two = _local(params, batch=2).choose(LONG, ONE_EACH, OPTIONS)
    assert sizes == [(2, 16), (2, 80)]  # in the order given both would be of 80
    one = _local(params, batch=1).choose(LONG, ONE_EACH, OPTIONS)
    assert np.allclose(one, two, atol=1e-5, equal_nan=True)
    assert np.allclose(two[1, 1], _plain(params, "y\nc"), atol=1e-5)


@pytest.mark.slow  # votes hang on the same keys, below
def test_noise_hangs_on_the_place_in_the_question_not_in_the_batch(params):
    ask = lambda batch, trunks: _local(params, batch=batch).generate(
        trunks, ONE_EACH, votes=2, max_tokens=4, sampling=SamplingConfig(), seed=3
    )
    alone = ask(1, LONG)
    assert ask(2, LONG) == alone
    assert ask(2, LONG[::-1])[0] != alone[3]  # another place, other noise


def test_rows_that_ask_nothing_are_not_run(params, monkeypatch):
    sizes = _sizes(monkeypatch)
    logp_BCO = _local(params, batch=2).choose(LONG, [["a"], [], [], ["b"]], OPTIONS)
    answered = np.isfinite(logp_BCO).all((1, 2)).tolist()
    assert sizes == [(2, 80)] and answered == [True, False, False, True]


# Trunks kept over several questions.

ROUNDS = [
    [["\na", "b" * 96], ["\nb"], [], ["e"]],
    [["\nbb", "\nc", "d"], [], ["\nd", "f" * 30], []],
    [[], ["\nb", "c" * 20], ["\nd"], ["e"]],  # by branches too the second would follow the last
]


def _encodings(monkeypatch):
    """Records the caches that `encoding` creates."""
    made, encode = [], encoding

    def spy(cfg):
        def run(params, tokens_BT):
            made.append(encode(cfg)(params, tokens_BT))
            return made[-1]

        return run

    monkeypatch.setattr(local_generator, "encoding", spy)
    return made


def _equal(one, two):
    assert np.isfinite(one).any()
    return np.allclose(np.exp(one), np.exp(two), atol=1e-5, equal_nan=True)


@pytest.mark.parametrize(
    ("batch", "times"),
    [
        pytest.param(1, 4, marks=pytest.mark.slow),
        (2, 2),  # several batches and several calls
        pytest.param(4, 1, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_kept_trunks_are_encoded_once_and_verdicts_stay(params, monkeypatch, batch, times):
    made = _encodings(monkeypatch)
    ask = _local(params, batch=batch).keep(LONG)
    for branches in ROUNDS:
        assert _equal(ask(branches, OPTIONS), _local(params).choose(LONG, branches, OPTIONS))
    assert len(made) == times
    assert sum(c.trunk_k_LBGTH.shape[1] for c in made) == 4  # each trunk once


@pytest.mark.slow  # the same verdicts: test_kept_trunks_are_encoded_once
def test_what_does_not_fit_is_encoded_in_every_call(params, monkeypatch):
    """Trunks have 16, 16, 64 and 80 tokens; a token takes 2 * 2 layers * 2 heads * 8 * 4 bytes."""
    token, made = 256, _encodings(monkeypatch)
    for tokens, kept in [(0, []), (32, [16, 16]), (100, [16, 16, 64]), (176, [16, 16, 64, 80])]:
        made.clear()
        ask = _local(params, batch=1, keep_bytes=tokens * token).keep(LONG)
        for branches in ROUNDS[:2] + ROUNDS[:1]:
            assert _equal(ask(branches, OPTIONS), _local(params).choose(LONG, branches, OPTIONS))
        assert sorted(c.trunk_k_LBGTH.shape[3] for c in made) == kept


def test_a_kept_trunk_is_not_read_again(params):
    """In one pass matrix products have a row for each token of trunk and branches."""
    tree = padded_tree([[1] * 30], [[[2] * 5] * 3], 0, 32, 3, 8)
    last_BC, options_O = np.full((1, 3), 4), np.array([7, 8])
    cache = jax.eval_shape(encoding(CFG), params, tree.tokens_BT)

    def rows(*args):
        jaxpr = program(CFG).trace(params, tree, last_BC, options_O, *args).jaxpr
        found = jaxprs.shapes(jaxprs.live(jaxpr), "dot_general")
        return {s[0] for s in found if s[1:] == (CFG.hidden,)}

    assert rows() == {32 + 3 * 8} and rows(cache) == {3 * 8}


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
@pytest.mark.slow  # test_sharding has the same model on a mesh
def test_trunks_are_kept_in_parts_on_a_mesh_of_eight(params, monkeypatch):
    made, mesh = _encodings(monkeypatch), meshes.build(meshes.MeshConfig(2, 2, 2))
    places = jax.tree.map(lambda x: x.sharding, decoder.abstract(CFG, mesh))
    # Four trunks of 80 tokens; a device has one of them, and one of two heads.
    local = _local(jax.device_put(params, places), mesh, keep_bytes=80 * 128)
    ask = local.keep(LONG)
    for branches in ROUNDS:
        assert _equal(ask(branches, OPTIONS), _local(params).choose(LONG, branches, OPTIONS))
    (cache,) = made
    assert {s.data.shape for s in cache.trunk_k_LBGTH.addressable_shards} == {(2, 1, 1, 80, 8)}
    assert local._bytes(4, 80) == 80 * 128


class Forgetful:
    """The local decoder, called without a cache in every round."""

    def __init__(self, local):
        self.choose, self.calls = self._counted, 0
        self.local = local

    def _counted(self, *args):
        self.calls += 1
        return self.local.choose(*args)


@pytest.mark.slow
def test_a_schedule_of_several_rounds_encodes_prefixes_once(params, monkeypatch):
    made = _encodings(monkeypatch)
    aspect = dataclasses.replace(prompts.load("quality"), options=("y", "n"))
    texts = [[f" {c}{'ab'[b]}" for c in "abcdefg"] for b in range(2)]
    cfg = dataclasses.replace(CFG, max_len=128)

    def score(textgen, schedule):
        judge = TextJudge(textgen, (aspect,), {"quality": 1.0}, min_mass=0.0, schedule=schedule)
        return judge.score(["p", "pp"], texts, ["", ""], np.ones((2, 7), bool)).scores_BK

    adaptive = ScheduleConfig("adaptive", budget=0.7, rounds=3)
    score(_local(params, cfg=cfg), ScheduleConfig("all"))
    assert not made  # a single round keeps nothing
    kept = score(_local(params, cfg=cfg), adaptive)
    assert len(made) == 1
    forgetful = Forgetful(_local(params, cfg=cfg))
    assert np.allclose(kept, score(forgetful, adaptive), atol=1e-5)
    assert forgetful.calls == 3 and len(made) == 1 and np.ptp(kept) > 1e-3


def test_pack_pads_and_forks_at_the_trunks_end():
    tree = padded_tree([[1, 2, 3], [4]], [[[5], [6, 7]], [[8]]], 0, 4, 3, 2)
    assert tree.tokens_BT.tolist() == [[1, 2, 3, 0], [4, 0, 0, 0]]
    assert tree.tokens_BCR.tolist() == [[[5, 0], [6, 7], [0, 0]], [[8, 0], [0, 0], [0, 0]]]
    assert tree.mask_BCR.sum(-1).tolist() == [[1, 2, 0], [1, 0, 0]]
    assert tree.fork_BC.tolist() == [[3, 3, 3], [1, 1, 1]]


def test_buckets_are_few_and_never_too_small():
    sizes = [bucket(n, 16) for n in range(2000)]
    assert all(size >= n and size % 16 == 0 for n, size in enumerate(sizes))
    assert len(set(sizes)) < 32 and [bucket(n) for n in (0, 1, 6, 30, 272)] == [1, 1, 6, 32, 320]


def test_tokens_of_segments_are_their_tokens_joined():
    assert tokens_of(Byte(), ("ab", "", "c")) == tokens_of(Byte(), "abc")


def test_scripted_sees_the_whole_text_and_pads_ragged_rows():
    def fn(trunk, branch, options):
        return (0.25, 0.75) if trunk + branch == "Another, longer trunk:\ncc:" else (1.0, 0.0)

    p_BCO = np.exp(Scripted(fn).choose(TRUNKS, BRANCHES, ("y", "n")))
    assert np.allclose(p_BCO[1, 0], [0.25, 0.75]) and np.allclose(p_BCO[2], [1.0, 0.0])
    assert np.isnan(p_BCO[1, 1:]).all()


def test_a_rule_prefers_the_text_of_more_distinct_words():
    rule = ruled("distinct_words")
    rich, poor = " a b c d", " a a a a"
    pair = [("One:", rich, "Two:", poor, ":"), ("One:", poor, "Two:", rich, ":")]
    p_BCO = np.exp(rule.choose(["t"], [pair], ("one", "two")))
    assert p_BCO[0, 0, 0] > 0.99 and np.allclose(p_BCO[0, 0], p_BCO[0, 1, ::-1])
    point = np.exp(rule.choose(["t"], [[("", " a a b b", ":")]], ("none", "some", "all")))
    assert np.allclose(point, [[[0.0, 1.0, 0.0]]])


def test_the_rule_of_marks_prefers_the_text_with_fewer():
    """1 / (1 + n) of no mark and three: sigmoid(8 * .75); other marks do not count."""
    pair = [("One:", " a b", "Two:", " *a *b *", ":"), ("One:", " ¿a", "Two:", " b", ":")]
    p_BCO = np.exp(ruled("fewer_marks", "*").choose(["t"], [pair], ("one", "two")))
    assert np.allclose(p_BCO[0, :, 0], [1 / (1 + np.exp(-6)), 0.5])


def test_an_unknown_rule_is_a_user_error():
    with pytest.raises(UserError, match="distinct_words"):
        ruled("distinct")
