"""The scenes: always the same ones, exact boxes and masks, drawn and mirrored on devices."""

import zlib

import jax
import numpy as np
import pytest

from detection import scenes
from detection.data import open_data
from errors import UserError
from run.mesh import make_mesh
from tests.support.drawn import draw


@pytest.fixture(scope="module")
def test_scenes():
    return scenes.load("test")


@pytest.fixture
def config(tiny):
    tiny.detection.update(max_objects=8, masks=True)
    tiny.update(task="detection", dataset="scenes", batch_size=4)
    tiny.augment.flip = True
    return tiny


def test_they_are_the_same_on_each_machine(test_scenes):
    assert test_scenes.images.shape == (200, 128, 128, 3)
    sums = [zlib.crc32(array.tobytes()) for array in test_scenes[:4]]
    assert sums == [1487534377, 634607181, 3991400790, 1309427877]


def test_boxes_and_masks_are_exact(test_scenes):
    masks = np.unpackbits(test_scenes.masks, axis=-1)
    assert masks.sum(1).max() == 1  # a pixel shows one object
    real = test_scenes.labels > 0
    assert set(test_scenes.labels[real]) == set(range(1, 11))
    assert real.any(1).all() and not masks[~real].any() and not test_scenes.boxes[~real].any()
    for box, mask in zip(test_scenes.boxes[real], masks[real], strict=True):
        rows, columns = np.nonzero(mask)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    brightness = test_scenes.images.max(-1)
    inside = masks.any(1)
    assert brightness[inside].mean() > brightness[~inside].mean() + 60


def test_one_object_in_each():
    made = scenes.load("test", most=1)
    masks = np.unpackbits(made.masks, axis=-1).astype(bool)
    assert made.labels.shape == (200, 1) and set(made.labels[:, 0]) == set(range(1, 11))
    np.testing.assert_array_equal(scenes.boxes_of(masks[:, 0]), made.boxes[:, 0])


def test_other_splits_and_sets_are_refused():
    with pytest.raises(UserError, match="split 'val'.*train, test"):
        scenes.load("val")
    with pytest.raises(UserError, match="dataset='birds': expected one of digits"):
        scenes.load("test", "birds")


@pytest.mark.slow
def test_batches_are_mirrored_with_their_boxes_and_masks(config):
    data = open_data(config, make_mesh())
    assert data.facts.label_names == ("background", *map(str, range(10)))
    assert (data.split_size("train"), data.split_size("test")) == (1000, 200)
    truth, seen = data.annotated("train"), set()
    for batch in draw(config, make_mesh(), [0, 3], data):
        assert batch["boxes"].shape == (4, 8, 4) and batch["masks"].shape == (4, 8, 128, 16)
        for i, index in enumerate(batch["index"]):
            one, real = truth[index], batch["labels"][i] > 0
            masks = np.unpackbits(batch["masks"][i], axis=-1).astype(bool)
            np.testing.assert_array_equal(batch["labels"][i][real], one.labels)
            np.testing.assert_array_equal(scenes.boxes_of(masks), batch["boxes"][i])
            turned = not np.array_equal(batch["image"][i], one.image)
            step = -1 if turned else 1
            np.testing.assert_array_equal(batch["image"][i][:, ::step], one.image)
            np.testing.assert_array_equal(masks[real][:, :, ::step], one.masks)
            seen.add(turned)
    assert seen == {False, True}
    one = make_mesh(jax.devices()[:1])
    one_device = draw(config, one, [3], open_data(config, one))
    jax.tree.map(np.testing.assert_array_equal, one_device[0], batch)


def test_every_test_scene_comes_once_and_finds_its_annotations(config):
    config.eval.batch_size = 64
    config.data.update(validation_size=100, train_split="train[:300]")
    config.detection.masks = False
    data = open_data(config, make_mesh())
    for split, number in (("test", 200), ("validation", 100)):
        batches = list(data.evaluation(split))
        index = np.concatenate([batch["index"][batch["valid"]] for batch in batches])
        assert index.tolist() == list(range(number))
        truth = data.annotated(split)
        np.testing.assert_array_equal(truth[3].image, batches[0]["image"][3])
        assert len(truth) == number and "masks" not in batches[0] and truth[3].masks is None


def test_the_classes_of_pixels(config):
    config.detection.masks = True
    boxes = open_data(config, make_mesh()).annotated("test")
    config.task = "segmentation"
    data = open_data(config, make_mesh())
    for one, other in zip(data.annotated("test")[:20], boxes, strict=False):
        assert one.masks is None and not len(one.boxes)
        expected = (other.masks * other.labels[:, None, None]).max(0)
        np.testing.assert_array_equal(one.classes, expected)
    (batch,) = draw(config, make_mesh(), [2], data)
    assert set(batch) == {"image", "classes", "size", "original", "index", "valid"}
    for pixels, classes in zip(batch["image"], batch["classes"], strict=True):
        assert pixels[classes > 0].max(-1).mean() > pixels[classes == 0].max(-1).mean() + 40


def test_too_many_objects_are_refused(config):
    config.detection.max_objects = 3
    with pytest.raises(UserError, match="detection.max_objects=3: scene .* has"):
        open_data(config, make_mesh())
