"""Appendix B in testing: its equations on small arrays, and on the stored small networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detection import boxes, images, network, nms
from detection.boosted import Boosted, rescaled
from detection.c4 import adjacent
from detection.faster_rcnn import View
from detection.heads import BoxHead, Siblings
from detection.resize import resized
from detection.rpn import Limits, proposals
from tests.support import detection_reference as reference
from tests.support.reference_weights import write_safetensors


def opened(name, folder):
    """A stored network, and a photograph as its batch: images, sizes and padded sizes."""
    path = folder / f"{name}.safetensors"
    write_safetensors(path, reference.state_dict(np.load(reference.FILE), name), {"format": "pt"})
    found, _ = network.open_weights(str(path), reference.SHORTER, reference.LONGER)
    (i, *_) = reference.NETWORKS[name]
    small = images.prepare(reference.photographs()[i], found.shorter, found.longer)
    size, to = small.shape[:2], images.padded(small.shape[:2])
    batch = images.batched([small], to, 1), np.array([size], np.int32), np.array([to], np.int32)
    return found.model, found.variables, batch


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """A network, and what it says alone and boosted; all are compiled as one program."""
    model, variables, batch = opened("mask_rcnn", tmp_path_factory.mktemp("weights"))
    model, (image, sizes, to) = model.clone(limits=Limits(before=64, after=32)), batch
    head = dict(variables["params"]["box_head"])
    for name in ("scores", "deltas"):
        kernel = head[name]["kernel"]
        head[name] = head[name] | {"kernel": np.concatenate([kernel, 0 * kernel])}
    wide = variables | {"params": variables["params"] | {"box_head": head}}

    @jax.jit
    def every(variables, wide):
        bound = model.bind(variables)
        maps, levels = bound.shared(image, to)
        regions, valid = proposals(levels, sizes, model.limits)
        first = bound.judged([View(maps, 1.0)], regions, sizes)
        best = first[0][0, :, 1:].argmax(-1) + 1
        again = boxes.clip(first[1][0, jnp.arange(len(best)), best], *sizes[0])
        second = bound.judged([View(maps, 1.0)], again[None], sizes)
        return {
            "parts": (first, second, valid),
            "alone": model.apply(variables, *batch),
            "refined": Boosted((model,), refine=True).apply((variables,), *batch),
            "twice": Boosted((model, model)).apply((variables, variables), *batch),
            "context": model.clone(context=True, mask_convs=0).apply(wide, *batch),
        }

    return model, sizes[0], jax.tree.map(np.array, every(variables, wide))


def overlap(a, b):
    width, height = (min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1))
    both = max(width, 0) * max(height, 0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return both / (areas - both) if areas > both else 0


def voted(kept, boxes, scores, valid, classes):
    """Box voting as a plain loop."""
    results = []
    for k in kept:
        total, weight = np.zeros(4), 0.0
        for j in range(len(boxes)):
            same = valid[j] and classes[j] == classes[k]
            if same and overlap(boxes[k], boxes[j]) >= 0.5:
                total, weight = total + scores[j] * np.float64(boxes[j]), weight + scores[j]
        results.append(total / weight if weight else boxes[k])
    return np.array(results)


def suppressed(boxes, scores, valid, classes, threshold):
    """The boxes that stay, of a plain loop."""
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        others = (j for j in kept if classes[j] == classes[i])
        if valid[i] and all(overlap(boxes[i], boxes[j]) <= threshold for j in others):
            kept.append(i)
    return kept


def test_votes_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    vote = jax.jit(nms.vote)
    for _ in range(20):
        corner = rng.choice([10, 40, 70], (60, 2)) + rng.uniform(-6, 6, (60, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(15, 25, (60, 2))], 1)
        boxes[:3, 2:] = boxes[:3, :2]  # without area
        boxes = boxes.astype(np.float32)
        scores, classes = rng.random(60).astype(np.float32), rng.integers(1, 4, 60)
        valid, kept = rng.random(60) < 0.8, rng.permutation(60)[:20]
        kept[0] = 1
        found = vote(kept, boxes, scores, valid, classes)
        expected = voted(kept, boxes, scores, valid, classes)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert (np.abs(expected - boxes[kept]).max(1) > 0.1).any()


@pytest.mark.slow
def test_found_boxes_are_regions_again_and_vote(said):
    """What the network says of both, and everything after it as plain loops."""
    model, (height, width), results = said
    *both, valid = results["parts"]
    borders = [width, height, width, height]
    scores, boxes = (np.concatenate(pair, 1)[0, :, 1:] for pair in zip(*both, strict=True))
    labels = np.broadcast_to(np.arange(1, model.num_classes), scores.shape).reshape(-1)
    boxes, scores = np.clip(boxes, 0, borders).reshape(-1, 4), scores.reshape(-1)
    real = np.repeat(np.tile(valid[0], 2), model.num_classes - 1)
    valid = real & (scores > model.score) & (boxes[:, 2:] - boxes[:, :2] >= 1e-2).all(-1)
    (candidates,) = np.nonzero(valid)
    boxes, scores, labels = boxes[candidates], scores[candidates], labels[candidates]
    everything = np.ones(len(boxes), bool)
    kept = suppressed(boxes, scores, everything, labels, 0.3)[: model.most]
    expected = voted(kept, boxes, scores, everything, labels)
    found = results["refined"]
    assert len(kept) > 10 and found.valid.sum() == len(kept)
    np.testing.assert_array_equal(found.labels[0, : len(kept)], labels[kept])
    np.testing.assert_allclose(found.scores[0, : len(kept)], scores[kept], atol=1e-5)
    np.testing.assert_allclose(found.boxes[0, : len(kept)], expected, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["twice", "context"])
def test_what_adds_nothing_changes_nothing(said, how):
    """A network twice, and context whose weights are 0."""
    alone, found = said[2]["alone"], said[2][how]
    assert alone.valid.sum() > 10 and (how == "context" or found.masks is not None)
    for one, other in zip(alone, found, strict=True):
        if other is not None:
            np.testing.assert_allclose(one, other, atol=1e-3)


def test_of_several_sizes_each_image_is_resized_alone():
    rng = np.random.default_rng(0)
    sizes = np.array([[50, 64], [33, 1], [0, 0]], np.int32)
    batch = np.zeros((3, 64, 64, 3), np.float32)
    for image, (h, w) in zip(batch, sizes, strict=True):
        image[:h, :w] = rng.normal(size=(h, w, 3))
    for scale, shape in ((0.3, (32, 32)), (1.5, (96, 96))):
        found, own = jax.jit(rescaled, static_argnums=2)(batch, sizes, scale)
        found, own = np.array(found), np.array(own)
        assert found.shape[1:3] == shape
        np.testing.assert_array_equal(own[2], [0, 0])
        assert (found[2] == 0).all() and (own[:2] >= 1).all()
        for i in (0, 1):
            h, w = own[i]
            np.testing.assert_array_equal(own[i], np.maximum(np.round(sizes[i] * scale), 1))
            expected = resized(batch[i, : sizes[i, 0], : sizes[i, 1]], h, w)
            np.testing.assert_allclose(found[i, :h, :w], expected, atol=1e-5)
            assert (found[i, h:] == 0).all() and (found[i, :, w:] == 0).all()


def test_c4_takes_the_maximum_of_two_adjacent_sizes():
    rng = np.random.default_rng(0)
    pooled = rng.random((3, 1, 4, 2, 2, 5)).astype(np.float32)
    sides = np.array([300, 90, 60, 20]) * np.array([[1], [3], [4]])
    found = adjacent(list(pooled), list(sides[:, None]))
    for i, first in enumerate([0, 0, 1, 1]):
        np.testing.assert_array_equal(found[0, i], pooled[first : first + 2, 0, i].max(0))
    np.testing.assert_array_equal(adjacent(list(pooled[:1]), [sides[:1]]), pooled[0])


def test_context_stands_beside_each_region():
    x = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32)
    module = Siblings(3, context=True)
    params = module.init(jax.random.key(0), x)["params"]
    logits, deltas = module.apply({"params": params}, x)
    whole = np.broadcast_to(x[:, -1:], x[:, :-1].shape)
    beside = np.concatenate([x[:, :-1], whole], -1)
    np.testing.assert_allclose(logits, beside @ params["scores"]["kernel"], atol=1e-6)
    assert deltas.shape == (2, 3, 3, 4)
    head, pooled = BoxHead(3, 8, context=True), jnp.ones((2, 4, 7, 7, 1))
    params = jax.eval_shape(head.init, jax.random.key(0), pooled)["params"]
    assert params["hidden2"]["kernel"].shape == (8, 8)
    assert params["scores"]["kernel"].shape == (16, 3)
