"""The paper's blocks against their equations, computed with XLA's convolution and NumPy."""

import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from models.block import BasicBlock, BottleneckBlock, ResidualBlock
from models.block_spec import BlockSpec
from tests.support.blocks import random_variables, terms

KEY = jax.random.key(0)
FORMS = {"basic": BasicBlock, "bottleneck": BottleneckBlock}


def images(channels):
    return jax.random.normal(jax.random.key(1), (2, 5, 7, channels))


def convolve(x, kernel, strides=1, dilation=1):
    padding = dilation * (kernel.shape[0] // 2)
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        [(padding, padding)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def normalise(x, params, stats):
    mean, var, scale, bias = map(
        np.asarray, (stats["mean"], stats["var"], params["scale"], params["bias"])
    )
    return (np.asarray(x) - mean) / np.sqrt(var + 1e-5) * scale + bias


def expected_f(variables, x, geometry):
    """Convolution, BN, ReLU, …, convolution, BN with `geometry` (strides, dilation) of each."""
    params, stats = variables["params"], variables["batch_stats"]
    for i, (strides, dilation) in enumerate(geometry, start=1):
        x = convolve(x, params[f"conv{i}"]["kernel"], strides, dilation)
        x = normalise(x, params[f"bn{i}"], stats[f"bn{i}"])
        x = np.maximum(x, 0) if i < len(geometry) else x
    return x


def expected_shortcut(variables, x, option, strides, features):
    params = variables["params"]
    same = strides == 1 and x.shape[-1] == features
    if option == "C" or (option == "B" and not same):
        y = convolve(x, params["shortcut_conv"]["kernel"], strides)
        return normalise(y, params["bn_shortcut"], variables["batch_stats"]["bn_shortcut"])
    x = np.asarray(x)[:, ::strides, ::strides]
    return np.pad(x, [(0, 0)] * 3 + [(0, features - x.shape[-1])])


def test_the_file_shows_the_papers_equation():
    lines = Path(inspect.getfile(ResidualBlock)).read_text().splitlines()
    assert len(lines) <= 80
    assert inspect.getsource(ResidualBlock.__call__).splitlines()[-1].strip() == (
        "return relu(shortcut + y)"
    )


@pytest.mark.parametrize("residual", [True, False], ids=["residual", "plain"])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("option", ["A", "B", "C"])
@pytest.mark.parametrize(
    ("form", "downsample_in"), [("basic", "1x1"), ("bottleneck", "1x1"), ("bottleneck", "3x3")]
)
def test_the_block_is_its_equation(form, downsample_in, option, strides, residual):
    channels = {"basic": 4, "bottleneck": 16}[form] if strides == 1 else 3
    x = images(channels)
    spec = BlockSpec(4, strides, shortcut=option, downsample_in=downsample_in, residual=residual)
    block = FORMS[form](spec)
    variables = random_variables(block, x)
    geometry = [(strides, 1), (1, 1), (1, 1)]
    if downsample_in == "3x3":
        geometry = [(1, 1), (strides, 1), (1, 1)]
    f = expected_f(variables, x, geometry[: 2 if form == "basic" else 3])
    total = f
    if residual:
        total = f + expected_shortcut(variables, x, option, strides, f.shape[-1])
    found = jax.jit(lambda v: block.apply(v, x, False))(variables)
    np.testing.assert_allclose(found, np.maximum(total, 0), rtol=1e-4, atol=1e-5)
    assert ("shortcut_conv" in variables["params"]) == (
        residual and (option == "C" or (option == "B" and strides == 2))
    )


@pytest.mark.parametrize(
    ("form", "downsample_in", "geometry"),
    [
        ("basic", "1x1", [(1, 2), (1, 4)]),
        ("bottleneck", "1x1", [(1, 1), (1, 4), (1, 1)]),
        ("bottleneck", "3x3", [(1, 1), (1, 2), (1, 1)]),
    ],
)
def test_dilation_changes_at_the_convolution_that_would_stride(form, downsample_in, geometry):
    spec = BlockSpec(4, dilation=4, dilation_before=2, downsample_in=downsample_in)
    block, x = FORMS[form](spec), images(3)
    variables = random_variables(block, x)
    kept = terms(block, variables, x)
    np.testing.assert_allclose(kept["f"], expected_f(variables, x, geometry), rtol=1e-4, atol=1e-5)


def test_the_other_blocks_of_a_stage_neither_stride_nor_change_their_dilation():
    spec = BlockSpec(4, strides=2, dilation=4, dilation_before=2, shortcut="A")
    assert spec.following() == BlockSpec(4, dilation=4, dilation_before=4, shortcut="A")


def test_option_a_subsamples_and_appends_zeros():
    block, x = BasicBlock(BlockSpec(8, strides=2, shortcut="A")), images(3)
    variables = random_variables(block, x)
    shortcut = terms(block, variables, x)["shortcut"]
    assert shortcut.shape == (2, 3, 4, 8)
    np.testing.assert_array_equal(shortcut[..., :3], x[:, ::2, ::2])
    assert not shortcut[..., 3:].any()
    assert not [name for name in variables["params"] if "shortcut" in name]


def test_the_identity_shortcut_is_x_itself():
    block, x = BasicBlock(BlockSpec(3, shortcut="A")), images(3)
    variables = random_variables(block, x)
    assert block.apply(variables, x, False, method="shortcut") is x


@pytest.mark.slow
def test_zero_initialised_block_starts_as_its_shortcut():
    block, x = BasicBlock(BlockSpec(3, zero_init_residual=True)), images(3)
    y = block.apply(block.init(KEY, x, False), x, False)
    np.testing.assert_array_equal(y, np.maximum(x, 0))


def test_bottleneck_arithmetic():
    """Two 3×3×256×256 convolutions against 1×1-3×3-1×1 over 256 channels: 16.94 times."""

    def kernels(block):
        x = jnp.zeros((1, 4, 4, 256))
        params = jax.eval_shape(lambda: block.init(KEY, x, False))["params"]
        return sum(layer["kernel"].size for layer in params.values() if "kernel" in layer)

    basic, bottleneck = kernels(BasicBlock(BlockSpec(256))), kernels(BottleneckBlock(BlockSpec(64)))
    assert (basic, bottleneck) == (1_179_648, 69_632)
    assert round(basic / bottleneck, 2) == 16.94
