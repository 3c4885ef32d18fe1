"""Encoded bytes → one uint8 RGB image, whatever the format; never a made-up or a black one."""

import contextlib
import io
import logging
import stat
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from data import jpeg
from errors import UserError

# What one image may cost, where no config says it (`data.max_pixels`): photographs of 64 megapixels
# pass. Decoding takes up to 10 bytes and 80 ns a pixel.
MAX_PIXELS = 2**26
MAX_BYTES = 2**30  # of a file: no format needs more for that many pixels
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

# What Pillow says of damaged metadata, to stderr and through a progress bar; what matters of it is
# raised. A filter by module, since those of `warnings.catch_warnings` are not per thread.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)


class DecodeError(UserError):
    """A record is not an image, or a damaged or an absurdly large one, or cannot even be read.

    `record` is its name where a source knows it of a record that it cannot read.
    """

    def __init__(self, message: str, record: str = ""):
        super().__init__(message)
        self.record = record


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes jpeg, png, webp, bmp, gif, tiff or ppm by content to RGB.

    Grey is repeated, CMYK and palettes are converted, 16 bits become the upper 8, alpha is
    dropped (as TensorFlow and torchvision do), EXIF's orientation is applied, and of an animation
    the first frame is taken.

    Args:
      data: the encoded image.
      max_pixels: the largest number of pixels to decode.
    Returns:
      uint8 [height, width, 3].
    Raises:
      DecodeError: not an image, truncated, damaged, or larger than max_pixels.
    """
    header = jpeg.read_header(data)
    if header:
        check_size(header.height, header.width, max_pixels)
        try:
            return _orient(jpeg.decode_full(data), header.orientation)
        except jpeg.JpegDamage as error:
            raise DecodeError(f"damaged JPEG of {len(data):,} bytes: {error}") from error
        except ValueError:
            pass  # Pillow forgives what does no harm, and says what does.
    with opened(data) as image:
        check_size(image.height, image.width, max_pixels)
        ImageOps.exif_transpose(image, in_place=True)  # no copy of it, nor in `_to_rgb`
        return np.ascontiguousarray(_to_rgb(image))


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) of the decoded image, EXIF's orientation applied, from the header alone.

    Raises:
      DecodeError: not an image.
    """
    header = jpeg.read_header(data)
    if header:
        height, width, turned = header.height, header.width, header.orientation >= 5
    else:
        with opened(data) as image:
            height, width = image.height, image.width
            turned = image.getexif().get(jpeg.ORIENTATION_TAG, 1) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def check_size(height: int, width: int, max_pixels: int = MAX_PIXELS) -> None:
    """Raises DecodeError for an image of more than max_pixels."""
    if height * width > max_pixels:
        raise DecodeError(
            f"an image of {height:,} × {width:,}, {height * width:,} pixels, exceeds the limit of "
            f"{max_pixels:,}, config.data.max_pixels (--max_pixels of predict.py and "
            "prepare_data.py): shrink or remove it, or raise the limit if memory allows"
        )


def read(path: Path) -> bytes:
    """An image file as it is, encoded.

    Raises:
      OSError: it cannot be read.
      DecodeError: it is no regular file, or too large for an image.
    """
    if isinstance(path, Path):  # and not in a bucket, where asking takes as long as reading
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DecodeError("is no regular file")  # a pipe would be waited for
        if status.st_size > MAX_BYTES:
            raise DecodeError(
                f"a file of {status.st_size:,} bytes is no image; the limit is {MAX_BYTES:,}"
            )
    return path.read_bytes()


# What Pillow raises on bad bytes, depending on the format.
_PILLOW_ERRORS: tuple[type[Exception], ...] = (OSError, ValueError, SyntaxError, EOFError)
_PILLOW_ERRORS += (LookupError, TypeError, OverflowError, struct.error)
_PILLOW_ERRORS += (Image.DecompressionBombError, Warning)


@contextlib.contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """Pillow's lazy image; whatever the block raises on bad bytes becomes a DecodeError."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            yield image
    except _PILLOW_ERRORS as error:
        reason = str(error).split(" <_io.BytesIO")[0] or type(error).__name__
        raise DecodeError(f"cannot decode {len(data):,} bytes: {reason}") from error


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip instead of scale
        values = np.clip(np.asarray(image).astype(np.int64), 0, 2**16 - 1) >> 8
        return np.repeat(values.astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise DecodeError("floating-point pixels have no agreed range; store 8 or 16 bits")
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _orient(image: np.ndarray, orientation: int) -> np.ndarray:
    """Applies EXIF's orientation: 2 … 4 mirror and turn, 5 … 8 also swap the axes."""
    if orientation == 1:
        return image
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)
