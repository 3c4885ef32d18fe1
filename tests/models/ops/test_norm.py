"""Batch normalisation against Flax's own, with its gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from models.ops.norm import BN_EPSILON, BN_MOMENTUM, batch_norm

DATA_AXIS = "data"
SHAPES = [(4, 5, 6, 3), (2, 1, 1, 1), (3, 7, 2, 17)]


def ours(train=True, *, sync=False, frozen=False, dtype="float32", **options):
    return batch_norm(train, sync=sync, frozen=frozen, dtype=jnp.dtype(dtype), name="bn", **options)


def flax(train=True, *, sync=False, dtype="float32"):
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=BN_MOMENTUM,
        epsilon=BN_EPSILON,
        dtype=dtype,
        axis_name=DATA_AXIS if sync else None,
    )


def arrays(shape, mean=1.0):
    rng = np.random.default_rng(0)
    x = mean + 2 * rng.standard_normal(shape).astype(np.float32)
    channels = shape[-1:]
    params = {
        "scale": rng.standard_normal(channels).astype(np.float32),
        "bias": rng.standard_normal(channels).astype(np.float32),
    }
    stats = {
        "mean": rng.standard_normal(channels).astype(np.float32),
        "var": 1 + rng.random(channels).astype(np.float32),
    }
    return jax.tree.map(jnp.asarray, (x, params, stats))


def outcome(module, x, params, stats):
    """Output, new statistics, gradients of a nonlinear loss for parameters and input."""

    def loss(params, x):
        y, updated = module.apply(
            {"params": params, "batch_stats": stats}, x, mutable=["batch_stats"]
        )
        return jnp.sum(jnp.sin(y.astype(jnp.float32))), (y, updated)

    (_, (y, updated)), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)
    return y, updated, gradients


def assert_same(got, expected, tolerance=2e-5):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1, np.abs(b).max()))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("train", [True, False])
def test_value_statistics_and_gradients_are_flaxs(shape, train):
    got = jax.jit(lambda *a: outcome(ours(train), *a))(*arrays(shape))
    assert_same(got, jax.jit(lambda *a: outcome(flax(train), *a))(*arrays(shape)))


@pytest.mark.slow
def test_a_mean_far_from_zero_costs_no_more_precision_than_flaxs():
    x, params, stats = arrays((8, 6, 6, 4), mean=30.0)
    exact = outcome(flax(), x, params, stats)
    assert_same(outcome(ours(), x, params, stats), exact, tolerance=1e-3)


@pytest.mark.slow
def test_bfloat16_computes_in_float32_and_answers_in_bfloat16():
    x, params, stats = arrays((4, 5, 6, 3))
    half = x.astype(jnp.bfloat16)
    got = outcome(ours(dtype="bfloat16"), half, params, stats)
    assert got[0].dtype == got[2][1].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves((got[1], got[2][0]))} == {jnp.dtype("float32")}
    assert_same(got, outcome(flax(dtype="bfloat16"), half, params, stats), tolerance=2e-2)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("sync", [True, False])
def test_on_two_devices_statistics_are_those_of_one_device_or_of_both(sync, check_vma):
    x, params, stats = arrays((4, 5, 6, 3))
    mesh = Mesh(np.array(jax.devices()[:2]), (DATA_AXIS,))

    def run(module):
        def local(params, stats, x):
            y, updated, (gradients, dx) = outcome(module, x, params, stats)
            # With the check on, parameters are known to be shared and their gradient is summed.
            gradients = gradients if check_vma else lax.psum(gradients, DATA_AXIS)
            mean = updated if sync and check_vma else lax.pmean(updated, DATA_AXIS)
            return y, mean, gradients, dx

        out = (P(DATA_AXIS), P(), P(), P(DATA_AXIS))
        return jax.jit(
            jax.shard_map(
                local,
                mesh=mesh,
                in_specs=(P(), P(), P(DATA_AXIS)),
                out_specs=out,
                check_vma=check_vma,
            )
        )(params, stats, x)

    got = run(ours(sync=sync))
    if sync:
        y, updated, (gradients, dx) = outcome(flax(), x, params, stats)
        assert_same(got, (y, updated, gradients, dx))
    else:
        halves = [outcome(flax(), half, params, stats) for half in (x[:2], x[2:])]
        assert_same(got[0], jnp.concatenate([half[0] for half in halves]))
        assert_same(got[1], jax.tree.map(lambda a, b: (a + b) / 2, *(half[1] for half in halves)))
        assert_same(got[2], jax.tree.map(jnp.add, *(half[2][0] for half in halves)))
        assert_same(got[3], jnp.concatenate([half[2][1] for half in halves]))


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3])
def test_groups_are_normalised_each_by_its_own_statistics(size):
    x, params, stats = arrays((6, 5, 4, 3))
    x = x + jnp.arange(6.0).reshape(6, 1, 1, 1)
    y, updated, (gradients, dx) = outcome(ours(group_size=size), x, params, stats)
    each = [outcome(flax(), x[i : i + size], params, stats) for i in range(0, 6, size)]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / len(each), *(one[1] for one in each))
    total = jax.tree.map(lambda *leaves: sum(leaves), *(one[2][0] for one in each))
    assert_same(updated, mean)
    assert_same(gradients, total)
    assert_same(y, jnp.concatenate([one[0] for one in each]))
    assert_same(dx, jnp.concatenate([one[2][1] for one in each]))


@pytest.mark.parametrize("size", [6, 7, 64])
def test_a_group_of_more_images_than_there_are_is_all_of_them(size):
    given = arrays((6, 5, 4, 3))
    assert_same(outcome(ours(group_size=size), *given), outcome(ours(), *given), tolerance=0)


def test_groups_do_not_matter_in_evaluation():
    given = arrays((5, 5, 4, 3))
    assert_same(outcome(ours(False, group_size=2), *given), outcome(ours(False), *given), 0)


@pytest.mark.slow
def test_parameters_and_statistics_start_as_flaxs():
    x = arrays((2, 3, 3, 5))[0]
    key = jax.random.key(0)
    assert_same(ours().init(key, x), flax().init(key, x))
    assert_same(ours(sync=True).init(key, x), flax().init(key, x))  # no mesh is needed for it
    assert not ours(zero_init=True).init(key, x)["params"]["scale"].any()


@pytest.mark.slow
def test_frozen_statistics_are_used_and_kept_in_training():
    x, params, stats = arrays((2, 3, 3, 5))
    frozen = outcome(ours(frozen=True), x, params, stats)
    assert_same(frozen, outcome(flax(train=False), x, params, stats))
    assert_same(frozen[1]["batch_stats"], stats)
