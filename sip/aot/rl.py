"""The programs of a policy-gradient run: update, answers, and what its rewards run on devices.

    verdicts   rewards are the host's
    rewrites   a judge
    thinking   a judge, or likelihoods under the policy and its moving average (rlp)
    prompts    reward models, a judge; votes of a frozen model before the first step

The check of answers, votes and functions are the host's work. A judge on a server has no program.
Evaluations and the measurement before the first step (`gate`) are not included.
"""

import dataclasses
from typing import Any

import numpy as np

from sip import padding
from sip.aot import parts
from sip.aot.parts import STOPS, Models, RunShapes
from sip.aot.plan import Program, device_bytes
from sip.mesh import batch_shapes, full_rows
from sip.rewards import functions, information_gain, reward_model
from sip.stages import rl
from sip.structs import Tree
from sip.tasks.rl import prompts
from sip.tasks.rl.thinking import RLP
from sip.training import losses, optim, step

REWARD_MODEL = "reward model"


def programs(run: RunShapes, find: Models) -> list[Program]:
    """Builds the programs of the run.

    Prompts of verdicts and rewrites are as long as max_len allows, those of files as long as
    `Lengths.prompt`. All answers are sampled to their last token.
    """
    c, T = run.c, trunk(run, find)
    real = np.zeros((c.batch, c.rollouts, c.answer), np.float32)
    tree = parts.full_tree(c.batch, T, c.rollouts, c.answer)
    advantage_BC, valid_BC = real[:, :, 0], np.ones(real.shape[:2], bool)
    batch = losses.Branches(tree, valid_BC, advantage_BC, real, tree.mask_BT)
    jitted, compared = rl.make_update(c, optim.build(c.optim)), c.objective.loss_beta > 0
    each = 1 / c.updates_per_batch  # batches of answers per step; redraws may add some
    made = [parts.update(run, jitted, batch, compared=compared)]
    stop = STOPS if c.task.name != "prompts" or c.task.ends else ()
    how = c.rollouts, c.answer, c.sampling, stop, each
    made.append(parts.rollouts(run, f"answers {c.rollouts}", c.answered, T, *how))
    if c.objective.kl == "reward":
        asked = parts.full_tree(c.answered, T, c.rollouts, c.answer)
        made.append(_likelihood(run, "KL to the start", step.frozen(run.state), asked, each))
    if c.redraws:
        find.notes.append(
            f"a step may answer up to {c.redraws} more batches (redraws), not counted"
        )
    return made + REWARDS[c.task.name](run, find, T, each)


def trunk(run: RunShapes, find: Models) -> int:
    """Returns the padded tokens T of a prompt."""
    c = run.c
    if c.task.name == "thinking":  # prefix and opening tag
        return padding.bucket(run.cut.prefix_max + 1, 16)
    if c.task.name != "prompts":
        return c.model.max_len - c.answer
    return padding.bucket(_prompt(run, find) if c.task.ends else run.cut.prefix_max, 16)


def _prompt(run: RunShapes, find: Models) -> int:
    return parts.prompt(run, find, run.c.model.max_len - run.c.answer)


def _likelihood(run: RunShapes, name: str, params, tree: Tree, calls: float) -> Program:
    """Builds the log-probabilities of a tree's branches under the policy or its reference."""
    return Program(
        name,
        run.mesh,
        losses.branch_logprobs(run.c.model),
        (params, batch_shapes(run.mesh, tree)),
        calls=calls,
        loops=1,
        holds=device_bytes(params),
        useful=2.0 * parts.multiplied(run.c.model) * parts.tokens(tree),
        remedy="more devices along fsdp or tensor, a smaller batch, fewer rollouts",
    )


def _verdicts(run: RunShapes, find: Models, T: int, each: float) -> list[Program]:
    del run, find, T, each
    return []


def _rewrites(run: RunShapes, find: Models, T: int, each: float) -> list[Program]:
    c = run.c
    # The judge sees the suffix alone, then with its rewrites.
    pools = [(1, each), (1 + c.rollouts, each)]
    return parts.judge(run, find, c.task.judge, c.answered, pools, **run.of_cut)


def _thinking(run: RunShapes, find: Models, T: int, each: float) -> list[Program]:
    c = run.c
    if c.task.judge is not None:  # it sees texts without thoughts
        pools = [(c.rollouts, each)]
        return parts.judge(run, find, c.task.judge, c.answered, pools, **run.of_cut)
    return _gains(run, T, each) if c.task.reward == RLP else []


def _gains(run: RunShapes, T: int, each: float) -> list[Program]:
    """Builds the likelihoods of the reward rlp, and the moving average of the parameters."""
    c, horizon = run.c, run.c.task.horizon or run.cut.suffix
    R = c.task.thoughts.tokens + information_gain.MARKS + horizon
    B = full_rows(run.mesh, c.answered)
    told, alone = parts.full_tree(B, T, c.rollouts, R), parts.full_tree(B, T, 1, horizon)
    reference = step.frozen(run.state)
    average = Program(
        "moving average",
        run.mesh,
        step.make_average(c.task.average),
        (run.state,),
        calls=1,
        loops=1,
        holds=device_bytes(run.state),
        useful=0.0,
        remedy="more devices along fsdp or tensor",
    )
    return [
        _likelihood(run, "suffix after thoughts", run.params, told, each),
        _likelihood(run, "suffix alone", reference, alone, each),
        average,
    ]


def _prompts(run: RunShapes, find: Models, T: int, each: float) -> list[Program]:
    c, made = run.c, []
    for name, _ in c.task.rewards:
        if name == prompts.JUDGE:
            prefix = _prompt(run, find) if c.task.ends else run.cut.prefix_max
            lengths: Any = dict(prefix=prefix, suffix=c.answer)
            made += parts.judge(
                run, find, c.task.judge, c.answered, [(c.rollouts, each)], **lengths
            )
        elif name not in prompts.OF_PROBLEMS and not functions.is_function(name):
            made.append(_rewarded(run, find, name, T, each))
    votes = c.task.majority
    if votes is not None and votes.frozen:
        how = c.evals.batch, T, votes.votes, c.answer, c.sampling, STOPS
        made.append(parts.before(run, find, "votes before the first step", 1, *how))
    return made


def _rewarded(run: RunShapes, find: Models, source: str, T: int, each: float) -> Program:
    """Builds the program of a reward model, which reads prompts and answers with their EOS."""
    c, mesh = run.c, run.mesh
    cfg = find.of(REWARD_MODEL, source, "")
    if not cfg.scalar:  # the preset that stands for it
        cfg = dataclasses.replace(cfg, scalar=True)
        find.found[REWARD_MODEL] = cfg, ""
    params, rows = parts.abstract(cfg, mesh), reward_model.RewardModel.batch
    widths = padding.trunk_width(T), c.rollouts, padding.branch_width(c.answer + 1)
    tree = parts.full_tree(full_rows(mesh, rows), *widths)
    return Program(
        f"{REWARD_MODEL} {rows}x{c.rollouts}x{widths[-1]}",
        mesh,
        reward_model.program(cfg),
        (params, batch_shapes(mesh, tree)),
        calls=each * -(-c.answered // rows),
        loops=1,
        holds=device_bytes(params),
        useful=2.0 * parts.multiplied(cfg) * parts.tokens(tree),
        remedy="more devices along fsdp or tensor, fewer rollouts",
    )


REWARDS = {
    "verdicts": _verdicts,
    "rewrites": _rewrites,
    "thinking": _thinking,
    "prompts": _prompts,
}
