"""What detectors learn from, and that the parts of a batch add up to the whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detection.faster_rcnn import FasterRCNN
from detection.rpn import Limits
from detection.sampling import Sampling, balanced
from models import resnet

SIDE, OBJECTS = 64, 4
ALL = Sampling(4000, 0.5, 0.7, 0.3)  # more than there are: everything is taken


@functools.partial(jax.jit, static_argnums=3)
def taken(key, objects, background, sampling):
    return balanced(key, objects, background, sampling)


def kinds(objects, background, n=60):
    """Masks `[n]` with so many of each at random places."""
    order = np.random.default_rng(1).permutation(n)
    rank = np.empty(n, int)
    rank[order] = np.arange(n)
    return rank < objects, (rank >= objects) & (rank < objects + background)


@pytest.mark.parametrize(
    ("objects", "background", "expected"),
    [(20, 30, (5, 15)), (3, 30, (3, 17)), (0, 30, (0, 20)), (20, 4, (5, 4)), (0, 0, (0, 0))],
)
def test_samples_are_balanced(objects, background, expected):
    """At most a quarter of 20 are objects; background fills up as far as there is any."""
    masks = kinds(objects, background)
    found = taken(jax.random.key(0), *masks, Sampling(20, 0.25, 0.5, 0.5))
    index = np.asarray(found.indices)[np.asarray(found.valid)]
    of_objects = np.asarray(found.is_object)[np.asarray(found.valid)]
    assert (of_objects.sum(), (~of_objects).sum()) == expected
    assert len(set(index)) == len(index)
    assert masks[0][index[of_objects]].all() and masks[1][index[~of_objects]].all()
    assert not np.asarray(found.is_object)[~np.asarray(found.valid)].any()


def test_samples_are_a_function_of_the_key_and_fair():
    masks, sampling = kinds(20, 30), Sampling(20, 0.25, 0.5, 0.5)
    keys = jax.random.split(jax.random.key(1), 400)
    found = jax.vmap(lambda key: balanced(key, *masks, sampling))(keys)
    again = taken(keys[7], *masks, sampling)
    np.testing.assert_array_equal(found.indices[7], again.indices)
    times = np.bincount(np.asarray(found.indices)[np.asarray(found.valid)], minlength=60) / 400
    assert abs(times[masks[0]] - 5 / 20).max() < 0.1 and abs(times[masks[1]] - 15 / 30).max() < 0.12


def test_all_are_taken_where_there_is_room():
    masks = kinds(20, 30)
    found = taken(jax.random.key(0), *masks, Sampling(120, 0.5, 0.5, 0.5))
    assert found.indices.shape == (60,) and found.valid.sum() == 50 and found.is_object.sum() == 20


# ---- The losses of a network


@pytest.fixture(scope="module")
def detector():
    """A detector of 1 class and 12 convolutions, its variables, and losses and gradients of a
    batch."""
    table = resnet.IMAGENET | {10: resnet.Architecture((1, 1, 1, 1), resnet.BasicBlock)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet, "IMAGENET", table)
        backbone = resnet.ResNet(0, depth=10, width=4, frozen_bn=True)
        net = FasterRCNN(
            backbone,
            num_classes=2,
            width=8,
            hidden=8,
            anchor_sizes=((8,), (16,), (32,), (64,), (64,)),
            canonical_size=64,
            training_limits=Limits(before=64, after=32),
            regions=Sampling(64, 0.5, 0.5, 0.5),
            anchors=ALL,
        )
        data = batch()
        variables = jax.jit(net.init)(jax.random.key(0), *data[:3])

        def loss(params, *data):
            both = variables | {"params": params}
            found = net.apply(both, *data, method="losses")
            return sum(value / jnp.maximum(count, 1) for value, count in found.values()), found

        compiled = jax.jit(jax.value_and_grad(loss, has_aux=True))
        yield functools.partial(compiled, variables["params"])


def batch(**changes):
    """Arguments of `losses`: an image on the whole canvas and one of 32 × 64 pixels, 2 objects."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)
    images[1, 32:] = 0
    boxes = np.zeros((2, OBJECTS, 4), np.float32)
    boxes[:, :2] = [[2, 3, 20, 17], [30, 8, 62, 31]]
    found = {
        "images": images,
        "sizes": np.array([[SIDE, SIDE], [32, SIDE]], np.int32),
        "padded": np.array([[SIDE, SIDE], [32, SIDE]], np.int32),
        "boxes": boxes,
        "labels": np.int32([[1, 1, 0, 0]] * 2),
        "masks": np.zeros((2, OBJECTS, SIDE, SIDE // 8), np.uint8),
        "keys": jax.random.split(jax.random.key(3), 2),
    }
    return tuple((found | changes).values())


def test_parts_of_a_batch_add_up(detector):
    """An image of size 0 counts 0; so the sums and counts of the others are those of the batch."""
    whole = detector(*batch())[0][1]
    sizes = batch()[1]
    parts = [
        detector(*batch(sizes=sizes * mask))[0][1]
        for mask in (np.int32([[1], [0]]), np.int32([[0], [1]]))
    ]
    for name, (value, count) in whole.items():
        np.testing.assert_allclose(value, parts[0][name][0] + parts[1][name][0], rtol=1e-5)
        assert count == parts[0][name][1] + parts[1][name][1] > 0


def finite(found):
    return all(np.isfinite(x).all() for x in jax.tree.leaves(found))


def test_images_without_objects_are_background(detector):
    (_, found), grads = detector(*batch(labels=np.zeros((2, OBJECTS), np.int32)))
    assert finite((found, grads))
    assert found["loss_rpn_box_reg"][0] == found["loss_box_reg"][0] == 0
    assert found["loss_objectness"][0] > 0 and found["loss_classifier"][0] > 0
    (_, found), grads = detector(*batch(sizes=np.zeros((2, 2), np.int32)))
    assert finite(grads) and not any(map(float, jax.tree.leaves(found)))


@pytest.mark.parametrize(
    "box", [[5, 5, 5, 9], [70, 70, 90, 90], [-9, -9, 200, 200], [9, 9, 5, 5], [5, 5, 5.001, 5.001]]
)
def test_degenerate_boxes_leave_gradients_finite(detector, box):
    boxes = batch()[3]
    boxes[:, 1] = box
    found, grads = detector(*batch(boxes=boxes))
    assert finite((found, grads))


def test_what_diverged_is_seen(detector):
    images = batch()[0]
    images[0, 0, 0, 0] = np.nan
    assert not np.isfinite(detector(*batch(images=images))[0][0])
