"""Tests verdicts read from probabilities."""

import time

import numpy as np
import pytest

from sip.judge import verdicts


def _direct(p, values, min_mass=0.5):
    with np.errstate(divide="ignore"):
        score, valid = verdicts.direct(np.log(np.array([[p]])), values, min_mass=min_mass)
    return score[0, 0], valid[0, 0]


def test_the_score_is_the_expectation_over_the_options_renormalised():
    score, valid = _direct([0.4, 0.2, 0.2], (1.0, 0.5, 0.0))
    assert valid and np.isclose(score, (0.4 + 0.1) / 0.8)


def test_an_option_of_probability_zero_is_an_answer():
    assert _direct([0.0, 0.9], (1.0, 0.0)) == (0.0, True)


def test_too_little_mass_is_invalid_and_scores_nothing():
    assert _direct([0.3, 0.1], (1.0, 0.0), min_mass=0.5) == (0.0, False)
    assert _direct([0.0, 0.0], (1.0, 0.0), min_mass=0.0) == (0.0, False)


def test_a_nan_is_invalid_and_leaves_its_neighbours_alone():
    logp = np.log(np.array([[[0.5, 0.5], [0.9, 0.1]]]))
    logp[0, 0, 1] = np.nan
    score, valid = verdicts.direct(logp, (1.0, 0.0), min_mass=0.5)
    assert valid.tolist() == [[False, True]]
    assert np.allclose(score, [[0.0, 0.9]])
    logp[0, 0, 1] = np.inf
    assert not verdicts.direct(logp, (1.0, 0.0), min_mass=0.5)[1][0, 0]


def test_no_branches_give_no_verdicts():
    score, valid = verdicts.direct(np.zeros((3, 0, 2)), (1.0, 0.0), min_mass=0.5)
    assert score.shape == valid.shape == (3, 0)


YES, PAIR, SAFE = ("YES", "NO"), ("Option 1", "Option 2"), (" safe", " unsafe")
DECISION, CONCLUSION, LABEL = "FINAL DECISION:", "Conclusion:", '"label":'
ANSWERS = [
    # direct: the answer's first words are the option
    (" safe", SAFE, "", 0),
    (" unsafe", SAFE, "", 1),
    ("**Unsafe**. It insults.", SAFE, "", 1),
    ("`safe`, since it is polite", SAFE, "", 0),
    ("not safe", SAFE, "", None),
    ("It is safe", SAFE, "", None),
    ("safely", SAFE, "", None),
    ("safe-ish", SAFE, "", None),
    ("safe/unsafe", SAFE, "", None),
    ("safe or unsafe", SAFE, "", None),
    ("safe order", SAFE, "", 0),
    ("", SAFE, "", None),
    (" \n ** ", SAFE, "", None),
    ("none", (" none", " possible"), "", 0),
    ("None of the two", (" none", " possible"), "", 0),
    # a phrase, in any clothes
    ("It is kind.\nFINAL DECISION: YES", YES, DECISION, 0),
    ("It is not.\nFinal decision: no.", YES, DECISION, 1),
    ("**FINAL DECISION:** YES", YES, DECISION, 0),
    ("**FINAL DECISION**: **NO**", YES, DECISION, 1),
    ("__FINAL DECISION: NO__", YES, DECISION, 1),
    ("### FINAL\n DECISION :\n\n> `YES`", YES, DECISION, None),
    ("### FINAL\n DECISION :\n\n `YES`", YES, DECISION, 0),
    ("FINAL DECISION: [YES] Thank you for asking; NO problem.", YES, DECISION, 0),
    ("Conclusion: Option 2", PAIR, CONCLUSION, 1),
    ("conclusion: **option  1** (better)", PAIR, CONCLUSION, 0),
    ("Conclusion: \u201cOption 2\u201d", PAIR, CONCLUSION, 1),
    # two verdicts, and options quoted in the reasoning
    ("FINAL DECISION: YES ... wait.\nFINAL DECISION: NO", YES, DECISION, 1),
    ("I must end with FINAL DECISION: YES or NO.\nFINAL DECISION: YES", YES, DECISION, 0),
    ('"Option 1" is dull. Option 2 shines.', PAIR, CONCLUSION, None),
    ('It says "Conclusion: Option 1", idly.\nConclusion: Option 2', PAIR, CONCLUSION, 1),
    ("YES YES YES NO", YES, DECISION, None),
    # said, but not decided
    ("FINAL DECISION: YES/NO", YES, DECISION, None),
    ("FINAL DECISION: YES | NO", YES, DECISION, None),
    ('FINAL DECISION: "YES" or "NO"', YES, DECISION, None),
    ("FINAL DECISION: maybe YES", YES, DECISION, None),
    ("FINAL DECISION: not NO", YES, DECISION, None),
    ("FINAL DECISION: YES, but\nFINAL DECISION:", YES, DECISION, None),
    ("FINAL DECISION: YES, but\nFINAL DECISION: hm", YES, DECISION, None),
    ("FINAL DECISION: YESTERDAY", YES, DECISION, None),
    ("FINAL DECISION YES", YES, DECISION, None),
    ("A SEMIFINAL DECISION: YES", YES, DECISION, None),
    ("FINALDECISION: YES", YES, DECISION, None),
    ("", YES, DECISION, None),
    # one option begins or ends another
    ('{"label": "safe"}', SAFE, LABEL, 0),
    ('{"reason": "not safe at all", "label": "unsafe"}', SAFE, LABEL, 1),
    ("```json\n{'label' : 'Unsafe'}\n```", SAFE, LABEL, 1),
    (r"{\"label\": \"safe\"}", SAFE, LABEL, 0),
    ('{"label": "not safe"}', SAFE, LABEL, None),
    ('{"label": "safe", "label": "unsafe"}', SAFE, LABEL, 1),
    ('{"label": null}', SAFE, LABEL, None),
    ('{"labels": "safe"}', SAFE, LABEL, None),
    ("Score: 1", ("1", "10"), "Score:", 0),
    ("Score: 10", ("1", "10"), "Score:", 1),
    ("Score: 10", ("10", "1"), "Score:", 0),
    ("Score: 100", ("1", "10"), "Score:", None),
    ("Score: 1.5", ("1", "10"), "Score:", None),
    ("Score: 1.", ("1", "10"), "Score:", 0),
    ("Score: -1", ("1", "10"), "Score:", None),
    ("Grade: very good", ("good", "very good"), "Grade:", 1),
    ("Grade: good enough", ("good", "good enough"), "Grade:", 1),
    (r"so \boxed{no}", YES, r"\boxed{", 1),
    # a range is no verdict, a list after one is
    ("Score: 7\u20138", ("7", "8"), "Score:", None),
    ("Score: 7~8", ("7", "8"), "Score:", None),
    ("Score: 7 - 8", ("7", "8"), "Score:", None),
    ("Score: 7 to 8", ("7", "8"), "Score:", None),
    ("Score: 7 to be fair", ("7", "8"), "Score:", 0),
    ("Score: 7\n- 2 points off", ("7", "8"), "Score:", 0),
    # markup of a phrase or an option is not needed in the answer
    ("Score: 7", ("7", "8"), "**Score:**", 0),
    ("Score: **B**", ("**A**", "**B**"), "Score:", 1),
    ("final answer: no", YES, "Final_Answer:", 1),
]


@pytest.mark.parametrize(("text", "options", "phrase", "wanted"), ANSWERS)
def test_a_verdict_is_read_from_a_text_or_it_is_not(text, options, phrase, wanted):
    assert verdicts.parse(text, options, phrase=phrase) == wanted


SCORES = tuple(map(str, range(1, 11)))
THREE, TWO, GRADES = ("1", "2", "3"), ("1", "2"), ("A", "B", "C")
NUMBERS = [
    # a number by itself, or followed by words that do not continue it
    ("Score: 7", SCORES, "7"),
    ("Score: 7.", SCORES, "7"),
    ("Score: 10", SCORES, "10"),
    ("Score: 7 because it is kind", SCORES, "7"),
    ("Score: 7 points", SCORES, "7"),
    ("Score: 7, as 2 facts are wrong", SCORES, "7"),
    ("Score: 7 (8 for style)", SCORES, "7"),
    ("Score: 7\n8 would be too much", SCORES, "7"),
    ("Score: 7 of the facts are right", SCORES, "7"),
    ("Score: <7>", SCORES, "7"),
    ("Score: 7</score>", SCORES, "7"),
    # out of the largest option
    ("Score: 8/10", SCORES, "8"),
    ("Score: 8 / 10.", SCORES, "8"),
    ("Score: **8**/10", SCORES, "8"),
    ("Score: **8/10** - fine", SCORES, "8"),
    ("Score: [8]/10", SCORES, "8"),
    ("Score: 10/10", SCORES, "10"),
    ("Score: 8 out of 10", SCORES, "8"),
    ("Score: 8 (of 10)", SCORES, "8"),
    ("Answer: 2/3", THREE, "2"),
    ("Answer: 1 out of 2", TWO, "1"),
    # another scale, or two options that the prompt listed
    ("Score: 8/100", SCORES, None),
    ("Score: 8/5", SCORES, None),
    ("Score: (8)/100", SCORES, None),
    ("Score: 8 out of 100", SCORES, None),
    ("Score: 8/10/2", SCORES, None),
    ("Score: 8/10.5", SCORES, None),
    ("Answer: 1/2", TWO, None),
    ("Answer: 1/2/3", THREE, None),
    ("Score: 7%", SCORES, None),
    # continued
    ("Score: 7 and 8", SCORES, None),
    ("Score: 7 and a half", SCORES, None),
    ("Score: 7 1/2", SCORES, None),
    ("Score: 7 \u00bd", SCORES, None),
    ("Score: 7 8", SCORES, None),
    ("Score: 7, 8", SCORES, None),
    ("Score: 7:30", SCORES, None),
    ("Score: 7 \u00b1 1", SCORES, None),
    ("Score: 7 + 1", SCORES, None),
    ("Score: 7 point 5", SCORES, None),
    ("Score: ~~7~~ 8", SCORES, None),
    # bounded, not said
    ("Score: <7", SCORES, None),
    ("Score: 7+", SCORES, None),
    ("Grade: B+", GRADES, None),
    ("Grade: B- ", GRADES, None),
    ("Grade: B - dull", GRADES, "B"),
    ("Grade: A and B", GRADES, None),
    ("Grade: A & B", GRADES, None),
    ("Grade: A and so on", GRADES, "A"),
    ('Grade: "A"/"B"', GRADES, None),
    ("Grade: [A]/[B]", GRADES, None),
]


@pytest.mark.parametrize(("text", "options", "wanted"), NUMBERS)
def test_a_number_is_a_verdict_unless_what_follows_continues_it(text, options, wanted):
    found = verdicts.parse(text, options, phrase=text.partition(":")[0] + ":")
    assert (None if found is None else options[found]) == wanted


def test_hostile_answers_are_read_in_no_time():
    for text in ("FINAL " * 50_000, "*" * 200_000, "FINAL DECISION:" + " *" * 100_000):
        assert verdicts.parse(text, YES, phrase=DECISION) is None


@pytest.mark.parametrize("body", ["*", " ", "_", "(", "<", "7 and *", "' "])
def test_hostile_ends_of_a_number_take_no_time(body):
    for begin in ("Score: 7", "Score: <7", "Score: 7 of ", "Score: 7 and "):
        start = time.process_time()
        verdicts.parse(begin + body * 20_000, SCORES, phrase="Score:")
        assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("phrase", "options"), [("**Score:**", YES), ("_ _ Score _ _", YES), ("*", ("**A**", "** **B"))]
)
def test_markup_in_a_phrase_or_an_option_takes_no_time(phrase, options):
    for sign in "*_":
        assert verdicts.parse("*" + sign * 8192, options, phrase=phrase) is None
