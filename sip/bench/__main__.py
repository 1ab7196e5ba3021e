"""Benchmarks of the judge and of speed: `python -m sip.bench NAME`.

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

`ranking`: accuracy of a judge (--judge) on pairs of --candidates rollouts of a policy
(--rollouts_of) after each of --prefixes validation prefixes, by what differs between the two
(sip/bench/ranking.py).

Speed, in turn with our own plain sequences, and with --against=hf also with transformers and torch
(in --peer_python): same weights, results compared, medians, memory, and shares of the machine's
ceilings (sip/bench/speed.py).
`step`: a cross-entropy step, and whole SIP steps. `rollout`: rollouts of a prefix, and decoding.
`update`: DPO and policy-gradient updates. `judge`: all ordered pairs of --candidates texts.
`host`: the host's part of a step at the paper's size (sip/bench/host.py). `compile`: CPU seconds of
`:debug` with an empty and a filled cache of programs (sip/bench/compiling.py).
"""

from absl import flags as absl_flags

from sip import cli
from sip.bench import flags
from sip.bench.compiling import bench_compile
from sip.bench.factuality_ceiling import bench_reader
from sip.bench.host import bench_host
from sip.bench.int8 import bench_int8
from sip.bench.ranking import bench_ranking
from sip.bench.schedules import bench_schedules
from sip.bench.sharing import bench_sharing
from sip.bench.speed import bench_judge, bench_rollout, bench_step, bench_update
from sip.structs import UserError

absl_flags.adopt_module_key_flags(flags)
BENCHES = {
    "schedules": bench_schedules,
    "sharing": bench_sharing,
    "int8": bench_int8,
    "reader": bench_reader,
    "ranking": bench_ranking,
    "step": bench_step,
    "rollout": bench_rollout,
    "update": bench_update,
    "judge": bench_judge,
    "host": bench_host,
    "compile": bench_compile,
}


def main(argv) -> None:
    """Runs the command line."""
    if len(argv) != 2 or argv[1] not in BENCHES:
        raise UserError(f"usage: python -m sip.bench {'|'.join(BENCHES)}")
    BENCHES[argv[1]]()


if __name__ == "__main__":
    cli.run(main)
