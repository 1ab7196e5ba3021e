"""Benchmarks of the judge: `python -m sip.bench schedules|sharing|int8|reader`.

`schedules`: number of comparisons, and how often the chosen and the rejected candidate agree with
those of all pairs. Judges: the simulated ones of sip/bench/schedules.py, and `world`, the
micro-world's ground truth on suffixes, rewrites and corrupted versions of both. The row `again`
judges all pairs a second time and shows how far a judge agrees with itself. --png writes a plot.

`sharing`: prompt tokens and seconds for all ordered pairs of candidates, as branches of one trunk
and as one plain prompt per pair, and the difference of the verdicts (sip/bench/sharing.py).

`int8`: verdicts of a trained judge on its held-out labels, with parameters stored in int8 and
bfloat16, compared with float32 (sip/bench/int8.py). --judge=RUN_DIR names the judge's run, inside
its workdir.

`reader`: factuality accuracy of a perfect reader of the judge's prompts on --prefixes test
prefixes, next to the judge's own accuracy (sip/bench/factuality_ceiling.py). Needs --judge.
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
    """Runs the command line."""
    if len(argv) != 2 or argv[1] not in BENCHES:
        raise UserError(f"usage: python -m sip.bench {'|'.join(BENCHES)}")
    BENCHES[argv[1]]()


if __name__ == "__main__":
    cli.run(main)
