"""Class activation maps: where in an image a class is seen (Zhou et al., CVPR 2016)."""

import jax
import jax.numpy as jnp


def class_activation_map(
    features: jax.Array, head_kernel: jax.Array, class_index: jax.Array
) -> jax.Array:
    """The share of each position in a class's logit: M(y, x) = Σ_k w[k, class]·f[y, x, k].

    The mean of the map over the positions, plus the class's bias, is its logit: that is why a
    network that ends in average pooling and one linear layer needs no change.

    Args:
      features: the last stage's output, float `[batch, height, width, channels]`.
      head_kernel: `params['head']['kernel']`, `[channels, classes]`.
      class_index: int32 `[batch]`, the class of each image.

    Returns:
      float32 `[batch, height, width]`.
    """
    weights = jnp.asarray(head_kernel, jnp.float32)[:, class_index]
    return jnp.einsum("bhwk,kb->bhw", features.astype(jnp.float32), weights)
