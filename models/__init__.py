"""Residual networks and their plain twins: `check` a `config.model`, `create` what it describes."""

import dataclasses
import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from errors import UserError
from models.identity_mappings import VARIANTS
from models.initial import init
from models.resnet import BLOCKS, STEMS, ResNet, architecture

__all__ = ["CHOICES", "check", "create", "init"]

CHOICES = {
    "block": ("", *BLOCKS),
    "shortcut": ("A", "B", "C", "D"),
    "stem": tuple(STEMS),
    "stem_pool": ("padded", "unpadded"),
    "downsample_in": ("1x1", "3x3"),
    "dtype": ("float32", "bfloat16"),
    "remat": ("none", "block", "segments"),
    "variant": VARIANTS,
    "output_stride": (8, 16, 32),
}
MAX_WIDTH = 4096
FIELDS = {
    field.name: field
    for field in dataclasses.fields(ResNet)
    if field.name not in ("parent", "name", "num_classes")
}
CHANGES_THE_SHORTCUT = ("exclusive_gating", "shortcut_gating", "dropout_shortcut")
# What does not go together, and the error's words.
CONFLICTS = (
    (
        lambda m: not 1 <= m.width <= MAX_WIDTH,
        f"model.width={{m.width}}: expected 1 … {MAX_WIDTH} channels.",
    ),
    (
        lambda m: m.preactivation and m.variant != "none",
        "model.variant={m.variant!r} with model.preactivation=True: the variants are "
        "alternatives to pre-activation; set one of the two.",
    ),
    (
        lambda m: m.zero_init_residual and not m.residual,
        "model.zero_init_residual=True with model.residual=False: a plain network whose last "
        "BN scales are zero outputs zeros; set model.zero_init_residual=False.",
    ),
    (
        lambda m: m.zero_init_residual and (m.preactivation or m.variant == "bn_after_addition"),
        "model.zero_init_residual=True needs a branch that ends in BN: "
        "set it to False with pre-activation or 'bn_after_addition'.",
    ),
    (
        lambda m: not m.residual and m.variant in CHANGES_THE_SHORTCUT,
        "model.variant={m.variant!r} changes the shortcut, and model.residual=False has none.",
    ),
    (
        lambda m: m.bn_group_size < 0,
        "model.bn_group_size={m.bn_group_size}: expected a number of images, or 0 for all of a "
        "device.",
    ),
    (
        lambda m: m.output_stride != 32 and m.stem == "cifar",
        "model.output_stride={m.output_stride}: expected 32, since model.stem='cifar' cannot be "
        "dilated.",
    ),
    (
        lambda m: m.stem == "deep" and m.width % 2,
        "model.width={m.width}: expected an even number, of which the first layers of "
        "model.stem='deep' take half.",
    ),
    (
        lambda m: min(m.groups, m.width_per_group) < 1 or m.width * m.width_per_group % 64,
        "model.width_per_group={m.width_per_group}, model.groups={m.groups}: expected numbers ≥ 1, "
        "the first with model.width={m.width} · width_per_group / 64 whole.",
    ),
    (
        lambda m: m.width * m.width_per_group // 64 * m.groups > MAX_WIDTH,
        "model.width_per_group={m.width_per_group}, model.groups={m.groups}: expected at most "
        f"{MAX_WIDTH} channels in the first stage's 3×3 convolutions.",
    ),
    (
        lambda m: (
            (m.groups, m.width_per_group) != (1, 64)
            and architecture(m.stem, m.depth, m.block).block is BLOCKS["basic"]
        ),
        "model.groups={m.groups}, model.width_per_group={m.width_per_group}: only bottlenecks are "
        "grouped or wide, and model.depth={m.depth} has basic blocks.",
    ),
    (
        lambda m: (
            m.shortcut == "D"
            and (m.output_stride != 32 or m.preactivation or m.variant == "relu_only_preactivation")
        ),
        "model.shortcut='D': expected model.output_stride=32 and no pre-activation; choose 'B'.",
    ),
    (
        lambda m: m.space_to_depth and m.stem != "imagenet",
        "model.space_to_depth=True: only the 7×7/2 convolution of model.stem='imagenet' can "
        "be computed over blocks of pixels; set it to False.",
    ),
    (
        lambda m: m.scan_blocks and m.variant == "dropout_shortcut",
        "model.variant='dropout_shortcut' cannot run with model.scan_blocks=True; "
        "set model.scan_blocks=False.",
    ),
)


def create(model_config: Mapping[str, Any], num_classes: int) -> ResNet:
    """Builds the network that `config.model` describes.

    `model.init(key, images, train=False)` and `model.apply(variables, images, train=…)` take float
    images `[batch, height, width, channels]`; `apply` returns `(logits, endpoints)` (see
    `models.resnet.ResNet`, whose attributes are the fields of `model_config`; those left out have
    the defaults there).

    Args:
      model_config: mapping of fields, e.g. `config.model`.
      num_classes: width of the head, ≥ 1.

    Raises:
      UserError: naming the field, its value and what was expected.
    """
    check(model_config)
    if type(num_classes) is not int or num_classes < 1:
        raise UserError(f"num_classes={num_classes!r}: a head needs at least 1 class.")
    return ResNet(num_classes=num_classes, **model_config)


def check(model_config: Mapping[str, Any]) -> None:
    """Raises a UserError that names the first wrong field, its value and what was expected."""
    unknown = sorted(set(model_config) - set(FIELDS))
    if unknown:
        raise UserError(
            f"config.model has no field {unknown[0]!r}; its fields: {', '.join(FIELDS)}."
        )
    model = SimpleNamespace(**{name: field.default for name, field in FIELDS.items()})
    model.__dict__.update(model_config)
    for name, value in vars(model).items():
        _check_type(name, FIELDS[name].type, value)
    for name, choices in CHOICES.items():
        if getattr(model, name) not in choices:
            raise UserError(
                f"model.{name}={getattr(model, name)!r}: "
                f"expected one of {', '.join(map(repr, choices))}."
            )
    architecture(model.stem, model.depth, model.block)
    for wrong, message in CONFLICTS:
        if wrong(model):
            raise UserError(message.format(m=model))


def _check_type(name, expected, value):
    number = expected is float and type(value) is int
    if type(value) is not expected and not number:
        raise UserError(
            f"model.{name}={value!r}: expected a {expected.__name__}, got a {type(value).__name__}."
        )
    if expected is float and not math.isfinite(value):
        raise UserError(f"model.{name}={value}: expected a finite number.")
