"""Flags that the benchmarks share."""

import sys

from absl import flags

from sip import cli
from sip.models.config import ATTENTION as KINDS

PREFIXES = cli.shared(cli.count_flag, "prefixes", 2000, "Number of prefixes per judge.")
CANDIDATES = flags.DEFINE_integer(
    "candidates", 17, "Number of candidates per prefix.", lower_bound=2, upper_bound=64
)
SAMPLE = cli.count_flag(
    "sample", 8, "sharing, judge: unshared prompts to run; times are scaled to all."
)
REPEATS = cli.count_flag("repeats", 3, "sharing: number of runs; the fastest one counts.")
JUDGE = cli.path_flag("judge", None, "int8, reader, ranking: run directory of a trained judge.")
ROLLOUTS_OF = flags.DEFINE_string(
    "rollouts_of", "", "ranking: run or directory of the policy; empty: that of the judge's labels."
)
PNG = cli.path_flag("png", None, "schedules: PNG file for a plot.")
SEED = cli.seed_flag()
JSON = cli.json_flag()

# Of the benchmarks of speed: step, rollout, update, judge, host and compile.
AGAINST = flags.DEFINE_enum(
    "against", "", ("", "hf"), "Peer beside our own plain sequences: hf is transformers on torch."
)
PEER_PYTHON = cli.path_flag("peer_python", sys.executable, "Python that has torch, for the peer.")
TURNS = cli.count_flag("turns", 5, "Number of timed turns of each way; medians are printed.")
PRESET = flags.DEFINE_string("preset", "", "Model (sip/models/presets.py); empty: 32 M parameters.")
DTYPE = flags.DEFINE_enum(
    "compute_dtype",
    "float32",
    ("float32", "bfloat16"),
    "Dtype of matrix products and stored matrices.",
)
ATTENTION = flags.DEFINE_enum(
    "attention", "xla", KINDS, "Attention within trunks: splash needs a TPU, cudnn a GPU."
)
PREFIX_TOKENS = cli.count_flag("prefix_tokens", 896, "Tokens of a prefix.")
SUFFIX_TOKENS = cli.count_flag("suffix_tokens", 128, "Tokens of a suffix or a rollout.")
ROLLOUTS = flags.DEFINE_list(
    "rollout_counts", ["4", "8", "16"], "step: numbers of rollouts per prefix."
)
TINY = flags.DEFINE_bool("tiny", False, "A tiny model and short texts, to see that all runs.")
