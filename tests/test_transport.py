"""Tests faults of a server, and that the API key is never shown."""

import email.utils
import gzip
import io
import json
import logging
import time
import traceback
import zlib

import numpy as np
import pytest
from serving import echo, serve
from workdirs import files

from sip.sampling import SamplingConfig
from sip.structs import UserError
from sip.textgen import exchange, remote, transport
from sip.textgen.remote import Remote, RemoteConfig

KEY = "sk-canary-5b1f0c"
OPTIONS = (" one", " two")
TRUE = np.array([-0.25, -1.75], np.float32)


def config(url, **changes):
    fixed = dict(model="judge", timeout_seconds=5.0, retries=3, logprobs=2)
    return RemoteConfig(url=url, **{**fixed, **changes})


def asked(server, prompts=("a",), **changes):
    """Returns (logp_BO of one branch per prompt, waits in seconds, statistics)."""
    waits = []
    one = Remote(config(server.url, **changes), sleep=waits.append)
    logp_BCO = one.choose(prompts, [[":"]] * len(prompts), OPTIONS)
    every = one.stats()
    stats = {k.removeprefix("remote/"): x for k, (x, _) in every.items() if k[:6] == "remote"}
    return logp_BCO[:, 0], waits, stats


def status(code, **headers):
    return "status", (code, *((k.replace("_", "-"), v) for k, v in headers.items()))


PASSING = {  # faults that pass: tried again up to `retries` times
    "busy": status(429),
    "conflict": status(409),
    "too slow a request": status(408),
    "broken": status(500),
    "gateway": status(503),
    "an error in the body": ("body", b'{"error": {"code": 502, "message": "upstream"}}'),
    "half a body": ("half", None),
    "hung up": ("drop", None),
}
ODD = {  # answers of another form: tried again once, as the server would answer alike
    "garbage": ("body", b"<html>welcome</html>"),
    "empty": ("body", b""),
    "not UTF-8": ("body", b'{"choices": "\xff\xfe"}'),
    "deep": ("body", b"[" * 100_000),
    "another object": ("body", b'{"choices": []}'),
    "no log-probabilities": ("body", b'{"choices": [{"text": "one", "logprobs": null}]}'),
    "not a number": (
        "body",
        b'{"choices": [{"logprobs": {"top_logprobs": [{" one": NaN, " two": -1}]}}]}',
    ),
    "more than certain": (
        "body",
        b'{"choices": [{"logprobs": {"top_logprobs": [{" one": 0, " two": -0.5}]}}]}',
    ),
    "a word": ("body", b'{"choices": [{"logprobs": {"top_logprobs": [{" one": "high"}]}}]}'),
    "a huge number": (
        "body",
        b'{"choices": [{"logprobs": {"top_logprobs": [{" one": -1%s}]}}]}' % (b"0" * 400),
    ),
    "null logprobs": ("body", b'{"choices": [{"logprobs": {"top_logprobs": [null]}}]}'),
    "a list": ("body", b'{"choices": [{"logprobs": {"top_logprobs": [[" one", -1]]}}]}'),
    "text as logprobs": ("body", b'{"choices": [{"logprobs": "high"}]}'),
    "a null number": (
        "body",
        b'{"choices": [{"logprobs": {"top_logprobs": [{" one": null, " two": -1}]}}]}',
    ),
    "choices of null": ("body", b'{"choices": [null]}'),
    "an error without a code": ("body", b'{"error": "the model is not loaded"}'),
    "an error object": ("body", b'{"object": "error", "message": "busy?", "code": 50001}'),
    "null": ("body", b"null"),
    "a large answer": ("body", b" " * (exchange.MOST_BYTES + 1)),
    "a large packed answer": ("packed", ("gzip", gzip.compress(b" " * (99 << 20), 1))),
    "not gzip": ("packed", ("gzip", b"plain")),
    "packed oddly": ("packed", ("br", b"plain")),
}
FAULTS = PASSING | ODD


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_is_tried_again_and_then_answered(fault):
    with serve(faults=[fault]) as server:
        logp_BO, waits, stats = asked(server)
    assert np.array_equal(logp_BO, [TRUE])
    assert stats == {"requests": 2, "retries": 1, "failed": 0, "cached": 0}
    assert len(waits) == 1 and 0 <= waits[0] <= transport.FIRST_WAIT


@pytest.mark.parametrize("name", FAULTS)
def test_a_lasting_fault_is_given_up_counted_and_not_scored(name, caplog):
    tries = 2 if name in ODD else 4
    with serve(faults=[FAULTS[name]] * 9) as server:
        logp_BO, waits, stats = asked(server)
    assert np.isnan(logp_BO).all() and len(server.asked) == tries
    assert stats == {"requests": tries, "retries": tries - 1, "failed": 1, "cached": 0}
    assert len(waits) == tries - 1
    assert "1 of 1 answers failed" in caplog.text and server.url in caplog.text


def test_one_prompts_fault_is_not_its_neighbours():
    with serve(faults=[("half", None)] * 2) as server:
        logp_BO, _, stats = asked(server, prompts="abcdef", concurrency=1, retries=1)
    assert np.isnan(logp_BO[0]).all() and np.array_equal(logp_BO[1:], [TRUE] * 5)
    assert stats["failed"] == 1


def test_silence_is_bounded():
    with serve(faults=[("silence", None)] * 2) as server:
        logp_BO, _, stats = asked(server, timeout_seconds=0.1, retries=1)
    assert np.isnan(logp_BO).all() and stats["requests"] == 2


def test_a_dripping_server_is_bounded_as_a_whole():
    for fault in ("drip", "slow headers", "continue"):
        with serve(faults=[(fault, None)]) as server:
            start = time.monotonic()
            logp_BO, _, stats = asked(server, timeout_seconds=0.2, retries=0)
            assert np.isnan(logp_BO).all() and stats["requests"] == 1
            assert time.monotonic() - start < 2


def test_a_packed_answer_is_unpacked():
    data = json.dumps(echo("", {})).encode()
    faults = [
        ("packed", ("gzip", gzip.compress(data))),
        ("packed", ("deflate", zlib.compress(data))),
    ]
    with serve(faults=faults) as server:
        assert np.array_equal(asked(server, prompts="ab", retries=0)[0], [TRUE, TRUE])


def test_an_error_in_the_body_is_said_in_its_own_words():
    body = b'{"error": {"message": "The model `judge` does not exist", "code": 404}}'
    with serve(faults=[("body", body)]) as server, pytest.raises(UserError) as error:
        Remote(config(server.url)).check()
    assert "status 404" in str(error.value) and "does not exist" in str(error.value)
    assert len(server.asked) == 1
    body = b'{"error": {"message": "Sorry", "code": "overloaded"}}'
    with serve(faults=[("body", body)] * 9) as server, pytest.raises(UserError) as error:
        Remote(config(server.url), sleep=lambda _: None).check()
    assert "answered with an error" in str(error.value) and "Sorry" in str(error.value)


def test_a_redirection_names_its_target():
    with serve(faults=[status(308, location="https://new.example/v1")]) as server:
        with pytest.raises(UserError, match="redirected to https://new.example/v1"):
            Remote(config(server.url)).check()


VARIABLES = {
    "a scheme": ({"ALL_PROXY": "socks4://127.0.0.1:1"}, "http://h/v1", "ALL_PROXY: cannot be used"),
    "a port": ({"https_proxy": "http://h:port"}, "http://h/v1", "https_proxy: cannot be used"),
    "certificates": ({"SSL_CERT_FILE": "/no/such.pem"}, "http://127.0.0.1/v1", "SSL_CERT_FILE: "),
    "keys": ({"SSLKEYLOGFILE": "/no/such/log"}, "http://127.0.0.1/v1", "SSLKEYLOGFILE: "),
    "a url": ({}, "http://" + "x" * 64 + ".example/v1", "x.example"),
}


@pytest.fixture
def plain_env(monkeypatch):
    for name in (*exchange.PROXIES, *exchange.CERTIFICATES):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch.setenv


@pytest.mark.parametrize(("variables", "url", "named"), VARIABLES.values(), ids=VARIABLES)
def test_what_is_wrong_with_the_environment_is_one_line_that_names_it(
    variables, url, named, plain_env
):
    for name, value in variables.items():
        plain_env(name, value)
    with pytest.raises(UserError, match=named) as error:
        Remote(config(url, retries=0)).check()
    assert "\n" not in str(error.value)


def test_a_loopback_server_is_asked_without_a_proxy_and_others_name_it(plain_env):
    plain_env("http_proxy", "http://127.0.0.1:9")
    with serve() as server:
        assert np.array_equal(asked(server)[0], [TRUE])
    with pytest.raises(UserError, match="no answer: .*through the proxy in http_proxy"):
        Remote(config("http://judge.example/v1", retries=0)).check()


def test_a_certificate_that_is_not_trusted_is_not_asked_again(monkeypatch):
    import httpx

    tries = []

    def refuse(self, *_):
        tries.append(1)
        raise httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate")

    monkeypatch.setattr(exchange.Wire, "post", refuse)
    with pytest.raises(UserError, match="self-signed.*SSL_CERT_FILE"):
        Remote(config("https://127.0.0.1:1/v1")).check()
    assert len(tries) == 1


def test_a_server_that_is_down_fails_every_answer_and_the_check_in_one_line():
    with serve() as server:
        pass
    logp_BO, _, stats = asked(server, prompts="abc")
    assert np.isnan(logp_BO).all() and stats["failed"] == 3 and stats["requests"] == 12
    with pytest.raises(UserError, match="no answer: ConnectError") as error:
        Remote(config(server.url), sleep=lambda _: None).check()
    assert server.url in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("said", "least", "most"),
    [
        ("7", 7, 7.5),
        ("100000", transport.LONGEST_WAIT, transport.LONGEST_WAIT),
        ("-1", 0, 0.5),
        ("nan", 0, 0.5),
        ("soon", 0, 0.5),
        (email.utils.formatdate(0, usegmt=True), 0, 0.5),
        (email.utils.formatdate(4e9, usegmt=True), transport.LONGEST_WAIT, transport.LONGEST_WAIT),
    ],
)
def test_retry_after_is_honoured_up_to_a_limit(said, least, most):
    with serve(faults=[status(429, retry_after=said)]) as server:
        _, waits, _ = asked(server)
    assert least <= waits[0] <= most


def test_waits_double_at_most_and_are_jittered():
    found = np.array([[transport._wait(attempt, None) for attempt in range(9)] for _ in range(200)])
    most = np.minimum(transport.FIRST_WAIT * 2.0 ** np.arange(9), transport.LONGEST_WAIT)
    assert (found >= 0).all() and (found <= most).all()
    assert (found.mean(0) > 0.3 * most).all() and (found.std(0) > 0.15 * most).all()


@pytest.mark.parametrize("code", [401, 403, 404, 405, 301, 400, 422])
def test_what_the_user_can_mend_is_one_line_naming_url_and_status(code):
    with serve(faults=[status(code)] * 40) as server, pytest.raises(UserError) as error:
        asked(server, prompts="abcdefgh", concurrency=2)
    line = str(error.value)
    assert server.url in line and f"status {code}" in line and "said the server" in line
    assert "\n" not in line and len(server.asked) < 8, "the others are not asked for"


@pytest.mark.parametrize("code", [400, 413, 422])
def test_a_prompt_refused_by_a_server_that_works_is_a_failed_answer(code):
    with serve() as server:
        one = Remote(config(server.url))
        one.check()
        server.faults.append(status(code))
        logp_BCO = one.choose(["a", "b"], [[":"]] * 2, OPTIONS)
    assert sorted(np.isnan(logp_BCO).all((1, 2))) == [False, True]
    assert one.stats()["remote/failed"] == (1, 3) and len(server.asked) == 3


def test_no_more_requests_than_allowed_run_at_a_time():
    with serve() as server:
        asked(server, prompts=[str(i) for i in range(40)], concurrency=3)
    assert len(server.asked) == 40 and server.most_live <= 3


def test_equal_prompts_are_asked_once():
    with serve() as server:
        logp_BO, _, stats = asked(server, prompts="aabab")
    assert len(server.asked) == 2 and np.array_equal(logp_BO, [TRUE] * 5)


def test_statistics_are_per_answer_and_start_again():
    with serve(faults=[status(500)]) as server:
        one = Remote(config(server.url), sleep=lambda _: None)
        one.choose(["a", "b"], [[":"]] * 2, OPTIONS)
    want = {"requests": (3, 2), "retries": (1, 2), "failed": (0, 2), "cached": (0, 2)}
    untold = {f"judge/{k}_tokens": (0, 0) for k in ("prompt", "answer")}  # the server says nothing
    assert one.stats() == {f"remote/{k}": v for k, v in want.items()} | untold
    assert one.stats() == {f"remote/{k}": (0, 0) for k in want} | untold


def test_it_works_where_an_event_loop_is_running():
    import asyncio

    async def cell(server):
        return asked(server)[0]

    with serve() as server:
        assert np.array_equal(asyncio.run(cell(server)), [TRUE])


@pytest.mark.parametrize(
    "url",
    ["http://me:secret@host/v1", "http://host/v1?key=secret", "http://host/v1#secret",
     "ftp://host/v1", "host:8000", "http://", "http://host:port/v1", "http://ho st/v1", "http://[::1"],
)  # fmt: skip
def test_a_bad_url_is_rejected_and_a_secret_in_it_not_repeated(url):
    with pytest.raises(UserError, match="url must") as error:
        RemoteConfig(url=url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("value", [None, "", " ", "two words", "line\nbreak", "schl\u00fcssel"])
def test_an_unusable_key_is_named_by_its_variable(value, monkeypatch):
    monkeypatch.delenv("SIP_TEST_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("SIP_TEST_KEY", value)
    with pytest.raises(UserError, match="environment variable SIP_TEST_KEY") as error:
        remote.check(config("http://127.0.0.1:1/v1", key_env="SIP_TEST_KEY"))
    assert not (value or "").strip() or value not in str(error.value)


def spoken(error) -> str:
    """Returns all text of an exception: its chain, with the variables of every frame."""
    found = io.StringIO()
    while error is not None:
        whole = traceback.TracebackException.from_exception(error, capture_locals=True)
        print(repr(error), error, error.args, *whole.format(chain=True), file=found)
        error = error.__context__
    return found.getvalue()


@pytest.mark.parametrize("fault", [status(401), status(500), ("half", None), ("silence", None)])
def test_the_key_is_sent_and_said_nowhere(fault, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("SIP_TEST_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with serve(faults=[fault] * 2) as server:
        wanted = config(
            server.url, key_env="SIP_TEST_KEY", cache=str(tmp_path), timeout_seconds=0.2, retries=1
        )
        one = Remote(wanted, sleep=lambda _: None)
        with pytest.raises(UserError) as error:
            one.check()
        server.faults.clear()
        one.choose(["a"], [[":"]], OPTIONS)
        one.generate(["a"], [[":"]], votes=2, max_tokens=4, sampling=SamplingConfig(), seed=0)
    assert all(h["authorization"] == f"Bearer {KEY}" for _, h, _ in server.asked)
    assert len(server.asked) >= 3 and len(files(tmp_path)) == 2
    said = [spoken(error.value), caplog.text, repr(one), repr(wanted), repr(one._endpoint)]
    said += [str(r.__dict__) for r in caplog.records] + list(map(str, files(tmp_path).items()))
    said += [json.dumps(one.stats())]
    assert [text for text in said if KEY in text] == []
    assert "[key]" in said[0] or fault[0] != "status", "the server's echo of it was cut out"
    assert error.value.__context__ is None and error.value.__cause__ is None


def test_without_a_key_none_is_sent():
    with serve() as server:
        asked(server)
    assert "authorization" not in {name.lower() for name in server.asked[0][1]}


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(UserError, match=r"sip-jax\[serve\]"):
        Remote(config("http://127.0.0.1:1/v1"))


def test_answers_are_kept_and_failures_are_not(tmp_path):
    with serve(faults=[status(500)]) as server:
        first, _, stats = asked(server, cache=str(tmp_path / "kept"), retries=0)
        assert np.isnan(first).all() and not files(tmp_path) and stats["failed"] == 1
        second, _, _ = asked(server, cache=str(tmp_path / "kept"))
        third, _, stats = asked(server, cache=str(tmp_path / "kept"))
    assert len(server.asked) == 2 and np.array_equal(second, third)
    assert stats == {"requests": 0, "retries": 0, "failed": 0, "cached": 1}


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b"null", b'{" one": 3}', b"[]", b"{}"])
def test_a_damaged_kept_answer_is_asked_for_again(damage, tmp_path):
    with serve() as server:
        asked(server, cache=str(tmp_path))
        (name,) = files(tmp_path)
        (tmp_path / name).write_bytes(damage)
        again, _, stats = asked(server, cache=str(tmp_path))
        assert np.array_equal(again, [TRUE]) and stats["cached"] == 0
        assert asked(server, cache=str(tmp_path))[2]["cached"] == 1
    assert len(files(tmp_path)) == 1, "no part of a file is left behind"


def test_whatever_changes_an_answer_changes_where_it_is_kept(tmp_path):
    changes = [
        {}, {"model": "other"}, {"api": "chat"}, {"logprobs": 3},
    ]  # fmt: skip
    draws = [{}, {"seed": 1}, {"votes": 3}, {"max_tokens": 5}, {"sampling": SamplingConfig(0.5)}]
    same = dict(votes=2, max_tokens=4, sampling=SamplingConfig(), seed=0)
    with serve(talk) as server, serve(talk) as other:
        for change in changes:
            Remote(config(server.url, cache=str(tmp_path), **change)).choose(
                ["a"], [["b"]], OPTIONS
            )
        for change in draws:
            one = Remote(config(server.url, cache=str(tmp_path)))
            one.generate(["a"], [["b"]], **{**same, **change})
        Remote(config(server.url, cache=str(tmp_path))).choose(["a"], [["c"]], OPTIONS)
        assert len(files(tmp_path)) == len(server.asked) == len(changes) + len(draws) + 1
        for _ in range(2):
            Remote(config(other.url, cache=str(tmp_path))).choose(["a"], [["c"]], OPTIONS)
    assert len(other.asked) == 1, "one name at two addresses may be two models"


def talk(path, payload):
    """Answers like `echo` in both APIs."""
    found = echo(path, payload)
    if "messages" in payload:
        for choice in found["choices"]:
            (table,) = choice["logprobs"]["top_logprobs"]
            listed = [{"token": token.strip(), "logprob": p} for token, p in table.items()]
            choice["logprobs"] = {"content": [{"top_logprobs": listed}]}
            choice["message"] = {"content": choice["text"]}
    return found


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("kept")
    with serve() as server, pytest.raises(UserError, match="cache .*file: cannot be written"):
        asked(server, cache=str(tmp_path / "file"))
