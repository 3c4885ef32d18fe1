"""The convolution of every network here, and how its gradients are written per platform.

GPU and TPU compilers choose well among the forms of a convolution, and get XLA's own operator and
its transposes. XLA:CPU does not: its weight gradient runs at a twentieth of the machine's speed
where channels are few, and inside a loop (`lax.scan`) it does not even bring the gradients into the
form that its fast kernels take. There the weight gradient is written as a matrix product over
shifted copies and the input's gradient as an ordinary convolution (`benchmarks/step_time.md` has
the figures); the numbers agree to rounding.
"""

import operator
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from errors import UserError
from models.ops.varying import vary_alike

DIMENSION_NUMBERS = ("NHWC", "HWIO", "NHWC")

# Up to here a product with the identity costs less than it saves in a loop, where `x` is a slice of
# what the blocks kept: XLA:CPU would cut it out again, entry by entry, in every shifted copy.
FEW_CHANNELS = 64

# He normal over the fan-out, k·k·features, not truncated: the rule of the authors' released code
# and of Torch's MSRinit for ResNets. It keeps the variance of the gradient; over the fan-in the
# first layers would start with another scale than the one the published recipes were tuned for.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nn.Module):
    """A square convolution with explicit padding; parameters 'kernel' and, if asked, 'bias'.

    Attributes:
      features: output channels.
      kernel_size: an odd number.
      strides, dilation: the same in both directions.
      space_to_depth: computes by `conv_7x7_of_blocks`: same parameters, same numbers to rounding.
      use_bias: adds one number per output channel; none under a batch normalisation.
      dtype: of the computation; None takes that of input and parameters. Parameters are float32.
      kernel_init: initialiser of the kernel `[kernel_size, kernel_size, in, features]`.
    """

    features: int
    kernel_size: int
    strides: int = 1
    dilation: int = 1
    space_to_depth: bool = False
    use_bias: bool = False
    dtype: Any = None
    kernel_init: nn.initializers.Initializer = he_normal_fan_out

    @nn.compact
    def __call__(self, x):
        """Maps `[batch, height, width, in]` to `[batch, ⌈height/s⌉, ⌈width/s⌉, features]`."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        if self.space_to_depth:
            y = conv_7x7_of_blocks(x, kernel)
        else:
            y = conv(x, kernel, strides=self.strides, dilation=self.dilation)
        return y if bias is None else y + bias.reshape((1, 1, 1, -1))


def conv(x, kernel, *, strides=1, dilation=1):
    """Convolves x `[batch, height, width, in]` with a kernel `[k, k, in, out]`, k odd.

    All sides are padded by dilation · (k // 2) zeros, as in Torch, so that weights move between
    frameworks. Returns `[batch, ⌈height/strides⌉, ⌈width/strides⌉, out]`.

    Reverse-mode gradients only, because they are written out: `jax.jvp`, `jax.linearize` and what
    builds on them (`jax.hessian`) raise a TypeError.

    Raises:
      UserError: for a kernel that is not square or of even size.
    """
    if kernel.shape[0] != kernel.shape[1] or kernel.shape[0] % 2 == 0:
        raise UserError(
            f"kernel of {kernel.shape[0]}×{kernel.shape[1]}: expected a square one of odd size, "
            "which padding by half of it keeps centred; set kernel_size to 1, 3, 5, 7, …"
        )
    return _conv(*vary_alike(x, kernel), strides, dilation)


def conv_7x7_of_blocks(x, kernel):
    """`conv(x, kernel, strides=2)` as a 4×4 convolution of stride 1 over blocks of 2×2 pixels.

    The kernel gets a row and a column of zeros in front, which makes it 8×8 = 4×4 blocks; with
    x `[batch, height, width, in]` split alike, 4·in channels take part where an accelerator's
    matrix unit would find `in` = 3 too few. Odd images get a row or column of zeros behind, as the
    padding has them.

    Args:
      kernel: `[7, 7, in, out]`.

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


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x, kernel, strides, dilation):
    return lax.platform_dependent(
        x,
        kernel,
        cpu=partial(_forward_cpu, strides=strides, dilation=dilation),
        default=partial(_xla_conv, strides=strides, dilation=dilation),
    )


def _conv_forward(x, kernel, strides, dilation):
    return _conv(x, kernel, strides, dilation), (x, kernel)


def _conv_backward(strides, dilation, residuals, dy):
    return lax.platform_dependent(
        *residuals,
        dy,
        cpu=partial(_backward_cpu, strides=strides, dilation=dilation),
        default=partial(_xla_backward, strides=strides, dilation=dilation),
    )


_conv.defvjp(_conv_forward, _conv_backward)


def _xla_conv(x, kernel, strides, dilation, rows_below=0):
    padding = dilation * (kernel.shape[0] // 2)
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        [(padding, padding + rows_below), (padding, padding)],
        rhs_dilation=(dilation, dilation),
        dimension_numbers=DIMENSION_NUMBERS,
    )


def _xla_backward(x, kernel, dy, strides, dilation):
    return jax.vjp(partial(_xla_conv, strides=strides, dilation=dilation), x, kernel)[1](dy)


def _forward_cpu(x, kernel, strides, dilation):
    if kernel.shape[0] == 1:
        return _product(x[:, ::strides, ::strides], kernel[0, 0])
    if strides == 1:
        return _conv_on_all_cores(x, kernel, dilation)
    return _xla_conv(x, kernel, strides, dilation)


def _conv_on_all_cores(x, kernel, dilation):
    """`_xla_conv` of stride 1, with one row too many, which is cut off again.

    XLA:CPU has two libraries of convolutions. The one that it prefers, YNNPACK, runs on one core
    where layers are small; it refuses an output that is higher than its input, and the other one,
    Eigen, uses every core.
    """
    if max(kernel.shape[2:]) <= 16:  # YNNPACK refuses these, too
        return _xla_conv(x, kernel, 1, dilation)
    y = _xla_conv(x, kernel, 1, dilation, rows_below=1)
    # Else XLA moves the cut into what follows, and some of that is then not vectorised.
    return lax.optimization_barrier(y[:, :-1])


def _backward_cpu(x, kernel, dy, strides, dilation):
    k, _, channels, features = kernel.shape
    if k == 1:
        subsampled = x[:, ::strides, ::strides]
        dx = _dilate(_product(dy, kernel[0, 0].T), strides, x.shape)
        return dx, _weight_product(subsampled, dy).reshape(kernel.shape).astype(kernel.dtype)

    # The barrier keeps XLA from folding reversal and transpose back into a convolution's window,
    # a form for which it has no fast kernel.
    turned = lax.optimization_barrier(kernel[::-1, ::-1].transpose(0, 1, 3, 2))
    dx = _input_gradient(turned, dy, strides, dilation, x.shape)
    if strides == 1 and features <= k * channels:
        if channels <= FEW_CHANNELS:
            x = _product(x, jnp.eye(channels, dtype=x.dtype))
        products = _weight_product(_rows(x, k, dilation), _columns(dy, k, dilation))
        products = products.reshape(k, channels, k, features)
        dkernel = products.transpose(0, 2, 1, 3)[:, ::-1]
    else:
        patches = _patches(x, k, strides, dilation, dy.shape)
        dkernel = _weight_product(patches, dy).reshape(kernel.shape)
    return dx, dkernel.astype(kernel.dtype)


def _product(x, matrix):
    """`[batch, height, width, in]` by `[in, out]`."""
    return lax.dot_general(x, matrix, (((3,), (0,)), ((), ())))


def _weight_product(x, dy):
    """Sum over batch and positions of x ⊗ dy: `[in, out]`, at least float32.

    As matrices, because XLA:CPU transposes an operand that is contracted over several dimensions.
    """
    x, dy = (a.reshape(-1, a.shape[-1]) for a in (x, dy))
    return lax.dot_general(
        x, dy, (((0,), (0,)), ((), ())), preferred_element_type=_accumulator(x.dtype)
    )


def _accumulator(dtype):
    return jnp.promote_types(dtype, jnp.float32)


def _columns(x, k, dilation):
    """k copies of x beside each other in the channels, group j moved left by j·d − p; p = d·(k//2).

    `[batch, height, width, in]` → `[batch, height + 2p, width, k·in]`, with p rows of zeros above
    and below: what one row of the kernel sees.
    """
    p = dilation * (k // 2)
    moves = [((p, p, 0), (p - j * dilation, j * dilation - p, 0)) for j in range(k)]
    return _side_by_side(x, moves)


def _rows(x, k, dilation):
    """k copies of x beside each other in the channels, group i moved down by (k − 1 − i)·d.

    `[batch, height, width, in]` → `[batch, height + 2p, width, k·in]`: the partners of `_columns`
    of the output's gradient.
    """
    moves = [(((k - 1 - i) * dilation, i * dilation, 0), (0, 0, 0)) for i in range(k)]
    return _side_by_side(x, moves)


def _side_by_side(x, moves):
    """Sum of padded copies: XLA:CPU vectorises it where its concatenation branches per element."""
    channels, zero = x.shape[-1], jnp.zeros((), x.dtype)
    copies = (
        lax.pad(
            x,
            zero,
            ((0, 0, 0), rows, columns, (j * channels, (len(moves) - 1 - j) * channels, 0)),
        )
        for j, (rows, columns) in enumerate(moves)
    )
    return reduce(operator.add, copies)


def _patches(x, k, strides, dilation, output_shape):
    """The input under the kernel at each output position: `[batch, out_h, out_w, k·k·in]`."""
    p = dilation * (k // 2)
    _, height, width, _ = output_shape

    def beside(x, axis, length):
        stop = strides * (length - 1) + 1
        starts = [i * dilation for i in range(k)]
        slices = [lax.slice_in_dim(x, i, i + stop, strides, axis) for i in starts]
        # Materialised: fused with its producer, a concatenation is copied element by element.
        return lax.optimization_barrier(jnp.concatenate(slices, -1))

    padded = lax.optimization_barrier(jnp.pad(x, ((0, 0), (p, p), (p, p), (0, 0))))
    return beside(beside(padded, 2, width), 1, height)


def _dilate(dy, strides, input_shape):
    """Puts dy back on the input's grid, from which each `strides`-th row and column was taken."""
    if strides == 1:
        return dy
    edges = [
        (0, size - (strides * (out - 1) + 1), strides - 1)
        for size, out in zip(input_shape[1:3], dy.shape[1:3], strict=True)
    ]
    return lax.pad(dy, jnp.zeros((), dy.dtype), ((0, 0, 0), *edges, (0, 0, 0)))


def _input_gradient(turned, dy, strides, dilation, input_shape):
    """The ordinary convolution of dy, spread by the strides, with the turned kernel."""
    if strides == 1:
        return _conv_on_all_cores(dy, turned, dilation)
    p = dilation * (turned.shape[0] // 2)
    padding = [
        (p, p + size - (strides * (out - 1) + 1))
        for size, out in zip(input_shape[1:3], dy.shape[1:3], strict=True)
    ]
    return lax.conv_general_dilated(
        dy,
        turned,
        (1, 1),
        padding,
        lhs_dilation=(strides, strides),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=DIMENSION_NUMBERS,
    )
