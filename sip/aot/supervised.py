"""The programs of a supervised run: the update, and what is judged or sampled for it."""

from dataclasses import replace

import numpy as np

from sip import padding
from sip.aot import parts, questions
from sip.aot.parts import STOPS, Models, RunShapes, Unknown
from sip.aot.plan import Program
from sip.padding import multiple, trunk_only
from sip.stages import supervised
from sip.tasks.supervised import documents, preferences, reward_model, self_made
from sip.tasks.supervised.task import tokens_loss
from sip.training import losses, optim


def has_reference(c) -> bool:
    """True if the loss compares with the parameters at the start of the run."""
    return isinstance(c.task, preferences.Config) and c.task.loss.reference


def programs(run: RunShapes, find: Models) -> list[Program]:
    """Builds the programs of the run. Raises Unknown for the task verdicts.

    Pairs by a ground truth are sampled before the first step, which is not included.
    """
    c = run.c
    if c.task.name == "verdicts":
        raise Unknown("task 'verdicts': its shapes depend on the labels")
    if isinstance(c.task, preferences.Config | reward_model.Config):
        return [_update(run, _pairs(run, find))]
    made = [_update(run, _rows(run))]
    if isinstance(c.task, self_made.Config):
        made += _answers(run, find)
    if isinstance(c.task, documents.Config) and c.task.control:
        made += parts.judge(run, find, c.task.control.judge, c.batch, [(1, 1.0)], **run.of_cut)
    return made


def _update(run: RunShapes, batch) -> Program:
    c = run.c
    loss = {"preferences": preferences.loss, "reward_model": reward_model.loss}
    terms = loss[c.task.name](c) if c.task.name in loss else tokens_loss(c)
    jitted = supervised.make_update(c, optim.build(c.optim), *terms)
    return parts.update(run, jitted, batch, compared=has_reference(c))


def _rows(run: RunShapes):
    """Returns a batch of texts: (trees without branches, mask of the tokens that count)."""
    c = run.c
    packed = c.task.name == "thoughts" or (c.task.name != "rewrites" and c.task.packed)
    mask = np.ones((c.batch, _width(run)), bool)
    tree = trunk_only(mask.astype(np.int32), mask)
    return (replace(tree, segment_BT=tree.tokens_BT) if packed else tree, mask)


def _width(run: RunShapes) -> int:
    """Returns the tokens of a row."""
    c, cut = run.c, run.cut
    if c.task.name == "rewrites":  # a prompt, a rewrite as long as the suffix, and EOS
        lengths = dict(run.of_cut, bytewise=run.bytewise)
        asked = questions.rewrite_tokens(c.task.prompt, chat=False, **lengths)
        return min(multiple(asked + cut.suffix + 1, 8), c.model.max_len)
    if isinstance(c.task, documents.Config) and not c.task.packed:
        return cut.prefix_max + cut.suffix + bool(c.task.control)
    return c.task.width(c.model.max_len)


def _pairs(run: RunShapes, find: Models) -> losses.PairBatch | losses.RankBatch:
    """Returns a batch of pairs: of the corpus's lengths, or of those assumed for files.

    Rows of a reward model have as many answers as they may, and all pairs among them.
    """
    c, most = run.c, run.c.model.max_len
    if c.task.labels is not None:  # a reward model reads EOS too
        prompt, answer = run.cut.prefix_max, run.cut.suffix + c.task.scores
    elif c.task.answers is not None:
        answer = c.task.answers.questions.answer + 1
        prompt = parts.prompt(run, find, most - answer)
    else:
        answer = min(run.lengths.answer, most // 2)
        find.notes.append(f"answers of pairs: {answer} tokens assumed (--answer_tokens)")
        prompt = parts.prompt(run, find, most - answer)
    T, R = multiple(prompt, 8), multiple(answer, 8)
    if not c.task.scores:
        tree = parts.full_tree(c.batch, T, 2, R)
        return losses.PairBatch(tree, np.ones(c.batch, bool), np.zeros(c.batch, np.float32))
    C = c.task.together
    B, P = c.batch, C * (C - 1) // 2
    pair_BP2, valid_BP = np.zeros((B, P, 2), np.int32), np.ones((B, P), bool)
    tree = parts.full_tree(B, T, C, R)
    return losses.RankBatch(tree, pair_BP2, valid_BP, np.zeros((B, P), np.float32))


def _answers(run: RunShapes, find: Models) -> list[Program]:
    """Builds the sampling of the answers that are learned, one turn or two."""
    c, wanted = run.c, run.c.task
    room = c.model.max_len - wanted.answer
    first, sampling = parts.prompt(run, find, room), (wanted.answer, wanted.sampling, STOPS)
    T = padding.bucket(first, 16)
    how = c.evals.batch, T, wanted.rollouts, *sampling
    made = [parts.before(run, find, "answers before the first step", 1, *how, most=wanted.limit)]
    if wanted.instructions:  # every answer is asked about again, by itself
        longest = max(
            questions.tokens(one, bytewise=run.bytewise) for one, _ in wanted.instructions
        )
        asked = min(first + wanted.answer + longest + questions.CHAT, room)
        how = c.evals.batch, padding.bucket(asked, 16), 1, *sampling
        name = "second turns before the first step"
        made.append(parts.before(run, find, name, wanted.rollouts, *how, most=wanted.limit))
    return made
