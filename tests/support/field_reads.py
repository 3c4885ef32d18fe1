"""Which fields of a config a file reads: found in its syntax tree, not by their words."""

import ast

CONFIGS = {"config", "c", "merged", "trained"}  # what a whole config is called
GROUPS = {"model", "optim", "augment", "data", "detection", "eval"}


def reads(tree):
    """The dotted names, e.g. 'optim.momentum', that a file reads of something called a config.

    A read is `config.optim.momentum`, `self._config.optim["momentum"]`, or `o.momentum` where `o`
    was set to `config.optim` in the same function; also `optim.momentum` where `optim` is a
    parameter, and `config.optim[name]` in a loop over names that are written down. Writing a field,
    giving it to `update` or naming it in a text is none.
    """
    found = set()
    for scope in _scopes(tree):
        names, loops = _names_of_groups(scope), _loops(scope)
        for node in _within(scope):
            base, field = _access(node)
            if base is not None and _is_config(base):
                found.add(field)
            elif base is not None and (group := _group(base, names)):
                found.add(f"{group}.{field}")
            elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Name):
                group = isinstance(node.ctx, ast.Load) and _group(node.value, names)
                found |= {f"{group}.{name}" for name in loops.get(node.slice.id, ()) if group}
    return found


def reads_of_networks(tree):
    """The fields, e.g. 'width', that the networks in a file (classes with `num_classes`) read."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and "num_classes" in _declared(node):
            accesses = map(_access, ast.walk(node))
            of_self = {
                f for base, f in accesses if isinstance(base, ast.Name) and base.id == "self"
            }
            found |= of_self & _declared(node)
    return found


def _declared(class_node):
    declared = [node.target for node in class_node.body if isinstance(node, ast.AnnAssign)]
    return {target.id for target in declared if isinstance(target, ast.Name)}


def _scopes(tree):
    functions = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    return [tree, *(node for node in ast.walk(tree) if isinstance(node, functions))]


def _within(scope):
    """The nodes of a function and of the functions in it, which see its names."""
    return ast.walk(scope) if not isinstance(scope, ast.Module) else iter(())


def _access(node):
    """`(base, field)` of a node that reads `base.field` or `base["field"]`, else `(None, '')`."""
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        return node.value, node.attr
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
        key = node.slice
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            return node.value, key.value
    return None, ""


def _is_config(node):
    """Whether an expression is called a config: `config`, `self._config`, `run.config`."""
    if isinstance(node, ast.Name):
        return node.id in CONFIGS
    return isinstance(node, ast.Attribute) and node.attr.lstrip("_") == "config"


def _group(node, names):
    """The group that an expression stands for, e.g. 'optim' for `config.optim`; None for others."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    base, field = _access(node)
    return field if base is not None and field in GROUPS and _is_config(base) else None


def _loops(scope):
    """Loop variable → the strings that it takes, where these are written down."""
    written = {
        node.targets[0].id: _strings(node.value)
        for node in _within(scope)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    return {
        node.target.id: written.get(getattr(node.iter, "id", ""), ()) or _strings(node.iter)
        for node in _within(scope)
        if isinstance(node, ast.For | ast.comprehension) and isinstance(node.target, ast.Name)
    }


def _strings(node):
    constants = node.elts if isinstance(node, ast.Tuple | ast.List) else []
    return [c.value for c in constants if isinstance(c, ast.Constant) and isinstance(c.value, str)]


def _names_of_groups(scope):
    """Local name → group, by parameters that are called as a group and by assignments."""
    arguments = getattr(scope, "args", None)
    parameters = arguments.args + arguments.kwonlyargs if arguments else []
    names = {parameter.arg: parameter.arg for parameter in parameters if parameter.arg in GROUPS}
    for node in _within(scope):
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = zip(target.elts, node.value.elts, strict=True)
            for name, value in pairs:
                if isinstance(name, ast.Name):
                    group = _group(value, names)
                    if group:
                        names[name.id] = group
    return names
