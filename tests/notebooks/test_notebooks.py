"""Every notebook runs from the first cell to the last, at tiny scale, in a kernel of its own."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


FIGURES = {"quickstart": 2, "train_cifar10_tpu": 1, "degradation": 1}
PAPER_RESNET20 = "8.75"


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


@pytest.mark.slow
def test_without_cifar10_nothing_is_trained_and_the_paper_is_not_quoted(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("CIFAR10_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("CIFAR10_ARCHIVE", str(tmp_path / "empty"))
    monkeypatch.setenv("NOTEBOOK_RUNS", str(tmp_path))
    notebook = nbformat.read(ROOT / "notebooks" / "train_cifar10_tpu.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT)}})
    with pytest.raises(
        CellExecutionError, match="CIFAR-10 is not prepared, and nothing is trained"
    ):
        client.execute()
    assert PAPER_RESNET20 not in str(outputs(notebook))
    assert not list(tmp_path.glob("**/metrics.jsonl"))


@pytest.mark.parametrize("name", ["quickstart", "degradation"])
def test_outputs_are_kept(name):
    """As they came out of one run from the first cell to the last."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    assert figures(notebook) == FIGURES[name]
    assert not any(output.output_type == "error" for output in outputs(notebook))
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
