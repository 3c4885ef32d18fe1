"""Hugging Face's ResNets: their folders, their names of arrays, and what their JSON files say.

`layer2.0.conv1` of torchvision is `resnet.encoder.stages.1.layers.0.layer.0.convolution` there, and
everything else is the same. `config.json` has what the arrays do not say: where a bottleneck
strides, and the names of the classes; `preprocessor_config.json` has the images' normalisation.
timm's folders have a `config.json` of their own form, and torchvision's names.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from errors import UserError
from models import FIELDS
from weights.files import readable

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
INDEX = ".index.json"
STEM = re.compile(r"(?:resnet\.)?embedder\.embedder\.(convolution|normalization)\.(\w+)")
BLOCK = re.compile(
    r"(?:resnet\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\."
    r"(?:layer\.(\d+)|shortcut)\.(convolution|normalization)\.(\w+)"
)
LAYERS = {"convolution": "conv", "normalization": "bn"}
# What a config.json may say of a network of ours.
EXPECTED = {
    "model_type": "resnet",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
}
# Fields of config.model that must have their default for there to be such a network.
FIXED: tuple[str, ...] = ("stem", "stem_pool", "residual", "shortcut", "preactivation", "variant")
FIXED += ("shortcut_scale", "residual_scale", "output_stride", "groups", "width_per_group")


def weight_file(folder: Path, suffixes: Sequence[str]) -> Path:
    """The file with the weights of a folder: of Hugging Face's names, or the only of `suffixes`.

    Raises:
      UserError: there is none, or several.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes and p.is_file())
    if len(found) == 1:
        return found[0]
    there = f"it has {', '.join(p.name for p in found)}" if found else "it has none"
    raise UserError(
        f"{folder}: a folder must hold {WEIGHTS[0]}, {WEIGHTS[2]}, their {INDEX}, or one weight "
        f"file of another name; {there}. Give the file itself."
    )


def read_shards(
    index: Path, read: Callable[[Path], tuple[Mapping[str, Any], Any]]
) -> dict[str, np.ndarray]:
    """Reads the files of an `….index.json` as one; `read` gives the arrays of one, and more.

    Raises:
      UserError: the index cannot be read, or a file of it is missing.
    """
    names = _json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
        raise UserError(f"{index}: has no 'weight_map' from names of arrays to names of files.")
    arrays: dict[str, np.ndarray] = {}
    for name in dict.fromkeys(names.values()):
        shard = index.parent / name
        if Path(name).name != name or not shard.is_file():
            raise UserError(f"{index}: names the file {name!r}, which is not beside it.")
        arrays |= read(shard)[0]
    if missing := names.keys() - arrays.keys():
        raise UserError(f"{index}: {len(missing)} arrays are in no file, e.g. {min(missing)}.")
    return arrays


def torchvision_name(name: str) -> str:
    """'resnet.encoder.stages.1.layers.0.layer.0.convolution.weight' → 'layer2.0.conv1.weight'.

    Names that are not Hugging Face's stay what they are.
    """
    if match := STEM.fullmatch(name):
        return f"{LAYERS[match[1]]}1.{match[2]}"
    if match := BLOCK.fullmatch(name):
        stage, block, i, kind, variable = match.groups()
        layer = f"{LAYERS[kind]}{int(i) + 1}" if i else f"downsample.{list(LAYERS).index(kind)}"
        return f"layer{int(stage) + 1}.{block}.{layer}.{variable}"
    return re.sub(r"^classifier\.1\.", "fc.", name)


def huggingface_name(name: str) -> str:
    """The inverse of `torchvision_name`, for names of a residual network of four stages."""
    kinds = {theirs: ours for ours, theirs in LAYERS.items()}
    layer, _, variable = name.rpartition(".")
    if match := re.fullmatch(r"(?:layer(\d)\.(\d+)\.)?(conv|bn)(\d)", layer):
        stage, block, kind, i = match.groups()
        if stage is None:
            return f"resnet.embedder.embedder.{kinds[kind]}.{variable}"
        where = f"layer.{int(i) - 1}"
    elif match := re.fullmatch(r"layer(\d)\.(\d+)\.downsample\.(\d)", layer):
        stage, block, i = match.groups()
        kind, where = ("conv", "bn")[int(i)], "shortcut"
    else:
        return re.sub(r"^fc\.", "classifier.1.", name)
    return f"resnet.encoder.stages.{int(stage) - 1}.layers.{block}.{where}.{kinds[kind]}.{variable}"


def says(path: Path) -> dict[str, Any]:
    """What the JSON files beside a weight file say of its network.

    Returns:
      dict with some of `downsample_in`, `label_names`, `mean` and `std` (pixel values), `resize`,
      `image_size`, `architecture` (timm's name); empty where there are none of such files.

    Raises:
      UserError: a file is damaged, or describes another network.
    """
    folder = path.parent
    config = _json(folder / "config.json") if (folder / "config.json").is_file() else {}
    found: dict[str, Any] = {}
    if isinstance(config.get("pretrained_cfg"), dict):
        with readable(folder / "config.json", "a config.json"):
            found = _timm_says(config)
    elif "model_type" in config:
        for field, expected in EXPECTED.items():
            if config.get(field, expected) != expected:
                raise UserError(
                    f"{folder / 'config.json'}: {field}={config[field]!r}; the networks here have "
                    f"{field}={expected!r}. Choose a folder of such a network."
                )
        in_1x1 = config.get("downsample_in_bottleneck", False)
        found["downsample_in"] = "1x1" if in_1x1 else "3x3"
        with readable(folder / "config.json", "a config.json"):
            labels = {int(k): str(v) for k, v in (config.get("id2label") or {}).items()}
        if sorted(labels) == list(range(len(labels))) and labels:
            found["label_names"] = tuple(labels[i] for i in range(len(labels)))
    processor = folder / "preprocessor_config.json"
    if processor.is_file():
        with readable(processor, "a preprocessor_config.json"):
            found |= _processor_says(_json(processor))
    return found


def _timm_says(config: Mapping[str, Any]) -> dict[str, Any]:
    cfg = config["pretrained_cfg"]
    found: dict[str, Any] = {"architecture": str(config.get("architecture", ""))}
    size = (cfg.get("input_size") or [0, 0, 0])[-1]
    if size:
        found |= {"image_size": size, "resize": int(size / (cfg.get("crop_pct") or 1))}
    labels = cfg.get("label_names") or config.get("label_names")
    if isinstance(labels, list):
        found["label_names"] = tuple(map(str, labels))
    return found | _constants(cfg.get("mean"), cfg.get("std"))


def _processor_says(fields: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    size, crop = fields.get("size", {}), fields.get("crop_size")
    edge = size if isinstance(size, int) else size.get("shortest_edge", size.get("height"))
    if fields.get("do_center_crop") and crop:
        found = {"image_size": crop if isinstance(crop, int) else crop["height"], "resize": edge}
    elif edge:
        # The whole image is taken from 384 pixels on, as by `ConvNextImageProcessor`.
        share = fields.get("crop_pct") if edge < 384 else None
        found = {"image_size": edge, "resize": int(edge / (share or 1))}
    if not fields.get("do_normalize", True):
        return found | _constants([0, 0, 0], [1, 1, 1])
    return found | _constants(fields.get("image_mean"), fields.get("image_std"))


def _constants(mean: Any, std: Any) -> dict[str, Any]:
    """Means and deviations of pixels in [0, 1] as such of pixels in [0, 255]."""
    if mean is None or std is None:
        return {}
    return {
        name: tuple(round(255 * float(v), 4) for v in np.atleast_1d(values))  # float32's digits
        for name, values in (("mean", mean), ("std", std))
    }


def _json(path: Path) -> dict[str, Any]:
    with readable(path, "JSON"):
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
    return found


def check(model_config: Mapping[str, Any]) -> None:
    """Raises a UserError for a network that Hugging Face's ResNets cannot be."""
    for name in FIXED:
        expected = FIELDS[name].default
        if model_config.get(name, expected) != expected:
            raise UserError(
                f"--format=huggingface: model.{name}={model_config[name]!r}, and Hugging Face's "
                f"ResNets have {expected!r} alone; use --format=safetensors."
            )


def config_json(
    state: Mapping[str, np.ndarray], downsample_in: str, label_names: Sequence[str]
) -> dict[str, Any]:
    """The `config.json` of a state dict in torchvision's names, bottlenecks or basic blocks."""
    depths = [
        len({name.split(".")[1] for name in state if name.startswith(f"layer{stage}.")})
        for stage in range(1, 5)
    ]
    bottleneck = "layer1.0.conv3.weight" in state
    last = f"conv{3 if bottleneck else 2}"
    return {
        "architectures": ["ResNetForImageClassification"],
        "model_type": "resnet",
        "num_channels": state["conv1.weight"].shape[1],
        "embedding_size": state["conv1.weight"].shape[0],
        "hidden_sizes": [len(state[f"layer{stage}.0.{last}.weight"]) for stage in range(1, 5)],
        "depths": depths,
        "layer_type": "bottleneck" if bottleneck else "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": downsample_in == "1x1",
        "id2label": {str(i): name for i, name in enumerate(label_names)},
        "label2id": {name: i for i, name in enumerate(label_names)},
        "dtype": "float32",
    }


def preprocessor_json(
    mean: np.ndarray, std: np.ndarray, resize: int, image_size: int
) -> dict[str, Any]:
    """The `preprocessor_config.json` for means and deviations in pixel values, one per channel."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": resize},
        "resample": 2,
        "do_center_crop": True,
        "crop_size": {"height": image_size, "width": image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [round(float(v) / 255, 7) for v in mean],
        "image_std": [round(float(v) / 255, 7) for v in std],
        "do_convert_rgb": True,
    }


def has_names(names: Iterable[str]) -> bool:
    """Whether arrays have Hugging Face's names."""
    return any(BLOCK.fullmatch(name) for name in names)
