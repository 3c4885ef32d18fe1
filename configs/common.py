"""The shared recipes. Every field that exists is spelled out in `base`; nothing hides elsewhere.

A config's argument (what follows the colon in `--config=FILE:ARGUMENT`) is a comma-separated list:
a network (`resnet110`, `plain56`), `goyal` for the modern baseline of the same network, `quick` for
a run of a few steps that only shows that everything works.
"""

import math
import re

from ml_collections import ConfigDict

from errors import UserError

IMAGENET_TRAIN_IMAGES = 1_281_167
IMAGENET_STEPS_PER_EPOCH = IMAGENET_TRAIN_IMAGES / 256


def base():
    """Every field with the value that the paper's ImageNet networks have (section 3.4).

    Keep `configs.fields.HELP` in step: a test compares the two.
    """
    epoch = IMAGENET_STEPS_PER_EPOCH
    return ConfigDict(
        {
            "dataset": "tfds:imagenet2012",
            "data_dir": "",
            "seed": 0,
            "batch_size": 256,
            "num_steps": 600_000,
            "steps_per_dispatch": 1,
            "log_every": 100,
            "eval_every": 5_000,
            "checkpoint_every": 1_000,
            "keep_checkpoints": 3,
            "tensorboard": True,
            "init_from": "",
            "replace_head": False,
            "model": {
                "depth": 50,
                "residual": True,
                "shortcut": "B",
                "stem": "imagenet",
                "stem_pool": "padded",
                "space_to_depth": False,
                "width": 64,
                "preactivation": False,
                "variant": "none",
                "gate_bias": 0.0,
                "downsample_in": "1x1",
                "zero_init_residual": False,
                "shortcut_scale": 1.0,
                "residual_scale": 1.0,
                "output_stride": 32,
                "sync_bn": False,
                "frozen_bn": False,
                "dtype": "float32",
                "remat": "none",
                "scan_blocks": False,
            },
            "optim": {
                "learning_rate": 0.1,
                "reference_batch": 0,
                "schedule": "step",
                "boundaries": (round(30 * epoch), round(60 * epoch)),
                "decay_factor": 0.1,
                "warmup_steps": 0,
                "warmup_until_error": 0.0,
                "warmup_learning_rate": 0.01,
                "momentum": 0.9,
                "momentum_form": "paper",
                "nesterov": False,
                "weight_decay": 1e-4,
                "label_smoothing": 0.0,
                "clip_norm": 0.0,
                "accumulate_steps": 1,
                "ema_decay": 0.0,
                "train_only": "all",
                "on_nonfinite": "stop",
            },
            "augment": {
                "kind": "scale_jitter",
                "pad": 4,
                "flip": True,
                "resize_min": 256,
                "resize_max": 480,
                "area": (0.08, 1.0),
                "aspect": (3 / 4, 4 / 3),
                "pca_noise": 0.1,
                "mixup": 0.0,
                "cutmix": 0.0,
                "erase": 0.0,
            },
            "data": {
                "resident": False,
                "image_size": 224,
                "normalization": "imagenet",
                "train_split": "train",
                "validation_size": 0,
                "validation_split": "",
                "test_split": "validation",
                "num_threads": 0,
                "prefetch": 4,
                "on_corrupt": "error",
                "max_corrupt_fraction": 0.001,
            },
            "eval": {
                "batch_size": 256,
                "split": "test",
                "protocol": "center",
                "resize": 256,
                "scales": (224, 256, 384, 480, 640),
                "precise_bn": False,
                "precise_bn_batches": 200,
                "store_precise_bn": False,
                "ensemble": (),
            },
        }
    )


def _parse(arg, default):
    """'resnet110,goyal' → ('resnet', 110, {'goyal'})."""
    network, options = default, set()
    for token in filter(None, arg.split(",")):
        if re.fullmatch(r"(resnet|plain)\d+", token):
            network = token
        elif token in ("goyal", "quick"):
            options.add(token)
        else:
            raise UserError(
                f"config argument {token!r}: expected a network like 'resnet20' or 'plain56', "
                "'goyal' or 'quick', separated by commas."
            )
    family, depth = re.fullmatch(r"([a-z]+)(\d+)", network).groups()
    return family, int(depth), options


def imagenet(network, arg=""):
    """The paper's ImageNet recipe, or with `goyal` the baseline of Goyal et al. (1706.02677)."""
    if re.search(r"(resnet|plain)\d", arg):
        raise UserError(f"config argument {arg!r}: the file names the network; use another file.")
    family, depth, options = _parse(arg, network)
    config = base()
    config.model.depth = depth
    config.model.residual = family == "resnet"
    if "goyal" in options:
        _goyal(config, steps_per_epoch=IMAGENET_STEPS_PER_EPOCH, epochs=90)
        config.augment.kind = "random_resized_crop"
        config.augment.pca_noise = 0.0
    if "quick" in options:
        _quick(config)
    return config


def cifar(arg="", default="resnet20", train_images=50_000):
    """The paper's CIFAR recipe: 64k steps, option A, per-pixel mean, pad 4 (section 4.2)."""
    family, depth, options = _parse(arg, default)
    config = base()
    config.update(batch_size=128, num_steps=64_000, eval_every=2_000)
    config.model.update(
        depth=depth, residual=family == "resnet", shortcut="A", stem="cifar", width=16
    )
    config.optim.boundaries = (32_000, 48_000)
    if depth >= 110 and family == "resnet":
        config.optim.warmup_until_error = 0.8
    if depth > 110:
        config.model.scan_blocks = True
    config.augment.update(kind="pad_crop_flip", pca_noise=0.0)
    config.data.update(
        resident=True,
        image_size=32,
        normalization="per_pixel",
        validation_size=train_images // 10,
        test_split="test",
    )
    config.eval.update(batch_size=500, scales=(32,))
    if "goyal" in options:
        _goyal(config, steps_per_epoch=train_images / 128, epochs=164)
        config.optim.reference_batch = 128
    if "quick" in options:
        _quick(config)
    return config


def digits(arg="", default="resnet20"):
    """The CIFAR networks on scikit-learn's 8×8 digits: a run of about a minute on two cores.

    898 images want more regularisation than the paper's recipe has; `paper` asks for that one, with
    its schedule scaled to 600 steps.
    """
    tokens = list(filter(None, arg.split(",")))
    config = cifar(",".join(t for t in tokens if t != "paper"), default, train_images=898)
    config.dataset = "digits"
    config.augment.update(pad=1, flip=False)  # a mirrored digit is not that digit
    config.data.update(validation_size=0, image_size=8)
    config.eval.scales = (8,)
    if "quick" in tokens:
        return config
    scale_schedule(config, 600 / config.num_steps)
    config.update(log_every=20, eval_every=100, checkpoint_every=100)
    config.eval.batch_size = 300
    if not {"paper", "goyal"} & set(tokens):
        config.update(batch_size=64, num_steps=1_300)
        config.optim.update(
            schedule="cosine", weight_decay=1e-3, label_smoothing=0.1, ema_decay=0.99
        )
        config.augment.update(kind="random_resized_crop", area=(0.5, 1.0), mixup=0.3)
    return config


def scale_schedule(config, factor):
    """Scales a run's length and with it every boundary and warm-up, in place."""
    config.num_steps = max(1, round(config.num_steps * factor))
    config.optim.boundaries = tuple(max(1, round(b * factor)) for b in config.optim.boundaries)
    config.optim.warmup_steps = round(config.optim.warmup_steps * factor)


def _goyal(config, *, steps_per_epoch, epochs):
    """Goyal et al. 2017, sections 2 and 5.1, on the network that `config` already describes."""
    residual = config.model.residual
    config.model.update(downsample_in="3x3", zero_init_residual=residual)
    config.num_steps = round(epochs * steps_per_epoch)
    config.optim.update(
        nesterov=True,
        momentum_form="torch",
        reference_batch=256,
        warmup_steps=round(5 * steps_per_epoch),
        warmup_until_error=0.0,
        boundaries=tuple(round(epochs * f * steps_per_epoch) for f in (1 / 3, 2 / 3, 8 / 9)),
    )


def _quick(config):
    scale_schedule(config, 20 / config.num_steps)
    config.update(batch_size=16, log_every=5, eval_every=20, checkpoint_every=10)
    config.eval.batch_size = 16


def from_dict(fields):
    """A config from nested dictionaries (JSON): the inverse of `ConfigDict.to_dict`.

    Raises:
      UserError: for a field that does not exist, or a value of another type.
    """
    config = base()
    try:
        config.update_from_flattened_dict(_flatten(fields))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"config: {error}") from error
    check_types(config)
    return config


def check_types(config):
    """Raises UserError unless every value is of the type that it has in `base`, and finite."""
    flat = _flatten(config.to_dict())
    for name, default in _flatten(base().to_dict()).items():
        value, several = flat[name], isinstance(default, tuple)
        kind = type(default) if not several else float if default else str
        for v in value if several and isinstance(value, tuple) else [value]:
            fits = type(v) is kind or (kind is float and type(v) is int)
            if not fits or (kind is float and not math.isfinite(v)):
                raise UserError(
                    f"{name}={value!r}: expected {'values' if several else 'a value'} of type "
                    f"{kind.__name__}, e.g. {default!r}."
                )


def _flatten(fields, prefix=""):
    flat = {}
    for key, value in fields.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = tuple(value) if isinstance(value, list) else value
    return flat
