"""Every field of a config, with the value that the paper's ImageNet networks have (section 3.4)."""

import json
import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from errors import UserError

IMAGENET_TRAIN_IMAGES = 1_281_167
IMAGENET_STEPS_PER_EPOCH = IMAGENET_TRAIN_IMAGES / 256


def base() -> ConfigDict:
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


def from_dict(fields: Mapping[str, Any]) -> ConfigDict:
    """A complete config from nested dictionaries (JSON); fields that they lack have the defaults.

    Raises:
      UserError: for a field that does not exist, or a value of another type.
    """
    config, flat = base(), flatten(fields)
    if unknown := sorted(set(flat) - set(flatten(config))):
        raise UserError(f"config: there is no field {', '.join(unknown)}; --help lists them all.")
    try:
        config.update_from_flattened_dict(
            {k: tuple(v) if isinstance(v, list) else v for k, v in flat.items()}
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"config: {error}") from error
    check_types(config)
    return config


def check_types(config: ConfigDict) -> None:
    """Raises UserError unless every value is of the type that it has in `base`, and finite."""
    flat = flatten(config)
    for name, default in flatten(base()).items():
        value, several = flat[name], isinstance(default, tuple)
        kind = type(default) if not several else float if default else str
        for v in value if several and isinstance(value, tuple) else [value]:
            fits = type(v) is kind or (kind is float and type(v) is int)
            if not fits or (kind is float and not math.isfinite(v)):
                raise UserError(
                    f"{name}={value!r}: expected {'values' if several else 'a value'} of type "
                    f"{kind.__name__}, e.g. {default!r}."
                )


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """A config as JSON has it: nested dictionaries, lists for tuples."""
    return json.loads(config.to_json_best_effort())


def flatten(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, by dotted name: `{'model.depth': 50, …}`."""
    flat = {}
    for key, value in fields.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
