"""Tests a model behind HTTP against the same model in this process."""

import math

import hostile
import numpy as np
import pytest
import tiny
import tiny_recipe
from serving import Model, Parsing, echo, serve

from sip import mesh as meshes
from sip.judge import build as judges
from sip.judge import prompts
from sip.judge.scoring import TextJudge
from sip.loading import LoadedModel
from sip.sampling import SamplingConfig
from sip.structs import UserError
from sip.text import tokenizer as tokenizers
from sip.text.tokenizer import Byte
from sip.textgen.local import Local
from sip.textgen.protocol import Cut
from sip.textgen.remote import NEGLIGIBLE, Remote, RemoteConfig
from sip.textgen.scripted import Scripted, ruled

BYTES = tiny.model(vocab_size=264, max_len=96)
PIECES = tiny.model(vocab_size=448, max_len=96)
TRUNKS = ["One trunk:", ("Another, ", "longer", " trunk:"), ("<s>", "x")]
BRANCHES = [["\na", ("\nb", " long branch", " here")], ["\ncc:"], [("", "d"), "e", "ff", "h\n"]]
GREEDY, FREE = SamplingConfig(temperature=0.0), SamplingConfig()


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    symbols = prompts.symbols([prompts.load("quality"), prompts.load("safety")])
    return tokenizers.train_sentencepiece(
        ["some plain words to train on."] * 9, path, vocab_size=400, symbols=symbols
    )


def config(server, **changes):
    return RemoteConfig(url=server.url, model="m", **{"retries": 0, "logprobs": 999, **changes})


def pair(cfg, tokenizer, specials=(), **options):
    """Returns the local model, and the one to serve."""
    params = tiny.params(cfg)
    local = Local(LoadedModel(params, cfg, tokenizer, meshes.single()))
    return local, Model(params, cfg, Parsing(tokenizer, specials), **options)


def test_a_server_of_the_same_model_answers_as_the_model_here():
    local, model = pair(BYTES, Byte())
    want = local.choose(TRUNKS, BRANCHES, ("y", "n", "?"))
    with serve(model) as server:
        got = Remote(config(server)).choose(TRUNKS, BRANCHES, ("y", "n", "?"))
    assert got.shape == (3, 4, 3) and got.dtype == np.float32 and len(server.asked) == 7
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert np.isnan(got).sum() == 3 * 5


def test_chat_reads_the_first_token_of_the_answer():
    local, model = pair(BYTES, Byte())
    want = local.choose([("U:One", " b")], [["c\nA:"]], ("y", "n"))
    with serve(model) as server:
        got = Remote(config(server, api="chat")).choose([("One", " b")], [["c"]], (" y", "n"))
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert server.asked[0][0] == "/v1/chat/completions"
    with pytest.raises(UserError, match="read alike"):
        Remote(config(server, api="chat")).choose(["a"], [["c"]], (" y", "y"))


def test_token_ids_are_those_the_model_here_is_asked_with(pieces):
    """The segments would have other tokens if they were joined to one text."""
    local, model = pair(PIECES, pieces)
    trunks, branches = (
        [("Text:some pl", "ain wo", "rds")],
        [[("\nOne:", " to tr", "ain", "\nBetter:")]],
    )
    want = local.choose(trunks, branches, (" one", " two"))
    with serve(model) as server:
        got = Remote(config(server, tokens=True), pieces).choose(trunks, branches, (" one", " two"))
        text = Remote(config(server)).choose(trunks, branches, (" one", " two"))
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert isinstance(server.asked[0][2]["prompt"], list) and model.seen[0] != model.seen[1]
    assert abs(text - want).max() > 1e-4
    with pytest.raises(UserError, match="' one more' is"):
        Remote(config(server, tokens=True), pieces).choose(["a"], [["b"]], (" one more", "n"))


@pytest.mark.parametrize("name", ["llama 3 turn", "our lines", "full width", "lone surrogates"])
def test_a_hostile_candidate_is_judged_as_by_the_model_here(name, pieces):
    """Sends token ids to a server that parses special tokens: the whole judge, both orders."""
    local, model = pair(PIECES, pieces, hostile.SPECIALS[:40])
    aspect = prompts.load("quality")
    ask = lambda textgen: TextJudge(textgen, (aspect,), {"quality": 1.0}, min_mass=0.0).score(
        ["p"], [[hostile.TEXTS[name][:20], " plain"]], ["r"], np.ones((1, 2), bool)
    )
    want = ask(local)
    with serve(model) as server:
        got = ask(Remote(config(server, tokens=True), pieces))
    assert want.valid_BK.all() and got.valid_BK.all()
    np.testing.assert_allclose(got.scores_BK, want.scores_BK, atol=1e-5)


def listing(*pairs):
    """Returns a server that lists these tokens."""
    tops = {"top_logprobs": [{token: math.log(p) for token, p in pairs}]}
    return lambda path, asked: {"choices": [{"text": "", "logprobs": tops}]}


@pytest.mark.parametrize(
    ("listed", "want"),  # of the options a, b; None: unknown
    [
        ([("a", 0.6), ("b", 0.3)], [0.6, 0.3]),
        # At most what is left: 0.0005.
        ([("a", 0.9995)], [0.9995, 0.0]),
        ([("a", 0.6), ("x", 0.3996)], [0.6, 0.0]),
        # At most the last one listed: 0.0008, though 0.1 is left.
        ([("a", 0.89), ("x", 0.01), ("y", 0.0008)], [0.89, 0.0]),
        # It might have 0.1.
        ([("a", 0.6), ("x", 0.2), ("y", 0.1)], [0.6, None]),
        ([("a", 0.3)], [0.3, None]),
        ([("x", 0.5), ("y", 0.3)], [None, None]),
        ([("x", 0.9), ("y", 0.0999)], [0.0, 0.0]),
        # A fourth token beside the three asked for says nothing of the others.
        ([("a", 0.6), ("x", 0.2), ("y", 0.1), ("z", 1e-9)], [0.6, None]),
    ],
)
def test_an_option_that_is_not_listed_is_negligible_or_unknown(listed, want):
    with serve(listing(*listed)) as server:
        logp = Remote(config(server, logprobs=3)).choose(["t"], [["b"]], ("a", "b"))[0, 0]
    np.testing.assert_allclose(np.exp(logp), np.array(want, float), rtol=1e-6)


def test_a_short_list_never_makes_up_a_number():
    local, model = pair(BYTES, Byte())
    options = tuple("abcdefghijklmnopqrstuvwxyz")
    want = local.choose(TRUNKS, BRANCHES, options)
    seen = []
    with serve(model) as server:
        for logprobs in (1, 20, 200):
            got = Remote(config(server, logprobs=logprobs)).choose(TRUNKS, BRANCHES, options)
            known, zero = np.isfinite(got), np.isneginf(got)
            np.testing.assert_allclose(got[known], want[known], atol=1e-5)
            assert (np.exp(want[zero]) <= NEGLIGIBLE).all()
            seen.append(int(known.sum()))
    assert 0 <= seen[0] < seen[1] < seen[2]


def texts(one, seed=0, votes=3, sampling=FREE, max_tokens=5):
    return one.generate(
        TRUNKS, BRANCHES, votes=votes, max_tokens=max_tokens, sampling=sampling, seed=seed
    )


@pytest.mark.parametrize("api", [pytest.param("completions", marks=pytest.mark.slow), "chat"])
def test_votes_are_the_same_asked_together_or_one_by_one(api):
    _, model = pair(BYTES, Byte())
    found = []
    for most in (99, 2, 1):
        model.most = most
        with serve(model) as server:
            found.append(texts(Remote(config(server, api=api, logprobs=0))))
        assert len(server.asked) == 7 * (1 + max(0, 3 - most))
    assert found[0] == found[1] == found[2]
    assert [[len(votes) for votes in row] for row in found[0]] == [[3, 3], [3], [3] * 4]
    flat = [vote for row in found[0] for votes in row for vote in votes]
    assert len(set(flat)) > 15 and None not in flat


def test_another_seed_draws_apart_and_the_same_one_alike():
    with serve(echo) as server:
        one = Remote(config(server))
        sets = [
            {v for row in texts(one, seed) for votes in row for v in votes} for seed in range(9)
        ]
        assert texts(one, 4) == texts(one, 4)
    assert len(set.union(*sets)) == 9 * 3, "neighbouring seeds share no vote"
    seeds = [asked["seed"] for _, _, asked in server.asked]
    assert 0 <= min(seeds) and max(seeds) < 2**31 - 100


def test_greedy_votes_are_asked_once_and_are_the_models_own():
    _, model = pair(BYTES, Byte())
    with serve(model) as server:
        found = texts(Remote(config(server)), sampling=GREEDY)
    assert len(server.asked) == 7 and {asked["n"] for _, _, asked in server.asked} == {1}
    ids = [Byte.bos, *Byte().encode("One trunk:\na")]
    for _ in range(5):
        ids.append(int(np.argmax(model.logp(ids)[:259])))
    assert found[0][0] == [Byte().decode(ids[-5:])] * 3


def test_sampling_is_sent_and_only_where_it_says_something():
    with serve(echo) as server:
        texts(Remote(config(server)), sampling=SamplingConfig(0.5, top_k=7, top_p=0.9))
        texts(Remote(config(server)))
    first, last = server.asked[0][2], server.asked[-1][2]
    assert [first[k] for k in ("temperature", "top_k", "top_p", "max_tokens", "n")] == [
        0.5, 7, 0.9, 5, 3,
    ]  # fmt: skip
    assert "top_k" not in last and last["temperature"] == 1.0


def test_a_failed_vote_is_none_and_its_neighbours_are_not(tmp_path):
    def answer(path, asked):
        said = [None, "b"] if asked["n"] == 2 else ["c"]
        return {"choices": [{"message": {"content": text}} for text in said]}

    faults = [("status", (500,))]
    with serve(answer, faults) as server:
        wanted = config(server, api="chat", concurrency=1, cache=str(tmp_path))
        found = Remote(wanted).generate(
            ["x"], [["y", "z"]], votes=2, max_tokens=1, sampling=FREE, seed=0
        )
    assert found == [[[None, None], [None, "b"]]]
    assert not list(tmp_path.rglob("*.json")), "an answer with a failure in it is not kept"


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_an_answer_that_did_not_end_is_cut_also_from_the_cache(api, tmp_path):
    """The reason is null if a server gives none; a chat model may be cut in its thought."""
    whys = ["stop", None, "length", "content_filter", "abort", "EOS", 7, ""]

    def answer(path, asked):
        texts = ["a"] * len(whys) if api == "completions" else ["a", "a", None, *["a"] * 5]
        one = lambda text: {"message": {"content": text}} if api == "chat" else {"text": text}
        said = [one(text) | {"finish_reason": why} for text, why in zip(texts, whys, strict=True)]
        return {"choices": said}

    empty = "" if api == "chat" else "a"
    want = ["a", "a", Cut(empty), Cut("a"), Cut("a"), "a", Cut("a"), "a"]
    with serve(answer) as server:
        for _ in range(2):
            found = Remote(config(server, api=api, cache=str(tmp_path))).generate(
                ["x"], [["y"]], votes=len(whys), max_tokens=1, sampling=FREE, seed=0
            )
            assert found == [[want]]
    assert len(server.asked) == 1


def test_a_server_that_does_not_say_why_an_answer_ended_is_named(caplog):
    for why, count in (("length", 0), (None, 1)):
        said = {"choices": [{"text": "a", "finish_reason": why}]}
        with serve(lambda *_, said=said: said) as server:
            Remote(config(server, logprobs=0)).check()
        assert caplog.text.count("no finish_reason; texts that max_tokens cuts") == count


def spoken(token, logp):
    return {"token": token, "logprob": logp}


TABLES = {  # how servers write the first tokens, and what " one" and " two" then are
    "a space in chat": ("chat", {"content": [{"top_logprobs": [
        spoken(" one", -0.5), spoken(" two", -1.5)]}]}, [-0.5, -1.5]),
    "both spellings in chat": ("chat", {"content": [{"top_logprobs": [
        spoken(" one", -1.5), spoken("one", -1.5), spoken("two", -2)]}]}, [np.log(2) - 1.5, -2]),
    "the sampled token twice": ("chat", {"content": [{"top_logprobs": [
        spoken("one", -0.5), spoken("one", -0.5), spoken("two", -1.5)]}]}, [-0.5, -1.5]),
    "pieces of SentencePiece": (
        "completions", {"top_logprobs": [{"\u2581one": -0.5, "\u2581two": -1.5}]}, [-0.5, -1.5]),
    "pieces of GPT-2": (
        "completions", {"top_logprobs": [{"\u0120one": -0.5, " two": -1.5}]}, [-0.5, -1.5]),
    "chat's form in completions": ("completions", {"content": [{"top_logprobs": [
        spoken(" one", -0.5), spoken(" two", -1.5)]}]}, [-0.5, -1.5]),
}  # fmt: skip


@pytest.mark.parametrize(("api", "logprobs", "want"), TABLES.values(), ids=TABLES)
def test_an_option_is_found_however_a_server_writes_it(api, logprobs, want):
    with serve(lambda *_: {"choices": [{"text": "", "logprobs": logprobs}]}) as server:
        found = Remote(config(server, api=api)).choose(["a"], [["b"]], (" one", " two"))
    np.testing.assert_allclose(found[0, 0], want, atol=1e-6)


def test_an_impossible_token_is_kept_too(tmp_path):
    body = b'{"choices": [{"logprobs": {"top_logprobs": [{" one": -0.001, " two": -Infinity}]}}]}'
    with serve(faults=[("body", body)] * 2) as server:
        for _ in range(2):
            one = Remote(config(server, cache=str(tmp_path)))
            found = one.choose(["a"], [["b"]], (" one", " two"))[0, 0]
            np.testing.assert_allclose(np.exp(found), [np.exp(-0.001), 0], atol=1e-6)
    assert len(server.asked) == 1


def test_options_that_no_answer_lists_are_said(caplog):
    tops = {"top_logprobs": [{"one": -0.5, "two": -1.5}]}
    with serve(lambda *_: {"choices": [{"text": "", "logprobs": tops}]}) as server:
        found = Remote(config(server)).choose(["a"], [["b"]], (" one", " two"))
    assert np.isnan(found).all() and "lists ' one', ' two'; likeliest: 'one', 'two'" in caplog.text


def test_a_judge_of_reasoned_aspects_asks_for_no_log_probabilities():
    mute = lambda path, asked: {"choices": [{"text": "a", "finish_reason": "stop"}]}
    with serve(mute) as server:
        wanted = judges.JudgeConfig("http", (("reasoned_safety", 1.0),), config(server))
        wanted.reach()
        both = (("reasoned_safety", 1.0), ("safety", 1.0))
        with pytest.raises(UserError, match="no log-probabilities"):
            judges.JudgeConfig("http", both, config(server, retries=0)).reach()
    assert "logprobs" not in server.asked[0][2] and server.asked[1][2]["logprobs"]


def test_what_is_kept_is_what_was_said(tmp_path):
    _, model = pair(BYTES, Byte())
    with serve(model) as server:
        wanted = config(server, cache=str(tmp_path))
        first, logp = texts(Remote(wanted)), Remote(wanted).choose(TRUNKS, BRANCHES, ("y", "n"))
        count = len(server.asked)
        assert texts(Remote(wanted)) == first and texts(Remote(wanted), seed=1) != first
        again = Remote(wanted).choose(TRUNKS, BRANCHES, ("y", "n"))
        assert len(server.asked) == count + 7
    assert np.array_equal(logp, again, equal_nan=True)


def test_the_check_asks_one_token_and_knows_a_server_without_log_probabilities():
    mute = lambda path, asked: {"choices": [{"text": "a"}]}
    with serve() as server:
        Remote(config(server)).check()
        assert [asked["max_tokens"] for _, _, asked in server.asked] == [1]
    with serve(mute) as server:
        with pytest.raises(UserError, match="returns no log-probabilities"):
            Remote(config(server)).check()
        Remote(config(server, logprobs=0)).check()
        with pytest.raises(UserError, match="logprobs must be"):
            Remote(config(server, logprobs=0)).choose(["a"], [["b"]], ("c",))


def test_a_server_that_does_not_name_tokens_by_ids_is_known():
    with serve() as server, pytest.raises(UserError, match="name tokens by their ids"):
        Remote(config(server, tokens=True), Byte()).check()


@pytest.mark.parametrize(
    ("field", "value"),
    [("api", "words"), ("concurrency", 0), ("timeout_seconds", 0.0), ("timeout_seconds", math.inf),
     ("timeout_seconds", 1e10),
     ("retries", -1), ("logprobs", -1), ("url", "localhost"), ("cache", "gs://b/kept")],
)  # fmt: skip
def test_a_config_that_cannot_be_names_its_field(field, value):
    with pytest.raises(UserError, match=field):
        RemoteConfig(**{field: value})


def test_a_cache_is_a_path_like_any_other(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert RemoteConfig(cache="~/kept").cache == "/home/me/kept"
    assert RemoteConfig(cache="file:///a%20b").cache == "/a b"


def test_what_a_server_needs_is_named():
    with pytest.raises(UserError, match="url is needed"):
        Remote(RemoteConfig())
    with pytest.raises(UserError, match="model is needed"):
        Remote(RemoteConfig(url="http://h/v1"))
    with pytest.raises(UserError, match="tokens: only the completions"):
        RemoteConfig(api="chat", tokens=True)
    with pytest.raises(UserError, match="tokenizer is needed"):
        Remote(RemoteConfig(url="http://h/v1", model="m", tokens=True))
    with pytest.raises(UserError, match="logprobs"):
        http = RemoteConfig(url="http://h/v1", model="m", logprobs=0)
        judges.JudgeConfig("http", (("quality", 1.0),), http)
    with pytest.raises(UserError, match="url is needed"):
        judges.JudgeConfig("http", (("quality", 1.0),))


POINTS = """kind: pointwise
options: {}
values: [0, 1]
=== trunk
Text:{{prefix}}
=== branch
Continuation:{{text}}
Points:"""


def test_options_of_which_one_begins_another_are_refused_on_a_server(tmp_path):
    """A tokenizer that splits digits answers 10 by "1" first: a confident verdict of 1."""
    path = tmp_path / "points.txt"
    http = dict(url="http://h/v1", model="m")
    judge = lambda **more: judges.JudgeConfig(
        "http", ((str(path), 1.0),), RemoteConfig(**http, **more)
    )
    path.write_text(POINTS.format('["1", "10"]'))
    for api in ("completions", "chat"):
        with pytest.raises(UserError, match="'points': option '1' begins option '10'.*http.tokens"):
            judge(api=api)
    assert judge(tokens=True).aspects()[0].options == ("1", "10")
    path.write_text(POINTS.format('[" good", "goodness"]'))
    assert judge()
    with pytest.raises(UserError, match="option 'good' begins option 'goodness'"):
        judge(api="chat")


def test_the_configs_http_section_is_complete():
    assert set(tiny_recipe.common.http()) == set(RemoteConfig.__dataclass_fields__)


def test_scripted_words_and_a_rule_without_any():
    say = lambda trunk, branch, vote: f"{trunk}{branch}{vote}" if vote else None
    how = dict(votes=2, max_tokens=1, sampling=FREE, seed=0)
    found = Scripted(lambda *_: (1.0,), say).generate([("a", "b")], [["c", ("d", "e")]], **how)
    assert found == [[[None, "abc1"], [None, "abde1"]]]
    silent = [[[None, None], [None, None]]]
    for one in (Scripted(lambda *_: (1.0,)), ruled("distinct_words")):
        assert one.generate(["a"], [["c", "d"]], **how) == silent


def test_the_judge_logs_what_its_server_took():
    aspect = prompts.load("quality")
    with serve(faults=[("status", (503,))]) as server:
        one = Remote(config(server, retries=1), sleep=lambda _: None)
        judge = TextJudge(one, (aspect,), {"quality": 1.0}, stats=one.stats)
        score = lambda: judge.score(["p"], [[" a", " b"]], ["r"], np.ones((1, 2), bool)).metrics
        first, second = score(), score()
    assert first["remote/requests"] == (3, 2) and second["remote/requests"] == (2, 2)
    assert first["remote/retries"] == (1, 2) and first["judge/valid"] == (2, 2)


def test_tokens_are_counted_if_the_server_tells_its_usage(tmp_path):
    told = {"usage": {"prompt_tokens": 7, "completion_tokens": 1}}
    spent = ("judge/prompt_tokens", "judge/answer_tokens")
    absurd = {"usage": {"prompt_tokens": int("9" * 400), "completion_tokens": 1}}
    none = [(0, 0), (0, 0)]
    for more, want in ((told, [(14, 1), (2, 1)]), ({}, none), (absurd, none)):
        with serve(lambda *of, more=more: {**echo(*of), **more}) as server:
            one = Remote(config(server, cache=str(tmp_path)))
            one.choose(["x"], [["y", "z"]], (" one", " two"))
            found = one.stats()
            one.choose(["x"], [["y", "z"]], (" one", " two"))  # from the cache
            again = one.stats()
        assert [found[key] for key in spent] == want
        assert [again[key] for key in spent] == [(0, 0), (0, 0)]
