"""Sources: image folders as torchvision reads them, and the cache of their index."""

import json
import os

import pytest

from data import index_cache
from data.decode import DecodeError
from data.sources import open_source
from errors import UserError
from tests.support import buckets, ilsvrc


@pytest.fixture
def pets(tmp_path):
    """A folder whose names sort differently by case and by number."""
    files = {
        "train/cat/b.JPG": b"1", "train/cat/a.jpeg": b"2", "train/cat/10.png": b"3",
        "train/cat/9.webp": b"4", "train/cat/deep/x.bmp": b"5", "train/cat/readme.txt": b"no",
        "train/cat/.hidden.jpg": b"no", "train/Dog/z.jpg": b"6", "train/.cache/z.jpg": b"no",
        "train/ant/z.jpg": b"7", "train/list.jpg": b"no",
        "val/cat/v.jpg": b"8", "val/ant/v.jpg": b"9",
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pets" / name).write_bytes(content)
    return tmp_path / "pets"


def test_folder_is_read_as_torchvision_reads_it(pets, tmp_path):
    source = open_source(f"folder:{pets}", "train", str(tmp_path))
    assert source.label_names == ("Dog", "ant", "cat")
    found = [(r.name, r.label, r.image) for r in ilsvrc.records(source)]
    assert found == [
        ("train/Dog/z.jpg", 0, b"6"),
        ("train/ant/z.jpg", 1, b"7"),
        ("train/cat/10.png", 2, b"3"),
        ("train/cat/9.webp", 2, b"4"),
        ("train/cat/a.jpeg", 2, b"2"),
        ("train/cat/b.JPG", 2, b"1"),
        ("train/cat/deep/x.bmp", 2, b"5"),
    ]


def test_a_folder_in_a_bucket_is_the_same_and_is_listed_anew(pets, bucket, tmp_path):
    buckets.upload(pets, f"{bucket}/pets")
    for split in ("train", "val", "train[2:5]"):
        here = open_source(f"folder:{pets}", split, str(tmp_path))
        there = open_source(f"folder:{bucket}/pets", split, f"{bucket}/data")
        assert ilsvrc.records(there) == ilsvrc.records(here)
        assert (there.label_names, there.digest) == (here.label_names, here.digest)
    (pets / "train" / "cat" / "new.jpg").write_bytes(b"0")
    buckets.upload(pets, f"{bucket}/pets")
    assert len(open_source(f"folder:{bucket}/pets", "train", "")) == 8
    with pytest.raises(UserError, match="no split 'test'.*found directories"):
        open_source(f"folder:{bucket}/pets", "test", "")
    with pytest.raises(UserError, match="no such directory"):
        open_source(f"folder:{bucket}/none", "train", "")


def test_validation_uses_the_training_classes(pets, tmp_path):
    for split in ("val", "validation"):
        source = open_source(f"folder:{pets}", split, str(tmp_path))
        assert source.label_names == ("Dog", "ant", "cat")
        assert [(r.image, r.label) for r in ilsvrc.records(source)] == [(b"9", 1), (b"8", 2)]
    (pets / "val" / "zebra").mkdir()
    with pytest.raises(UserError, match="zebra"):
        open_source(f"folder:{pets}", "val", str(tmp_path))


@pytest.mark.parametrize(
    ("split", "indices"),
    [
        ("train[:2]", [0, 1]),
        ("train[5:]", [5, 6]),
        ("train[-3:-1]", [4, 5]),
        ("train[:50%]", [0, 1, 2, 3]),
        ("train[50%:]", [4, 5, 6]),
        ("train[:1]+train[6:]", [0, 6]),
    ],
)
def test_folder_slices_follow_tfds(pets, tmp_path, split, indices):
    whole = ilsvrc.records(open_source(f"folder:{pets}", "train", str(tmp_path)))
    sliced = ilsvrc.records(open_source(f"folder:{pets}", split, str(tmp_path)))
    assert sliced == [whole[index] for index in indices]


def test_splits_can_be_joined(pets, tmp_path):
    source = open_source(f"folder:{pets}", "train[:1]+val", str(tmp_path))
    assert [r.name for r in ilsvrc.records(source)] == [
        "train/Dog/z.jpg",
        "val/ant/v.jpg",
        "val/cat/v.jpg",
    ]


@pytest.mark.parametrize("split", ["test", "train[", "train[:x]", "train[:200%]", ""])
def test_wrong_splits_are_user_errors(pets, tmp_path, split):
    with pytest.raises(UserError, match="split"):
        open_source(f"folder:{pets}", split, str(tmp_path))


def test_missing_or_empty_folders_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        open_source(f"folder:{tmp_path}/none", "train", str(tmp_path))
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no images"):
        open_source(f"folder:{tmp_path}", "train", str(tmp_path))


def settle(root):
    """Sets every directory's time back, as if the folder had been lying there for a while."""
    for path, _, _ in os.walk(root):
        os.utime(path, (1e9, 1e9))


def count_scans(monkeypatch):
    """A list that grows with every listing that is built and not taken from an index."""
    scans = []
    cached = index_cache.cached

    def counted(candidates, current, build):
        return cached(candidates, current, lambda: scans.append(candidates) or build())

    monkeypatch.setattr(index_cache, "cached", counted)
    return scans


def test_folder_index_is_cached_and_rebuilt_on_change(pets, tmp_path, monkeypatch):
    scans = count_scans(monkeypatch)
    settle(pets / "train")

    def names():
        return [
            r.name for r in ilsvrc.records(open_source(f"folder:{pets}", "train", str(tmp_path)))
        ]

    before = names()
    assert names() == before and len(scans) == 1
    (pets / "train/cat/deep/new.jpg").write_bytes(b"new")
    assert names() == [*before[:-1], "train/cat/deep/new.jpg", "train/cat/deep/x.bmp"]
    (pets / "train/cat/deep/new.jpg").unlink()
    assert names() == before
    (pets / "train/cow").mkdir()
    (pets / "train/cow/c.jpg").write_bytes(b"moo")
    assert "train/cow/c.jpg" in names()
    assert len(scans) == 4


def test_folder_just_written_is_not_trusted(pets, tmp_path, monkeypatch):
    """A second change within a clock tick leaves no trace in the time stamps."""
    scans = count_scans(monkeypatch)
    for _ in range(2):
        open_source(f"folder:{pets}", "train", str(tmp_path))
    assert len(scans) == 2


def test_index_of_a_read_only_folder_lies_in_data_dir(pets, tmp_path, monkeypatch):
    scans = count_scans(monkeypatch)
    settle(pets / "train")
    inside, outside = index_cache.places(pets, "train", str(tmp_path / "data"))
    inside.mkdir()  # no file can be written there
    for _ in range(2):
        open_source(f"folder:{pets}", "train", str(tmp_path / "data"))
    assert outside.is_file() and len(scans) == 1
    outside.write_text('{"version": 1, "scanned')  # damaged
    open_source(f"folder:{pets}", "train", str(tmp_path / "data"))
    assert len(scans) == 2


def test_loops_links_and_pipes_in_a_class_folder(pets, tmp_path, caplog):
    """Links may lead elsewhere; nothing is listed twice, nothing but regular files is opened."""
    plain = open_source(f"folder:{pets}", "train", str(tmp_path))
    (pets / "train/cat/loop").symlink_to(pets / "train/cat")
    (pets / "train/cat/deep/up").symlink_to(pets)
    (pets / "train/ant/down").symlink_to(pets / "train/ant/up")
    (pets / "train/ant/up").symlink_to(pets / "train/ant")
    (pets / "train/cat/a-again.jpg").symlink_to(pets / "train/cat/a.jpeg")
    (pets / "elsewhere").mkdir()
    (pets / "elsewhere/e.jpg").write_bytes(b"e")
    (pets / "train/ant/link").symlink_to(pets / "elsewhere")
    (pets / "train/ant/again").symlink_to(pets / "elsewhere")
    (pets / "train/Dog/linked.png").symlink_to(pets / "elsewhere/e.jpg")
    os.mkfifo(pets / "train/cat/pipe.jpg")
    for _ in range(2):  # the second time from the cached listing
        source = open_source(f"folder:{pets}", "train", str(tmp_path))
        names = [record.name for record in ilsvrc.records(source)]
        added = {"train/ant/again/e.jpg", "train/Dog/linked.png"}
        assert sorted(names) == sorted([r.name for r in ilsvrc.records(plain)] + [*added])
        for left_out in ("loop", "deep/up", "a-again.jpg", "pipe.jpg", "ant/link"):
            assert left_out in caplog.text
        caplog.clear()


def test_links_that_lead_nowhere_are_named_or_refused(pets, tmp_path, caplog):
    for name, target in (("itself", "itself"), ("gone", "/none"), ("NOTES", "a.jpeg")):
        (pets / "train/cat" / name).symlink_to(target)
    (pets / "train/cat/lost.jpg").symlink_to("/none/lost.jpg")
    source = open_source(f"folder:{pets}", "train", str(tmp_path))
    assert "train/cat/itself" in caplog.text and "train/cat/gone" in caplog.text
    missing = []
    for i in range(len(source)):
        try:
            source[i]
        except DecodeError as error:
            missing.append(error.record)
    assert missing == ["train/cat/lost.jpg"] and "NOTES" not in caplog.text
    (pets / "train/fox").symlink_to("/none")  # without it, labels would change
    with pytest.raises(UserError, match="train/fox: cannot be listed"):
        open_source(f"folder:{pets}", "train", str(tmp_path))


@pytest.mark.parametrize("classes", [[], {"cat": 5}, {"cat": [5]}, {"cat": "ab"}, "cat", None])
def test_a_damaged_cache_of_the_listing_is_built_anew(pets, tmp_path, classes):
    open_source(f"folder:{pets}", "train", str(tmp_path))
    cache = pets / ".index-train.json"
    index = json.loads(cache.read_text()) | {"classes": classes}
    for text in (json.dumps(index), "[" * 100_000):
        cache.write_text(text)
        assert len(open_source(f"folder:{pets}", "train", str(tmp_path))) == 7


def test_a_class_folder_that_cannot_be_listed_is_named(pets, tmp_path, monkeypatch):
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("ant"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)  # root, who may run this, may list everything
    with pytest.raises(UserError, match="train/ant: cannot be listed .Permission denied"):
        open_source(f"folder:{pets}", "train", str(tmp_path))
