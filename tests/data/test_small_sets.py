"""Small sets as arrays: the digits, and the one file of a prepared set."""

import hashlib

import numpy as np
import pytest

import prepare_data
from data import small_sets
from errors import UserError

# Of images and labels as TFDS's records of the digits gave them until 2026-11-25.
DIGITS = {
    "train": "e035a9d5027fcc47f9cacbb858b18a5bbb7e58362ecacb13841f5289a9c76809",
    "test": "30b45338c12aec40d4e96a549f248a22c33963b573da379d61c8e0d3b3df2398",
    "train[:90%]": "8c275d65bfcb0f3737d696d75ae18f04065d43cc1edfd17ff2cf191766ef0e27",
    "test[-5:]": "af28eee1b42b410ccf392c896c9107b0e26c1eb6d6fe711635c14f744f73d6db",
}


def make_set(name, folder, train=40, test=9):
    """Writes the file of a small set of that name with random images of 32×32."""
    rng = np.random.default_rng(0)
    whole = {
        split: small_sets.Images(
            rng.integers(0, 256, (number, 32, 32, 3), np.uint8),
            (np.arange(number) % 10).astype(np.int32),
            tuple("abcdefghij"),
        )
        for split, number in (("train", train), ("test", test))
    }
    small_sets._write(small_sets.file_of(name, str(folder)), name, whole)
    return whole


@pytest.mark.parametrize("split", DIGITS)
def test_digits_keep_their_split_and_order(split, tmp_path):
    found = small_sets.load("digits", split, str(tmp_path))
    content = found.images.tobytes() + found.labels.tobytes()
    assert hashlib.sha256(content).hexdigest() == DIGITS[split]
    assert (found.images.dtype, found.labels.dtype) == (np.uint8, np.int32)
    assert found.label_names == tuple("0123456789")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("split", ["validation", "train[", "train[:2000]", "train[3:3]", ""])
def test_a_split_that_there_is_not(split):
    with pytest.raises(UserError, match="split"):
        small_sets.load("digits", split)


def test_a_file_is_read_as_it_was_written(tmp_path):
    whole = make_set("cifar10", tmp_path)
    for split, part in whole.items():
        found = small_sets.load("cifar10", split, str(tmp_path))
        np.testing.assert_array_equal(found.images, part.images)
        np.testing.assert_array_equal(found.labels, part.labels)
        assert found.label_names == part.label_names
    joined = small_sets.load("cifar10", "test+train[:50%]", str(tmp_path))
    np.testing.assert_array_equal(joined.labels[9:], whole["train"].labels[:20])


def test_a_set_in_a_bucket(bucket, tmp_path):
    whole = make_set("cifar10", tmp_path)
    prepare_data.main(["cifar10", "--from", str(tmp_path), "--data_dir", f"{bucket}/data"])
    found = small_sets.load("cifar10", "train", f"{bucket}/data")
    np.testing.assert_array_equal(found.images, whole["train"].images)
    for places in (["--from", f"{bucket}/a"], ["--data_dir", f"{bucket}/b"]):
        with pytest.raises(UserError, match=f"{bucket}/[ab]: TFDS's builders.*then copy"):
            prepare_data.main(["mnist", *places])


def changed(path, **arrays):
    with np.load(path) as old:
        np.savez(
            path,
            **{name: arrays.get(name, old[name]) for name in old if name not in arrays}
            | {name: array for name, array in arrays.items() if array is not None},
        )


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no archive at all"),
        lambda path: changed(path, test_labels=None),
        lambda path: changed(path, train_labels=np.full(40, 10, np.int32)),
        lambda path: changed(path, train_labels=np.zeros(39, np.int32)),
        lambda path: changed(path, train_images=np.zeros((40, 32, 32, 3), np.float32)),
        lambda path: changed(path, train_images=np.zeros((40, 32), np.uint8)),
        lambda path: changed(path, test_images=np.array([None]), test_labels=np.array([None])),
        lambda path: changed(path, name=np.array("mnist")),
    ],
)
def test_a_damaged_file_is_named(damage, tmp_path):
    make_set("cifar10", tmp_path)
    path = small_sets.file_of("cifar10", str(tmp_path))
    damage(path)
    with pytest.raises(UserError, match=r"cifar10\.npz is not a whole cifar10.*prepare"):
        small_sets.load("cifar10", "train", str(tmp_path))


def test_a_flipped_byte_is_noticed(tmp_path):
    make_set("cifar10", tmp_path)
    path = small_sets.file_of("cifar10", str(tmp_path))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="not a whole cifar10"):
        small_sets.load("cifar10", "train", str(tmp_path))


def test_an_unprepared_set_says_how(tmp_path):
    with pytest.raises(UserError, match=r"python prepare_data\.py mnist"):
        small_sets.load("mnist", "train", str(tmp_path))
