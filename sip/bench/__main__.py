"""Benchmarks: `python -m sip.bench schedules|sharing|int8|reader`.

`schedules`: comparisons spent against how often the same candidates are chosen and rejected as by
all pairs, for the judges of sip/evals/schedules.py and for `world`: candidates of the micro-world
(suffix, rewrite and spoiled versions of both) as its ground truth compares them. `again` is all
pairs asked once more: how far a judge agrees with itself. With --png a plot.

`sharing`: prompt tokens and seconds of all ordered pairs as branches of one trunk, against a plain
prompt for each pair, and how far the verdicts differ (sip/evals/sharing.py).

`int8`: verdicts of a trained judge (--judge=RUN_DIR, its workdir around it) on its held-out labels,
held in int8 and in bfloat16 against held in float32 (sip/evals/rounding.py).

`reader`: how often a perfect reader of what that judge is shown is right about factuality, on test
prefixes (--prefixes), beside the judge's own accuracy (sip/evals/reader.py).
"""

from absl import flags as absl_flags

from sip import cli
from sip.bench import flags
from sip.bench.factuality_ceiling import bench_reader
from sip.bench.int8 import bench_int8
from sip.bench.schedules import bench_schedules
from sip.bench.sharing import bench_sharing
from sip.structs import UserError

absl_flags.adopt_module_key_flags(flags)
BENCHES = {
    "schedules": bench_schedules,
    "sharing": bench_sharing,
    "int8": bench_int8,
    "reader": bench_reader,
}


def main(argv) -> None:
    """The command line."""
    if len(argv) != 2 or argv[1] not in BENCHES:
        raise UserError(f"usage: python -m sip.bench {'|'.join(BENCHES)}")
    BENCHES[argv[1]]()


if __name__ == "__main__":
    cli.run(main)
