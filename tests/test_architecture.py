"""The arrows of the house: who may import whom. See CONTRIBUTING.md."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {  # room → rooms that it may import; `errors` may be imported by all
    "errors": set(),
    "configs": set(),
    "models": set(),
    "run": {"configs"},
    "weights": {"models"},
    "data": {"run"},
    "training": {"configs", "models", "weights", "data", "run"},
    "testing": {"models", "weights", "data", "run"},
    "input_pipeline": {"data", "run"},
    "evaluate": {"input_pipeline", "data", "run", "testing", "training"},
    "train": {"input_pipeline", "evaluate", "models", "data", "run", "training"},
    "predict": {"models", "data", "run", "testing"},
    "export": {"run", "testing", "weights"},
    "prepare_data": {"data", "run"},
    "main": {"configs", "evaluate", "input_pipeline", "models", "run", "train"},
    "analysis": {"input_pipeline", "evaluate", "predict", "models", "data", "run", "testing"},
    "paper": None,  # programs over everything; nothing imports them back
    "benchmarks": None,
}
HEAVY = {"jax", "flax", "tensorflow", "torch", "tensorflow_datasets"}


FOLDERS = (
    *("configs", "models", "weights", "training", "testing", "data", "run"),
    *("paper", "analysis", "benchmarks"),
)
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
