"""Inserts thoughts into raw texts, to train a model that thinks (arXiv 2601.21343, chapter 2).

python -m sip.annotate --corpus=my.jsonl --split=train --url=http://HOST:8000/v1 --model=NAME \
    --api=chat --out=thoughts.jsonl
python -m sip.annotate --corpus=my.txt --checkpoint=HF_DIR --template=own --out=thoughts.jsonl
python -m sip.annotate --config=configs/thinking.py --workdir=/tmp/sip --thinker=truth --out=t.jsonl

A text is accepted only if it is the original, byte for byte, once its thoughts are removed. All
tags become one pair (--tags). A thought that quotes the text after it is dropped: --quote_run words
in a row among the next --quote_target, which the text before does not have. The yield is printed.
A stopped command continues where it was when it is run again, with the same texts, prompt and
flags. It ends with an error if a server stops answering; texts that got no answer are asked again
by the next command. --shards and --shard divide the texts among commands; each writes its own file,
and the files together are that of one command.
"""

import hashlib
from collections.abc import Iterable
from typing import Any

from absl import flags
from tqdm import tqdm

from sip import cli
from sip.annotate import asking, teachers
from sip.annotate.output import Output, Shard, locked
from sip.annotate.teachers import Asked, Portion, Teacher
from sip.data import corpus as corpora
from sip.data import documents, thoughts
from sip.data.thoughts import QuoteConfig, ThoughtRule
from sip.sampling import SamplingConfig
from sip.stages import recipe
from sip.structs import UserError
from sip.text import chat
from sip.workdir import to_json

MODEL, TRUTH = "model", "truth"
LOST = 0.9  # share of a portion without an answer at which the command ends
TRIED = 64  # texts that are answered before a teacher must have annotated one rightly

_OUT = cli.shared(cli.path_flag, "out", None, "File to write (.jsonl). Required.")
_CORPUS = asking.corpus_flags()
_SPLIT = cli.shared(flags.DEFINE_string, "split", "train", "Split of the documents to annotate.")
_THINKER = flags.DEFINE_enum(
    "thinker", MODEL, (MODEL, TRUTH), "A model, or the rule of a generated corpus."
)
_MODEL = asking.model_flags()
_CHAT = cli.shared(
    flags.DEFINE_string,
    "template",
    "",
    "With --checkpoint: chat template, own | harmony | turns | a .jinja file.",
)
_PROMPT = flags.DEFINE_string("thoughts_prompt", "annotate", "Prompt: name or .txt file.")
_TAGS = flags.DEFINE_list("tags", list(thoughts.TAGS), "The pair of tags in the output.")
_DOCUMENTS = cli.count_flag("documents", 1 << 30, "Most documents of the split to annotate.")
_MOST_WORDS = cli.count_flag("most_words", 2000, "Words of the longest document that is tried.")
_THOUGHT_WORDS = cli.count_flag("thought_words", 128, "Most words of a thought.")
_QUOTE_RUN = cli.count_flag("quote_run", QuoteConfig.run, "Words in a row that make a quotation.")
_QUOTE_TARGET = cli.count_flag(
    "quote_target", QuoteConfig.target, "Words after a thought that it must not quote."
)
_SHARD = flags.DEFINE_integer("shard", 0, "Number of this command's shard.", lower_bound=0)
_SHARDS = cli.count_flag("shards", 1, "Shards that the documents are divided into.")
_PORTION = cli.count_flag("portion", 64, "Documents between two writings to the disk.")
_MAX_TOKENS = cli.shared(cli.count_flag, "max_tokens", 4096, "Most tokens of an answer.")
_TEMPERATURE = cli.shared(flags.DEFINE_float, "temperature", 0.6, "Sampling temperature.")
_TOP_P = cli.shared(flags.DEFINE_float, "top_p", 1.0, "Nucleus sampling of answers.")
_SEED = cli.seed_flag()
_JSON = cli.json_flag()


def read_documents() -> documents.Documents:
    """Loads the documents to annotate, from --config or --corpus. Raises UserError."""
    _CORPUS.check()
    if (config := _CORPUS.config.value) is not None:
        recipe.read(config)
        return corpora.load_documents(config.data, _SPLIT.value, str(_CORPUS.workdir.value))
    return corpora.load_documents(_CORPUS.section(), _SPLIT.value, "")


def read_teacher(docs: documents.Documents) -> Teacher:
    """Builds the teacher, from --thinker=truth, --checkpoint or --url. Raises UserError."""
    tags, prompt = _tags(), teachers.load_prompt(str(_PROMPT.value))
    if _THINKER.value == TRUTH:
        if _MODEL.checkpoint.value or _MODEL.url.value:
            raise UserError("--thinker=truth: needs neither --checkpoint nor --url")
        return teachers.by_rule(docs.thinker, tags)
    if not _MODEL.given:
        raise UserError("a teacher is needed: give --checkpoint, --url or --thinker=truth")
    if _CHAT.value and not _MODEL.checkpoint.value:
        raise UserError("--template: is for --checkpoint; a server has its own (--api=chat)")
    how: Any = dict(
        max_tokens=int(_MAX_TOKENS.value),
        sampling=SamplingConfig(temperature=_TEMPERATURE.value, top_p=_TOP_P.value),
        seed=int(_SEED.value),
    )
    if _MODEL.url.value:
        return teachers.by_server(_MODEL.server(), prompt, **how)
    model, loaded = _MODEL.local()
    turn = chat.turn(chat.load(_CHAT.value, loaded.tokenizer)) if _CHAT.value else None
    return teachers.by_model(model, prompt, turn=turn, **how)


def _tags() -> thoughts.Tags:
    found = tuple(_TAGS.value)
    if len(set(found)) != 2 or not all(found):
        raise UserError(f"--tags: must be two different strings, not {','.join(found)}")
    return found[0], found[1]


def settings(docs: documents.Documents) -> dict:
    """Returns the settings on which the lines of the output depend."""
    names = "split thinker checkpoint template url model api thoughts_prompt tags documents"
    names += " most_words thought_words quote_run quote_target shard shards max_tokens temperature"
    names += " top_p seed"
    found = {name: flags.FLAGS[name].value for name in names.split()}
    prompt = digest([teachers.load_prompt(str(_PROMPT.value))])
    return {**found, "corpus": digest(docs.texts), "thoughts_prompt": prompt}


def digest(texts: Iterable[str]) -> str:
    """Returns the SHA-256 of texts."""
    found = hashlib.sha256()
    for text in texts:
        data = text.encode()
        found.update(len(data).to_bytes(8) + data)
    return found.hexdigest()


def annotate() -> Output:
    """Annotates the documents of the shard that are not done yet, or were not answered.

    Raises UserError, and leaves a portion undone, if a server answers almost none of it, or if the
    teacher annotates no text rightly.
    """
    if _SHARD.value >= _SHARDS.value:
        raise UserError(f"--shard={_SHARD.value}: must be 0 to {_SHARDS.value - 1} (--shards)")
    if "://" in str(_OUT.value):
        raise UserError(f"--out {_OUT.value}: must be a local file; copy it to the store later")
    shard = Shard(int(_SHARD.value), int(_SHARDS.value))
    with locked(shard.path(str(_OUT.value))):
        return _annotate(shard)


def _annotate(shard: Shard) -> Output:
    part, *_ = thoughts.slice_of(str(_SPLIT.value))
    rule = ThoughtRule(_THOUGHT_WORDS.value, QuoteConfig(_QUOTE_RUN.value, _QUOTE_TARGET.value))
    how = Asked(_tags(), rule, int(_MOST_WORDS.value))
    docs = read_documents()
    most = min(len(docs.texts), int(_DOCUMENTS.value))
    mine = range(shard.shard, most, shard.shards)
    out = Output(shard.path(str(_OUT.value)), settings(docs))
    again = set(out.unanswered)
    todo, size = [*out.unanswered, *mine[out.done :]], int(_PORTION.value)
    if not todo and out.path.exists():
        return out
    teacher = read_teacher(docs)
    for start in tqdm(range(0, max(len(todo), 1), size), desc="portions of texts", disable=None):
        some = todo[start : start + size]
        found = teachers.annotate([docs.texts[i] for i in some], teacher, how, out.counts)
        check(out, found)
        lines = [
            dict(doc=i, part=part, text=thoughts.joined(pieces, how.tags))
            for i, pieces in zip(some, found.pieces, strict=True)
            if pieces is not None
        ]
        left = [i for i in out.unanswered if i not in some]
        left += [some[place] for place in found.unreached]
        out.append(lines, out.done + len(set(some) - again), sorted(left))
    return out


def check(out: Output, found: Portion) -> None:
    """Raises UserError if the server or the teacher is of no use."""
    lost = len(found.unreached)
    if lost and lost >= LOST * found.asked:
        raise UserError(
            f"{out.path}: {lost} of {found.asked} texts got no answer; {out.done:,} are done; run "
            "the same command again when the server answers; last problem: "
            f"{found.unreached[max(found.unreached)]}"
        )
    if not out.counts.accepted and out.counts.answered >= TRIED and _THINKER.value == MODEL:
        raise UserError(
            f"{out.path}: none of {out.counts.answered} annotated texts can be accepted "
            f"({documents.listed(out.counts.rejected)}); use another model or --thoughts_prompt"
        )


def main(argv) -> None:
    """The command line."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}")
    if _OUT.value is None:
        raise UserError("--out is needed")
    out = annotate()
    found, left = out.counts, len(out.unanswered)
    if _JSON.value:
        print(to_json({**found.said(), "unanswered": left}))
    else:
        accepted = f"{found.accepted:,} of {found.texts:,} texts accepted"
        print(f"{accepted}, with {found.thoughts:,} thoughts")
        both = ("texts rejected", found.rejected), ("thoughts dropped", found.dropped)
        for what, counts in both:
            if counts:
                print(f"{what}: {documents.listed(dict(counts.most_common()))}")
    if left:
        raise UserError(
            f"{out.path}: {left:,} texts got no answer from the server; run the same command again "
            "to ask for them"
        )


if __name__ == "__main__":
    cli.run(main)
