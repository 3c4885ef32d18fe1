"""Small data sets as whole uint8 arrays: embedded in a package, or from one file.

`DATA_DIR/NAME.npz` holds a set: its `name`, `label_names`, and for every split S the arrays
`S_images` and `S_labels`. It is made of TFDS's records once, where TFDS is installed, and needs
only NumPy where it is copied to.
"""

import contextlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data import embedded, splits
from data.index_cache import data_directory
from errors import UserError, first_line
from run import files

# Those that are not embedded are TFDS's own; `prepare_data.py` prepares them without TensorFlow.
NAMES = (*embedded.SETS, "cifar10", "cifar100", "fashion_mnist", "mnist")
SPLITS = ("train", "test")
_LABEL_NAMES = "label_names"


class Images(NamedTuple):
    """One split: uint8 `[number, height, width, channels]`, int32 `[number]`, class names."""

    images: np.ndarray
    labels: np.ndarray
    label_names: tuple[str, ...]


def load(name: str, split: str, data_dir: str = "") -> Images:
    """Reads a split (`data.splits`) of an embedded or a prepared set.

    Raises:
      UserError: the set is unknown, its package is not installed, or it has not been prepared (says
        how to) or is damaged; or there is no such split.
    """
    if name not in NAMES:
        raise UserError(
            f"dataset={name!r}: expected one of {', '.join(NAMES)} when data.resident=True; "
            "tfds:NAME and folder:PATH need data.resident=False."
        )
    whole = _embedded(name) if name in embedded.SETS else _prepared(name, data_dir)
    images, labels = splits.cut(split, {part: whole[part][:2] for part in whole}, name)
    return Images(images, labels, whole["train"].label_names)


def averaged(images: Images, size: int) -> Images:
    """Square images as blocks of pixels averaged (and rounded) to `size` × `size` pixels.

    Images that are no larger than that stay as they are.

    Raises:
      UserError: the images' side is no multiple of `size`.
    """
    number, height, width, channels = images.images.shape
    if size >= max(height, width):
        return images
    block = height // size
    if (block * size, block * size) != (height, width):
        sides = [side for side in range(1, height + 1) if height % side == 0]
        raise UserError(
            f"data.image_size={size}: the images have {height}×{width} pixels, which are averaged "
            f"in whole blocks; expected one of {', '.join(map(str, sides))}."
        )
    blocks = images.images.reshape(number, size, block, size, block, channels)
    sums = blocks.sum(axis=(2, 4), dtype=np.uint32)
    pixels = (sums + block**2 // 2) // block**2
    return images._replace(images=pixels.astype(np.uint8))


def file_of(name: str, data_dir: str = "") -> Path:
    """Where the arrays of a prepared set lie."""
    return data_directory(data_dir) / f"{name}.npz"


def read(path: Path, name: str) -> dict[str, Images]:
    """The splits in the file of a whole set.

    Raises:
      UserError: it is not such a file, or a damaged one; OSError: it cannot be read.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if str(arrays["name"]) != name:
                raise ValueError(f"it holds {arrays['name']}")
            names = tuple(map(str, arrays[_LABEL_NAMES]))
            found = {
                split: Images(arrays[f"{split}_images"], arrays[f"{split}_labels"], names)
                for split in SPLITS
            }
        for images, labels, _ in found.values():
            if images.dtype != np.uint8 or images.ndim != 4 or labels.dtype != np.int32:
                raise ValueError("expected images uint8 [number, height, width, channels]")
            if labels.shape != images.shape[:1] or not len(labels):
                raise ValueError("as many labels as images are expected, and one at least")
            if labels.min() < 0 or labels.max() >= len(names):
                raise ValueError(f"a label is not one of the {len(names)} classes")
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is not a whole {name} ({first_line(error)}): copy it again, or remove it and "
            "prepare the set again"
        ) from error
    return found


def pack(name: str, data_dir: str = "", source: Path | None = None) -> dict[str, Images]:
    """Puts the whole set into its file, from a copy of the file or from TFDS's records.

    Raises:
      UserError: the copy is damaged, or the set is not prepared.
    """
    path = file_of(name, data_dir)
    if source:
        whole = read(source, name)
        if source.resolve() != path.resolve():
            with files.explained(path), files.whole(path) as temporary:
                temporary.write_bytes(source.read_bytes())
        return whole
    whole = _decoded(name, data_dir)
    with contextlib.suppress(OSError):  # a read-only or full disk: decode again next time
        _write(path, name, whole)
    return whole


def _write(path: Path, name: str, whole: Mapping[str, Images]) -> None:
    arrays: dict[str, Any] = {f"{split}_images": part.images for split, part in whole.items()}
    arrays |= {f"{split}_labels": part.labels for split, part in whole.items()}
    arrays |= {"name": np.array(name), _LABEL_NAMES: np.array(whole["train"].label_names)}
    with files.whole(path) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, **arrays)


def _embedded(name: str) -> dict[str, Images]:
    names = tuple(map(str, range(10)))
    return {split: Images(*arrays, names) for split, arrays in embedded.SETS[name]().items()}


def _prepared(name: str, data_dir: str) -> dict[str, Images]:
    path, damage = file_of(name, data_dir), ""
    try:
        return read(path, name)
    except OSError:
        pass  # not there yet
    except UserError as error:
        damage = f"{error}. It is made again of TFDS's records, but "
    try:
        return pack(name, data_dir)
    except ImportError as error:
        raise UserError(
            f"{damage or f'{path} is not there; '}{error.name} is not installed here. Where it is, "
            f"run\n  python prepare_data.py {name}\nand copy {path.name} from there."
        ) from error
    except UserError as error:
        raise UserError(f"{damage}{error}") from error


def _decoded(name: str, data_dir: str) -> dict[str, Images]:
    """The whole set from TFDS's records, in their order."""
    from data import records  # TFDS, decoders: only to make the file

    return {split: Images(*records.whole_split(name, split, data_dir)) for split in SPLITS}
