"""Measures the generation-verification gap of policies and judges, as a table of figures."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sip import loading
from sip import mesh as meshes
from sip import run as runs
from sip.data import corpus as corpora
from sip.data import documents, prompts
from sip.data.problems import FILE, ProblemsConfig
from sip.evals import continuations, intervals
from sip.evals import generation_verification_gap as arithmetic
from sip.evals import problems as passes
from sip.gap import costs, verify
from sip.gap.settings import ANSWERS, JUDGE, GapConfig, VerifierConfig
from sip.gap.utility import WHOLE, ByJudge, ByTruth, Utility, Valued
from sip.gap.verify import Answers, Verified
from sip.judge import build as judges
from sip.judge.build import JudgeConfig
from sip.judge.scoring import TextJudge
from sip.loading import LoadedModel
from sip.models.config import ModelConfig
from sip.rewards import answers as checks
from sip.structs import UserError
from sip.tasks.rl import problems as rl_problems
from sip.tasks.rl.task import AnswerWriter
from sip.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Written:
    """The answers of one policy, their utilities, and what they cost."""

    answers: Answers
    value: dict[str, np.ndarray]  # WHOLE and aspects: value_BN
    known_BN: np.ndarray  # the utility of the answer is known
    votes: list[list[str]] | None  # problems: the final answers, by which they agree
    flops: float  # of all answers to a prompt


CEILING = "the utility itself"  # as a judge: nothing chooses better
Cells = dict[tuple[str, str], Verified]  # by policy and judge


@dataclass(frozen=True)
class Setting:
    """The configs of a measurement, and the workdir that runs and corpus are read from."""

    config: Any
    workdir: str
    cfg: GapConfig
    verifiers: Mapping[str, VerifierConfig]

    @property
    def seed(self) -> int:
        """The recipe's seed."""
        return self.config.seed


def measure(config: Any, workdir: str, cfg: GapConfig, verifiers: Mapping[str, VerifierConfig]):
    """Writes and verifies answers. Returns (figures for JSON, lines of answers for JSON Lines).

    Raises UserError if a policy, a judge or the prompts cannot be read.
    """
    s = Setting(config, workdir, cfg, verifiers)
    _check_corpus(s)
    written: dict[str, Written] = {}
    cells: Cells = {}
    directories = {name: loading.source_dir(workdir, name, "gap.policies") for name in cfg.policies}
    asked = _problems(s, directories) if cfg.problems is not None else _documents(s)
    utility = build_utility(s, asked) if cfg.utility.by != ANSWERS else None
    where = meshes.single()
    for name, directory in directories.items():
        model = loading.load_model(directory, where)
        written[name] = asked.write(s, name, model, utility)
        for judge, verifier in verifiers.items():
            if verifier.judge.own:
                make = judges.of_policy(
                    verifier.judge, model.cfg, workdir, where, model.tokenizer, s.seed
                )
                built: Any = make(model.params)
                how = verifier, built, (model.cfg, model.tokenizer)
                cells[name, judge] = _verify(s, written[name].answers, *how)
    for judge, verifier in verifiers.items():
        if not verifier.judge.own:
            built, model = _build(s, verifier.judge, f"gap.judges.{judge}.judge", asked)
            for name, own in written.items():
                cells[name, judge] = _verify(s, own.answers, verifier, built, model)
    text = utility.text if utility else f"the check of answers: {cfg.utility.check.check}"
    found = results(cfg, written, cells, text, seed=s.seed)
    return found, list(lines(written, cells))


def _check_corpus(s: Setting) -> None:
    """Raises UserError if the corpus has no ground truth, but one is asked for."""
    source = corpora.data_config(s.config.data, "train").source
    asked = [
        f"judges.{name}.judge" for name, v in s.verifiers.items() if v.judge.backend == "truth"
    ]
    asked += ["utility"] if s.cfg.utility.by == "truth" else []
    if asked and (not documents.has_truth(source) or s.cfg.problems is not None):
        other = "problems have" if s.cfg.problems is not None else f"data.source {source!r} has"
        raise UserError(
            f"config gap.{asked[0]}: {other} no ground truth; name another utility or judge"
        )


@dataclass(frozen=True)
class Documents:
    """Held-out prefixes of the corpus."""

    corpus: corpora.Corpus
    prompts: continuations.Prompts
    tokenizer: Any

    @property
    def truth(self):
        """The corpus's ground truth, or None."""
        return self.corpus.documents.truth

    def write(self, s: Setting, name: str, model: LoadedModel, utility: Utility | None) -> Written:
        """Samples continuations as long as a suffix. Raises UserError for another tokenizer."""
        if model.tokenizer.encode("\n a b, 12") != self.tokenizer.encode("\n a b, 12"):
            raise UserError(f"gap.policies {name}: its tokenizer differs from the recipe's")
        runs.check_model(model.cfg, self.corpus.cut, self.tokenizer)
        steps, cfg = self.corpus.cut.suffix, s.cfg
        texts = continuations.sample(
            model,
            self.prompts,
            branches=cfg.answers,
            steps=steps,
            sampling=cfg.sampling,
            seed=s.seed,
            batch=min(cfg.batch, len(self.prompts)),
        )
        answers = Answers(self.prompts.prefixes, self.prompts.suffixes, texts)
        assert utility is not None  # only answers to problems are checked otherwise
        value, known_BN = _valued(utility, answers)
        length = round(float(self.prompts.fork_E.mean()))
        flops = costs.writing(model.cfg, length, cfg.answers, steps)
        return Written(answers, value, known_BN, None, flops)


def _documents(s: Setting) -> Documents:
    tokenizer = runs.open_tokenizer(s.config, s.workdir)
    corpus = corpora.load(s.config.data, s.cfg.split, s.workdir, tokenizer)
    asked = continuations.prompts(corpus.chunks, range(s.cfg.prompts), tokenizer)
    return Documents(corpus, asked, tokenizer)


def _valued(utility: Utility, answers: Answers) -> Valued:
    mask_BN = answers.live_BN
    value, known_BN = utility.value(answers.prompts, answers.references, answers.texts, mask_BN)
    return value, known_BN & mask_BN


@dataclass(frozen=True)
class Problems:
    """Problems that fit the context of every policy, as the prompts of each policy."""

    prompts: dict[str, list[prompts.Prompt]]  # by policy, in one order
    left_out: dict[str, int]
    truth: None = None

    def write(self, s: Setting, name: str, model: LoadedModel, utility: Utility | None) -> Written:
        """Samples answers and checks them; the utility of a right answer is 1."""
        del utility
        cfg, asked, checker = s.cfg, self.prompts[name], checks.checker(s.cfg.utility.check)
        stops = prompts.encoding(cfg.chat, model.tokenizer, s.workdir)[1]
        writer = AnswerWriter(model.cfg, model.mesh, model.tokenizer, 0, cfg.max_tokens, stops)
        assert cfg.problems is not None
        solved = rl_problems.solve(
            model.params, writer, cfg.problems, checker, asked,
            samples=cfg.answers, sampling=cfg.sampling, seed=s.seed,
            batch=min(cfg.batch, len(asked)),
        )  # fmt: skip
        verdicts_BN = np.array([one.verdicts for one in solved])
        answers = Answers([p.text for p in asked], [""] * len(asked), [one.texts for one in solved])
        votes = rl_problems.votes_of(solved, checker)
        length = round(float(np.mean([len(p.ids) for p in asked])))
        steps = round(float(np.mean([one.tokens for one in solved])))
        return Written(
            answers,
            {WHOLE: (verdicts_BN == checks.RIGHT).astype(float)},
            ~np.isin(verdicts_BN, checks.FAILURES),
            votes,
            costs.writing(model.cfg, length, cfg.answers, max(steps, 1)),
        )


def _problems(s: Setting, directories: Mapping[str, str]) -> Problems:
    """Reads the problems once per policy, as templates and contexts differ; keeps common ones."""
    cfg, found, left_out = s.cfg, {}, {}
    assert cfg.problems is not None
    _check_files(cfg.problems)
    for name, directory in directories.items():
        encode, _ = prompts.encoding(cfg.chat, loading.kept_tokenizer(directory), s.workdir)
        room = loading.recorded_model(directory).max_len - cfg.max_tokens
        how = encode, room, checks.checker(cfg.utility.check)
        parts, left_out[name] = rl_problems.prompts_of(cfg.problems, s.config.data, *how)
        found[name] = {p.text: p for p in parts[cfg.split]}
    common = [t for t in next(iter(found.values())) if all(t in own for own in found.values())]
    common = common[: cfg.prompts]
    worst = max(left_out.values(), key=lambda counts: sum(counts.values()))
    if not common:
        why = documents.listed(worst) if worst else f"part {cfg.split!r} is empty"
        raise UserError(f"config gap.problems: no problem fits every policy: {why}")
    if worst:
        corpora.say(f"gap.problems: left out: {documents.listed(worst)}")
    return Problems({name: [own[t] for t in common] for name, own in found.items()}, worst)


def _check_files(asked: ProblemsConfig) -> None:
    """Raises UserError if a file of problems is missing; one of the two paths is enough."""
    if asked.source == FILE and not (asked.path or asked.test):
        raise UserError("config gap.problems.test: needed; a file of problems")
    try:
        asked.check_files()
    except UserError as error:
        raise UserError(f"config gap.{error}") from None


def build_utility(s: Setting, asked: Documents | Problems) -> Utility:
    """Builds the utility by the ground truth or by the audit judge. Raises UserError."""
    wanted = s.cfg.utility
    if wanted.by == JUDGE:
        assert wanted.judge is not None
        built, _ = _build(s, wanted.judge, "gap.utility.judge", asked)
        return ByJudge(built, dict(wanted.judge.weights))
    assert asked.truth is not None  # see _check_corpus
    return ByTruth(asked.truth, dict(wanted.weights))


def _build(s: Setting, wanted: JudgeConfig, key: str, asked: Documents | Problems):
    """Returns (judge, (model config, tokenizer) of a local one, else None). Raises UserError."""
    where, tokenizer = meshes.single(), getattr(asked, "tokenizer", None)
    model = None
    if wanted.backend == "local":
        directory = loading.source_dir(s.workdir, wanted.init_from, f"config {key}.init_from")
        model = loading.recorded_model(directory), loading.kept_tokenizer(directory)
    if wanted.backend == "http" and wanted.http.tokens and tokenizer is None:
        tokenizer = runs.open_tokenizer(s.config, s.workdir)
    built = judges.build(wanted, s.workdir, asked.truth, where, tokenizer, s.seed)
    return built, model


def _verify(
    s: Setting,
    answers: Answers,
    verifier: VerifierConfig,
    judge: Any,
    model: tuple[ModelConfig, Tokenizer] | None,
) -> Verified:
    """Verifies the answers of a policy; counts the FLOPs of a local judge, 0 of a rule."""
    meter = None
    if model is not None and isinstance(judge, TextJudge):
        meter = costs.Metered(judge.textgen, model[1])
        judge = dataclasses.replace(judge, textgen=meter)
    if verifier.rounds:
        found = verify.tournament(judge, verifier.rounds, answers, s.seed)
    else:
        whole = sum(weight for _, weight in verifier.judge.weights)
        found = verify.scores(judge, whole, answers)
    if meter is not None and model is not None:
        return verify.with_flops(found, meter.flops(model[0]) / len(answers.prompts))
    return verify.with_flops(found, None if verifier.judge.backend == "http" else 0.0)


def results(
    cfg: GapConfig, written: Mapping[str, Written], cells: Cells, utility: str, *, seed: int
) -> dict[str, Any]:
    """Returns all figures, from answers and verdicts alone."""
    rows = [row for policy in written for row in _rows(cfg, policy, written, cells, seed)]
    paid = [row["flops"] if row["flops"] is not None else math.inf for row in rows]
    worth = [row["after"]["mean"] if row["verdicts"] else math.nan for row in rows]
    for row, best in zip(rows, arithmetic.frontier(paid, worth), strict=True):
        row["compute_optimal"] = bool(best)
    first = next(iter(written))
    return {
        "kind": "gap",
        "utility": utility,
        "prompts": len(written[first].answers.prompts),
        "answers": cfg.answers,
        "confidence": cfg.intervals.confidence,
        "policies": {name: _policy(cfg, own, seed) for name, own in written.items()},
        "judges": {f"{p}/{j}": dict(invalid=v.invalid, why=v.why) for (p, j), v in cells.items()},
        "rows": rows,
        "best_of": list(_best_of(cfg, written, cells, seed)),
        "correlations": {name: _correlations(name, cells) for name in written},
        "judges_compared": list(_compared(cfg, written, cells, seed)),
        "policies_compared": list(_policies_compared(cfg, written, seed)),
    }


def _policy(cfg: GapConfig, own: Written, seed: int) -> dict[str, Any]:
    """Figures of a policy without any judge."""
    none_BN = np.zeros(own.known_BN.shape)
    found = {}
    for name, value_BN in own.value.items():
        g = arithmetic.gaps(value_BN, own.known_BN, none_BN)
        found[name] = dataclasses.asdict(
            intervals.mean(g.before_B, g.asked_B, cfg.intervals, seed=seed)
        )
    u_BN = np.where(own.known_BN, own.value[WHOLE], np.nan)
    rows = [u_N[np.isfinite(u_N)] for u_N in u_BN]
    counts = [(len(u_N), int((u_N >= cfg.right - arithmetic.SAME).sum())) for u_N in rows]
    right_BN = own.value[WHOLE] >= cfg.right - arithmetic.SAME
    votes = own.votes or own.answers.texts
    shares = passes.figures(right_BN, own.known_BN, votes)
    texts = passes.diversity(votes, own.answers.texts)
    return {
        **found,
        **{k: x for k, x in shares.items() if own.votes or k.startswith("pass@")},
        "distinct": texts["distinct_chains"] / cfg.answers,
        **({"distinct_answers": texts["distinct_answers"]} if own.votes else {}),
        "constant": float(np.mean([not len(u) or np.ptp(u) <= arithmetic.SAME for u in rows])),
        "unknown": 1.0 - sum(n for n, _ in counts) / own.known_BN.size,
        "flops": own.flops,
    }


def _rows(cfg, policy: str, written, cells: Cells, seed: int) -> Iterator[dict[str, Any]]:
    """Yields a row per judge or ensemble and filter."""
    own = written[policy]
    for judge, found in ((j, v) for (p, j), v in cells.items() if p == policy):
        for name, weight_BN in found.weights(cfg).items():
            yield _row(cfg, own, policy, judge, name, weight_BN, [found], seed)
    for names in cfg.ensembles:
        members = [cells[policy, name] for name in names]
        filters = [found.weights(cfg) for found in members]
        for name in (n for n in filters[0] if not n.startswith("beta")):
            weight_BN = arithmetic.all_of([weights[name] for weights in filters])
            yield _row(cfg, own, policy, " & ".join(names), name, weight_BN, members, seed)


def _row(cfg, own: Written, policy, judge, name, weight_BN, members: Sequence[Verified], seed):
    mean = lambda x_B, at_B: dataclasses.asdict(intervals.mean(x_B, at_B, cfg.intervals, seed=seed))
    g = arithmetic.gaps(own.value[WHOLE], own.known_BN, weight_BN)
    each = [one.flops for one in members]
    flops = None if None in each else own.flops + sum(x for x in each if x is not None)
    gap = mean(g.gap_B, g.asked_B)
    aspects = {}
    for aspect in (key for key in own.value if key != WHOLE):
        part = arithmetic.gaps(own.value[aspect], own.known_BN, weight_BN)
        aspects[aspect] = mean(part.gap_B, part.asked_B)
    asked = max(int(g.asked_B.sum()), 1)
    return {
        "policy": policy,
        "judge": judge,
        "filter": name,
        "verdicts": bool(all(one.valid_BN.any() for one in members)),
        "after": mean(g.after_B, g.asked_B),
        "gap": gap,
        "relative": mean(g.relative_B, g.room_B),
        "aspects": aspects,
        "kept": float(g.kept_B[g.asked_B].mean()) if g.asked_B.any() else 0.0,
        "empty": int(g.empty_B.sum()) / asked,
        "solved": int(g.solved_B.sum()) / asked,
        "flops": flops,
        "gap_per_gigaflop": gap["mean"] / (flops / 1e9)
        if flops and gap["mean"] is not None
        else None,
    }


def _best_of(cfg, written, cells: Cells, seed: int) -> Iterator[dict[str, Any]]:
    """Yields the expected utility of the best of k = 1, 2, 4, .. answers, as chosen by each judge
    that scores, and by the utility itself."""
    for policy, own in written.items():
        u_BN, known_BN = own.value[WHOLE], own.known_BN
        by = {j: v for (p, j), v in cells.items() if p == policy and not v.rounds}
        scored = {name: (v.score_BN, v.valid_BN) for name, v in by.items() if v.valid_BN.any()}
        for name, (score_BN, valid_BN) in {**scored, CEILING: (u_BN, known_BN)}.items():
            found = {}
            for k in (1 << i for i in range(cfg.answers.bit_length())):
                best_B = arithmetic.best_of(k, score_BN, valid_BN, u_BN, known_BN)
                enough_B = np.isfinite(best_B)
                best = intervals.mean(best_B, enough_B, cfg.intervals, seed=seed)
                found[str(k)] = dataclasses.asdict(best)
            yield dict(policy=policy, judge=name, utility=found)


def _correlations(policy: str, cells: Cells) -> dict[str, Any]:
    """Pearson's correlations of the verifiers' scores on a policy's answers."""
    names = [j for p, j in cells if p == policy]
    found = [cells[policy, j] for j in names]
    over, within = arithmetic.correlations(
        [one.score_BN for one in found], [one.valid_BN for one in found]
    )
    return {"judges": names, "over_answers": over.tolist(), "within_prompts": within.tolist()}


def _compared(cfg, written, cells: Cells, seed: int) -> Iterator[dict[str, Any]]:
    """Yields the paired difference of the gaps of two judges, each with its first filter."""
    for policy, own in written.items():
        names = [j for p, j in cells if p == policy]
        found = {}
        for judge in names:
            name, weight_BN = next(iter(cells[policy, judge].weights(cfg).items()))
            found[judge] = name, arithmetic.gaps(own.value[WHOLE], own.known_BN, weight_BN)
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                (filter_a, g_a), (filter_b, g_b) = found[a], found[b]
                asked_B = g_a.asked_B & g_b.asked_B
                diff = intervals.mean(g_a.gap_B - g_b.gap_B, asked_B, cfg.intervals, seed=seed)
                yield dict(
                    policy=policy, a=f"{a}, {filter_a}", b=f"{b}, {filter_b}",
                    difference=dataclasses.asdict(diff),
                )  # fmt: skip


def _policies_compared(cfg, written, seed: int) -> Iterator[dict[str, Any]]:
    """Yields the paired difference of each policy's utility to that of the first policy."""
    J = lambda own: arithmetic.gaps(own.value[WHOLE], own.known_BN, np.zeros(own.known_BN.shape))
    first, *others = written
    base = J(written[first])
    for name in others:
        g = J(written[name])
        diff_B, both_B = g.before_B - base.before_B, g.asked_B & base.asked_B
        diff = intervals.mean(diff_B, both_B, cfg.intervals, seed=seed)
        yield dict(policy=name, against=first, difference=dataclasses.asdict(diff))


def lines(written: Mapping[str, Written], cells: Cells) -> Iterator[dict[str, Any]]:
    """Yields a line per policy and prompt: answers, utilities and scores; null where unknown."""
    for policy, own in written.items():
        judged = {j: v for (p, j), v in cells.items() if p == policy}
        for b, prompt in enumerate(own.answers.prompts):
            rows = []
            for n, text in enumerate(own.answers.texts[b]):
                scored = {
                    j: v.score_BN[b, n] if v.valid_BN[b, n] else None for j, v in judged.items()
                }
                value = own.value[WHOLE][b, n] if own.known_BN[b, n] else None
                rows.append(dict(text=text, utility=value, scores=scored))
            yield dict(
                policy=policy, prompt=prompt, reference=own.answers.references[b], answers=rows
            )
