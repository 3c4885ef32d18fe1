"""Image folders: PATH/train/<class>/*, PATH/val/<class>/*, read as torchvision reads them."""

import errno
import logging
import os
import stat
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any, cast

from data import index_cache
from errors import UserError
from run.files import is_remote

LOG = logging.getLogger("residual")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
# Names under which users know the same split.
_ALIASES = {"val": ("validation",), "validation": ("val",)}
_VERSION = 3
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
    _name_left_out(directory, index["left_out"])
    return _some(directory, index["classes"])


def images_below(directory: Path, extensions: Sequence[str]) -> list[Path]:
    """The images in a directory and below it, sorted; a warning names what is left out.

    Hidden files are none. Which others are not is said at `_listed`.

    Raises:
      UserError: a directory cannot be listed.
    """
    if is_remote(directory):
        below: Iterable[str] = cast(Any, directory).sizes()
        names = [name for name in below if _is_image(os.path.basename(name), extensions)]
    else:
        above = [directory.resolve(), *directory.resolve().parents][1:]
        _, names, left_out = _listed(directory, directory, above, extensions)
        _name_left_out(directory, left_out)
    return sorted(directory / name for name in names)


def _name_left_out(directory: Path, left_out: Sequence[str]) -> None:
    if left_out:
        LOG.warning(
            "%s: %d entries are no regular files, lead nowhere or were listed before, and are left "
            "out: %s",
            *(directory, len(left_out), ", ".join(left_out[:10])),
        )


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
    entries = [entry for entry in _entries(directory) if entry.name[0] != "."]
    names = [entry.name for entry in entries if _is_directory(entry)]
    classes, left_out = {}, []
    with ThreadPoolExecutor(16) as pool:  # waiting for the file system, mostly
        listings = pool.map(lambda name: _listed(root, directory / name, (root, directory)), names)
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


def _listed(
    root: Path, directory: Path, above: Iterable[Path], extensions: Sequence[str] = EXTENSIONS
) -> tuple[dict[str, list[int]], list[str], list[str]]:
    """Stamps of a directory and those below it, its images, and what is left out, seen from `root`.

    Images are regular files, each once. Links may lead to files and directories anywhere, but not
    to one that is listed already, nor to one `above`: such a loop would show the same images again.
    """
    stamps, images, left_out = {}, [], []
    seen = {_identity(one.stat()) for one in above}
    directories, links = [directory], []
    while directories or links:
        here = Path(directories.pop() if directories else links.pop())  # what is real comes first
        name = str(here.relative_to(root))
        try:
            status = here.stat()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP):
                raise _unlisted(here, error) from error
            # Reading it is an error, that the image is missing; what else it was, nobody knows.
            (images if _is_image(here.name, extensions) else left_out).append(name)
            continue
        if _identity(status) in seen:
            left_out.append(name)
            continue
        seen.add(_identity(status))
        if not stat.S_ISDIR(status.st_mode):
            (images if stat.S_ISREG(status.st_mode) else left_out).append(name)
            continue
        stamps[name] = _stamp(here)
        for entry in _entries(here):
            path = os.path.normpath(f"{name}/{entry.name}")
            if entry.is_symlink():
                if _is_image(entry.name, extensions) or not _leads_to_a_file(entry):
                    links.append(entry.path)
            elif entry.is_dir():
                directories.append(entry.path)
            elif not _is_image(entry.name, extensions):
                continue
            elif entry.is_file():  # known without asking the file system about each image
                images.append(path)
                seen.add((status.st_dev, entry.inode()))
            else:
                left_out.append(path)
        links.sort(reverse=True)
    return stamps, sorted(images, key=os.path.split), left_out


def _is_image(name: str, extensions: Sequence[str] = EXTENSIONS) -> bool:
    return name.lower().endswith(tuple(extensions)) and name[0] != "."


def _leads_to_a_file(link: os.DirEntry) -> bool:
    """Whether something else than a directory is there: not so for a link that leads nowhere."""
    try:
        return not stat.S_ISDIR(link.stat().st_mode)
    except OSError:
        return False


def _is_directory(entry: os.DirEntry) -> bool:
    """Whether this is a class; a link must lead somewhere, or the others' labels would change."""
    try:
        return stat.S_ISDIR(entry.stat().st_mode)
    except OSError as error:
        raise _unlisted(entry.path, error) from error


def _entries(directory: Path) -> list[os.DirEntry]:
    """What a directory holds, by name."""
    try:
        with os.scandir(directory) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise _unlisted(directory, error) from error


def _unlisted(path: str | Path, error: OSError) -> UserError:
    return UserError(
        f"{path}: cannot be listed ({error.strerror}); make the folder readable, or move it out of "
        "the data set"
    )


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
