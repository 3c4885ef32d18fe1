"""Pictures of what was found: boxes with names and masks, or the classes of the pixels."""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from detection.average_precision import pycocotools
from detection.masks import MASK_FROM
from detection.network import Objects

OPACITY = 0.5  # of masks
SURE, TILE, TILES, COLUMNS = 0.5, 320, 8, 4  # of a sheet: score, side in pixels, images
FONT_SHARE = 0.03  # of the shorter side


def colour(label: int) -> tuple[int, int, int]:
    """A colour for a class; classes that follow each other get different hues."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.8, 1)
    return int(255 * red), int(255 * green), int(255 * blue)


def objects(image: np.ndarray, found: Objects, label_names: Sequence[str]) -> Image.Image:
    """Draws boxes, names with scores and, where there are some, masks.

    Args:
      image: uint8 `[height, width, 3]`.
      found: what to draw; the best is drawn last.
      label_names: by label.
    """
    pixels = image.astype(np.float32)
    for i in reversed(range(len(found.boxes))):
        if found.masks is not None:
            inside = found.masks[i] > MASK_FROM
            pixels[inside] += OPACITY * (np.array(colour(found.labels[i])) - pixels[inside])
    picture = Image.fromarray(pixels.astype(np.uint8))
    draw, font = ImageDraw.Draw(picture), _font(image)
    for box, score, label in reversed(
        list(zip(found.boxes, found.scores, found.labels, strict=True))
    ):
        left, top, right, bottom = map(float, box)
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour(label))
        _tag(draw, font, (left, top), f"{label_names[label]} {score:.0%}", colour(label))
    return picture


def certain(image: np.ndarray, found: Objects, label_names: Sequence[str]) -> Image.Image:
    """Draws what is found for certain on the image as a tile of a `sheet`.

    Args:
      image: uint8 `[height, width, 3]`.
      found: what to draw, with masks of the image as run lengths, or none.
      label_names: by label.
    """
    tile, masks = as_tile(image), None
    sure, scale = found.scores >= SURE, np.float32(tile.shape[0] / image.shape[0])
    if found.masks is not None and sure.any():
        chosen = [mask for mask, drawn in zip(found.masks, sure, strict=True) if drawn]
        rows, columns = (
            np.arange(new) * old // new
            for new, old in zip(tile.shape[:2], image.shape[:2], strict=True)
        )
        masks = pycocotools("mask").decode(chosen)[rows][:, columns].transpose(2, 0, 1)
    shown = Objects(found.boxes[sure] * scale, found.scores[sure], found.labels[sure], masks)
    return objects(tile, shown, label_names)


def as_tile(image: np.ndarray) -> np.ndarray:
    """An image whose longer side is as long as a tile of a `sheet`."""
    height, width, _ = image.shape
    scale = TILE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def sheet(tiles: Sequence[Image.Image]) -> Image.Image:
    """Pictures beside each other, in rows of `COLUMNS`."""
    rows = -(-len(tiles) // COLUMNS)
    picture = Image.new("RGB", (min(COLUMNS, len(tiles)) * TILE, rows * TILE), "white")
    for i, tile in enumerate(tiles):
        picture.paste(tile, (i % COLUMNS * TILE, i // COLUMNS * TILE))
    return picture


def classes(image: np.ndarray, labels: np.ndarray, label_names: Sequence[str]) -> Image.Image:
    """Paints every pixel but the background in the colour of its class, with a list of the names.

    Args:
      image: uint8 `[height, width, 3]`.
      labels: int `[h, w]` of the whole image.
      label_names: by label; 0 is the background.
    """
    height, width, _ = image.shape
    resized = Image.fromarray(labels.astype(np.int32)).resize(
        (width, height), Image.Resampling.NEAREST
    )
    at = np.asarray(resized)
    pixels, present = image.astype(np.float32), [label for label in np.unique(at) if label]
    for label in present:
        pixels[at == label] += OPACITY * (np.array(colour(label)) - pixels[at == label])
    picture = Image.fromarray(pixels.astype(np.uint8))
    draw, font, top = ImageDraw.Draw(picture), _font(image), 0.0
    for label in present:
        top = _tag(draw, font, (0, top), label_names[label], colour(label))
    return picture


def _font(image):
    return ImageFont.load_default(max(10, FONT_SHARE * min(image.shape[:2])))


def _tag(draw, font, corner, text, background) -> float:
    """Writes a text on its colour; returns where the next one below it may begin."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    box = draw.textbbox(corner, text, font=font)
    draw.rectangle(box, fill=background)
    draw.text(corner, text, font=font, fill=(0, 0, 0))
    return box[3]
