"""Every field of a config: the paper's value (section 3.4), what it means, what it may be.

A recipe changes values, `--help` prints this table, and `training.check` holds every config against
it; nothing else knows a default or a range. The fields of the network are checked in `models`,
which is used without configs, too.
"""

import dataclasses
import math
from typing import Any, NamedTuple


@dataclasses.dataclass(frozen=True)
class Range:
    """Smallest and largest value, both allowed."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        upper = {math.inf: "", _BELOW_ONE: ", < 1"}.get(self.high, f", ≤ {self.high:,}")
        return f"a number ≥ {self.low}{upper}"


class Field(NamedTuple):
    """One field.

    Attributes:
      default: the value in the paper's recipe for ImageNet; its type is the field's.
      help: one line.
      allowed: a `Range`, or a tuple of choices; None where any value of the type may be tried.
    """

    default: Any
    help: str
    allowed: Range | tuple[str, ...] | None = None


IMAGENET_TRAIN_IMAGES = 1_281_167
IMAGENET_STEPS_PER_EPOCH = IMAGENET_TRAIN_IMAGES / 256
_BELOW_ONE = math.nextafter(1, 0)
_COUNT = Range(1, 2**31 - 1)  # the devices count in 32 bits
_FRACTION = Range(0, _BELOW_ONE)
_POSITIVE = Range(0, math.inf)

FIELDS = {
    "dataset": Field(
        "tfds:imagenet2012",
        "digits, mnist_5k, cifar10, cifar100, fashion_mnist, mnist, tfds:NAME or folder:PATH; with "
        "objects scenes, coco:FOLDER, voc:FOLDER or tfds:NAME",
    ),
    "task": Field(
        "classification",
        "what is learned",
        ("classification", "detection", "segmentation", "localization"),
    ),
    "data_dir": Field("", "where TFDS keeps prepared data sets ('': TFDS's default)"),
    # JAX would take the lower half of a larger seed.
    "seed": Field(0, "of initialisation, order and augmentation", Range(0, 2**32 - 1)),
    "batch_size": Field(256, "images per step over all devices", _COUNT),
    "num_steps": Field(600_000, "length of the run in steps", _COUNT),
    "steps_per_dispatch": Field(1, "steps in one dispatch (device-resident data only)", _COUNT),
    "log_every": Field(100, "steps between training lines in metrics.jsonl", _COUNT),
    "eval_every": Field(5_000, "steps between validation passes", _COUNT),
    "checkpoint_every": Field(1_000, "steps between checkpoints", _COUNT),
    "keep_checkpoints": Field(3, "newest checkpoints kept, and the best one besides", _COUNT),
    "deterministic": Field(
        False,
        "GPU: only kernels whose sums have a fixed order; slower, by how much is not measured",
    ),
    "tensorboard": Field(True, "write TensorBoard events"),
    "init_from": Field("", "weight file to start from; brings its stride, pooling, normalisation"),
    "replace_head": Field(False, "allow a new head when init_from has other classes"),
    "model.depth": Field(50, "18, 34, 50, 101, 152, 200, or for the cifar stem 6n+2 or 9n+2"),
    "model.block": Field(
        "", "basic or bottleneck, where both have the depth ('': the depth tells)"
    ),
    "model.residual": Field(True, "False: the plain twin without shortcuts"),
    "model.shortcut": Field(
        "B", "A (zero-pad), B (project where shapes change), C (project), D (B behind a mean pool)"
    ),
    "model.stem": Field("imagenet", "imagenet (7×7/2 and max pool), deep (three 3×3), cifar (3×3)"),
    "model.stem_pool": Field("padded", "padded, or unpadded for the authors' Caffe weights"),
    "model.space_to_depth": Field(False, "compute the 7×7/2 stem as 4×4/1 on 12 channels"),
    "model.width": Field(64, "channels of the first stage"),
    "model.width_per_group": Field(64, "64ths of the width in a group of a bottleneck's 3×3"),
    "model.groups": Field(1, "groups of a bottleneck's 3×3; ResNeXt-50 32×4d: 32 groups of 4"),
    "model.preactivation": Field(False, "BN-ReLU-conv blocks (Identity Mappings)"),
    "model.variant": Field("none", "none, or a rejected design of Identity Mappings"),
    "model.gate_bias": Field(0.0, "initial bias of the gating variants"),
    "model.downsample_in": Field("1x1", "where a bottleneck strides: 1x1 (paper) or 3x3 (v1.5)"),
    "model.zero_init_residual": Field(False, "last BN scale of each branch starts at zero"),
    "model.shortcut_scale": Field(1.0, "factor on the shortcut"),
    "model.residual_scale": Field(1.0, "factor on the residual branch"),
    "model.output_stride": Field(32, "8, 16 or 32: dilate instead of striding beyond it"),
    "model.sync_bn": Field(False, "BN statistics over all devices instead of per device or group"),
    "model.bn_group_size": Field(
        0, "BN statistics over groups of that many images of a device (0, or more than it has: all)"
    ),
    "model.frozen_bn": Field(False, "normalise with the running averages in training too"),
    "model.dtype": Field("float32", "of the computation, or bfloat16; parameters stay float32"),
    "model.remat": Field("none", "none, block or segments: recompute activations, save memory"),
    "model.scan_blocks": Field(False, "run equal blocks as one loop: compile time flat in depth"),
    "optim.learning_rate": Field(0.1, "peak learning rate", _POSITIVE),
    "optim.reference_batch": Field(
        0, "scale the rate by batch_size / this (0: do not scale)", Range(0, 2**31 - 1)
    ),
    "optim.schedule": Field(
        "step",
        "after the warm-up; polynomial: the square of the share of steps that is left",
        ("step", "cosine", "polynomial", "constant"),
    ),
    "optim.boundaries": Field(
        (round(30 * IMAGENET_STEPS_PER_EPOCH), round(60 * IMAGENET_STEPS_PER_EPOCH)),
        "steps at which the step schedule decays",
    ),
    "optim.decay_factor": Field(0.1, "of the step schedule"),
    "optim.warmup_steps": Field(0, "steps of warm-up at the start", Range(0, 2**31 - 1)),
    "optim.warmup_form": Field(
        "linear",
        "of warmup_steps: from zero, or constant at warmup_learning_rate (Identity Mappings: 400)",
        ("linear", "constant"),
    ),
    "optim.warmup_until_error": Field(
        0.0,
        "stay at warmup_learning_rate until the training error is below this (0: off)",
        _FRACTION,
    ),
    "optim.warmup_learning_rate": Field(
        0.01, "rate of a warm-up that is constant or until an error (110 layers: error < 0.8)"
    ),
    "optim.name": Field("sgd", "the optimiser", ("sgd", "lars", "lamb", "adamw")),
    "optim.momentum": Field(0.9, "of SGD and LARS, β1 of LAMB and AdamW", _FRACTION),
    "optim.momentum_form": Field(
        "paper",
        "SGD: paper: v = m·v + lr·g; torch: rate applied after the velocity",
        ("paper", "torch"),
    ),
    "optim.nesterov": Field(False, "Nesterov momentum (SGD, LARS)"),
    "optim.beta2": Field(0.999, "of LAMB and AdamW", _FRACTION),
    "optim.epsilon": Field(1e-8, "of LAMB and AdamW, beside the root", _POSITIVE),
    "optim.trust_coefficient": Field(1e-3, "of LARS", _POSITIVE),
    "optim.weight_decay": Field(1e-4, "on convolution and fully connected weights only", _POSITIVE),
    "optim.loss": Field(
        "softmax", "or bce: one binary cross entropy per class, averaged", ("softmax", "bce")
    ),
    "optim.bce_threshold": Field(
        0.0, "bce: targets above this become 1, others 0 (0: soft targets)", _FRACTION
    ),
    "optim.label_smoothing": Field(0.0, "probability mass spread over the classes", _FRACTION),
    "optim.clip_norm": Field(0.0, "clip the global gradient norm (0: off)", _POSITIVE),
    "optim.accumulate_steps": Field(1, "split the batch into this many parts in turn", _COUNT),
    "optim.ema_decay": Field(0.0, "average the weights for evaluation (0: off)", _FRACTION),
    "optim.train_only": Field("all", "all, or head: a linear probe", ("all", "head")),
    "optim.on_nonfinite": Field(
        "stop", "or skip the update and count it, when a gradient is NaN or Inf", ("stop", "skip")
    ),
    "augment.kind": Field(
        "scale_jitter",
        "how training images are cut; scale_jitter is the paper's",
        ("none", "pad_crop_flip", "scale_jitter", "random_resized_crop"),
    ),
    "augment.pad": Field(4, "pixels of padding before the random crop", Range(0, 2**10)),
    "augment.flip": Field(True, "mirror half of the images"),
    "augment.resize_min": Field(256, "scale_jitter: smallest shorter side"),
    "augment.resize_max": Field(480, "scale_jitter: largest shorter side"),
    "augment.area": Field((0.08, 1.0), "random_resized_crop: range of the share of the image"),
    "augment.aspect": Field((3 / 4, 4 / 3), "random_resized_crop: range of width / height"),
    "augment.pca_noise": Field(0.1, "AlexNet's colour noise: deviation (0: off)", _POSITIVE),
    "augment.policy": Field(
        "none",
        "further operations on the host (streamed data only)",
        ("none", "trivial_augment", "rand_augment"),
    ),
    "augment.magnitude": Field(6.0, "of rand_augment", Range(0, 10)),
    "augment.repeats": Field(1, "copies of an image in a batch, each augmented anew", _COUNT),
    "augment.mixup": Field(0.0, "mixup alpha (0: off)", _POSITIVE),
    "augment.cutmix": Field(0.0, "CutMix alpha (0: off)", _POSITIVE),
    "augment.erase": Field(0.0, "probability of random erasing", Range(0, 1)),
    "data.resident": Field(False, "keep the data set on the device (small sets)"),
    "data.image_size": Field(
        224,
        "side in pixels: of the crops of streamed data; larger resident images are averaged to it; "
        "to which rcnn warps regions",
        Range(1, 2**13),
    ),
    "data.normalization": Field(
        "imagenet",
        "constants, or statistics of the training set",
        ("imagenet", "caffe", "per_pixel", "per_channel"),
    ),
    "data.train_split": Field("train", "TFDS split to train on"),
    "data.validation_size": Field(
        0, "training images held out for validation (0: none)", Range(0, 2**31 - 1)
    ),
    "data.validation_split": Field("", "split for validation, instead of held-out images"),
    "data.test_split": Field("validation", "TFDS split of the final test"),
    "data.num_threads": Field(0, "decoding threads (0: one per core)", Range(0, 2**10)),
    "data.prefetch": Field(4, "batches prepared ahead", Range(0, 2**16)),
    "data.on_corrupt": Field(
        "error", "name the record and stop, or mask: skip and count it", ("error", "mask")
    ),
    "data.max_corrupt_fraction": Field(
        0.001, "mask: share of a split's records above which the run stops", Range(0, 1)
    ),
    "data.max_pixels": Field(
        2**26,
        "of an image file; larger ones count as corrupt (memory: 10 bytes a pixel and thread)",
        Range(1, 178_956_970),  # above that Pillow refuses
    ),
    "data.on_change": Field(
        "error",
        "or accept: go on with data that have changed since the run began",
        ("error", "accept"),
    ),
    "detection.network": Field(
        "fpn",
        "regions from a feature pyramid or conv4 (the paper's); to segment, fcn or deeplabv3; to "
        "localize, rpn or rcnn",
        ("fpn", "c4", "fcn", "deeplabv3", "rpn", "rcnn"),
    ),
    "detection.width": Field(256, "channels of the pyramid, or of DeepLabV3's layers", _COUNT),
    "detection.hidden": Field(1024, "width of the two hidden layers of the box head", _COUNT),
    "detection.masks": Field(False, "a mask of each object, too (Mask R-CNN)"),
    "detection.context": Field(False, "the whole image counts for each region, too (appendix B)"),
    "detection.anchors": Field(
        (32, 64, 128, 256, 512), "their sides in pixels: one a level, or all on conv4"
    ),
    "detection.ratios": Field((0.5, 1.0, 2.0), "of anchors, each height / width"),
    "detection.anchor_samples": Field(256, "anchors of an image to learn from", _COUNT),
    "detection.region_samples": Field(512, "regions of an image to learn from", _COUNT),
    "detection.candidates": Field(
        (2000, 1000), "of each level, before suppression: in training, in testing"
    ),
    "detection.proposals": Field(
        (2000, 1000), "of an image, with rcnn of one class: in training, in testing"
    ),
    "detection.proposals_from": Field("", "rcnn: workdir of the finished rpn that proposes"),
    "detection.frozen_stages": Field(
        2,
        "of the backbone that stay as they are: the stem, and stages from the first on",
        Range(0, 5),
    ),
    "detection.sides": Field(
        (800,), "shorter side of images; of several, one by chance, in testing the last"
    ),
    "detection.longer": Field(1333, "longest side of images", _COUNT),
    "detection.max_objects": Field(100, "objects of an image that there is room for", _COUNT),
    "eval.batch_size": Field(
        256, "images per evaluation step; grows to a multiple of the devices", _COUNT
    ),
    "eval.image_size": Field(
        0,
        "side of the crops in testing, streamed data (0: data.image_size); to localize, of the one "
        "central crop (0: whole images)",
        Range(0, 2**13),
    ),
    "eval.split": Field("test", "what to test on", ("test", "validation", "train")),
    "eval.protocol": Field("center", "views of an image", ("center", "10crop", "multiscale")),
    "eval.resize": Field(256, "shorter side before center and ten crops", Range(1, 2**15)),
    "eval.scales": Field((224, 256, 384, 480, 640), "shorter sides of the multi-scale protocol"),
    "eval.training_images": Field(
        False, "also test on the training images at the end of a run, not augmented"
    ),
    "eval.precise_bn": Field(False, "recompute BN statistics over training images first"),
    "eval.precise_bn_batches": Field(200, "training batches for precise_bn", _COUNT),
    "eval.store_precise_bn": Field(False, "write the precise statistics into the workdir"),
    "eval.refine_boxes": Field(
        False, "detection: boxes that are found are regions again, and vote (appendix B)"
    ),
    "eval.ensemble": Field((), "further workdirs whose probabilities are averaged in"),
    "eval.classes_from": Field((), "localization: workdirs of classifiers that name the classes"),
}
