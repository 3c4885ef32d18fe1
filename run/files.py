"""Writing a file whole or not at all: the one way in which this project writes results.

Also the checksum of what a run keeps as JSON, and locks.
"""

import contextlib
import fcntl
import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from errors import UserError

LOG = logging.getLogger("residual")
CHECKSUM = "crc32"  # the name of that field
_unfinished: set[Path] = set()  # temporary files of this process


@contextlib.contextmanager
def whole(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which takes its place when the block ends well.

    A reader sees the old file or the new one, never half of it; after an error the old one stays.
    Missing folders are created. The temporary name holds the number of the process, so that two
    that write the same file do not disturb each other.

    Raises:
      OSError: as the writing itself.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    _unfinished.add(temporary)
    try:
        yield temporary
        temporary.replace(path)
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
    return Path(path)


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
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return fields, had


def _checksum(fields):
    """Of what a reader of the JSON finds, so that layout does not count."""
    return f"{zlib.crc32(json.dumps(fields, sort_keys=True).encode()):08x}"


@contextlib.contextmanager
def lock(path: str | os.PathLike, busy: str = "") -> Iterator[None]:
    """Holds the lock of a file for the block; it ends with the process, however that ends.

    Args:
      path: the lock file; it and its folder are made when missing.
      busy: what to say, instead of waiting, when another process holds the lock.

    Raises:
      UserError: `busy`.
      OSError: the file cannot be made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError as error:
            raise UserError(busy) from error
        except OSError:  # a file system without locks
            LOG.warning("%s: cannot be locked; see that no other process writes there.", path)
        yield
