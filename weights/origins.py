"""What the arrays of a file do not say: how its network strides and pools, and what it was shown.

That follows from where a file comes from, or stands in files beside it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from errors import UserError
from models import FIELDS
from weights.files import readable

CONSTANTS = ("imagenet", "caffe")  # normalisations that do not depend on a data set
IMAGENET_PIXELS = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
IMAGE_SIZE, RESIZE = 224, 256  # as the paper tests; torchvision, timm's first weights and Keras too
CIFAR_SIZE = 32


class Description(NamedTuple):
    """Enough to classify images with a weight file.

    Attributes:
      name: of the network, e.g. 'ResNet-50'.
      origin: where the file comes from, in words.
      model: fields of `config.model`.
      image_shape: height, width, channels of what the network is shown.
      resize: shorter side before the central crop.
      normalization: 'imagenet', 'caffe', or `(mean, std)` in pixel values.
      label_names: one per class; None for the 1,000 of ImageNet in their usual order.
      num_classes: width of the head.
      assumed: what is not known, and taken to be as above.
    """

    name: str
    origin: str
    model: dict[str, Any]
    image_shape: tuple[int, int, int]
    resize: int
    normalization: Any
    label_names: tuple[str, ...] | None
    num_classes: int
    assumed: tuple[str, ...]


class Conventions(NamedTuple):
    """What a network's arrays do not say about it; None where the origin leaves it open.

    Attributes:
      downsample_in, stem_pool: the fields of `config.model` that the weights were trained with.
      normalization: the constants that images were normalised with, by `config.data`'s name.
      constants: `(mean, std)` in pixel values, where the file says them.
      label_names: of the classes.
      own: whether `export.py` wrote the file, so that label_names are those of the data.
      image_size, resize: side of the central crop, and the shorter side before it.
    """

    downsample_in: str | None = None
    stem_pool: str | None = None
    normalization: str | None = None
    constants: tuple[Any, Any] | None = None
    label_names: tuple[str, ...] | None = None
    own: bool = False
    image_size: int | None = None
    resize: int | None = None

    def told(self, said: Mapping[str, Any]) -> "Conventions":
        """With what the JSON files beside the weights say (`huggingface.says`)."""
        known = self._replace(**{k: v for k, v in said.items() if k in self._fields})
        if "mean" not in said:
            return known
        constants = (tuple(said["mean"]), tuple(said["std"]))
        name = "imagenet" if constants == IMAGENET_PIXELS else None
        return known._replace(normalization=name, constants=constants)

    def notes(self, model_config: Mapping[str, Any]) -> list[str]:
        """Sentences about what the weights were trained with and `config.model` may differ in."""
        fields = dict(model_config)
        notes = []
        has_bottlenecks = fields.get("stem") != "cifar" and fields.get("depth", 50) >= 50
        for name, default, matters in (
            ("downsample_in", "1x1", has_bottlenecks),
            ("stem_pool", "padded", fields.get("stem") != "cifar"),
        ):
            value, expected = fields.get(name, default), getattr(self, name)
            if expected and value != expected and matters:
                notes.append(
                    f"These weights were trained with model.{name}={expected}, and config.model "
                    f"has {value}: unless that is on purpose, set --config.model.{name}={expected}."
                )
        if self.normalization == "caffe":
            note = "These weights expect RGB pixel values minus ImageNet's channel means, undivided"
            note += " (data.normalization=caffe)"
            if self.stem_pool == "unpadded":
                note += ", or minus the release's mean image (weights.caffe.read_mean_image)"
            notes.append(note + ".")
        return notes

    def describe(
        self,
        path: str,
        name: str,
        origin: str,
        fields: Mapping[str, Any],
        *,
        channels: int,
        num_classes: int,
    ) -> Description:
        """Everything that classifying needs, with defaults for what is not known.

        Raises:
          UserError: how images of so many channels are normalised is not known.
        """
        model = dict(fields)
        model |= {k: v for k in ("downsample_in", "stem_pool") if (v := getattr(self, k))}
        size, resize, assumed = self.image_size, self.resize, []
        if not size:
            small = model.get("stem") == "cifar"
            size, resize = (CIFAR_SIZE, CIFAR_SIZE) if small else (IMAGE_SIZE, RESIZE)
        normalization: Any = self.normalization or self.constants
        imagenet = num_classes == 1000 and model.get("stem") != "cifar"
        if not self.constants and not (normalization and imagenet):
            normalization = normalization or "imagenet"
            assumed.append("normalisation")
        if channels != 3 and (channels != 1 or not self.constants):
            raise UserError(
                f"{path}: takes images of {channels} channel(s); expected 3, or 1 and a "
                "preprocessor_config.json that says how they are normalised."
            )
        names = self.label_names
        if names is not None and len(names) != num_classes:
            names = None
            assumed.append("class names")
        if names is None and not imagenet:
            names = tuple(f"class {i}" for i in range(num_classes))
        return Description(
            name,
            origin,
            model,
            (size, size, channels),
            resize or size,
            normalization,
            names,
            num_classes,
            tuple(assumed),
        )


TORCHVISION = Conventions("3x3", "padded", "imagenet")
KERAS = Conventions("1x1", "padded", "caffe")
# The release subtracts a mean image; 'caffe' is the per-channel stand-in that Keras uses for it.
CAFFE = Conventions("1x1", "unpadded", "caffe")


def exported(path: Path, metadata: Mapping[str, str]) -> tuple[Conventions, dict[str, Any]]:
    """What `export.py` wrote into a file of its own, and the fields of its network.

    Files of before the description was among them have it beside them, in `….json`.

    Raises:
      UserError: what it wrote is damaged.
    """
    first = ("downsample_in", "stem_pool", "normalization")
    known = Conventions(**{name: metadata.get(name) for name in first})  # type: ignore[arg-type]
    if known.normalization not in CONSTANTS:
        known = known._replace(normalization=None)
    with readable(path, "a file of export.py"):
        fields = {
            name: _value(type(FIELDS[name].default), text)
            for name, text in metadata.items()
            if name in FIELDS
        }
        beside = Path(f"{path}.json")
        text = metadata.get("description") or (beside.read_text() if beside.is_file() else "")
        if text:
            said = json.loads(text)
            constants = said["normalization"]
            known = known._replace(
                constants=(constants["mean"], constants["std"]),
                label_names=tuple(said["label_names"]),
                own=True,
                image_size=said.get("image_shape", said["input"]["shape"][1:])[0],
                resize=said.get("resize"),
            )
    return known, fields


def _value(kind: type, text: str) -> Any:
    return text == "True" if kind is bool else kind(text)
