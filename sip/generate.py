"""Samples continuations: `python -m sip.generate --checkpoint=RUN_DIR --prompt="About Fihefo."`.

RUN_DIR is the directory of a run or of a checkpoint in Hugging Face format, or
hf://ORGANISATION/NAME, which is downloaded once. A prompt of a published checkpoint begins as in
transformers: its tokenizer files say if BOS and a space come first. Prints each prompt with its
continuation. With --json prints one object per sample, with tokens and log-probabilities in nats:
`logp` under the model, `sample_logp` under the distribution after temperature, top_k and top_p.

With --chat the model answers as an assistant, in the chat template that it was tuned in:

    python -m sip.generate --chat --checkpoint=RUN_DIR              a talk in the terminal
    python -m sip.generate --chat --checkpoint=RUN_DIR < FILE       one answer per line, one talk
    python -m sip.generate --chat --checkpoint=RUN_DIR --prompts=FILE   each line by itself
"""

import os
import sys

from absl import flags

from sip import cli, loading, mesh, sampling
from sip.data import control as controls
from sip.hf import hub, spelling, tokens
from sip.loading import LoadedModel
from sip.sections import LARGEST
from sip.structs import UserError
from sip.text.lines import read_lines, read_texts
from sip.text.tokenizer import continuation
from sip.textgen import dialogue
from sip.workdir import to_json

MOST_SAMPLES = 1 << 16  # each has its own part of the cache in memory

_CHECKPOINT = cli.checkpoint_flag()
_PROMPT = flags.DEFINE_string("prompt", None, "The prompt. Give either --prompt or --prompts.")
_PROMPTS = cli.path_flag("prompts", None, "File with one prompt per line.")
_NUM = cli.count_flag("num", 1, "Number of samples per prompt.")
_MAX_TOKENS = cli.shared(
    cli.count_flag, "max_tokens", 32, "Most tokens per sample; an end token ends it earlier."
)
_TEMPERATURE = cli.shared(
    flags.DEFINE_float, "temperature", 1.0, "Sampling temperature; 0: greedy."
)
_TOP_P = cli.shared(
    flags.DEFINE_float,
    "top_p",
    1.0,
    "Sample from the smallest set of tokens with this total probability.",
)
_TOP_K = flags.DEFINE_integer(
    "top_k",
    0,
    "Sample from this many likeliest tokens; 0: all.",
    lower_bound=0,
    upper_bound=LARGEST,
)
_CONTROL = cli.shared(
    flags.DEFINE_string,
    "control",
    "",
    "Control token after the prompt, such as '<|good|>' of configs/microworld_safety.py.",
)
_CHAT = flags.DEFINE_bool(
    "chat", False, "Answer as an assistant: in a terminal, to each line of stdin, or to --prompts."
)
_TEMPLATE = cli.shared(
    flags.DEFINE_string,
    "template",
    "",
    "With --chat: own, harmony, turns or a .jinja file; by default that of the run's training.",
)
_SYSTEM = flags.DEFINE_string("system", "", "With --chat: the system message.")
_SEED = cli.seed_flag()
_JSON = cli.json_flag()


def read_prompts(prompt: str | None, path: str | None) -> list[str]:
    """The given prompt, or the non-empty lines of a file. Raises UserError."""
    if (prompt is None) == (path is None):
        raise UserError("give either --prompt or --prompts")
    if prompt is not None:
        return [_as_utf8(prompt, "--prompt")]
    found = [line for line in read_texts(str(path), "prompts") if line.strip()]
    if not found:
        raise UserError(f"--prompts {path}: the file has no prompt")
    return found


def _as_utf8(prompt: str, flag: str) -> str:
    """Decodes an argument as UTF-8 if the locale (LC_ALL=C) could not: it has surrogates then."""
    try:
        surrogates = any("\ud800" <= c <= "\udfff" for c in prompt)
        return os.fsencode(prompt).decode() if surrogates else prompt
    except UnicodeError:
        raise UserError(f"{flag} {prompt!a}: not UTF-8; put it into a file: --prompts") from None


def generate(
    directory: str,
    prompts: list[str],
    *,
    num: int,
    max_tokens: int,
    sample: sampling.SamplingConfig,
    seed: int,
    control: str = "",
) -> list[list[dict]]:
    """Samples `num` continuations of each prompt, with the control token `control` between the two.

    Returns, for each prompt, `num` dicts of prompt, text, tokens, logp and sample_logp (nats, per
    token). Raises UserError if a prompt and `max_tokens` do not fit the model.
    """
    if num < 1 or max_tokens < 1:
        raise UserError("--num and --max_tokens must be at least 1")
    tokenizer, where = loading.kept_tokenizer(directory), mesh.single()
    params, cfg = loading.load_params(directory, where)
    published = tokens.home(directory) is not None
    ids = [spelling.prompt(tokenizer, p, as_published=published) for p in prompts]
    if control:
        token = controls.token(tokenizer, control, "--control")
        ids = [[*some, token] for some in ids]
    check_number(len(ids), num)
    model = LoadedModel(params, cfg, tokenizer, where)
    found = dialogue.draw(
        model,
        ids,
        num=num,
        max_tokens=max_tokens,
        sample=sample,
        seed=seed,
        stops=tokenizer.stops,
    )

    def one(b: int, k: int) -> dict:
        live = found.tokens_BCR[b, k][found.mask_BCR[b, k]].tolist()
        return dialogue.sample_of(prompts[b], continuation(tokenizer, ids[b], live), found, b, k)

    return [[one(b, k) for k in range(num)] for b in range(len(ids))]


def check_number(prompts: int, num: int) -> None:
    """Raises UserError if more samples are asked for than fit the memory at once."""
    if num * prompts > MOST_SAMPLES:
        raise UserError(
            f"{prompts} prompts with --num={num}: at most {MOST_SAMPLES:,} samples are drawn at "
            "once; ask for fewer and run again with another --seed"
        )


def talk(directory: str, sample: sampling.SamplingConfig) -> None:
    """The command line with --chat. Raises UserError."""
    given = flags.FLAGS["max_tokens"].present
    asked = _PROMPT.value is not None or _PROMPTS.value is not None
    prompts = read_prompts(_PROMPT.value, _PROMPTS.value) if asked else []
    if not asked:
        for flag in (_NUM, _JSON):
            if flags.FLAGS[flag.name].present:
                raise UserError(f"--{flag.name}: needs --prompt or --prompts with --chat")
    check_number(len(prompts), _NUM.value)
    partner = dialogue.load(
        directory,
        template=_TEMPLATE.value,
        sample=sample,
        max_tokens=_MAX_TOKENS.value if given else 0,
        seed=_SEED.value,
    )
    system = _as_utf8(_SYSTEM.value, "--system")
    if asked:
        rows = dialogue.of_prompts(partner, system, prompts, _NUM.value)
        for one in (one for row in rows for one in row):
            print(to_json(one) if _JSON.value else dialogue.shown(one["text"], keep="\t"))
    elif sys.stdin.isatty():
        dialogue.in_terminal(partner, system)
    else:
        for line in dialogue.in_pipe(partner, system, read_lines(sys.stdin.buffer, "stdin")):
            print(line, flush=True)


def main(argv) -> None:
    """The command line."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}")
    if not _CHECKPOINT.value:
        raise UserError("--checkpoint is needed")
    sample = sampling.SamplingConfig(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value)
    if _CHAT.value:
        if _CONTROL.value:
            raise UserError("--control: stands after a prompt to continue; leave out --chat")
        return talk(hub.local(_CHECKPOINT.value), sample)
    for flag in (_TEMPLATE, _SYSTEM):
        if flag.value:
            raise UserError(f"--{flag.name}: needs --chat")
    rows = generate(
        hub.local(_CHECKPOINT.value),
        read_prompts(_PROMPT.value, _PROMPTS.value),
        num=_NUM.value,
        max_tokens=_MAX_TOKENS.value,
        sample=sample,
        seed=_SEED.value,
        control=_CONTROL.value,
    )
    for one in (one for row in rows for one in row):
        text = one["prompt"] + one["text"]
        text = dialogue.shown(text) if sys.stdout.isatty() else text  # a pipe gets all bytes
        print(to_json(one) if _JSON.value else text)


if __name__ == "__main__":
    cli.run(main)
