"""Tests that every value of a config is checked before anything is trained."""

import copy
import dataclasses
import importlib
import json
import typing

import pytest
import tiny_recipe
from ml_collections import ConfigDict

from sip.data.corpus import CutConfig
from sip.data.documents import SCORES, DataConfig, check_split
from sip.data.microworld.settings import ProblemWorldConfig, WorldConfig
from sip.data.problems import ProblemsConfig
from sip.evals import ground_truth, rewrites
from sip.gap.settings import GapConfig, UtilityConfig, VerifierConfig
from sip.judge import chunk_scores
from sip.judge.build import JudgeConfig
from sip.rewards.answers import AnswersConfig
from sip.rewards.majority import MajorityConfig
from sip.run import TokenizerConfig
from sip.sections import plain, section
from sip.stages import recipe, rl, supervised
from sip.structs import UserError
from sip.tasks.labelled import CorruptedConfig, LabelConfig, LabelFileConfig
from sip.tasks.pairs import AnswerPairConfig, PairLabelConfig, PairsConfig
from sip.tasks.questions import QuestionsConfig
from sip.tasks.rl import prompts as rl_prompts
from sip.tasks.rl import thinking as rl_thinking
from sip.tasks.supervised import conversations, reward_model, self_made, thoughts
from sip.tasks.thoughts import ThoughtsConfig
from sip.text.tokenizer import Byte
from sip.training.losses import PairLossConfig

pytest_plugins = ["tiny_fixtures"]
MESH = {
    (name, axis) for name in ("MeshConfig", "PartConfig") for axis in ("replica", "fsdp", "tensor")
}
NEGATIVE = MESH  # -1: the remaining devices


def reached(cls, found):
    """Adds the dataclass and those of its fields to the set `found`."""
    if dataclasses.is_dataclass(cls) and cls not in found:
        found.add(cls)
        for hint in typing.get_type_hints(cls).values():
            for part in (hint, *typing.get_args(hint)):
                reached(part, found)
    return found


def instances(value, found):
    """Adds an example of each dataclass in `value` to the dict `found`."""
    if dataclasses.is_dataclass(value):
        found.setdefault(type(value), value)
        for field in dataclasses.fields(value):
            instances(getattr(value, field.name), found)
    return found


def examples():
    found = {}
    configs = [tiny_recipe.get_config()]
    configs += [
        importlib.import_module(x).get_config("debug")
        for x in ("microworld_judge", "microworld_rewriter")
    ]
    for config in configs:
        for name in config.order:
            instances(recipe.STAGES[config.runs[name].stage].resolve(config, name), found)
    instances(section(recipe.Recipe, configs[0], ""), found)
    apart = (
        CutConfig(8, 16, 4),
        DataConfig("microworld"),
        WorldConfig(),
        ProblemWorldConfig(),
        ProblemsConfig(path="problems.jsonl"),
        AnswersConfig(),
        TokenizerConfig(),
        LabelConfig({"safety": 1}, "base"),
        LabelFileConfig("labels.jsonl", ("safety",)),
        CorruptedConfig("quality", ("shuffle",)),
        PairsConfig("pairs.jsonl"),
        PairLabelConfig("base"),
        AnswerPairConfig(("base", "sip"), "turns"),
        QuestionsConfig(),
        PairLossConfig(),
        conversations.Config(name="conversations", path="talks.jsonl", chat="harmony"),
        chunk_scores.FilterConfig(JudgeConfig("truth", (("safety", 1.0),))),
        chunk_scores.ControlConfig(JudgeConfig("truth", (("safety", 1.0),)), "<s>", "</s>"),
        self_made.Config(
            name="self_made",
            chat="harmony",
            problems=ProblemsConfig(path="problems.jsonl"),
            answers=AnswersConfig(),
        ),
        MajorityConfig(),
        GapConfig(policies=("base",), judges={"truth": {}}),
        VerifierConfig(JudgeConfig("truth", (("safety", 1.0),))),
        UtilityConfig(),
        reward_model.Config(name="reward_model", pairs=PairsConfig("pairs.jsonl")),
        rl_prompts.Config(name="prompts", reward="base", prompts="asked.jsonl"),
        rl_thinking.Config(name="thinking", reward="match"),
        thoughts.Config(name="thoughts", thoughts=ThoughtsConfig("truth")),
    )
    for one in apart:
        instances(one, found)
    return found


EXAMPLES = examples()


def numbers(kind):
    """Lists (dataclass, field) of all fields of a type."""
    return [
        pytest.param(cls, name, id=f"{cls.__module__}.{cls.__name__}.{name}")
        for cls in EXAMPLES
        for name, hint in typing.get_type_hints(cls).items()
        if hint is kind
    ]


def test_every_section_of_a_config_is_in_the_table():
    tasks = [config for stage in (supervised, rl) for config, _ in stage.TASKS.values()]
    found = set()
    for cls in (recipe.Recipe, GapConfig, VerifierConfig, *EXAMPLES, *tasks):
        reached(cls, found)
    kept = {
        cls for cls in found if any(t in (int, float) for t in typing.get_type_hints(cls).values())
    }
    bases = {base for cls in kept for base in cls.__mro__[1:]}
    assert kept - bases - EXAMPLES.keys() == set()
    assert len(EXAMPLES) > 25 and len(numbers(float)) > 40 and len(numbers(int)) > 60


@pytest.mark.parametrize(("cls", "name"), numbers(float))
def test_no_float_may_be_infinite_or_no_number(cls, name):
    for value in (float("nan"), float("inf"), -float("inf"), 1e39):  # float32 ends before it
        with pytest.raises(UserError, match=name):
            dataclasses.replace(EXAMPLES[cls], **{name: value})


@pytest.mark.parametrize(("cls", "name"), numbers(int))
def test_no_size_or_count_may_be_negative(cls, name):
    if (cls.__name__, name) not in NEGATIVE:
        with pytest.raises(UserError, match=name):
            dataclasses.replace(EXAMPLES[cls], **{name: -1})


WRONG = [
    ("seed", -1, "seed=-1"),
    ("seed", 2**40, "seed=1099511627776: must be at most"),
    ("order", ("base", "base"), "order"),
    ("order", ("base", "policy"), "order: run 'policy': is a word of judge.init_from"),
    ("data.path", "corpus.txt", "data.path 'corpus.txt'"),
    ("data.cut.prefix_max", 1, "data.cut.prefix_max=1"),
    ("data.world.entities", 10**9, "data.world.entities"),
    ("data.world.entity", 1, "data.world.entity: unknown"),
    ("data.world", 3, "data.world"),
    ("tokenizer.path", "gone.model", "tokenizer.path: gone.model"),
    ("tokenizer.prompts", ("qualty",), "'qualty'"),
    ("runs.judge.split", "train[60%:40%]", "runs.judge.split: .*empty"),
    ("runs.sip_learned.evals.split", "tests", "runs.sip_learned.evals.split: split 'tests'"),
    ("runs.sip_learned.evals.unsafe", 7, r"runs.sip_learned.evals.unsafe is 7, but 8 .*'base'"),
    ("runs.standard.evals.baseline", "judge", "evals.baseline 'judge': .* no continuations"),
    ("runs.judge.checkpoint.best", "eval/safty", "runs.judge.checkpoint.best 'eval/safty' is none"),
    ("runs.sip_learned.lora.rank", 17, "lora.rank=17: must be <= 16, the size of wq"),
    ("runs.sip_learned.judge.weights", (("safety", -1.0),), "judge.weights: 'safety' must be"),
    ("runs.sip_learned.judge.weights", (("safety", float("nan")),), "judge.weights.0.1=nan"),
    ("runs.sip_learned.judge.init_from", "", "judge.init_from is empty"),
    ("runs.sip_learned.rewriter.init_from", "", "rewriter.init_from is empty"),
    ("runs.sip_learned.rewriter.prompt", "poem", "'poem'"),
    ("runs.sip_learned.candidates.rollouts", ((0, 2), (0, 3)), "in order of steps"),
    ("runs.judge.task.labels.temperatures", (0.5, -1.0), "temperature=-1.0"),
    ("runs.judge.task.labels.per_prefix", {"safety": 0}, "labels.per_prefix: safety"),
    ("runs.judge.task.labels.grades", {"coherence": "safety"}, "labels.grades: 'coherence'"),
    ("runs.rewriter.task.prompt", "poem", "'poem'"),
    ("runs.base", 3, "runs.base=3: must be a section"),
    ("data.cut", 3, "data.cut=3: must be a section"),
    ("data.split", "train", "data.split: unknown key"),
    (
        "report.rows",
        ("standard", "judge"),
        "report.rows: run 'judge' is not evaluated like standard",
    ),
    ("report.judge", "base", "report.judge: run 'base' trains no judge"),
    ("report.rewriter", "sip_oracle", "report.rewriter: run 'sip_oracle' trains no rewriter"),
    ("runs.judge.init_from", "base/best", "judge.init_from 'base/best': run 'base' keeps no best"),
    ("runs.sip_learned.judge.init_from", "judge/best", "judge.init_from .* keeps no best"),
    ("runs.sip_learned.model.width", 32, "init_from base: another model: width 16 there"),
    ("runs.sip_learned.model.layers", 0, "layers"),
    ("tokenizer.vocab_size", 641, "runs.base.model.vocab_size=640: must be >= 641"),
    ("runs.base.batch", 2**31 - 1, "runs.base.batch=2147483647: must be in 1..1048576"),
    ("tokenizer.kind", "huggingface", "tokenizer.path"),
    ("runs.judge.split", "train[500:600]", "judge.split: .*none of the 300 documents"),
    ("runs.sip_oracle.evals.split", "test[100%:]", "evals.split"),
    ("runs.sip_learned.candidates.rollouts", ((0, 10**6),), "K = 1000000 must be at most"),
    ("runs.judge.task.labels.corruptions", 99, "labels.corruptions=99: must be in 0..7"),
    (
        "runs.judge.task.labels.per_prefix",
        {"quality": 1},
        "labels.per_prefix: quality must be >= 2",
    ),
    ("runs.judge.task.labels.per_prefix", {"match": 4}, "match is unknown to the ground truth"),
    ("runs.judge.task.labels.grades", {"quality": "quality"}, "'quality' must be pointwise"),
]


VALUES = plain(tiny_recipe.get_config())


@pytest.mark.parametrize(("key", "value", "message"), WRONG, ids=[f"{k}={v}" for k, v, _ in WRONG])
def test_a_value_that_only_the_whole_recipe_shows_is_wrong(key, value, message, tmp_path):
    values = copy.deepcopy(VALUES)
    values["runs"]["sip_learned"]["evals"]["baseline"] = "base"
    tiny_recipe.put(values, key, value)
    with pytest.raises(UserError, match=message):
        recipe.check(ConfigDict(values, type_safe=False), str(tmp_path))


MORE = {  # several values together are wrong
    "one candidate": (
        {"candidates.rewrite": False, "candidates.rollouts": ((0, 0),), "objective.name": "dpo"},
        "K = 0 rollouts leave one candidate, but objective dpo",
    ),
    "equal candidates": (
        {"candidates.suffix": False, "candidates.rewrite": False, "sampling.temperature": 0.0}
        | {"objective.name": "dpo"},
        "rollouts at sampling.temperature 0 leave one candidate",
    ),
    "equal rollouts": (
        {"objective.name": "dr_grpo", "sampling.temperature": 1e-9},
        "sampling.temperature must be positive",
    ),
    "no room for a prompt": (
        {"judge.weights": (("reasoned_safety", 1.0),), "judge.max_tokens": 10**5},
        "judge.max_tokens 100000 leaves no room",
    ),
}


@pytest.mark.parametrize(("changes", "message"), MORE.values(), ids=MORE)
def test_values_that_do_not_go_together_are_refused(changes, message, tmp_path):
    values = copy.deepcopy(VALUES)
    for key, value in changes.items():
        tiny_recipe.put(values, f"runs.sip_learned.{key}", value)
    with pytest.raises(UserError, match=message):
        recipe.check(ConfigDict(values, type_safe=False), str(tmp_path))


def test_an_answer_without_room_for_a_rewrite_is_refused(tmp_path):
    values = plain(importlib.import_module("microworld_rewriter").get_config("debug"))
    values["runs"]["rewriter_rl"]["answer"] = 2
    with pytest.raises(UserError, match=r"runs\.rewriter_rl\.answer 2: .* raise answer"):
        recipe.check(ConfigDict(values, type_safe=False), str(tmp_path))


def test_a_byte_tokenizer_has_no_file():
    with pytest.raises(UserError, match="tokenizer.path 'x.model': kind 'byte'"):
        TokenizerConfig(kind="byte", path="x.model")


def test_options_are_tokens_of_the_tokenizer_before_the_first_run():
    config = tiny_recipe.get_config()
    with pytest.raises(UserError, match=r"runs\.judge\.task: aspect '.*': option ' "):
        recipe.check_tokens(config, Byte())
    config.order = ("base", "sip_learned")  # the judge's run is not trained here
    recipe.check_tokens(config, Byte())
    config.runs.sip_learned.judge.init_from = "base"
    with pytest.raises(
        UserError, match=r"runs\.sip_learned\.judge: aspect 'quality': option ' one'"
    ):
        recipe.check_tokens(config, Byte())


def test_the_scores_of_the_ground_truth_are_known_by_name():
    from sip.data.microworld.oracle import MicroworldTruth

    assert tuple(MicroworldTruth(WorldConfig()).score(["A"], [" b."])) == SCORES


def test_a_corpus_without_ground_truth_is_refused_by_the_key_that_needs_one(tmp_path):
    config = tiny_recipe.get_config()
    config.data.source, config.data.path, config.data.world = "jsonl", "corpus.jsonl", {}
    with pytest.raises(UserError, match=r"runs\.tutor\.rewriter\.backend needs .*'jsonl'"):
        recipe.check(config, str(tmp_path))
    with pytest.raises(UserError, match="data.path='corpus.jsonl': there is no such file"):
        recipe.check_files(config)


@pytest.mark.parametrize("split", ["train", "test[10:20]", "train[:-10%]", "validation[5:]"])
def test_a_part_or_a_slice_of_it_is_a_split(split):
    check_split("jsonl", split)
    check_split("tfds", f"{split}+other")
    check_split("huggingface", f"{split}+train_sft[:-5%]")
    with pytest.raises(UserError, match="must be one of train, validation, test"):
        check_split("huggingface", f"{split}+other", parts="hash")


def test_figures_of_evaluations_have_the_names_that_best_can_have(finished):
    """`unsafe` prefixes may be missing, so the figures are some of the known ones."""
    for name, known in (("base", ground_truth.FIGURES), ("rewriter", rewrites.FIGURES)):
        seen = json.loads((finished / "runs" / name / "eval.json").read_text())
        names = {key.removeprefix("eval/") for key in known}
        assert len(names & seen.keys()) > 3 and seen.keys() - names <= {"nll_clean"}
    asked = recipe.STAGES["supervised"].resolve(tiny_recipe.get_config(), "judge")
    seen = json.loads((finished / "runs" / "judge" / "eval.json").read_text())
    assert {f"eval/{key.removesuffix('_accuracy')}" for key in seen} <= set(asked.figures(True))
