"""Which anchors and regions of an image a detector learns from in one step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Sampling(NamedTuple):
    """What is an object, what is background, and how many of both are taken.

    Attributes:
      number: taken of an image.
      share: of objects among them, at most; background fills up.
      high: an IoU with an annotated box from which on it is that object.
      low: below this IoU it is background; between the two it is neither.
    """

    number: int
    share: float
    high: float
    low: float

    @property
    def most_objects(self) -> int:
        """How many objects are taken at most; they come first."""
        return int(self.number * self.share)


ANCHORS = Sampling(256, 0.5, 0.7, 0.3)  # Ren et al. 2015, sections 3.1.2 and 3.1.3
REGIONS = Sampling(512, 0.25, 0.5, 0.5)  # Lin et al. 2017, section 5.2; torchvision's


class Sampled(NamedTuple):
    """What was taken, objects first, in arrays `[n]` of min(`Sampling.number`, all) places.

    Attributes:
      indices: int32 of the anchor or region.
      is_object: bool.
      valid: bool; False where there were not enough.
    """

    indices: jax.Array
    is_object: jax.Array
    valid: jax.Array


def balanced(
    key: jax.Array, objects: jax.Array, background: jax.Array, sampling: Sampling
) -> Sampled:
    """Takes of both at random, without repetition: torchvision's `BalancedPositiveNegativeSampler`.

    Args:
      key: of the image and the step; the result is a function of it.
      objects, background: bool `[n]`, not both.
    """
    draw = jax.random.uniform(key, objects.shape)
    size = min(sampling.number, len(draw))
    most = min(sampling.most_objects, size)

    def taken(which, most):
        """The indices of `[size]` of these at random, and of how many they are."""
        index = jax.lax.top_k(jnp.where(which, draw, -1), size)[1]
        return index, jnp.minimum(which.sum(), most)

    of_objects, found = taken(objects, most)
    of_background, others = taken(background, sampling.number - found)
    place = jnp.arange(size)
    index = jnp.where(place < found, of_objects, of_background[jnp.maximum(place - found, 0)])
    return Sampled(index, place < found, place < found + others)


def at_random(
    key: jax.Array, objects: jax.Array, background: jax.Array, sampling: Sampling
) -> Sampled:
    """Takes of both as they come: `balanced`, but as many objects as chance has, in any place."""
    draw = jnp.where(objects | background, jax.random.uniform(key, objects.shape), -1)
    value, index = jax.lax.top_k(draw, min(sampling.number, len(draw)))
    return Sampled(index, objects[index], value >= 0)
