"""The step: data parallelism, accumulation, augmentation and the NaN policy, on two CPU devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import input_pipeline
import models
from errors import UserError
from run.mesh import make_mesh, replicate, to_host
from training import classification
from training import step as train_step
from training.check import check

ONE, TWO = (make_mesh(jax.devices()[:n]) for n in (1, 2))


def run(config, mesh, steps=2, state=None):
    """The state after some steps from the seed's initial state (or a given one), and the window."""
    data = input_pipeline.open_data(config, mesh)
    model = models.create(config.model, data.facts.num_classes)
    state = state or to_host(train_step.create_state(config, model, data.facts.image_shape))
    compiled = train_step.make_run(config, model, data, mesh)
    state = replicate(state, mesh)
    order = replicate(data.initial_order(), mesh)
    feed = data.feed(0)
    for _ in range(steps // config.steps_per_dispatch):
        state, order, window = compiled(state, order, next(feed), config.steps_per_dispatch)
    return to_host(state), to_host(window)


def first_images(data, mesh):
    """The pixels that the first step draws, float32."""
    draw = jax.shard_map(
        lambda order, arrays: data.draw(order, 0, arrays)[1]["image"],
        mesh=mesh,
        in_specs=(jax.sharding.PartitionSpec(),) * 2,
        out_specs=jax.sharding.PartitionSpec("data"),
        check_vma=False,
    )
    return np.asarray(jax.jit(draw)(data.initial_order(), next(data.feed(0))), np.float32)


def assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def largest_difference(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: np.abs(x - y).max(), a, b)))


@pytest.mark.slow
def test_two_devices_with_synchronised_bn_equal_one(tiny):
    tiny.model.sync_bn = True
    (one, window1), (two, window2) = run(tiny, ONE), run(tiny, TWO)
    assert_close(one.params, two.params, rtol=1e-4, atol=2e-5)
    assert_close(one.batch_stats, two.batch_stats, rtol=1e-4, atol=2e-5)
    assert window1.images == window2.images == 64
    np.testing.assert_allclose(window1.loss, window2.loss, rtol=1e-5)


@pytest.mark.slow
def test_without_synchronisation_only_bn_statistics_differ(tiny):
    """With frozen BN (no batch statistics) the two agree; with per-device BN they do not."""
    (one, _), (two, _) = run(tiny, ONE), run(tiny, TWO)
    assert largest_difference(one.params, two.params) > 1e-4
    tiny.model.frozen_bn = True
    (one, _), (two, _) = run(tiny, ONE), run(tiny, TWO)
    assert_close(one.params, two.params, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_per_device_running_averages_are_the_mean_over_devices(tiny):
    """After one step of momentum 0.9: mean over devices of 0.1·batch mean, for the stem."""
    tiny.augment.kind = "none"
    state, _ = run(tiny, TWO, steps=1)
    assert np.isfinite(state.batch_stats["stem_bn"]["mean"]).all()
    data = input_pipeline.open_data(tiny, TWO)
    model = models.create(tiny.model, 10)
    initial = to_host(train_step.create_state(tiny, model, (8, 8, 1)))

    mean, std = data.facts.normalization
    means = []
    for part in np.split((first_images(data, TWO) - mean) / std, 2):
        kernel = initial.params["stem_conv"]["kernel"]
        out = jax.lax.conv_general_dilated(
            jnp.asarray(part, jnp.float32),
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        means.append(np.asarray(out).mean((0, 1, 2)))
    np.testing.assert_allclose(
        state.batch_stats["stem_bn"]["mean"], 0.1 * np.mean(means, 0), rtol=1e-3, atol=1e-4
    )


@pytest.mark.slow
def test_bn_groups_of_one_device_are_the_batches_of_several(tiny):
    """16 of 32 images on one device: the numbers of two devices, which have fewer than the 64."""
    assert tiny.model.bn_group_size == 64
    two, window = run(tiny, TWO)
    tiny.model.bn_group_size = 16
    one, window_of_one = run(tiny, ONE)
    assert_close(one.params, two.params, rtol=1e-4, atol=2e-5)
    assert_close(one.batch_stats, two.batch_stats, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(window.loss, window_of_one.loss, rtol=1e-5)
    tiny.optim.accumulate_steps = 2  # each part is one group
    parts, _ = run(tiny, ONE, steps=1)
    tiny.optim.accumulate_steps, tiny.model.bn_group_size = 1, 64
    assert_close(parts.params, run(tiny, TWO, steps=1)[0].params, rtol=1e-4, atol=2e-5)


@pytest.mark.slow
def test_accumulation_equals_the_whole_batch(tiny):
    tiny.model.frozen_bn = True  # BN sees the parts
    whole, window = run(tiny, ONE)
    tiny.optim.accumulate_steps = 4
    parts, window_of_parts = run(tiny, ONE)
    assert_close(whole.params, parts.params, rtol=1e-4, atol=1e-6)
    assert window.errors == window_of_parts.errors
    np.testing.assert_allclose(window.loss, window_of_parts.loss, rtol=1e-5)


@pytest.mark.slow
def test_several_steps_in_one_dispatch_are_the_same_steps(tiny):
    single, _ = run(tiny, TWO, steps=4)
    tiny.steps_per_dispatch = 4
    together, window = run(tiny, TWO, steps=4)
    assert together.step == single.step == 4
    assert window.steps == 4
    assert_close(single.params, together.params, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_bfloat16_step_keeps_float32_state(tiny):
    tiny.model.dtype = "bfloat16"
    state, window = run(tiny, ONE)
    floats = jax.tree.leaves((state.params, state.batch_stats, state.opt_state))
    assert {leaf.dtype for leaf in floats} == {np.dtype("float32")}
    assert np.isfinite(window.loss)


@pytest.mark.slow
def test_average_of_weights(tiny):
    tiny.optim.ema_decay = 0.5
    state, _ = run(tiny, ONE, steps=1)
    model = models.create(tiny.model, 10)
    initial = train_step.create_state(tiny, model, (8, 8, 1))
    expected = jax.tree.map(lambda a, b: 0.5 * a + 0.5 * b, initial.params, state.params)
    assert_close(state.ema["params"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["mixup", "cutmix", "erase"])
def test_modern_augmentation_trains(tiny, form):
    tiny.augment[form] = 0.5
    _, window = run(tiny, TWO)
    assert np.isfinite(window.loss)
    assert window.images == 64


class Recorder(nn.Module):
    """A linear classifier whose `batch_stats` are the images that it was given."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, images, train):
        self.variable("batch_stats", "seen", jnp.zeros, images.shape).value = images
        return nn.Dense(self.num_classes)(images.reshape(len(images), -1)), {}


@pytest.mark.slow
@pytest.mark.parametrize("statistics", ["per_pixel", "per_channel"])
def test_the_mean_is_subtracted_before_zeros_are_padded(tiny, statistics):
    """Section 4.2: what the network sees is a crop of the normalised image in a border of zeros."""
    tiny.data.normalization = statistics
    tiny.augment.update(kind="pad_crop_flip", pad=2, flip=True)
    data = input_pipeline.open_data(tiny, ONE)
    state = train_step.create_state(tiny, Recorder(), data.facts.image_shape)
    order, feed = data.initial_order(), next(data.feed(0))
    run = train_step.make_run(tiny, Recorder(), data, ONE)
    state, _, _ = run(replicate(state, ONE), replicate(order, ONE), feed, 1)
    mean, std = data.facts.normalization
    normalized = (first_images(data, ONE) - mean) / std
    padded = np.pad(normalized, ((0, 0), (2, 2), (2, 2), (0, 0)))
    moved = 0
    for image, seen in zip(padded, np.asarray(state.batch_stats["seen"]), strict=True):
        crops = [
            image[top : top + 8, left : left + 8][:, ::direction]
            for top in range(5)
            for left in range(5)
            for direction in (1, -1)
        ]
        found = [i for i, crop in enumerate(crops) if np.allclose(crop, seen, atol=1e-5)]
        assert len(found) == 1
        np.testing.assert_array_equal(seen[crops[found[0]] == 0], 0)
        moved += found[0] // 2 != 12
    assert moved > len(padded) / 2


@pytest.mark.slow
def test_lamb_trains_as_loops_and_unrolled(tiny):
    tiny.optim.update(name="lamb", loss="bce", learning_rate=0.01)
    tiny.model.update(depth=20, scan_blocks=True)
    _, window = run(tiny, ONE, steps=4)
    tiny.model.scan_blocks = False
    _, same = run(tiny, ONE, steps=4)
    assert window.bad_steps == 0 and np.isfinite(window.loss)
    # Not the weights: Adam's first steps take the sign of gradients near 0, which is rounding.
    np.testing.assert_allclose(window.loss, same.loss, rtol=1e-2)


@pytest.mark.parametrize(("threshold", "targets"), [(0.0, [0.3, 0.7, 0.0]), (0.25, [1, 1, 0])])
def test_binary_cross_entropy_is_a_mean_over_classes(tiny, threshold, targets):
    tiny.optim.update(loss="bce", bce_threshold=threshold)
    logits = np.array([1.5, -0.5, 2.0])
    probability = 1 / (1 + np.exp(-logits))
    y = np.array(targets)
    expected = -np.mean(y * np.log(probability) + (1 - y) * np.log(1 - probability))
    given = jnp.array([[0.3, 0.7, 0.0]])
    found = classification.example_losses(tiny.optim, jnp.asarray(logits, jnp.float32)[None], given)
    np.testing.assert_allclose(found, [expected], rtol=1e-5)


def test_a_nan_leaves_no_trace_in_the_weights(tiny):
    tiny.optim.on_nonfinite = "skip"
    model = models.create(tiny.model, 10)
    initial = to_host(train_step.create_state(tiny, model, (8, 8, 1)))
    kernel = initial.params["head"]["kernel"].copy()
    kernel[0, 0] = np.nan
    poisoned = initial.replace(
        params={**initial.params, "head": {**initial.params["head"], "kernel": kernel}}
    )
    state, window = run(tiny, ONE, state=poisoned)
    np.testing.assert_array_equal(
        state.params["stem_conv"]["kernel"], initial.params["stem_conv"]["kernel"]
    )
    assert window.bad_steps == 2
    assert window.images == 0
    assert window.first_bad[0] == 1


@pytest.mark.slow
def test_train_only_head_moves_only_the_head(tiny):
    tiny.optim.train_only = "head"
    state, _ = run(tiny, ONE)
    model = models.create(tiny.model, 10)
    initial = to_host(train_step.create_state(tiny, model, (8, 8, 1)))
    for name, leaves in state.params.items():
        moved = largest_difference(leaves, initial.params[name]) > 0
        assert moved == (name == "head"), name


def test_batch_that_does_not_divide(tiny):
    tiny.batch_size = 33
    with pytest.raises(UserError, match="33 cannot be divided over 2 device.*32 or 34"):
        check(tiny, devices=TWO.size)


def test_batch_larger_than_the_set(tiny):
    tiny.batch_size = 1_000
    with pytest.raises(UserError, match="898"):
        input_pipeline.open_data(tiny, TWO)
