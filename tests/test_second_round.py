"""A second round of odd inputs for five kinds of faults, 40 each. The outcome of each is a value
that a person worked out, one line that names what is wrong, or a mask.

ids and stops           files beside a tokenizer -> (BOS, EOS, pad, stops), or an error
answers without an end  an answer, in the form of a server or of a model -> a verdict, or why none
numbers not finite      numbers in verdicts, tables, JSON and configs -> masked, null or refused
environment             paths, URLs, keys, caches and answers of servers -> a value, or an error
config values           a value of a key of a recipe -> an error that names the key
"""

import copy
import dataclasses
import json
import math

import numpy as np
import pytest
import tiny
import tiny_recipe
from ml_collections import ConfigDict

from sip import workdir
from sip.data import records
from sip.judge import prompts, verdicts, voting
from sip.judge.build import JudgeConfig
from sip.models.config import ModelConfig
from sip.sampling import SamplingConfig
from sip.sections import plain, section
from sip.stages import recipe
from sip.structs import UserError
from sip.text import special
from sip.textgen import cached, remote, transport
from sip.textgen.protocol import Cut
from sip.textgen.remote import RemoteConfig
from sip.training.optim import OptimConfig

NAN, INF = math.nan, math.inf


class No(str):
    """Words that the error has; any other row's outcome is a value."""


def check(ask, wanted, errors=UserError):
    """Asserts that ask() is `wanted`, or that its error is one line with the words of a `No`."""
    try:
        found = ask()
    except errors as error:
        assert isinstance(wanted, No) and wanted in str(error) and "\n" not in str(error)
    else:
        assert not isinstance(wanted, No) and found == wanted


# 1. Ids and stops.

TOKENS = {"<p>": 0, "<s>": 1, "</s>": 2, "<e>": 3, "<u>": 4, "[A]": 5, "a": 6, "b": 7}
OWN = {"bos_token": 1, "eos_token": 2}  # as a tokenizer.model states them
TOK, GEN, CFG = "tokenizer_config", "generation_config", "config"
MAP, ADDED = "special_tokens_map", "added_tokens"
IDS = [
    # ids of generation_config.json come before those of config.json, each by itself
    ({}, OWN, (1, 2, 2, (2,))),
    ({CFG: {"eos_token_id": 3}}, {}, (3, 3, 3, (3,))),
    ({CFG: {"bos_token_id": 1, "eos_token_id": 3}}, {}, (1, 3, 3, (3,))),
    ({CFG: {"eos_token_id": 3}, GEN: {"eos_token_id": 5}}, {}, (5, 5, 5, (5,))),
    ({CFG: {"bos_token_id": 1, "eos_token_id": 3}, GEN: {"eos_token_id": 5}}, {}, (1, 5, 5, (5,))),
    ({CFG: {"eos_token_id": 3}, GEN: {"eos_token_id": None}}, {}, (3, 3, 3, (3,))),
    ({CFG: {"eos_token_id": 3}, GEN: {"eos_token_id": []}}, {}, (3, 3, 3, (3,))),
    ({CFG: {"eos_token_id": [3, 5]}, GEN: {"eos_token_id": -1}}, {}, (3, 3, 3, (3, 5))),
    ({GEN: {"eos_token_id": [5, 3, 5]}}, {}, (5, 5, 5, (5, 3))),
    ({GEN: {"eos_token_id": [-1, 5]}}, {}, (5, 5, 5, (5,))),
    ({GEN: {"eos_token_id": 3, "pad_token_id": 0}}, {}, (3, 3, 0, (3,))),
    ({GEN: {"eos_token_id": 3, "pad_token_id": -1}}, {}, (3, 3, 3, (3,))),
    # the tokenizer's own ids come before them; all ids of EOS stop
    ({GEN: {"eos_token_id": 3}}, OWN, (1, 2, 2, (2, 3))),
    ({GEN: {"eos_token_id": [3, 2, 5]}}, OWN, (1, 2, 2, (2, 3, 5))),
    ({CFG: {"bos_token_id": 4, "eos_token_id": 3}}, OWN, (1, 2, 2, (2, 3))),
    # names come before all ids
    ({TOK: {"eos_token": "[A]"}}, OWN, (1, 5, 5, (5,))),
    ({TOK: {"eos_token": "[A]"}, GEN: {"eos_token_id": [2, 3]}}, OWN, (1, 5, 5, (5, 2, 3))),
    ({TOK: {"eos_token": {"content": "<e>", "lstrip": False}}}, OWN, (1, 3, 3, (3,))),
    ({TOK: {"eos_token": None}, GEN: {"eos_token_id": 3}}, {}, (3, 3, 3, (3,))),
    ({TOK: {"bos_token": None}}, OWN, (1, 2, 2, (2,))),
    ({TOK: {"pad_token": "<p>"}}, OWN, (1, 2, 0, (2,))),
    ({TOK: {"pad_token": ""}}, OWN, (1, 2, 2, (2,))),
    ({TOK: {"unk_token": "<u>"}}, OWN, (1, 2, 2, (2,))),
    # special_tokens_map.json counts after tokenizer_config.json, unless that has a decoder
    ({MAP: {"eos_token": "<e>"}}, OWN, (1, 3, 3, (3,))),
    ({MAP: {"eos_token": "<e>"}, TOK: {"eos_token": "[A]"}}, OWN, (1, 3, 3, (3,))),
    (
        {MAP: {"eos_token": "<e>"}, TOK: {"eos_token": "[A]", "added_tokens_decoder": {}}},
        OWN,
        (1, 5, 5, (5,)),
    ),
    ({MAP: {"eos_token": None}, TOK: {"eos_token": "[A]"}}, OWN, (1, 2, 2, (2,))),
    # contradictions and wrong shapes
    ({}, {}, No("names no eos_token")),
    ({CFG: {"bos_token_id": 1}}, {}, No("names no eos_token")),
    ({TOK: {"eos_token": "<gone>"}}, OWN, No("no token '<gone>'")),
    ({TOK: {"eos_token": 2}}, OWN, No("eos_token is 2; must be the text of a token")),
    ({TOK: {"eos_token": {"text": "x"}}}, OWN, No("must be the text of a token")),
    ({GEN: {"eos_token_id": 8}}, OWN, No("token id 8 in the files beside it is not among its 8")),
    ({GEN: {"eos_token_id": [2, 99]}}, OWN, No("token id 99")),
    ({GEN: {"pad_token_id": 8}}, OWN, No("token id 8")),
    ({GEN: {"eos_token_id": "2"}}, OWN, No("eos_token_id is '2'; must be a token id")),
    ({GEN: {"eos_token_id": 2.0}}, OWN, No("must be a token id")),
    ({GEN: {"eos_token_id": True}}, OWN, No("must be a token id")),
    ({GEN: {"eos_token_id": [[2]]}}, OWN, No("must be a token id")),
    ({CFG: {"eos_token_id": 2, "vocab_size": 7}}, OWN, No("has 8 tokens, but config.json")),
    ({CFG: {"vocab_size": "8"}}, OWN, No("vocab_size is '8'; must be a whole number")),
]


@pytest.mark.parametrize(("files", "own", "wanted"), IDS)
def test_ids_and_stops(files, own, wanted, tmp_path):
    for name, value in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))

    def resolved():
        known = special.settings(tmp_path)
        special.check_named(tmp_path, known, TOKENS)
        found = special.resolve(tmp_path, known, TOKENS, own, len(TOKENS))
        return found.bos, found.eos, found.pad, found.stops

    check(resolved, wanted)


# 2. Answers that did not end.

SAFETY = prompts.load("reasoned_safety")  # FINAL DECISION: YES or NO
YES = "It is kind.\nFINAL DECISION: YES"
VOTES = [
    (YES, 0),
    (f"{YES}.", 0),
    (f" {YES} \n", 0),
    (f"<think>Hm.</think>{YES}", 0),
    (f"<think>\nFINAL DECISION: NO\n</think>\n\n{YES}", 0),
    (f"FINAL DECISION: NO</think>{YES}", 0),
    ("FINAL DECISION: NO\nFINAL DECISION: YES", 0),
    (None, "failed"),
    (Cut(YES), "cut"),
    (Cut(""), "cut"),
    (Cut(f"<think>Hm.</think>{YES}"), "cut"),
    (f"<think>\n{YES}", "cut"),
    (f"  <think>{YES}", "cut"),
    ("<think>", "cut"),
    (f"<think>\n{YES}</think>", "unread"),
    (f"{YES}</think>I cannot say.", "unread"),
    ("", "unread"),
    ("FINAL DECISION:", "unread"),
    ("FINAL DECISION: YE", "unread"),
    ("FINAL DECISION: YES or", "unread"),
]


@pytest.mark.parametrize(("said", "wanted"), VOTES)
def test_votes(said, wanted):
    assert voting.vote(said, SAFETY) == wanted


ENDS = [  # finish_reason of a server -> whether the answer is whole
    ({"finish_reason": "stop"}, "a"),
    ({"finish_reason": "STOP"}, "a"),
    ({"finish_reason": "eos_token"}, "a"),
    ({"finish_reason": "end_turn"}, "a"),
    ({"finish_reason": "stop_sequence"}, "a"),
    ({}, "a"),
    ({"finish_reason": None}, "a"),
    ({"finish_reason": ""}, "a"),
    ({"finish_reason": "length"}, Cut("a")),
    ({"finish_reason": "Length"}, Cut("a")),
    ({"finish_reason": "max_tokens"}, Cut("a")),
    ({"finish_reason": "content_filter"}, Cut("a")),
    ({"finish_reason": "tool_calls"}, Cut("a")),
    ({"finish_reason": "abort"}, Cut("a")),
    ({"finish_reason": 0}, Cut("a")),
    ({"finish_reason": ["stop"]}, Cut("a")),
    ({"finish_reason": {"type": "stop"}}, Cut("a")),
    ({"finish_reason": False}, Cut("a")),
    ({"finish_reason": "stop", "text": None}, None),
    ({"finish_reason": "length", "text": None}, Cut("")),
]


@pytest.mark.parametrize(("choice", "wanted"), ENDS)
def test_the_ends_of_a_servers_answers_are_kept(choice, wanted):
    """The answer of either API, also after it was written to the cache and read again."""
    text = {"text": "a", **choice}["text"]
    more = {key: value for key, value in choice.items() if key != "text"}
    said = lambda api, text: {"message": {"content": text}} if api == "chat" else {"text": text}
    for api in remote.APIS:
        both = [said(api, "whole"), {**said(api, text), **more}]
        _, row = remote._texts(RemoteConfig(api=api), {"choices": both})
        assert remote._said(*row) == wanted
        assert cached._rows(json.loads(json.dumps(cached._plain([[wanted]])))) == [[wanted]]


# 5. Numbers that are not finite.

DIRECT = [  # log-probabilities of two options -> (score, valid)
    ((0.0, -INF), (1.0, True)),
    ((-INF, 0.0), (0.0, True)),
    ((-INF, -INF), (0.0, False)),
    ((NAN, 0.0), (0.0, False)),
    ((0.0, NAN), (0.0, False)),
    ((NAN, NAN), (0.0, False)),
    ((INF, 0.0), (0.0, False)),
    ((-INF, INF), (0.0, False)),
    ((-INF, NAN), (0.0, False)),
    ((-1e30, 0.0), (0.0, True)),
]


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize(("logp", "wanted"), DIRECT)
def test_direct_verdicts(logp, wanted, hard):
    with np.errstate(all="raise", under="ignore"):
        score, valid = verdicts.direct(np.array([[logp]]), (1.0, 0.0), min_mass=0.5, hard=hard)
    assert (score[0, 0], valid[0, 0]) == wanted


TABLES = [  # log-probability of a token " yes" in a server's answer -> as it is read, or refused
    (-0.5, -0.5),
    (0, 0),
    (-1e9, -1e9),
    (-INF, remote.LOWEST),
    (NAN, No("is nan")),
    (INF, No("is inf")),
    (1.5, No("is 1.5")),
    (None, No("is None")),
    ("-0.5", No("is '-0.5'")),
    (True, No("is True")),
]


@pytest.mark.parametrize(("logp", "wanted"), TABLES)
def test_tables_of_servers(logp, wanted):
    found = {"choices": [{"logprobs": {"top_logprobs": [{" yes": logp}]}}]}
    read = lambda: remote._table(RemoteConfig(), found)[" yes"]
    check(read, wanted, transport.UNREADABLE)


JSON = [
    (NAN, "null"),
    ([1.5, INF], "[1.5, null]"),
    ({"a": -INF}, '{"a": null}'),
    ({"a": {"b": (NAN, 1)}}, '{"a": {"b": [null, 1]}}'),
    (np.float64(NAN), "null"),
    (1e308, "1e+308"),
]


@pytest.mark.parametrize(("value", "wanted"), JSON)
def test_json_is_strict(value, wanted):
    text = workdir.to_json(value)
    assert text == wanted
    json.loads(text, parse_constant=pytest.fail)


MODEL = dataclasses.asdict(tiny.CFG)
SAFE = (("safety", 1.0),)
FLOATS = [  # a class, its other fields, and a field with a number that is none
    (SamplingConfig, {}, "temperature", NAN),
    (SamplingConfig, {}, "temperature", INF),
    (SamplingConfig, {}, "temperature", 1e39),
    (SamplingConfig, {}, "top_p", NAN),
    (RemoteConfig, {}, "timeout_seconds", NAN),
    (RemoteConfig, {}, "timeout_seconds", INF),
    (OptimConfig, dict(lr=0.1, steps=9), "lr", NAN),
    (OptimConfig, dict(lr=0.1, steps=9), "eps", INF),
    (ModelConfig, MODEL, "rope_theta", NAN),
    (ModelConfig, MODEL, "logit_divisor", INF),
    (ModelConfig, MODEL, "final_cap", NAN),
    (JudgeConfig, dict(backend="truth", weights=SAFE), "min_mass", NAN),
    (JudgeConfig, dict(backend="truth", weights=SAFE), "weights", (("safety", INF),)),
    (JudgeConfig, dict(backend="truth", weights=SAFE), "weights", (("safety", 1e39),)),
]


@pytest.mark.parametrize(("cls", "others", "name", "value"), FLOATS)
def test_numbers_of_configs(cls, others, name, value):
    section(cls, others, "s")
    with pytest.raises(UserError, match=rf"\bs\b.*{name}"):
        section(cls, {**others, name: value}, "s")


# 9. Environment and transport.

PLACES = [
    ("/data/x", "/data/x"),
    ("~/x", "/home/me/x"),
    ("a~b", "a~b"),
    ("file:///x%25y", "/x%y"),
    ("FILE:///x", No("must be a local path")),
    ("file://host/x", No("must be a local path")),
    ("https://h/x", No("must be a local path")),
    ("s3:/b", No("must be a local path")),
    ("C:\\x", "C:\\x"),
    ("gs://b", "gs://b"),
]


@pytest.mark.parametrize(("path", "wanted"), PLACES)
def test_places(path, wanted, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    check(lambda: workdir.place(path), wanted)


URLS = [
    ("http://h:8000/v1", None),
    ("https://[::1]:8000/v1", None),
    ("http://h:0/v1", No("url must be like")),
    ("http://h:99999/v1", No("url must be like")),
    ("http://h:x/v1", No("url must be like")),
    ("http:///v1", No("url must be like")),
    ("h:8000/v1", No("url must be like")),
    ("unix:///run/x", No("url must be like")),
    ("http://[::1/v1", No("url must be like")),
    ("http://u:p@h/v1", No("use key_env")),
    ("http://h/v1?key=1", No("use key_env")),
    ("http://h/v1#x", No("use key_env")),
    ("http://h/v 1", No("url must be like")),
    ("http://h/v1\x1b[2J", No("url must be like")),
]


@pytest.mark.parametrize(("url", "wanted"), URLS)
def test_urls(url, wanted):
    check(lambda: transport.check_url(url), wanted)


BODIES = [  # a server's answer with status 200 -> its texts, or why it cannot be read
    ({"choices": [{"text": "a"}]}, [["a", True]]),
    ({"choices": [{"text": "a"}, {"text": ""}]}, [["a", True], ["", True]]),
    ({"choices": []}, No("no choices")),
    ({"choices": None}, No("no choices")),
    ({"choices": {"0": {"text": "a"}}}, No("no choices")),
    ({"choices": [{"text": 3}]}, No("no texts")),
    ({"choices": [{"text": ["a"]}]}, No("no texts")),
    ({"choices": [{}]}, No("text")),
    ({"choices": [None]}, No("subscriptable")),
    ({"detail": "not found"}, No("no choices")),
    ([], No("no choices")),
    ("ok", No("no choices")),
]


@pytest.mark.parametrize(("body", "wanted"), BODIES)
def test_bodies_of_servers(body, wanted):
    check(lambda: remote._texts(RemoteConfig(), body), wanted, transport.UNREADABLE)


ERRORS = [  # an answer with status 200 -> the error in it
    ({"choices": [], "error": "x"}, None),
    ({"error": {"message": "x", "code": 429}}, {"message": "x", "code": 429}),
    ({"error": None}, None),
    ({"object": "error", "message": "x"}, {"object": "error", "message": "x"}),
    ([{"error": "x"}], None),
]


@pytest.mark.parametrize(("body", "wanted"), ERRORS)
def test_errors_with_status_200(body, wanted):
    assert transport._error_of(body) == wanted


LINES = [  # a line of JSON, as a text of a corpus -> its text, or why it is left out
    (b'{"text": "a"}', "a"),
    (b'{"text": "a\\u2028b"}', "a\u2028b"),
    (b'{"text": "\\ud800"}', "not UTF-8"),
    (b'{"text": null}', "null"),
    (b'{"text": NaN}', "no string"),
    (b'{"text": "\xff"}', "not UTF-8"),
    (b"[" * 100_000, "not a JSON object"),
]


@pytest.mark.parametrize(("line", "wanted"), LINES, ids=[str(wanted) for _, wanted in LINES])
def test_lines_of_files(line, wanted, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "first"}\n' + line + b"\n")
    _, (record, reason) = records.read(str(tmp_path / "a.jsonl"), "jsonl")
    text, why = ("", reason) if reason else records.text_of(record["text"])
    assert (text or why) == wanted


# 12. Config values.

SIP, BASE = "runs.sip_learned", "runs.base"
VALUES = [
    ("seed", True, "config seed"),
    ("compile", "fast", "config compile"),
    ("order", ("base", "../base"), "config order"),
    ("order", ("base", 3), "config order"),
    ("report.journeys", (("base",), ("base", "standard")), "report.journeys"),
    ("data.source", "csv", "data.source"),
    ("data.field", "body", "data.field"),
    ("data.separator", "", "data.separator"),
    ("data.mix", {"a": {}}, "data.mix"),
    ("data.cut.suffix", "x", "data.cut.suffix"),
    ("data.world.train", 0, "config data.world.train=0"),
    ("data.world.bad", 2.0, "config data.world.bad=2.0"),
    ("data.contamination.ngram", 0, "data.contamination.ngram"),
    ("tokenizer.symbols", ("",), "tokenizer.symbols"),
    ("tokenizer.path", "http://x/t.model", "config tokenizer: http://x/t.model"),
    ("runs", {}, "no run 'base'"),
    (f"{SIP}.optim", 3, f"{SIP}.optim: 3 must be"),
    (f"{BASE}.optim", None, f"{BASE}.optim: None must be"),
    (f"{SIP}.judge", None, f"{SIP}.judge: None must be"),
    (f"{BASE}.task", 3, f"{BASE}.task.name"),
    (f"{BASE}.stage", None, f"{BASE}.stage"),
    (f"{SIP}.steps", 2.0, f"{SIP}.steps"),
    (f"{SIP}.split", "Train", f"{SIP}.split"),
    (f"{SIP}.split", "train[:1000000000000000000000%]", f"{SIP}.split"),
    (f"{SIP}.init_from", "standard/../base", f"{SIP}.init_from"),
    (f"{SIP}.init_from", "sip_learned", f"{SIP}.init_from 'sip_learned'"),
    (f"{SIP}.optim.warmup_steps", 10**6, f"{SIP}.optim.warmup_steps"),
    (f"{SIP}.optim.b1", 1.0, f"{SIP}.optim.b1"),
    (f"{SIP}.mesh.fsdp", -2, f"{SIP}.mesh"),
    (f"{SIP}.lora.matrices", ("wx",), "lora.matrices: no 'wx'"),
    (f"{SIP}.candidates.rollouts", ((0, True),), f"{SIP}.candidates.rollouts"),
    (f"{SIP}.candidates.rejected", "best", f"{SIP}.candidates.rejected"),
    (f"{SIP}.judge.weights", (("quality",),), f"{SIP}.judge.weights"),
    (f"{SIP}.judge.init_from", "judge/best/best", f"{SIP}.judge.init_from"),
    (f"{SIP}.judge.schedule.rounds", 0, f"{SIP}.judge.schedule.rounds"),
    (f"{SIP}.judge.http.specials", ("",), "specials"),
    (f"{SIP}.objective.ce_steps", 0, f"{SIP}.objective.ce_steps"),
    (f"{SIP}.evals.split", "validation[5:", f"{SIP}.evals.split"),
    (f"{SIP}.watch.recent", 0, f"{SIP}.watch.recent"),
    (f"{BASE}.model.rope_dims", 3, "model.rope_dims must be even"),
    (f"{BASE}.task.filter", {"judge": {}}, f"{BASE}.task.filter.judge.backend: missing"),
]
WHOLE = plain(tiny_recipe.get_config())


@pytest.mark.parametrize(("key", "value", "said"), VALUES)
def test_config_values(key, value, said, tmp_path):
    values = copy.deepcopy(WHOLE)
    values["runs"]["sip_learned"]["evals"]["baseline"] = "base"
    tiny_recipe.put(values, key, value)
    with pytest.raises(UserError) as error:
        recipe.check(ConfigDict(values, type_safe=False), str(tmp_path))
    assert said in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).count("config ") == 1
