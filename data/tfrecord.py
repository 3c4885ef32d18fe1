"""TFRecord files without TensorFlow: indexed random access, and conversion to array_record.

A record is: length (uint64), masked CRC-32C of the length (uint32), data, masked CRC-32C of the
data (uint32), all little-endian. Both checksums are verified wherever a record is read.
"""

import hashlib
import json
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from array_record.python import array_record_module
from tqdm import tqdm

from data import index_cache
from errors import UserError
from run import files

_HEADER = struct.Struct("<QI")
_FOOTER_BYTES = 4
_VERSION = 1
_AHEAD = 2**24  # bytes of a bucket that come at once where a whole file is read
Reader = Callable[[int, int], bytes]  # see `run.files.reader`


class RecordError(UserError):
    """A TFRecord file is damaged."""


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _length(read: Reader, path: Path, offset: int) -> int:
    """Length of the record at `offset`."""
    header = read(offset, _HEADER.size)
    if len(header) < _HEADER.size:
        raise RecordError(f"{path}: truncated at byte {offset:,}; copy the file again")
    length, crc = _HEADER.unpack(header)
    if crc != _masked_crc(header[:8]):
        raise RecordError(f"{path}: wrong checksum of the length at byte {offset:,}; "
                          "this is no TFRecord file, or it is damaged: copy it again")  # fmt: skip
    return length


def _read(read: Reader, path: Path, offset: int) -> bytes:
    """The record at `offset`."""
    length = _length(read, path, offset)
    body = read(offset + _HEADER.size, length + _FOOTER_BYTES)
    if len(body) < length + _FOOTER_BYTES:
        raise RecordError(f"{path}: truncated in the record at byte {offset:,}; copy it again")
    data = body[:length]
    if struct.unpack_from("<I", body, length)[0] != _masked_crc(data):
        raise RecordError(f"{path}: wrong checksum of the record at byte {offset:,}; copy it again")
    return data


def read_records(path: Path) -> Iterator[bytes]:
    """The records of one file in order.

    Raises:
      RecordError: a checksum does not match, or the file is truncated.
    """
    with files.reader(path, _AHEAD) as read:
        for offset in record_offsets(path):
            yield _read(read, path, offset)


def record_offsets(path: Path) -> list[int]:
    """Where each record starts, from the length fields alone.

    Raises:
      RecordError: see `read_records`; the records' own checksums are not looked at.
    """
    size, offset, offsets = path.stat().st_size, 0, []
    with files.reader(path, _AHEAD) as read:
        while offset < size:
            length = _length(read, path, offset)
            offsets.append(offset)
            offset += _HEADER.size + length + _FOOTER_BYTES
    if offset != size:
        raise RecordError(f"{path}: truncated in the record at byte {offsets[-1]:,}; copy it again")
    return offsets


class TfRecords:
    """Random access to the records of several files: `records[i]` → bytes, 0 ≤ i < `len(records)`.

    Safe on threads.

    Args:
      pieces: (path, first record, number of records) of each file, in order (the order that
        TFDS's split slicing gives).
      data_dir: where the index of offsets is kept when the files' directory is read-only.
    Raises:
      RecordError: a file is damaged, or has fewer records than a piece says.
    """

    def __init__(self, pieces: Sequence[tuple[Path, int, int]], data_dir: str):
        index = _offsets([path for path, _, _ in pieces], data_dir)
        self._pieces = []
        for path, first, number in pieces:
            offsets = index[path.name][first : first + number]
            if len(offsets) != number:
                raise RecordError(
                    f"{path} has {len(index[path.name]):,} records, but dataset_info.json "
                    f"promises at least {first + number:,}; copy it again"
                )
            self._pieces.append((path, np.array(offsets, np.int64)))
        self._ends = np.cumsum([number for _, _, number in pieces])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> bytes:
        piece = int(np.searchsorted(self._ends, index, side="right"))
        path, offsets = self._pieces[piece]
        with files.reader(path) as read:
            return _read(read, path, int(offsets[index - self._ends[piece]]))


def _offsets(paths: Sequence[Path], data_dir: str) -> dict[str, list[int]]:
    """Offsets of each file by name, cached until a file's size or time changes."""
    if not paths:
        return {}

    def stamps() -> dict[str, list[int]]:
        return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in paths}

    def build() -> dict[str, Any]:
        shown = tqdm(paths, desc="indexing TFRecord files", unit="file", disable=None)
        return {
            "version": _VERSION,
            "stamps": stamps(),
            "offsets": {path.name: record_offsets(path) for path in shown},
        }

    names = "\n".join(path.name for path in paths)
    digest = hashlib.sha256(names.encode()).hexdigest()[:12]  # slices read different files
    index = index_cache.cached(
        index_cache.places(paths[0].parent, f"tfrecord-{digest}", data_dir),
        lambda index: index["version"] == _VERSION and index["stamps"] == stamps(),
        build,
    )
    return index["offsets"]


def convert(source: Path, target: Path) -> int:
    """Rewrites a data set that TFDS prepared as TFRecord as array_record, record by record.

    Order and bytes are preserved: each file written is read back and compared before it counts.
    Files already converted are kept, so an interrupted conversion continues; `dataset_info.json`
    comes last, so that an unfinished copy cannot be mistaken for a prepared data set.

    Args:
      source: the version directory, with dataset_info.json and *.tfrecord-*-of-* files.
      target: the version directory to write; another one than source.
    Returns:
      The number of records.
    Raises:
      UserError: source is not TFRecord, or a file is damaged, or target is source.
    """
    info_path = source / "dataset_info.json"
    if not info_path.is_file():
        raise UserError(f"{source} holds no dataset_info.json; give the version directory of a "
                        "prepared TFDS data set, e.g. DIR/imagenet2012/5.1.0")  # fmt: skip
    if source.resolve() == target.resolve():
        raise UserError(f"converting {source} needs another --data_dir than where it lies")
    try:
        info = dict(json.loads(info_path.read_text()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{info_path} is damaged ({error}); copy it again") from error
    paths = sorted(source.glob("*.tfrecord-*"))
    if info.get("fileFormat", "tfrecord") != "tfrecord" or not paths:
        raise UserError(f"{source} is prepared as {info.get('fileFormat')!r}, not as tfrecord")
    target.mkdir(parents=True, exist_ok=True)
    number = 0
    for path in tqdm(paths, desc="converting to array_record", unit="file", disable=None):
        name = path.name.replace(".tfrecord-", ".array_record-")
        number += _convert_file(path, target / name)
    promised = sum(sum(map(int, split["shardLengths"])) for split in info["splits"])
    if number != promised:
        raise RecordError(f"{source} holds {number:,} records, dataset_info.json says {promised:,}")
    for path in source.iterdir():
        if path.is_file() and path != info_path and path not in paths and path.name[0] != ".":
            shutil.copyfile(path, target / path.name)
    info["fileFormat"] = "array_record"
    for split in info["splits"]:
        if "filepathTemplate" in split:
            split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    files.write_text(target / "dataset_info.json", json.dumps(info, indent=2))
    return number


def _convert_file(source: Path, target: Path) -> int:
    number = len(record_offsets(source))
    if target.is_file():
        return number
    with files.whole(target) as temporary:
        writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1")
        try:
            for record in read_records(source):
                writer.write(record)
            writer.close()
        except RuntimeError as error:
            raise RecordError(f"{target} cannot be written: {error}") from error
        reader = array_record_module.ArrayRecordReader(str(temporary))
        same = reader.num_records() == number and all(
            reader.read([i])[0] == record for i, record in enumerate(read_records(source))
        )
        reader.close()
        if not same:
            raise RecordError(f"{target} does not read back as {source}; is the disk full?")
    return number
