"""Heads of segmenters from random weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data import small_sets
from detection.layers import Layer
from detection.segmentation import FCNHead

SIDE, DIGIT = 12, 8


def test_the_last_layer_begins_as_torchs_convolutions():
    """Uniform within ±1/√channels."""
    x = jnp.zeros((1, 1, 1, 256))
    variables = jax.jit(lambda: FCNHead(300).init(jax.random.key(0), x, None))()
    kernel = variables["params"]["logits"]["kernel"]
    assert kernel.shape == (1, 1, 64, 300)
    assert 0.99 < 8 * jnp.abs(kernel).max() <= 1
    assert 8 * kernel.std() == pytest.approx(3**-0.5, rel=0.02)


class OnThreeLayers(nn.Module):
    """The head of eleven classes, where a position sees all of a digit."""

    @nn.compact
    def __call__(self, x):
        for rate, features in enumerate((16, 32, 32), start=1):
            x = Layer(features, 3, rate)(x, train=True)
        return FCNHead(11)(x, None, train=True)


def digits_on_noise(random, digits):
    """A batch of images, and the classes of their pixels: one digit each at a random place."""
    images = random.uniform(-1, 0, (32, SIDE, SIDE, 1)).astype(np.float32)
    classes = np.zeros((32, SIDE, SIDE), np.int32)
    for image, of_pixels in zip(images, classes, strict=True):
        i, (y, x) = random.integers(len(digits.images)), random.integers(SIDE - DIGIT + 1, size=2)
        ink, place = digits.images[i, :, :, 0] > 96, np.s_[y : y + DIGIT, x : x + DIGIT]
        image[place][ink], of_pixels[place][ink] = 1, 1 + digits.labels[i]
    return images, classes


@pytest.mark.slow
def test_it_learns_which_digit_a_pixel_is_of():
    """A loss lower than of telling digits from noise perfectly, and no digit from another."""
    net, adam = OnThreeLayers(), optax.adam(0.005)
    digits, random = small_sets.load("digits", "train", ""), np.random.default_rng(0)

    @jax.jit
    def step(variables, state, images, classes):
        def loss(params):
            every = variables | {"params": params}
            logits, statistics = net.apply(every, images, mutable=["batch_stats"])
            entropy = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
            return entropy.mean(), statistics

        (value, statistics), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, state = adam.update(gradient, state)
        params = optax.apply_updates(variables["params"], updates)
        return statistics | {"params": params}, state, value

    image = jnp.zeros((1, SIDE, SIDE, 1))
    variables = jax.jit(lambda: net.init(jax.random.key(0), image))()
    state = adam.init(variables["params"])
    found = []
    for _ in range(160):
        images, classes = digits_on_noise(random, digits)
        variables, state, loss = step(variables, state, images, classes)
        found.append((loss, np.log(10) * (classes > 0).mean()))
    loss, of_ink_alone = np.mean(found[-20:], axis=0)
    assert loss < of_ink_alone
