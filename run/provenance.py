"""Where and when a number was made: what stands beside every result."""

import datetime
import platform
from importlib import metadata
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def device() -> str:
    """The devices of this process, e.g. '8 × NVIDIA H100' or '1 × x86_64 CPU device'."""
    first = jax.devices()[0]
    kind = f"{platform.machine()} CPU device" if first.platform == "cpu" else first.device_kind
    return f"{len(jax.devices())} × {kind}"


def provenance(command: str) -> dict[str, Any]:
    """Command, date, device and versions, for the header of a result."""
    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "device": device(),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in PACKAGES},
    }
