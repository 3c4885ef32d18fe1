"""Residual networks, foreign weight files and image transforms, for programs of one's own.

    from residual_networks import models, weights

The package is made of the rooms `models`, `weights` and a part of `data` (`.ci/wheel.py`); nothing
else is installed, and no other name. In the checkout it stands for the rooms beside this folder.
"""

from pathlib import Path

if not (Path(__file__).parent / "models").exists():  # the checkout
    __path__.append(str(Path(__file__).parents[1]))

from residual_networks import models, weights  # type: ignore[attr-defined]
from residual_networks.data import device_transforms, mixup, normalization, transforms
from residual_networks.errors import UserError

__all__ = ["UserError", "device_transforms", "mixup", "models", "normalization", "transforms"]
__all__ += ["weights"]
