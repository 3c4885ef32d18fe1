"""Sources: one record protocol over TFDS data sets and image folders, without TensorFlow."""

import contextlib
import functools
import hashlib
import io
import itertools
import logging
import os
import typing
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, cast

from google.protobuf import json_format, message

from data import decode, folder, index_cache, splits
from data.decode import DecodeError
from errors import UserError, first_line
from run import files

if typing.TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetInfo

LOG = logging.getLogger("residual")
T = TypeVar("T")
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
    """The images PATH/<split>/<class>/* (`names` below PATH); classes as PATH/train has, if any."""

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
        self.names: list[str] = []
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
            self.names += paths[start:stop]
            self._labels += owners[start:stop]

    def __len__(self) -> int:
        return len(self.names)

    @functools.cached_property
    def _sizes(self) -> list[int]:
        if not files.is_remote(self._root):
            return sizes_of(self._files())
        splits = {path.partition("/")[0] for path in self.names}
        below = {split: cast(Any, self._root / split).sizes() for split in splits}
        parts = (path.partition("/") for path in self.names)
        return [below[split].get(path, -1) for split, _, path in parts]

    def _files(self) -> list[str]:
        return [f"{self._root}/{path}" for path in self.names]

    @functools.cached_property
    def digest(self) -> str:
        """See `Source`."""
        listing = zip(self.names, self._labels, self._sizes, strict=True)
        return digest_of(f"{path}\0{label}\0{size}" for path, label, size in listing)

    @functools.cached_property
    def contents(self) -> str:
        """See `Source`."""
        return "" if files.is_remote(self._root) else contents_of(self._files(), self._sizes)

    def __getitem__(self, index: int) -> Record:
        path = self.names[index]
        try:
            return Record(decode.read(self._root / path), self._labels[index], path)
        except (OSError, DecodeError) as error:
            raise DecodeError(f"cannot be read: {error}", path) from error


def sizes_of(paths: Sequence[str | Path]) -> list[int]:
    """Bytes of each file; −1 for what is not there."""
    return _of_each(paths, lambda p: (os.stat(p) if isinstance(p, str) else p.stat()).st_size)


def contents_of(paths: Sequence[str | Path], sizes: Sequence[int]) -> str:
    """The `contents` of a `Source` of these files."""
    if sum(sizes) > CONTENTS_UP_TO:
        return ""
    return digest_of(map(str, _of_each(paths, lambda p: zlib.crc32(decode.read(Path(p))))))


def _of_each(paths: Sequence[str | Path], ask: Callable[[Any], int]) -> list[int]:
    """The answer for each file; −1 for what is not there, or is none."""

    def answers(start: int) -> list[int]:
        found = []
        for path in paths[start : start + 1000]:
            try:
                found.append(ask(path))
            except (OSError, ValueError, DecodeError):  # ValueError: no name of a file
                found.append(-1)
        return found

    with ThreadPoolExecutor(16) as pool:  # waiting for the file system, mostly
        return list(itertools.chain(*pool.map(answers, range(0, len(paths), 1000))))


def digest_of(lines: Iterable[str]) -> str:
    """16 hexadecimal digits."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode(errors="surrogateescape") + b"\n")
    return digest.hexdigest()[:16]


class TfdsRecords:
    """The examples of a split of a prepared TFDS data set.

    Reads array_record, or TFRecord where only that exists, and never decodes an image.

    Attributes:
      directory: where the records lie.
      features: of an example, as TFDS describes them.
    """

    def __init__(self, name: str, split: str, data_dir: str):
        info = _prepared_info(name, data_dir)
        self.directory = files.at(info.data_dir)
        self.features = info.features
        self._split = split
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
        return contents_of(paths, sizes_of(paths))

    @functools.cached_property
    def digest(self) -> str:
        """See `Source`."""
        sizes = sizes_of([path for path, _, _ in self._pieces])
        return digest_of(
            f"{path.name}\0{skip}\0{take}\0{size}"
            for (path, skip, take), size in zip(self._pieces, sizes, strict=True)
        )

    def __len__(self) -> int:
        return len(self._records)

    def example(
        self, index: int, image: str, named: str | None, make: Callable[[Mapping[str, Any], str], T]
    ) -> T:
        """What `make` makes of an example, whose image is left encoded, and its name.

        Args:
          image, named: keys of the features that are the image and, if any, its name.

        Raises:
          DecodeError: with the name of a record that cannot be read.
        """
        import tensorflow_datasets as tfds

        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        name = f"{self._split}[{index}]"
        try:
            found = self.features.deserialize_example_np(
                self._records[index], decoders={image: tfds.decode.SkipDecoding()}
            )
            if named:
                name = f"{name} {bytes(found[named]).decode(errors='replace')}"
            return make(found, name)
        except DAMAGE as error:
            raise DecodeError(f"cannot be read: {error}", name) from error


class TfdsSource(TfdsRecords):
    """A split of a prepared TFDS image-classification data set."""

    def __init__(self, name: str, split: str, data_dir: str):
        super().__init__(name, split, data_dir)
        self._image, self._label, self._name = _feature_names(name, self.features)
        self.label_names = tuple(self.features[self._label].names)

    def __getitem__(self, index: int) -> Record:
        def record(found, name):
            return Record(bytes(found[self._image]), int(found[self._label]), name)

        return self.example(index, self._image, self._name, record)


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
    from tensorflow_datasets.core import read_only_builder

    directory = index_cache.data_directory(data_dir)
    directory.exists()  # names the package or the bucket that is missing, which TFDS does not
    with builder_errors(name, directory):
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # where TFDS prints what next comes
                builder = tfds.builder(name, data_dir=os.fspath(directory))
        except ImportError:  # the code of some sets needs TensorFlow, their files do not
            builder = read_only_builder.builder_from_files(name, data_dir=os.fspath(directory))
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
