"""Sources: TFDS as array_record and as TFRecord."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data import tfrecord
from data.decode import DecodeError, decode
from data.sources import open_source
from errors import UserError
from tests.support import buckets, ilsvrc

# Written by TensorFlow 2.21's tf.io.TFRecordWriter: b"", b"first", b"second record".
TENSORFLOW_WROTE = bytes.fromhex(
    "000000000000000029039807d8ea82a20500000000000000eab2043e666972737455ff23e50d0000000000000"
    "03c37b8347365636f6e64207265636f7264795ee89a"
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The miniature ILSVRC2012 as array_record."""
    return ilsvrc.prepare(tmp_path_factory.mktemp("ilsvrc"))


@pytest.fixture(scope="module")
def as_tfrecord(prepared, tmp_path_factory):
    """The same, as TFDS writes it by default."""
    target = tmp_path_factory.mktemp("tfrecord")
    ilsvrc.rewrite_as_tfrecord(prepared, target)
    return target


def test_prepared_imagenet(prepared):
    source = open_source("tfds:imagenet2012", "train", str(prepared))
    files = {name: c for group in ilsvrc.train_files().values() for name, c in group.items()}
    assert len(source) == len(files) and len(source.label_names) == 1000
    for record in ilsvrc.records(source):
        name = record.name.split()[-1]
        assert source.label_names[record.label] == name[:9]
        if name in (ilsvrc.CMYK_FILE, ilsvrc.PNG_FILE):  # TFDS stores these as RGB JPEG
            assert record.image[:3] == b"\xff\xd8\xff"
            difference = decode(record.image).astype(int) - decode(files[name])
            assert np.abs(difference).mean() < 5
        else:
            assert record.image == files[name]


def test_validation_labels_go_by_sorted_name(prepared):
    import tensorflow_datasets as tfds

    labels_file = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
    labels = labels_file.read_text().split()[: ilsvrc.VALIDATION]
    source = open_source("tfds:imagenet2012", "validation", str(prepared))
    expected = dict(zip(sorted(ilsvrc.validation_files()), labels, strict=True))
    found = {r.name.split()[-1]: source.label_names[r.label] for r in ilsvrc.records(source)}
    assert found == expected


def test_tfds_slices(prepared, as_tfrecord):
    for data_dir in (prepared, as_tfrecord):
        whole = ilsvrc.records(open_source("tfds:imagenet2012", "train", str(data_dir)))
        for split, piece in [("train[3:7]", whole[3:7]), ("train[-2:]", whole[-2:])]:
            sliced = ilsvrc.records(open_source("tfds:imagenet2012", split, str(data_dir)))
            assert [r.image for r in sliced] == [r.image for r in piece]
        with pytest.raises(UserError, match="train"):
            open_source("tfds:imagenet2012", "nonsense", str(data_dir))
        with pytest.raises(IndexError):
            open_source("tfds:imagenet2012", "train", str(data_dir))[len(whole)]


def test_tfrecord_is_read_as_array_record(prepared, as_tfrecord):
    for split in ("train", "validation"):
        expected = ilsvrc.records(open_source("tfds:imagenet2012", split, str(prepared)))
        assert ilsvrc.records(open_source("tfds:imagenet2012", split, str(as_tfrecord))) == expected


def test_unprepared_set_says_how_to_prepare_it(tmp_path):
    with pytest.raises(UserError) as caught:
        open_source("tfds:imagenet2012", "train", str(tmp_path))
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert lines[1].strip().startswith("python prepare_data.py imagenet2012 --from DIR")


def test_another_prepared_version_is_pointed_out_and_can_be_named(as_tfrecord, tmp_path):
    version = next(as_tfrecord.glob("imagenet2012/*"))
    shutil.copytree(version, tmp_path / "imagenet2012" / "5.0.0")
    info = tmp_path / "imagenet2012" / "5.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace(f'"version": "{version.name}"', '"version": "5.0.0"'))
    with pytest.raises(UserError, match=r"versions \['5\.0\.0'\]: name one"):
        open_source("tfds:imagenet2012", "train", str(tmp_path))
    old = open_source("tfds:imagenet2012:5.0.0", "train", str(tmp_path))
    new = open_source("tfds:imagenet2012", "train", str(as_tfrecord))
    assert old[3].image == new[3].image


def no_example(path):
    """Replaces every record by one that is no tf.train.Example."""
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for index in range(18):
        writer.write((b"garbage\xff\xff", b"", b"\x0a\x00")[index % 3])
    writer.close()


def flip_bits(path):
    data = bytearray(path.read_bytes())
    data[100:30_000:500] = bytes(byte ^ 16 for byte in data[100:30_000:500])
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("text", ["", "{}", '{"splits": 3}'])
def test_a_damaged_description_of_a_set_is_named(prepared, tmp_path, text):
    shutil.copytree(prepared, tmp_path / "data")
    next(tmp_path.glob("data/imagenet2012/*/dataset_info.json")).write_text(text)
    with pytest.raises(UserError, match="tfds:imagenet2012.*damaged, remove it and prepare it"):
        open_source("tfds:imagenet2012", "train", str(tmp_path / "data"))


@pytest.mark.parametrize("damage", [no_example, flip_bits, empty, Path.unlink])
def test_records_of_a_damaged_array_record_are_named(prepared, tmp_path, damage):
    shutil.copytree(prepared, tmp_path / "data")
    damage(next(tmp_path.glob("data/imagenet2012/*/*-train.array_record-*")))
    source = open_source("tfds:imagenet2012", "train", str(tmp_path / "data"))
    for index in range(3):
        with pytest.raises(DecodeError, match="cannot be read") as caught:
            source[index]
        assert caught.value.record == f"train[{index}]"


@pytest.mark.parametrize("dataset", ["imagenet", "tfds:", "folder:", "tfds:no_such_set", "s3:x"])
def test_unknown_data_sets_are_user_errors(dataset, tmp_path):
    with pytest.raises(UserError, match=dataset.rstrip(":")):
        open_source(dataset, "train", str(tmp_path))


# ---- TFRecord


def test_reads_what_tensorflow_wrote(tmp_path):
    path = tmp_path / "x.tfrecord"
    path.write_bytes(TENSORFLOW_WROTE)
    expected = [b"", b"first", b"second record"]
    assert list(tfrecord.read_records(path)) == expected
    assert b"".join(map(ilsvrc.framed, expected)) == TENSORFLOW_WROTE
    indexed = tfrecord.TfRecords([(path, 1, 2), (path, 0, 1)], str(tmp_path))
    assert [indexed[i] for i in range(len(indexed))] == [b"first", b"second record", b""]


@pytest.mark.parametrize("position", range(len(TENSORFLOW_WROTE)))
def test_every_damaged_byte_is_noticed(tmp_path, position):
    damaged = bytearray(TENSORFLOW_WROTE)
    damaged[position] ^= 4
    path = tmp_path / "x.tfrecord"
    path.write_bytes(damaged)
    with pytest.raises(tfrecord.RecordError, match=r"x\.tfrecord"):
        list(tfrecord.read_records(path))
    with pytest.raises(tfrecord.RecordError):
        indexed = tfrecord.TfRecords([(path, 0, 3)], str(tmp_path))
        [indexed[i] for i in range(3)]


@pytest.mark.parametrize("size", [5, 14, 20, len(TENSORFLOW_WROTE) - 1])
def test_truncated_files_are_noticed(tmp_path, size):
    path = tmp_path / "x.tfrecord"
    path.write_bytes(TENSORFLOW_WROTE[:size])
    for read in (tfrecord.record_offsets, lambda path: list(tfrecord.read_records(path))):
        with pytest.raises(tfrecord.RecordError, match="truncated"):
            read(path)
    path.write_bytes(TENSORFLOW_WROTE[:16])  # a whole record: fewer than promised
    with pytest.raises(tfrecord.RecordError, match="promises"):
        tfrecord.TfRecords([(path, 0, 3)], str(tmp_path))


def test_offsets_are_cached_until_the_file_changes(tmp_path, monkeypatch):
    path = tmp_path / "x.tfrecord"
    path.write_bytes(TENSORFLOW_WROTE)
    calls = []
    scan = tfrecord.record_offsets
    monkeypatch.setattr(tfrecord, "record_offsets", lambda p: calls.append(p) or scan(p))
    for _ in range(2):
        assert tfrecord.TfRecords([(path, 0, 3)], str(tmp_path))[1] == b"first"
    assert len(calls) == 1
    path.write_bytes(ilsvrc.framed(b"other") * 3)
    assert tfrecord.TfRecords([(path, 0, 3)], str(tmp_path))[1] == b"other"


def test_conversion_preserves_order_and_bytes(prepared, as_tfrecord, tmp_path):
    version = next(as_tfrecord.glob("imagenet2012/*"))
    target = tmp_path / "imagenet2012" / version.name
    number = tfrecord.convert(version, target)
    assert number == 18 + ilsvrc.VALIDATION
    for split in ("train", "validation"):
        expected = ilsvrc.records(open_source("tfds:imagenet2012", split, str(prepared)))
        assert ilsvrc.records(open_source("tfds:imagenet2012", split, str(tmp_path))) == expected
    assert not list(target.glob("*tfrecord*"))


def test_interrupted_conversion_continues(as_tfrecord, tmp_path, monkeypatch):
    version = next(as_tfrecord.glob("imagenet2012/*"))
    target = tmp_path / version.name
    read_records, begun = tfrecord.read_records, {}

    def fails_in_the_second(source):
        begun[source] = True
        for number, record in enumerate(read_records(source)):
            if len(begun) == 2 and number == 1:
                raise KeyboardInterrupt
            yield record

    with monkeypatch.context() as patch:
        patch.setattr(tfrecord, "read_records", fails_in_the_second)
        with pytest.raises(KeyboardInterrupt):
            tfrecord.convert(version, target)
    assert not (target / "dataset_info.json").exists()
    (finished,) = target.glob("*.array_record-*-of-?????")
    for path in version.glob("*.tfrecord-*"):  # what a kill would have left
        name = path.name.replace(".tfrecord-", ".array_record-")
        (target / f"{name}.tmp").write_bytes(b"half a file")
    done = finished.stat().st_mtime_ns
    assert tfrecord.convert(version, target) == 18 + ilsvrc.VALIDATION
    assert finished.stat().st_mtime_ns == done
    assert json.loads((target / "dataset_info.json").read_text())["fileFormat"] == "array_record"


def test_conversion_refuses_what_is_not_tfrecord(prepared, as_tfrecord, tmp_path):
    version = next(prepared.glob("imagenet2012/*"))
    with pytest.raises(UserError, match="array_record"):
        tfrecord.convert(version, tmp_path / "x")
    with pytest.raises(UserError, match=r"dataset_info\.json"):
        tfrecord.convert(tmp_path, tmp_path / "x")
    version = next(as_tfrecord.glob("imagenet2012/*"))
    with pytest.raises(UserError, match="another"):
        tfrecord.convert(version, version)
    short = tmp_path / "short" / version.name
    shutil.copytree(version, short)
    path = next(short.glob("*train*tfrecord*"))
    path.write_bytes(path.read_bytes()[: tfrecord.record_offsets(path)[-1]])
    with pytest.raises(tfrecord.RecordError, match="27 records"):
        tfrecord.convert(short, tmp_path / "y")


def test_a_prepared_set_in_a_bucket(prepared, as_tfrecord, bucket):
    """TFRecord is read; array_record, whose reader takes files only, is refused by name."""
    buckets.upload(as_tfrecord, f"{bucket}/data")
    for split in ("train", "validation[1:]"):
        here = open_source("tfds:imagenet2012", split, str(as_tfrecord))
        there = open_source("tfds:imagenet2012", split, f"{bucket}/data")
        assert ilsvrc.records(there) == ilsvrc.records(here)
        assert (there.label_names, there.digest) == (here.label_names, here.digest)
    buckets.upload(prepared / "imagenet2012", f"{bucket}/records/imagenet2012")
    with pytest.raises(UserError, match=f"array_record cannot read {bucket}/records.*TFRecord"):
        open_source("tfds:imagenet2012", "train", f"{bucket}/records")
    with pytest.raises(UserError, match="not prepared in .*/empty"):
        open_source("tfds:imagenet2012", "train", f"{bucket}/empty")
