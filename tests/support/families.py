"""Train steps that together have every form of network and every transform on the device."""

from typing import Any

import models
from benchmarks.whole_step import Row, WholeStep
from models.identity_mappings import VARIANTS

BOTTLENECK = {"model.depth": 11, "model.block": "bottleneck"}
# Name → row, and what its config has of its own.
FAMILIES: dict[str, tuple[Row, dict[str, Any]]] = {
    "augmented": (
        Row("resnet18", 4),
        {
            **{"augment.kind": "pad_crop_flip", "augment.mixup": 0.2, "augment.cutmix": 1.0},
            **{"augment.erase": 0.5, "augment.pca_noise": 0.1, "optim.loss": "bce"},
            **{"optim.name": "lamb", "optim.ema_decay": 0.9},
        },
    ),
    "pre-activation": (Row("resnet18", 2), {"model.preactivation": True, "model.shortcut": "C"}),
    "deep stem": (
        Row("resnet18", 2, "bfloat16"),
        {"model.stem": "deep", "model.shortcut": "D", "model.bn_group_size": 1},
    ),
    "plain, dilated": (
        Row("resnet18", 2),
        {"model.residual": False, "model.stem_pool": "unpadded", "model.output_stride": 8},
    ),
    "space_to_depth": (
        Row("resnet18", 2, "bfloat16"),
        {"model.remat": "block", "model.space_to_depth": True, "optim.name": "adamw"},
    ),
    "loops": (
        Row("resnet14", 2),
        {
            **{"model.scan_blocks": True, "model.shortcut": "A", "optim.accumulate_steps": 2},
            **{"augment.kind": "random_resized_crop", "data.resident": True, "optim.name": "lars"},
        },
    ),
    "grouped": (
        Row("resnet8", 2),
        {
            **{**BOTTLENECK, "model.width": 16, "model.groups": 32, "model.width_per_group": 4},
            "model.downsample_in": "3x3",
        },
    ),
    "wide": (
        Row("resnet8", 2),
        {
            **{**BOTTLENECK, "model.width_per_group": 128, "model.remat": "segments"},
            **{"model.shortcut_scale": 0.5, "model.residual_scale": 0.5},
        },
    ),
    **{name: (Row("resnet8", 2), {"model.variant": name}) for name in VARIANTS if name != "none"},
}


def step(name: str, **where: Any) -> WholeStep:
    """The step of a family, 8 channels wide; `where` are devices and options of `WholeStep`."""
    row, fields = FAMILIES[name]
    config, size, classes = row.recipe()
    config.update_from_flattened_dict({"model.width": 8, **fields})
    model = models.create(config.model, classes)
    return WholeStep(config, model, 32 if size == 224 else 8, **where)
