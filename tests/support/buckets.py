"""Buckets for tests: fsspec's store in memory, and an emulator of Google's where it is installed.

The emulator: pip install gcsfs gcp-storage-emulator
"""

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from run import files

INSTALLED = all(map(importlib.util.find_spec, ("gcsfs", "gcp_storage_emulator")))
KINDS = ("memory", "emulator") if INSTALLED else ("memory",)


class Memory(MemoryFileSystem):
    """fsspec's file system in memory under gs://; with `unreachable` no request is answered."""

    protocol = ("gs",)
    unreachable = False

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(str(path).removeprefix("gs://"))

    def info(self, path, **options):
        if Memory.unreachable:
            raise ConnectionResetError("the line is cut")
        return super().info(path, **options)

    def cat_file(self, path, **options):
        self.info(path)
        return super().cat_file(path, **options)


@contextlib.contextmanager
def bucket(kind: str) -> Iterator[str]:
    """Yields the address of an empty bucket."""
    if kind == "memory":
        registry = sys.modules["fsspec.registry"]._registry  # fsspec.registry is a view of it
        Memory.store, Memory.pseudo_dirs = {}, [""]
        with mock.patch.dict(registry, {"gs": Memory, "gcs": Memory}):
            Memory.clear_instance_cache()
            yield "gs://bucket"
        return
    from gcp_storage_emulator.server import create_server

    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    server.start()
    port = server._api._httpd.server_address[1]
    address = {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}
    address["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # asks Google itself, again and again
    with mock.patch.dict(os.environ, address):
        fsspec.get_filesystem_class("gs").clear_instance_cache()
        yield "gs://bucket"
    server.stop()


def upload(folder: Path, address: str) -> None:
    """Copies a folder of this machine into a bucket."""
    for path in files.below(folder):
        with files.whole(files.at(address, path.relative_to(folder))) as temporary:
            temporary.write_bytes(path.read_bytes())
