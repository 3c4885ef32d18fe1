"""The arrows of the house: who may import whom. See CONTRIBUTING.md."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "errors": set(),
    "allocator": set(),
    "run_log": set(),
    "processes": set(),
    "workdirs": {"configs", "checkpoint", "run_log"},
    "optim": set(),
    "checkpoint": {"processes"},
    "configs": {"configs"},
    "models": {"models"},
    "data": {"data"},
    "input_pipeline": {"data", "input_resident", "input_streamed"},
    "input_resident": {"data", "input_pipeline"},
    "input_streamed": {"data", "input_pipeline", "processes"},
    "train_step": {"input_pipeline", "data", "optim"},
    "restored": {"models", "checkpoint", "configs", "data", "input_pipeline"},
    "protocols": {"data"},
    "precise_bn": {"models", "checkpoint", "data", "input_pipeline"},
    "evaluate": {"input_pipeline", "models", "data", "restored", "protocols", "precise_bn"},
    "train": {
        *("input_pipeline", "models", "optim", "checkpoint", "evaluate"),
        *("train_step", "run_log", "processes", "workdirs", "configs"),
    },
    "predict": {"models", "data", "restored"},
    "export": {"models", "restored"},
    "prepare_data": {"data"},
    "main": {"train", "evaluate", "configs", "input_pipeline", "models", "processes", "allocator"},
    "analysis": {"models", "data", "restored", "predict", "input_pipeline", "evaluate"},
    "paper": None,  # programs over everything; nothing imports them back
    "benchmarks": None,
}
HEAVY = {"jax", "flax", "tensorflow", "torch", "tensorflow_datasets"}


FOLDERS = ("configs", "models", "data", "paper", "analysis", "benchmarks")
MODULES = [(path.stem, path) for path in sorted(ROOT.glob("*.py"))] + [
    (folder, path) for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))
]


def imports(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize(
    ("room", "path"), MODULES, ids=lambda value: str(getattr(value, "name", value))
)
def test_arrows(room, path):
    assert room in ALLOWED, (
        f"{path.name} has no place in the house: add it here and in CONTRIBUTING"
    )
    found = imports(path)
    ours = (found & set(ALLOWED)) - {"errors", room}
    if ALLOWED[room] is not None:
        assert ours <= ALLOWED[room], f"{path} imports {sorted(ours - ALLOWED[room])}"
    if room not in ("paper", "analysis", "benchmarks"):
        assert not found & {"paper", "analysis", "benchmarks"}
    if room != "benchmarks":
        assert not found & {"tensorflow"}, f"{path}: no TensorFlow at run time"
    if room == "configs":
        assert not found & HEAVY, f"{path}: a config is read without JAX"


@pytest.mark.parametrize(
    ("room", "path"), MODULES, ids=lambda value: str(getattr(value, "name", value))
)
def test_no_file_is_too_long(room, path):
    assert len(path.read_text().splitlines()) <= 350, f"{path}: two rooms would be clearer"
