"""Tests that README, CI and packaging agree."""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CI = (ROOT / ".ci" / "run").read_text()


def shell_lines(text):
    """Returns the commands in a markdown text's fenced shell blocks, continuation lines joined."""
    blocks = re.findall(r"^```(?:bash|sh|shell|console)\n(.*?)^```", text, re.M | re.S)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [" ".join(x.removeprefix("$ ").split()) for x in joined.splitlines() if x.strip()]


README = (ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else ""


def commands(prefix):
    lines = [line.split(" #")[0].strip() for line in shell_lines(README)]
    return [line for line in lines if line.startswith(prefix)]


def test_ci_runs_the_install_and_the_test_commands_of_the_readme():
    install, tests = commands("pip install -e"), commands("python -m pytest")
    assert install and tests
    assert [c for c in install + tests if c not in CI] == []


def test_ci_runs_the_main_job_of_the_readme_at_debug_size():
    main = commands("python -m sip.train")[0]
    config = re.search(r"--config=([^ :]+\.py)", main).group(1)
    assert f"python -m sip.train --config={config}:debug " in CI


def test_every_module_and_config_named_in_the_readme_exists():
    text = README + (ROOT / "CONTRIBUTING.md").read_text()
    modules = set(re.findall(r"python -m (sip[\w.]*)", text))
    paths = [ROOT / m.replace(".", "/") for m in modules]
    missing = [
        str(p) for p in paths if not (p.with_suffix(".py").exists() or (p / "__main__.py").exists())
    ]
    missing += [c for c in re.findall(r"configs/\w+\.py", text) if not (ROOT / c).exists()]
    assert missing == []


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("sip/data/chunks.py", False),
        ("sip/data/new_module.py", False),
        ("sip/judge/prompts/new.txt", False),
        ("tests/test_data.py", False),
        ("data/corpus.txt", True),
        ("runs/a/metrics.jsonl", True),
        ("sip/__pycache__/x.pyc", True),
    ],
)
def test_gitignore_swallows_outputs_and_never_the_package(path, ignored):
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    done = subprocess.run(["git", "check-ignore", "-q", "--no-index", path], cwd=ROOT)
    assert done.returncode == (0 if ignored else 1)


def test_every_dependency_has_a_lower_and_an_upper_bound():
    extras = [r for rs in PROJECT["optional-dependencies"].values() for r in rs]
    unbounded = [r for r in PROJECT["dependencies"] + extras if not re.search(r">=.+,<", r)]
    assert unbounded == []


def test_jax_is_bounded_the_same_everywhere():
    extras = [r for rs in PROJECT["optional-dependencies"].values() for r in rs]
    jax = [r for r in PROJECT["dependencies"] + extras if re.match(r"jax[\[>]", r)]
    assert len({re.sub(r"\[.*\]", "", r) for r in jax}) == 1 and len(jax) == 3


def test_ci_is_a_strict_executable_script():
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    assert ["set", "-euo", "pipefail"] in [shlex.split(x) for x in CI.splitlines() if "set -" in x]


@pytest.mark.slow
def test_a_wheel_holds_every_module_and_prompt(tmp_path):
    import shutil
    import sys
    import zipfile

    source = tmp_path / "source"
    shutil.copytree(ROOT / "sip", source / "sip", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, source]
    subprocess.run(command, check=True)
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    files = [p for p in (source / "sip").rglob("*") if p.suffix in (".py", ".txt", ".jinja")]
    assert {str(p.relative_to(source)) for p in files} <= names
