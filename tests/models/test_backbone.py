"""The networks as backbones: a feature pyramid, dilation, frozen batch normalisation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models


def endpoint_shapes(image_shape, **fields):
    """Endpoint name → shape, traced without computing."""
    model = models.create(fields, 10)
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    _, endpoints = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=False)[0], images
    )
    return {name: value.shape for name, value in endpoints.items()}


def test_feature_pyramid_of_a_detector():
    """800 × 1333, the usual detection size: strides 4, 8, 16, 32, rounded up."""
    shapes = endpoint_shapes((800, 1333, 3), depth=50)
    assert shapes == {
        "stem": (2, 400, 667, 64),
        "stage1": (2, 200, 334, 256),
        "stage2": (2, 100, 167, 512),
        "stage3": (2, 50, 84, 1024),
        "stage4": (2, 25, 42, 2048),
        "pooled": (2, 2048),
        "logits_map": (2, 25, 42, 10),
    }


@pytest.mark.parametrize(
    ("output_stride", "stage3", "stage4"),
    [(32, (50, 84), (25, 42)), (16, (50, 84), (50, 84)), (8, (100, 167), (100, 167))],
)
@pytest.mark.parametrize("depth", [18, 50])
def test_dilation_keeps_the_resolution(depth, output_stride, stage3, stage4):
    shapes = endpoint_shapes((800, 1333, 3), depth=depth, output_stride=output_stride)
    assert shapes["stage2"][1:3] == (100, 167)
    assert shapes["stage3"][1:3] == stage3
    assert shapes["stage4"][1:3] == stage4


def small(**fields):
    return models.create({"depth": 18, "width": 4, **fields}, 3)


def random_variables(model):
    images = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    random = np.random.RandomState(0)

    def draw(path, leaf):
        name = path[-1].key
        value = random.uniform(0.5, 1.0, leaf.shape)
        scale = 0.3 * random.standard_normal(leaf.shape) if name in ("kernel", "mean") else value
        return jnp.asarray(scale, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def variables():
    return random_variables(small())


@pytest.fixture(scope="module")
def images():
    return np.random.RandomState(1).standard_normal((2, 64, 64, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "fields", [{"depth": 18}, {"depth": 50}, {"depth": 50, "downsample_in": "3x3"}]
)
def test_dilated_features_pass_through_the_strided_ones(fields, images):
    """Dilation sees every position; some of them are exactly what the strided stage computes."""
    model = models.create({"width": 2} | fields, 3)
    variables = random_variables(model)

    def last_stage(model):
        return jax.jit(lambda x: model.apply(variables, x, train=False)[1]["stage4"])(images)

    expected = np.asarray(last_stage(model))
    for stride in (8, 16):
        step = 32 // stride
        dilated = last_stage(model.clone(output_stride=stride))[:, ::step, ::step]
        atol = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(dilated, expected, rtol=0, atol=atol)


@pytest.mark.slow
def test_frozen_batch_norm_trains_as_it_tests(variables, images):
    def run(model, train):
        f = functools.partial(model.apply, train=train, mutable=["batch_stats"])
        return jax.jit(f)(variables, images)

    frozen, usual = small(frozen_bn=True), small()
    (tested, _), _ = run(usual, False)
    (trained, _), updated = run(frozen, True)
    np.testing.assert_allclose(trained, tested, rtol=1e-6)
    same = jax.tree.map(np.array_equal, updated["batch_stats"], variables["batch_stats"])
    assert all(jax.tree.leaves(same))
    (unfrozen, _), changed = run(usual, True)
    assert np.abs(unfrozen - tested).max() > 1e-3
    assert not np.array_equal(
        changed["batch_stats"]["stem_bn"]["mean"], variables["batch_stats"]["stem_bn"]["mean"]
    )


@pytest.mark.slow
def test_the_map_of_logits_averages_to_the_logits(variables, images):
    run = jax.jit(functools.partial(small().apply, train=False))
    logits, endpoints = run(variables, images[:, :50, :37])
    assert endpoints["logits_map"].shape[1:3] == endpoints["stage4"].shape[1:3] == (2, 2)
    np.testing.assert_allclose(endpoints["logits_map"].mean((1, 2)), logits, rtol=1e-4, atol=1e-4)
