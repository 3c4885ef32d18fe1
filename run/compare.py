"""What differs between two descriptions, said in a few words."""

from collections.abc import Mapping
from typing import Any

LISTED = 6  # differences in one message
SHOWN = 60  # characters of a value in it


def differences(a: Mapping[str, Any], b: Mapping[str, Any], where: tuple[str, str]) -> list[str]:
    """Sentences such as 'label_names.3: cat there, dog now'; none when all is equal.

    Args:
      a, b: nested dictionaries and lists, as JSON has them.
      where: what is said of each, e.g. `('there', 'now')`.
    """
    left, right = _leaves(a), _leaves(b)
    names = [name for name in left | right if left.get(name) != right.get(name)]
    told = [
        f"{name}: {_shown(left, name)} {where[0]}, {_shown(right, name)} {where[1]}"
        for name in names[:LISTED]
    ]
    return told + ([f"and {len(names) - LISTED} more"] if len(names) > LISTED else [])


def _leaves(value, name=""):
    """Values by dotted name; an empty list or dictionary is a value."""
    if not isinstance(value, Mapping | list) or not value:
        return {name: value}
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    found = {}
    for key, inner in items:
        found |= _leaves(inner, f"{name}.{key}" if name else str(key))
    return found


def _shown(leaves, name):
    text = repr(leaves[name]) if name in leaves else "none"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
