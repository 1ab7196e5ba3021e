"""Flags that the benchmarks share."""

from absl import flags

from sip import cli

PREFIXES = cli.shared(cli.count_flag, "prefixes", 2000, "Number of prefixes per judge.")
CANDIDATES = flags.DEFINE_integer(
    "candidates", 17, "Number of candidates per prefix.", lower_bound=2, upper_bound=64
)
SAMPLE = cli.count_flag("sample", 8, "sharing: unshared prompts to run; times are scaled to all.")
REPEATS = cli.count_flag("repeats", 3, "sharing: number of runs; the fastest one counts.")
JUDGE = cli.path_flag("judge", None, "int8, reader: run directory of a trained judge.")
PNG = cli.path_flag("png", None, "schedules: PNG file for a plot.")
SEED = cli.seed_flag()
JSON = cli.json_flag()
