"""Weights and images made from names alone, so that two frameworks have the same without a file.

`RandomState` and not `default_rng`: its stream is promised never to change (NEP 19).
"""

import zlib
from typing import NamedTuple

import numpy as np
import safetensors.numpy


class Case(NamedTuple):
    """A network and the images it is compared on."""

    depth: int
    classes: int
    width: int
    image_shape: tuple[int, int, int, int]
    cifar: bool = False
    downsample_in: str = "3x3"
    stem_pool: str = "padded"
    width_per_group: int = 64
    groups: int = 1

    @property
    def fields(self):
        """The fields of `config.model`."""
        return {
            "depth": self.depth,
            "width": self.width,
            "stem": "cifar" if self.cifar else "imagenet",
            "shortcut": "A" if self.cifar else "B",
            "downsample_in": self.downsample_in,
            "stem_pool": self.stem_pool,
            "width_per_group": self.width_per_group,
            "groups": self.groups,
        }


CASES = {
    "resnet18": Case(18, 1000, 64, (2, 65, 49, 3)),
    "resnet50": Case(50, 1000, 64, (2, 65, 50, 3)),
    "resnet50_v1": Case(50, 10, 8, (2, 63, 64, 3), downsample_in="1x1"),
    "caffe50": Case(50, 10, 8, (2, 66, 64, 3), downsample_in="1x1", stem_pool="unpadded"),
    "wide50": Case(50, 10, 8, (2, 63, 64, 3), width_per_group=128),
    "resnext50": Case(50, 10, 16, (2, 63, 64, 3), width_per_group=4, groups=8),
    "cifar20": Case(20, 10, 16, (2, 31, 32, 3), cifar=True),
}
# Running averages compared after one training batch.
TRAINED = ("bn1.running_mean", "bn1.running_var", "layer3.1.bn2.running_var")


def random_of(name):
    return np.random.RandomState(zlib.crc32(name.encode()))


def make(shapes):
    """torch key → array for torch key → shape; activations keep their size through the depth."""
    return {name: _array(name, shape) for name, shape in shapes.items()}


def _array(name, shape):
    random = random_of(name)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("running_var"):
        values = random.uniform(0.5, 1.5, shape)
    elif name.endswith("weight") and len(shape) == 1:
        values = random.uniform(0.3, 0.7, shape)
    elif name.endswith("weight"):
        values = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    else:
        values = 0.1 * random.standard_normal(shape)
    return np.asarray(values, np.float32)


def images(case):
    """Normalised images `[batch, height, width, channels]`."""
    return random_of("images").standard_normal(case.image_shape).astype(np.float32)


def sample(activations):
    """About 200 numbers spread over `[batch, height, width, channels]`."""
    flat = np.asarray(activations).reshape(-1)
    return flat[:: max(1, flat.size // 199)]


def write_safetensors(path, arrays, metadata):
    """Writes name → array as any program would."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    safetensors.numpy.save_file(contiguous, path, metadata=metadata)
