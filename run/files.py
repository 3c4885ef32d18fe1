"""Where files lie, and writing one whole or not at all: the one way of writing results here.

Also the checksum of what a run keeps as JSON, and locks.
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from errors import UserError

LOG = logging.getLogger("residual")
CHECKSUM = "crc32"  # the name of that field
DIGITS = 8  # hexadecimal ones, of its value
BUCKETS = ("gs", "s3")  # schemes of addresses, see `run.remote`
ADDRESS = re.compile(rf"({'|'.join(BUCKETS)}):/+(.*)")  # `pathlib` makes one slash of two
_unfinished: set[Path] = set()  # temporary files of this process


def at(*parts: str | os.PathLike) -> Path:
    """The path of a file or folder of this machine, or of a bucket: gs://bucket/folder.

    Both have the methods of `pathlib.Path` that this project uses. Every path that a user gives
    comes through here.

    Raises:
      UserError: an address of another kind, or the package that it needs is not installed.
    """
    text = os.path.join("", *parts)
    if address := ADDRESS.fullmatch(text):
        from run import remote  # imports fsspec, which a run on this machine does without

        return cast(Path, remote.Remote("{}://{}".format(*address.groups())))
    if "://" in text:
        known = " or ".join(f"{scheme}://bucket/…" for scheme in BUCKETS)
        raise UserError(
            f"{text}: expected a folder, or {known}; mount other kinds of storage and give the "
            "path where they are mounted."
        )
    return Path(*parts)


def is_remote(path: str | os.PathLike) -> bool:
    """Whether this is the address of a bucket."""
    return ADDRESS.match(os.fspath(path)) is not None


@contextlib.contextmanager
def whole(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which takes its place when the block ends well.

    A reader sees the old file or the new one, never half of it; after an error the old one stays.
    Missing folders are created. The temporary name holds the number of the process, so that two
    that write the same file do not disturb each other. For a bucket it lies on this machine.

    Raises:
      OSError: as the writing itself.
    """
    final = at(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    name = f"{final.name}.{os.getpid()}.tmp"
    if is_remote(final):
        temporary = Path(tempfile.gettempdir(), f"{os.urandom(8).hex()}-{name}")
    else:
        temporary = final.with_name(name)
    _unfinished.add(temporary)
    try:
        yield temporary
        if is_remote(final):
            cast(Any, final).put(temporary)
        else:
            temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)
        _unfinished.discard(temporary)


def remove_unfinished() -> None:
    """Removes what `whole` is writing, before the process ends at once."""
    for temporary in [*_unfinished]:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def explained(path: str | os.PathLike, advice: str = "") -> Iterator[None]:
    """Turns an OSError of the block into a UserError that names `path` and says what to do."""
    try:
        yield
    except OSError as error:
        advice = advice or "free space, or choose a folder that can be written"
        raise UserError(f"{path}: cannot be written ({error}); {advice}.") from error


def write_text(path: str | os.PathLike, text: str, advice: str = "") -> Path:
    """Writes a text file whole or not at all; returns its path.

    Raises:
      UserError: it cannot be written; `advice` says what to do.
    """
    with explained(path, advice), whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return at(path)


@contextlib.contextmanager
def reader(path: Path, ahead: int = 2**18) -> Iterator[Callable[[int, int], bytes]]:
    """Yields `(offset, number) → bytes` of a file; fewer at its end.

    Each request to a bucket takes long, so it brings `ahead` bytes.
    """
    if not is_remote(path):
        with open(path, "rb") as file:
            yield lambda offset, number: os.pread(file.fileno(), number, offset)
        return
    start, held = 0, b""

    def read(offset: int, number: int) -> bytes:
        nonlocal start, held
        if offset < start or offset + number > start + len(held):
            start, held = offset, cast(Any, path).part(offset, max(number, ahead))
        return held[offset - start :][:number]

    yield read


def below(folder: Path) -> list[Path]:
    """Every file in a folder and the folders below it."""
    if is_remote(folder):
        return [folder / name for name in cast(Any, folder).sizes()]
    return [path for path in folder.rglob("*") if path.is_file()]


def walk(
    folder: str | os.PathLike, onerror: Callable[[OSError], None]
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """As `os.walk`, also in a bucket."""
    root = at(folder)
    found = cast(Any, root).walk(onerror) if is_remote(root) else os.walk(root, onerror=onerror)
    return ((at(path), folders, names) for path, folders, names in found)


def sealed(fields: Mapping[str, Any], indent: int | None = None) -> str:
    """JSON of `fields` and their CRC-32; `indent` as in `json.dumps`."""
    return json.dumps({**fields, CHECKSUM: _checksum(fields)}, indent=indent)


def unsealed(text: str) -> tuple[dict[str, Any], bool]:
    """The inverse of `sealed`: `(fields, whether they had a checksum)`; older files have none.

    Raises:
      ValueError: it is no JSON object, or differs from its checksum.
    """
    try:
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise ValueError("it is no JSON object")
        had = CHECKSUM in fields
        if had and fields.pop(CHECKSUM) != _checksum(fields):
            raise ValueError("it differs from its checksum")
        if not had and _is_renamed(*next(reversed(fields.items()), ("", ""))):
            raise ValueError("the name of its checksum is damaged")
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return fields, had


def _is_renamed(name, value):
    """Whether the last field is a checksum but for its name; a file without one passes as older."""
    return len(name) == len(CHECKSUM) and isinstance(value, str) and len(value) == DIGITS


def _checksum(fields):
    """Of what a reader of the JSON finds, so that layout does not count."""
    return f"{zlib.crc32(json.dumps(fields, sort_keys=True).encode()):0{DIGITS}x}"


@contextlib.contextmanager
def lock(path: str | os.PathLike, busy: str = "") -> Iterator[None]:
    """Holds the lock of a file for the block; it ends with the process, however that ends.

    Args:
      path: the lock file; it and its folder are made when missing.
      busy: what to say, instead of waiting, when another process holds the lock.

    Nothing in a bucket can be locked: a warning says so.

    Raises:
      UserError: `busy`.
      OSError: the file cannot be made.
    """
    path = at(path)
    if is_remote(path):
        LOG.warning("%s: a bucket has no locks; see that no other process writes there.", path)
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError as error:
            raise UserError(busy) from error
        except OSError:  # a file system without locks
            LOG.warning("%s: cannot be locked; see that no other process writes there.", path)
        yield


def locked(path: str | os.PathLike) -> bool:
    """Whether a process of this machine holds the lock of a file, which is not even opened.

    False also where the system does not list its locks.
    """
    try:
        status, listed = at(path).stat(), Path("/proc/locks").read_text()
    except OSError:
        return False
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    return f" {device}:{status.st_ino} " in listed
