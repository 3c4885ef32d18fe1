"""Builds the wheel: the rooms that are a library, as the package `residual_networks`.

At the top of the checkout a room cannot import its neighbour relatively, and in somebody's
environment names like `data` must not stand at the top. So the files are the same, and in the wheel
their imports of one another get the package's name in front.
"""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "residual_networks"
WHOLE = ("models", "weights")
# Of data: what happens to an image, not where images come from.
OF_DATA = ("decode", "device_transforms", "jpeg", "keys", "mixup", "normalization", "transforms")
HOUSE = re.compile(r"^(\s*)from (models|weights|data|errors)\b", re.M)
HOUSE_ITSELF = re.compile(r"^(\s*)import (models|weights|data|errors)$", re.M)


def library(root: Path) -> Iterator[Path]:
    """The files of the house that become part of the package, relative to the checkout."""
    yield Path("errors.py")
    for room in WHOLE:
        yield from (path.relative_to(root) for path in sorted((root / room).rglob("*.py")))
    for name in ("__init__", *OF_DATA):
        yield Path("data", f"{name}.py")


def packaged(text: str) -> str:
    """A file's text with the package's name in front of what it imports of the house."""
    text = HOUSE.sub(rf"\1from {PACKAGE}.\2", text)
    return HOUSE_ITSELF.sub(rf"\1from {PACKAGE} import \2", text)


class Wheel(BuildHookInterface):
    """What hatchling calls when it builds a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds the files of `library` to the wheel."""
        if version == "editable":
            raise SystemExit("To work on the code, run it in the checkout: nothing is installed.")
        root, self.copies = Path(self.root), tempfile.TemporaryDirectory()
        for path in library(root):
            copy = Path(self.copies.name, path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            text = packaged((root / path).read_text(encoding="utf-8"))
            copy.write_text(text, encoding="utf-8")
            build_data["force_include"][str(copy)] = f"{PACKAGE}/{path}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Removes the copies."""
        self.copies.cleanup()
