"""Checkpoints: whole or not there, read back before anything older goes, damage passed over."""

import logging
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest

from errors import UserError
from run.checkpoint import VALIDATION_FILE, Checkpoints, fill, flatten
from run.whole_folders import UNFINISHED
from tests.support.waiting import wait_until

# Damage is named once; tensorstore's threads must not print tracebacks besides.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")


def tree(step=0):
    """A nested state of several types and sizes; a function of `step`."""
    values = np.random.default_rng(step).standard_normal(3000, np.float32)
    return {
        "params": {"kernel": values.reshape(30, 100), "bias": -0.0 * values[:7]},
        "step": np.int32(step),
        "warm": np.bool_(step % 2),
        "nothing": {},
    }


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def largest_file(folder):
    return max(files(folder), key=lambda path: path.stat().st_size)


@pytest.fixture
def saved(tmp_path):
    """A closed workdir with checkpoints 1, 2 and 3."""
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, tree(step))
    checkpoints.close()
    return tmp_path


def assert_same(restored, step):
    expected = flatten(tree(step))
    found = flatten(restored)
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == np.asarray(array).tobytes(), name


def test_what_is_read_is_what_was_saved_bit_for_bit(saved):
    step, restored, error = Checkpoints(saved, read_only=True).restore(tree())
    assert (step, error) == (3, None)
    assert_same(restored, 3)


def test_an_empty_workdir_has_nothing_to_restore(tmp_path):
    assert Checkpoints(tmp_path, read_only=True).restore(tree()) is None
    assert not list(tmp_path.iterdir())


def test_a_part_of_the_tree_can_be_read(saved):
    _, restored, _ = Checkpoints(saved, read_only=True).restore({"step": np.int32(0)})
    assert restored == {"step": 3}


@pytest.mark.parametrize(
    ("template", "named"),
    [
        ({"params": {"kernel": np.zeros((30, 99))}}, r"params\.kernel has shape \(30, 100\)"),
        ({"params": {"gate": np.zeros(1)}}, r"1 arrays are missing, first params\.gate"),
    ],
)
def test_the_checkpoint_of_another_network_is_named(saved, template, named):
    with pytest.raises(UserError, match=named):
        Checkpoints(saved, read_only=True).restore(template)
    with pytest.raises(ValueError, match=named):
        fill(template, flatten(tree()))


def test_the_last_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, error in enumerate((0.5, 0.2, 0.4, 0.3, 0.3, None), start=1):
        checkpoints.save(step, tree(step), error)
    checkpoints.close()
    again = Checkpoints(tmp_path, read_only=True)
    assert again.steps() == [2, 5, 6]
    step, restored, error = again.restore(tree(), which="best")
    assert (step, error) == (2, 0.2)
    assert_same(restored, 2)
    assert again.restore(tree())[::2] == (6, None)


def test_of_equally_good_checkpoints_the_later_is_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, tree(step), 0.25)
    checkpoints.close()
    assert Checkpoints(tmp_path, read_only=True).restore(tree(), which="best")[0] == 2


def test_without_validation_there_is_no_best(saved):
    with pytest.raises(UserError, match="none has a validation error"):
        Checkpoints(saved, read_only=True).restore(tree(), which="best")


def test_saving_again_adds_the_validation_error_and_changes_nothing_else(saved):
    before = {path: path.read_bytes() for path in files(saved / "checkpoints" / "3")}
    checkpoints = Checkpoints(saved)
    checkpoints.save(3, tree(7), 0.125)
    checkpoints.close()
    assert {path: path.read_bytes() for path in files(saved / "checkpoints" / "3")} == before
    assert Checkpoints(saved, read_only=True).restore(tree(), which="best")[::2] == (3, 0.125)


@pytest.mark.parametrize("text", ["[1]", '{"x": 1}', "{", '{"3": null}'])
def test_damaged_validation_errors_count_as_none(saved, text):
    (saved / "checkpoints" / VALIDATION_FILE).write_text(text)
    checkpoints = Checkpoints(saved, read_only=True)
    assert checkpoints.restore(tree())[::2] == (3, None)
    with pytest.raises(UserError, match="none has a validation error"):
        checkpoints.restore(tree(), which="best")


def test_other_names_are_no_checkpoints(saved):
    for name in ("007", "x", "-1", "１２", "³"):
        (saved / "checkpoints" / name).mkdir()
    assert Checkpoints(saved, read_only=True).steps() == [1, 2, 3]


# ---- Damage


def truncate(folder):
    path = largest_file(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(folder):
    largest_file(folder).write_bytes(b"")


def flip_bit(folder):
    path = largest_file(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def lose_state(folder):
    shutil.rmtree(folder / "state")


def lose_facts(folder):
    shutil.rmtree(folder / "facts")


def lose_everything(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def garble_metadata(folder):
    for path in files(folder):
        if path.stat().st_size < 4096:
            path.write_bytes(b"\x00garbage")


def half_rename(folder):
    folder.rename(f"{folder}{UNFINISHED.replace('*', '-17')}")


DAMAGES = (truncate, empty, flip_bit, lose_state, lose_facts, lose_everything, garble_metadata)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_passed_over_and_set_aside(saved, damage, caplog):
    damage(saved / "checkpoints" / "3")
    checkpoints = Checkpoints(saved)
    with caplog.at_level(logging.WARNING, "residual"):
        step, restored, _ = checkpoints.restore(tree())
    assert step == 2
    assert_same(restored, 2)
    assert f"{saved / 'checkpoints' / '3'}" in caplog.text
    assert "Using the checkpoint of step 2" in caplog.text
    checkpoints.set_aside(newer_than=2)
    assert (saved / "checkpoints" / "damaged-3").is_dir()
    checkpoints.save(3, tree(3))
    checkpoints.close()
    assert_same(Checkpoints(saved, read_only=True).restore(tree())[1], 3)


def test_a_half_renamed_checkpoint_is_not_there(saved):
    half_rename(saved / "checkpoints" / "3")
    assert Checkpoints(saved, read_only=True).restore(tree())[0] == 2


@pytest.mark.parametrize("seed", range(40))
def test_any_flipped_bit_is_found_or_harmless(saved, seed):
    generator = np.random.default_rng(seed)
    path = generator.choice(files(saved / "checkpoints" / "3"))
    data = bytearray(path.read_bytes())
    if data:
        data[generator.integers(len(data))] ^= 1 << generator.integers(8)
        path.write_bytes(data)
    step, restored, _ = Checkpoints(saved, read_only=True).restore(tree())
    assert step in (2, 3)
    assert_same(restored, step)


def test_when_none_is_good_the_message_says_what_to_do(saved):
    for step in (1, 2, 3):
        flip_bit(saved / "checkpoints" / str(step))
    with pytest.raises(UserError, match=r"no good checkpoint: .*another --workdir"):
        Checkpoints(saved).restore(tree())
    assert Checkpoints(saved, read_only=True).steps() == [1, 2, 3]


def test_nothing_is_deleted_before_a_newer_one_has_been_read_back(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, tree(1))
    checkpoints.save(2, tree(2))
    wait_until(lambda: checkpoints.steps() == [1, 2])  # committed, and not yet read back
    flip_bit(tmp_path / "checkpoints" / "2")
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2]
    assert "does not read back" in caplog.text
    checkpoints.save(3, tree(3))
    checkpoints.close()
    assert checkpoints.steps() == [3]


def test_leftovers_of_killed_saves_and_deletions_are_removed(saved):
    half = saved / "checkpoints" / f"4{UNFINISHED.replace('*', '-17')}"
    half.mkdir()
    (saved / "checkpoints" / "deleting-0").mkdir()
    checkpoints = Checkpoints(saved)
    assert checkpoints.restore(tree())[0] == 3
    assert not half.exists()
    checkpoints.save(4, tree(4))
    checkpoints.close()
    names = {path.name for path in (saved / "checkpoints").iterdir() if path.is_dir()}
    assert names == {"2", "3", "4"}


# ---- Memory and storage


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_checkpoints(tmp_path):
    arrays = {f"array{i}": np.full(100, i, np.float32) for i in range(150)}
    checkpoints = Checkpoints(tmp_path, keep=1)
    sizes = []
    for step in range(1, 41):
        checkpoints.save(step, arrays)
        checkpoints.wait()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        sizes.append(pages * resource.getpagesize() / 2**20)
    checkpoints.close()
    assert sizes[-1] - sizes[9] < 5  # MiB; 0.7 each where every array is opened by itself


def test_a_save_that_is_under_way_is_the_last_good_one_when_it_has_ended(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.last_good() is None
    checkpoints.save(3, tree(3))
    assert checkpoints.last_good() == 3
    checkpoints.close()
    again = Checkpoints(tmp_path)
    again.restore(tree())
    assert again.last_good() == 3
    again.close()


def test_no_space_left_keeps_the_previous_checkpoint(saved, caplog):
    checkpoints = Checkpoints(saved, keep=1)
    checkpoints.restore(tree())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"could not be written.*last good one is step 3"):
            checkpoints.save(4, tree(4))
            checkpoints.wait()
        checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [r for r in caplog.records if r.exc_info], "one message, and no traceback besides"
    again = Checkpoints(saved, keep=1)
    assert again.restore(tree())[0] == 3
    again.save(4, tree(4))
    again.close()
    assert_same(again.restore(tree())[1], 4)


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"checkpoints: cannot be written"):
        Checkpoints(tmp_path)


def test_two_writers_are_kept_apart(saved):
    first = Checkpoints(saved)
    with pytest.raises(UserError, match="another process is training in this workdir"):
        Checkpoints(saved)
    assert Checkpoints(saved, read_only=True).restore(tree())[0] == 3
    first.close()
    Checkpoints(saved).close()
