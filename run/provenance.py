"""Where and when a number was made: what stands beside every result."""

import datetime
import os
import platform
import zlib
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
DECODERS = ("opencv-python-headless", "pillow", "simplejpeg")  # two may differ in a pixel
ROOMS = ("", "configs", "data", "models", "models/ops", "run", "testing", "training", "weights")
# JAX's own settings that change numbers.
SETTINGS = (
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_enable_x64",
    "jax_threefry_partitionable",
)
COMPILER = "XLA_FLAGS"
OF_A_HOST = ("--xla_dump", "--xla_force_host_platform_device_count")  # flags that may differ


def device() -> str:
    """The devices of this process, e.g. '8 × NVIDIA H100' or '1 × x86_64 CPU device'."""
    first = jax.devices()[0]
    kind = f"{platform.machine()} CPU device" if first.platform == "cpu" else first.device_kind
    return f"{len(jax.devices())} × {kind}"


def provenance(command: str) -> dict[str, Any]:
    """Command, date, device and versions, for the header of a result.

    Among the versions are the compiler's flags, if the environment sets any.
    """
    flags = {COMPILER: " ".join(_flags())} if _flags() else {}
    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "device": device(),
        "versions": {"python": platform.python_version()} | _versions(PACKAGES) | flags,
    }


def code() -> dict[str, Any]:
    """What else than its config and data a run's numbers come from: this code, packages, JAX."""
    root, digest = Path(__file__).parent.parent, 0
    for room in ROOMS:
        for path in sorted((root / room).glob("*.py")):
            digest = zlib.crc32(path.read_bytes(), digest)
    settings = {name: getattr(jax.config, name) for name in SETTINGS}
    settings[COMPILER] = _flags()
    return {"code": f"{digest:08x}"} | _versions(PACKAGES + DECODERS) | settings


def _flags():
    return sorted(f for f in os.environ.get(COMPILER, "").split() if not f.startswith(OF_A_HOST))


def _versions(packages):
    return {name: _version(name) for name in packages}


def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"
