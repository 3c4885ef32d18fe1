"""The convolution of every network here: Flax's, with padding that keeps it centred.

Inside a loop (`lax.scan`) XLA:CPU does not bring gradients of convolutions into the form that its
fast kernels take. So convolution, input gradient and kernel gradient are three operations here,
which a CPU is given in that form and every other platform as XLA's own. Each is linear in both
arguments, and their derivatives are one another, to any order.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import ad

from errors import UserError
from models.ops.primitive import primitive

DIMENSION_NUMBERS = ("NHWC", "HWIO", "NHWC")

# He normal over the fan-out, k·k·features, not truncated: the rule of the authors' released code
# and of Torch's MSRinit for ResNets. It keeps the variance of the gradient; over the fan-in the
# first layers would start with another scale than the one the published recipes were tuned for.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def he_deviation(shape: Sequence[int]) -> float:
    """Standard deviation of `he_normal_fan_out` for a kernel `[…, k, k, in, features]`."""
    return math.sqrt(2 / (shape[-4] * shape[-3] * shape[-1]))


def conv(
    features: int,
    kernel_size: int,
    strides: int = 1,
    dilation: int = 1,
    groups: int = 1,
    *,
    use_bias: bool = False,
    dtype: Any = None,
    name: str | None = None,
    kernel_init: nn.initializers.Initializer = he_normal_fan_out,
    space_to_depth: bool = False,
) -> nn.Conv:
    """A square `nn.Conv`.

    Maps `[batch, height, width, in]` to `[batch, ⌈height/s⌉, ⌈width/s⌉, features]`.

    All sides are padded by dilation · (k // 2) zeros, as in Torch, so that weights move between
    frameworks. Parameters, float32: 'kernel' `[k, k, in / groups, features]` and, if asked, 'bias'.

    Args:
      kernel_size: an odd number; strides, dilation: the same in both directions.
      groups: each of that many equal parts of the features sees that part of the channels alone.
      dtype: of the computation; None takes that of input and parameters.
      space_to_depth: for 7×7 of stride 2: computes it over blocks of 2×2 pixels.

    Raises:
      UserError: for an even kernel size.
    """
    if kernel_size % 2 == 0:
        raise UserError(
            f"kernel of {kernel_size}×{kernel_size}: expected an odd size, which padding by half "
            "of it keeps centred; set kernel_size to 1, 3, 5, 7, …"
        )
    padding = dilation * (kernel_size // 2)
    return nn.Conv(
        features,
        (kernel_size, kernel_size),
        (strides, strides),
        ((padding, padding), (padding, padding)),
        kernel_dilation=(dilation, dilation),
        feature_group_count=groups,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=kernel_init,
        conv_general_dilated=conv_7x7_of_blocks if space_to_depth else convolve,
        name=name,
    )


def conv_7x7_of_blocks(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """A 7×7 convolution of stride 2, as a 4×4 one of stride 1 over blocks of 2×2 pixels.

    The kernel gets a row and a column of zeros in front, which makes it 8×8 = 4×4 blocks; with
    x `[batch, height, width, in]` split alike, 4·in channels take part where an accelerator's
    matrix unit would find `in` = 3 too few. Odd images get a row or column of zeros behind, as the
    padding has them.

    Args:
      kernel: `[7, 7, in, out]`; what follows in Flax's call is given by the name.

    Returns:
      `[batch, ⌈height/2⌉, ⌈width/2⌉, out]`.
    """
    batch, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    x = x.reshape(batch, (height + 1) // 2, 2, (width + 1) // 2, 2, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(*x.shape[:2], x.shape[3], 4 * channels)
    kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0)))
    kernel = kernel.reshape(4, 2, 4, 2, channels, -1).transpose(0, 2, 1, 3, 4, 5)
    kernel = kernel.reshape(4, 4, 4 * channels, -1)
    return lax.conv_general_dilated(
        x, kernel, (1, 1), [(2, 1)] * 2, dimension_numbers=DIMENSION_NUMBERS
    )


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: Any,
    *,
    rhs_dilation: Sequence[int],
    feature_group_count: int = 1,
    **_: Any,
) -> jax.Array:
    """`lax.conv_general_dilated`, with the arguments that `nn.Conv` calls it with for `conv`."""
    del padding  # follows from kernel and dilation
    return _conv_p.bind(
        *_vary_alike(x, kernel),
        image=x.shape[1:3],
        size=kernel.shape[0],
        strides=window_strides[0],
        dilation=rhs_dilation[0],
        groups=feature_group_count,
    )


# The three operations, for every platform: XLA's own, as JAX differentiates it.
# Parameters: image (height, width) and size of the kernel, strides, dilation, groups of channels.


def _conv(x, kernel, *, image, size, strides, dilation, groups):
    del image
    padding = dilation * (size // 2)
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        [(padding, padding)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=DIMENSION_NUMBERS,
        feature_group_count=groups,
    )


def _input_gradient(dy, kernel, **geometry):
    channels = kernel.shape[2] * geometry["groups"]
    x = jax.ShapeDtypeStruct((dy.shape[0], *geometry["image"], channels), dy.dtype)
    return jax.linear_transpose(lambda x: _conv(x, kernel, **geometry), x)(dy)[0]


def _kernel_gradient(x, dy, **geometry):
    size, channels = geometry["size"], x.shape[3] // geometry["groups"]
    kernel = jax.ShapeDtypeStruct((size, size, channels, dy.shape[3]), x.dtype)
    return jax.linear_transpose(lambda kernel: _conv(x, kernel, **geometry), kernel)(dy)[0]


# For a CPU: both gradients as ordinary convolutions of NHWC by HWIO. The barriers keep XLA from
# folding transposes and reversal into the convolution, a form for which it has no fast kernel.


def _input_gradient_cpu(dy, kernel, *, image, size, strides, dilation, groups):
    turned = kernel[::-1, ::-1].reshape(size, size, -1, groups, dy.shape[3] // groups)
    turned = turned.transpose(0, 1, 4, 3, 2).reshape(size, size, dy.shape[3] // groups, -1)
    turned = lax.optimization_barrier(turned)
    low = dilation * (size // 2)
    high = [low + n - _span(out, strides) for n, out in zip(image, dy.shape[1:3], strict=True)]
    return lax.conv_general_dilated(
        dy,
        turned,
        (1, 1),
        [(low, h) for h in high],
        lhs_dilation=(strides, strides),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=DIMENSION_NUMBERS,
        feature_group_count=groups,
    )


def _kernel_gradient_cpu(x, dy, *, image, size, strides, dilation, groups):
    if size == groups == 1:  # a product of matrices
        x = x[:, ::strides, ::strides].reshape(-1, x.shape[3])
        return jnp.tensordot(x, dy.reshape(-1, dy.shape[3]), (0, 0))[None, None]
    if groups == strides == 1:
        return _kernel_gradient_of_shifts(x, dy, size, dilation)
    if groups == 1 and x.shape[3] > size:  # slower for the 7×7 stem, of three channels
        return _kernel_gradient_of_rows(x, dy, size, strides, dilation)
    edges = _edges(image, dy.shape[1:3], size, strides, dilation)
    # Examples take the place of channels, and dy that of the kernel; with groups, the examples of
    # one group after the other, since XLA:CPU has no fast kernel for groups of examples.
    x = x.reshape(*x.shape[:3], groups, -1).transpose(4, 1, 2, 3, 0)
    x = x.reshape(*x.shape[:3], -1)
    x, dy = lax.optimization_barrier((x, dy.transpose(1, 2, 0, 3)))
    gradient = lax.conv_general_dilated(
        x,
        dy,
        (dilation, dilation),
        edges,
        rhs_dilation=(strides, strides),
        dimension_numbers=DIMENSION_NUMBERS,
        feature_group_count=groups,
    )
    return gradient.transpose(1, 2, 0, 3)


def _kernel_gradient_of_shifts(x, dy, size, dilation):
    """One product of matrices: x shifted along its rows by dy shifted along its columns.

    A pair of shifts is one position of the kernel, so `size` copies of each array are enough.
    """
    reach = dilation * (size // 2)
    shifts = range(-reach, reach + 1, dilation)
    x, dy = _shifted(x, 2, [-i for i in shifts]), _shifted(dy, 1, shifts)
    product = _product(*lax.optimization_barrier((x, dy)))
    return product.reshape(size, -1, size, product.shape[1] // size).transpose(2, 0, 1, 3)


def _kernel_gradient_of_rows(x, dy, size, strides, dilation):
    """For each row of the kernel one product: the pixels that its positions meet, by dy."""
    edges = _edges(x.shape[1:3], dy.shape[1:3], size, strides, dilation)
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*edge, 0) for edge in edges), (0, 0, 0)])
    spans = [_span(out, strides) for out in dy.shape[1:3]]
    starts = range(0, dilation * size, dilation)

    def met(row):
        rows = x[:, row : row + spans[0] : strides]
        return jnp.concatenate([rows[:, :, i : i + spans[1] : strides] for i in starts], 3)

    gradient = jnp.stack([_product(lax.optimization_barrier(met(row)), dy) for row in starts])
    return gradient.reshape(size, size, -1, dy.shape[3])


def _product(x, dy):
    """Sum over images and pixels of x `[batch, height, width, in]` by dy: `[in, out]`."""
    parts = 2 - x.shape[0] % 2  # XLA:CPU does not share the sum of one product between cores
    x, dy = (a.reshape(parts, -1, a.shape[3]) for a in (x, dy))
    return jnp.einsum("gpi,gpo->gio", x, dy).sum(0)


def _shifted(x, axis, shifts):
    """Copies of x, each shifted along an axis by that many positions, beside each other."""
    channels = x.shape[3]
    placed = []  # XLA:CPU writes a sum of zero-padded copies several times faster than their union
    for i, shift in enumerate(shifts):
        edges = [(0, 0, 0)] * 4
        edges[axis] = (shift, -shift, 0)
        edges[3] = (i * channels, (len(shifts) - 1 - i) * channels, 0)
        placed.append(lax.pad(x, jnp.zeros((), x.dtype), edges))
    return sum(placed)


# For CUDA: a 1×1 kernel with strides is one without, over the pixels that it takes. XLA's own would
# read all of them, and write the input's gradient with the zeros between.


def _taken(x, geometry):
    """x at the strides of a 1×1 kernel, and the geometry that is left."""
    strides = geometry["strides"]
    if geometry["size"] > 1 or strides == 1:
        return x, geometry
    x = x[:, ::strides, ::strides]
    return x, geometry | {"image": x.shape[1:3], "strides": 1}


def _conv_cuda(x, kernel, **geometry):
    x, geometry = _taken(x, geometry)
    return _conv(x, kernel, **geometry)


def _input_gradient_cuda(dy, kernel, **geometry):
    (height, width), strides = geometry["image"], geometry["strides"]
    if geometry["size"] > 1 or strides == 1:
        return _input_gradient(dy, kernel, **geometry)
    dx = _input_gradient(dy, kernel, **geometry | {"image": dy.shape[1:3], "strides": 1})
    ends = [n - _span(out, strides) for n, out in zip((height, width), dy.shape[1:3], strict=True)]
    between = [(0, end, strides - 1) for end in ends]
    return lax.pad(dx, jnp.zeros((), dx.dtype), [(0, 0, 0), *between, (0, 0, 0)])


def _kernel_gradient_cuda(x, dy, **geometry):
    x, geometry = _taken(x, geometry)
    return _kernel_gradient(x, dy, **geometry)


def _edges(image, out, size, strides, dilation):
    """Zeros before and after each side of an image, for a kernel to reach just `out` positions."""
    low = dilation * (size // 2)
    covered = [_span(n, strides) + dilation * (size - 1) for n in out]
    return [(low, c - n - low) for n, c in zip(image, covered, strict=True)]


def _span(count, strides):
    """Entries from the first to the last of `count`, `strides` apart."""
    return strides * (count - 1) + 1


_conv_p = primitive("conv", _conv, cuda=_conv_cuda)
_input_p = primitive(
    "conv_input_gradient", _input_gradient, cpu=_input_gradient_cpu, cuda=_input_gradient_cuda
)
_kernel_p = primitive(
    "conv_kernel_gradient", _kernel_gradient, cpu=_kernel_gradient_cpu, cuda=_kernel_gradient_cuda
)

# For each the transposes to its first and its second argument: of ct, cotangent of its result, and
# the other argument.
ad.defbilinear(
    _conv_p,
    lambda ct, x, kernel, **geometry: _input_p.bind(ct, kernel, **geometry),
    lambda ct, x, kernel, **geometry: _kernel_p.bind(x, ct, **geometry),
)
ad.defbilinear(
    _input_p,
    lambda ct, dy, kernel, **geometry: _conv_p.bind(ct, kernel, **geometry),
    lambda ct, dy, kernel, **geometry: _kernel_p.bind(ct, dy, **geometry),
)
ad.defbilinear(
    _kernel_p,
    lambda ct, x, dy, **geometry: _input_p.bind(dy, ct, **geometry),
    lambda ct, x, dy, **geometry: _conv_p.bind(x, ct, **geometry),
)


def _vary_alike(*arrays):
    """Marks each array as varying over all axes of `shard_map` that any of them varies over.

    Lax does so in its own operations. The transpose of the mark on a parameter is the sum of the
    devices' gradients.
    """
    varying = [_varying_axes(jax.typeof(a)) for a in arrays]
    missing = [tuple(frozenset().union(*varying) - axes) for axes in varying]
    return [_vary(a, axes) if axes else a for a, axes in zip(arrays, missing, strict=True)]


# JAX's names for the two have changed; Colab may have an older one.


def _varying_axes(kind):
    return kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying


def _vary(array, axes):
    if hasattr(lax, "pcast"):
        return lax.pcast(array, axes, to="varying")
    return lax.pvary(array, axes)
