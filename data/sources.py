"""Sources: one record protocol over TFDS data sets and image folders, without TensorFlow."""

import contextlib
import functools
import hashlib
import itertools
import logging
import os
import typing
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from google.protobuf import json_format, message

from data import decode, folder, index_cache, splits
from data.decode import DecodeError
from errors import UserError, first_line
from run import files

if typing.TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetInfo

LOG = logging.getLogger("residual")
CONTENTS_UP_TO = 2**27  # bytes of files that are read at every start, to see whether they changed
# What the readers raise on damaged files, and on records that hold something else than an example.
DAMAGE = (OSError, ValueError, RuntimeError, TypeError, KeyError, message.DecodeError)


class Record(NamedTuple):
    """One example: encoded image, class index, and a name by which a person finds it again."""

    image: bytes
    label: int
    name: str


class Source(Protocol):
    """Random access to the examples of a split; `source[i]` is safe to call on threads.

    A record that cannot be read is a DecodeError with its name.
    """

    label_names: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Of the names and sizes of the files, with their labels; none is read."""
        ...

    @property
    def contents(self) -> str:
        """Of what is in the files; '' when there is more than `CONTENTS_UP_TO`, or in a bucket."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


def open_source(dataset: str, split: str, data_dir: str) -> Source:
    """Opens a split.

    Args:
      dataset: `tfds:NAME` (also `tfds:NAME/CONFIG:VERSION`), prepared as array_record or as
        TFRecord; or `folder:PATH` with PATH/train/<class>/* and PATH/val/<class>/*.
      split: TFDS's syntax for both: `train`, `train[:90%]`, `train[45000:]`, `train+validation`.
        In folders, `val` and `validation` stand for each other.
      data_dir: TFDS's data directory; '' for TFDS's default, `~` is expanded.
    Raises:
      UserError: unknown kind or name, a split that does not exist, or a TFDS data set that has
        not been prepared (the message says how to do it).
    """
    kind, _, name = dataset.partition(":")
    if kind == "folder" and name:
        return FolderSource(files.at(name).expanduser(), split, data_dir)
    if kind == "tfds" and name:
        return TfdsSource(name, split, data_dir)
    raise UserError(f"dataset {dataset!r}: expected 'tfds:NAME' or 'folder:PATH'")


class FolderSource:
    """Images of PATH/<split>/<class>/*; the classes are those of PATH/train where that exists."""

    def __init__(self, root: Path, split: str, data_dir: str):
        self._root = root
        listing = functools.cache(lambda name: folder.scan(root, name, data_dir))
        pieces = splits.pieces(split, lambda name: sum(map(len, listing(name).values())))
        owner = "train" if (root / "train").is_dir() else pieces[0][0]
        self.label_names = tuple(listing(owner))
        empty = [name for name, images in listing(owner).items() if not images]
        if empty:
            LOG.warning("%s: class folders without images: %s", root / owner, empty[:10])
        labels = {name: label for label, name in enumerate(self.label_names)}
        self._paths: list[str] = []
        self._labels: list[int] = []
        for name, start, stop in pieces:
            unknown = sorted(set(listing(name)) - set(labels))
            if unknown:
                raise UserError(
                    f"{folder.split_directory(root, name)} has classes that {root / owner} has "
                    f"not: {unknown[:10]}; class folders must have the same names in both"
                )
            paths = [path for images in listing(name).values() for path in images]
            owners = [labels[c] for c, images in listing(name).items() for _ in images]
            self._paths += paths[start:stop]
            self._labels += owners[start:stop]

    def __len__(self) -> int:
        return len(self._paths)

    @functools.cached_property
    def _sizes(self) -> list[int]:
        if not files.is_remote(self._root):
            return _sizes(self._files())
        splits = {path.partition("/")[0] for path in self._paths}
        below = {split: cast(Any, self._root / split).sizes() for split in splits}
        parts = (path.partition("/") for path in self._paths)
        return [below[split].get(path, -1) for split, _, path in parts]

    def _files(self) -> list[str]:
        return [f"{self._root}/{path}" for path in self._paths]

    @functools.cached_property
    def digest(self) -> str:
        """See `Source`."""
        listing = zip(self._paths, self._labels, self._sizes, strict=True)
        return _digest(f"{path}\0{label}\0{size}" for path, label, size in listing)

    @functools.cached_property
    def contents(self) -> str:
        """See `Source`."""
        return "" if files.is_remote(self._root) else _contents(self._files(), self._sizes)

    def __getitem__(self, index: int) -> Record:
        path = self._paths[index]
        try:
            return Record(decode.read(self._root / path), self._labels[index], path)
        except (OSError, DecodeError) as error:
            raise DecodeError(f"cannot be read: {error}", path) from error


def _sizes(paths: Sequence[str | Path]) -> list[int]:
    """Bytes of each file; −1 for what is not there."""
    return _of_each(paths, lambda p: (os.stat(p) if isinstance(p, str) else p.stat()).st_size)


def _contents(paths: Sequence[str | Path], sizes: Sequence[int]) -> str:
    """See `Source`."""
    if sum(sizes) > CONTENTS_UP_TO:
        return ""
    return _digest(map(str, _of_each(paths, lambda p: zlib.crc32(decode.read(Path(p))))))


def _of_each(paths: Sequence[str | Path], ask: Callable[[Any], int]) -> list[int]:
    """The answer for each file; −1 for what is not there, or is none."""

    def answers(start: int) -> list[int]:
        found = []
        for path in paths[start : start + 1000]:
            try:
                found.append(ask(path))
            except (OSError, DecodeError):
                found.append(-1)
        return found

    with ThreadPoolExecutor(16) as pool:  # waiting for the file system, mostly
        return list(itertools.chain(*pool.map(answers, range(0, len(paths), 1000))))


def _digest(lines: Iterable[str]) -> str:
    """16 hexadecimal digits."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode(errors="surrogateescape") + b"\n")
    return digest.hexdigest()[:16]


class TfdsSource:
    """A split of a prepared TFDS image-classification data set.

    Reads array_record, or TFRecord where only that exists, and never decodes an image. `directory`
    is where the records lie.
    """

    def __init__(self, name: str, split: str, data_dir: str):
        import tensorflow_datasets as tfds

        info = _prepared_info(name, data_dir)
        self.directory = files.at(info.data_dir)
        self._features = info.features
        self._image, self._label, self._name = _feature_names(name, info.features)
        self.label_names = tuple(info.features[self._label].names)
        self._split = split
        self._decoders = {self._image: tfds.decode.SkipDecoding()}
        try:
            pieces = info.splits[split].file_instructions
        except (KeyError, ValueError, AssertionError) as error:
            known = sorted(info.splits)
            raise UserError(f"tfds:{name}: split {split!r}: {error}; splits: {known}") from error
        self._pieces = [(files.at(piece.filename), piece.skip, piece.take) for piece in pieces]
        if info.file_format.value == "tfrecord":
            from data import tfrecord

            self._records = tfrecord.TfRecords(self._pieces, data_dir)
        elif files.is_remote(self.directory):
            raise UserError(
                f"tfds:{name}: array_record cannot read {self.directory}, only files of this "
                "machine. Copy the set into a local --config.data_dir, mount the bucket, or put it "
                "there as TFRecord, which is read from a bucket."
            )
        else:
            from array_record.python import array_record_data_source

            self._records = array_record_data_source.ArrayRecordDataSource(pieces)

    @functools.cached_property
    def contents(self) -> str:
        """See `Source`."""
        if files.is_remote(self.directory):
            return ""
        paths = [path for path, _, _ in self._pieces]
        return _contents(paths, _sizes(paths))

    @functools.cached_property
    def digest(self) -> str:
        """See `Source`."""
        sizes = _sizes([path for path, _, _ in self._pieces])
        return _digest(
            f"{path.name}\0{skip}\0{take}\0{size}"
            for (path, skip, take), size in zip(self._pieces, sizes, strict=True)
        )

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        name = f"{self._split}[{index}]"
        try:
            example = self._features.deserialize_example_np(
                self._records[index], decoders=self._decoders
            )
            if self._name:
                name = f"{name} {bytes(example[self._name]).decode(errors='replace')}"
            return Record(bytes(example[self._image]), int(example[self._label]), name)
        except DAMAGE as error:
            raise DecodeError(f"cannot be read: {error}", name) from error


@contextlib.contextmanager
def builder_errors(name: str, directory: Path) -> Iterator[None]:
    """Turns what TFDS raises when it opens a data set into a UserError."""
    import tensorflow_datasets as tfds

    try:
        yield
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(f"tfds:{name}: {first_line(error)} (data_dir {directory})") from error
    except (*DAMAGE, AssertionError, json_format.Error) as error:
        raise UserError(
            f"tfds:{name}: {first_line(error)} (data_dir {directory}); see that it can be "
            "written; if what lies there is damaged, remove it and prepare it again"
        ) from error


def _prepared_info(name: str, data_dir: str) -> "DatasetInfo":
    import tensorflow_datasets as tfds

    directory = index_cache.data_directory(data_dir)
    directory.exists()  # names the package or the bucket that is missing, which TFDS does not
    with builder_errors(name, directory):
        builder = tfds.builder(name, data_dir=os.fspath(directory))
    info = builder.info
    formats = {str(getattr(f, "value", f)): f for f in info.available_file_formats() if f}
    if not info.splits:
        short = builder.name
        others = sorted(path.parent.name for path in directory.glob(f"{short}/*/dataset_info.json"))
        found = (
            f" (but versions {others}: name one, as in tfds:{short}:{others[-1]})" if others else ""
        )
        raise UserError(
            f"tfds:{name} is not prepared in {directory}{found}; put its archives into a directory "
            "DIR (or leave out --from, where the network allows a download) and run\n"
            f"  python prepare_data.py {short} --from DIR --data_dir {directory}"
        )
    for known in ("array_record", "tfrecord"):
        if known in formats:
            if str(info.file_format.value) != known:
                info.set_file_format(formats[known], override=True, override_if_initialized=True)
            return info
    raise UserError(
        f"tfds:{name} is prepared as {sorted(formats)}; expected array_record or tfrecord"
    )


def _feature_names(name: str, features: Mapping[str, Any]) -> tuple[str, str, str | None]:
    """Keys of the one image, the one class label, and a name if there is any."""
    import tensorflow_datasets as tfds

    def keys(kind: type) -> list[str]:
        return [key for key, feature in features.items() if type(feature) is kind]

    images, labels = keys(tfds.features.Image), keys(tfds.features.ClassLabel)
    if "label" in labels:
        labels = ["label"]
    if len(images) != 1 or len(labels) != 1:
        raise UserError(
            f"tfds:{name} is no image classification: expected one image and one class label, "
            f"found images {images} and labels {labels}"
        )
    names = [key for key in ("file_name", "id", "filename") if key in features]
    return images[0], labels[0], names[0] if names else None
