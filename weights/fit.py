"""Whether a file's arrays are those of a network; if not, an error that says what they are."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from errors import UserError
from models import FIELDS
from weights.architectures import ANTI_ALIASED, HEAD, READ, Network, identify
from weights.checkpoints import listed
from weights.files import Tensor


def check_name(path: Path, name: str) -> None:
    """Raises a UserError for a name that tells of a network which the arrays do not show."""
    if ANTI_ALIASED.search(name):
        raise UserError(
            f"{path}: {name!r} is the name of an anti-aliased network (blur-pool). Its filters are "
            "not among its arrays: read as a plain ResNet, it would compute something else. "
            f"{READ} If it is a plain one, rename it."
        )


def refusal(path: str | os.PathLike, network: Network, more: str = "") -> UserError:
    """The error for a file of an architecture that cannot be built here."""
    return UserError(f"{path}: holds {network.name}: {network.why_not}{more}. {READ}")


def check(
    path: str | os.PathLike,
    found: Mapping[str, Tensor],
    wanted: Mapping[str, Any],
    theirs: Callable[[str], str],
    model_config: Mapping[str, Any],
) -> None:
    """Compares a file's arrays with the shapes of a network's variables.

    Args:
      path: of the file, for messages.
      found: our path → `Tensor` of the file.
      wanted: our path → shape of the network.
      theirs: our path → the file's name for it.
      model_config: fields of the network.

    Raises:
      UserError: names are missing or unknown, or shapes differ; it says what the file holds.
    """
    problem = problems(found, wanted, theirs)
    if not problem:
        return
    wrong = {n for n in wanted if n not in found or found[n].array.shape != wanted[n].shape}
    if wrong <= set(HEAD) and set(found) == set(wanted):
        raise UserError(_other_head(path, found, wanted))
    network = identify(found)
    if network.why_not:
        raise refusal(path, network, f"; {problem}")
    raise UserError(
        f"{path}: does not fit; {_networks(network, wanted)}{problem}. "
        f"{_advice(network, found, wanted, model_config)}"
    )


def problems(
    found: Mapping[str, Tensor], wanted: Mapping[str, Any], theirs: Callable[[str], str]
) -> str:
    """Which of a file's arrays are missing, unknown or of another shape, or ''."""
    missing = [theirs(name) for name in wanted if name not in found]
    unknown = [tensor.source for name, tensor in found.items() if name not in wanted]
    wrong = [
        f"{found[name].source} has {found[name].array.shape}, expected {wanted[name].shape}"
        for name in wanted
        if name in found and found[name].array.shape != wanted[name].shape
    ]
    return "; ".join(
        f"{len(names)} {kind}: {listed(names)}"
        for kind, names in (
            ("missing", missing),
            ("unknown", unknown),
            ("of another shape (kernels as [height, width, in, out])", wrong),
        )
        if names
    )


def _other_head(path, found, wanted):
    there, here = found[HEAD[0]].array.shape, wanted[HEAD[0]].shape
    return (
        f"{path}: a head of {there[-1]} classes, {there}; the data has {here[-1]}, {here}. "
        "Allow a new head with replace_head=True, or use data of the file's classes."
    )


def _networks(network: Network, wanted):
    """The file's network and the config's, if they are different ones."""
    blank = np.zeros(())
    here = identify(
        {name: Tensor(np.broadcast_to(blank, s.shape), name) for name, s in wanted.items()}
    )
    if network.name == here.name:
        return ""
    return f"it holds {network}, and config.model describes {here}; "


def _advice(network, found, wanted, model_config):
    """What would help: fields to set, a new head, other images."""
    stem = next((name for name in wanted if name.startswith("params/stem_conv")), "")
    steps = [
        f"model.{name}={value}"
        for name, value in network.fields.items()
        if model_config.get(name, FIELDS[name].default) != value
        and (name != "shortcut" or model_config.get("residual", True))
    ]
    advice = [f"Set {', '.join(steps)}"] if steps else []
    if HEAD[0] in wanted and not any(name in found for name in HEAD):
        advice.append("A file without a head needs replace_head=True")
    channels = [found[stem].array.shape[2], wanted[stem].shape[2]] if stem in found else []
    if len(set(channels)) > 1:
        advice.append(f"its images have {channels[0]} channels, and the data's {channels[1]}")
    if not advice:
        advice = ["No field of config.model explains that: choose another file"]
        if set(found) > set(wanted):
            advice = ["No network here has the unknown arrays: save the network without them"]
    return f"{'; '.join(advice)}."
