"""Average precision and mean IoU against the packages' own, and by hand."""

import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn import metrics

from detection import average_precision
from detection.annotated import Annotated
from detection.average_precision import coco_ap, gathered_objects, voc_ap
from detection.mean_iou import IGNORED, confusion, mean_iou
from detection.network import Objects
from errors import UserError

SIDE = 96


def random_set(seed, images=8, classes=3, crowds=True):
    """What was found in some images and what is there: near, far, doubled, of other classes."""
    random = np.random.default_rng(seed)
    found, truth = [], []
    for i in range(images):
        count = int(random.integers(0, 7))
        corner, sides = random.integers(0, 50, (count, 2)), random.integers(4, 46, (count, 2))
        boxes = np.concatenate([corner, corner + sides], 1).astype(np.float32)
        labels = random.integers(1, classes + 1, count).astype(np.int32)
        crowd = (random.random(count) < 0.25) & crowds
        copied = np.repeat(np.arange(count), random.integers(0, 3, count))
        moved = boxes[copied] + random.integers(-4, 5, (len(copied), 4)).astype(np.float32)
        moved = np.clip(moved, 0, SIDE)
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        said = np.where(random.random(len(copied)) < 0.85, labels[copied], 1)
        scores = random.integers(1, 20, len(copied)).astype(np.float32) / 20  # with ties
        found.append(Objects(moved, scores, said, _filled(moved, 6)))
        area = np.prod(sides, 1).astype(np.float32)
        about = (boxes, labels, _filled(boxes), crowd, area, f"image {i}")
        truth.append(Annotated(np.zeros((SIDE, SIDE, 3), np.uint8), (SIDE, SIDE), *about))
    return found, truth


def _filled(boxes, hole=2):
    masks = np.zeros((len(boxes), SIDE, SIDE), bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.astype(int), strict=True):
        mask[top:bottom, left:right] = True
        mask[top : top + hole, left : left + hole] = False  # no rectangle
    return masks


def their_stats(found, truth, kind, folder):
    """pycocotools' numbers by its own files: annotations and a list of results."""
    annotations, results = [], []
    for i, (one, objects) in enumerate(zip(truth, found, strict=True)):
        bits = average_precision.run_lengths(one.masks)
        for k, (left, top, right, bottom) in enumerate(one.boxes.tolist()):
            annotations.append(
                {"id": len(annotations) + 1, "image_id": i, "category_id": int(one.labels[k])}
                | {"bbox": [left, top, right - left, bottom - top], "area": float(one.area[k])}
                | {"iscrowd": int(one.crowd[k]), "segmentation": bits[k]}
            )
        bits = average_precision.run_lengths(objects.masks)
        for k, (left, top, right, bottom) in enumerate(objects.boxes.tolist()):
            shape = {"bbox": [left, top, right - left, bottom - top]}
            results.append(
                {"image_id": i, "category_id": int(objects.labels[k])}
                | {"score": float(objects.scores[k])}
                | (shape if kind == "bbox" else {"segmentation": bits[k]})
            )
    images = [{"id": i, "height": SIDE, "width": SIDE} for i in range(len(truth))]
    categories = [{"id": i, "name": str(i)} for i in (1, 2, 3)]
    whole = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(whole))
    (folder / "found.json").write_text(json.dumps(results))
    right = COCO(str(folder / "truth.json"))
    evaluation = COCOeval(right, right.loadRes(str(folder / "found.json")), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats


@pytest.mark.parametrize("seed", range(3))
def test_coco_ap_is_that_of_pycocotools_files(seed, tmp_path, capsys):
    found, truth = random_set(seed)
    ours = coco_ap(found, truth, masks=True)
    assert not capsys.readouterr().out  # nothing through the progress bar
    for kind, prefix in (("bbox", ""), ("segm", "mask_")):
        theirs = their_stats(found, truth, kind, tmp_path)
        for name, value in zip(average_precision.NAMES, theirs, strict=True):
            assert ours.get(prefix + name, -100) == pytest.approx(100 * value, abs=1e-9), name
    assert 5 < ours["AP"] < 95 and ours["AP"] != ours["mask_AP"]


def test_coco_ap_without_findings_or_truth():
    found, truth = random_set(0)
    nothing = Objects(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), np.zeros((0, SIDE, SIDE)))
    assert coco_ap([nothing] * len(truth), truth, masks=True)["mask_AP"] == 0
    perfect = [Objects(t.boxes, np.ones(len(t.boxes)), t.labels, t.masks) for t in truth]
    assert coco_ap(perfect, truth, masks=True)["mask_AP"] == pytest.approx(100)
    none = truth[0]._replace(boxes=truth[0].boxes[:0], labels=truth[0].labels[:0])
    none = none._replace(crowd=none.crowd[:0], masks=none.masks[:0])
    for measure in (coco_ap, voc_ap):
        with pytest.raises(UserError, match="1 images without an object"):
            measure(found[:1], [none])


# Percent by mmeval 0.2.1, `VOCMeanAP(use_legacy_coordinate=False)`, on `random_set` with scores
# made distinct: area, then eleven points.
MMEVAL = {0: (33.75, 34.5455), 1: (42.619, 41.4502), 2: (28.8034, 33.3333), 3: (49.8291, 51.0101)}


@pytest.mark.parametrize("seed", range(4))
def test_voc_ap_is_that_of_mmeval(seed):
    found, truth = random_set(seed, crowds=seed % 2)
    found = [o._replace(scores=o.scores + np.float32(i * 1e-3)) for i, o in enumerate(found)]
    ours = voc_ap(found, truth)["mAP"], voc_ap(found, truth, eleven_points=True)["mAP"]
    assert ours == pytest.approx(MMEVAL[seed], abs=1e-4)


def test_voc_ap_by_hand():
    """A right one, its double, a difficult one, one of nothing: precision 1, then 1/2, 2/3."""
    box = np.array([[0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]], np.float32)
    about = (box, np.array([1, 1, 1]), None, np.array([False, True, False]), np.full(3, 100.0))
    truth = [Annotated(np.zeros((64, 64, 3), np.uint8), (64, 64), *about)]
    moved = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [40, 40, 50, 45]])
    found = [Objects(moved.astype(np.float32), np.array([0.9, 0.8, 0.7, 0.6]), np.ones(4, int))]
    assert voc_ap(found, truth)["mAP"] == pytest.approx(100 * (0.5 + 0.5 * 2 / 3))
    assert voc_ap(found, truth, True)["mAP"] == pytest.approx(100 * (6 + 5 * 2 / 3) / 11)
    late = [found[0]._replace(boxes=found[0].boxes - [0, 0, 0, 0.1])]
    assert voc_ap(late, truth)["mAP"] == pytest.approx(50)  # an IoU of just below 0.5


def test_each_image_comes_once():
    found, truth = random_set(1)
    by_index = dict(enumerate(found))
    again = gathered_objects(by_index, len(found))
    assert coco_ap(again, truth, True) == coco_ap(found, truth, True)
    del by_index[3]
    with pytest.raises(ValueError, match="7 results for 8 images"):
        gathered_objects(by_index, len(found))


def test_mean_iou_is_scikit_learns():
    random = np.random.default_rng(0)
    truth, predicted = random.integers(0, 5, (2, 30, 20)), random.integers(0, 5, (2, 30, 20))
    truth[random.random(truth.shape) < 0.1] = IGNORED
    truth[truth == 4], predicted[predicted == 4] = 0, 1  # a class that is nowhere
    pixels = sum(confusion(p, t, 5) for p, t in zip(predicted, truth, strict=True))
    known = truth != IGNORED
    theirs = metrics.jaccard_score(truth[known], predicted[known], average=None)
    ours = mean_iou(pixels)
    assert ours["mIoU"] == pytest.approx(100 * theirs.mean())
    assert [ours[f"IoU_{i}"] for i in range(4)] == pytest.approx((100 * theirs).tolist())
    assert "IoU_4" not in ours and mean_iou(np.zeros((2, 2), int)) == {}
    assert ours["pixel_accuracy"] == pytest.approx(100 * (truth == predicted)[known].mean())
    with pytest.raises(ValueError, match="none of 0 … 2"):
        confusion(predicted[0], truth[0], 3)
