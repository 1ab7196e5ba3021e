"""Talks with a model in the chat template that it was tuned in: in a terminal, a pipe or a file.

A question is answered after the earlier turns. What does not fit the model's max_len is forgotten
turn by turn, the oldest first; the system message and the question stay. The model answers at once:
the template's own beginning of an answer (an empty thought, a channel) is put before it. What a
model still thinks aloud, up to </think>, is shown and not remembered.
"""

import contextlib
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import jax
import numpy as np

from sip import loading, mesh, sampling
from sip.data import conversations
from sip.data.conversations import Format
from sip.loading import LoadedModel
from sip.padding import bucket
from sip.sampling import SamplingConfig
from sip.structs import Rollouts, UserError
from sip.text import chat
from sip.text.chat import Message
from sip.text.segments import Ids
from sip.text.tokenizer import Tokenizer, continuation

THOUGHT = "</think>"  # ends a thought in the families that write one
JOINERS = "\u200c\u200d"  # invisible, but part of words and emoji
LEAVE = ("/quit", "/exit")
ANEW = "/new"


@dataclass(frozen=True, eq=False)
class Partner:
    """A model to talk with."""

    model: LoadedModel
    form: Format
    sample: SamplingConfig
    max_tokens: int  # of an answer
    seed: int


@dataclass
class Talk:
    """The turns so far; a question is added with its answer, once it has one."""

    system: str = ""
    turns: list[tuple[str, str]] = field(default_factory=list)  # question, remembered answer
    asked: int = 0  # questions so far, for the random draws

    def messages(self, forgotten: int, question: str) -> list[Message]:
        """Returns the messages without the `forgotten` oldest turns."""
        found: list[Message] = []
        if self.system.strip():
            found.append({"role": "system", "content": self.system})
        for asked, said in self.turns[forgotten:]:
            found += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        return [*found, {"role": "user", "content": question}]


def load(
    directory: str, *, template: str, sample: SamplingConfig, max_tokens: int, seed: int
) -> Partner:
    """Loads a run or a published checkpoint with the chat template `template`.

    Empty: the template that the run, or one that it started from, was tuned in, else the
    tokenizer's own. `max_tokens` 0: 256, at most half of the model's max_len. Raises UserError if
    there is no template.
    """
    tokenizer = loading.kept_tokenizer(directory)
    # The template before the parameters: a mistake in it is reported at once.
    form = conversations.open_format(_template(directory, template, tokenizer), tokenizer)
    where = mesh.single()
    params, cfg = loading.load_params(directory, where)
    return Partner(
        LoadedModel(params, cfg, tokenizer, where),
        form,
        sample,
        max_tokens or min(256, cfg.max_len // 2),
        seed,
    )


def _template(directory: str, name: str, tokenizer: Tokenizer) -> chat.Template:
    try:
        return chat.load(name or loading.tuned_in(directory) or chat.OWN, tokenizer)
    except UserError as error:
        if name:
            raise
        raise UserError(
            f"--chat: {directory} was tuned in no chat template and its tokenizer has none "
            f"({error}); give --template, for example --template=turns"
        ) from None


def draw(
    model: LoadedModel,
    prompts: Sequence[Ids],
    *,
    num: int,
    max_tokens: int,
    sample: SamplingConfig,
    seed: int,
    stops: tuple[int, ...],
    multiple: int = 1,
) -> Rollouts:
    """Samples `num` continuations of each prompt, as arrays on the host.

    The width of the prompts is rounded up by `bucket` to a multiple of `multiple` above 1, so that
    few programs compile. Raises UserError if prompt and `max_tokens` do not fit the model, or if
    its logits are not finite.
    """
    longest, most = max(map(len, prompts)), model.cfg.max_len
    if longest + max_tokens > most:
        raise UserError(
            f"a prompt of {longest} tokens and --max_tokens {max_tokens} exceed "
            f"the model's max_len of {most} tokens"
        )
    width = min(bucket(longest, multiple), most - max_tokens) if multiple > 1 else longest
    tokens_BT = np.full((len(prompts), width), model.tokenizer.pad, np.int32)
    for row, some in zip(tokens_BT, prompts, strict=True):
        row[: len(some)] = some
    fork_B = np.array([len(some) for some in prompts], np.int32)
    run = sampling.program(model.cfg, num, max_tokens, sample, stops)
    with jax.set_mesh(model.mesh):
        key = jax.random.key(seed)
        found = run(model.params, tokens_BT, fork_B, np.arange(len(prompts)), key)
    found = jax.tree.map(np.asarray, found)
    if not np.isfinite(found.logp_BCR).all():
        raise UserError(
            f"the model's logits are not finite: its numbers overflow {model.cfg.dtype}"
        )
    return found


def asked(partner: Partner, messages: Sequence[Message]) -> Ids:
    """Returns the ids of a prompt: the conversation and the beginning of a direct answer."""
    try:
        ids = conversations.prompt(partner.form, messages)
    except conversations.Unusable as error:
        raise UserError(f"--chat: a conversation {error}") from None
    return [*ids, *partner.form.cached.encode_special(partner.form.lead)]


def answer(partner: Partner, talk: Talk, question: str) -> tuple[str, int]:
    """Answers a question and adds the turn to `talk`.

    Returns (answer, turns forgotten now). Raises UserError, and leaves `talk` as it is, if the
    question alone does not fit.
    """
    room, forgotten = partner.model.cfg.max_len - partner.max_tokens, 0
    while len(ids := asked(partner, talk.messages(forgotten, question))) > room:
        if forgotten == len(talk.turns):
            raise UserError(
                f"the question has {len(ids)} tokens with the system message; {room} fit beside an "
                f"answer of {partner.max_tokens} (--max_tokens)"
            )
        forgotten += 1
    found = draw(
        partner.model,
        [ids],
        num=1,
        max_tokens=partner.max_tokens,
        sample=partner.sample,
        # Each question has its own draw; the first has that of the seed.
        seed=(partner.seed + talk.asked) % 2**31,
        stops=partner.form.stops,
        multiple=64,
    )
    text = said(partner, ids, found, 0, 0)
    talk.asked += 1
    talk.turns = [*talk.turns[forgotten:], (question, text.split(THOUGHT)[-1].strip() or text)]
    return text, forgotten


def said(partner: Partner, ids: Ids, found: Rollouts, b: int, k: int) -> str:
    """Returns the text of sample k of prompt b, without the spaces around it."""
    tokens = found.tokens_BCR[b, k][found.mask_BCR[b, k]].tolist()
    return continuation(partner.model.tokenizer, ids, tokens).strip()


def shown(text: str, keep: str = "\n\t") -> str:
    """Escapes control and invisible characters, with which a model could command a terminal."""
    escaped = lambda c: c.encode("unicode_escape", "surrogatepass").decode()
    spaces = lambda c: unicodedata.category(c) == "Zs"  # such as U+00A0, which is not "printable"
    good = lambda c: c.isprintable() or c in keep or c in JOINERS or spaces(c)
    return "".join(c if good(c) else escaped(c) for c in text)


def in_terminal(partner: Partner, system: str, read: Callable[[str], str] = input) -> None:
    """Talks until Ctrl-C, Ctrl-D or /quit; /new forgets all turns."""
    with contextlib.suppress(ImportError):  # it lets `input` edit lines and recall earlier ones
        import readline  # noqa: F401
    talk = Talk(system)
    print(f"Ctrl-D or {LEAVE[0]} ends, {ANEW} forgets the conversation.", file=sys.stderr)
    try:
        while (question := read("> ").strip()) not in LEAVE:
            if question == ANEW:
                talk = Talk(system)
            elif question:
                _tell(partner, talk, question)
    except (EOFError, KeyboardInterrupt):
        print()  # the shell's prompt begins on its own line


def _tell(partner: Partner, talk: Talk, question: str) -> None:
    try:
        text, forgotten = answer(partner, talk, question)
    except UserError as error:  # too long: the conversation goes on
        print(f"error: {error}", file=sys.stderr)
        return
    if forgotten:
        print(f"({forgotten} of the oldest turns do not fit and are forgotten)", file=sys.stderr)
    print(shown(text), flush=True)


def in_pipe(partner: Partner, system: str, lines: Iterable[bytes]) -> Iterator[str]:
    """Yields the answer to each line that is not blank, all in one conversation, on one line each.

    Line ends in an answer are escaped. Raises UserError with the number of a line that is not UTF-8
    or too long.
    """
    talk = Talk(system)
    for number, line in enumerate(lines, 1):
        try:
            question = line.decode().strip()
            if question:
                yield shown(answer(partner, talk, question)[0], keep="\t")
        except UnicodeDecodeError:
            raise UserError(f"stdin:{number}: not UTF-8") from None
        except UserError as error:
            raise UserError(f"stdin:{number}: {error}") from None


def of_prompts(partner: Partner, system: str, prompts: Sequence[str], num: int) -> list[list[dict]]:
    """Answers each prompt in a conversation of its own, `num` times; rows as of sip.generate."""
    ids = [asked(partner, Talk(system).messages(0, prompt)) for prompt in prompts]
    found = draw(
        partner.model,
        ids,
        num=num,
        max_tokens=partner.max_tokens,
        sample=partner.sample,
        seed=partner.seed,
        stops=partner.form.stops,
        multiple=64,
    )
    return [
        [sample_of(prompts[b], said(partner, ids[b], found, b, k), found, b, k) for k in range(num)]
        for b in range(len(ids))
    ]


def sample_of(prompt: str, text: str, found: Rollouts, b: int, k: int) -> dict:
    """The JSON object of sample k of prompt b."""
    live = found.mask_BCR[b, k]
    return {
        "prompt": prompt,
        "text": text,
        "tokens": found.tokens_BCR[b, k][live].tolist(),
        "logp": [round(float(x), 6) for x in found.logp_BCR[b, k][live]],
        "sample_logp": [round(float(x), 6) for x in found.sample_logp_BCR[b, k][live]],
    }
