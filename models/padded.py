"""Images of several sizes in one array, each computed as if it were alone.

A program takes one shape, so an image lies in the upper left corner of a larger array. Before every
operation that mixes positions, what lies beyond the image is made what it would be at the image's
own border: zeros for a convolution, the last row or column again for a pooling.
"""

import contextlib
from collections.abc import Iterator, Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from models.resnet import ResNet

HALVINGS = 6  # of the largest stride, 64: the last level of a feature pyramid


def inside(shape: Sequence[int], own: Sequence[Array] | Array) -> Array:
    """Which positions of arrays of a height and a width are the images': bool `[batch, h, w]`.

    Args:
      own: the images' heights, int `[batch]`, and widths.
    """
    rows, columns = (
        jnp.arange(n)[None] < size[:, None] for n, size in zip(shape, own, strict=True)
    )
    return rows[:, :, None] & columns[:, None, :]


class OwnSizes:
    """Each image's own height and width, wherever a network has halved the array's."""

    def __init__(self, model: ResNet, shape: Sequence[int], sizes: Array):
        """Takes the array's height and width, and the images', int32 `[batch, 2]`."""
        self._own = [_halved(model, n, sizes[:, i]) for i, n in enumerate(shape)]

    def of(self, x: Array) -> list[Array]:
        """Own heights and widths, int `[batch]` each, where the network has `[batch, h, w, c]`."""
        return [own[n] for own, n in zip(self._own, x.shape[1:3], strict=True)]

    def inside(self, x: Array) -> Array:
        """Which positions of `[batch, h, w, c]` are the image's: bool `[batch, h, w, 1]`."""
        return inside(x.shape[1:3], self.of(x))[..., None]

    def continued(self, x: Array) -> Array:
        """With the last row and column of each image again in all that follow."""
        for axis, own in zip((1, 2), self.of(x), strict=True):
            beyond = jnp.arange(1, x.shape[axis] + 1)[None] - own[:, None]
            beyond = jnp.expand_dims(beyond, (3 - axis, 3))
            # A selection, and so is its derivative; that of a gather would be a scatter.
            last = jnp.where(beyond == 0, x, 0).sum(axis, keepdims=True)
            x = jnp.where(beyond > 0, last, x)
        return x

    @contextlib.contextmanager
    def respected(self) -> Iterator[None]:
        """What networks compute in the block is what they compute of each image alone."""
        with nn.intercept_methods(self._as_if_alone):
            yield

    def _as_if_alone(self, next_fun, args, kwargs, context):
        name = context.method_name
        if isinstance(context.module, nn.Conv) and max(context.module.kernel_size) > 1:
            args = (jnp.where(self.inside(args[0]), args[0], 0), *args[1:])
        elif name == "projection":  # may pool
            args = (self.continued(args[0]), *args[1:])
        output = next_fun(*args, **kwargs)
        return self.continued(output) if name == "_stem" else output  # which is pooled


def _halved(model, padded, own):
    """An image's own size, by the size of the array, wherever the network halves them."""
    found = {padded: own}
    round_up = [True] * HALVINGS
    if model.stem != "cifar":
        round_up[1] = model.stem_pool == "padded"  # after the stem's stride
    for up in round_up:
        padded, own = (padded + up) // 2, (own + up) // 2
        found.setdefault(padded, own)
    return found
