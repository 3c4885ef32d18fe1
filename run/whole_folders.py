"""A checkpoint's folder is whole or not there.

On this machine, because it is renamed at the end; in a bucket, where nothing can be renamed at
once, because one object comes last and goes first.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from run.files import below, is_remote

UNFINISHED = ".orbax-checkpoint-tmp*"  # what a kill during a save leaves behind
DELETING = "deleting-"  # and during a deletion
LAST = "commit_success.txt"  # the object that comes last; Orbax has the same in buckets
AT_ONCE = 8  # files that travel together


def is_whole(folder: Path) -> bool:
    """Whether this is a folder of which everything is there."""
    return (folder / LAST).is_file() if is_remote(folder) else folder.is_dir()


def upload(source: Path, folder: Path) -> None:
    """Moves a folder of this machine into a bucket.

    Raises:
      OSError, UserError: see `run.remote`; the folder is not whole then.
    """
    names = [p.relative_to(source) for p in below(source) if p != source / LAST]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda name: cast(Any, folder / name).put(source / name), names))
    (source / LAST).touch()  # newer versions of Orbax have written it on this machine, too
    cast(Any, folder / LAST).put(source / LAST)
    shutil.rmtree(source)


@contextlib.contextmanager
def at_hand(folder: Path) -> Iterator[Path]:
    """Yields the folder on this machine: itself, or a copy for the time of the block."""
    if not is_remote(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as copy, ThreadPoolExecutor(AT_ONCE) as pool:

        def fetch(name: str) -> None:
            target = Path(copy, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((folder / name).read_bytes())

        list(pool.map(fetch, cast(Any, folder).sizes()))
        yield Path(copy)


def remove(folder: Path) -> None:
    """Removes a folder that does not count from the first moment on."""
    if is_remote(folder):
        (folder / LAST).unlink()
        cast(Any, folder).rmtree(missing_ok=True)
    else:
        withdrawn = folder.rename(folder.with_name(f"{DELETING}{folder.name}"))
        shutil.rmtree(withdrawn, ignore_errors=True)


def remove_leftovers(directory: Path) -> None:
    """Removes the folders in `directory` that a kill during a save or `remove` left behind."""
    if is_remote(directory):
        for folder in directory.iterdir() if directory.exists() else ():
            if folder.name.isdecimal() and not is_whole(folder):
                cast(Any, folder).rmtree(missing_ok=True)
        return
    for pattern in (f"{DELETING}*", f"*{UNFINISHED}"):
        for leftover in directory.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)
