"""The follow-up's blocks: each one's equation, and a block that is added."""

import functools
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import models
from models.block import BasicBlock, BottleneckBlock, ResidualBlock
from models.block_spec import BlockSpec
from models.identity_mappings import VARIANTS, block_class
from tests.support.blocks import random_variables, terms

KEY = jax.random.key(0)
FORMS = {"basic": BasicBlock, "bottleneck": BottleneckBlock}
DEFAULTS = {"shortcut": "B", "residual": True, "preactivation": False, "variant": "none"}
DEFAULTS |= {"shortcut_scale": 1.0, "residual_scale": 1.0}


def build(form, spec, **fields):
    return block_class(FORMS[form], SimpleNamespace(**DEFAULTS | fields))(spec)


def images(channels):
    return jax.random.normal(jax.random.key(1), (2, 5, 7, channels))


def relu(x):
    return np.maximum(x, 0)


def normalise(x, variables, name):
    scale, bias = (np.asarray(variables["params"][name][k]) for k in ("scale", "bias"))
    mean, var = (np.asarray(variables["batch_stats"][name][k]) for k in ("mean", "var"))
    return (np.asarray(x) - mean) / np.sqrt(var + 1e-5) * scale + bias


EQUATIONS = {  # of the shortcut, f, the gate and BN after the addition
    "none": lambda s, f, g, bn: relu(s + f),
    "bn_after_addition": lambda s, f, g, bn: relu(bn(s + f)),
    "relu_before_addition": lambda s, f, g, bn: s + f,
    "relu_only_preactivation": lambda s, f, g, bn: s + f,
    "exclusive_gating": lambda s, f, g, bn: relu((1 - g) * s + g * f),
    "shortcut_gating": lambda s, f, g, bn: relu((1 - g) * s + f),
    "dropout_shortcut": lambda s, f, g, bn: relu(s + f),
}


@pytest.mark.slow
@pytest.mark.parametrize(("strides", "scale"), [(1, 0.5), (2, 1.0)])
@pytest.mark.parametrize("variant", [*VARIANTS, "preactivation"])
@pytest.mark.parametrize("form", FORMS)
def test_each_block_is_its_equation(form, variant, strides, scale):
    fields = {"preactivation": True} if variant == "preactivation" else {"variant": variant}
    x = images(3 if strides == 2 else {"basic": 4, "bottleneck": 16}[form])
    spec = BlockSpec(4, strides, shortcut_scale=scale, residual_scale=0.75, gate_bias=-1.5)
    block = build(form, spec, shortcut_scale=scale, residual_scale=0.75, **fields)
    variables = random_variables(block, x)
    kept = terms(block, variables, x)
    equation = EQUATIONS.get(variant, EQUATIONS["relu_only_preactivation"])
    expected = equation(
        kept["shortcut"], kept["f"], kept.get("g"), lambda y: normalise(y, variables, "bn_output")
    )
    np.testing.assert_allclose(kept["output"], expected, rtol=1e-4, atol=1e-5)
    if strides == 1:
        half = 0.5 if variant == "dropout_shortcut" else 1
        np.testing.assert_allclose(kept["shortcut"], half * scale * x, rtol=1e-6)


@pytest.mark.parametrize("residual", [True, False], ids=["residual", "plain"])
def test_full_preactivation_is_bn_relu_convolution(residual):
    """With 1×1 kernels' worth of numbers: only the middle of each 3×3 kernel is not zero."""
    block = build("basic", BlockSpec(3, residual=residual), preactivation=True, residual=residual)
    x = images(3)
    variables = random_variables(block, x)
    y = x
    for i in (1, 2):
        kernel = variables["params"][f"conv{i}"]["kernel"]
        middle = np.zeros_like(kernel)
        middle[1, 1] = kernel[1, 1]
        variables["params"][f"conv{i}"]["kernel"] = jnp.asarray(middle)
        y = relu(normalise(y, variables, f"bn{i}")) @ middle[1, 1]
    expected = x + y if residual else y
    np.testing.assert_allclose(block.apply(variables, x, False), expected, rtol=1e-4, atol=1e-5)


def test_relu_only_preactivation_is_relu_convolution_bn():
    block, x = build("basic", BlockSpec(3), variant="relu_only_preactivation"), images(3)
    variables = random_variables(block, x)
    y = x
    for i in (1, 2):
        kernel = variables["params"][f"conv{i}"]["kernel"]
        middle = np.zeros_like(kernel)
        middle[1, 1] = kernel[1, 1]
        variables["params"][f"conv{i}"]["kernel"] = jnp.asarray(middle)
        y = normalise(relu(np.asarray(y)) @ middle[1, 1], variables, f"bn{i}")
    np.testing.assert_allclose(block.apply(variables, x, False), x + y, rtol=1e-4, atol=1e-5)


def test_a_projection_of_a_preactivated_block_reads_the_first_activation():
    block, x = build("basic", BlockSpec(4, shortcut="B"), preactivation=True), images(3)
    variables = random_variables(block, x)
    kernel = np.asarray(variables["params"]["shortcut_conv"]["kernel"])[0, 0]
    expected = relu(normalise(x, variables, "bn1")) @ kernel
    found = terms(block, variables, x)["shortcut"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_preactivation_keeps_a_clean_path():
    """With every branch at zero a pre-activated block of equal shape is the identity."""
    block, x = build("basic", BlockSpec(3), preactivation=True), images(3)
    variables = block.init(KEY, x, False)
    zeroed = jax.tree.map(jnp.zeros_like, variables["params"])
    np.testing.assert_array_equal(block.apply({**variables, "params": zeroed}, x, False), x)


def convolve(x, kernel, strides=1):
    padding = [(kernel.shape[0] // 2,) * 2] * 2
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (strides,) * 2, padding, dimension_numbers=numbers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stem", "depth", "shortcut"), [("cifar", 8, "A"), ("cifar", 11, "B"), ("imagenet", 18, "A")]
)
def test_the_first_and_the_last_unit_of_a_preactivated_network(stem, depth, shortcut):
    """The first activation stands before the split, the last one after the addition."""
    fields = {"stem": stem, "depth": depth, "shortcut": shortcut, "preactivation": True}
    model, x = small(**fields, downsample_in="1x1"), jax.random.normal(KEY, (2, 40, 36, 3))
    variables = random_variables(model, x)

    def bn(x, *path):
        scale, bias, mean, var = (
            functools.reduce(dict.__getitem__, path, variables[kind])[name].reshape(1, 1, 1, -1)
            for kind, names in (("params", ("scale", "bias")), ("batch_stats", ("mean", "var")))
            for name in names
        )
        return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias

    @jax.jit
    def reference(x):
        params = variables["params"]
        x = convolve(x, params["stem_conv"]["kernel"], 2 if stem == "imagenet" else 1)
        x = nn.relu(bn(x, "stem_bn"))
        if stem == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage in sorted(k for k in params if k.startswith("stage")):
            for name in sorted(params[stage]):
                block = params[stage][name]
                first = (stage, name) == ("stage1", "block1")
                strides = 2 if stage != "stage1" and name == "block1" else 1
                a = x if first else nn.relu(bn(x, stage, name, "bn1"))
                y = convolve(a, block["conv1"]["kernel"], strides)
                for i in range(2, 2 + ("conv2" in block) + ("conv3" in block)):
                    y = convolve(nn.relu(bn(y, stage, name, f"bn{i}")), block[f"conv{i}"]["kernel"])
                if "shortcut_conv" in block:
                    x = convolve(a, block["shortcut_conv"]["kernel"], strides)
                else:
                    x = x[:, ::strides, ::strides]
                    x = jnp.pad(x, [(0, 0)] * 3 + [(0, y.shape[-1] - x.shape[-1])])
                x = x + y
        x = nn.relu(bn(x, "final_bn")).mean((1, 2))
        return x @ params["head"]["kernel"] + params["head"]["bias"][None]

    found, _ = jax.jit(lambda x: model.apply(variables, x, train=False))(x)
    expected = reference(x)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_a_gate_is_a_sigmoid_of_a_1x1_convolution_of_x():
    spec = BlockSpec(4, strides=2, gate_bias=-6.0)
    block, x = build("basic", spec, variant="exclusive_gating"), images(3)
    variables = random_variables(block, x)
    gate = variables["params"]["gate"]
    score = np.asarray(x)[:, ::2, ::2] @ np.asarray(gate["kernel"])[0, 0] + np.asarray(gate["bias"])
    expected = 1 / (1 + np.exp(6 - score))
    np.testing.assert_allclose(terms(block, variables, x)["g"], expected, rtol=1e-4)


@pytest.mark.slow
def test_dropout_scales_the_shortcut_by_half_in_expectation():
    """Table 1, "dropout shortcut": the kept half is not rescaled, testing takes 0.5 of all."""
    block, x = build("basic", BlockSpec(3), variant="dropout_shortcut"), images(3)
    variables = block.init(KEY, x, False)

    np.testing.assert_array_equal(terms(block, variables, x)["shortcut"], 0.5 * x)
    dropped = terms(block, variables, x, train=True)["shortcut"]
    assert 0.3 < (dropped == 0).mean() < 0.7
    np.testing.assert_allclose(dropped[dropped != 0], np.asarray(x)[dropped != 0], rtol=1e-6)


def small(**fields):
    return models.create({"stem": "cifar", "width": 4, "depth": 8, "shortcut": "A"} | fields, 5)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_train_and_differ(variant):
    def train_logits(model):
        def run():
            variables = model.init(KEY, images(3), train=False)
            return model.apply(
                variables, images(3), train=True, mutable=["batch_stats"], rngs={"dropout": KEY}
            )

        return jax.jit(run)()[0][0]

    logits = train_logits(small(variant=variant))
    assert np.isfinite(logits).all()
    if variant != "none":
        assert not np.allclose(logits, train_logits(small()))


class ReZero(ResidualBlock):
    """`relu(shortcut + α·f)`, α learned from 0 on (Bachlechner et al. 2020)."""

    def f(self, x: jax.Array, train: bool) -> jax.Array:
        alpha = self.param("alpha", nn.initializers.zeros, ())
        return alpha.astype(self.spec.dtype) * super().f(x, train)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_new_block_is_a_class_and_a_row(form, monkeypatch):
    monkeypatch.setitem(VARIANTS, "rezero", ReZero)
    fields = {"stem": "imagenet", "depth": {"basic": 18, "bottleneck": 50}[form]}
    model = small(variant="rezero", **fields)
    x, labels = jax.random.normal(KEY, (2, 32, 32, 3)), jnp.array([1, 4])
    variables = jax.jit(lambda: model.init(KEY, x, train=False))()

    @jax.jit
    def step(variables):
        def loss(params):
            (logits, _), updated = model.apply(
                {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
            )
            losses = -jax.nn.log_softmax(logits)[jnp.arange(2), labels]
            return losses.mean(), updated["batch_stats"]

        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        params = jax.tree.map(lambda p, g: p - 0.01 * g, variables["params"], grads)
        return value, {"params": params, "batch_stats": stats}

    before, stepped = step(variables)
    after, _ = step(stepped)
    assert after < before
    assert stepped["params"]["stage1"]["block1"]["alpha"] != 0


def test_the_new_block_is_its_equation():
    block, x = type("Block", (ReZero, BasicBlock), {})(BlockSpec(3)), images(3)
    variables = random_variables(block, x)
    params = {k: v for k, v in variables["params"].items() if k != "alpha"}
    f = terms(BasicBlock(BlockSpec(3)), {**variables, "params": params}, x)["f"]
    expected = relu(x + np.asarray(variables["params"]["alpha"]) * f)
    np.testing.assert_allclose(block.apply(variables, x, False), expected, rtol=1e-4, atol=1e-5)
