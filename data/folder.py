"""Image folders: PATH/train/<class>/*, PATH/val/<class>/*, read as torchvision reads them."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data import index_cache
from errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
# Names under which users know the same split.
_ALIASES = {"val": ("validation",), "validation": ("val",)}
_VERSION = 1
# A directory changed this shortly before a scan may change again without a new time stamp.
_CLOCK_TICK_S = 2.0


def split_directory(root: Path, split: str) -> Path:
    """PATH/<split>; `val` and `validation` stand for each other.

    Raises:
      UserError: when there is no such directory.
    """
    for name in (split, *_ALIASES.get(split, ())):
        if (root / name).is_dir():
            return root / name
    if not root.is_dir():
        raise UserError(f"folder:{root}: no such directory; expected {root}/train/<class>/*.jpg")
    found = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    raise UserError(
        f"folder:{root} has no split {split!r}; expected {root / split}/<class>/*.jpg, "
        f"found directories {found}"
    )


def scan(root: Path, split: str, data_dir: str) -> dict[str, list[str]]:
    """Class name → paths of its images below `root`, both sorted as torchvision sorts them.

    The listing is cached, inside `root` or, when that is read-only, in `data_dir`, and built anew
    when a directory has changed since.

    Raises:
      UserError: no such split, or no images in it.
    """
    directory = split_directory(root, split)
    index = index_cache.cached(
        index_cache.places(root, directory.name, data_dir),
        lambda index: _is_current(root, index),
        lambda: _build(root, directory),
    )
    if not any(index["classes"].values()):
        raise UserError(
            f"{directory} holds no images; expected {directory}/<class>/* with the extensions "
            + ", ".join(EXTENSIONS)
        )
    return index["classes"]


def _is_current(root: Path, index: dict) -> bool:
    if index["version"] != _VERSION:
        return False
    settled = (index["scanned_at"] - _CLOCK_TICK_S) * 1e9
    with ThreadPoolExecutor(16) as pool:
        stamps = pool.map(lambda name: _stamp(root / name), index["directories"])
        return all(
            stamp == known and stamp[0] < settled
            for stamp, known in zip(stamps, index["directories"].values(), strict=True)
        )


def _stamp(directory: Path) -> list[int]:
    """Changes whenever an entry of the directory is added, removed or renamed."""
    status = directory.stat()
    return [status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _build(root: Path, directory: Path) -> dict:
    scanned_at = time.time()
    directories = {str(directory.relative_to(root)): _stamp(directory)}
    names = sorted(entry.name for entry in os.scandir(directory) if entry.is_dir())
    names = [name for name in names if not name.startswith(".")]
    classes = {}
    with ThreadPoolExecutor(16) as pool:  # waiting for the file system, mostly
        listings = pool.map(lambda name: _list_class(root, directory / name), names)
        for name, (below, images) in zip(names, listings, strict=True):
            directories.update(below)
            classes[name] = images
    return {
        "version": _VERSION,
        "scanned_at": scanned_at,
        "directories": directories,
        "classes": classes,
    }


def _list_class(root: Path, directory: Path) -> tuple[dict[str, list[int]], list[str]]:
    directories, images = {}, []
    for path, _, files in sorted(os.walk(directory, followlinks=True)):
        below = Path(path)
        directories[str(below.relative_to(root))] = _stamp(below)
        images += [
            str((below / name).relative_to(root))
            for name in sorted(files)
            if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
        ]
    return directories, images
