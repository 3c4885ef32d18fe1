"""Paths of buckets, e.g. gs://bucket/folder, with the methods of `pathlib.Path` that are used here.

They are etils.epath's, as Orbax's and TFDS's are, on fsspec's file systems. A bucket holds objects
and no folders: a folder is there as long as something is in it, an object appears whole, nothing
can be appended to, and nothing can be locked.
"""

import errno
import glob
import io
import logging
import os
import posixpath
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

os.environ.setdefault("EPATH_USE_TF", "false")  # fsspec, also where TensorFlow is installed

import fsspec
from etils import epath

from errors import UserError, first_line

logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs each error besides raising it
PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}  # scheme → the package that fsspec needs for it
_ADDRESS: Any = type(epath.Path("gs://bucket"))


class Remote(_ADDRESS):
    """An object, or what stands for a folder.

    Each method raises OSError where `pathlib.Path` does, and UserError where the bucket cannot be
    reached, so that this is not taken for a damaged file.
    """

    def _ask(self, method, *arguments, **options):
        """Calls a method of the file system; its first argument is this path."""
        scheme = str(self).partition(":")[0]
        try:
            # Others write too (Orbax's own threads, other machines): what was listed may be old.
            system = fsspec.filesystem(scheme, use_listings_cache=False)
            return getattr(system, method)(str(self), *arguments, **options)
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "there is no such object", str(self)) from None
        except ImportError as error:
            raise UserError(
                f"{self}: {PACKAGES[scheme]} is not installed: pip install {PACKAGES[scheme]}"
            ) from error
        except Exception as error:
            of_a_file = isinstance(error, OSError) and type(error).__module__ == "builtins"
            if of_a_file and not isinstance(error, ConnectionError | TimeoutError):
                raise
            raise UserError(
                f"{self}: cannot be reached ({first_line(error)}); see that the network, the "
                "bucket's name and the credentials are right, then run the same command again."
            ) from error

    def _kind(self):
        try:
            return self._ask("info")["type"]
        except FileNotFoundError:
            return None

    def exists(self) -> bool:
        return self._kind() is not None

    def is_dir(self) -> bool:
        return self._kind() == "directory"

    def is_file(self) -> bool:
        return self._kind() == "file"

    def _listed(self):
        """Name → whether it is a folder, for what lies in this one."""
        here = self._ask("_strip_protocol").rstrip("/")
        entries = {
            entry["name"].rstrip("/"): entry["type"] for entry in self._ask("ls", detail=True)
        }
        entries.pop(here, None)  # an empty object that stands for the folder itself
        return {posixpath.basename(n): kind == "directory" for n, kind in sorted(entries.items())}

    def iterdir(self) -> "Iterator[Remote]":
        return (self / name for name in self._listed())

    def walk(
        self, onerror: Callable[[OSError], None]
    ) -> "Iterator[tuple[Remote, list[str], list[str]]]":
        """As `os.walk`: folders that are removed from the list are not entered."""
        try:
            listed = self._listed()
        except OSError as error:
            onerror(error)
            return
        folders = [name for name, is_folder in listed.items() if is_folder]
        yield self, folders, [name for name, is_folder in listed.items() if not is_folder]
        for name in folders:
            yield from (self / name).walk(onerror)

    def glob(self, pattern: str) -> "Iterator[Remote]":
        scheme = str(self).partition(":")[0]
        found = type(self)(glob.escape(str(self)), pattern)._ask("glob")
        return (type(self)(f"{scheme}://{name.lstrip('/')}") for name in sorted(found))

    def sizes(self) -> dict[str, int]:
        """Bytes of every object below, by its path from here, sorted."""
        start = len(self._ask("_strip_protocol").rstrip("/")) + 1
        found = self._ask("find", detail=True)
        return {name[start:]: found[name]["size"] for name in sorted(found) if name[start:]}

    def stat(self) -> Any:
        """`st_size` and `st_mtime`, as far as the store has them."""
        info = self._ask("info")
        changed = info.get("mtime") or info.get("LastModified")
        seconds = changed.timestamp() if hasattr(changed, "timestamp") else changed or 0
        return SimpleNamespace(
            st_size=info["size"], st_mtime=seconds, st_mtime_ns=int(seconds * 1e9)
        )

    def read_bytes(self) -> bytes:
        return self._ask("cat_file")

    def part(self, start: int, size: int) -> bytes:
        """`size` bytes from `start` on, or as many as there are."""
        return self._ask("cat_file", start=start, end=start + size)

    def read_text(self, encoding: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8")

    def open(self, mode: str) -> IO[bytes]:
        """For reading only."""
        assert mode == "rb"
        return io.BytesIO(self.read_bytes())

    def put(self, source: Path) -> None:
        """Writes the object anew from a file of this machine; it appears whole."""
        self._ask("pipe_file", source.read_bytes())

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a folder appears with what is put into it."""

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self._ask("rm_file")
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmtree(self, missing_ok: bool = False) -> None:
        try:
            self._ask("rm", recursive=True)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rename(self, target: Any) -> Any:
        """Object by object: not at once, as on this machine."""
        for name in self.sizes():
            (self / name)._ask("cp_file", str(target / name))
        self.rmtree()
        return target

    def absolute(self) -> "Remote":
        return self

    def resolve(self, strict: bool = False) -> "Remote":
        return self

    def expanduser(self) -> "Remote":
        return self
