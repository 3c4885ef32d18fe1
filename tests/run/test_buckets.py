"""Workdirs in buckets: the same files, bits and messages as on this machine."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from errors import UserError
from run import files, logs, whole_folders
from run.checkpoint import Checkpoints
from run.workdir import Workdir
from tests.support import buckets

TREE = {"kernel": np.arange(3000, dtype=np.float32), "step": np.int32(0)}


def tree(step):
    return {"kernel": TREE["kernel"] + step, "step": np.int32(step)}


def content(folder):
    """Every file below, by its path from there."""
    found = {os.path.relpath(path, folder): path.read_bytes() for path in files.below(folder)}
    return dict(sorted(found.items()))


def acts(root):
    """What the methods that both kinds of path have return."""
    for name in ("a/1.txt", "a/2.png", "a b/c [1]/3*.txt"):
        files.write_text(root / name, name)
    files.write_text(root / "a" / "1.txt", "anew")
    (root / "a" / "2.png").unlink()
    (root / "a" / "2.png").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        (root / "none").read_bytes()
    one = root / "a" / "1.txt"
    walked = files.walk(root, lambda error: None)
    with files.reader(one) as read:
        parts = [read(0, 2), read(1, 2), read(3, 9)]
    return {
        "names": sorted(path.name for path in root.iterdir()),
        "matching": sorted(path.name for path in root.glob("*/*.txt")),
        "walk": sorted(
            (os.path.relpath(path, root), sorted(folders), sorted(names))
            for path, folders, names in walked
        ),
        "kinds": [(p.exists(), p.is_dir(), p.is_file()) for p in (root, one, root / "none")],
        "bytes": (one.read_text(), one.stat().st_size, parts),
        "content": content(root),
    }


def test_paths_do_the_same_as_on_this_machine(bucket, tmp_path):
    assert acts(files.at(bucket, "x")) == acts(tmp_path)
    assert files.at(Path(bucket, "x")) == files.at(bucket, "x")  # pathlib made gs:/ of it
    assert files.at(bucket, "x/a/1.txt").stat().st_mtime >= 0


def test_an_object_appears_whole_or_not_at_all(bucket):
    path = files.at(bucket, "a.npz")
    with pytest.raises(ZeroDivisionError), files.whole(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert not path.exists() and not temporary.exists()
    with files.whole(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new" and not temporary.exists()


def test_nothing_is_locked_and_a_warning_says_so(bucket, caplog):
    with files.lock(f"{bucket}/.lock", "busy"), files.lock(f"{bucket}/.lock", "busy"):
        pass
    assert "a bucket has no locks" in caplog.text


@pytest.mark.parametrize("address", ["ftp://bucket/run", "file:///run", "http://a/b"])
def test_other_addresses_are_no_folders(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{address}: expected a folder, or gs://"):
        Workdir(address)
    assert not list(tmp_path.iterdir())


def test_the_package_that_an_address_needs_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match="s3://bucket/run/config.json: .*pip install s3fs"):
        Workdir("s3://bucket/run").saved_config()


def test_checkpoints_are_whole_or_not_there(bucket):
    workdir = f"{bucket}/run"
    checkpoints = Checkpoints(workdir, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, tree(step))
    checkpoints.close()
    folder = Workdir(workdir).checkpoints
    assert Workdir(workdir).committed_steps() == [2, 3] and not (folder / "1").exists()
    (folder / "3" / whole_folders.LAST).unlink()  # as after a kill during the upload
    with pytest.raises(UserError, match="not a checkpoint of this network"):
        Checkpoints(workdir, read_only=True).restore({"bias": TREE["step"]})
    again = Checkpoints(workdir, keep=2)
    step, restored, _ = again.restore(TREE)
    assert step == 2 and restored["kernel"].tobytes() == tree(2)["kernel"].tobytes()
    again.save(4, tree(4))
    again.close()
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"2", "4"}


def test_the_object_that_makes_a_folder_whole_comes_last(bucket, tmp_path, monkeypatch):
    from run.remote import Remote

    put, came = Remote.put, []
    monkeypatch.setattr(
        Remote, "put", lambda self, source: (came.append(self.name), put(self, source))
    )
    for name in (whole_folders.LAST, "a", "below/b"):
        files.write_text(tmp_path / "1" / name, name)
    whole_folders.upload(tmp_path / "1", files.at(bucket, "1"))
    assert sorted(came[:2]) == ["a", "b"] and came[2:] == [whole_folders.LAST]


def test_a_damaged_checkpoint_is_passed_over(bucket):
    workdir = f"{bucket}/run"
    checkpoints = Checkpoints(workdir)
    for step in (1, 2):
        checkpoints.save(step, tree(step))
    checkpoints.close()
    folder = Workdir(workdir).checkpoints
    largest = max(files.below(folder / "2"), key=lambda path: path.stat().st_size)
    with files.whole(largest) as temporary:
        temporary.write_bytes(bytes(100))
    again = Checkpoints(workdir)
    assert again.restore(TREE)[0] == 1
    again.set_aside(newer_than=1)
    again.close()
    assert Workdir(workdir).committed_steps() == [1] and (folder / "damaged-2").is_dir()


def test_a_bucket_that_does_not_answer_is_not_taken_for_damage(monkeypatch):
    with buckets.bucket("memory") as address:
        checkpoints = Checkpoints(f"{address}/run")
        checkpoints.save(1, tree(1))
        checkpoints.close()
        monkeypatch.setattr(buckets.Memory, "unreachable", True)
        with pytest.raises(UserError, match="cannot be reached .*the line is cut"):
            Checkpoints(f"{address}/run", read_only=True).restore(TREE)


def logged(workdir):
    """A run that stopped after step 4, of which a line was damaged, and went on from step 2."""
    folder = Workdir(workdir)
    for start, steps in ((0, (2, 4)), (2, (4, 6))):
        log = logs.RunLog(workdir, start, tensorboard=True)
        for step in steps:
            log.metrics(step, "train", {"loss": 1.0 / step})
            log.timing(step, {"devices": 2})
        log.close()
        text = folder.metrics.read_text()
        files.write_text(folder.metrics, text + '{"step": 5, \n' if start == 0 else text)
    return {name: data for name, data in content(folder.path).items() if "events" not in name}


def test_logs_have_the_same_bytes(bucket, tmp_path):
    assert logged(f"{bucket}/run") == logged(tmp_path)
    events = [path for path in files.below(files.at(bucket, "run")) if "events" in path.name]
    assert events and all(path.stat().st_size > 100 for path in events)
