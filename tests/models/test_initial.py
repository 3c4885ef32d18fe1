"""Random variables at once: the tree and the distributions of `model.init`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.scanned import STACKED

NETWORKS = [
    {"depth": 50, "width": 8, "zero_init_residual": True},
    {"depth": 20, "stem": "cifar", "width": 16, "scan_blocks": True, "preactivation": True},
    {"depth": 8, "stem": "cifar", "width": 16, "variant": "shortcut_gating", "gate_bias": -3.0},
]


@pytest.mark.slow
@pytest.mark.parametrize("fields", NETWORKS, ids=str)
def test_as_init_but_for_the_numbers(fields):
    model = models.create(fields, 100)
    expected = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), False))()
    found = models.init(model, seed=1)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), found) == jax.tree.map(
        lambda a: (a.shape, a.dtype), expected
    )
    for path, theirs in jax.tree.leaves_with_path(expected):
        ours = found
        for key in path:
            ours = ours[key.key]
        if path[-1].key != "kernel":
            np.testing.assert_array_equal(ours, theirs, err_msg=str(path))
            continue
        noise = 5 / np.sqrt(2 * theirs.size)  # five deviations of a deviation
        assert np.std(ours) == pytest.approx(np.std(theirs), rel=2 * noise), path
        assert abs(np.mean(ours)) < 5 * np.std(theirs) / np.sqrt(theirs.size), path
    assert not fields.get("scan_blocks") or STACKED in found["params"]["stage1"]


@pytest.mark.slow
def test_a_seed_and_the_channels_of_the_images():
    model = models.create({"depth": 8, "stem": "cifar", "width": 4}, 3)
    one, again, other = (models.init(model, seed, channels=1) for seed in (0, 0, 1))
    kernel = one["params"]["stem_conv"]["kernel"]
    assert kernel.shape == (3, 3, 1, 4)
    np.testing.assert_array_equal(kernel, again["params"]["stem_conv"]["kernel"])
    assert not np.array_equal(kernel, other["params"]["stem_conv"]["kernel"])
    logits, _ = model.apply(one, jnp.zeros((1, 5, 9, 1)), train=False)
    assert logits.shape == (1, 3)
