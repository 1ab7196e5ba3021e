"""Samples continuations: `python -m sip.generate --checkpoint=RUN_DIR --prompt="About Fihefo."`.

RUN_DIR is the directory of a run or of a checkpoint in Hugging Face format, or
hf://ORGANISATION/NAME, which is downloaded once. A prompt of a published checkpoint begins as in
transformers: its tokenizer files say if BOS and a space come first. Prints each prompt with its
continuation. With --json prints one object per sample, with tokens and log-probabilities in nats:
`logp` under the model, `sample_logp` under the distribution after temperature, top_k and top_p.
"""

import os

import jax
import numpy as np
from absl import flags

from sip import cli, loading, mesh, sampling
from sip.hf import hub, spelling, tokens
from sip.sections import LARGEST
from sip.structs import UserError
from sip.text.lines import read_texts
from sip.text.tokenizer import continuation
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
_SEED = cli.seed_flag()
_JSON = cli.json_flag()


def read_prompts(prompt: str | None, path: str | None) -> list[str]:
    """The given prompt, or the non-empty lines of a file. Raises UserError."""
    if (prompt is None) == (path is None):
        raise UserError("give either --prompt or --prompts")
    if prompt is not None:
        return [_as_utf8(prompt)]
    found = [line for line in read_texts(str(path), "prompts") if line.strip()]
    if not found:
        raise UserError(f"--prompts {path}: the file has no prompt")
    return found


def _as_utf8(prompt: str) -> str:
    """Decodes an argument as UTF-8 if the locale (LC_ALL=C) could not: it has surrogates then."""
    try:
        surrogates = any("\ud800" <= c <= "\udfff" for c in prompt)
        return os.fsencode(prompt).decode() if surrogates else prompt
    except UnicodeError:
        raise UserError(f"--prompt {prompt!a}: not UTF-8; put it into a file: --prompts") from None


def generate(
    directory: str,
    prompts: list[str],
    *,
    num: int,
    max_tokens: int,
    sample: sampling.SamplingConfig,
    seed: int,
) -> list[list[dict]]:
    """Samples `num` continuations of each prompt.

    Returns, for each prompt, `num` dicts of prompt, text, tokens, logp and sample_logp (nats, per
    token). Raises UserError if a prompt and `max_tokens` do not fit the model.
    """
    if num < 1 or max_tokens < 1:
        raise UserError("--num and --max_tokens must be at least 1")
    tokenizer, where = loading.kept_tokenizer(directory), mesh.single()
    params, cfg = loading.load_params(directory, where)
    published = tokens.home(directory) is not None
    ids = [spelling.prompt(tokenizer, p, as_published=published) for p in prompts]
    if num * len(ids) > MOST_SAMPLES:
        raise UserError(
            f"{len(ids)} prompts with --num={num}: at most {MOST_SAMPLES:,} samples are drawn at "
            "once; ask for fewer and run again with another --seed"
        )
    longest = max(map(len, ids))
    if longest + max_tokens > cfg.max_len:
        raise UserError(
            f"a prompt of {longest} tokens and --max_tokens {max_tokens} exceed "
            f"the model's max_len of {cfg.max_len} tokens"
        )
    tokens_BT = np.full((len(ids), longest), tokenizer.pad, np.int32)
    for row, some in zip(tokens_BT, ids, strict=True):
        row[: len(some)] = some
    fork_B = np.array([len(some) for some in ids], np.int32)
    run = sampling.program(cfg, num, max_tokens, sample, tokenizer.stops)
    with jax.set_mesh(where):
        found = run(params, tokens_BT, fork_B, np.arange(len(ids)), jax.random.key(seed))
    found = jax.tree.map(np.asarray, found)
    return [
        [_sample(tokenizer, prompts[b], ids[b], found, b, k) for k in range(num)]
        for b in range(len(ids))
    ]


def _sample(tokenizer, prompt, ids, found, b, k) -> dict:
    """The JSON object of sample k of prompt b."""
    live = found.mask_BCR[b, k]
    tokens = found.tokens_BCR[b, k][live].tolist()
    return {
        "prompt": prompt,
        "text": continuation(tokenizer, ids, tokens),
        "tokens": tokens,
        "logp": [round(float(x), 6) for x in found.logp_BCR[b, k][live]],
        "sample_logp": [round(float(x), 6) for x in found.sample_logp_BCR[b, k][live]],
    }


def main(argv) -> None:
    """The command line."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}")
    if not _CHECKPOINT.value:
        raise UserError("--checkpoint is needed")
    sample = sampling.SamplingConfig(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value)
    rows = generate(
        hub.local(_CHECKPOINT.value),
        read_prompts(_PROMPT.value, _PROMPTS.value),
        num=_NUM.value,
        max_tokens=_MAX_TOKENS.value,
        sample=sample,
        seed=_SEED.value,
    )
    for one in (one for row in rows for one in row):
        print(to_json(one) if _JSON.value else one["prompt"] + one["text"])


if __name__ == "__main__":
    cli.run(main)
