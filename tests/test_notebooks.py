"""Tests that every notebook is stored without outputs, and runs from its first cell to its last."""

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SAYS = {  # of the outputs
    "microworld": "sip_learned",
    "own_text": "win_rate_judge",
    "plan_a_pod_run": "GiB",
    "read_a_run": "report.html",
    "reasoning": "generic",
}


def cells_of(path: Path) -> list[dict]:
    return json.loads(path.read_text())["cells"]


def test_there_is_a_notebook_for_each_subject():
    assert {path.stem for path in NOTEBOOKS} == set(SAYS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_stored_without_outputs_and_compiles(path):
    cells = cells_of(path)
    assert not any(c.get("outputs") or c.get("execution_count") for c in cells)
    code = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    compile(code, str(path), "exec")
    head = "".join(cells[0]["source"])
    for site in ("colab.research.google.com/github", "kaggle.com/kernels/welcome?src="):
        assert f"{site}" in head and head.count(f"notebooks/{path.name}") == 2
    assert "pip install -q -e 'sip" in head  # one line


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel: extra dev")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    book = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(ROOT / "notebooks")}}
    nbclient.NotebookClient(
        book, timeout=1200, kernel_name="python3", resources=resources
    ).execute()
    said = [out for c in book.cells if c.cell_type == "code" for out in c.outputs]
    text = "".join(out.text for out in said if out.output_type == "stream" and out.name == "stdout")
    assert SAYS[path.stem] in text
