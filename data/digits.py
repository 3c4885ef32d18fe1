"""scikit-learn's handwritten digits as a TFDS data set: real images inside an installed package."""

import io
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

DESCRIPTION = (
    "1,797 grey images of handwritten digits, 8×8 pixels with 17 grey levels: the test part of the "
    "UCI ML optical recognition of handwritten digits data set, as scikit-learn ships it. The "
    "first half is for training, the second for testing, unshuffled, as in scikit-learn's example."
)
LEVELS = 16  # scikit-learn's pixels are 0 … 16


class Digits(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of `digits`: splits train (898 images) and test (899)."""

    VERSION = tfds.core.Version("1.0.0")
    name = "digits"

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        from sklearn.datasets import load_digits  # slow to import, needed once

        digits = load_digits()
        half = len(digits.images) // 2
        return {
            "train": self._generate_examples(digits.images[:half], digits.target[:half]),
            "test": self._generate_examples(digits.images[half:], digits.target[half:]),
        }

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator[tuple]:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            pixels = (image * (255 / LEVELS)).round().astype("uint8")
            png = io.BytesIO()
            Image.fromarray(pixels).save(png, format="PNG")
            # TFDS's Image feature takes encoded bytes; from an array it would call TensorFlow.
            yield i, {"image": png.getvalue(), "label": int(label)}
