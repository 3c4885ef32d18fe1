"""The network in whatever a training program saved around it.

A state dict lies at the top of a file or under any key, its names may begin with what a wrapper put
there ('module.', '_orig_mod.', 'model.', 'backbone.'), and a file may hold several: the averaged
weights beside the raw ones. Here a network is known by the names of its first stage.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from errors import UserError
from weights.pickled import Foreign, foreign_classes
from weights.torchvision import AVERAGES, COUNTERS

# How the names of a first stage begin, in torchvision's way and in Hugging Face's.
FIRST_STAGE = re.compile(
    r"(?:^|(?<=\.))(?:layer1\.0\.|(?:resnet\.)?encoder\.stages\.0\.layers\.0\.)"
)
HEAD_OF_WRAPPERS = ("fc", "head.fc", "classifier", "classifier.1", "head", "cls_head.fc", "linear")
AVERAGED = {"ema", "swa", "averaged", "average", "avg", "shadow", "teacher"}
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")  # of 'model_ema', 'emaModel', 'MODEL_EMA'
HARMLESS = ("torch.", "numpy.", "collections.", "builtins.", "__builtin__.", "_codecs.", "copyreg.")
OF_MODULES = ("_parameters", "_buffers", "_modules")  # where a pickled torch module keeps things
OF_WRAPPERS = ("module", "_orig_mod")  # what names nothing in the path of a network
LISTED = 8  # names in a message


class Found(NamedTuple):
    """One network of a checkpoint.

    Attributes:
      label: where it lies, e.g. 'model_ema' or 'state_dict.model'.
      arrays: name → array, without what wrappers put before the names.
      rest: names beside them that belong to no network.
      averaged: whether these are averages over training steps.
    """

    label: str
    arrays: dict[str, np.ndarray]
    rest: tuple[str, ...] = ()
    averaged: bool = False


def state_dict(
    tree: Any,
    path: str | os.PathLike,
    part: str = "",
    find: Callable[[Any], list[Found]] | None = None,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Finds the network in what a file holds; averaged weights are preferred.

    Args:
      tree: nested dictionaries and lists with arrays, of `read_torch` or `read_safetensors`.
      path: of the file, for messages.
      part: the label of the network that is asked for, if the file has several; '' is the first.
      find: tree → its networks; `networks` unless given.

    Returns:
      `(arrays, notes)`: name → array without wrappers' prefixes, and sentences to be logged.

    Raises:
      UserError: naming what `path` holds instead.
    """
    found = (find or networks)(tree)
    if not found:
        holds = list(map(str, tree))[:LISTED] if isinstance(tree, dict) else type(tree).__name__
        raise UserError(
            f"{path}: holds {holds} and no arrays by name; expected a state dict, at the top or "
            "under a key: torch.save(model.state_dict(), path)."
        )
    if part and part not in [one.label for one in found]:
        raise UserError(
            f"{path}#{part}: the file holds no such network; it has "
            f"{', '.join(repr(one.label) for one in found)}."
        )
    chosen, notes = _choose(found, path, part)
    if objects := [name for name in foreign_classes(tree) if not name.startswith(HARMLESS)]:
        notes.append(
            f"{path}: holds objects of other programs, and nothing of them was run: "
            f"{listed(objects)}."
        )
    if rest := [name for name in chosen.rest if not name.endswith(COUNTERS)]:
        notes.append(f"{path}: not read, since the network has no such arrays: {listed(rest)}.")
    return chosen.arrays, notes


def _choose(found, path, part):
    """The network that is asked for, or the best one, and what to say of the others."""
    first = next((one for one in found if one.label == part), found[0])
    others = [one for one in found if one is not first and one.arrays.keys() & first.arrays.keys()]
    if part or not others:
        return first, []
    notes = []
    for one in found:
        missing = first.arrays.keys() - one.arrays.keys()
        missing = [name for name in missing if not name.endswith(COUNTERS)]
        if one.averaged and not first.averaged and not missing:
            first = one
        elif one.averaged and missing:
            notes.append(
                f"{path}: the averaged weights {one.label!r} lack {listed(sorted(missing))}, so "
                "they are not taken."
            )
    labels = ", ".join(f"{path}#{one.label}" for one in found if one is not first)
    kind = "averaged weights" if first.averaged else "weights"
    notes.insert(0, f"{path}: the {kind} {first.label!r} are taken. For others give {labels}.")
    return first, notes


def architecture(tree: Any) -> str:
    """The network's name, where a training program saved one (PyTorch's example, timm), or ''."""
    named = tree.get("arch") if isinstance(tree, dict) else ""
    return named if isinstance(named, str) else ""


def networks(tree: Any) -> list[Found]:
    """Every network in a tree; if none has a first stage, the largest dictionary of arrays."""
    found = []
    for at, arrays in (of_arrays := list(dictionaries(tree))):
        starts = [name[: m.start()] for name in arrays if (m := FIRST_STAGE.search(name))]
        for prefix in dict.fromkeys(starts):
            others = tuple(p for p in dict.fromkeys(starts) if p != prefix and p.startswith(prefix))
            found.append(_network(at, arrays, prefix, others, set(starts)))
    if not found and of_arrays:
        at, arrays = max(of_arrays, key=lambda item: len(item[1]))
        found = [Found(".".join(at), _without_common_start(arrays))]
    return found


def _network(at, arrays, prefix, others, prefixes):
    """What begins with `prefix` and with none of `others`, and a head that lies beside it."""
    own = {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix) and not (others and name.startswith(others))
    }
    rest = [name for name in arrays if not name.startswith(tuple(prefixes))]
    if prefix and not any(name.startswith(("fc.", "classifier.")) for name in own):
        above = prefix[: prefix.rstrip(".").rfind(".") + 1]
        for head in HEAD_OF_WRAPPERS:
            weight, bias = f"{above}{head}.weight", f"{above}{head}.bias"
            if weight in rest and bias in rest and arrays[weight].ndim == 2:
                own |= {"fc.weight": arrays[weight], "fc.bias": arrays[bias]}
                rest = [name for name in rest if name not in (weight, bias)]
                break
    return labelled(at, prefix, own, tuple(rest))


def labelled(
    at: Iterable[str], prefix: str, arrays: dict[str, np.ndarray], rest: tuple[str, ...]
) -> Found:
    """A network by where it lies: keys that lead to it, and what stands before its names."""
    where = [*at, *(word for word in prefix.split(".") if word)]
    label = ".".join(word for word in where if word not in OF_WRAPPERS) or ".".join(where)
    counters = [name.removesuffix(AVERAGES) for name in rest if name.endswith(AVERAGES)]
    averaged = AVERAGED & {word.lower() for word in WORD.findall(label)}
    return Found(label, arrays, rest, bool(averaged) or prefix.startswith(tuple(counters)))


def dictionaries(tree: Any, at: tuple[str, ...] = (), seen: Any = None) -> Iterator[tuple]:
    """`(keys that lead to it, name → array)` of every dictionary or module that holds arrays."""
    seen = set() if seen is None else seen
    if not isinstance(tree, dict | list) or id(tree) in seen:
        return
    seen.add(id(tree))
    pairs: Any = tree.items() if isinstance(tree, dict) else enumerate(tree)
    if isinstance(tree, Foreign):
        pairs = _of_module(tree, "", set())
    items = [(str(key), value) for key, value in pairs]
    arrays = {key: value for key, value in items if isinstance(value, np.ndarray)}
    if arrays:
        yield at, arrays
    for key, value in items:
        if not key.startswith(("optim", "lr_sched")):
            yield from dictionaries(value, (*at, key), seen)


def _of_module(module: Mapping, prefix: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """The arrays of a pickled module by the names that its state dict would give them."""
    if id(module) in seen:
        return
    seen.add(id(module))
    for key, value in module.items():
        if key in OF_MODULES and isinstance(value, dict):
            yield from _of_module(value, prefix, seen)
        elif isinstance(value, Foreign):
            yield from _of_module(value, f"{prefix}{key}.", seen)
        else:
            yield f"{prefix}{key}", value


def _without_common_start(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    for word in (*OF_WRAPPERS, "model", "backbone", "net"):
        if arrays and all(name.startswith(f"{word}.") for name in arrays):
            return _without_common_start(
                {name.removeprefix(f"{word}."): array for name, array in arrays.items()}
            )
    return dict(arrays)


def listed(names: Any) -> str:
    """The first names of several, for a message."""
    names = list(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
