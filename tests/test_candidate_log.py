"""Tests candidates.jsonl: lines by hand, the words of a judge, the bound of the file, resuming."""

import json

import numpy as np
import pytest

from sip import metrics
from sip.judge import prompts
from sip.judge.judged import Judged
from sip.judge.schedules import ScheduleConfig
from sip.judge.scoring import TextJudge
from sip.judge.voting import Heard, Voting
from sip.metrics import StepLines
from sip.stages import candidate_log as log
from sip.stages.candidate_log import Answered, CandidateLog
from sip.stages.collect import Choice, Pool, Seen
from sip.structs import UserError
from sip.text.tokenizer import Byte
from sip.textgen.protocol import Cut
from sip.textgen.scripted import Scripted
from sip.training.loop import LogConfig

SAFETY, QUALITY = prompts.load("reasoned_safety"), prompts.load("reasoned_quality")
YES = "Kind. FINAL DECISION: YES"


def judge(words, heard, votes=2, **options):
    aspects = (SAFETY, QUALITY)
    weights = {a.name: 1.0 for a in aspects}
    voting = Voting(votes=votes)
    return TextJudge(Scripted(lambda *_: (1, 0), words), aspects, weights, voting=voting,
                     heard=heard, **options)  # fmt: skip


def words(trunk, branch, vote):
    """Longer texts are better; a text with "!" gets no verdict."""
    if "Option 2" in branch:
        a, b = (line.split(":", 1)[1] for line in branch.split("\n")[1:3])
        return f"Conclusion: Option {1 if len(a) > len(b) else 2}"
    return "Hm." if "!" in branch else Cut("Let me") if vote else YES


def score(asked, mask):
    texts = [["a", "bb!", "ccc"]] * 3
    return asked.score(["p", "q", "r"], texts, [""] * 3, np.array([mask] * 3))


@pytest.mark.parametrize("schedule", ["all", "against"])
def test_the_words_of_a_judge_change_no_verdict_and_belong_to_their_candidates(schedule):
    how = dict(schedule=ScheduleConfig(schedule))
    plain, kept = (score(judge(words, n, **how), [True, False, True]) for n in (0, 2))
    assert plain.heard == () and kept.metrics == plain.metrics
    assert (kept.scores_BK == plain.scores_BK).all() and (kept.valid_BK == plain.valid_BK).all()
    assert {x.row for x in kept.heard} == {0, 1}  # no more than asked for
    of = lambda name: [x for x in kept.heard if (x.row, x.aspect) == (1, name)]
    said = [(x.candidate, x.against, x.text, x.value) for x in of("reasoned_safety")]
    assert said == [(k, None, *x) for k in (0, 2) for x in ((YES, 1.0), ("Let me", None))]
    said = [(x.candidate, x.against, x.text, x.value) for x in of("reasoned_quality")]
    first, second = "Conclusion: Option 1", "Conclusion: Option 2"
    assert sorted(said) == sorted(
        [(0, 2, second, 0.0)] * 2 + [(2, 0, first, 1.0)] * 2
    )  # the longer text wins in both orders


def test_an_answer_that_failed_is_kept_as_an_empty_text():
    found = score(judge(lambda *_: None, 1, votes=1), [True, False, False])
    assert [(x.candidate, x.text, x.value) for x in found.heard] == [(0, "", None)]


def seen(choice, judged=True):
    """Two prefixes: suffix, rewrite and two rollouts; the second row has all kinds of failures."""
    live_BK = np.array([[1, 1, 1, 1], [1, 0, 1, 1]], bool)
    mask_BKR = np.repeat(live_BK[..., None], 3, axis=2)
    mask_BKR[0, 2, 2] = False
    valid_BK = live_BK.copy()
    valid_BK[1, 3] = False
    texts = [[" s", " r", " x", " y"], [" s", "", " s2", " s"]]
    tokens_BKR = np.zeros(mask_BKR.shape, int)
    sources = ["suffix", "rewrite", "rollout", "rollout"]
    pool = Pool(tokens_BKR, mask_BKR, valid_BK, sources, texts, np.zeros(mask_BKR.shape))
    scores_BK = np.array([[0.1, 0.9, 0.5, 0.3], [0.4, 0, 0, 0]])
    read_BK = valid_BK & np.array([[1, 1, 1, 1], [1, 1, 0, 1]], bool)
    heard = (Heard(0, 1, "quality", 3, "It is.", 1.0), Heard(1, 1, "quality", None, "No", None))
    aspects = {"quality": (scores_BK, read_BK)}
    verdicts = Judged(scores_BK, read_BK, aspects, {}, "judge", {}, heard)
    end = ["one", "two"], [" s", None], pool
    return Seen(*end, verdicts if judged else None, read_BK if judged else valid_BK, choice)


PAIR = Choice(np.array([[1, 0], [0, 0]]), np.array([[True, True], [False, False]]))


def test_lines_of_a_pair_by_hand():
    first, second = log.candidates(7, seen(PAIR), 4)
    assert [first[key] for key in log.KEYS[:5]] == [7, 0, "candidates", "one", " s"]
    assert second["reference"] is None
    suffix, rewrite, x, y = first["candidates"]
    assert rewrite == dict(
        source="rewrite", text=" r", score=0.9, aspects={"quality": 0.9}, valid=True, why=None,
        chosen=True, rejected=False, advantage=None, tokens=3, ended=None,
        said=[dict(aspect="quality", against=3, text="It is.", value=1.0)],
    )  # fmt: skip
    assert suffix["rejected"] and not suffix["chosen"] and suffix["said"] == []
    assert x["tokens"] == 2 and not (y["chosen"] or y["rejected"])
    assert [c["why"] for c in second["candidates"]] == [
        None, "no rewrite", "no verdict", "duplicate"]  # fmt: skip
    assert [c["score"] for c in second["candidates"]] == [0.4, None, None, None]
    assert not any(c["chosen"] or c["rejected"] for c in second["candidates"])  # a tie is no pair
    assert second["candidates"][1]["said"][0]["text"] == "No"
    assert len(log.candidates(7, seen(PAIR), 1)) == 1


def test_lines_of_a_group_have_advantages_and_no_pair():
    advantage_BC = np.array([[0.25, -0.25], [0, 0]])
    group = Choice(np.array([[2, 3]] * 2), np.array([[1, 1], [0, 0]], bool), advantage_BC)
    first, second = log.candidates(1, seen(group), 2)
    assert [c["advantage"] for c in first["candidates"]] == [None, None, 0.25, -0.25]
    assert [c["advantage"] for c in second["candidates"]] == [None] * 4
    assert not any(c["chosen"] or c["rejected"] for c in first["candidates"])


def test_lines_without_a_judge_have_no_scores():
    first, _ = log.candidates(1, seen(PAIR, judged=False), 2)
    assert [(c["score"], c["aspects"], c["valid"]) for c in first["candidates"]] == [
        (None, {}, True)] * 4  # fmt: skip


def answered(**changes):
    tok = Byte()
    ids = [[tok.encode("yes") + [tok.eos], tok.encode("no")], [tok.encode("so"), []]]
    of = dict(
        prompts=[[tok.bos, *tok.encode("q?")], [tok.bos, *tok.encode("r?")]],
        references=lambda: ["yes", None],
        ids=ids,
        reward_BK=np.array([[1.5, 0.0], [0.5, 0.0]], np.float32),
        parts={"right": np.array([[1, 0], [0, 0]], np.float32), "kl": np.full((2, 2), 0.5)},
        valid_BK=np.array([[True, False], [True, False]]),
        advantage_BK=np.array([[0.5, 0], [-0.5, 0]], np.float32),
        heard=(Heard(1, 0, "quality", None, "Fine.", 0.5),),
    )
    return Answered(**of | changes)


def test_lines_of_answers_by_hand():
    tok = Byte()
    first, second = log.answers(3, answered(), 2, tok, (tok.eos,))
    assert (first["kind"], first["reference"], second["reference"]) == ("answers", "yes", None)
    assert first["prompt"].endswith("q?")
    yes, no = first["candidates"]
    assert yes["source"] == "answer" and yes["text"].startswith("yes") and yes["ended"] is True
    assert (yes["score"], yes["aspects"]) == (1.5, {"right": 1.0, "kl": 0.5})
    assert (yes["advantage"], yes["tokens"], yes["why"]) == (0.5, 4, None)
    assert (no["why"], no["ended"], no["score"], no["advantage"]) == (
        "not ended",
        False,
        None,
        None,
    )
    assert no["aspects"] == {"right": None, "kl": None}
    so, none = second["candidates"]
    assert so["said"] == [dict(aspect="quality", against=None, text="Fine.", value=0.5)]
    open_ended, _ = log.answers(3, answered(references=None), 2, tok, ())
    assert open_ended["reference"] is None
    assert [(c["ended"], c["why"]) for c in open_ended["candidates"]] == [
        (None, None), (None, "no reward")]  # fmt: skip


def a_log(path, resume=None, **config):
    return CandidateLog(str(path), LogConfig(**config), resume)


def line(step, row=0, text="x"):
    return dict(step=step, row=row, kind="answers", prompt=text, reference=None, candidates=[])


def steps(path):
    return [row["step"] for row in log.read(path)]


def test_it_is_due_at_the_first_the_last_and_every_nth_step(tmp_path, monkeypatch):
    some = a_log(tmp_path, candidates_every=3)
    assert [n for n in range(1, 9) if some.due(n, 8)] == [1, 3, 6, 8]
    assert not any(a_log(tmp_path, candidates_every=0).due(n, 8) for n in range(1, 9))
    assert LogConfig(candidates_every=0).heard == 0 and LogConfig(candidates_rows=3).heard == 3
    monkeypatch.setattr(log.processes, "lead", lambda: False)
    assert not any(some.due(n, 8) for n in range(1, 9))


def test_the_bound_drops_every_second_older_step_and_never_the_newest(tmp_path):
    size = len(json.dumps(line(10, 1))) + 1
    some = a_log(tmp_path, candidates_bytes=9 * size)  # two lines a step: four steps fit
    for step in range(10, 16):
        some.write([line(step, 0), line(step, 1)])
        assert steps(tmp_path)[-1] == step
    # At 14 the file had 10 11 12 13 14: 11 and 13 went. 15 fits.
    assert steps(tmp_path) == [10, 10, 12, 12, 14, 14, 15, 15]
    some.write([line(16, 0), line(16, 1)])  # of 10 12 14 15 16 the places 1 and 3 go
    assert steps(tmp_path) == [10, 10, 14, 14, 16, 16]
    some.write([line(17, 0, "y" * 9 * size)])  # larger than the bound by itself
    assert steps(tmp_path) == [17]
    some.write([line(18)])
    assert steps(tmp_path) == [18]


def test_a_resumed_log_drops_the_steps_that_run_again(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for path, last in ((whole, 5), (cut, 4)):
        some = a_log(path)
        for step in range(1, last + 1):
            some.write([line(step, text=f"é {step}\u2028\n")])
    with open(cut / log.FILE, "a") as file:
        file.write('{"step": 5, "ro')  # killed while it wrote
    again = a_log(cut, resume=2)
    assert steps(cut) == [1, 2]
    for step in range(3, 6):
        again.write([line(step, text=f"é {step}\u2028\n")])
    assert (cut / log.FILE).read_bytes() == (whole / log.FILE).read_bytes()
    a_log(cut, resume=None)
    assert steps(cut) == []


def test_nothing_is_made_for_a_log_without_lines(tmp_path):
    a_log(tmp_path)
    assert not list(tmp_path.iterdir()) and log.read(tmp_path) == []


def test_hostile_texts_stay_one_line_each(tmp_path):
    texts = ["\ud800", "a\nb\r\nc", "\u2028\u2029\x85", '"}', "\0", "</script>", "日本"]
    some = a_log(tmp_path)
    some.write([line(1, i, text) for i, text in enumerate(texts)])
    assert [row["prompt"] for row in log.read(tmp_path)] == ["?", *texts[1:]]
    assert "日本".encode() in (tmp_path / log.FILE).read_bytes()
    assert len((tmp_path / log.FILE).read_bytes().split(b"\n")) == len(texts) + 1


def test_a_file_of_another_form_is_named(tmp_path):
    (tmp_path / log.FILE).write_text('{"step": 3, "row": 0}\n')
    with pytest.raises(UserError, match="step 3 has no 'kind'"):
        log.read(tmp_path)


def test_batches_of_several_updates_are_due_as_steps_are(tmp_path):
    def due(every, each):
        kept = CandidateLog(str(tmp_path), LogConfig(candidates_every=every), None)
        return [step for step in range(each, 13, each) if kept.due(step, 12, each)]

    assert due(5, 1) == [1, 5, 10, 12]
    assert due(5, 2) == [2, 6, 10, 12]
    assert due(100, 3) == [3, 12]
    assert due(0, 1) == []


def test_nothing_written_makes_no_file(tmp_path):
    StepLines(tmp_path / "x.jsonl").write([])
    assert not list(tmp_path.iterdir())


def test_a_file_in_a_store_is_the_file_on_disk(tmp_path, monkeypatch):
    def wrote(path, resume):
        lines = StepLines(path / "x.jsonl", resume)
        for step in range((resume or 0) + 1, 6):
            lines.write([{"step": step, "text": "ü"}])
        lines.rewrite(lambda row: row["step"] != 2)
        lines.write([{"step": 6}])
        return (path / "x.jsonl").read_bytes()

    disk = [wrote(tmp_path / "disk", resume) for resume in (None, 3)]
    monkeypatch.setattr(metrics, "appends", lambda path: False)
    assert [wrote(tmp_path / "store", resume) for resume in (None, 3)] == disk
