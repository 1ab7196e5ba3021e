"""Tests config files: loaded, locked, resolved into dataclasses, and every ablation run."""

import functools
import importlib
import itertools
import json
import math
import re
import sys

import numpy as np
import pytest
import tiny
import tiny_recipe
from absl import flags
from ml_collections import ConfigDict, config_flags
from workdirs import begun, lines

from sip import train
from sip import workdir as workdirs
from sip.data import corpus as corpora
from sip.judge.build import build
from sip.run import Run
from sip.sections import plain
from sip.stages import recipe
from sip.structs import UserError

pytest_plugins = ["tiny_fixtures"]
FILES = sorted(p for p in (tiny_recipe.ROOT / "configs").glob("*.py") if p.name[0] != "_")
NAMES = [path.stem for path in FILES]
BYTES = ["--config.tokenizer.kind=byte", "--config.tokenizer.path="]
EXAMPLE = tiny_recipe.ROOT / "configs" / "examples" / "conversations.jsonl"
FLAGS = {  # what the user has to name
    "text": ["--config.data.path=x"],
    "own_text": ["--config.data.path=x"],
    "real_english": ["--config.data.path=x"],
    "from_hf": ["--config.data.path=x", "--config.runs.sip.init_from=", *BYTES],
    "finetune": ["--config.data.path=x", "--config.runs.tuned.init_from=", *BYTES],
    "sft": [
        *BYTES,
        "--config.runs.assistant.init_from=",
        f"--config.runs.assistant.task.path={EXAMPLE}",
    ],
    "judge_llama8b": ["--config.runs.judge.init_from=", *BYTES],
    "rewriter_llama8b": [
        *BYTES,
        "--config.runs.rewriter.init_from=",
        "--config.runs.rewriter.task.judge.backend=rule",
        "--config.runs.rewriter.task.judge.rule=distinct_words",
    ],
}
PAPER = ("sip_quality_1b4", "sip_factuality_1b4", "sip_safety_1b4", "sip_scratch_1b4")
FLAGS |= {
    name: [
        *BYTES,
        "--config.runs.sip.init_from=",
        "--config.runs.sip.judge.backend=rule",
        "--config.runs.sip.judge.rule=distinct_words",
        "--config.runs.sip.judge.weights=(('quality', 1.0),)",
        "--config.runs.sip.rewriter.backend=truth",
    ]
    for name in PAPER
}
# The only one with a rewriter, which is to be the ground truth here.
FLAGS["sip_scratch_1b4"] += ["--config.data.source=microworld", "--config.data.path="]
ABLATIONS = importlib.import_module("microworld_ablations").get_config("truth").order[1:]
# Of the ablations, every objective, and fresh parameters. The others meet
# the same code in another combination: their configs are resolved, their losses worked out by hand
# in test_losses.py.
FAST = ("sft_rewrite",)
RUN = [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in ABLATIONS]
LEARNED = ("dpo_suffix_rollouts", "dr_grpo_rollouts")  # of the ablations, with a learned judge


def load(file, *overrides):
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["test", f"--config={file}", *overrides])  # what it looks at
        values(sys.argv)
    return holder.value


def of(name, arg=""):
    config = importlib.import_module(name).get_config(arg)
    config.data.path = config.data.path or ("x" if config.data.source == "txt" else "")
    return config


@pytest.mark.parametrize("path", FILES, ids=NAMES)
@pytest.mark.parametrize("variant", ["", ":debug"])
def test_every_config_loads_locked_and_resolves(path, variant, tmp_path):
    config = load(f"{path}{variant}", *(FLAGS[path.stem] if path.stem in FLAGS else []))
    assert config.is_locked
    recipe.check(config, str(tmp_path))
    with pytest.raises(AttributeError, match="lrr"):
        load(f"{path}{variant}", f"--config.runs.{config.order[0]}.optim.lrr=1")


# Documented variants beside debug; CKPT is a checkpoint.
VARIANTS = {
    "thinking": ["rlp", "rlp,debug", "llama3_8b", "qwen3_8b", "llama3_8b,rlp", "qwen3_8b,rlp"],
    "rl_problems": ["CKPT", "CKPT,debug"],
    "self_training": [
        "majority,soft",
        "hybrid,early,debug",
        "CKPT",
        "CKPT,majority,fixed,debug",
        "CKPT,soft,hybrid,early,easiest,filtered,random,labels",
    ],
    "two_phase": ["CKPT", "CKPT,debug"],
    "rejection_sampling": ["CKPT", "CKPT,debug"],
}


@pytest.mark.parametrize(
    ("name", "variant"), [(name, one) for name, some in VARIANTS.items() for one in some]
)
def test_every_variant_of_reasoning_resolves(name, variant, of_bytes, tmp_path):
    """Those of a checkpoint as a whole; the 8 B models' files are not here."""
    place = of_bytes("start", tiny.model(vocab_size=259, max_len=2048)) if "CKPT" in variant else ""
    config = of(name, variant.replace("CKPT", place))
    assert set(config.report.rows) == set(config.order) == set(config.runs)
    cut = corpora.cut_config(config.data)
    for run in config.order:
        recipe.STAGES[config.runs[run].stage].resolve(config, run).check_cut(cut)
    if not place:
        return
    (tmp_path / "train.jsonl").write_text("{}")
    for run in config.runs.values():
        assert run.model.vocab_size == 259 and run.task.chat == "turns"
        run.task.problems.path = str(tmp_path / "train.jsonl")
    recipe.check(config, str(tmp_path))
    assert config.runs[config.order[0]].init_from == place


def test_thoughts_of_all_runs_are_rewarded_alike_and_rl_is_gated():
    """Probes are comparable; RL with nothing to learn from ends before its first step."""
    for arg in ("", "rlp", "llama3_8b", "llama3_8b,rlp"):
        config = of("thinking", arg)
        task = lambda name, c=config: recipe.STAGES[c.runs[name].stage].resolve(c, name).task
        raw, told, own = map(task, ("raw", "thoughts", "rl"))
        assert (raw.match, raw.judge) == (told.match, told.judge)
        if own.reward != "rlp":
            assert raw.judge == own.judge and (raw.judge or raw.match == own.match)
        assert raw.judge or raw.match.words
        gates = [run.gate for run in config.runs.values() if run.stage == "rl"]
        assert len(gates) == (1 if "8b" in arg else 5)
        assert all(gate.prompts == 64 and gate.mixed > 0 for gate in gates)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_the_docstring_has_a_command_with_the_files_own_name(path):
    text = path.read_text().split('"""')[1]
    named = set(re.findall(r"python -m sip\.train --config=(configs/\w+\.py)", text))
    assert named == {f"configs/{path.name}"} and "Hardware:" in text


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_key_in_any_section_is_rejected_by_its_name(name, tmp_path):
    config = of(name, "debug")
    whole = lambda: recipe.check(config, str(tmp_path))
    sections = [("tokenizer", config.tokenizer, whole), ("data", config.data, whole)]
    sections += [("data.cut", config.data.cut, whole), ("report", config.report, whole)]
    kinds = {(v.stage, v.task.name if "task" in v else "", *v): k for k, v in config.runs.items()}
    for run in kinds.values():  # one run of each kind
        values = config.runs[run]
        resolve = functools.partial(recipe.STAGES[values.stage].resolve, config, run)
        within = [(key, value) for key, value in values.items() if hasattr(value, "items")]
        sections += [(f"runs.{run}.{key}", value, resolve) for key, value in within]
        sections += [(f"runs.{run}", values, resolve)]
    for at, section, check in sections:
        section.surprise = 1
        with pytest.raises(UserError, match=rf"config {at}\.surprise: unknown key"):
            check()
        del section.surprise


def test_the_8b_judge_wants_a_model_to_start_from(tmp_path):
    with pytest.raises(UserError, match="runs.judge.init_from 'instruct'"):
        recipe.check(of("judge_llama8b"), str(tmp_path))


def test_the_8b_rewriter_wants_a_model_to_start_from_and_a_judge(tmp_path):
    config = of("rewriter_llama8b")
    for key in ("init_from", "task.judge.init_from"):
        with pytest.raises(UserError, match=rf"runs.rewriter.{key} '(instruct|judge)'"):
            recipe.check(config, str(tmp_path))
        config.runs.rewriter.init_from = ""


@pytest.mark.parametrize("name", NAMES)
def test_no_two_runs_share_a_section(name):
    sections = [v for run in of(name).runs.values() for v in run.values() if hasattr(v, "items")]
    assert len(set(map(id, sections))) == len(sections) > 5


WRONG = [
    ("runs.base.steps", "many", "runs.base.steps"),
    ("runs.base.steps", 0, "runs.base.steps"),
    ("runs.base.steps", True, "runs.base.steps"),
    ("runs.base.batch", 10, "runs.base: batch 10 is not divisible by microbatches 4"),
    ("runs.base.optim.lr", "fast", "runs.base.optim.lr"),
    ("runs.base.optim.lr", -1.0, r"config runs.base.optim.lr=-1.0: must be finite and > 0"),
    ("runs.base.optim.name", "sgd", "runs.base.optim.name"),
    ("runs.base.optim.mu_dtype", "float16", "runs.base.optim.mu_dtype"),
    ("runs.base.z_loss", -1e-4, "runs.base.z_loss=-0.0001: must be"),
    ("runs.sip_learned.objective.z_loss", 1e-4, "objective.z_loss needs the cross-entropy"),
    ("runs.base.model.width", 3.5, "runs.base.model.width"),
    ("runs.base.model.max_len", 10, "prefix_max 40 \\+ suffix 24 is longer than model.max_len 10"),
    ("runs.base.mesh", 3, "runs.base.mesh"),
    ("runs.base.stage", "rest", "runs.base.stage"),
    ("runs.base.init_from", "nowhere", "runs.base.init_from 'nowhere'"),
    ("runs.judge.task.labels.source", 3, "runs.judge.task.labels.source"),
    ("runs.judge.task.labels.source", "nowhere", "runs.judge.task.labels.source 'nowhere'"),
    ("runs.sip_learned.judge.init_from", "nowhere", "runs.sip_learned.judge.init_from"),
    ("runs.sip_learned.judge.backend", "guess", "runs.sip_learned.judge.backend"),
    ("runs.sip_learned.judge.schedule.name", "swiss", "runs.sip_learned.judge.schedule.name"),
    ("runs.sip_learned.judge.schedule.budget", 25.0, "schedule.budget=25.0: must be"),
    ("runs.sip_learned.judge.weights", (("quality", "much"),), "runs.sip_learned.judge.weights"),
    ("runs.sip_learned.judge.weights", (("qualty", 1.0),), "'qualty': no such prompt file"),
    ("runs.sip_learned.judge.weights", (("safety", 1.0),) * 2, "aspect 'safety' occurs twice"),
    ("runs.sip_learned.judge.votes", 0, "judge.votes=0: must be >= 1"),
    ("runs.sip_learned.judge.live", True, "judge.live needs backend local and init_from 'policy'"),
    ("runs.sip_learned.rewriter.init_from", "nowhere", "runs.sip_learned.rewriter.init_from"),
    ("runs.sip_learned.rewriter.backend", "guess", "runs.sip_learned.rewriter.backend"),
    ("runs.rewriter.task.held_out", 0, "runs.rewriter.task.held_out=0"),
    ("runs.rewriter.task.name", "verdicts", "runs.rewriter.task.(prompt|documents|held_out): unk"),
    ("runs.judge.task.name", "rewrites", "runs.judge.task.labels: unknown key"),
    ("runs.rewriter.task.name", "poems", "runs.rewriter.task.name must be one of .*, not 'poems'"),
    ("runs.rewriter.task", "documents", "runs.rewriter.task.name must be one of"),
    ("runs.sip_learned.candidates.rollouts", ((0, 1.5),), "candidates.rollouts"),
    ("runs.sip_learned.objective.name", "ppo", "runs.sip_learned.objective.name"),
    ("runs.sip_learned.evals.baseline", "sip_oracle", "evals.baseline 'sip_oracle'"),
    ("data.cut.prefix_max", 400, "prefix_max 400"),
    ("data.source", "tape", "data.source='tape'"),
    ("tokenizer.kind", "none", "tokenizer.kind"),
    ("runs.base.task.length", 64, "task.length: rows have data.cut's length unless task.packed"),
    ("runs.standard.task.packed", True, "task.packed: whole documents have no suffix"),
    ("runs.base.optim.decay_fraction", 0.0, "runs.base.optim.decay_fraction=0.0: must be"),
    ("order", ("base", "bass"), "no run 'bass'"),
    ("report.standard", "judge", "standard 'judge' is not one of the rows"),
    ("report.judge", "jury", "run 'jury' is not in config order"),
]


@pytest.mark.parametrize(("key", "value", "message"), WRONG, ids=[f"{k}={v}" for k, v, _ in WRONG])
def test_a_wrong_value_is_rejected_by_its_name(key, value, message, tmp_path):
    values = plain(of("microworld", "debug"))
    values["runs"]["base"]["microbatches"] = 4
    values["runs"]["base"]["batch"] = 8
    tiny_recipe.put(values, key, value)
    with pytest.raises(UserError, match=message):
        recipe.check(ConfigDict(values, type_safe=False), str(tmp_path))


SMALL = {"v4-8": 4, "v5e-8": 8, "v6e-8": 8}  # chips


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize("machine", SMALL)
def test_a_small_machine_has_smaller_batches_of_the_same_run(name, machine):
    config, large = of(name, machine).runs.sip, of(name).runs.sip
    run = recipe.STAGES["selfimprove"].resolve(of(name, machine), "sip")
    assert run.batch // run.microbatches % SMALL[machine] == 0 == run.judge.batch % SMALL[machine]
    assert workdirs.differing(plain(large), plain(config)) == {
        "batch", "microbatches", "evals.batch", "judge.batch", "judge.param_dtype",
        "judge.schedule.name", "rewriter.batch", "rewriter.param_dtype",
    }  # fmt: skip


def test_muon_is_one_line_with_the_keys_of_adamw(tmp_path):
    common = importlib.import_module("_common")
    config = of("microworld", "debug")
    adamw, muon = (make(0.1, warmup_steps=2) for make in (common.adamw, common.muon))
    assert workdirs.differing(plain(adamw), plain(muon)) == {"name"}
    config.runs.base.optim = muon
    recipe.check(config, str(tmp_path))
    assert recipe.STAGES["supervised"].resolve(config, "base").optim.name == "muon"


def test_the_text_config_is_an_ablation_but_for_data_and_judge():
    text = importlib.import_module("text")
    theirs = plain(importlib.import_module("microworld_ablations").get_config(f"{text.RUN},truth"))
    keys = workdirs.differing(plain(text.get_config()), theirs)
    assert keys and {k for k in keys if not re.match(r"data\.|runs\.\w+\.judge\.", k)} == set()


def test_a_users_own_aspect_is_one_file_and_one_flag(tmp_path):
    """Goes from the command line to a score."""
    (tmp_path / "calm.v2.txt").write_text(
        'kind: pointwise\noptions: ["calm", "loud"]\nvalues: [1, 0]\n'
        "=== trunk\nHow calm?\n=== branch\nText:{text}\nIt is:"
    )
    name, weights = importlib.import_module("text").RUN, f"(('{tmp_path}/calm.v2.txt', 0.5),)"
    flag = f"--config.runs.{name}.judge.weights={weights}"
    config = load(tiny_recipe.ROOT / "configs" / "text.py", *FLAGS["text"], flag)
    recipe.check(config, str(tmp_path))
    wanted = recipe.STAGES["selfimprove"].resolve(config, name).judge
    judge = build(wanted, str(tmp_path), None, None, None)
    found = judge.score(["p"], [[" a b c d", " a a a a"]], [""], np.ones((1, 2), bool))
    assert list(found.aspects) == ["calm.v2"]
    assert np.allclose(found.scores_BK, [[0.5, 0.125]]), "half of the share of distinct words"


def test_an_ablation_comes_with_what_it_needs_and_an_unknown_one_is_named():
    order = lambda arg: tuple(tiny_recipe.get_config(arg).order)
    assert order("dpo_rollouts") == ("base", "tutor", "judge", "dpo_rollouts")
    assert order("dpo_rollouts,truth") == ("base", "dpo_rollouts")
    names = ("base", "tutor", "rewriter", "sft_rewrite", "standard")
    assert order("sft_rewrite,standard") == names
    assert order("sft_rewrite,truth") == ("base", "sft_rewrite")
    assert order("rf_nll_suffix_rewrite")[:4] == ("base", "tutor", "judge", "rewriter")
    with pytest.raises(ValueError, match="'rollouts_dpo'"):
        order("rollouts_dpo")


def run(config, name, workdir):
    """Runs a config and checks its outputs."""
    figures = recipe.STAGES[config.runs[name].stage].train(Run(config, name, str(workdir)))
    assert 0 <= figures["win_rate_standard"] <= 1 and math.isfinite(figures["nll_clean"])
    last = [line for line in lines(workdir, name) if "loss/total" in line][-1]
    assert last["step"] == 2 and last["grad/skipped_in_row"] == 0
    assert math.isfinite(last["loss/total"]) and last["grad/norm"] >= 0
    return last


@pytest.mark.parametrize("name", RUN)
def test_every_ablation_runs_its_debug_variant(name, finished, quick, tmp_path):
    config = tiny_recipe.get_config(f"{name},truth")
    last = run(config, name, begun(finished, tmp_path, "base"))
    if "chosen/none" in last:  # some pair or choice was learned from
        assert last["chosen/none"] < 1


@pytest.mark.slow  # the finished recipe has a run with a learned judge
@pytest.mark.parametrize("name", LEARNED)
def test_ablations_run_with_a_learned_judge(name, finished, quick, tmp_path):
    config = tiny_recipe.get_config(name)
    last = run(config, name, begun(finished, tmp_path, "base", "tutor", "judge"))
    assert 0 < last["judge/valid"] <= 1


TRAINED = {  # variants that no other test trains: figures of the runs' evaluations
    "dpo:debug": dict(base="nll_clean", dpo="win_rate_standard"),
    "reward_model:debug": dict(base="nll_clean", reward_model="accuracy"),
    "rlhf:debug": dict(reward_model="accuracy", rloo="reward", grpo="win_rate_standard"),
    "rlhf:rlaif,debug": dict(judge="quality_accuracy", rlaif="reward"),
    "microworld_safety:debug": dict.fromkeys(
        ("filtered", "conditional", "sft_rewrites", "sip_switched", "conditional_scratch"),
        "safety",
    ),
    "pretrain:text,debug": dict(base="nll"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_a_debug_variant_trains(name, quick, tmp_path):
    """All of its runs, as small as the tiny recipe; text has a model of its own."""
    file, _, arg = name.partition(":")
    config = importlib.import_module(file).get_config(arg)
    if "text" in arg:
        (tmp_path / "my.txt").write_text("\n\n".join(f"{i} says it. " * 9 for i in range(600)))
        config.data.path = str(tmp_path / "my.txt")
        config.tokenizer.vocab_size = config.runs.base.model.vocab_size = 300
    else:
        config = tiny_recipe.shrink(config)
        config.data.world = dict(entities=8, train=300, validation=60, test=60)
    train.train(config, str(tmp_path / "work"))
    for run, figure in TRAINED[name].items():
        found = json.loads((tmp_path / "work" / "runs" / run / "eval.json").read_text())
        assert math.isfinite(found[figure]), run
        assert lines(tmp_path / "work", run)[-1]["step"] == config.runs[run].steps


@pytest.mark.slow  # test_schedules compares schedules without a run
def test_schedules_differ_in_what_is_compared_alone(finished, quick, tmp_path):
    """The configs differ in the schedule only, and an adaptive schedule makes fewer comparisons."""
    schedules = importlib.import_module("microworld_schedules")
    config = tiny_recipe.shrink(schedules.get_config("all,adaptive,truth,debug"))
    config.data.world = dict(entities=8, train=300, validation=60, test=60)
    runs = [plain(config.runs[name]) for name in ("all", "adaptive")]
    assert workdirs.differing(*runs) == {"judge.schedule.name"}
    workdir = begun(finished, tmp_path, "base")
    everything, some = (run(config, name, workdir) for name in ("all", "adaptive"))
    assert everything["truth/share/quality"] == 1 > some["truth/share/quality"] > 0
    with pytest.raises(ValueError, match="'swiss'"):
        schedules.get_config("swiss")


def test_runs_with_more_rollouts_cost_as_much(tmp_path):
    """Tokens of a prefix: 40 + 24 a rollout sampled; 64 learned, forwards and twice backwards."""
    scaling = importlib.import_module("microworld_scaling")
    config = load(f"{tiny_recipe.ROOT}/configs/microworld_scaling.py:rollouts")
    recipe.check(config, str(tmp_path))
    costs = {k: 40 + 24 * k + 3 * 64 for k in (1, 2, 4, 8, 16)}
    for k, cost in costs.items():
        made = config.runs[f"rollouts_{k}"]
        assert made.candidates.rollouts == ((0, k),) and not made.candidates.rewrite
        assert made.steps * cost == pytest.approx(100 * costs[4], rel=0.01)
    with pytest.raises(ValueError, match="one curve at a time"):
        scaling.get_config("sizes,rollouts")
    with pytest.raises(ValueError, match="'widths'"):
        scaling.get_config("widths")


@pytest.mark.slow  # runs of microworld.py that differ in their shapes alone
def test_each_size_is_continued_from_its_own_base(quick, tmp_path):
    config = importlib.import_module("microworld_scaling").get_config("debug")
    for size, width in dict(small=8, middle=16, large=32).items():
        for name in ("base", "standard", "sip"):
            one = config.runs[f"{name}_{size}"]
            assert one.model.width == width
            assert name == "base" or one.init_from == one.evals.baseline == f"base_{size}"
    config.runs = {name: config.runs[name] for name in ("base_large", "sip_large")}
    config.order = tuple(config.runs)
    config = tiny_recipe.shrink(config)
    for name in config.runs:
        recipe.STAGES[config.runs[name].stage].train(Run(config, name, str(tmp_path / "work")))
    assert lines(tmp_path / "work", "sip_large")[-1]["step"] == config.runs.sip_large.steps


@pytest.mark.slow  # a recipe of runs that other tests train; the fast suite resolves it
def test_a_judge_is_refreshed_on_what_the_policy_writes(finished, quick, tmp_path):
    """Both continuations start from one policy; only their judges and the results differ."""
    config = tiny_recipe.shrink(importlib.import_module("microworld_iterated").get_config("debug"))
    config.data.world = dict(entities=8, train=300, validation=60, test=60)
    judges = [dict(plain(config.runs[name].judge)) for name in ("fixed", "refreshed")]
    assert workdirs.differing(*judges) == {"init_from"}
    workdir = begun(finished, tmp_path, "base", "tutor", "judge", "rewriter")
    for name in config.order[4:]:
        if name == "judge_again":
            recipe.STAGES["supervised"].train(Run(config, name, str(workdir)))
        else:
            run(config, name, workdir)
    first, fixed, refreshed = (lines(workdir, name)[0] for name in ("first", "fixed", "refreshed"))
    assert "chosen/rollout" not in first and "chosen/rollout" in fixed
    score = "judge/score/factuality"
    assert fixed["chosen_logp"] != first["chosen_logp"] and fixed[score] != refreshed[score]


def test_what_questions_the_main_job_can_be_run_alone():
    order = lambda arg: importlib.import_module("microworld_evidence").get_config(arg).order
    assert order("sip_marks,debug") == ("base", "tutor", "rewriter", "sip_marks")
    taught = ("rewriter_untaught", "tutor_untaught", "judge_untaught", "sip_untaught")
    assert order("sip_untaught") == ("base", *taught), "nothing of the ground truth's"
    assert order("standard_matched") == ("base", "standard_matched")
    assert len(order("")) == len(order("debug")) == 17
    with pytest.raises(ValueError, match="'sip_learned'"):
        order("sip_learned")


def test_the_untaught_row_runs_without_a_ground_truth():
    """A corpus without one is refused for runs of the main job, and is not for these."""

    def needs(arg):
        config = importlib.import_module("microworld_evidence").get_config(arg)
        resolve = lambda name: recipe.STAGES[config.runs[name].stage].resolve(config, name)
        return {name: resolve(name).needs_truth() for name in config.order}

    assert set(needs("sip_untaught").values()) == {""}
    assert needs("sip_marks")["tutor"] and needs("sip_marks")["rewriter"]


@pytest.mark.parametrize("kind", ["labels", "corrupted"])
def test_a_judge_must_see_the_marks_that_its_labels_had(kind):
    name = dict(labels="sip_learned", corrupted="sip_untaught")[kind]
    config = importlib.import_module("microworld_evidence").get_config("debug")
    recipe.check_proofread(config, name)
    with config.unlocked():  # a section that is left out is the default
        whole = config.runs[name].judge.proofread
        del config.runs[name].judge["proofread"]
        with pytest.raises(UserError, match="differs"):
            recipe.check_proofread(config, name)
        config.runs[name].judge.proofread = whole
    config.runs[name].judge.proofread.gap = 1.0
    with pytest.raises(UserError, match=f"{name}.judge.proofread differs from .*task.{kind}.pro"):
        recipe.check_proofread(config, name)


@pytest.mark.slow  # as the one above
def test_the_main_job_is_questioned_by_runs_that_know_less(finished, quick, tmp_path):
    """A judge without marks reads no tutor; a judge without labels learns no ground truth."""
    config = tiny_recipe.shrink(importlib.import_module("microworld_evidence").get_config("debug"))
    config.data.world = dict(entities=8, train=300, validation=60, test=60)
    workdir = begun(finished, tmp_path, "base", "tutor", "judge", "rewriter")
    assert not config.runs.judge_unmarked.task.labels.proofread.init_from
    for name in config.order[8:]:
        made = Run(config, name, str(workdir))
        recipe.STAGES[config.runs[name].stage].train(made)
    scores = {name: set(lines(workdir, name)[0]) for name in ("sip_unmarked", "sip_untaught")}
    assert "judge/score/factuality" in scores["sip_unmarked"]
    assert "judge/score/quality" in scores["sip_untaught"]
    assert not {"judge/score/factuality", "judge/score/safety"} & scores["sip_untaught"]
    assert not any(key.startswith("judge/") for key in lines(workdir, "sip_rewrites")[0])


def test_no_document_of_the_second_model_is_learned_by_another():
    runs = importlib.import_module("real_english").get_config().runs
    cut = {name: re.findall(r"\d+", run.split) for name, run in runs.items()}
    spans = {
        name: (int(found[0]), int(found[1]) if len(found) > 1 else 100)
        for name, found in cut.items()
        if name != "base"
    }
    spans["base"] = (0, int(cut["base"][0]))
    assert spans["standard"] == spans["sip"], "compared on the same documents"
    del spans["sip"]
    places = sorted(spans.values())
    assert places[0][0] == 0 and places[-1][1] == 100
    assert all(a[1] == b[0] for a, b in itertools.pairwise(places))
