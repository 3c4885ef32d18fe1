"""The one place that reaches into TFDS: its builders prepare data sets without TensorFlow.

TFDS 4.9.10 reads without TensorFlow, but its builders open files and encode images through it.
They reach it by one lazily imported module, which is replaced here, while a builder runs, by the
few functions that the image-classification builders call, written with Python's own files and
Pillow.
"""

import contextlib
import io
import os
import types
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download import checksums, extractor, resource
from tensorflow_datasets.core.utils import lazy_imports_utils

from data.decode import MAX_PIXELS, DecodeError, decode
from errors import UserError

PINNED = "4.9.10"
MAX_MEMBER = 2**30  # bytes; the largest there are, ImageNet's classes, have some 150 MB


class _Eager:
    """What TFDS expects of an eager tensor: `.numpy()`."""

    def __init__(self, value: Any):
        self._value = value

    def numpy(self) -> Any:
        return self._value


def _encode(image: Any, format: str, **options: int) -> _Eager:
    image = np.asarray(image.numpy() if isinstance(image, _Eager) else image)
    buffer = io.BytesIO()
    pixels = image[:, :, 0] if image.shape[-1] == 1 else image
    Image.fromarray(pixels).save(buffer, format, **options)
    return _Eager(buffer.getvalue())


def _encode_jpeg(image: Any, format: str = "", quality: int = 95) -> _Eager:
    del format  # 'rgb', or by the number of channels
    return _encode(image, "JPEG", quality=quality)


class _Members:
    """Iterates over tar files as TFDS does; refuses members that claim to be larger than can be.

    Attributes:
      name: of the last one.
    """

    def __init__(self) -> None:
        self.name = ""

    def methods(self) -> dict[Any, Any]:
        """What takes the place of TFDS's functions, by method of extraction."""
        kinds = resource.ExtractMethod.TAR, resource.ExtractMethod.TAR_STREAM
        return {kind: self._checked(extractor._EXTRACT_METHODS[kind]) for kind in kinds}

    def _checked(self, iterate):
        def members(archive):
            within = isinstance(archive, io.BytesIO)
            size = len(archive.getbuffer()) if within else os.path.getsize(archive)
            for self.name, member in iterate(archive):
                claimed = member.raw.size
                if claimed > min(size, MAX_MEMBER):
                    raise UserError(
                        f"{self.name} claims to have {claimed:,} bytes, in an archive of {size:,}; "
                        f"expected no more, and {MAX_MEMBER:,} at most. The archive is damaged or "
                        "forged: get it again"
                    )
                yield self.name, member

        return members


def _substitute(members: _Members, max_pixels: int) -> types.SimpleNamespace:
    def decoded(data: bytes, channels: int = 0) -> _Eager:
        """TFDS decodes only to repair ImageNet's CMYK and PNG files: always to RGB."""
        del channels
        try:
            return _Eager(decode(data, max_pixels))
        except DecodeError as error:
            raise DecodeError(f"{members.name}: {error}") from error

    return types.SimpleNamespace(
        __version__="2.0.0",
        executing_eagerly=lambda: True,
        int64=np.int64,
        compat=types.SimpleNamespace(as_text=os.fsdecode),
        io=types.SimpleNamespace(
            gfile=types.SimpleNamespace(
                GFile=lambda path, mode="r": open(os.fspath(path), mode),
                exists=lambda path: os.path.exists(os.fspath(path)),
            )
        ),
        image=types.SimpleNamespace(
            encode_png=lambda image: _encode(image, "PNG"),
            encode_jpeg=_encode_jpeg,
            decode_png=decoded,
            decode_jpeg=decoded,
            decode_image=decoded,
        ),
    )


@contextlib.contextmanager
def _changed(mapping: dict[str, Any], changes: dict[str, Any]) -> Iterator[None]:
    """While open, the mapping has these values as well."""
    before = dict(mapping)
    mapping.update(changes)
    try:
        yield
    finally:
        mapping.clear()
        mapping.update(before)


@contextlib.contextmanager
def without_tensorflow(max_pixels: int = MAX_PIXELS) -> Iterator[None]:
    """While open, TFDS's builders run without TensorFlow, whether or not it is installed.

    Args:
      max_pixels: of an image that has to be decoded.

    Raises:
      UserError: another TFDS than the one that this was written for and tested with.
    """
    if tfds.__version__ != PINNED:
        raise UserError(
            f"preparing data needs tensorflow-datasets {PINNED}, found {tfds.__version__}; "
            f"pip install tensorflow-datasets=={PINNED}"
        )
    members = _Members()
    module = {"_module": _substitute(members, max_pixels)}
    with (
        _changed(lazy_imports_utils.tensorflow.__dict__, module),
        _changed(extractor._EXTRACT_METHODS, members.methods()),
    ):
        yield


def accepting(
    builder: tfds.core.DatasetBuilder, repacked: dict[str, Path]
) -> AbstractContextManager[None]:
    """While open, the builder takes these files (URL → path) for the archives of these URLs.

    For files whose decompressed content has been verified, but which are not byte for byte the
    archives that TFDS knows.
    """
    infos = {url: checksums.compute_url_info(path) for url, path in repacked.items()}
    return _changed(builder.url_infos, infos)  # memoised per class, so put back afterwards
