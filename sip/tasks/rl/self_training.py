"""Labels and order of problems by the answers of a frozen model, for the reward "majority"."""

from collections.abc import Mapping, Sequence

from sip.data.prompts import Prompt
from sip.run import Run
from sip.tasks import sampled
from sip.tasks.sampled import Sampled, Wanted

Votes = Mapping[str, Sequence[str | None]]


def prepared(
    run: Run, c, mesh, learned: list[Prompt], stops: tuple[int, ...]
) -> tuple[list[Prompt], Votes | None]:
    """Returns (problems to learn from, the teacher's answers by problem or None).

    `c` is the config of a run of the task "prompts". The frozen model answers before the first
    step; RUN_DIR/votes keeps the answers for a resumed run.
    """
    cfg = c.task.majority
    if cfg is None or not cfg.frozen:
        return learned, None
    wanted = Wanted(
        source=cfg.teacher or c.init_from,
        key="task.majority.teacher" if cfg.teacher else "init_from",
        problems=c.task.problems,
        answers=c.task.answers,
        sampling=c.sampling,
        samples=cfg.votes,
        most=c.answer,
        batch=c.evals.batch,
        stops=stops,
    )
    solved = sampled.solved(run, "votes", wanted, learned, mesh)
    if cfg.teacher:
        return learned, {one.problem: one.answers for one in solved}
    rates = [rate(one, cfg.easiest_by) for one in solved]
    some = [learned[i] for i in easiest(rates, cfg.easiest)]
    run.say(f"{run.name}: learns from the easiest {len(some):,} of {len(learned):,} problems")
    return some, None


def rate(one: Sampled, by: str) -> float:
    """Returns how easy a problem is: the majority's share of the answers, or the pass rate."""
    return one.vote.share if by == "share" else one.passes


def easiest(rates: Sequence[float], share: float) -> list[int]:
    """Returns the places of the `share` with the highest rates, in their order; at least one.

    Of equal rates the first ones are taken.
    """
    size = max(1, round(share * len(rates)))
    return sorted(sorted(range(len(rates)), key=lambda i: -rates[i])[:size])
