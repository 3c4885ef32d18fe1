"""The syntax of splits against TFDS's own reader of it."""

import pytest

from data import splits
from errors import UserError

LENGTHS = {"train": 898, "test": 7, "a-b_1": 1}
GOOD = ["train", "train[:90%]", "train[10%:33%]", "test[:50%]", "test[50%:]", "test[-3:-1]"]
GOOD += ["test[2:]", "train[:-10%]", "train + test[:2]", "a-b_1[:1]", "train[1_0:2_0]", "test[7:]"]
GOOD += ["train[-898:]", "train[12.5%:]", "test[:0]"]
BAD = ["", "train[", "train[:]", "train[:x]", "train[5]", "train[:200%]", "train[:899]", "other"]
BAD += ["train[:1.5]", "train+", "train[:1shard]", "train[1:2:3]", "train[-899:]"]


def length(name):
    if name not in LENGTHS:
        raise UserError(f"split {name}")
    return LENGTHS[name]


def tfds_pieces(split):
    import tensorflow_datasets as tfds

    infos = {
        name: tfds.core.SplitInfo(
            name=name, shard_lengths=[number], num_bytes=0, filename_template=None
        )
        for name, number in LENGTHS.items()
    }
    found = tfds.core.splits.AbstractSplit.from_spec(split).to_absolute(infos)
    return [
        (p.splitname, p.from_ or 0, LENGTHS[p.splitname] if p.to is None else p.to) for p in found
    ]


@pytest.mark.parametrize("split", GOOD)
def test_pieces_are_tfds(split):
    assert splits.pieces(split, length) == tfds_pieces(split)


@pytest.mark.parametrize("split", BAD)
def test_other_words_are_refused(split):
    with pytest.raises(UserError, match="split"):
        splits.pieces(split, length)
