"""Notices about a run on the terminal: nothing is learned, verdicts or rewards are missing,
evaluations."""

from collections.abc import Iterator, Mapping

from sip.judge import diagnostics

MOST = 0.9  # share of prefixes or prompts without anything to learn from, above which it is said
VALID = 0.9  # share of valid verdicts, or of answers with a reward, below which reasons are said
SHOWN = 6  # figures of an evaluation

Figures = Mapping[str, float]


def notices(figures: Figures) -> dict[str, str]:
    """Returns what is wrong with the updates since the last line of the log, by kind.

    `figures` are their averages.
    """
    found = {}
    why = diagnostics.shares(figures)
    if "chosen/none" in figures and figures["chosen/none"] > MOST:
        cause = (
            f"invalid verdicts ({why})" if why else "their scores tie, or there is one candidate"
        )
        found["chosen"] = (
            f"{figures['chosen/none']:.0%} of the prefixes have no pair to learn from "
            f"(chosen/none): {cause}"
        )
    if "rl/flat_groups" in figures and figures["rl/flat_groups"] > MOST:
        found["flat"] = (
            f"{figures['rl/flat_groups']:.0%} of the prompts get the same reward for all answers "
            "(rl/flat_groups) and teach nothing: choose easier or harder prompts, or more rollouts"
        )
    if "judge/valid" in figures and figures["judge/valid"] < VALID:
        found["invalid"] = f"{1 - figures['judge/valid']:.0%} of the verdicts are invalid" + (
            f": {why}" if why else ""
        )
    if "rl/invalid" in figures and 1 - figures["rl/invalid"] < VALID:
        causes = "; ".join(_skipping(figures))
        found["unrewarded"] = (
            f"{figures['rl/invalid']:.0%} of the answers have no reward (rl/invalid) and teach "
            f"nothing{f': {causes}' if causes else ''}"
        )
    return found


def _skipping(figures: Figures) -> Iterator[str]:
    """Yields why answers have no reward: rewards that skip them, and answers that did not end."""
    for key, share in figures.items():
        first, _, name = key.removesuffix("/skipped").partition("/")
        if first == "reward" and key.endswith("/skipped") and share:
            yield f"reward {name} skips {share:.0%}"
    if "rl/cut" in figures and figures["rl/cut"]:
        yield f"{figures['rl/cut']:.0%} did not end, which task.mask_cut leaves out"


def evaluation(figures: Figures) -> str:
    """Returns the first figures of an evaluation as one line."""
    shown = [(key.removeprefix("eval/"), x) for key, x in figures.items()]
    line = ", ".join(f"{key.replace('_', ' ')} {x:.3f}" for key, x in shown[:SHOWN])
    return line + (f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else "")
