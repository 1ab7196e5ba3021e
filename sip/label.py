"""Labels texts to train a judge on a corpus without a ground truth.

Writes a JSON Lines file for the `label_file` section of a run.

python -m sip.label --make=spoiled --spoilers=model,shuffle,number --aspect=reasoned_quality \
    --corpus=my.txt --tokenizer=my.model --url=http://HOST:8000/v1 --model=NAME --out=labels.jsonl
python -m sip.label --make=safety --aspect=reasoned_safety --config=configs/microworld.py \
    --workdir=/tmp/sip --split=train[75%:] --checkpoint=RUN_DIR --out=safety.jsonl

--make=spoiled: pairs of a suffix and a version of it corrupted by rule or by a model.
--make=safety: texts labelled by unanimous votes of a model.
--make=voted: pairs of texts labelled by unanimous votes in both orders; needs --policy, whose
    rollouts are compared with the suffix and with each other.

With --cache the model's answers are saved; if the command was stopped, the same command continues.
"""

from itertools import combinations

from absl import flags

from sip import cli, loading, mesh
from sip import run as runs
from sip import workdir as workdirs
from sip.annotate import asking
from sip.data import corpus as corpora
from sip.evals import continuations
from sip.hf import hub
from sip.judge import prompts
from sip.judge.labels import file as label_file
from sip.judge.labels import synthesis
from sip.judge.labels.synthesis import Made
from sip.judge.voting import Voting
from sip.sampling import SamplingConfig
from sip.stages import recipe
from sip.structs import UserError
from sip.text import tokenizer as tokenizers
from sip.text.tokenizer import Tokenizer
from sip.textgen.protocol import TextGenerator
from sip.workdir import to_json

KINDS = ("spoiled", "safety", "voted")
MODEL = "model"  # the name in --spoilers that stands for the model

_MAKE = flags.DEFINE_enum("make", None, KINDS, "Kind of labels. Required.")
_OUT = cli.shared(cli.path_flag, "out", None, "File to write, which must not exist. Required.")
_ASPECT = flags.DEFINE_string(
    "aspect", None, "Judge prompt to ask and label: name or .txt file. Required."
)
_LABEL_FOR = flags.DEFINE_string("label_for", "", "Aspect to label, if it is not --aspect.")
_CORPUS = asking.corpus_flags()
_TOKENIZER = cli.path_flag("tokenizer", "", "With --corpus: tokenizer file, or 'byte'.")
_SPLIT = cli.shared(flags.DEFINE_string, "split", "train", "Split of the documents to label.")
_PREFIX_MIN = cli.count_flag("prefix_min", 64, "With --corpus: least tokens of a prefix.")
_PREFIX_MAX = cli.count_flag("prefix_max", 512, "With --corpus: most tokens of a prefix.")
_SUFFIX = cli.count_flag("suffix", 128, "With --corpus: tokens of a suffix.")
_CHUNKS = cli.count_flag("chunks", 1000, "Number of prefixes, with their suffixes.")
_SPOILERS = flags.DEFINE_list("spoilers", [MODEL], "Corruptions: names of rules, or 'model'.")
_SPOIL_PROMPT = flags.DEFINE_string(
    "spoil_prompt", "spoil", "Prompt of 'model': name or .txt file."
)
_POLICY = cli.path_flag("policy", "", "Directory of a run; also label its rollouts.")
_ROLLOUTS = cli.count_flag("rollouts", 1, "Rollouts of --policy per prefix.")
_MODEL = asking.model_flags()
_VOTES = cli.count_flag("votes", 8, "Votes per text; a label is kept only if all agree.")
_MAX_TOKENS = cli.shared(cli.count_flag, "max_tokens", 512, "Most tokens of an answer.")
_TEMPERATURE = cli.shared(
    flags.DEFINE_float, "temperature", 0.6, "Sampling temperature of answers."
)
_TOP_P = cli.shared(flags.DEFINE_float, "top_p", 1.0, "Nucleus sampling of answers.")
_SEED = cli.seed_flag()
_JSON = cli.json_flag()


def read_corpus() -> tuple[corpora.Corpus, Tokenizer]:
    """Loads the corpus to label and its tokenizer, from --config or --corpus. Raises UserError."""
    _CORPUS.check()
    if (config := _CORPUS.config.value) is not None:
        workdir = workdirs.existing(str(_CORPUS.workdir.value))
        recipe.read(config)
        tokenizer = runs.open_tokenizer(config, workdir)
        return corpora.load(config.data, _SPLIT.value, workdir, tokenizer), tokenizer
    data = _CORPUS.section()
    if not _TOKENIZER.value:
        raise UserError("--tokenizer is needed with --corpus")
    tokenizer = tokenizers.load(*tokenizers.guess(str(_TOKENIZER.value)))
    cut = dict(prefix_min=_PREFIX_MIN.value, prefix_max=_PREFIX_MAX.value, suffix=_SUFFIX.value)
    return corpora.load({**data, "cut": cut}, _SPLIT.value, "", tokenizer), tokenizer


def read_model() -> TextGenerator:
    """Loads the model to ask, from --checkpoint or --url. Raises UserError."""
    if not _MODEL.given:
        raise UserError("a model is needed: give either --checkpoint or --url")
    return _MODEL.local()[0] if _MODEL.checkpoint.value else _MODEL.server()


def candidates(corpus: corpora.Corpus, tokenizer: Tokenizer, asked, seed: int) -> list[list[str]]:
    """The distinct texts of each prefix: its suffix and, with --policy, rollouts."""
    texts = [[suffix] for suffix in asked.suffixes]
    if _POLICY.value:
        where, policy = mesh.single(), hub.local(_POLICY.value)
        # A cheap test that both tokenizers are the same: rollouts are decoded by the corpus's.
        if loading.kept_tokenizer(policy).encode("\n a") != tokenizer.encode("\n a"):
            raise UserError(f"--policy {policy}: its tokenizer differs from the corpus's")
        params, cfg = loading.load_params(policy, where)
        runs.check_model(cfg, corpus.cut, tokenizer)
        rows = continuations.sample(
            loading.LoadedModel(params, cfg, tokenizer, where),
            asked,
            branches=_ROLLOUTS.value,
            steps=corpus.cut.suffix,
            sampling=SamplingConfig(),
            seed=seed,
            batch=32,
        )
        texts = [[*row, *more] for row, more in zip(texts, rows, strict=True)]
    return [list(dict.fromkeys(text for text in row if text.strip())) for row in texts]


def make_spoiled(aspect, tokenizer, asked, asking) -> dict[str, Made]:
    """Makes pairs of a suffix and its corrupted version, by each of --spoilers."""
    names = [name for name in _SPOILERS.value if name != MODEL]
    found = dict(synthesis.by_rule(names, asked.prefixes, asked.suffixes, asking.seed))
    if MODEL in _SPOILERS.value:
        spoiler = synthesis.load_spoiler(_SPOIL_PROMPT.value)
        found[MODEL] = synthesis.by_model(
            read_model(), spoiler, asked.prefixes, asked.suffixes, asking
        )
    return {
        name: synthesis.pairs(
            aspect, asked.prefixes, asked.suffixes, texts, synthesis.trimmer(tokenizer)
        )
        for name, texts in found.items()
    }


def make_votes(aspect, corpus, tokenizer, asked, asking) -> dict[str, Made]:
    """Labels single texts (--make=safety) or pairs of texts (--make=voted) by votes."""
    named = prompts.load(_LABEL_FOR.value) if _LABEL_FOR.value else None
    texts = candidates(corpus, tokenizer, asked, asking.seed)
    size = 1 if _MAKE.value == "safety" else 2
    rows = [
        (prefix, some)
        for prefix, row in zip(asked.prefixes, texts, strict=True)
        for some in combinations(row, size)
    ]
    if not rows:
        raise UserError("--make=voted: no prefix has two texts; add rollouts with --policy")
    prefixes, model = [prefix for prefix, _ in rows], read_model()
    if size == 1:
        texts = [text for _, (text,) in rows]
        made = synthesis.safety(model, aspect, prefixes, texts, asking, named=named)
    else:
        two = [(first, second) for _, (first, second) in rows]
        made = synthesis.voted_pairs(model, aspect, prefixes, two, asking, named=named)
    return {str(_MAKE.value): made}


def label() -> dict[str, Made]:
    """Makes the labels and writes them to --out. Returns them by kind or corruption."""
    out = str(_OUT.value)
    label_file.check_new(out)
    aspect = prompts.load(str(_ASPECT.value))
    how = SamplingConfig(temperature=_TEMPERATURE.value, top_p=_TOP_P.value)
    votes = 1 if _MAKE.value == "spoiled" else _VOTES.value
    asking = Voting(votes, int(_MAX_TOKENS.value), how, int(_SEED.value))
    corpus, tokenizer = read_corpus()
    asked = continuations.prompts(corpus.chunks, range(_CHUNKS.value), tokenizer)
    if _MAKE.value == "spoiled":
        found = make_spoiled(aspect, tokenizer, asked, asking)
    else:
        found = make_votes(aspect, corpus, tokenizer, asked, asking)
    lines = [line for made in found.values() for line in made.lines]
    if not lines:
        why = synthesis.dropped(list(found.values()))
        raise UserError(f"nothing to write: all examples were dropped ({why})")
    label_file.write(out, lines)
    return found


def main(argv) -> None:
    """The command line."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}")
    for flag in (_MAKE, _ASPECT, _OUT):
        if flag.value is None:
            raise UserError(f"--{flag.name} is needed")
    for name, made in label().items():
        counts = {"kept": len(made.lines), "of": made.asked, "dropped": dict(made.dropped)}
        if _JSON.value:
            print(to_json({"labels": name, **counts}))
        else:
            dropped = f"; dropped: {synthesis.dropped([made])}" if made.dropped else ""
            print(f"{name}: {len(made.lines)} of {made.asked} kept{dropped}")


if __name__ == "__main__":
    cli.run(main)
