"""The house: who may import whom, and which things have one owner. See CONTRIBUTING.md."""

import ast
import re
import runpy
from pathlib import Path

import pytest

from tests.support.house import (
    OUTSIDE,
    circle,
    import_graph,
    imports,
    module_name,
    python_files,
    room_of,
    tree_of,
)

ROOT = Path(__file__).parent.parent
ALLOWED = {  # room → rooms that it may import; `errors` may be imported by all
    "errors": set(),
    "configs": set(),
    "detection": {"models", "weights", "data", "run"},
    "models": set(),
    "run": {"configs"},
    "weights": {"models"},
    "data": {"run"},
    "training": {"configs", "detection", "models", "weights", "data", "run", "testing"},
    "testing": {"configs", "models", "weights", "data", "run"},
    "input_pipeline": {"data", "detection", "run"},
    "evaluate": {"input_pipeline", "data", "run", "testing", "training"},
    "train": {"input_pipeline", "models", "data", "run", "training"},
    "residual_networks": {"models", "weights", "data"},
    "predict": {"detection", "models", "data", "run", "testing", "training", "weights"},
    "export": {"run", "testing", "weights"},
    "prepare_data": {"data", "run"},
    "main": {"configs", "evaluate", "input_pipeline", "models", "run", "train", "training"},
    "analysis": {
        *("configs", "train", "training", "input_pipeline", "predict"),
        *("detection", "models", "data", "run", "testing"),
    },
    "paper": None,  # programs over everything; nothing imports them back
    "benchmarks": None,
}
PROGRAMS = {"analysis", "paper", "benchmarks"}
ROOMS_WITH_ANY = {room for room, allowed in ALLOWED.items() if allowed is None}
HEAVY = {"jax", "flax", "tensorflow", "torch", "tensorflow_datasets"}
MOST_FILES_AT_THE_ROOT = 8
MOST_LINES = 350
# What a reader of the paper reads, in this order; and what must stay short for it.
READ_FIRST = ("main.py", "train.py", "training/step.py", "models/resnet.py", "models/block.py")
MOST_READ = {READ_FIRST: 1100, ("main.py",): 150, ("models/block.py",): 80}

# Derivatives and forms of a platform's own: where they may be written.
RULES = re.compile(
    r"\b(custom_vjp|custom_jvp|platform_dependent|optimization_barrier|defbilinear\w*)\b"
)
RULES_IN = ("models", "ops")

# The files of a workdir: where their names may be spelled, and names that only look like them.
WORKDIR_FILES = {
    *("config.json", "data.json", "metrics.jsonl", "timing.jsonl", "evaluation.json"),
    *("precise_bn.npz", "curves.png", "detections.png", "checkpoints"),
}
NAMES_IN = "run/workdir.py"
THEIRS = {"weights/huggingface.py": {"config.json"}}  # files of others with such a name
NO_FILE_NAMES = {"barrier_sync_key_prefix"}  # an argument of orbax: the name of a barrier

RENAMES_IN = (
    "benchmarks/changed_data.py",  # of images, which a run must notice
    "run/checkpoint.py",
    "run/files.py",
    "run/whole_folders.py",
)


def arrows(table):
    """The table of rooms as a graph: `errors` below all, programs that may import all above."""
    others = {room for room, allowed in table.items() if allowed is not None}
    return {
        room: (others if allowed is None else allowed | {"errors"}) - {room}
        for room, allowed in table.items()
    }


def floors(graph):
    """Room → its floor: 0 for one that imports nothing, else one above the highest it imports."""
    assert not circle(graph), " → ".join(circle(graph))

    def floor(room):
        return 1 + max(map(floor, graph[room]), default=-1)

    return {room: floor(room) for room in graph}


FILES = python_files(ROOT)
HOUSE = [path for path in FILES if room_of(ROOT, path) != "tests"]
CORE = [path for path in HOUSE if room_of(ROOT, path) not in PROGRAMS]
GRAPH = import_graph(ROOT)
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
house_file = pytest.mark.parametrize("path", HOUSE, ids=lambda path: str(path.relative_to(ROOT)))
core_file = pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(ROOT)))


# ---- Arrows


def test_every_file_has_a_room():
    """A new room gets its arrows here and its line in CONTRIBUTING.md."""
    assert {room_of(ROOT, path) for path in HOUSE} == set(ALLOWED)
    assert not OUTSIDE & set(ALLOWED)


def test_the_arrows_of_the_table_go_down():
    """A floor for each room, from the table alone; a circle in the table has none."""
    graph = arrows(ALLOWED)
    floor = floors(graph)
    assert all(floor[below] < floor[room] for room in graph for below in graph[room])
    assert floor["errors"] == 0
    assert max(floor, key=floor.get) in ROOMS_WITH_ANY
    with pytest.raises(AssertionError, match=r"data → run → data|run → data → run"):
        floors(arrows(ALLOWED | {"run": {"data"}}))


@house_file
def test_arrows_go_down(path):
    room, floor = room_of(ROOT, path), floors(arrows(ALLOWED))
    name, is_package = module_name(ROOT, path), path.name == "__init__.py"
    modules = imports(name, is_package, tree_of(path))
    found = {module.partition(".")[0] for module in modules}
    ours = (found & set(ALLOWED)) - {room}
    extra = sorted(ours - arrows(ALLOWED)[room])
    assert not extra, f"{path} imports {extra}, which the table does not allow"
    assert all(floor[other] < floor[room] for other in ours)
    assert "tests" not in found
    if room not in PROGRAMS:
        assert not ours & PROGRAMS
    if room != "benchmarks":
        assert not found & {"tensorflow"}, f"{path}: no TensorFlow at run time"
    if path.relative_to(ROOT).parts[:2] == RULES_IN:  # the cellar of models
        above = {module for module in modules if module.startswith("models")}
        assert all(module.startswith("models.ops") for module in above)
    if room == "configs":
        assert not found & HEAVY, f"{path}: a config is read without JAX"


def test_no_two_files_import_each_other():
    graph = GRAPH
    assert len(graph) == len(FILES)
    assert graph["main"] >= {"train", "evaluate"}  # also what a function imports
    assert "data.resident" in graph["input_pipeline"]
    found = circle(graph)
    assert not found, " → ".join(found)


CIRCLES = {
    "at the top": ("from room import one\n", "from room.two import y\n"),
    "in a function": ("def f():\n    from room import one\n", "import room.two\n"),
    "of types only": (
        "import typing\nif typing.TYPE_CHECKING:\n    from room.one import x\n",
        "from room import two\n",
    ),
    "relative": ("from . import one\n", "from .two import y\n"),
    "through a package": ("from room import x\n", "import room.two as two\n"),
}


@pytest.mark.parametrize("kind", CIRCLES)
def test_a_circle_is_found(tmp_path, kind):
    one, two = tmp_path / "room" / "one.py", tmp_path / "room" / "two.py"
    one.parent.mkdir()
    package = one.with_name("__init__.py")
    package.write_text("from room import one\nx = one\n")
    one.write_text("import json\n")
    back, there = CIRCLES[kind]
    two.write_text("from json import loads as y\n")
    assert circle(import_graph(tmp_path)) is None
    two.write_text(back)
    assert circle(import_graph(tmp_path)) is None
    one.write_text(there)
    assert set(circle(import_graph(tmp_path))) >= {"room.one", "room.two"}


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("data/sources.py", "import input_pipeline"),
        ("run/files.py", "def f():\n    from train import train"),
        ("models/ops/conv.py", "from models import create"),
        ("testing/protocols.py", "if 0:\n    from testing.precise_bn import apply"),
    ],
    ids=str,
)
def test_a_circle_added_to_this_house_is_found(tmp_path, file, line):
    """In a copy of the tree, so that the test knows the real files and not only made-up ones."""
    for path in HOUSE:
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    assert circle(import_graph(tmp_path)) is None
    below = tmp_path / "testing" / "precise_bn.py"
    below.write_text(f"{below.read_text()}\nimport testing.protocols\n")
    assert circle(import_graph(tmp_path)) is None
    with open(tmp_path / file, "a", encoding="utf-8") as handle:
        handle.write(f"\n{line}\n")
    found = circle(import_graph(tmp_path))
    assert module_name(tmp_path, tmp_path / file) in found


WHEEL = runpy.run_path(str(ROOT / ".ci" / "wheel.py"))
LIBRARY = sorted(WHEEL["library"](ROOT))


@pytest.mark.parametrize("paths", MOST_READ, ids="+".join)
def test_what_is_read_first_is_short(paths):
    assert sum(len((ROOT / p).read_text().splitlines()) for p in paths) <= MOST_READ[paths]


@pytest.mark.parametrize("path", LIBRARY, ids=str)
def test_the_package_imports_nothing_but_itself(path):
    """What `pip install` takes of the house: it, and nothing else of the house, is imported."""
    inside = {module_name(ROOT, ROOT / other) for other in LIBRARY}
    tree = tree_of(ROOT / path)
    assert GRAPH[module_name(ROOT, ROOT / path)] <= inside
    top = {name.partition(".")[0] for name in imports("", False, tree)} & set(ALLOWED)
    again = ast.parse(WHEEL["packaged"]((ROOT / path).read_text(encoding="utf-8")))
    assert not {name.partition(".")[0] for name in imports("", False, again)} & top


# ---- One owner


def test_few_files_stand_at_the_door():
    assert len(list(ROOT.glob("*.py"))) <= MOST_FILES_AT_THE_ROOT


@house_file
def test_rules_of_derivatives_and_platforms_are_in_models_ops(path):
    room = room_of(ROOT, path)
    if room != "benchmarks" and path.relative_to(ROOT).parts[:2] != RULES_IN:
        assert not RULES.findall(path.read_text(encoding="utf-8"))


def file_names(tree):
    """The names of a workdir's files that a file spells: literals that end in one of them.

    Sentences that mention one (docstrings, messages) end otherwise, or are longer than a path.
    """
    passed_on = {
        id(keyword.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg in NO_FILE_NAMES
    }
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in passed_on
        and not re.search(r"\s", node.value)
        and any(part in WORKDIR_FILES for part in re.split(r"[/\\]", node.value))
    }


@core_file
def test_names_of_a_workdirs_files_are_spelled_once(path):
    own = path.relative_to(ROOT).as_posix()
    names = file_names(tree_of(path)) - THEIRS.get(own, set())
    if own == NAMES_IN:
        assert names == WORKDIR_FILES
    else:
        assert not names, f"{path}: ask run.workdir.Workdir for {sorted(names)}"


def test_a_spelled_file_name_is_found():
    spelled = 'a = b / "config.json"\nc = f"{d}/checkpoints/{e}"\nf("""of metrics.jsonl.""")'
    assert file_names(ast.parse(spelled)) == {"config.json", "/checkpoints/"}
    assert not file_names(ast.parse('f(barrier_sync_key_prefix="checkpoints")'))


def renames(tree):
    """Lines that put one file in the place of another.

    A path's `replace` takes one argument, a string's two, and those of records names.
    """
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of_os = isinstance(node.func.value, ast.Name) and node.func.value.id in ("os", "shutil")
            if node.func.attr in ("rename", "renames", "move") or (
                node.func.attr == "replace"
                and (of_os or (len(node.args) == 1 and not node.keywords))
            ):
                found.append(ast.unparse(node))
        elif isinstance(node, ast.ImportFrom) and node.module in ("os", "shutil"):
            moving = {"rename", "renames", "replace", "move"}
            found += [alias.name for alias in node.names if alias.name in moving]
    return found


@house_file
def test_files_are_written_whole_in_one_way(path):
    if path.relative_to(ROOT).as_posix() not in RENAMES_IN:
        assert not renames(tree_of(path)), f"{path}: use run.files.whole"


def test_a_rename_is_found():
    text = "os.replace(a, b)\np.rename(q)\ntemporary.replace(path)\nshutil.move(a, b)\n"
    assert len(renames(ast.parse(text + "from os import replace"))) == 5
    others = '"a".replace("b", "c")\none._replace(x=1)\nd.replace(year=1)\nreplace(spec, a=1)'
    assert not renames(ast.parse(f"{others}\ndataclasses.replace(spec, stride=1)"))


@every_file
def test_no_file_is_too_long(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_LINES, f"{path}: two rooms would be clearer"


def public_functions(tree):
    """Functions and methods that others call: no underscore, not inside a function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node


@house_file
def test_every_public_function_says_its_types(path):
    for function in public_functions(tree_of(path)):
        parts = function.args
        arguments = [*parts.posonlyargs, *parts.args, *parts.kwonlyargs]
        untyped = [a.arg for a in arguments if not a.annotation and a.arg not in ("self", "cls")]
        assert not untyped, f"{path}:{function.lineno} {function.name}: {untyped}"
        assert function.returns, f"{path}:{function.lineno} {function.name}: what it returns"
