"""TrivialAugment's and RandAugment's operations against slow NumPy, and how they are drawn."""

import numpy as np
import pytest
from PIL import Image

from data import policies
from data.keys import host_generator

HEIGHT, WIDTH = 7, 10


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(20, 200, (HEIGHT, WIDTH, 3), np.uint8)


def changed(table, name, image, strength, sign=1):
    return np.asarray(table[name](Image.fromarray(image), strength, sign)).astype(int)


def grey(image):
    """The luminance that Pillow computes, ITU-R 601 in sixteen bits."""
    r, g, b = np.moveaxis(image.astype(int), -1, 0)
    return (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16


def blended(start, image, factor):
    return np.clip(start + factor * (image.astype(float) - start), 0, 255)


def moved(image, source):
    """Each pixel of the result from where `source(y, x)` says, black outside."""
    result = np.zeros_like(image)
    for y in range(HEIGHT):
        for x in range(WIDTH):
            from_y, from_x = (int(np.floor(v)) for v in source(y + 0.5, x + 0.5))
            if 0 <= from_y < HEIGHT and 0 <= from_x < WIDTH:
                result[y, x] = image[from_y, from_x]
    return result


@pytest.mark.parametrize("sign", [1, -1])
def test_geometry(image, sign):
    slope = 0.99 * 0.5 * sign
    found = changed(policies.WIDE, "shear_x", image, 0.5, sign)
    np.testing.assert_array_equal(found, moved(image, lambda y, x: (y, x + slope * y)))
    found = changed(policies.WIDE, "shear_y", image, 0.5, sign)
    np.testing.assert_array_equal(found, moved(image, lambda y, x: (y + slope * x, x)))
    found = changed(policies.WIDE, "translate_x", image, 0.1, sign)  # 3 pixels
    np.testing.assert_array_equal(found, moved(image, lambda y, x: (y, x - 3 * sign)))
    found = changed(policies.WIDE, "translate_y", image, 0.1, sign)
    np.testing.assert_array_equal(found, moved(image, lambda y, x: (y - 3 * sign, x)))
    square = image[:, :HEIGHT]
    found = changed(policies.WIDE, "rotate", square, 90 / 135, sign)
    np.testing.assert_array_equal(found, np.rot90(square, sign))


def test_beyond_the_border_rand_augment_shows_the_mean_colour():
    white = np.full((20, 20, 3), 255, np.uint8)
    found = changed(policies.INCREASING, "translate_x", white, 1.0)  # 9 of 20 pixels
    assert (found[:, :10] == 255).all()
    assert (found[:, 12:] == policies.BICUBIC_MEAN.fill).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_enhancements(image, sign):
    factor = 1 + sign * 0.9 * 0.5
    smooth = image.astype(float)
    for y in range(1, HEIGHT - 1):
        for x in range(1, WIDTH - 1):
            around = image[y - 1 : y + 2, x - 1 : x + 2].astype(float).sum((0, 1))
            smooth[y, x] = np.floor((around + 4.0 * image[y, x]) / 13 + 0.5)
    starts = {
        "brightness": 0,
        "colour": grey(image)[..., None],
        "contrast": int(grey(image).mean() + 0.5),
        "sharpness": smooth,
    }
    for name, start in starts.items():
        found = changed(policies.INCREASING, name, image, 0.5, sign)
        np.testing.assert_allclose(found, blended(start, image, factor), atol=1.01, err_msg=name)


def test_tables_of_colours(image):
    bits = changed(policies.WIDE, "posterize", image, 1.0)  # 2 bits are left
    np.testing.assert_array_equal(bits, image & 0b11000000)
    bits = changed(policies.INCREASING, "posterize", image, 0.6)  # 4 − 2 bits
    np.testing.assert_array_equal(bits, image & 0b11000000)
    whole = image.astype(int)
    for table, threshold in ((policies.WIDE, 255 * 0.4), (policies.INCREASING, 256 - 153)):
        found = changed(table, "solarize", image, 0.6)
        np.testing.assert_array_equal(found, np.where(whole < threshold, whole, 255 - whole))
    found = changed(policies.INCREASING, "solarize_add", image, 0.6)
    np.testing.assert_array_equal(found, np.where(whole < 128, whole + 66, whole))
    np.testing.assert_array_equal(changed(policies.INCREASING, "invert", image, 0), 255 - whole)
    np.testing.assert_array_equal(changed(policies.WIDE, "identity", image, 1.0), whole)


def test_autocontrast_and_equalize(image):
    found = changed(policies.WIDE, "autocontrast", image, 0)
    low, high = image.min((0, 1)).astype(float), image.max((0, 1)).astype(float)
    np.testing.assert_allclose(found, (image - low) * 255 / (high - low), atol=1)
    found = changed(policies.WIDE, "equalize", image, 0)
    for channel in range(3):
        values = image[..., channel].ravel()
        step = (len(values) - np.sum(values == values.max())) // 255
        table = [(step // 2 + np.sum(values < v)) // step if step else v for v in range(256)]
        np.testing.assert_array_equal(found[..., channel].ravel(), np.clip(table, 0, 255)[values])


@pytest.mark.parametrize("policy", ["trivial_augment", "rand_augment"])
def test_a_function_of_seed_and_position(policy, image):
    def at(position, seed=0):
        return policies.apply(policy, image, host_generator(seed, position), 6.0)

    first = [at(position) for position in range(40)]
    assert all(found.dtype == np.uint8 and found.shape == image.shape for found in first)
    np.testing.assert_array_equal([at(position) for position in range(39, -1, -1)][::-1], first)
    assert len({found.tobytes() for found in first}) > 20
    assert any((at(position, seed=1) != first[position]).any() for position in range(40))


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 9, 3), (200, 2, 3)])
def test_odd_sizes_under_every_operation(shape):
    one = np.full(shape, 7, np.uint8)
    for table in (policies.WIDE, policies.INCREASING):
        for name in table:
            for strength in (0.0, 0.5, 1.0):
                assert changed(table, name, one, strength, -1).shape == shape, name


def recorded(monkeypatch, name, policy, magnitude, number):
    """How often an operation is applied among `number` images, and with which strengths."""
    table, seen = getattr(policies, name), []
    for operation in table:
        monkeypatch.setitem(
            table, operation, lambda i, m, s, o=operation: seen.append((o, m, s)) or i
        )
    for position in range(number):
        policies.apply(
            policy, np.zeros((2, 2, 3), np.uint8), host_generator(3, position), magnitude
        )
    return seen


def test_trivial_augment_draws_one_operation_of_any_strength(monkeypatch):
    number = 14 * 200
    seen = recorded(monkeypatch, "WIDE", "trivial_augment", 0.0, number)
    assert len(seen) == number
    names, counts = np.unique([name for name, _, _ in seen], return_counts=True)
    assert len(names) == 14 and counts.min() > 150 and counts.max() < 250
    strengths = np.array([m for _, m, _ in seen])
    np.testing.assert_allclose(np.unique(strengths), np.arange(31) / 30)
    assert 0.45 < strengths.mean() < 0.55
    assert abs(np.mean([sign for _, _, sign in seen])) < 0.06


@pytest.mark.parametrize(("magnitude", "mean"), [(6.0, 0.6), (0.0, 0.02), (10.0, 0.98)])
def test_rand_augment_applies_half_of_two_operations(monkeypatch, magnitude, mean):
    number = 1_500
    seen = recorded(monkeypatch, "INCREASING", "rand_augment", magnitude, number)
    assert 0.95 < len(seen) / number < 1.05
    assert len({name for name, _, _ in seen}) == 15
    strengths = np.array([m for _, m, _ in seen])
    assert strengths.min() >= 0 and strengths.max() <= 1
    assert strengths.mean() == pytest.approx(mean, abs=0.01)
    if magnitude == 6:
        assert strengths.std() == pytest.approx(0.05, abs=0.005)
