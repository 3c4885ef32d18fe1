"""The one place that refuses a config: before any data are opened and anything is compiled."""

import itertools
import logging

from ml_collections import ConfigDict

from configs import base
from configs.fields import FIELDS
from data.facts import tested_size
from errors import UserError
from run import determinism
from training import task

LOG = logging.getLogger("residual")
SMALL_IMAGE = 64  # pixels; up to here an ImageNet stem leaves the blocks too little to see


def check(config: ConfigDict, devices: int) -> None:
    """Raises UserError for a field that cannot work, whatever the data are.

    Args:
      config: complete (`configs.base`).
      devices: number of devices that share a batch.
    """
    base.check_types(config)
    values = base.flatten(config)
    for name, (_, _, allowed) in FIELDS.items():
        if allowed is not None and values[name] not in allowed:
            listed = ", ".join(map(repr, allowed)) if isinstance(allowed, tuple) else allowed
            one_of = "one of " if isinstance(allowed, tuple) else ""
            raise UserError(f"{name}={values[name]!r}: expected {one_of}{listed}.")
    task.check(config)
    determinism.check(config.deterministic)
    _check_schedule(config)
    _check_augmentation(config.augment, config.data)
    if config.batch_size % config.augment.repeats:
        raise UserError(
            f"augment.repeats={config.augment.repeats}: expected a divisor of batch_size="
            f"{config.batch_size}, so that each image has as many copies."
        )
    _check_data(config)
    check_batch_size("batch_size", config.batch_size, devices, config.optim.accumulate_steps)
    _check_groups(config, config.batch_size // devices // config.optim.accumulate_steps)
    if (config.augment.mixup or config.augment.cutmix) and config.batch_size // devices % 2:
        raise UserError(
            f"batch_size={config.batch_size} gives each of {devices} device(s) an odd number of "
            "images, and mixup and cutmix pair neighbours; choose an even multiple of the devices."
        )


def _check_schedule(config):
    optim = config.optim
    boundaries = (0, *optim.boundaries)
    if any(a >= b for a, b in itertools.pairwise(boundaries)):
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
    if augment.policy != "none" and data.resident:
        raise UserError(
            f"augment.policy={augment.policy!r}: expected 'none' for device-resident images; its "
            "operations run on the host and need data.resident=False."
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
    whole = config.task == "localization"  # images, of which a crop can be tested
    if e.image_size and not whole and (data.resident or data.normalization == "per_pixel"):
        raise UserError(
            f"eval.image_size={e.image_size}: expected 0, since device-resident images, and those "
            "with a mean of their own at each pixel, are tested at the size they are trained at."
        )
    if e.protocol == "10crop" and not data.resident and tested_size(config) > e.resize:
        raise UserError(
            f"eval.resize={e.resize}: expected at least {tested_size(config)}, the crops' side "
            "(eval.image_size, or data.image_size)."
        )


def _check_groups(config, images):
    """BN's groups must share the `images` that a device takes at once; more than those are all."""
    size = config.model.bn_group_size
    unused = config.model.frozen_bn or config.model.sync_bn
    if size and not unused and images > size and images % size:
        divisor = max(n for n in range(1, size + 1) if images % n == 0)
        raise UserError(
            f"model.bn_group_size={size}: batch_size={config.batch_size} gives each device "
            f"{images} images at once, which are no whole number of groups; choose another batch "
            f"size, or groups of e.g. {divisor} images or 0 (all of them)."
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


def warn_of_stem(stem: str, image_shape: tuple[int, int, int]) -> None:
    """Says when `config.model.stem` leaves little of images of `(height, width, channels)`."""
    height, width, _ = image_shape
    if stem != "cifar" and max(height, width) <= SMALL_IMAGE:
        LOG.warning(
            "model.stem=%s divides the sides of images by 4 before the first block, and these have "
            "only %d × %d pixels: accuracy suffers. model.stem=cifar keeps their resolution.",
            *(stem, height, width),
        )


def warn_of_devices(config: ConfigDict, before: int | None, now: int) -> None:
    """BN of each device's own images makes the number of devices a part of the training.

    Args:
      config: of the run.
      before: devices that it was trained on so far; None for a new run.
      now: devices that it goes on with.
    """
    if before is None or config.model.sync_bn or config.model.frozen_bn:
        return

    def normalized_together(devices):
        at_once = config.batch_size // devices // config.optim.accumulate_steps
        return min(at_once, config.model.bn_group_size or at_once)

    if normalized_together(before) != normalized_together(now):
        LOG.warning(
            "This run was trained on %d device(s) and goes on with %d: BN now takes its statistics "
            "over %d images instead of %d, and the result will differ. model.sync_bn=True, from "
            "the start of a run, makes it independent of the number of devices.",
            *(before, now, normalized_together(now), normalized_together(before)),
        )
