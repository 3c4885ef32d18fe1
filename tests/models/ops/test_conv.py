"""The convolution against XLA's own and its derivatives, in every geometry and transformation."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import models.ops.conv as forms
from errors import UserError
from models.ops.conv import conv, conv_7x7_of_blocks

# (kernel, strides, dilation, (height, width), (in, out), groups if any): the sizes reach 1×1 maps
# under 7×7 kernels and images smaller than the padding; few and many channels, more of either than
# the other.
CASES = [
    (1, 1, 1, (5, 6), (3, 4)),
    (1, 2, 1, (5, 6), (3, 4)),
    (1, 2, 1, (1, 1), (3, 4)),
    (1, 3, 1, (7, 5), (3, 4)),
    (3, 1, 1, (5, 6), (3, 4)),
    (3, 1, 1, (5, 6), (2, 8)),
    (3, 1, 1, (5, 6), (40, 3)),
    (3, 1, 1, (5, 6), (80, 40)),
    (3, 1, 1, (1, 4), (20, 20)),
    (3, 1, 1, (1, 1), (3, 4)),
    (3, 1, 2, (5, 6), (3, 4)),
    (3, 1, 2, (5, 6), (3, 40)),
    (3, 1, 4, (6, 3), (3, 4)),
    (3, 1, 4, (1, 2), (40, 40)),
    (3, 2, 1, (8, 5), (3, 4)),
    (3, 2, 1, (1, 2), (3, 4)),
    (3, 2, 2, (7, 6), (3, 4)),
    (3, 3, 1, (7, 8), (3, 4)),
    (3, 2, 1, (8, 5), (8, 4)),
    (3, 2, 1, (1, 2), (4, 4)),
    (3, 2, 2, (7, 6), (5, 4)),
    (3, 3, 1, (7, 8), (4, 4)),
    (7, 1, 1, (4, 9), (2, 3)),
    (7, 2, 1, (8, 9), (3, 4)),
    (7, 2, 1, (1, 1), (3, 4)),
    (7, 1, 2, (3, 5), (2, 3)),
    (3, 1, 1, (5, 6), (8, 12), 4),
    (3, 2, 1, (7, 6), (6, 6), 3),
    (3, 1, 2, (5, 6), (6, 6), 6),
    (3, 2, 1, (1, 2), (4, 8), 2),
    (1, 2, 1, (5, 6), (4, 8), 2),
    (7, 2, 1, (8, 9), (4, 6), 2),
]
GROUPED = [case for case in CASES if len(case) == 6]


def reference(x, kernel, strides=1, dilation=1, groups=1):
    """XLA's own convolution with torch's padding, differentiated by JAX."""
    pad = dilation * (kernel.shape[0] // 2)
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        ((pad, pad), (pad, pad)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def geometry(case):
    _, strides, dilation, _, _, *groups = case
    return strides, dilation, *groups


def operation(strides=1, dilation=1, groups=1):
    """The module's own computation as a function of x and kernel."""

    def run(x, kernel):
        module = conv(kernel.shape[3], kernel.shape[0], strides, dilation, groups, dtype=x.dtype)
        return module.apply({"params": {"kernel": kernel}}, x)

    return run


def arrays(case, dtype=np.float32):
    kernel, _, _, size, (channels, features), *groups = case
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *size, channels)).astype(dtype)
    inputs = channels // (groups or [1])[0]
    weights = rng.standard_normal((kernel, kernel, inputs, features)).astype(dtype)
    return jnp.asarray(x), jnp.asarray(weights)


def value_and_gradients(f, x, kernel):
    y, pull = jax.vjp(f, x, kernel)
    cotangent = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
    return y, *pull(jnp.asarray(cotangent, y.dtype))


def assert_agree(got, expected, tolerance=1e-5):
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_and_both_gradients_are_those_of_xlas_convolution(case):
    @jax.jit
    def both(x, kernel):
        ours = value_and_gradients(operation(*geometry(case)), x, kernel)
        theirs = value_and_gradients(lambda *a: reference(*a, *geometry(case)), x, kernel)
        return ours, theirs

    assert_agree(*both(*arrays(case)))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_forms_for_cuda_are_the_same_sums(case):
    """Run on this processor: with strides a 1×1 kernel reads and writes only what it takes."""
    names = ("strides", "dilation", "groups")
    shape = {"image": case[3], "size": case[0], "groups": 1}
    shape |= dict(zip(names, geometry(case), strict=False))
    x, kernel = arrays(case)

    @jax.jit
    def both(x, kernel):
        y, *gradients = value_and_gradients(lambda *a: reference(*a, *geometry(case)), x, kernel)
        dy = jnp.asarray(np.random.default_rng(1).standard_normal(y.shape), y.dtype)
        ours = [
            forms._conv_cuda(x, kernel, **shape),
            forms._input_gradient_cuda(dy, kernel, **shape),
            forms._kernel_gradient_cuda(x, dy, **shape),
        ]
        return ours, [y, *gradients]

    assert_agree(*both(x, kernel))


@pytest.mark.slow
@pytest.mark.parametrize("case", [CASES[1], CASES[4], CASES[6], CASES[14], GROUPED[0]], ids=str)
def test_bfloat16_is_as_near_to_float32_as_xlas(case):
    exact = value_and_gradients(lambda *a: reference(*a, *geometry(case)), *arrays(case))
    got = value_and_gradients(operation(*geometry(case)), *arrays(case, jnp.bfloat16))
    assert all(a.dtype == jnp.bfloat16 for a in got)
    assert_agree([a.astype(jnp.float32) for a in got], exact, tolerance=2e-2)


@pytest.mark.parametrize("size", [(8, 9), (7, 7), (15, 16), (2, 1), (1, 1), (12, 10)], ids=str)
def test_blocks_of_pixels_give_the_stems_value_and_gradients(size):
    x, kernel = arrays((7, 2, 1, size, (3, 4)))
    assert_agree(
        jax.jit(lambda *a: value_and_gradients(conv_7x7_of_blocks, *a))(x, kernel),
        jax.jit(lambda *a: value_and_gradients(lambda *b: reference(*b, 2), *a))(x, kernel),
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_scanned_gradients_are_those_of_the_unrolled_blocks(groups):
    rng = np.random.default_rng(0)
    kernels = jnp.asarray(rng.standard_normal((3, 3, 3, 4 // groups, 4)) / 6, jnp.float32)
    x = jnp.asarray(rng.standard_normal((2, 5, 5, 4)), jnp.float32)

    ours = operation(groups=groups)

    def scanned(kernels):
        y, _ = lax.scan(lambda x, k: (jnp.tanh(ours(x, k)), None), x, kernels)
        return jnp.sum(y**2)

    def unrolled(kernels):
        y = x
        for kernel in kernels:
            y = jnp.tanh(reference(y, kernel, groups=groups))
        return jnp.sum(y**2)

    assert_agree([jax.jit(jax.grad(scanned))(kernels)], [jax.jit(jax.grad(unrolled))(kernels)])


@pytest.mark.parametrize("groups", [1, 4])
def test_no_convolution_is_left_to_the_loop_in_a_transposed_form(groups):
    """XLA:CPU does not rewrite convolutions inside loops; its fast kernels take only this form."""
    kernels = jnp.ones((3, 3, 3, 8 // groups, 8))
    ours = operation(groups=groups)

    def loss(kernels):
        x = jnp.ones((2, 5, 5, 8))
        return lax.scan(lambda x, k: (ours(x, k), None), x, kernels)[0].sum()

    compiled = jax.jit(jax.grad(loss)).lower(kernels).compile().as_text()
    # The operation with its attributes, without names of files, which may contain anything.
    lines = [line.partition(" metadata={")[0] for line in compiled.splitlines()]
    convolutions = [line for line in lines if " convolution(" in line]
    assert convolutions
    for line in convolutions:
        assert re.search(r"dim_labels=b01f_01io->b01f\b", line)
        assert not re.search(r"\b(rhs_reversal|batch_group_count)=", line)


@pytest.mark.parametrize("check_vma", [True, False])
def test_gradients_under_shard_map(check_vma):
    x, kernel = arrays(CASES[4])
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))

    def gradient(f, x, kernel):
        return jax.grad(lambda k: jnp.sum(f(x, k) ** 2))(kernel)

    def local(x, kernel):
        grad = gradient(operation(), x, kernel)
        # With the check on, the kernel is known to be shared and its gradient is summed already.
        return grad if check_vma else lax.psum(grad, "data")

    sharded = jax.jit(
        jax.shard_map(
            local, mesh=mesh, in_specs=(P("data"), P()), out_specs=P(), check_vma=check_vma
        )
    )
    assert_agree([sharded(x, kernel)], [gradient(reference, x, kernel)])


@pytest.mark.slow
@pytest.mark.parametrize("case", [CASES[4], GROUPED[1]], ids=str)
def test_gradients_under_vmap_and_remat(case):
    x, kernel = arrays(case)
    kernels = jnp.stack([kernel, 2 * kernel])
    xs = jnp.stack([x, 1 - x])

    def gradients(f):
        both = jax.grad(lambda x, k: jnp.sum(jnp.sin(f(x, k))), (0, 1))
        return [*jax.vmap(both, (None, 0))(x, kernels), *jax.vmap(both, (0, 0))(xs, kernels)]

    expected = gradients(lambda *a: reference(*a, *geometry(case)))
    ours = operation(*geometry(case))
    assert_agree(gradients(ours), expected)
    assert_agree(gradients(jax.checkpoint(ours)), expected)


@pytest.mark.parametrize("case", [CASES[1], CASES[4], CASES[16], GROUPED[1]], ids=str)
def test_derivatives_of_any_order_and_mode_are_xlas(case):
    x, kernel = arrays(case)
    tangents = jnp.cos(x), jnp.cos(kernel)

    def derivatives(f):
        gradient = jax.grad(lambda x, k: jnp.sum(jnp.sin(f(x, k))), (0, 1))
        linear = jax.linearize(f, x, kernel)[1](*tangents)
        forward_over_reverse = jax.jvp(gradient, (x, kernel), tangents)[1]
        _, pull = jax.vjp(gradient, x, kernel)
        hessian = jax.hessian(lambda k: jnp.sum(jnp.sin(f(x, k))))(kernel)
        return [linear, *forward_over_reverse, *pull(tangents), hessian]

    ours = jax.jit(lambda: derivatives(operation(*geometry(case))))()
    expected = jax.jit(lambda: derivatives(lambda *a: reference(*a, *geometry(case))))()
    assert_agree(ours, expected)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("case", [CASES[0], CASES[4], CASES[15], GROUPED[0]], ids=str)
def test_gpu_and_tpu_get_xlas_own_convolution_and_its_transposes(case, platform):
    x, kernel = arrays(case)

    def operations(f):
        run = jax.jit(lambda x, k: value_and_gradients(f, x, k)).trace(x, kernel)
        text = run.lower(lowering_platforms=(platform,)).as_text()
        return collections.Counter(re.findall(r"\bstablehlo\.\w+", text))

    ours = operations(operation(*geometry(case)))
    assert ours["stablehlo.convolution"] == 3
    assert ours == operations(lambda *a: reference(*a, *geometry(case)))


def test_a_kernel_that_has_no_centre_is_refused():
    with pytest.raises(UserError, match="2×2"):
        conv(4, 2)


@pytest.mark.parametrize("size", [(1, 1), (7, 10), (8, 8)])
def test_output_size_is_torchs(size):
    for kernel_size, strides, dilation in [(1, 2, 1), (3, 2, 1), (3, 1, 4), (7, 2, 1), (3, 2, 2)]:
        module = conv(5, kernel_size, strides, dilation)
        y = jax.eval_shape(
            lambda m=module: m.init_with_output(jax.random.key(0), jnp.ones((2, *size, 3)))[0]
        )
        span, pad = dilation * (kernel_size - 1) + 1, dilation * (kernel_size // 2)
        expected = [(n + 2 * pad - span) // strides + 1 for n in size]  # torch.nn.Conv2d's page
        assert y.shape == (2, *expected, 5)


@pytest.mark.slow
def test_module_keeps_float32_parameters_and_computes_in_its_dtype():
    module = conv(5, 3, use_bias=True, dtype=jnp.bfloat16)
    x = jnp.ones((1, 4, 4, 3))
    y, variables = module.init_with_output(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    assert jax.tree.map(lambda a: (a.shape, str(a.dtype)), variables["params"]) == {
        "kernel": ((3, 3, 3, 5), "float32"),
        "bias": ((5,), "float32"),
    }
    shifted = {"params": variables["params"] | {"bias": jnp.arange(5.0)}}
    moved = module.apply(shifted, x).astype(jnp.float32) - y.astype(jnp.float32)
    np.testing.assert_allclose(moved.mean((0, 1, 2)), np.arange(5), atol=0.05)


def test_kernels_are_he_normal_over_the_fan_out():
    kernel = conv(256, 3).init(jax.random.key(0), jnp.ones((1, 1, 1, 64)))["params"]["kernel"]
    expected = np.sqrt(2 / (3 * 3 * 256))
    assert abs(float(kernel.std()) / expected - 1) < 0.01
    assert float(jnp.abs(kernel).max()) > 3 * expected  # not truncated at two deviations
