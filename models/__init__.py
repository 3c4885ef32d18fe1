"""Residual networks and their plain twins: `create` builds one."""

import dataclasses
import math

from errors import UserError
from models.resnet import VARIANTS, ResNet, architecture

__all__ = ["check", "create"]

CHOICES = {
    "shortcut": ("A", "B", "C"),
    "stem": ("imagenet", "cifar"),
    "stem_pool": ("padded", "unpadded"),
    "downsample_in": ("1x1", "3x3"),
    "dtype": ("float32", "bfloat16"),
    "remat": ("none", "block", "segments"),
    "variant": tuple(VARIANTS),
    "output_stride": (8, 16, 32),
}
MAX_WIDTH = 4096
FIELDS = tuple(
    f.name for f in dataclasses.fields(ResNet) if f.name not in ("parent", "name", "num_classes")
)


def create(model_config, num_classes):
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
    fields = dict(model_config)
    unknown = sorted(set(fields) - set(FIELDS))
    if unknown:
        raise UserError(
            f"config.model has no field {unknown[0]!r}; its fields: {', '.join(FIELDS)}."
        )
    model = ResNet(num_classes=num_classes, **fields)
    _validate(model)
    return model


def check(model_config):
    """Raises UserError for fields that describe no network."""
    create(model_config, num_classes=1)


def _validate(model):
    for field in dataclasses.fields(ResNet):
        value = getattr(model, field.name)
        if field.name in (*FIELDS, "num_classes"):
            _check_type(field, value)
    for name, choices in CHOICES.items():
        value = getattr(model, name)
        if value not in choices:
            raise UserError(
                f"model.{name}={value!r}: expected one of {', '.join(map(repr, choices))}."
            )
    if model.num_classes < 1:
        raise UserError(f"num_classes={model.num_classes}: a head needs at least 1 class.")
    if not 1 <= model.width <= MAX_WIDTH:
        raise UserError(f"model.width={model.width}: expected 1 … {MAX_WIDTH} channels.")
    architecture(model.stem, model.depth)
    _validate_combination(model)


def _check_type(field, value):
    expected = field.type
    numeric = expected is float and isinstance(value, int) and not isinstance(value, bool)
    if type(value) is not expected and not numeric:
        raise UserError(
            f"model.{field.name}={value!r}: expected a {expected.__name__}, "
            f"got a {type(value).__name__}."
        )
    if expected is float and not math.isfinite(value):
        raise UserError(f"model.{field.name}={value}: expected a finite number.")


def _validate_combination(model):
    if model.preactivation and model.variant != "none":
        raise UserError(
            f"model.variant={model.variant!r} with model.preactivation=True: the variants are "
            "alternatives to pre-activation; set one of the two."
        )
    if model.zero_init_residual and not model.residual:
        raise UserError(
            "model.zero_init_residual=True with model.residual=False: a plain network whose last "
            "BN scales are zero outputs zeros; set model.zero_init_residual=False."
        )
    if model.zero_init_residual and (model.preactivation or model.variant == "bn_after_addition"):
        raise UserError(
            "model.zero_init_residual=True needs a branch that ends in BN: "
            "set it to False with pre-activation or 'bn_after_addition'."
        )
    if not model.residual and model.variant in (
        "exclusive_gating",
        "shortcut_gating",
        "dropout_shortcut",
    ):
        raise UserError(
            f"model.variant={model.variant!r} changes the shortcut, "
            "and model.residual=False has none."
        )
    if model.output_stride != 32 and model.stem != "imagenet":
        raise UserError(
            f"model.output_stride={model.output_stride}: expected 32, since only "
            "model.stem='imagenet' can be dilated."
        )
    if model.space_to_depth and model.stem != "imagenet":
        raise UserError(
            "model.space_to_depth=True: only the 7×7/2 convolution of model.stem='imagenet' can "
            "be computed over blocks of pixels; set it to False."
        )
    if model.scan_blocks and model.variant == "dropout_shortcut":
        raise UserError(
            "model.variant='dropout_shortcut' cannot run with model.scan_blocks=True; "
            "set model.scan_blocks=False."
        )
