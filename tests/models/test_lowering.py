"""What GPU and TPU compilers get, against plain Flax modules."""

import collections
import re

import jax
import jax.numpy as jnp
import optax
import pytest

import models
from benchmarks.peers import PeerResNet

FIELDS = {"stem": "imagenet", "depth": 18, "shortcut": "B", "width": 4}


def operations(network, platform):
    """How often each operation stands in the program of forward, backward and update."""
    images = jnp.zeros((2, 32, 32, 3))
    variables = jax.eval_shape(lambda k: network.init(k, images, train=False), jax.random.key(0))

    def step(variables, images):
        def loss(params):
            (logits, _), new = network.apply(
                variables | {"params": params}, images, train=True, mutable=["batch_stats"]
            )
            loss = optax.softmax_cross_entropy(logits, jax.nn.one_hot(jnp.arange(2), 10))
            return loss.mean(), new

        gradients, new = jax.grad(loss, has_aux=True)(variables["params"])
        return jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], gradients), new

    text = jax.jit(step).trace(variables, images).lower(lowering_platforms=(platform,)).as_text()
    # Whole tokens of the program; names of files would stand elsewhere.
    return collections.Counter(re.findall(r"\bstablehlo\.(\w+)", text))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_the_step_is_that_of_plain_flax_modules(platform, dtype):
    ours = operations(models.create(FIELDS | {"dtype": dtype}, 10), platform)
    flax = operations(PeerResNet(num_classes=10, dtype=dtype, **FIELDS), platform)
    assert ours["convolution"] == flax["convolution"] == 3 * 20 - 1
    for name in ("optimization_barrier", "case", "custom_call", "scatter", "sort", "while"):
        assert ours[name] == 0, name
    for name in ("transpose", "reverse", "dot_general"):
        assert ours[name] <= flax[name], name
    # What differs: the stem's maximum is selections, so that its gradient is no sum in free order,
    assert not ours["reduce_window"] and not ours["select_and_scatter"]
    assert flax["select_and_scatter"] == 1
    # and BN is one factor and one summand per channel: as many sums over the images, or fewer.
    assert ours["reduce"] <= flax["reduce"]


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_loops_have_xlas_convolutions_too(platform):
    fields = {"stem": "cifar", "depth": 20, "shortcut": "A", "width": 4, "scan_blocks": True}
    found = operations(models.create(fields, 10), platform)
    assert found["while"] == 6  # three stages, forward and backward
    assert not found["optimization_barrier"] and not found["case"] and not found["custom_call"]
