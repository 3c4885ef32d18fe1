"""What a run says of the records that it leaves out, and when it stops."""

import numpy as np
import pytest

from data.corrupt import CorruptRecords, described
from data.stream import HostBatch
from errors import UserError


def batches(*names_of_steps, first=0):
    for step, names in enumerate(names_of_steps, start=first):
        yield HostBatch(step, {"valid": np.ones(2, bool)}, tuple(names))


def records(fraction, size=20):
    return CorruptRecords(fraction, lambda split: size)


def test_names_of_a_window_of_steps_also_of_those_before_a_restart():
    corrupt = records(1.0)
    assert len(list(corrupt.watch("train", batches(["c"], [], ["d"], first=2)))) == 3
    missed = batches(["a"], ["b", "a"])
    assert corrupt.of_steps(0, 4, missed) == ["a", "b", "c"]
    assert corrupt.of_steps(4, 8, ()) == ["d"]


def test_too_many_stop_the_run_and_are_named():
    list(records(0.1).watch("train", batches(["a"], ["b"])))
    with pytest.raises(UserError, match=r"3 of 20.*max_corrupt_fraction=0\.1.*a, b, c"):
        list(records(0.1).watch("train", batches(["a"], ["b"], ["c"])))


def test_a_record_that_is_met_in_every_epoch_counts_once():
    list(records(0.05).watch("train", batches(*[["a"]] * 10)))


def test_lines_of_earlier_starts_count():
    corrupt = records(0.1)
    for names in (["a", "b"], ["b"], ["c"]):
        corrupt.remember({"split": "train", "masked_records": names})
    with pytest.raises(UserError, match="3 of 20"):
        corrupt.check_training()
    assert corrupt.of_run({"masked_records": ["x"]}) == {
        "masked_images": 4,
        "masked_records": ["a", "b", "c", "x"],
    }


def test_a_split_and_a_run_without_corrupt_records_say_nothing():
    corrupt = records(0.0)
    list(corrupt.watch("test", batches([], [])))
    assert corrupt.of_split("test") == corrupt.of_run({}) == described(()) == {}
