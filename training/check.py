"""The one place that refuses a config: before any data are opened and anything is compiled."""

import math

from ml_collections import ConfigDict

import models
from configs import base
from errors import UserError

BELOW_ONE = math.nextafter(1, 0)
# Smallest and largest value, both allowed.
STEPS = (1, 2**31 - 1)  # the devices count in 32 bits
RANGES = {
    "seed": (0, 2**32 - 1),  # of a larger one JAX would take the lower half
    "batch_size": STEPS,
    "num_steps": STEPS,
    "steps_per_dispatch": STEPS,
    "log_every": STEPS,
    "eval_every": STEPS,
    "checkpoint_every": STEPS,
    "keep_checkpoints": STEPS,
    "optim.learning_rate": (0, math.inf),
    "optim.reference_batch": (0, 2**31 - 1),
    "optim.momentum": (0, BELOW_ONE),
    "optim.weight_decay": (0, math.inf),
    "optim.label_smoothing": (0, BELOW_ONE),
    "optim.clip_norm": (0, math.inf),
    "optim.accumulate_steps": STEPS,
    "optim.ema_decay": (0, BELOW_ONE),
    "optim.warmup_until_error": (0, BELOW_ONE),
    "augment.pad": (0, 2**10),
    "augment.mixup": (0, math.inf),
    "augment.cutmix": (0, math.inf),
    "augment.erase": (0, 1),
    "augment.pca_noise": (0, math.inf),
    "data.image_size": (1, 2**13),
    "data.validation_size": (0, 2**31 - 1),
    "data.num_threads": (0, 2**10),
    "data.prefetch": (0, 2**16),
    "data.max_corrupt_fraction": (0, 1),
    "eval.batch_size": STEPS,
    "eval.resize": (1, 2**15),
    "eval.precise_bn_batches": STEPS,
}
CHOICES = {
    "optim.schedule": ("step", "cosine", "constant"),
    "optim.momentum_form": ("paper", "torch"),
    "optim.train_only": ("all", "head"),
    "optim.on_nonfinite": ("stop", "skip"),
    "augment.kind": ("none", "pad_crop_flip", "random_resized_crop", "scale_jitter"),
    "data.normalization": ("imagenet", "caffe", "per_pixel", "per_channel"),
    "data.on_corrupt": ("error", "mask"),
    "eval.split": ("test", "validation", "train"),
    "eval.protocol": ("center", "10crop", "multiscale"),
}


def check(config: ConfigDict, devices: int) -> None:
    """Raises UserError for a field that cannot work, whatever the data are.

    Args:
      config: complete (`configs.base`).
      devices: number of devices that share a batch.
    """
    base.check_types(config)
    models.check(config.model)
    fields = base.flatten(config)
    for name, (low, high) in RANGES.items():
        if not low <= fields[name] <= high:
            upper = {math.inf: "", BELOW_ONE: " and < 1"}.get(high, f" and ≤ {high}")
            raise UserError(f"{name}={fields[name]}: expected a number ≥ {low}{upper}.")
    for name, choices in CHOICES.items():
        if fields[name] not in choices:
            expected = ", ".join(map(repr, choices))
            raise UserError(f"{name}={fields[name]!r}: expected one of {expected}.")
    _check_schedule(config)
    _check_augmentation(config.augment, config.data)
    _check_data(config)
    check_batch_size("batch_size", config.batch_size, devices, config.optim.accumulate_steps)
    check_batch_size("eval.batch_size", config.eval.batch_size, devices)
    if (config.augment.mixup or config.augment.cutmix) and config.batch_size // devices % 2:
        raise UserError(
            f"batch_size={config.batch_size} gives each of {devices} device(s) an odd number of "
            "images, and mixup and cutmix pair neighbours; choose an even multiple of the devices."
        )


def _check_schedule(config):
    optim = config.optim
    boundaries = (0, *optim.boundaries)
    if any(a >= b for a, b in zip(boundaries, boundaries[1:], strict=False)):
        raise UserError(f"optim.boundaries={optim.boundaries}: expected increasing steps > 0.")
    if not 0 <= optim.warmup_steps <= config.num_steps:
        raise UserError(
            f"optim.warmup_steps={optim.warmup_steps}: expected 0 … num_steps={config.num_steps}."
        )


def _check_augmentation(augment, data):
    for name in ("area", "aspect"):
        low_and_high = augment[name]
        if len(low_and_high) != 2 or not 0 < low_and_high[0] <= low_and_high[1]:
            raise UserError(
                f"augment.{name}={low_and_high}: expected two numbers above 0, the smallest and "
                "the largest."
            )
    if augment.kind == "random_resized_crop" and augment.area[1] > 1 and not data.resident:
        raise UserError(
            f"augment.area={augment.area}: expected shares of the image in (0, 1]; only "
            "data.resident=True can shrink images."
        )
    if augment.kind != "scale_jitter":
        return
    if data.resident:
        raise UserError(
            "augment.kind='scale_jitter': device-resident images take one of 'none', "
            "'pad_crop_flip', 'random_resized_crop'; this kind needs data.resident=False."
        )
    if not data.image_size <= augment.resize_min <= augment.resize_max:
        raise UserError(
            f"augment.resize_min={augment.resize_min}, augment.resize_max={augment.resize_max}, "
            f"data.image_size={data.image_size}: expected image_size ≤ resize_min ≤ resize_max."
        )


def _check_data(config):
    data, e = config.data, config.eval
    if data.validation_split and data.validation_size:
        raise UserError(
            f"data.validation_split={data.validation_split!r} and data.validation_size="
            f"{data.validation_size}: set one of the two."
        )
    if config.steps_per_dispatch > 1 and not data.resident:
        raise UserError(
            f"steps_per_dispatch={config.steps_per_dispatch}: only device-resident data "
            "(data.resident=True) can run several steps in one dispatch."
        )
    if e.protocol == "10crop" and not data.resident and data.image_size > e.resize:
        raise UserError(
            f"eval.resize={e.resize}: expected at least data.image_size={data.image_size}, "
            "the crops' side."
        )


def check_batch_size(name: str, size: int, devices: int, parts: int = 1) -> None:
    """Raises UserError unless `size` images divide evenly over devices and accumulation parts."""
    whole = devices * parts
    if size < 1 or size % whole:
        lower = size // whole * whole
        expected = f"{lower} or {lower + whole}" if lower > 0 else f"{whole}"
        raise UserError(
            f"{name}={size} cannot be divided over {devices} device(s)"
            + (f" × {parts} accumulation steps" if parts > 1 else "")
            + f"; the nearest sizes are {expected}."
        )
