"""Flags that the benchmarks share."""

from absl import flags

from sip import cli

PREFIXES = flags.DEFINE_integer("prefixes", 2000, "Prefixes per judge.")
CANDIDATES = flags.DEFINE_integer("candidates", 17, "Candidates per prefix.")
SAMPLE = flags.DEFINE_integer("sample", 8, "sharing: unshared prompts run, then scaled to all.")
REPEATS = flags.DEFINE_integer("repeats", 3, "sharing: repeats, of which the fastest counts.")
JUDGE = flags.DEFINE_string("judge", None, "int8, reader: directory of a judge's supervised run.")
PNG = flags.DEFINE_string("png", None, "File for a plot.")
SEED = cli.seed_flag()
JSON = cli.json_flag()
