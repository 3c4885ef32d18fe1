"""Whose a checkpoint is: the run and the step are verified, for checkpoints of older code too."""

import shutil
import zlib

import numpy as np
import orbax.checkpoint as ocp
import pytest

from errors import UserError
from run.checkpoint import VALIDATION_FILE, Checkpoints, flatten
from run.workdir import Workdir
from tests.run.test_checkpoint import assert_same, tree


@pytest.fixture
def two_runs(tiny, tmp_path):
    """Two claimed workdirs with checkpoints 1 and 2 of one shape."""
    folders = tmp_path / "a", tmp_path / "b"
    for number, folder in enumerate(folders):
        tiny.seed = number
        Workdir(folder).claim(tiny)
        checkpoints = Checkpoints(folder)
        for step in (1, 2):
            checkpoints.save(step, tree(step), 0.5)
        checkpoints.close()
    return folders


@pytest.mark.parametrize("name", ["2", "7"])
def test_a_checkpoint_of_another_run_is_passed_over(two_runs, name, caplog):
    ours, theirs = (folder / "checkpoints" for folder in two_runs)
    shutil.rmtree(ours / "2")
    shutil.copytree(theirs / "2", ours / name)
    assert_same(Checkpoints(two_runs[0], read_only=True).restore(tree())[1], 1)
    assert f"{ours / name}: ValueError: it belongs to another run" in caplog.text


def test_a_renamed_checkpoint_is_passed_over(two_runs, caplog):
    ours = two_runs[0] / "checkpoints"
    (ours / "2").rename(ours / "9")
    assert_same(Checkpoints(two_runs[0], read_only=True).restore(tree())[1], 1)
    assert "it is the checkpoint of step 2" in caplog.text


def test_the_validation_errors_of_another_run_choose_no_best(two_runs, caplog):
    ours, theirs = (folder / "checkpoints" / VALIDATION_FILE for folder in two_runs)
    assert Checkpoints(two_runs[0], read_only=True).read("best")[1] == (2, 0.5)
    shutil.copy(theirs, ours)
    with pytest.raises(UserError, match="none has a validation error"):
        Checkpoints(two_runs[0], read_only=True).read("best")
    assert "it belongs to another run; so no checkpoint counts as the best" in caplog.text


def as_older_code_wrote_it(folder, step, name):
    """A checkpoint of `tree(step)` under any name: an array each, their CRC-32 and no more."""
    arrays = {name: np.asarray(leaf) for name, leaf in flatten(tree(step)).items()}
    digests = {
        name: zlib.crc32(array.tobytes(), zlib.crc32(f"{array.shape}{array.dtype}".encode()))
        for name, array in arrays.items()
    }
    args = ocp.args.Composite(
        state=ocp.args.StandardSave(arrays), facts=ocp.args.JsonSave({"digests": digests})
    )
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as orbax:
        orbax.save((folder / "checkpoints" / name).absolute(), args=args)


def test_checkpoints_of_older_code_are_read_and_their_step_is_checked(tmp_path, caplog):
    as_older_code_wrote_it(tmp_path, 1, "1")
    as_older_code_wrote_it(tmp_path, 2, "3")
    checkpoints = Checkpoints(tmp_path)
    step, restored, _ = checkpoints.restore(tree())
    assert step == 1 and "it is the checkpoint of step 2" in caplog.text
    assert_same(restored, 1)
    checkpoints.set_aside(newer_than=1)
    checkpoints.save(2, tree(2))
    checkpoints.close()
    assert Checkpoints(tmp_path, read_only=True).restore(tree())[0] == 2
