"""Tests the gcloud and kubectl calls of tpu/pod.py and tpu/gke.py, recorded by stubs."""

import importlib.util
import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sip.data import documents
from sip.data.documents import DataConfig

TPU = Path(__file__).resolve().parent.parent / "tpu"


def module(name):
    spec = importlib.util.spec_from_file_location(name, TPU / f"{name}.py")
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


pod, gke = module("pod"), module("gke")
WHERE = ["--zone=z", "--project=p"]
NAMED = ["--name=n", *WHERE]
KIND = ["--type=v5litepod-16", "--spot"]
COMMAND = ["python", "-m", "sip.train", "--config=c.py", "--x=a b'$HOME"]
PLAYER = """#!{python}
import json, os, sys
state = json.load(open({state!r}))
state["calls"].append([os.path.basename(sys.argv[0]), *sys.argv[1:]])
if not sys.stdin.isatty() and sys.argv[1:2] == ["apply"]:
    state["stdin"] = sys.stdin.read()
files = [a for a in sys.argv if a.endswith(".env")]
state["files"] += [open(a).read() for a in files]
kind = "ended" if "sip-exit=running" in str(sys.argv) else ""
kind = "describe" if "describe" in sys.argv else kind
said = state[kind].pop(0) if kind and state[kind] else ""
json.dump(state, open({state!r}, "w"))
if said == "FAIL":
    sys.exit(1)
print(said)
"""


@pytest.fixture
def player(tmp_path, monkeypatch):
    """Stubs of gcloud and kubectl; set(describe=[...], ended=[...]) sets their answers."""
    path = tmp_path / "state.json"

    def set_answers(describe=(), ended=()):
        state = {"calls": [], "files": [], "stdin": ""}
        path.write_text(json.dumps({**state, "describe": list(describe), "ended": list(ended)}))

    for name in ("gcloud", "kubectl"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(PLAYER.format(python=sys.executable, state=str(path)))
        program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    set_answers()
    return set_answers, lambda: json.loads(path.read_text())


def tpus(*args):
    return ["gcloud", "compute", "tpus", *args, *WHERE]


def ssh(command, worker="all"):
    return tpus("tpu-vm", "ssh", "n", f"--worker={worker}", f"--command={command}")


CREATE = tpus(
    "queued-resources", "create", "n", "--node-id=n", "--accelerator-type=v5litepod-16",
    "--runtime-version=v2-alpha-tpuv5-lite", "--spot",
)  # fmt: skip
STATE = tpus("queued-resources", "describe", "n", "--format=value(state.state)")
DELETE = tpus("queued-resources", "delete", "n", "--force", "--quiet")


def test_create_waits_until_the_pod_is_there(player):
    answers, seen = player
    answers(describe=["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    assert pod.main(["create", *NAMED, *KIND, "--every=0"]) == 0
    assert seen()["calls"] == [CREATE, STATE, STATE, STATE]


@pytest.mark.parametrize("said", ["FAILED", "SUSPENDED", "FAIL"])
def test_create_says_why_there_is_none(player, said, capsys):
    answers, _ = player
    answers(describe=["WAITING_FOR_RESOURCES", said])
    assert pod.main(["create", *NAMED, *KIND, "--every=0"]) == 1
    assert "failed: n is " in capsys.readouterr().err


def test_create_gives_up_after_so_many_looks(player, capsys):
    answers, seen = player
    answers(describe=["ACCEPTED"] * 9)
    assert pod.main(["create", *NAMED, *KIND, "--every=0", "--patience=2"]) == 1
    assert seen()["calls"] == [CREATE, STATE, STATE]


@pytest.mark.parametrize(
    ("args", "call"),
    [
        (["status"], tpus("queued-resources", "describe", "n")),
        (["delete"], DELETE),
        (["stop"], ssh(pod.STOP)),
        (["logs"], ssh("tail -n 100 sip.log", "0")),
        (["logs", "--worker=all", "--lines=5"], ssh("tail -n 5 sip.log")),
    ],
)
def test_small_commands(player, args, call, capsys):
    _, seen = player
    assert pod.main([*args, *NAMED]) == 0
    assert seen()["calls"] == [call]
    capsys.readouterr()
    assert pod.main([*args, *NAMED, "--dry-run"]) == 0
    assert len(seen()["calls"]) == 1, "nothing was asked"
    assert capsys.readouterr().out == f"{pod.shlex.join(call)}\n"


def test_sync_sends_the_tree_and_installs_it(player, tmp_path, monkeypatch):
    _, seen = player
    (tmp_path / "tree" / ".git").mkdir(parents=True)
    (tmp_path / "tree" / "code.py").write_text("x")
    monkeypatch.setattr(pod, "ROOT", tmp_path / "tree")
    listed, run = [], subprocess.run

    def spied(command, **how):
        done = run(command, **how)
        if command[0] == "tar":
            listed.extend(
                run(["tar", "-tzf", command[2]], capture_output=True, text=True).stdout.split()
            )
        return done

    monkeypatch.setattr(pod.subprocess, "run", spied)
    assert pod.main(["sync", *NAMED]) == 0
    copied, installed = seen()["calls"]
    assert copied[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "scp"]
    assert copied[6:] == ["n:sip.tar.gz", "--worker=all", *WHERE]
    assert installed == ssh(pod.install([]))
    assert sorted(listed) == ["./", "./code.py"]


def test_a_command_runs_apart_with_its_words_as_they_were(player, tmp_path):
    """Runs the recorded shell line here: words with spaces, quotes and dollars arrive unchanged."""
    _, seen = player
    assert (
        pod.main(
            ["run", *NAMED, "--", sys.executable, "-c", "import sys; print(sys.argv[1:])", *COMMAND]
        )
        == 0
    )
    (call,) = seen()["calls"]
    (line,) = [a.removeprefix("--command=") for a in call if a.startswith("--command=")]
    home = tmp_path / "home"
    (home / "sip" / ".venv" / "bin").mkdir(parents=True)
    (home / "sip" / ".venv" / "bin" / "activate").touch()
    line = line.replace("nohup setsid ", "").removesuffix("&")  # to be waited for
    subprocess.run(["bash", "-c", line], cwd=home, check=True)
    assert (home / "sip.log").read_text() == f"{COMMAND}\n"
    assert (home / "sip-exit").read_text() == "0\n" and int((home / "sip-pid").read_text())
    ended = lambda: subprocess.run(
        ["bash", "-c", pod.ENDED], cwd=home, capture_output=True, text=True
    )
    assert ended().stdout == "sip-exit=0\n"
    with (home / "sip.log").open("a") as log:
        log.write(f"sip: stopped after step 3 of 9; {pod.AGAIN}\n")
    assert ended().stdout == "sip-exit=again\n"
    (home / "sip-exit").unlink()
    assert ended().stdout == "sip-exit=running\n"


def test_variables_travel_in_a_file(player, monkeypatch, capsys):
    _, seen = player
    monkeypatch.setenv("TOKEN", "se'cret")
    assert pod.main(["run", *NAMED, "--env=TOKEN", "--", *COMMAND]) == 0
    found = seen()
    assert found["files"] == ["export TOKEN='se'\"'\"'cret'\n"]
    assert "se'cret" not in str(found["calls"]) + str(capsys.readouterr())
    assert pod.main(["run", *NAMED, "--env=TOKEN", "--dry-run", "--", *COMMAND]) == 0
    assert "cret" not in capsys.readouterr().out


def kept(player, monkeypatch, describe, ended):
    """Runs `keep`; returns (exit code, list of create, sync, run, delete calls)."""
    answers, _ = player
    answers(describe=describe, ended=ended)
    done = []
    for name in ("create", "sync", "run", "delete"):
        monkeypatch.setattr(pod, name, lambda flags, name=name: done.append(name))
    code = pod.main(["keep", *NAMED, *KIND, "--every=0", "--attempts=3", "--", *COMMAND])
    return code, done


BEGUN = ["sync", "run"]
ANEW = ["delete", "create", *BEGUN]


@pytest.mark.parametrize(
    ("describe", "ended", "code", "done"),
    [
        (["ACTIVE"], ["sip-exit=0\nsip-exit=0"], 0, BEGUN),
        (["FAIL"], ["sip-exit=0"], 0, ["create", *BEGUN]),
        (
            ["ACTIVE", "ACTIVE", "SUSPENDED", "SUSPENDED"],
            ["sip-exit=running", "FAIL", "sip-exit=0"],
            0,
            [*BEGUN, *ANEW],
        ),
        (
            ["ACTIVE", "SUSPENDED", "SUSPENDED"],
            ["FAIL", "sip-exit=0"],
            0,
            [*BEGUN, *ANEW],
        ),
        (["ACTIVE", "ACTIVE"], ["sip-exit=again\nsip-exit=134", "sip-exit=0"], 0, BEGUN * 2),
        (["ACTIVE"] * 9, ["sip-exit=running\nsip-exit=0", "sip-exit=1\nsip-exit=0"], 1, BEGUN),
        (["ACTIVE"] * 9, ["sip-exit=again"] * 9, 1, BEGUN * 3),
    ],
)
def test_keep_goes_on_after_preemptions_and_not_after_failures(
    player, monkeypatch, describe, ended, code, done
):
    assert kept(player, monkeypatch, describe, ended) == (code, done)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["create", "--zone=z"], "--name is needed"),
        (["create", *NAMED], "--type is needed"),
        (["create", *NAMED, "--type=h100"], "--type=h100: not one of v5litepod-N"),
        (["create", *NAMED, "--type=v3-8"], "--type=v3-8: TPU v3 is not supported: each of its"),
        (["create", *NAMED, "--type=v2-8"], "with 8 GiB of memory"),
        (["sync", *NAMED, "--extras=hf,torch"], "--extras: 'torch' is not one of tpu, cuda, serve"),
        (["run", *NAMED], "run: `run` and `keep` need a command after --"),
        (["stop", *NAMED, "--", "x"], "stop: `run` and `keep` need a command after --"),
        (["run", *NAMED, "--env=NOT_THERE", "--", "x"], "--env=NOT_THERE"),
        (["create", *NAMED, *KIND, "--reserved"], "not allowed with"),
        (["fly", *NAMED], "invalid choice"),
        (["logs", *NAMED, "--lines=-4"], "--lines"),
        (["create", *NAMED, *KIND, "--every=inf"], "--every=inf"),
        (["stop", *NAMED, f"--settings={sys.executable}"], "cannot be read as UTF-8"),
    ],
)
def test_flags_that_make_no_sense(args, said, capsys):
    with pytest.raises(SystemExit) as e:
        pod.main(args)
    assert e.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1


def test_settings_of_a_file_stand_in_for_flags(player, tmp_path):
    _, seen = player
    (tmp_path / "pod.env").write_text("# mine\nNAME=n\nzone = z\nPROJECT=p\n")
    assert pod.main(["delete", f"--settings={tmp_path / 'pod.env'}"]) == 0
    assert seen()["calls"] == [DELETE]


def test_the_chips_name_stands_for_gclouds_and_extras_are_installed(player, capsys):
    argv = [*NAMED, "--type=v5e-8", "--extras=hf,serve", "--dry-run"]
    assert pod.main(["create", *argv]) == 0 and pod.main(["sync", *argv]) == 0
    out = capsys.readouterr().out
    assert "--accelerator-type=v5litepod-8 --runtime-version=v2-alpha-tpuv5-lite" in out
    assert ".[tpu,hf,serve]" in out
    assert pod.main(["create", *NAMED, "--type=v4-8", "--dry-run"]) == 0
    assert "v4-8 --runtime-version=tpu-ubuntu2204-base" in capsys.readouterr().out


GKE = ["--name=n", "--accelerator=tpu-v5p-slice", "--topology=4x4x4", "--image=i", "--restarts=7"]


def test_a_job_set_has_a_pod_per_host(player, capsys):
    _, seen = player
    assert gke.main([*GKE, "--secret=keys", "--dry-run", "--", *COMMAND]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    job = found["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod_spec = job["template"]["spec"]
    (container,) = pod_spec["containers"]
    assert (found["kind"], found["metadata"]["name"]) == ("JobSet", "n")
    assert job["parallelism"] == job["completions"] == 16 and job["backoffLimit"] == 0
    assert found["spec"]["failurePolicy"] == {"maxRestarts": 7}
    assert container["command"] == ["sh", "-c", gke.WRAPPER, "sh", *COMMAND]
    assert container["image"] == "i" and "cloud.google.com/gke-spot" not in str(found)
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]
    assert pod_spec["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4x4"
    assert pod_spec["restartPolicy"] == "Never"
    assert "--tpu-type=v5p-128" in said.err, "of v5p the number counts cores"
    assert not seen()["calls"]
    assert gke.main([*GKE, "--secret=keys", "--", *COMMAND]) == 0
    assert seen()["calls"] == [["kubectl", "apply", "-f", "-"]]
    assert json.loads(seen()["stdin"]) == found


SMALL = {  # accelerator, topology, chips per node: pods, chips of each, the type's name for XPK
    "v4-8": ("tpu-v4-podslice", "2x2x1", 4, 1, 4, "v4-8"),
    "v4-16": ("tpu-v4-podslice", "2x2x2", 4, 2, 4, "v4-16"),
    "v5e-8": ("tpu-v5-lite-podslice", "2x4", 4, 2, 4, "v5litepod-8"),
    "v5e-8 in one machine": ("tpu-v5-lite-podslice", "2x4", 8, 1, 8, "v5litepod-8"),
    "v6e-8 in one machine": ("tpu-v6e-slice", "2x4", 8, 1, 8, "v6e-8"),
}


@pytest.mark.parametrize(
    ("kind", "shape", "host", "pods", "each", "name"), SMALL.values(), ids=SMALL
)
def test_small_slices_have_the_pods_of_their_machines(kind, shape, host, pods, each, name, capsys):
    argv = ["--name=n", "--image=i", f"--accelerator={kind}", f"--topology={shape}"]
    assert gke.main([*argv, f"--host-chips={host}", "--dry-run", "--", "x"]) == 0
    said = capsys.readouterr()
    job = json.loads(said.out)["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert job["completions"] == pods and f"--tpu-type={name} " in said.err
    assert container["resources"] == {"limits": {"google.com/tpu": each}}


SAVES = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("begun", flush=True)
time.sleep(60)
"""


def test_a_pod_that_is_told_to_end_fails_though_its_command_has_saved():
    wrapped = ["sh", "-c", gke.WRAPPER, "sh", sys.executable, "-c"]
    assert subprocess.run([*wrapped, "raise SystemExit(0)"]).returncode == 0
    assert subprocess.run([*wrapped, "raise SystemExit(3)"]).returncode == 3
    with subprocess.Popen([*wrapped, SAVES], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "begun\n"
        process.terminate()
        assert process.wait(timeout=60) == 75


@pytest.mark.parametrize(
    "args",
    [
        ["--topology=8by8", "--", "x"],
        ["--name=A_b", "--", "x"],
        ["--topology=0x4", "--", "x"],
        ["--topology=3x3", "--", "x"],
        ["--topology=" + "9" * 5000 + "x1", "--", "x"],
        ["--restarts=-1", "--", "x"],
        ["--accelerator=gpu", "--", "x"],
        ["--accelerator=tpu-v4-podslice", "--topology=2x4", "--", "x"],
        ["--accelerator=tpu-v6e-slice", "--topology=2x2x2", "--", "x"],
        ["--host-chips=8", "--", "x"],
        [],
    ],
)
def test_a_job_set_of_nonsense_is_refused(args, capsys):
    with pytest.raises(SystemExit) as e:
        gke.main([*GKE, *args])
    assert e.value.code == 2 and "error: " in capsys.readouterr().err


INNER = pod.detached(["a"]).split("bash -c ")[1].split(" < /dev/null")[0]
SENT = dict(
    install=pod.install(["hf", "serve"]),
    run=pod.detached(COMMAND),
    inside=shlex.split(INNER)[0],
    ended=pod.ENDED,
    stop=pod.STOP,
)


@pytest.mark.parametrize("line", SENT.values(), ids=SENT)
def test_what_workers_are_told_is_clean_shell(line):
    program = shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck is not installed: pip install -e '.[dev]'")
    # What is sourced lies on the worker; what is quoted is meant for another shell.
    command = [program, "--shell=bash", "--exclude=SC1091,SC2016", "-"]
    done = subprocess.run(command, input=line, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout


def test_the_data_set_of_the_large_configs_is_built_from_a_file(tmp_path, capsys):
    corpus, data = module("corpus"), str(tmp_path / "run" / "data")
    rows = [json.dumps({"text": f"document {i} of many"}) for i in range(120)]
    (tmp_path / "sample.jsonl").write_text("\n".join(rows))
    argv = ["--source=jsonl", f"--path={tmp_path / 'sample.jsonl'}", f"--data_dir={data}"]
    assert corpus.main(argv) == 0
    assert "--config.data.path=slim_pajama:text" in capsys.readouterr().out
    for part in ("train", "validation", "test"):
        own = documents.load(DataConfig("jsonl", str(tmp_path / "sample.jsonl"), part), "")
        built = documents.load(DataConfig("tfds", "slim_pajama:text", part), data)
        assert sorted(built.texts) == sorted(own.texts) and len(own.texts) > 3
    assert corpus.main(argv) == 2
    assert "data/slim_pajama exists; delete it" in capsys.readouterr().err
    assert corpus.main([*argv[:1], "--path=nowhere.jsonl", f"--data_dir={data}2"]) == 2
    assert "nowhere.jsonl" in capsys.readouterr().err


def test_the_data_set_is_built_from_another_field_and_separator(tmp_path, capsys):
    corpus, data = module("corpus"), str(tmp_path / "data")
    texts = [f"note {i} of many" for i in range(120)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": t}) + "\n" for t in texts))
    (tmp_path / "a.txt").write_text("\n".join(texts))
    of = lambda source, *more: corpus.main(
        [f"--source={source}", f"--path={tmp_path}/a.{source}", f"--data_dir={data}", *more]
    )
    assert of("jsonl") == 2
    assert "(fields seen: 'body'); set data.field (--field)" in capsys.readouterr().err
    assert of("jsonl", "--field=body", "--name=bodies") == 0
    assert of("txt", "--separator=\\n", "--name=lines") == 0
    bodies, lines = (documents.load(DataConfig("tfds", f"{name}:text", "train"), data).texts
                     for name in ("bodies", "lines"))  # fmt: skip
    assert sorted(bodies) == sorted(lines) and len(lines) > 90
    with pytest.raises(SystemExit) as stopped:
        of("mixture")
    assert stopped.value.code == 2 and "mixture" in capsys.readouterr().err
