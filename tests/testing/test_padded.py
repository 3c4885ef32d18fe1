"""Images of any shape in the programs of a few shapes: each scored as if it were alone."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import models
from data import transforms
from data.decode import DecodeError
from data.normalization import Normalization
from testing import padded, protocols

NETWORKS = [
    {"depth": 50, "width": 2},
    {"depth": 50, "width": 2, "stem_pool": "unpadded", "output_stride": 16, "shortcut": "A"},
    {"depth": 50, "width": 4, "stem": "deep", "shortcut": "D", "downsample_in": "3x3"},
    {"depth": 18, "width": 2, "preactivation": True, "space_to_depth": True},
    {"depth": 8, "width": 2, "stem": "cifar", "variant": "exclusive_gating"},
]
SIZES = np.array([(37, 50), (40, 64), (33, 33), (38, 61)], np.int32)


def untrained(fields, classes=5):
    """A network whose batch normalisation shifts zeros, and whose head tells features apart."""
    model = models.create(fields, classes)
    variables = models.init(model, seed=1)
    random = np.random.default_rng(2)

    def shifted(path, leaf):
        if path[-1].key in ("bias", "mean"):
            return jnp.asarray(random.normal(0, 0.3, leaf.shape), jnp.float32)
        return leaf * 50 if path[-2].key == "head" else leaf

    return model, jax.tree.map_with_path(shifted, variables)


@pytest.mark.slow
@pytest.mark.parametrize("fields", NETWORKS, ids=str)
def test_scores_are_those_of_the_image_alone(fields):
    model, variables = untrained(fields)
    images = np.random.default_rng(0).normal(size=(4, 40, 64, 3)).astype(np.float32)
    found = jax.jit(lambda *a: padded.mean_scores(model, *a))(variables, images, SIZES)
    alone = jax.jit(lambda v, x: model.apply(v, x, train=False)[0])
    for i in (0, 3):  # each compiles
        height, width = SIZES[i]
        expected = alone(variables, images[i : i + 1, :height, :width])[0]
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found[i] / scale, expected / scale, atol=2e-5)


@pytest.mark.slow
def test_probabilities_of_each_image_at_its_true_shape():
    """Beyond 2:1, one pixel high, upright: against one program per view."""
    model, variables = untrained({"depth": 8, "width": 4, "stem": "cifar"})
    constants = Normalization(np.float32([100, 110, 120]), np.float32([60, 50, 40]))
    random, scales = np.random.default_rng(5), (8, 13)
    score = jax.jit(lambda v, views: protocols.log_probabilities(model, v, views, True))
    for group in ([(1, 7), (3, 19)], [(40, 9), (23, 5)]):
        pictures = [random.integers(0, 256, (*shape, 3), np.uint8) for shape in group]
        (bucket,) = {padded.aspect_bucket(*shape) for shape in group}
        shapes = [padded.bucket_shape(bucket, scale) for scale in scales]
        packed = np.stack([padded.pack_scales(picture, shapes) for picture in pictures])
        assert packed.shape[1] == padded.packed_size(shapes)
        views = protocols.unpacked(jnp.asarray(packed), constants, shapes=shapes)
        found = np.exp(score(variables, views))
        for picture, probabilities in zip(pictures, found, strict=True):
            np.testing.assert_allclose(
                probabilities, slow(model, variables, constants, picture, scales), atol=1e-5
            )


def slow(model, variables, constants, picture, scales):
    """The probabilities of one picture, view by view."""
    scores, apply = [], jax.jit(lambda v, x: model.apply(v, x, train=False)[0][0])
    for scale in scales:
        height, width = transforms.resized_shape(*picture.shape[:2], scale)
        resized = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR)
        for view in (np.asarray(resized), np.asarray(resized)[:, ::-1]):
            normalised = (view.astype(np.float32) - constants.mean) / constants.std
            scores.append(apply(variables, normalised[None]))
    return jax.nn.softmax(sum(scores) / len(scores))


@pytest.mark.slow
def test_a_mean_image_is_resized_to_each_images_shape():
    mean = np.random.default_rng(0).uniform(0, 255, (8, 8, 3)).astype(np.float32)
    sizes = jnp.array([(16, 21), (5, 9)])
    found = padded.resized(jnp.asarray(mean), sizes, (16, 24))
    for one, (height, width) in zip(found, sizes.tolist(), strict=True):
        expected = jax.image.resize(mean, (height, width, 3), "linear")
        np.testing.assert_allclose(one[:height, :width], expected, rtol=1e-5, atol=1e-3)


def test_buckets_are_few_and_hold_their_images():
    sizes = [(h, w) for h in range(40, 700, 13) for w in range(40, 700, 17)]
    near = [(h, w) for h, w in sizes if max(h, w) <= 2 * min(h, w)]
    assert {padded.aspect_bucket(h, w) for h, w in near} == set(range(-7, 8))
    for h, w in [*sizes, (1, 1), (1, 5000), (3, 1), (375, 500), (500, 333)]:
        for scale in (224, 640):
            own = transforms.resized_shape(h, w, scale)
            shape = padded.bucket_shape(padded.aspect_bucket(h, w), scale)
            assert own[0] <= shape[0] and own[1] <= shape[1]
            empty = 1 - Fraction(own[0] * own[1], shape[0] * shape[1])
            assert empty <= (0.12 if max(h, w) <= 2 * min(h, w) else 0.34)
    assert padded.bucket_shape(padded.aspect_bucket(375, 500), 384) == (384, 512)
    assert padded.bucket_shape(padded.aspect_bucket(600, 400), 480) == (720, 480)


def test_an_absurdly_long_image_is_refused_by_name():
    bucket = padded.aspect_bucket(1, 5000, (224, 640))
    assert bucket == 0
    shapes = [padded.bucket_shape(bucket, scale) for scale in (224, 640)]
    with pytest.raises(DecodeError, match="1 × 5,000 pixels would have 224 × 1,120,000"):
        padded.pack_scales(np.zeros((1, 5000, 3), np.uint8), shapes)
