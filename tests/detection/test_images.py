"""Sizes, canvases, resizing and pasting, against torch's rules written out."""

import math
import re

import jax.numpy as jnp
import numpy as np
import pytest

from data.decode import DecodeError
from detection import draw, images, masks, network
from detection.resize import resized, resized_batch
from errors import UserError


def test_whatever_the_images_five_canvases_are_enough():
    random, seen = np.random.default_rng(0), set()
    sizes = [
        *random.integers(1, 5000, (3000, 2)).tolist(),
        [1, 1],
        [1, 5000],
        [5000, 1],
        [427, 640],
    ]
    for height, width in sizes:
        size = images.resized_size(height, width, 800, 1333)
        assert max(size) <= 1333 and min(size) <= 800 and min(size) >= 1
        scale = min(800 / min(height, width), 1333 / max(height, width))
        assert size[0] == max(1, math.floor(height * scale))
        canvas = images.canvas(*images.padded(size), 800, 1333)
        assert all(c >= n and c % 32 == 0 for c, n in zip(canvas, images.padded(size), strict=True))
        seen.add(canvas)
    assert seen == {(800, 800), (800, 1088), (1088, 800), (800, 1344), (1344, 800)}
    assert list(images.sides(800, 1333)) == [800, 1088, 1344]
    assert list(images.sides(800, 800)) == [800]
    assert images.canvas(520, 3000, 520) == (544, 3904)  # no longest side: one more each 4/3


@pytest.mark.parametrize(("old", "new"), [((3, 5), (7, 4)), ((1, 1), (4, 3)), ((6, 4), (6, 4))])
def test_resizing_is_torchs_bilinear(old, new):
    image = np.random.default_rng(0).standard_normal((*old, 2)).astype(np.float32)
    expected = np.zeros((*new, 2))
    for y in range(new[0]):
        for x in range(new[1]):
            for (a, wa), (b, wb) in (
                (row, column)
                for row in _two(y, old[0], new[0])
                for column in _two(x, old[1], new[1])
            ):
                expected[y, x] += wa * wb * image[a, b]
    np.testing.assert_allclose(resized(image, *new), expected, atol=1e-5)
    # Inside of larger arrays, as a compiled program has them.
    padded = np.pad(image, ((0, 2), (0, 1), (0, 0)), constant_values=9)[None]
    own = [jnp.array([n]) for n in old]
    found = resized_batch(padded, own, (new[0] + 3, new[1] + 2), jnp.array([new]))
    np.testing.assert_allclose(found[0, : new[0], : new[1]], expected, atol=1e-5)


def _two(i, old, new):
    """The two positions that position i is a mean of, and their weights."""
    place = max((i + 0.5) * old / new - 0.5, 0)
    first = min(int(place), old - 1)
    return (first, 1 - place + first), (min(first + 1, old - 1), place - first)


def test_grey_images_are_those_of_three_equal_channels():
    grey = np.random.default_rng(0).integers(0, 256, (5, 7, 1), np.uint8)
    for longer in (0, 40):
        one, three = (images.prepare(image, 20, longer) for image in (grey, np.repeat(grey, 3, -1)))
        np.testing.assert_array_equal(one, three)


@pytest.mark.parametrize("longer", [0, 40])
@pytest.mark.parametrize(
    "image",
    [
        np.zeros((5, 7), np.uint8),
        np.zeros((5, 7, 4), np.uint8),
        np.zeros((5, 7, 3), np.uint16),
        np.zeros((5, 7, 3), np.float32),
        np.zeros((0, 7, 3), np.uint8),
        np.zeros((5, 0, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused_with_their_type_and_shape(image, longer):
    message = f"an image of {image.dtype} {list(image.shape)}: expected uint8"
    with pytest.raises(UserError, match=re.escape(message)):
        images.prepare(image, 20, longer)


def test_an_image_too_thin_to_be_segmented_is_refused():
    assert images.prepare(np.zeros((40, 2000, 3), np.uint8), 96).shape == (96, 4800, 3)
    with pytest.raises(DecodeError, match="1 × 2,000 is too thin.*192,000 pixels along the other"):
        images.prepare(np.zeros((1, 2000, 3), np.uint8), 96)


def test_masks_are_pasted_where_the_boxes_are():
    full = np.ones((5, 28, 28), np.float32)
    boxes = [[2, 3, 12, 9], [-8, -8, 4, 4], [0, 0, 20, 10], [30, 30, 40, 40], [-30, -30, -20, -20]]
    pasted = masks.paste(full, np.array(boxes, np.float32), 10, 20)
    assert pasted.shape == (5, 10, 20)
    assert pasted[0, 3:9, 2:12].min() > 0.5 and pasted[0, :2].max() == 0
    assert pasted[1, :3, :3].min() > 0.9 and pasted[1, 6:].max() == 0
    assert pasted[2, 2:-2, 2:-2].min() > 0.9 and not pasted[3:].any()
    assert masks.paste(full[:0], np.zeros((0, 4), np.float32), 10, 20).shape == (0, 10, 20)


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (40, 30)])
def test_pictures_of_any_size_are_drawn(shape):
    image = np.full((*shape, 3), 128, np.uint8)
    found = network.Objects(
        np.array([[-5, -5, 500, 500], [0, 0, 0, 0]], np.float32),
        np.array([0.9, 0.5]),
        np.array([1, 2]),
        np.ones((2, *shape), np.float32),
    )
    names = ("background", "one", "two\x1b 猫")
    assert draw.objects(image, found, names).size == shape[::-1]
    labels = np.arange(6).reshape(2, 3) % 3
    assert draw.classes(image, labels, names).size == shape[::-1]
    untouched = draw.classes(image, np.zeros((2, 3), int), names)
    np.testing.assert_array_equal(np.asarray(untouched), image)
