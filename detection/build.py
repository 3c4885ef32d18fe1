"""From a config to a detector or segmenter: what is refused, and the network."""

import itertools
import math
from typing import Any

from ml_collections import ConfigDict

import models
from data.facts import Facts
from detection import per_class
from detection.anchors import FPN_SIZES, RATIOS
from detection.c4 import C4
from detection.faster_rcnn import FasterRCNN
from detection.images import MULTIPLE
from detection.per_class import PerClassRPN
from detection.rcnn import RCNN
from detection.rpn import Limits
from detection.sampling import ANCHORS, REGIONS
from detection.scenes import KINDS, SIDE
from detection.segmentation import Segmenter
from errors import UserError

CANONICAL = 7  # smallest anchors: side of a region that is pooled from stride 16; 224 of 32 pixels
# What only classification does, and the value that switches it off.
OFF: dict[str, Any] = {
    "augment.kind": "none",
    "augment.policy": "none",
    "augment.pca_noise": 0.0,
    "augment.mixup": 0.0,
    "augment.cutmix": 0.0,
    "augment.erase": 0.0,
    "augment.repeats": 1,
    "optim.loss": "softmax",
    "optim.label_smoothing": 0.0,
    "optim.train_only": "all",
    "optim.warmup_until_error": 0.0,
    "replace_head": False,
    "data.normalization": "imagenet",
    "eval.precise_bn": False,
}
# What only detectors do; what they and localization do; what only the latter does.
OF_DETECTORS: dict[str, Any] = {
    "eval.refine_boxes": False,
    "detection.context": False,
    "detection.ratios": RATIOS,
}
OF_BOTH: dict[str, Any] = {"eval.protocol": "center", "eval.ensemble": ()}
OF_LOCALIZATION: dict[str, Any] = {"eval.classes_from": (), "detection.proposals_from": ""}


def check_detection(config: ConfigDict) -> None:
    """Raises UserError for a field with which no detector can work."""
    _check_shared(config, ("fpn", "c4"))
    _check_scales(config)
    if config.model.stem == "cifar" or config.model.output_stride != MULTIPLE:
        raise UserError(
            f"model.stem={config.model.stem!r}, model.output_stride={config.model.output_stride}: "
            f"expected stem imagenet or deep and output_stride {MULTIPLE}, since a detector needs "
            f"stages of strides 4 to {MULTIPLE}."
        )
    d = config.detection
    _limits(d)
    if not d.ratios or min(d.ratios) <= 0:
        raise UserError(
            f"detection.ratios={d.ratios}: expected numbers above 0, each the height of anchors by "
            "their width."
        )
    _check_network(config)


def check_localization(config: ConfigDict) -> None:
    """Raises UserError for a field with which no localizer can work."""
    _check_shared(config, ("rpn", "rcnn"))
    _check_scales(config)
    _limits(config.detection)
    d, stem, side = config.detection, config.model.stem, config.data.image_size
    if config.dataset.partition(":")[0] not in ("single_scenes", "folder"):
        raise UserError(
            f"dataset={config.dataset}: expected single_scenes or folder:PATH with ILSVRC's boxes, "
            "with task=localization: images of one class."
        )
    if (d.network == "rcnn") != bool(d.proposals_from):
        raise UserError(
            f"detection.proposals_from={d.proposals_from!r}: expected the workdir of a finished "
            "per-class RPN with detection.network=rcnn, and none with rpn."
        )
    if config.eval.image_size > d.sides[-1]:
        raise UserError(
            f"eval.image_size={config.eval.image_size}: expected at most {d.sides[-1]}, the "
            "shorter side of tested images (detection.sides), or 0 for whole images."
        )
    if stem == "cifar" or d.masks or not d.anchors or min(d.anchors) < 1:
        raise UserError(
            f"model.stem={stem!r}, detection.masks={d.masks}, detection.anchors={d.anchors}: "
            "expected stem imagenet or deep, no masks, and sides from 1 pixel on with "
            "task=localization."
        )
    low, high = config.augment.resize_min, config.augment.resize_max
    if d.network == "rpn" and not (side <= SIDE if config.data.resident else side <= low <= high):
        raise UserError(
            f"data.image_size={side}, augment.resize_min={low}, augment.resize_max={high}: "
            f"expected image_size ≤ resize_min ≤ resize_max, or of scenes ≤ {SIDE}: crops are "
            "taken from images of such sides."
        )


def check_segmentation(config: ConfigDict) -> None:
    """Raises UserError for a field with which no segmenter can work."""
    _check_shared(config, ("fcn", "deeplabv3"))
    if config.model.stem == "cifar":
        raise UserError("model.stem='cifar': expected imagenet or deep with task=segmentation.")


def _check_shared(config, networks):
    d = config.detection
    models.check(config.model)
    resident = config.dataset.partition(":")[0] in KINDS
    if config.data.resident != resident:
        raise UserError(
            f"data.resident={config.data.resident}: expected {resident} with dataset="
            f"{config.dataset}: scenes lie on the devices, other images are streamed."
        )
    if d.network not in networks:
        raise UserError(
            f"detection.network={d.network!r}: expected one of {', '.join(networks)} with "
            f"task={config.task}."
        )
    if not d.sides or not all(1 <= side == int(side) <= d.longer for side in d.sides):
        raise UserError(
            f"detection.sides={d.sides}: expected whole numbers from 1 to detection.longer="
            f"{d.longer}."
        )


def _check_scales(config):
    e = config.eval
    if e.protocol == "10crop":
        raise UserError(
            f"eval.protocol='10crop': expected 'center' or 'multiscale' with task={config.task}."
        )
    if e.protocol == "multiscale" and not (e.scales and all(s == int(s) >= 1 for s in e.scales)):
        raise UserError(
            f"eval.scales={e.scales}: expected whole numbers from 1 on, the images' shorter sides."
        )


def _check_network(config):
    d, levels = config.detection, len(FPN_SIZES)
    if d.network == "c4":
        if not d.anchors or tuple(d.anchors) != FPN_SIZES[-len(d.anchors) :]:
            raise UserError(
                f"detection.anchors={d.anchors}: with detection.network=c4 expected the last of "
                f"{FPN_SIZES}."
            )
        if d.masks or not config.model.frozen_bn:
            raise UserError(
                f"detection.network=c4 with detection.masks={d.masks}, model.frozen_bn="
                f"{config.model.frozen_bn}: expected no masks, and frozen_bn=True (appendix A)."
            )
        return
    increasing = all(a <= b for a, b in itertools.pairwise((1, *d.anchors)))
    if len(d.anchors) != levels or not increasing:
        raise UserError(
            f"detection.anchors={d.anchors}: expected {levels} sides from 1 pixel on, a level's "
            "no smaller than those of the level before."
        )


def detector(config: ConfigDict, facts: Facts) -> FasterRCNN:
    """The detector of a config for the classes of the data, the background among them."""
    d = config.detection
    in_training, in_testing = _limits(d)
    shared: dict[str, Any] = {
        "backbone": _backbone(config),
        "num_classes": facts.num_classes,
        "limits": in_testing,
        "training_limits": in_training,
        "anchors": ANCHORS._replace(number=d.anchor_samples),
        "regions": REGIONS._replace(number=d.region_samples),
        "context": d.context,
        "ratios": tuple(map(float, d.ratios)),
    }
    if d.network == "c4":
        return C4(**shared, sizes=len(d.anchors))
    return FasterRCNN(
        **shared,
        width=d.width,
        hidden=d.hidden,
        mask_convs=4 * d.masks,
        anchor_sizes=tuple((float(side),) for side in d.anchors),
        canonical_size=math.ceil(CANONICAL * d.anchors[0]),
    )


def localizer(config: ConfigDict, facts: Facts) -> PerClassRPN | RCNN:
    """The per-class RPN of a config for the classes of the data, or the R-CNN, which has one."""
    d = config.detection
    sides = tuple(map(float, d.anchors))
    sampling = per_class.ANCHORS._replace(number=d.anchor_samples)
    network = PerClassRPN(_backbone(config), facts.num_classes, sides, sampling)
    if d.network == "rpn":
        return network
    in_training, in_testing = _limits(d)
    regions = REGIONS._replace(number=d.region_samples)
    side = config.data.image_size
    return RCNN(network, _backbone(config), side, in_testing, in_training, regions)


def segmenter(config: ConfigDict, facts: Facts) -> Segmenter:
    """The segmenter of a config for the classes of the data, the background among them.

    It has an auxiliary head, as torchvision's.
    """
    atrous = config.detection.network == "deeplabv3"
    width = config.detection.width
    return Segmenter(_backbone(config), facts.num_classes, atrous, width, auxiliary=True)


def _limits(detection):
    """Of proposals in training and in testing."""
    for name in ("candidates", "proposals"):
        if len(detection[name]) != 2 or not all(n == int(n) >= 1 for n in detection[name]):
            raise UserError(
                f"detection.{name}={detection[name]}: expected two whole numbers above 0, in "
                "training and in testing."
            )
    return [
        Limits(int(n), int(after))
        for n, after in zip(detection.candidates, detection.proposals, strict=True)
    ]


def _backbone(config):
    return models.create(config.model, 1).clone(num_classes=0)
