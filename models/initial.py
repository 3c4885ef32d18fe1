"""Random variables of a network at once, for programs that do not train from scratch."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from models.ops.conv import he_deviation

HEAD_DEVIATION = 0.01  # Goyal et al., section 5.1; the paper does not say.


def init(model: nn.Module, seed: int = 0, channels: int = 3) -> dict[str, Any]:
    """Random `{'params': …, 'batch_stats': …}`, float32, for images of any size.

    NumPy draws the kernels, from the distributions of `model.init` but other numbers: on a CPU,
    compiling JAX's random numbers for every kernel of a ResNet-50 takes ten seconds.

    Args:
      model: a network of `models.create`.
      seed: of the random numbers, ≥ 0.
      channels: of the images.
    """
    image = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)

    def whole() -> dict[tuple[str, ...], jax.Array]:
        return flatten_dict(model.lazy_init(jax.random.key(0), image, train=False))

    shapes = jax.eval_shape(whole)
    kernels = [path for path in shapes if path[-1] == "kernel"]
    variables = jax.jit(lambda: {p: a for p, a in whole().items() if p not in kernels})()
    random = np.random.default_rng(seed)
    for path in kernels:
        shape = shapes[path].shape
        deviation = HEAD_DEVIATION if path[-2] == "head" else he_deviation(shape)
        variables[path] = jnp.asarray(deviation * random.standard_normal(shape, np.float32))
    return unflatten_dict({path: variables[path] for path in shapes})
