"""Blocks as a loop, recomputed in segments, stacked and one by one: the same network."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.scanned import segment_length, stack_blocks, unstack_blocks

KEY = jax.random.key(0)


def small(**fields):
    return models.create({"stem": "cifar", "width": 4, "depth": 8, "shortcut": "A"} | fields, 5)


@functools.cache
def images(height=9, width=7, channels=3):
    with jax.ensure_compile_time_eval():  # kept across calls, of which the first may be traced
        return jax.random.normal(jax.random.key(1), (2, height, width, channels))


def gradients(model, variables):
    def loss(params):
        (logits, _), updated = model.apply(
            {**variables, "params": params}, images(), train=True, mutable=["batch_stats"]
        )
        return jnp.square(logits - 1).sum(), updated["batch_stats"]

    (value, stats), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    return value, stats, grads


@functools.cache
def one_by_one(preactivation):
    """Variables of a network of single blocks, and what they give."""
    base = small(depth=32, preactivation=preactivation)
    variables = jax.jit(lambda: base.init(KEY, images(), train=False))()
    return variables, gradients(base, variables)


@pytest.mark.slow
@pytest.mark.parametrize(
    "form",
    [
        {"remat": "block"},
        {"remat": "segments"},
        {"scan_blocks": True},
        {"scan_blocks": True, "remat": "block"},
        {"scan_blocks": True, "remat": "segments"},
        {"scan_blocks": True, "preactivation": True},
    ],
    ids=lambda form: "-".join(map(str, form.values())),
)
def test_forms_compute_the_same(form, monkeypatch):
    """Scanning and recomputing change neither numbers (to rounding) nor the tree on disk."""
    # Five blocks, four of them scanned, make two unequal segments.
    monkeypatch.setattr("models.scanned.KEPT_PER_BLOCK", 0.5)
    variables, expected = one_by_one(form.get("preactivation", False))
    other = small(depth=32, **form)
    own = stack_blocks(variables) if other.scan_blocks else variables
    own_init = jax.eval_shape(lambda: other.init(KEY, images(), train=False))
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, own_init)
    found = unstack_blocks(gradients(other, own))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-4), found, expected
    )


@pytest.mark.slow
@pytest.mark.parametrize("form", [{"depth": 8}, {"depth": 20, "scan_blocks": True}], ids=str)
def test_bn_groups_are_networks_of_their_own(form):
    """Logits of each group as if it were alone; running averages are the mean over the groups."""
    model = small(bn_group_size=2, **form)
    x = jax.random.normal(KEY, (6, 9, 7, 3))
    variables = jax.jit(lambda: model.init(KEY, x[:1], train=False))()
    run = jax.jit(lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"]))
    (logits, _), stats = run(x)
    each = [run(x[i : i + 2]) for i in (0, 2, 4)]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 3, *(one[1] for one in each))
    expected = jnp.concatenate([one[0][0] for one in each])
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), stats, mean)


def test_segments_grow_with_the_root_of_the_depth():
    lengths = [segment_length("segments", n) for n in (1, 5, 18, 200, 20_000)]
    assert lengths == [1, 2, 3, 9, 82]
    assert segment_length("block", 18) == 1
    assert segment_length("none", 18) == 18


@pytest.mark.slow
def test_scanned_blocks_start_differently():
    variables = small(depth=32, scan_blocks=True).init(KEY, images(), train=False)
    kernel = variables["params"]["stage1"]["blocks"]["conv1"]["kernel"]
    assert kernel.shape == (5, 3, 3, 4, 4)
    assert not np.allclose(kernel[0], kernel[1])
    assert jax.tree.map(jnp.shape, stack_blocks(variables)) == jax.tree.map(jnp.shape, variables)
    std = np.std(np.asarray(kernel))
    assert 0.8 < std / math.sqrt(2 / (9 * 4)) < 1.2  # He, fan out
