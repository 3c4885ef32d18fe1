"""The tree as the architecture test reads it: files, rooms and who imports whom."""

import ast
import tokenize

OUTSIDE = {"notebooks", "docs", "results", "runs", "shared"}  # no rooms


def python_files(root):
    """Every Python file of the tree and its tests, sorted; hidden folders are no part of it."""
    found = []
    for top in sorted(root.iterdir()):
        if top.suffix == ".py":
            found.append(top)
        elif top.is_dir() and not (top.name[0] in "._" or top.name in OUTSIDE or _is_venv(top)):
            found += sorted(top.rglob("*.py"))
    return found


def _is_venv(folder):
    return (folder / "pyvenv.cfg").exists()


def room_of(root, path):
    """The first part of a path: 'models' for models/ops/conv.py, 'train' for train.py."""
    return path.relative_to(root).with_suffix("").parts[0]


def module_name(root, path):
    """'models.ops.conv' for models/ops/conv.py, 'weights' for weights/__init__.py."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def tree_of(path):
    """The syntax tree of a file, whatever encoding it names."""
    with tokenize.open(path) as file:
        return ast.parse(file.read(), str(path))


def imports(name, is_package, tree):
    """The modules that a file names in its imports, wherever in it they stand.

    For `from a import b` both `a` and `a.b`, since b may be a module.
    """
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                parts = name.split(".") if is_package else name.split(".")[:-1]
                parts = parts[: len(parts) - node.level + 1]
                source = ".".join([*parts, *filter(None, [node.module])])
            found |= {f"{source}.{alias.name}" for alias in node.names} | {source}
    return found


def import_graph(root):
    """File → files that it imports, of the whole tree, as module names.

    `from a import b` is an arrow to the file a/b.py where there is one, else to a. That Python runs
    a/__init__.py on the way to a/b.py is no arrow: it holds for every folder.
    """
    modules = {module_name(root, path): path for path in python_files(root)}
    graph = {}
    for name, path in modules.items():
        graph[name] = set()
        is_package = path.name == "__init__.py"
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            found = imports(name, is_package, ast.Module([node], []))
            if isinstance(node, ast.ImportFrom):
                shortest = min(found, key=len)
                inside = found - {shortest}
                # `a` itself only for what is no file of its own
                graph[name] |= inside & set(modules)
                found = {shortest} if inside - set(modules) else set()
            graph[name] |= found & set(modules)
        graph[name].discard(name)
    return graph


def circle(graph):
    """One circle of a graph as the nodes on it, e.g. ['a', 'b', 'a']; None when there is none."""
    done, trail = set(), []

    def visit(node):
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return None
        trail.append(node)
        for other in sorted(graph[node]):
            if found := visit(other):
                return found
        done.add(trail.pop())
        return None

    return next(filter(None, map(visit, sorted(graph))), None)
