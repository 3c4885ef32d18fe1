"""Device transforms: pure functions of per-example keys, the same on every sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data import device_transforms as dt
from data import mixup, normalization
from data.keys import example_keys
from errors import UserError

BATCH, HEIGHT, WIDTH, CLASSES = 8, 9, 12, 5


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return generator.integers(1, 256, (BATCH, HEIGHT, WIDTH, 3), np.uint8)


@pytest.fixture(scope="module")
def targets():
    return jax.nn.one_hot(jnp.arange(BATCH) % CLASSES, CLASSES)


def keys(number=BATCH, seed=0):
    return example_keys(jax.random.key(seed), jnp.arange(number))


VALID = np.ones(BATCH, bool)

# Compiled, as in the train step; and much faster than one operation at a time.
pad_crop_flip = jax.jit(dt.pad_crop_flip, static_argnames=("pad", "flip"))
pca_noise = jax.jit(dt.pca_noise, static_argnames="std")
random_erasing = jax.jit(mixup.random_erasing, static_argnames="probability")
mix = jax.jit(mixup.mix, static_argnames=("mixup", "cutmix"))


def everything(keys, images, targets, valid):
    """All transforms in their order."""
    images = normalization.normalize(
        dt.pca_noise(keys, images), *normalization.CONSTANTS["imagenet"]
    )
    images = dt.pad_crop_flip(keys, images, pad=2, flip=True)
    images = mixup.random_erasing(keys, images, probability=0.5)
    return mixup.mix(keys, images, targets, valid, mixup=0.2, cutmix=1.0)


# ---- Keys


@pytest.mark.slow
def test_sharding_and_compilation_change_nothing(images, targets):
    arguments = keys(), jnp.asarray(images), targets, jnp.asarray(VALID)
    expected = jax.jit(everything)(*arguments)
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    spec = PartitionSpec("data")
    sharded = jax.jit(
        jax.shard_map(everything, mesh=mesh, in_specs=(spec,) * 4, out_specs=(spec, spec))
    )(*jax.device_put(arguments, NamedSharding(mesh, spec)))
    for part, whole in zip(sharded, expected, strict=True):
        np.testing.assert_allclose(part, whole, rtol=0, atol=2e-6)  # compiled apart: last bits


def test_crops_are_bitwise_the_same_on_every_sharding(images):
    halves = [
        pad_crop_flip(keys()[part], images[part], pad=2, flip=True)
        for part in (slice(4), slice(4, 8))
    ]
    whole = pad_crop_flip(keys(), images, pad=2, flip=True)
    np.testing.assert_array_equal(np.concatenate(halves), whole)


@pytest.mark.slow
def test_an_example_depends_on_its_own_key_only(images):
    for transform in (
        lambda k, x: pad_crop_flip(k, x, pad=2, flip=True),
        pca_noise,
        lambda k, x: random_erasing(k, x.astype(jnp.float32), probability=0.5),
    ):
        before = np.asarray(transform(keys(), images))
        changed = keys().at[3].set(jax.random.key(99))
        after = np.asarray(transform(changed, images))
        assert [i for i in range(BATCH) if (before[i] != after[i]).any()] == [3]


def test_purposes_are_independent():
    """The same keys serve all transforms: the flip must not tell the colour."""
    number = 400
    ramp = np.zeros((number, 1, 2, 3), np.uint8)
    ramp[:, :, 1] = 100
    flipped = np.asarray(pad_crop_flip(keys(number), ramp, pad=0, flip=True))[:, 0, 0, 0] == 100
    shift = np.asarray(pca_noise(keys(number), ramp))[:, 0, 0, 0]
    assert abs(np.corrcoef(flipped, shift)[0, 1]) < 0.15


# ---- Pad, crop, flip


def test_pad_crop_flip_equals_padding_then_slicing(images):
    result = np.asarray(pad_crop_flip(keys(), images, pad=3, flip=True))
    assert result.dtype == np.uint8 and result.shape == images.shape
    padded = np.pad(images, ((0, 0), (3, 3), (3, 3), (0, 0)))
    for index in range(BATCH):
        candidates = [
            padded[index, top : top + HEIGHT, left : left + WIDTH][:, ::direction]
            for top in range(7)
            for left in range(7)
            for direction in (1, -1)
        ]
        assert sum(np.array_equal(result[index], c) for c in candidates) == 1


def test_offsets_and_flips_are_uniform():
    number = 3000
    image = np.arange(1, 26, dtype=np.uint8).reshape(1, 5, 5, 1)
    images = np.repeat(image, number, axis=0)
    result = np.asarray(pad_crop_flip(keys(number), images, pad=1, flip=True))
    centres, counts = np.unique(result[:, 2, 2, 0], return_counts=True)
    assert sorted(centres) == [7, 8, 9, 12, 13, 14, 17, 18, 19]
    assert counts.min() > 0.8 * number / 9 and counts.max() < 1.2 * number / 9
    flipped = result[:, 2, 3, 0].astype(int) < result[:, 2, 2, 0]
    assert 0.46 < flipped.mean() < 0.54


def test_no_pad_no_flip_is_the_identity(images):
    np.testing.assert_array_equal(pad_crop_flip(keys(), images, pad=0, flip=False), images)


# ---- Normalisation


def test_normalize_by_channel_and_by_pixel(images):
    by_channel = normalization.normalize(images, *normalization.CONSTANTS["imagenet"])
    expected = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(by_channel, expected, atol=1e-5)
    per_pixel = normalization.Normalization.from_images(images, per_pixel=True)
    assert per_pixel.mean.shape == (HEIGHT, WIDTH, 3) and per_pixel.std.shape == (3,)
    normalized = normalization.normalize(images, *per_pixel)
    np.testing.assert_allclose(np.mean(normalized, axis=0), 0, atol=1e-5)


def test_statistics_are_those_of_numpy():
    images = np.random.default_rng(1).integers(0, 256, (1030, 3, 2, 3), np.uint8)
    found = normalization.Normalization.from_images(images, per_pixel=False)
    np.testing.assert_allclose(found.mean, images.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(found.std, images.std(axis=(0, 1, 2)), rtol=1e-6)
    constant = normalization.Normalization.from_images(
        np.full((2, 2, 2, 1), 7, np.uint8), per_pixel=False
    )
    assert constant.std == 1 and constant.mean == 7


def test_constants_survive_json(images):
    import json

    before = normalization.Normalization.from_images(images, per_pixel=True)
    after = normalization.Normalization.from_dict(json.loads(json.dumps(before.to_dict())))
    np.testing.assert_array_equal(after.mean, before.mean)
    np.testing.assert_array_equal(after.std, before.std)
    assert after.mean.dtype == np.float32


def test_constants_of_another_size_are_a_user_error(images):
    with pytest.raises(UserError, match="mean of shape"):
        normalization.normalize(images, np.zeros((4, 4, 3)), np.ones(3))
    with pytest.raises(UserError, match="std of shape"):
        normalization.normalize(images, np.zeros(3), np.ones(2))
    with pytest.raises(UserError, match="empty"):
        normalization.Normalization.from_images(np.zeros((0, 2, 2, 3), np.uint8), per_pixel=True)


# ---- Colour


def test_pca_noise_shifts_whole_images_along_the_principal_axes():
    number = 2000
    images = np.full((number, 2, 2, 3), 100, np.uint8)
    shifts = np.asarray(pca_noise(keys(number), images)) - 100
    np.testing.assert_array_equal(shifts[:, :1, :1].repeat(2, 1).repeat(2, 2), shifts)
    shifts = shifts[:, 0, 0] / 255
    vectors, values = dt.PCA_EIGENVECTORS, dt.PCA_EIGENVALUES
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=2e-3)
    alphas = shifts @ vectors / values  # the axes are orthonormal
    np.testing.assert_allclose(alphas.std(axis=0), 0.1, rtol=0.08)
    np.testing.assert_allclose(alphas.mean(axis=0), 0, atol=0.01)
    strong = np.asarray(pca_noise(keys(number), images, std=0.2))[:, 0, 0] - 100
    np.testing.assert_allclose(strong / 255, 2 * shifts, atol=1e-5)


def test_pca_noise_needs_colour():
    with pytest.raises(UserError, match="3 colour channels"):
        pca_noise(keys(2), np.zeros((2, 4, 4, 1), np.uint8))


# ---- Mixing


@pytest.mark.slow
def test_mixup_mixes_partners_in_proportion(targets):
    images = jnp.broadcast_to(
        jnp.arange(BATCH, dtype=jnp.float32)[:, None, None, None], (BATCH, 2, 2, 1)
    )
    mixed, soft = mix(keys(), images, targets, VALID, mixup=1.0)
    kept = np.asarray(soft)[np.arange(BATCH), np.arange(BATCH) % CLASSES]
    partner = np.arange(BATCH) ^ 1
    expected = kept * np.arange(BATCH) + (1 - kept) * partner
    np.testing.assert_allclose(np.asarray(mixed)[:, 0, 0, 0], expected, atol=1e-5)
    np.testing.assert_allclose(np.asarray(soft)[np.arange(BATCH), partner % CLASSES], 1 - kept,
                               atol=1e-6)  # fmt: skip
    np.testing.assert_allclose(np.sum(soft, axis=1), 1, atol=1e-6)
    assert len(set(kept.tolist())) == BATCH  # a lambda of its own for each example


@pytest.mark.slow
def test_cutmix_weighs_labels_by_the_pasted_area(targets):
    number = 64
    images = jnp.broadcast_to(
        (jnp.arange(number) % 2).astype(jnp.float32)[:, None, None, None], (number, 10, 14, 1)
    )
    labels = jax.nn.one_hot(jnp.arange(number) % 2, 2)
    mixed, soft = map(np.asarray, mix(keys(number), images, labels, np.ones(number, bool),
                                         cutmix=1.0))  # fmt: skip
    assert set(np.unique(mixed)) == {0, 1}
    np.testing.assert_allclose(mixed.mean(axis=(1, 2, 3)), soft[:, 1], atol=1e-6)
    for index in range(number):  # the pasted region is one rectangle
        pasted = mixed[index, :, :, 0] != index % 2
        rows, columns = pasted.any(axis=1), pasted.any(axis=0)
        np.testing.assert_array_equal(pasted, rows[:, None] & columns[None, :])
    shares = 1 - soft[np.arange(number), np.arange(number) % 2]
    assert 0.2 < shares.mean() < 0.6 and shares.std() > 0.1


@pytest.mark.slow
def test_both_means_each_image_takes_one():
    number = 200
    images = jnp.broadcast_to(
        (jnp.arange(number) % 2).astype(jnp.float32)[:, None, None, None], (number, 8, 8, 1)
    )
    labels = jax.nn.one_hot(jnp.arange(number) % 2, 2)
    mixed, _ = mix(keys(number), images, labels, np.ones(number, bool), mixup=1.0, cutmix=1.0)
    blended = [((image > 0.001) & (image < 0.999)).any() for image in np.asarray(mixed)]
    assert 0.35 < np.mean(blended) < 0.65


@pytest.mark.slow
def test_an_invalid_partner_is_not_mixed_in(images, targets):
    valid = VALID.copy()
    valid[2] = False
    floats = jnp.asarray(images, jnp.float32)
    mixed, soft = mix(keys(), floats, targets, valid, mixup=0.5, cutmix=0.5)
    np.testing.assert_array_equal(mixed[3], floats[3])
    np.testing.assert_array_equal(soft[3], targets[3])


def test_mix_off(images, targets):
    floats = jnp.asarray(images, jnp.float32)
    same, labels = mixup.mix(keys(), floats, targets, VALID)
    assert same is floats and labels is targets


# ---- Erasing


def test_random_erasing_erases_one_box_of_the_right_size():
    number = 300
    images = jnp.ones((number, 20, 24, 3))
    erased = np.asarray(random_erasing(keys(number), images, probability=0.7))
    holes = (erased == 0).all(axis=3)
    assert ((erased == 0).any(axis=3) == holes).all()
    touched = holes.any(axis=(1, 2))
    assert 0.6 < touched.mean() < 0.8
    for hole in holes[touched]:
        rows, columns = hole.any(axis=1), hole.any(axis=0)
        np.testing.assert_array_equal(hole, rows[:, None] & columns[None, :])
        assert 0.01 < hole.mean() < 0.37
        assert 0.2 < rows.sum() / columns.sum() < 5
    corners = holes[touched].mean(axis=0)
    assert (corners > 0).mean() > 0.97  # boxes reach everywhere


def test_random_erasing_probability(images):
    floats = jnp.asarray(images, jnp.float32)
    np.testing.assert_array_equal(random_erasing(keys(), floats, probability=0.0), floats)
    assert (np.asarray(random_erasing(keys(), floats, probability=1.0)) == 0).any((1, 2, 3)).all()


def test_raw_keys_work_as_well(images):
    raw = example_keys(jax.random.PRNGKey(0), jnp.arange(BATCH))
    np.testing.assert_array_equal(
        pad_crop_flip(raw, images, pad=2, flip=True),
        pad_crop_flip(keys(), images, pad=2, flip=True),
    )


@pytest.mark.slow
def test_random_resized_crop_of_everything_is_the_image(images):
    same = dt.random_resized_crop(keys(), images, area=(1, 1), aspect=(1, 1), flip=False)
    np.testing.assert_allclose(same, images, atol=1e-3)


@pytest.mark.slow
def test_random_resized_crop_is_a_linear_map_of_the_ramp():
    """On a ramp of columns a box shows as an offset and a slope; it lies inside the image."""
    ramp = jnp.broadcast_to(jnp.arange(16.0)[None, None, :, None], (32, 16, 16, 1))
    out = dt.random_resized_crop(keys(32), ramp, area=(0.25, 0.25), aspect=(1, 1), flip=False)
    slopes = np.diff(np.asarray(out)[:, 8, 2:-2, 0], axis=-1)
    np.testing.assert_allclose(slopes, 0.5, atol=1e-4)
    assert np.asarray(out).min() >= 0
    assert np.asarray(out).max() <= 15
    assert len(np.unique(np.asarray(out)[:, 8, 8, 0].round(2))) > 16  # the boxes differ


def test_boxes_beyond_the_image_shrink_it():
    white = jnp.full((8, 16, 16, 1), 200.0)
    out = dt.random_resized_crop(keys(8), white, area=(4, 4), aspect=(1, 1), flip=False)
    np.testing.assert_allclose(out.sum((1, 2, 3)), 200 * 16 * 16 / 4, rtol=0.02)
