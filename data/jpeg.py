"""JPEG: what the header says, and decoding no more rows and no finer a scale than a crop needs."""

import functools
import math
import re
import struct
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

# Start-of-frame markers of the Huffman-coded processes: baseline, extended, progressive.
_FRAME_MARKERS = frozenset((0xC0, 0xC1, 0xC2))
_OTHER_FRAME_MARKERS = frozenset(range(0xC3, 0xD0)) - {0xC4, 0xC8, 0xCC}
ORIENTATION_TAG = 0x0112
_END = b"\xff\xd9"
# libjpeg's warnings. It gives the first one when the header promises fewer rows than the data hold.
_ROWS_LEFT = "extraneous bytes before marker"
_TRUNCATED = "Premature end of JPEG file"
_DAMAGE = re.compile("premature end of data segment|bad Huffman code|instead of RST")
# Decoding into the same memory again and again; larger images get memory of their own.
_SCRATCH_BYTES = 2**24
_thread = threading.local()


class JpegDamage(ValueError):
    """The entropy-coded data are damaged; what follows the damage would be made up."""


class Header(NamedTuple):
    """What the header says; `orientation` is EXIF's 1 … 8 (1: as stored)."""

    height: int
    width: int
    orientation: int
    frame_offset: int


def read_header(data: bytes) -> Header | None:
    """Walks the segments up to the frame header.

    Returns None when this is no Huffman-coded JPEG in grey or colour with its size in the frame
    header; Pillow may still know what to do with it.
    """
    if data[:3] != b"\xff\xd8\xff":
        return None
    position, orientation, end = 2, 1, len(data) - 9
    while position < end and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in _FRAME_MARKERS:
            precision, height, width, components = struct.unpack_from(">BHHB", data, position + 4)
            if precision != 8 or height == 0 or width == 0 or components not in (1, 3):
                return None
            return Header(height, width, orientation, position)
        if marker in _OTHER_FRAME_MARKERS:
            return None
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0":
            orientation = _orientation(data[position + 4 : position + 2 + length])
        position += 2 + length
    return None


def _orientation(segment: bytes) -> int:
    """EXIF's orientation; 1 where the segment is unreadable (ImageNet has some corrupt ones)."""
    exif = Image.Exif()
    try:
        exif.load(segment)
        value = exif.get(ORIENTATION_TAG, 1)
    except (OSError, SyntaxError, ValueError, struct.error, KeyError):
        return 1
    return value if value in range(1, 9) else 1


@functools.cache
def _decoder() -> Callable[..., Any]:
    import simplejpeg  # only what reads photographs needs it

    return simplejpeg.decode_jpeg


def decode_full(data: bytes) -> np.ndarray:
    """uint8 RGB [height, width, 3] as stored (EXIF's orientation not applied).

    Raises:
      JpegDamage: the entropy-coded data are damaged.
      ValueError: anything else that libjpeg-turbo warns of; Pillow should have a look.
    """
    try:
        return _decoder()(data, "RGB")
    except ValueError as error:
        if _DAMAGE.search(str(error)):
            raise JpegDamage(str(error)) from error
        if _TRUNCATED not in str(error) or data.endswith(_END):
            raise
    try:  # The end marker may be all that is missing.
        return _decoder()(data + _END, "RGB")
    except ValueError as error:
        raise JpegDamage(f"the file is truncated ({error})") from error


def decode_rows(data: bytes, header: Header, rows: int, factor: int = 1) -> np.ndarray | None:
    """The first rows only, at 1 / `factor` of the size: what lies below a crop costs nothing.

    The rows are those of the whole image: the frame header is given a smaller height, so that
    libjpeg stops there; a few rows late, because chroma upsampling looks ahead.

    Args:
      data: a JPEG.
      header: `read_header(data)`.
      rows: number of rows needed, 1 … header.height.
      factor: 1, 2, 4 or 8: decode each 8×8 block to 8 / factor pixels a side.
    Returns:
      uint8 RGB in memory that the thread's next call reuses (fresh pages cost a fifth of the
      decoding), at least `rows / factor` rows of `ceil(width / factor)` pixels; None when
      libjpeg-turbo has any complaint about them: then decode all, and let that judge.
    """
    lookahead = 2 * factor  # what chroma upsampling reads below a row
    kept = min(header.height, -(-(rows + lookahead) // 16) * 16)
    if kept < header.height:
        offset = header.frame_offset + 5
        data = b"".join((data[:offset], struct.pack(">H", kept), data[offset + 2 :]))
    shape = (-(-kept // factor), -(-header.width // factor), 3)
    image = _scratch(shape)
    try:
        return _decoder()(
            data, "RGB", min_height=shape[0], min_width=shape[1], min_factor=factor, buffer=image
        )
    except ValueError as error:
        # The image is complete all the same: libjpeg found the rows that it was not told of.
        complete = kept < header.height and _ROWS_LEFT in str(error)
        return image if complete else None


def _scratch(shape: tuple[int, int, int]) -> np.ndarray:
    """An array in this thread's own memory, which grows as needed up to a few photographs."""
    size = math.prod(shape)
    if size > _SCRATCH_BYTES:
        return np.empty(shape, np.uint8)
    if getattr(_thread, "memory", None) is None or _thread.memory.size < size:
        _thread.memory = np.empty(size, np.uint8)
    return _thread.memory[:size].reshape(shape)
