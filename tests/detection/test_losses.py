"""What detectors and segmenters learn from: torchvision's losses, and sums that add up."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from detection import losses, roi
from detection.sampling import Sampling, balanced
from detection.segmentation import FCNHead
from models import scanned
from tests.support import detection_losses as support
from tests.support import detection_reference as reference

# ---- Sampling


@functools.partial(jax.jit, static_argnums=2)
def taken(keys, masks, sampling):
    return jax.vmap(lambda key, *kinds: balanced(key, *kinds, sampling))(keys, *masks)


def kinds(objects, background, n=60):
    """Masks `[n]` with so many of each at random places."""
    rank = np.random.default_rng(1).permutation(n)
    return rank < objects, (rank >= objects) & (rank < objects + background)


def test_samples_are_balanced():
    """At most a quarter of 20 are objects; background fills up as far as there is any."""
    cases = {(20, 30): (5, 15), (3, 30): (3, 17), (0, 30): (0, 20), (20, 4): (5, 4), (0, 0): (0, 0)}
    masks = [np.array(x) for x in zip(*(kinds(*case) for case in cases), strict=True)]
    keys = jax.random.split(jax.random.key(0), len(cases))
    found = jax.tree.map(np.asarray, taken(keys, masks, Sampling(20, 0.25, 0.5, 0.5)))
    for i, expected in enumerate(cases.values()):
        index = found.indices[i][found.valid[i]]
        of_objects = found.is_object[i][found.valid[i]]
        assert (of_objects.sum(), (~of_objects).sum()) == expected
        assert len(set(index)) == len(index)
        assert masks[0][i][index[of_objects]].all() and masks[1][i][index[~of_objects]].all()
        assert not found.is_object[i][~found.valid[i]].any()


def test_samples_are_a_function_of_the_key_and_fair():
    masks = [np.tile(mask, (400, 1)) for mask in kinds(20, 30)]
    keys = jax.random.split(jax.random.key(1), 400)
    found = taken(keys, masks, Sampling(20, 0.25, 0.5, 0.5))
    again = taken(keys[::-1], masks, Sampling(20, 0.25, 0.5, 0.5))
    np.testing.assert_array_equal(found.indices, again.indices[::-1])
    times = np.bincount(np.asarray(found.indices)[np.asarray(found.valid)], minlength=60) / 400
    assert abs(times[masks[0][0]] - 5 / 20).max() < 0.1
    assert abs(times[masks[1][0]] - 15 / 30).max() < 0.12


# ---- Networks


@pytest.fixture(scope="module")
def stored():
    return np.load(support.FILE), np.load(reference.FILE)


@pytest.fixture(scope="module")
def detector(stored, tmp_path_factory):
    """Losses and gradients of Mask R-CNN by a batch of two images, one on each of two devices."""
    net, variables, _ = support.opened(stored[1], "mask_rcnn", tmp_path_factory.mktemp("weights"))

    def share(variables, *data):
        def loss(params):
            found = net.apply(variables | {"params": params}, *data, method="losses")
            counts = jax.lax.psum({name: count for name, (_, count) in found.items()}, "data")
            parts = [found[name][0] / jnp.maximum(count, 1) for name, count in counts.items()]
            return sum(parts), found

        found = jax.grad(loss, has_aux=True)(variables["params"])
        return jax.lax.psum(found, "data")

    mesh = Mesh(np.array(jax.devices()), ("data",))
    specs = (P(), *[P("data")] * 7)
    sharded = jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)
    return functools.partial(jax.jit(sharded), variables)


def batch(**changes):
    """Arguments of `losses`; padding as torchvision counts it, up to the larger image."""
    images, sizes, boxes, labels, masks, _, keys = support.batch()
    padded = np.full_like(sizes, images.shape[1:3])
    masks = np.packbits(masks, -1)
    found = {"images": images, "sizes": sizes, "padded": padded, "boxes": boxes, "labels": labels}
    return tuple((found | {"masks": masks, "keys": keys} | changes).values())


def assert_torchvisions(numbers, name, found, gradients, which=slice(None)):
    """The losses within 1e-4 of themselves, and those arrays' gradients within 1e-3 of the norm."""
    for key, (value, count) in found.items():
        np.testing.assert_allclose(value / count, numbers[f"{name}/{key}"], rtol=1e-4)
    expected = numbers[f"{name}/gradients"][which]
    apart = np.abs(support.summary(gradients)[which] - expected).max(1)
    assert (apart <= 1e-3 * expected[:, 0] + 1e-6).all()
    assert (expected[:, 0] > 0).mean() > 0.9


@pytest.mark.slow
def test_losses_and_gradients_are_torchvisions_on_two_devices(stored, detector):
    gradients, found = detector(*batch())
    assert len(found) == 5
    assert_torchvisions(stored[0], "mask_rcnn", found, gradients)


@pytest.mark.slow
def test_parts_of_a_batch_add_up(detector):
    """An image of size 0 counts 0; so the sums and counts of the others are those of the batch."""
    whole, sizes = detector(*batch())[1], batch()[1]
    parts = [detector(*batch(sizes=sizes * np.int32([[i], [1 - i]])))[1] for i in (0, 1)]
    for name, (value, count) in whole.items():
        np.testing.assert_allclose(value, parts[0][name][0] + parts[1][name][0], rtol=1e-5)
        assert count == parts[0][name][1] + parts[1][name][1] > 0


@pytest.mark.slow
def test_bfloat16_with_blocks_in_a_loop_is_close(stored, detector, tmp_path, monkeypatch):
    monkeypatch.setattr(scanned, "MIN_SCANNED_STAGE", 2)
    net, variables, _ = support.opened(stored[1], "mask_rcnn", tmp_path)
    net = net.clone(backbone=net.backbone.clone(dtype="bfloat16", scan_blocks=True))
    variables = scanned.stack_blocks(variables)

    def loss(params):
        found = net.apply(variables | {"params": params}, *batch(), method="losses")
        return sum(value for value, _ in found.values()), found

    found, expected = jax.jit(loss)(variables["params"])[1], detector(*batch())[1]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0.05), found, expected)
    found = found, jax.eval_shape(jax.grad(loss, has_aux=True), variables["params"])
    assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype(np.float32)}


def finite(found):
    return all(np.isfinite(x).all() for x in jax.tree.leaves(found))


@pytest.mark.slow
def test_images_without_objects_are_background(detector):
    boxes, labels = batch()[3:5]
    for changes in ({"labels": 0 * labels}, {"labels": 0 * labels, "boxes": 0 * boxes}):
        gradients, found = detector(*batch(**changes))
        assert finite((found, gradients))
        for name in ("loss_rpn_box_reg", "loss_box_reg", "loss_mask"):
            assert found[name][0] == 0
        assert found["loss_mask"][1] == 0
        assert found["loss_objectness"][0] > 0 and found["loss_classifier"][0] > 0


@pytest.mark.slow
def test_images_of_size_0_count_nothing(detector):
    nothing = np.zeros((2, 2), np.int32)
    for changes in ({}, {"padded": nothing}):
        found = detector(*batch(sizes=nothing, **changes))
        assert not any(np.any(x) for x in jax.tree.leaves(found))


@pytest.mark.slow
def test_images_are_as_if_alone_on_a_larger_canvas(detector):
    """With its own padding, what lies beside and below an image does not count."""
    images, sizes = batch()[:2]
    padded = np.int32([[96, 128], [96, 96]])
    assert (padded[1] >= sizes[1]).all() and (padded[1] - sizes[1] < 32).all()
    expected = detector(*batch(padded=padded))
    images[1, 96:], images[1, :, 96:] = 9, 9
    found = detector(*batch(padded=padded, images=images))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected
    )


DEGENERATE = {
    "no width": [5, 5, 5, 9],
    "outside": [300, 300, 340, 330],
    "larger than the image": [-90, -90, 900, 900],
    "wrong order": [9, 9, 5, 5],
    "a thousandth of a pixel": [5, 5, 5.001, 5.001],
    "no number": [np.nan, 5, 9, 9],
}


@pytest.mark.slow
@pytest.mark.parametrize("box", DEGENERATE)
def test_degenerate_boxes_leave_gradients_finite(detector, box):
    boxes = batch()[3]
    boxes[:, 0] = DEGENERATE[box]  # of equal overlaps the first counts
    assert finite(detector(*batch(boxes=boxes)))


@pytest.mark.slow
def test_what_diverged_is_seen(detector):
    images = batch()[0]
    images[0, 0, 0, 0] = np.nan
    assert not finite(detector(*batch(images=images))[1]["loss_objectness"])


@pytest.mark.slow
@pytest.mark.parametrize("name", support.NETWORKS)
def test_the_stored_losses_are_torchvisions(stored, name, tmp_path):
    pytest.importorskip("torchvision")
    found, gradients = support.their_numbers(stored[1], name, tmp_path)
    for key, value in found.items():
        np.testing.assert_allclose(value, stored[0][f"{name}/{key}"], rtol=1e-4)
    norms = stored[0][f"{name}/gradients"][:, 0]
    np.testing.assert_allclose(gradients[:, 0], norms, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_a_detector_without_a_pyramid_learns_as_torchvisions(stored, tmp_path):
    """With conv1 to conv4 as they are, which spares compiling their gradients."""
    net, variables, _ = support.opened(stored[1], "c4", tmp_path)
    data, which = batch(), losses.learned(variables["params"], 4, False)

    def loss(params):
        params = jax.tree.map(lambda x, w: x if w else jax.lax.stop_gradient(x), params, which)
        found = net.apply(variables | {"params": params}, *data, method="losses")
        return sum(value / count for value, count in found.values()), found

    gradients, found = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    which = np.array(jax.tree.leaves(which))
    assert which.sum() > 20
    assert_torchvisions(stored[0], "c4", found, gradients, which)


@pytest.mark.parametrize(("name", "scatters"), {"mask_rcnn": 2, "c4": 2, "fcn": 0}.items())
def test_a_step_adds_to_no_map_by_a_scatter(stored, tmp_path, name, scatters):
    """Only the losses of an image's sampled anchors go back to scores and boxes by one each."""
    net, variables, _ = support.opened(stored[1], name, tmp_path)
    images, sizes, *_, pixels, _ = support.batch()
    data = (images, sizes, pixels) if name == "fcn" else batch()

    def loss(params):
        found = net.apply(variables | {"params": params}, *data, method="losses")
        return sum(value / count for value, count in found.values())

    traced = str(jax.make_jaxpr(jax.grad(loss))(variables["params"]))
    assert len(re.findall(r"= scatter", traced)) == scatters


@pytest.mark.slow
def test_a_segmenter_learns_as_torchvisions(stored, tmp_path):
    net, variables, _ = support.opened(stored[1], "fcn", tmp_path)
    images, *_, pixels, _ = support.batch()
    whole = np.full((2, 2), images.shape[1:3], np.int32)
    found = jax.jit(functools.partial(net.apply, method="losses"))(variables, images, whole, pixels)
    for key, (value, count) in found.items():
        np.testing.assert_allclose(value / count, stored[0][f"fcn/{key}"], rtol=1e-4)
    assert len(found) == 2


# ---- Parts


def test_a_head_on_two_devices_has_the_statistics_and_the_dropout_of_one():
    head, x = FCNHead(3), np.random.default_rng(0).standard_normal((4, 5, 6, 8), np.float32)
    keys = jax.random.split(jax.random.key(0), 4)
    variables = jax.jit(lambda: head.init(jax.random.key(1), x, None))()

    def train(x, keys):
        return head.apply(variables, x, None, True, keys, mutable="batch_stats")

    specs = (P("data"), P())
    mesh = Mesh(np.array(jax.devices()), ("data",))
    share = jax.shard_map(train, mesh=mesh, in_specs=P("data"), out_specs=specs, check_vma=False)
    alone = jax.jit(train)
    one, two = alone(x, keys), jax.jit(share)(x, keys)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), one, two)
    assert np.abs(alone(x, keys[::-1])[0] - one[0]).max() > 0.01


def test_pixels_of_no_class_and_beyond_an_image_do_not_count():
    random = np.random.default_rng(0)
    logits = random.standard_normal((2, 3, 4, 2)).astype(np.float32)
    targets = np.zeros((2, 3, 4), np.int32)
    targets[0, 1] = losses.IGNORED
    targets[1, 2] = 1
    sizes = np.int32([[3, 2], [0, 0]])
    total, count = jax.jit(losses.pixel_losses)(logits, targets, sizes)
    own = logits[0, [0, 2], :2]
    expected = np.log(np.exp(own).sum(-1)) - own[..., 0]
    assert count == 4
    np.testing.assert_allclose(total, expected.sum(), rtol=1e-6)


def test_one_class():
    """Background and one class: the numbers of the definitions."""
    boxes = np.float32([[[0, 0, 10, 20]]])
    objects = losses.Truth(boxes, np.int32([[1]]), np.ones((1, 1), bool))
    regions = losses.Regions(
        np.float32([[[1, 0, 11, 20], [30, 30, 40, 40], [0, 0, 0, 0]]]),
        np.int32([[1, 0, 0]]),
        np.zeros((1, 3), np.int32),
        np.array([[True, True, False]]),
    )
    logits = np.float32([[[0, 1], [2, 0], [9, -9]]])
    deltas = np.zeros((1, 3, 2, 4), np.float32)
    deltas[0, 0, 1, 1] = 0.05
    found = jax.jit(losses.region_losses, static_argnums=4)(
        logits, deltas, regions, objects, (1.0, 1.0, 1.0, 1.0)
    )
    entropy = np.log1p(np.exp(-1)) + np.log1p(np.exp(-2))
    np.testing.assert_allclose(found["loss_classifier"], (entropy, 2), rtol=1e-6)
    # x: |-1/10| < 1/9, y: |0.05|.
    np.testing.assert_allclose(found["loss_box_reg"], (4.5 * (0.1**2 + 0.05**2), 2), rtol=1e-6)


def test_the_gradient_of_a_pyramid_is_its_transpose():
    """⟨Pᵀg, f⟩ = ⟨g, Pf⟩, on levels of odd sizes, in several chunks, with boxes beyond the map."""
    random = np.random.default_rng(0)
    shapes = [(13, 21, 3), (7, 11, 3), (4, 6, 3)]
    maps = [random.standard_normal(shape).astype(np.float32) for shape in shapes]
    boxes = random.uniform(-20, 90, (40, 4)).astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]

    def pooled(maps):
        return roi.align_pyramid(maps, boxes, (3, 2), (1 / 4, 1 / 8, 1 / 16), canonical_size=60)

    def both(maps, gradient):
        found, transposed = jax.vjp(pooled, maps)
        return (found * gradient).sum(), transposed(gradient)[0]

    gradient = random.standard_normal((40, 3, 2, 3)).astype(np.float32)
    product, found = jax.jit(both)(maps, gradient)
    assert all(np.abs(x).max() > 1 for x in found)
    expected = sum((a * np.asarray(b)).sum() for a, b in zip(maps, found, strict=True))
    np.testing.assert_allclose(product, expected, rtol=1e-4)


def test_what_training_leaves_alone(stored, tmp_path):
    _, variables, _ = support.opened(stored[1], "mask_rcnn", tmp_path)
    params = variables["params"]
    found = losses.learned(params, 2, False)
    body = found["backbone"]
    for name, part in body.items():
        alone = name.startswith("stem") or name == "stage1"
        assert set(jax.tree.leaves(part)) == {not alone}
    assert all(jax.tree.leaves({k: v for k, v in found.items() if k != "backbone"}))
    body = losses.learned(params, 0, True)["backbone"]
    assert body["stem_conv"]["kernel"] and not any(body["stem_bn"].values())
    assert body["stage3"]["block1"]["conv1"]["kernel"]
    assert not any(body["stage3"]["block1"]["bn1"].values())
    assert all(jax.tree.leaves(losses.learned(params, 0, False)))
