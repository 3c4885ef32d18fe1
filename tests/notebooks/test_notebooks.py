"""Every notebook runs from the first cell to the last, at tiny scale, in a kernel of its own."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


FIGURES = {"quickstart": 2, "train_cifar10_tpu": 1, "degradation": 1}


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def figures(notebook):
    kinds = {"image/png", "image/svg+xml"}
    return sum(bool(kinds & set(output.get("data", {}))) for output in outputs(notebook))


def test_the_three_notebooks_are_there():
    names = {path.stem for path in NOTEBOOKS}
    assert names == set(FIGURES)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_at_tiny_scale_and_draws(path, tmp_path, data_dir, monkeypatch):
    monkeypatch.setenv("NOTEBOOK_SCALE", "tiny")
    monkeypatch.setenv("NOTEBOOK_RUNS", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", data_dir)
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT)}})
    client.execute()
    assert figures(notebook) == FIGURES[path.stem]


def test_the_quickstart_keeps_its_figures():
    notebook = nbformat.read(ROOT / "notebooks" / "quickstart.ipynb", as_version=4)
    assert figures(notebook) == FIGURES["quickstart"]
    assert not any(output.output_type == "error" for output in outputs(notebook))
