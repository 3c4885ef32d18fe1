"""Blocks that return their input: the construction by which He et al. argue (section 1).

A deeper network has a solution that is no worse than a shallower one's: the shallower one, and
further layers that do nothing. A residual block does nothing when its branch is zero. A plain one
must be made of two 3×3 convolutions, two BNs and two ReLUs, which the input, ≥ 0 behind a ReLU,
passes unchanged if each convolution is the identity and each BN undoes what it does.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.ops.norm import BN_EPSILON


def identity_block(
    params: Mapping[str, Any], mean: np.ndarray, var: np.ndarray, residual: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and statistics with which a basic block returns an input ≥ 0.

    Normalised with its averages (testing, or `model.frozen_bn`), a plain block does so exactly. In
    training, where BN takes the statistics of the batch, as far as these are `mean` and `var`. A
    residual one does so exactly in both: its last BN's scale is 0.

    Args:
      params: of the block, as initialised; its input and output have the same shape.
      mean, var: of the input per channel, over all images and positions.
      residual: whether it has a shortcut.

    Returns:
      `(params, batch_stats)`.
    """
    norms = [name for name in params if name.startswith("bn")]
    if residual:
        last = {**params[norms[-1]], "scale": np.zeros_like(params[norms[-1]]["scale"])}
        stats = {"mean": np.zeros_like(mean), "var": np.ones_like(var)}
        return {**params, norms[-1]: last}, dict.fromkeys(norms, stats)
    var, scale = undone(np.asarray(var, np.float32))
    mean = np.asarray(mean, np.float32)
    kernel = identity_kernel(len(mean))
    made = {name: {"kernel": kernel} for name in params if name.startswith("conv")}
    made |= {name: {"scale": scale, "bias": mean} for name in norms}
    return made, {name: {"mean": mean, "var": var} for name in norms}


def identity_kernel(channels: int) -> np.ndarray:
    """The 3×3 kernel `[3, 3, channels, channels]` that copies every channel."""
    kernel = np.zeros((3, 3, channels, channels), np.float32)
    kernel[1, 1] = np.eye(channels)
    return kernel


def undone(var: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(var, scale)` with which BN's factor, `scale / √(var + ε)`, is 1 to the last bit.

    Where no float32 scale does it, the variance is taken a few units in the last place larger.
    """
    rsqrt = jax.jit(lambda var: jax.lax.rsqrt(var + BN_EPSILON))
    while True:
        factor = np.asarray(rsqrt(jnp.asarray(var)))
        scale = (1 / factor.astype(np.float64)).astype(np.float32)
        inexact = factor * scale != 1
        if not inexact.any():
            return var, scale
        var = np.where(inexact, np.nextafter(var, np.float32(np.inf)), var)
