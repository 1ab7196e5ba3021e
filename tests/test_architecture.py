"""Tests the rules of CONTRIBUTING.md that a program can check."""

import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CLIS = {"train", "evaluate", "generate", "label", "convert"}
PACKAGED = {"annotate", "aot", "bench", "explain", "report"}  # packages whose __main__ is a command
ROWS = [  # a module imports strictly lower rows, or its own package
    {"structs"},
    {"processes"},
    {"sections"},
    {"mesh", "workdir"},
    {"models", "objectives", "text", "metrics", "costs"},
    {"padding", "sampling", "training", "hf"},
    {"loading"},
    {"data"},
    {"textgen"},
    {"judge", "rewriter"},
    {"run"},
    {"evals", "rewards"},
    {"tasks"},
    {"stages"},
    {"gap"},
    {"cli"},  # flags and errors of all commands
    PACKAGED,
    CLIS,
]
RANK = {name: i for i, row in enumerate(ROWS) for name in row}
ON_DEVICE = ("structs", "sections", "mesh", "models", "objectives", "sampling", "training.step")
ON_DEVICE += ("training.optim",)  # run where tfds and grain are not installed
DEVICE_LIBRARIES = {"jax", "flax", "optax", "numpy"}
HEAVY = {
    "torch",
    "tensorflow",
    "transformers",
    "httpx",
    "safetensors",
    "tokenizers",
    "jinja2",
    "plotly",
    "selenium",
    "huggingface_hub",
    "lm_eval",
    "pyarrow",
    "datasets",
    "pandas",
    "math_verify",
    "pebble",
    "wandb",
    "trackio",
    "reasoning_gym",
    "sympy",
}  # or in an extra


def python_files(*folders):
    return [p for f in folders for p in sorted((ROOT / f).rglob("*.py"))]


@cache
def parsed(path):
    return ast.parse(path.read_text(), filename=str(path))


@cache
def walked(tree):
    """Returns all nodes of a file, which several rules look at."""
    return list(ast.walk(tree))


def dotted(path):
    """Converts a path: sip/data/chunks.py -> ("data", "chunks"); __init__.py -> ("data",)."""
    parts = path.relative_to(ROOT / "sip").with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


MODULES = {dotted(p) for p in python_files("sip")} - {()}


def imports(tree):
    """Lists (line, name) of every import; `from a import b` gives "a.b" for a module of sip."""
    for node in walked(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                ours = tuple(whole.split(".")[1:]) in MODULES and whole.startswith("sip.")
                yield node.lineno, whole if ours else (node.module or "")


def is_cli(module):
    return module[0] in CLIS or module[-1] == "__main__"


def rank(module):
    assert module[0] in RANK, f"sip.{module[0]} has no row: add it to ROWS, as low as it can be"
    return RANK["train"] if module[-1] == "__main__" else RANK[module[0]]


def upward(me, target):
    """Returns True if module `me` must not import `target`.

    A package may import its own modules, but no module imports a command.
    """
    own = me[0] == target[0] and len(me) > 1
    return is_cli(target) if own else rank(target) >= rank(me)


def report(bad):
    assert not bad, "\n".join(bad)


def complaints(files, wrong):
    """Returns ["path:line: message"] of the pairs (line, message) in `wrong(path, tree)`."""
    return [
        f"{p.relative_to(ROOT)}:{line}: {what}" for p in files for line, what in wrong(p, parsed(p))
    ]


def sip_imports(path, tree):
    for line, name in imports(tree):
        parts = tuple(name.split("."))
        if parts[0] == "sip" and len(parts) > 1 and dotted(path):
            yield line, parts[1:]


def test_imports_point_down():
    def wrong(path, tree):
        me = dotted(path)
        return [(n, f"imports sip.{t[0]}") for n, t in sip_imports(path, tree) if upward(me, t)]

    files = python_files("sip")
    report(complaints(files, wrong))
    assert sum(len(list(sip_imports(p, parsed(p)))) for p in files) > 2, "saw no imports"


@pytest.mark.parametrize(
    ("me", "target", "bad"),
    [
        ("stages.rl", "judge.scoring", False),
        ("models.decoder", "models.config", False),
        ("models.decoder", "objectives.logprobs", True),
        ("data.chunks", "judge.scoring", True),
        ("judge.__main__", "run", False),
        ("judge.build", "run", True),
        ("tasks.labelled", "stages.recipe", True),
        ("stages.rl", "tasks.rl.verdicts", False),
        ("data.pipeline", "data.__main__", True),
        ("bench.int8", "bench.__main__", True),
        ("train", "evaluate", True),
        ("train", "report.outputs", False),
        ("report.outputs", "train", True),
        ("mesh", "structs", False),
        ("structs", "mesh", True),
    ],
)
def test_the_rule_itself_knows_up_from_down(me, target, bad):
    assert upward(tuple(me.split(".")), tuple(target.split("."))) == bad


def circle(graph):
    """The modules of an import circle, in order; empty if there is none."""
    done, path = set(), []

    def visit(module):
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        path.append(module)
        found = next((c for t in sorted(graph[module]) if (c := visit(t))), [])
        path.pop()
        done.add(module)
        return found

    return next((c for module in sorted(graph) if (c := visit(module))), [])


def test_no_import_circle_not_even_for_types():
    graph = {
        dotted(p): {t for _, t in sip_imports(p, parsed(p)) if t in MODULES and t != dotted(p)}
        for p in python_files("sip")
        if dotted(p)
    }
    assert len(graph) > 50
    assert not circle(graph)


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_few_files_lie_loose_at_the_top():
    assert len(list((ROOT / "sip").glob("*.py"))) <= 18


RIDDLES = re.compile(r"(Of|What|Whether|Where|How)\b")


def test_docstrings_open_with_a_subject_or_a_verb():
    def wrong(path, tree):
        for node in walked(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                if RIDDLES.match(ast.get_docstring(node) or ""):
                    yield getattr(node, "lineno", 1), "docstring opens with Of, What, Where or How"

    report(complaints(python_files("sip", "configs", "tpu"), wrong))


def test_no_relative_imports():
    def wrong(path, tree):
        nodes = [n for n in walked(tree) if isinstance(n, ast.ImportFrom) and n.level]
        return [(n.lineno, "relative import") for n in nodes]

    report(complaints(python_files("sip", "configs", "tests"), wrong))


def test_no_stage_imports_a_stage():
    def is_stage(path):
        return any(isinstance(n, ast.FunctionDef) and n.name == "train" for n in parsed(path).body)

    files = [p for p in python_files("sip/stages") if is_stage(p)]
    stages = {dotted(p) for p in files}

    def wrong(path, tree):
        return [(n, f"imports {t[-1]}") for n, t in sip_imports(path, tree) if t in stages]

    report(complaints(files, wrong))


def test_ml_collections_stays_in_commands_and_configs():
    def wrong(path, tree):
        me = dotted(path)
        if me and (me[0] in PACKAGED | {"cli"} or is_cli(me)):
            return []
        return [(n, name) for n, name in imports(tree) if name.split(".")[0] == "ml_collections"]

    report(complaints(python_files("sip"), wrong))


def on_device(module):
    name = ".".join(module)
    return any(name == known or name.startswith(f"{known}.") for known in ON_DEVICE)


def test_accelerator_code_imports_only_array_libraries():
    def wrong(path, tree):
        if not on_device(dotted(path)):
            return
        for line, name in imports(tree):
            first, *rest = name.split(".")
            known = first in DEVICE_LIBRARIES | sys.stdlib_module_names
            if not known and not (first == "sip" and on_device(tuple(rest))):
                yield line, f"imports {name} in code that runs on the accelerator"

    report(complaints(python_files("sip"), wrong))


def test_heavy_libraries_are_imported_inside_functions_only():
    def wrong(path, tree):
        inner = [n for n in walked(tree) if isinstance(n, ast.FunctionDef)]
        inside = {line for f in inner for line in range(f.lineno, f.end_lineno + 1)}
        names = [(n, name) for n, name in imports(tree) if n not in inside]
        return [(n, name) for n, name in names if name.split(".")[0] in HEAVY]

    report(complaints(python_files("sip"), wrong))


def test_stages_judge_and_objectives_never_name_the_microworld():
    folders = [ROOT / "sip" / f for f in ("stages", "tasks", "judge", "objectives", "templates")]
    files = [p for f in folders for p in f.rglob("*") if p.suffix in (".py", ".txt")]
    word = re.compile(r"micro[-_ ]?world", re.IGNORECASE)
    report([str(p.relative_to(ROOT)) for p in files if word.search(p.read_text())])


def is_config(node):
    """Returns True if an expression looks like a config: cfg, run_config, self.config."""
    while isinstance(node, ast.Attribute):
        if re.fullmatch(r"(.*_)?(config|cfg)", node.attr.lower()):
            return True
        node = node.value
    return isinstance(node, ast.Name) and bool(re.fullmatch(r"(.*_)?(config|cfg)", node.id.lower()))


def reads_with_default(node):
    """Finds `config.get(..)` and `getattr(config, name, default)`."""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr == "get" and is_config(node.func.value)
    named = isinstance(node.func, ast.Name) and node.func.id == "getattr"
    return named and len(node.args) == 3 and is_config(node.args[0])


def test_configs_are_never_read_with_a_default():
    def wrong(path, tree):
        calls = [n for n in walked(tree) if isinstance(n, ast.Call)]
        return [(n.lineno, ast.unparse(n)) for n in calls if reads_with_default(n)]

    report(complaints(python_files("sip", "configs"), wrong))


def test_a_default_is_recognised():
    reads = [reads_with_default(ast.parse(s, mode="eval").body) for s in (
        "config.get('a', 1)", "self.cfg.data.get('a')", "getattr(run_config, 'a', 0)",
        "os.environ.get('A')", "getattr(config, 'a')",
    )]  # fmt: skip
    assert reads == [True, True, True, False, False]


def test_nothing_is_left_undone():
    marks = ["NotImplemented" + "Error", "TO" + "DO", "FIX" + "ME"]
    mark = re.compile(r"\b(" + "|".join(marks) + r")\b")
    report(
        [
            f"{p.relative_to(ROOT)}:{i}: {line.strip()}"
            for p in python_files("sip", "configs", "tests")
            for i, line in enumerate(p.read_text().splitlines(), 1)
            if mark.search(line)
        ]
    )


IMPORT_ALL = """
import importlib, sys
from absl import flags

def imported(name):
    try:
        importlib.import_module(name)
    finally:  # CLIs define the same flags; a user runs one of them at a time
        flags.FLAGS.remove_flag_values([f for f in flags.FLAGS if f not in before])

before = set(flags.FLAGS)
names, absent, refused = (set(a.split(",")) for a in sys.argv[1:])

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in refused:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
for name in sorted(names):
    imported(name)
found = sorted(absent & {m.split(".")[0] for m in sys.modules})
sys.exit(f"loaded: {found}" if found else 0)
"""


def import_in_fresh_process(modules, *, absent, refused=("",)):
    args = [",".join(".".join(("sip", *m)) for m in modules), ",".join(absent), ",".join(refused)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", IMPORT_ALL, *args]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]


def test_importing_everything_loads_nothing_heavy_or_of_an_extra():
    import_in_fresh_process(MODULES, absent=HEAVY)


def test_accelerator_code_imports_without_the_data_libraries():
    refused = {"tensorflow_datasets", "grain", "array_record", "sentencepiece", "ml_collections"}
    modules = [m for m in MODULES if on_device(m)]
    assert modules
    import_in_fresh_process(modules, absent=HEAVY | refused, refused=refused)
