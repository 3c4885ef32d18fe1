"""Image folders: PATH/train/<class>/*, PATH/val/<class>/*, read as torchvision reads them."""

import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any, cast

from absl import logging

from data import index_cache
from errors import UserError
from run.files import is_remote

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
# Names under which users know the same split.
_ALIASES = {"val": ("validation",), "validation": ("val",)}
_VERSION = 2
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
    if is_remote(root):
        return _in_bucket(directory)
    index = index_cache.cached(
        index_cache.places(root, directory.name, data_dir),
        lambda index: _is_current(root, index),
        lambda: _build(root, directory),
    )
    if index["left_out"]:
        logging.warning(
            "%s: %d entries are no regular files, or were listed before, and are left out: %s",
            *(directory, len(index["left_out"]), index["left_out"][:10]),
        )
    return _some(directory, index["classes"])


def _some(directory: Path, classes: dict[str, list[str]]) -> dict[str, list[str]]:
    if not any(classes.values()):
        raise UserError(
            f"{directory} holds no images; expected {directory}/<class>/* with the extensions "
            + ", ".join(EXTENSIONS)
        )
    return classes


def _in_bucket(directory: Path) -> dict[str, list[str]]:
    """What `scan` returns. No folder there says when it has changed: listed anew each time."""
    classes: dict[str, list[str]] = {}
    for path in map(PurePath, cast(Any, directory).sizes()):
        if len(path.parts) > 1 and path.parts[0][0] != ".":
            images = classes.setdefault(path.parts[0], [])
            if _is_image(path.name):
                images.append(f"{directory.name}/{path}")
    found = {name: sorted(classes[name], key=os.path.split) for name in sorted(classes)}
    return _some(directory, found)


def _is_current(root: Path, index: dict) -> bool:
    names = [name for images in index["classes"].values() for name in images]
    if index["version"] != _VERSION or not all(isinstance(n, str) for n in names):
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
    names = [e.name for e in _entries(directory) if e.is_dir() and e.name[0] != "."]
    classes, left_out = {}, []
    with ThreadPoolExecutor(16) as pool:  # waiting for the file system, mostly
        listings = pool.map(lambda name: _list_class(root, directory / name), names)
        for name, (below, images, others) in zip(names, listings, strict=True):
            directories.update(below)
            classes[name] = images
            left_out += others
    return {
        "version": _VERSION,
        "scanned_at": scanned_at,
        "directories": directories,
        "classes": classes,
        "left_out": left_out,
    }


def _list_class(root: Path, directory: Path) -> tuple[dict[str, list[int]], list[str], list[str]]:
    """Stamps of the directories below a class folder, its images, and what is left out.

    Images are regular files, each once. Links may lead to files and directories anywhere, but not
    to one that is listed already, nor back up: such a loop would show the same images again.
    """
    stamps, images, left_out = {}, [], []
    seen = {_identity(above.stat()) for above in (root, directory.parent)}
    directories, links = [directory], []
    while directories or links:
        here = Path(directories.pop() if directories else links.pop())  # what is real comes first
        name, status = str(here.relative_to(root)), here.stat() if here.exists() else None
        if status is None or _identity(status) in seen:
            (left_out if status else images).append(name)  # reading a broken link is an error
            continue
        seen.add(_identity(status))
        if not stat.S_ISDIR(status.st_mode):
            (images if stat.S_ISREG(status.st_mode) else left_out).append(name)
            continue
        stamps[name] = _stamp(here)
        for entry in _entries(here):
            if not entry.is_dir() and not _is_image(entry.name):
                continue
            if entry.is_symlink():
                links.append(entry.path)
            elif entry.is_dir():
                directories.append(entry.path)
            elif entry.is_file():  # known without asking the file system about each image
                images.append(f"{name}/{entry.name}")
                seen.add((status.st_dev, entry.inode()))
            else:
                left_out.append(f"{name}/{entry.name}")
        links.sort(reverse=True)
    return stamps, sorted(images, key=os.path.split), left_out


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and name[0] != "."


def _entries(directory: Path) -> list[os.DirEntry]:
    """What a directory holds, by name."""
    try:
        with os.scandir(directory) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(
            f"{directory}: cannot be listed ({error.strerror}); make the folder readable, or move "
            "it out of the data set"
        ) from error


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
