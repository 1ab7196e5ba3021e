"""Runs a command on GKE: applies a JobSet for one TPU slice, and prints the same as an XPK command.

    python tpu/gke.py --name=sip --accelerator=tpu-v5-lite-podslice --topology=8x8 \
        --image=REGION-docker.pkg.dev/PROJECT/REPO/sip --dry-run -- \
        python -m sip.train --config=configs/text.py --workdir=gs://BUCKET/run

--dry-run prints the manifest (JSON, which kubectl reads like YAML) and applies nothing. The cluster
needs JobSet. A preempted or failed attempt is restarted up to --restarts times and continues from
its last checkpoint. Exit codes: kubectl's, or 1 without kubectl, 2 invalid flags.
"""

import argparse
import json
import math
import os
import re
import shlex
import subprocess
import sys
from typing import Any

GRACE_SECONDS = 300  # time between SIGTERM and SIGKILL, to save a checkpoint
# sip exits 0 after SIGTERM, once it has saved. Kubernetes would count that as completed, so the
# wrapper exits 75 after SIGTERM: the pod and the attempt fail, and JobSet restarts them.
WRAPPER = (
    "trap 'stopped=1; kill -TERM $pid' TERM; \"$@\" & pid=$!; wait $pid; code=$?; "
    'if [ "$stopped" ]; then wait $pid; exit 75; fi; exit $code'
)
XPK = {
    "tpu-v4-podslice": "v4-",
    "tpu-v5-lite-podslice": "v5litepod-",
    "tpu-v5p-slice": "v5p-",
    "tpu-v6e-slice": "v6e-",
}
# XPK counts two cores per chip for v4 and v5p, and chips for other types.
CORES = {"tpu-v4-podslice": 2, "tpu-v5p-slice": 2}
CUBES = ("tpu-v4-podslice", "tpu-v5p-slice")  # their topologies have three dimensions
EIGHTS = ("tpu-v5-lite-podslice", "tpu-v6e-slice")  # have machine types of 8 chips, for 2x4 alone


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parses the flags; everything after `--` becomes `flags.command`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = lambda message: parser.exit(2, f"error: {message}\n")
    parser.add_argument("--name", required=True)
    parser.add_argument("--accelerator", required=True, choices=tuple(XPK))
    parser.add_argument("--topology", required=True, help="chips, such as 8x8 or 4x4x4")
    parser.add_argument("--image", required=True)
    parser.add_argument(
        "--host-chips",
        type=int,
        default=4,
        choices=(4, 8),
        help="chips per node: the number at the end of the machine type (-4t or -8t)",
    )
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--spot", action="store_true", help="use nodes that may be preempted")
    parser.add_argument(
        "--secret", default="", help="Kubernetes secret to expose as environment variables"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the manifest, apply nothing")
    argv = sys.argv[1:] if argv is None else argv
    at = argv.index("--") if "--" in argv else len(argv)
    flags = parser.parse_args(argv[:at])
    flags.command = argv[at + 1 :]
    if not flags.command:
        parser.error("no command; add -- python -m sip.train ...")
    if not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3}){1,2}", flags.topology):
        parser.error(f"--topology={flags.topology:.40}: must be numbers such as 8x8 or 4x4x4")
    check_topology(parser, flags)
    if flags.restarts < 0 or not flags.image:
        parser.error("--restarts must be at least 0, --image must not be empty")
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", flags.name):
        parser.error(f"--name={flags.name}: must be at most 40 of a-z, 0-9 and '-'")
    return flags


def check_topology(parser, flags) -> None:
    """Exits with one line if the accelerator does not come in the topology."""
    count, kind = chips(flags.topology), flags.accelerator
    if (flags.topology.count("x") == 2) != (kind in CUBES):
        like = "2x2x1 or 4x4x4" if kind in CUBES else "2x4 or 8x8"
        parser.error(f"--topology={flags.topology}: {kind} needs one such as {like}")
    if flags.host_chips == 8 and (kind not in EIGHTS or flags.topology != "2x4"):
        parser.error("--host-chips=8: only v5e and v6e have such machines, for --topology=2x4")
    if count > flags.host_chips and count % flags.host_chips:
        parser.error(f"--topology={flags.topology}: must be a multiple of {flags.host_chips} chips")


def chips(topology: str) -> int:
    """Counts the chips of a topology such as 4x4x4."""
    return math.prod(map(int, topology.split("x")))


def manifest(flags) -> dict[str, Any]:
    """Builds the JobSet: one pod per host of the slice, all started and restarted together."""
    count = chips(flags.topology)
    per_host = min(count, flags.host_chips)
    hosts = count // per_host
    container = {
        "name": "sip",
        "image": flags.image,
        "command": ["sh", "-c", WRAPPER, "sh", *flags.command],
        "ports": [{"containerPort": 8471}, {"containerPort": 8080}],  # libtpu, JAX coordinator
        "resources": {"limits": {"google.com/tpu": per_host}},
    }
    if flags.secret:
        container["envFrom"] = [{"secretRef": {"name": flags.secret}}]
    spot = {"cloud.google.com/gke-spot": "true"} if flags.spot else {}
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": flags.accelerator,
            "cloud.google.com/gke-tpu-topology": flags.topology,
            **spot,
        },
        "containers": [container],
    }
    job = {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "template": {"spec": pod},
    }
    exclusive = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": flags.name, "annotations": exclusive},
        "spec": {
            "failurePolicy": {"maxRestarts": flags.restarts},
            "replicatedJobs": [{"name": "slice", "replicas": 1, "template": {"spec": job}}],
        },
    }


def xpk(flags) -> str:
    """Returns the `xpk workload create` command for the same job, on a cluster created by XPK."""
    count = chips(flags.topology) * CORES.get(flags.accelerator, 1)
    args = [f"--workload={flags.name}", f"--tpu-type={XPK[flags.accelerator]}{count}"]
    args += [f"--docker-image={flags.image}", f"--max-restarts={flags.restarts}"]
    args += [f"--command={shlex.join(flags.command)}"]
    return shlex.join(["xpk", "workload", "create", "--cluster=CLUSTER", *args])


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    flags = parse(argv)
    text = json.dumps(manifest(flags), indent=2)
    print(f"# with XPK: {xpk(flags)}", file=sys.stderr)
    if flags.dry_run:
        try:
            print(text, flush=True)
        except BrokenPipeError:  # the reader closed the pipe, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    try:
        return subprocess.run(["kubectl", "apply", "-f", "-"], input=text, text=True).returncode
    except FileNotFoundError:
        print("failed: kubectl is not on PATH; install it or use --dry-run", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
