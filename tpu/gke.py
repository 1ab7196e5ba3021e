"""A run on GKE: a JobSet of one pod slice, printed or applied, and XPK's command for the same.

    python tpu/gke.py --name=sip --accelerator=tpu-v5-lite-podslice --topology=8x8 \
        --image=REGION-docker.pkg.dev/PROJECT/REPO/sip --dry-run -- \
        python -m sip.train --config=configs/text.py --workdir=gs://BUCKET/run

The manifest is JSON, which kubectl reads like YAML. The cluster needs JobSet installed. A preempted
or failed attempt is started again up to --restarts times, and goes on from its last checkpoint.
"""

import argparse
import json
import math
import re
import shlex
import subprocess
import sys
from typing import Any

HOST_CHIPS = 4  # of the machine types that pod slices of several hosts are made of
GRACE_SECONDS = 300  # between SIGTERM and SIGKILL: to save a common step
# sip exits 0 when it has saved, which would count as completed: a pod that was told to end fails
# instead, and with it the attempt.
WRAPPER = (
    "trap 'stopped=1; kill -TERM $pid' TERM; \"$@\" & pid=$!; wait $pid; code=$?; "
    'if [ "$stopped" ]; then wait $pid; exit 75; fi; exit $code'
)
XPK = {"tpu-v5-lite-podslice": "v5litepod-", "tpu-v5p-slice": "v5p-", "tpu-v6e-slice": "v6e-"}
CORES = {"tpu-v5p-slice": 2}  # a type's number counts cores there, chips elsewhere


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = lambda message: parser.exit(2, f"error: {message}\n")
    parser.add_argument("--name", required=True)
    parser.add_argument("--accelerator", required=True, choices=tuple(XPK))
    parser.add_argument("--topology", required=True, help="such as 8x8 or 4x4x4")
    parser.add_argument("--image", required=True)
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--spot", action="store_true", help="on nodes that may be preempted")
    parser.add_argument(
        "--secret", default="", help="a Kubernetes secret, as environment variables"
    )
    parser.add_argument("--dry-run", action="store_true", help="print it, apply nothing")
    argv = sys.argv[1:] if argv is None else argv
    at = argv.index("--") if "--" in argv else len(argv)
    flags = parser.parse_args(argv[:at])
    flags.command = argv[at + 1 :]
    if not flags.command:
        parser.error("no command: -- python -m sip.train ...")
    if not re.fullmatch(r"\d+(x\d+){1,2}", flags.topology):
        parser.error(f"--topology={flags.topology}: wanted numbers, as in 8x8")
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", flags.name):
        parser.error(f"--name={flags.name}: lower-case letters, digits and '-', 40 at most")
    return flags


def chips(topology: str) -> int:
    """Of a topology such as 4x4x4."""
    return math.prod(map(int, topology.split("x")))


def manifest(flags) -> dict[str, Any]:
    """The JobSet: as many pods as the slice has hosts, all started and restarted together."""
    count = chips(flags.topology)
    per_host = min(count, HOST_CHIPS)
    hosts = count // per_host
    container = {
        "name": "sip",
        "image": flags.image,
        "command": ["sh", "-c", WRAPPER, "sh", *flags.command],
        "ports": [{"containerPort": 8471}, {"containerPort": 8080}],  # libtpu's, jax's coordinator
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
    """The command of XPK's that runs the same on a cluster that it made."""
    count = chips(flags.topology) * CORES.get(flags.accelerator, 1)
    args = [f"--workload={flags.name}", f"--tpu-type={XPK[flags.accelerator]}{count}"]
    args += [f"--docker-image={flags.image}", f"--max-restarts={flags.restarts}"]
    args += [f"--command={shlex.join(flags.command)}"]
    return shlex.join(["xpk", "workload", "create", "--cluster=CLUSTER", *args])


def main(argv: list[str] | None = None) -> int:
    flags = parse(argv)
    text = json.dumps(manifest(flags), indent=2)
    print(f"# with XPK: {xpk(flags)}", file=sys.stderr)
    if flags.dry_run:
        print(text)
        return 0
    try:
        return subprocess.run(["kubectl", "apply", "-f", "-"], input=text, text=True).returncode
    except FileNotFoundError:
        print("failed: there is no kubectl on PATH", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
