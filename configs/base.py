"""A config as a whole: the default, from and to JSON, the types of its values."""

import json
import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs.fields import FIELDS
from errors import UserError


def base() -> ConfigDict:
    """Every field with the value that the paper's ImageNet networks have (section 3.4)."""
    nested = {}
    for name, field in FIELDS.items():
        group, _, last = name.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[last] = field.default
    return ConfigDict(nested)


def from_dict(fields: Mapping[str, Any]) -> ConfigDict:
    """A complete config from nested dictionaries (JSON); fields that they lack have the defaults.

    Raises:
      UserError: for a field that does not exist, or a value of another type.
    """
    config, flat = base(), flatten(fields)
    if unknown := sorted(set(flat) - set(FIELDS)):
        raise UserError(f"config: there is no field {', '.join(unknown)}; --help lists them all.")
    try:
        config.update_from_flattened_dict(
            {k: tuple(v) if isinstance(v, list) else v for k, v in flat.items()}
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"config: {error}") from error
    check_types(config)
    return config


def as_meant(saved: dict[str, Any], name: str) -> dict[str, Any]:
    """A run's nested fields, `saved` under `name`: those from before `model.block` meant something.

    Raises:
      UserError: its network computed otherwise then.
    """
    model = saved.get("model")
    if not isinstance(model, dict) or "block" in model:
        return saved
    if model.get("preactivation") or model.get("variant") == "dropout_shortcut":
        raise UserError(
            f"{name}: an older version trained this network; the first pre-activated block and "
            "dropout on the shortcut computed otherwise then. Train it again in another --workdir."
        )
    both = model.get("stem") == "cifar" and model.get("depth") in range(38, 12_003, 18)
    basic = {"block": "basic"} if both and model["depth"] not in (56, 110) else {}
    return saved | {"model": model | basic}


def check_types(config: ConfigDict) -> None:
    """Raises UserError unless every value is of the type that it has in `base`, and finite."""
    flat = flatten(config)
    for name, (default, *_) in FIELDS.items():
        value, several = flat[name], isinstance(default, tuple)
        kind = type(default) if not several else float if default else str
        for v in value if several and isinstance(value, tuple) else [value]:
            fits = type(v) is kind or (kind is float and type(v) is int)
            if not fits or (kind is float and not math.isfinite(v)):
                raise UserError(
                    f"{name}={value!r}: expected {'values' if several else 'a value'} of type "
                    f"{kind.__name__}, e.g. {default!r}."
                )


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """A config as JSON has it: nested dictionaries, lists for tuples."""
    return json.loads(config.to_json_best_effort())


def flatten(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, by dotted name: `{'model.depth': 50, …}`."""
    flat = {}
    for key, value in fields.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
