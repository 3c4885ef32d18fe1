"""Whole networks: every mode of differentiation against plain Flax modules; compiled or not."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.scanned import stack_blocks

CIFAR = {"stem": "cifar", "depth": 8, "width": 4, "shortcut": "A"}
SOME = ("gradient, hvp", "jvp")
KINDS = (*SOME, "linearize", "hessian", "hvp, reverse", "vmap", "vmap of parameters")
IMAGENET = {"stem": "imagenet", "depth": 18, "width": 4}
FAMILIES = {
    "cifar plain": CIFAR | {"residual": False},
    "cifar residual": CIFAR,
    "imagenet basic": IMAGENET,
    "bottleneck": CIFAR | {"depth": 11, "block": "bottleneck"},
    "preactivation": CIFAR | {"preactivation": True},
}


class Plain(nn.Module):
    """The same networks of Flax's layers only, with the names that ours give their parameters."""

    width: int
    stem: str
    sizes: tuple

    @nn.compact
    def __call__(self, x, train):
        conv = functools.partial(nn.Conv, use_bias=False)
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5
        )
        kernel, stride = (7, 2) if self.stem == "imagenet" else (3, 1)
        x = conv(self.width, (kernel,) * 2, stride, kernel // 2, name="stem_conv")(x)
        x = nn.relu(norm(name="stem_bn")(x))
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for i, size in enumerate(self.sizes):
            x = PlainStage(conv, norm, self.width * 2**i, i, size, self.stem, name=f"stage{i + 1}")(
                x
            )
        return nn.Dense(10, name="head")(x.mean((1, 2)))


class PlainStage(nn.Module):
    """Basic blocks; option A on CIFAR, B on ImageNet."""

    conv: object
    norm: object
    features: int
    index: int
    size: int
    stem: str

    @nn.compact
    def __call__(self, x):
        for b in range(self.size):
            stride = 2 if self.index and not b else 1
            x = PlainBlock(
                self.conv, self.norm, self.features, stride, self.stem, name=f"block{b + 1}"
            )(x)
        return x


class PlainBlock(nn.Module):
    """relu(shortcut + f)."""

    conv: object
    norm: object
    features: int
    stride: int
    stem: str

    @nn.compact
    def __call__(self, x):
        y = self.conv(self.features, (3, 3), self.stride, 1, name="conv1")(x)
        y = self.conv(self.features, (3, 3), 1, 1, name="conv2")(nn.relu(self.norm(name="bn1")(y)))
        y = self.norm(name="bn2")(y)
        if x.shape != y.shape and self.stem == "imagenet":
            x = self.conv(self.features, (1, 1), self.stride, name="shortcut_conv")(x)
            x = self.norm(name="bn_shortcut")(x)
        elif x.shape != y.shape:
            x = x[:, :: self.stride, :: self.stride]
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, y.shape[-1] - x.shape[-1])))
        return nn.relu(x + y)


def setting(fields, size):
    model = models.create(fields, 10)
    # Eight images: at 32 pixels the last BN of two would divide by the spread of two numbers.
    images = jax.random.normal(jax.random.key(1), (8, size, size, 3))
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), images)
    # Scales and kernels away from where they start, by a factor: a shift lets the logits of test
    # mode grow to 1e10, whose sine is noise.
    noise = 1 + 0.1 * jax.random.normal(jax.random.key(2), (100,))
    variables = jax.tree.map(lambda a: a * jnp.resize(noise, a.shape), variables)
    return model, variables, images


def logits(network, variables, images, train):
    y, _ = network.apply(variables, images, train=train, mutable=["batch_stats"])
    return y[0] if isinstance(y, tuple) else y


def derivatives(network, variables, images, train, kinds):
    """Of those named: value, JVP, linearisation, HVP in both orders, vmaps, part of a Hessian."""
    stats = variables["batch_stats"]

    def f(params, images=images):
        return jnp.sum(
            jnp.sin(logits(network, {"params": params, "batch_stats": stats}, images, train))
        )

    params = variables["params"]
    tangent = jax.tree.map(jnp.cos, params)
    gradient = jax.grad(f)
    scale = 1 + 0.1 * jnp.arange(2.0)

    def of_head(bias):
        return f(params | {"head": params["head"] | {"bias": bias}})

    def of_stem(direction):
        kernel = params["stem_conv"]["kernel"] + direction[0] * tangent["stem_conv"]["kernel"]
        return f(params | {"stem_conv": {"kernel": kernel}}) * (1 + direction[1])

    def hessians():
        return jax.hessian(of_head)(params["head"]["bias"]), jax.hessian(of_stem)(scale)

    found = {
        "jvp": lambda: jax.jvp(f, (params,), (tangent,)),
        "linearize": lambda: jax.linearize(f, params)[1](tangent),
        "gradient, hvp": lambda: jax.jvp(gradient, (params,), (tangent,)),
        "hvp, reverse": lambda: jax.vjp(gradient, params)[1](tangent)[0],
        "hessian": hessians,
        "vmap": lambda: jax.vmap(lambda s: jax.grad(f)(params, s * images))(scale),
        "vmap of parameters": lambda: jax.vmap(lambda s: f(jax.tree.map(lambda a: s * a, params)))(
            scale
        ),
    }
    return {kind: found[kind]() for kind in kinds}


def assert_near(got, expected, tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "size", "sizes", "train", "kinds"),
    [
        pytest.param(CIFAR, 8, (1, 1, 1), True, KINDS, id="cifar, train"),
        # Compiling takes the time, so the others show what forward and reverse mode share.
        pytest.param(CIFAR, 8, (1, 1, 1), False, SOME, id="cifar, test"),
        pytest.param(IMAGENET, 32, (2, 2, 2, 2), True, SOME[:1], id="imagenet, train"),
        pytest.param(IMAGENET, 32, (2, 2, 2, 2), False, SOME[:1], id="imagenet, test"),
    ],
)
def test_every_derivative_is_that_of_plain_flax_modules(fields, size, sizes, kinds, train):
    model, variables, images = setting(fields, size)
    plain = Plain(fields["width"], fields["stem"], sizes)
    # Double precision would not tell more: both round, at different places.
    got, expected = (
        jax.jit(lambda v, n=n: derivatives(n, v, images, train, kinds))(variables)
        for n in (model, plain)
    )
    for name in expected:
        scale = max(float(jnp.abs(a).max()) for a in jax.tree.leaves(expected[name]))
        assert_near(got[name], expected[name], 2e-3 * max(1, scale))


@pytest.mark.slow
@pytest.mark.parametrize("train", [True, False], ids=["train", "test"])
def test_every_derivative_of_a_loop_is_that_of_the_unrolled_blocks(train):
    fields = CIFAR | {"depth": 20}
    model, variables, images = setting(fields, 8)
    loop = models.create(fields | {"scan_blocks": True}, 10)
    expected = jax.jit(lambda v: derivatives(model, v, images, train, SOME))(variables)
    got = jax.jit(lambda v: derivatives(loop, v, images, train, SOME))(stack_blocks(variables))
    assert_near(got["jvp"], expected["jvp"], 2e-3)
    scale = max(float(jnp.abs(a).max()) for a in jax.tree.leaves(expected["gradient, hvp"]))
    for got_of, expected_of in zip(got["gradient, hvp"], expected["gradient, hvp"], strict=True):
        assert_near(got_of, stack_blocks(expected_of), 2e-3 * max(1, scale))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_forward_loss_and_gradients_are_those_of_single_operations(family):
    fields = FAMILIES[family]
    model, variables, images = setting(fields, 32 if fields["stem"] == "imagenet" else 8)

    def step(params):
        y = logits(model, variables | {"params": params}, images, True)
        loss = -jax.nn.log_softmax(y)[:, 3].mean()
        return loss, y

    def run(params):
        return jax.value_and_grad(step, has_aux=True)(params)

    compiled = jax.jit(run)(variables["params"])
    with jax.disable_jit():
        expected = run(variables["params"])
    assert_near(compiled, expected, 1e-3)


@pytest.mark.parametrize("count", [32_768, 32_769, 40_000])
def test_the_compiler_sums_rows_right(count):
    """JAX issue 39103: jaxlib 0.10.2 is wrong for three columns and more than 32,768 rows."""
    rng = np.random.default_rng(0)
    matrix, rows = (rng.standard_normal(s).astype(np.float32) for s in ((3, 3), (count, 3)))

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
    def norms(matrix, rows):
        return jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2))(rows)

    expected = np.sum((rows.astype(np.float64) @ matrix.T.astype(np.float64)) ** 2, 1)
    np.testing.assert_allclose(norms(matrix, rows), expected, rtol=1e-4)
