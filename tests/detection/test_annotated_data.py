"""COCO, Pascal VOC and TFDS's two in their genuine formats, and batches of them."""

import itertools

import jax
import numpy as np
import pytest
from PIL import Image

from detection import batches, coco, voc
from detection.average_precision import coco_ap
from detection.classes import COCO, VOC
from detection.data import open_data
from detection.network import Objects
from detection.scenes import boxes_of
from errors import UserError
from run.mesh import make_mesh
from tests.support import annotated_sets

PIXELS = 2**26
DETECTION = {"max_objects": 8, "masks": True, "sides": (64, 96), "longer": 160}


@pytest.fixture
def config(tiny, coco_root):
    tiny.detection.update(DETECTION)
    tiny.update(task="detection", dataset=f"coco:{coco_root}", batch_size=2)
    tiny.data.update(resident=False, normalization="imagenet", num_threads=2)
    tiny.data.update(train_split="train2017", test_split="val2017")
    tiny.augment.flip, tiny.eval.batch_size = True, 4
    return tiny


def some(iterator, number):
    return [batch.arrays for batch in itertools.islice(iterator, number)]


# ---- Batches


def test_batches_are_a_function_of_seed_and_step(config, monkeypatch):
    alone = some(open_data(config, make_mesh()).train_batches(0), 7)
    later = some(open_data(config, make_mesh()).train_batches(4), 3)
    config.data.num_threads = 1
    parts = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for process in range(2):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        parts.append(some(open_data(config, make_mesh()).train_batches(0), 7))
    joined = [{n: np.concatenate([a[n], b[n]]) for n in a} for a, b in zip(*parts, strict=True)]
    for mine, others in ((alone, joined), (alone[4:], later)):
        jax.tree.map(np.testing.assert_array_equal, mine, others)
    config.seed += 1
    other = some(open_data(config, make_mesh()).train_batches(0), 1)
    assert not np.array_equal(other[0]["index"], alone[0]["index"]) or not np.array_equal(
        other[0]["size"], alone[0]["size"]
    )


def test_boxes_and_masks_go_with_the_pixels(config):
    """Both as they are and mirrored, at each of the sides, on a canvas that has room."""
    data = open_data(config, make_mesh())
    truth, seen = data.annotated("train"), set()
    for batch in some(data.train_batches(0), 20):
        rows, height, width, _ = batch["image"].shape
        assert batch["masks"].shape == (rows, 8, height, width // 8)
        assert not {height, width} - {96, 128, 160} and batch["valid"].all()
        for i, index in enumerate(batch["index"]):
            one, (h, w) = truth[index].decoded(), batch["size"][i]
            assert tuple(batch["original"][i]) == one.size
            assert not batch["image"][i, h:].any() and not batch["image"][i, :, w:].any()
            real = batch["labels"][i] > 0
            np.testing.assert_array_equal(batch["labels"][i][real], one.labels[~one.crowd])
            masks = np.unpackbits(batch["masks"][i], axis=-1)
            assert not masks[~real].any() and not batch["boxes"][i][~real].any()
            np.testing.assert_allclose(boxes_of(masks[real] > 0), batch["boxes"][i][real], atol=3)
            scale = np.array([w, h, w, h]) / [*one.size[::-1], *one.size[::-1]]
            expected = one.boxes[~one.crowd] * scale
            turned = bool(np.abs(batch["boxes"][i][real] - expected).max(initial=0) > 1e-3)
            if turned:
                expected[:, [0, 2]] = w - expected[:, [2, 0]]
                np.testing.assert_allclose(batch["boxes"][i][real], expected, atol=1e-3)
            small = np.asarray(Image.fromarray(one.image).resize((int(w), int(h))), int)
            step = -1 if turned and real.any() else 1
            if real.any():
                difference = np.abs(batch["image"][i, :h, :w][:, ::step] - small).mean()
                assert difference < 8
                seen.add((turned, min(h, w) > 64))
    assert seen == set(itertools.product((False, True), repeat=2))


@pytest.mark.parametrize("processes", [1, 2])
def test_every_test_image_comes_once_on_a_canvas_that_fits(config, processes, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    seen = []
    for process in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        for batch in open_data(config, make_mesh()).evaluation("test"):
            assert batch["image"].shape[0] == 4 // processes and "boxes" not in batch
            assert (batch["size"] <= batch["image"].shape[1:3]).all()
            seen += batch["index"][batch["valid"]].tolist()
    assert sorted(seen) == list(range(7))


def test_what_was_annotated_has_an_ap_of_100(config):
    data = open_data(config, make_mesh())
    truth = data.annotated("test")
    found = [Objects(t.boxes, np.ones(len(t.boxes)), t.labels, t.masks) for t in truth]
    said = coco_ap(found, list(truth), masks=True)
    assert said["AP"] == pytest.approx(100) and said["mask_AP"] == pytest.approx(100)


def test_an_epoch_shows_each_image_at_most_once_and_mixes_few_canvases():
    shapes = np.array([[96, 128]] * 21 + [[128, 96]] * 10 + [[160, 96]] * 2)
    order = batches.training_order(shapes, 4, seed=0)
    for epoch in range(3):
        rows = np.array([order(32 * epoch + i) for i in range(32)])
        assert len(set(rows)) == 32
        mixed = [len(np.unique(shapes[r], axis=0)) > 1 for r in rows.reshape(-1, 4)]
        assert sum(mixed) <= 2
    assert [order(i) for i in range(32)] != [order(32 + i) for i in range(32)]


# ---- Awkward images


def with_boxes(*boxes):
    """The last image with these boxes, and the first with one; without masks."""

    def change(whole):
        first, *_, last = (image["id"] for image in whole["images"])
        whole["annotations"] = [
            {"id": i + 1, "image_id": image, "category_id": 1, "bbox": box, "iscrowd": 0}
            for i, (image, box) in enumerate([(first, [1, 2, 9, 9]), *((last, b) for b in boxes)])
        ]

    return change


@pytest.mark.parametrize("count", [0, 300])
def test_images_have_from_no_object_to_many(config, tmp_path, count):
    boxes = [[k % 30, k % 60, 5, 7] for k in range(count)]
    config.dataset = f"coco:{annotated_sets.changed_coco(tmp_path, with_boxes(*boxes))}"
    config.detection.update(masks=False, max_objects=max(count, 1))
    config.data.test_split = "train2017"
    data = open_data(config, make_mesh())
    found = {}
    for batch in some(data.train_batches(0), 12):
        found |= dict(zip(batch["index"].tolist(), (batch["labels"] > 0).sum(1), strict=True))
    assert [found[i] for i in range(7)] == [1, *[0] * 5, count]
    if count:
        config.detection.max_objects = count - 1
        with pytest.raises(UserError, match=r"max_objects=299: .*000006\.jpg has 300 objects"):
            open_data(config, make_mesh())


@pytest.mark.parametrize("kind", ["crowds", "zero areas"])
def test_a_split_without_any_object_is_refused(config, tmp_path, kind):
    def change(whole):
        if kind == "crowds":
            whole["annotations"] = [one for one in whole["annotations"] if one["iscrowd"]]
        for one in whole["annotations"]:
            one["bbox"][2] *= kind == "crowds"

    root = annotated_sets.changed_coco(tmp_path, change)
    annotated_sets.write_coco(root, ("val2017",))
    config.dataset = f"coco:{root}"
    with pytest.raises(UserError, match="none of the 7 images of 'train2017' has an object that"):
        open_data(config, make_mesh())
    config.data.update(train_split="val2017", test_split="train2017")
    with pytest.raises(UserError, match="none of the 7 images of 'train2017'"):
        open_data(config, make_mesh()).split_size("test")


def test_boxes_beyond_the_edge_are_clipped_and_empty_ones_left_out(config, tmp_path):
    boxes = [-5, -6, 20, 30], [30, 80, 20, 20], [3, 4, 0, 9]  # the image has 40 × 90 pixels
    config.dataset = f"coco:{annotated_sets.changed_coco(tmp_path, with_boxes(*boxes))}"
    config.detection.update(masks=False, sides=(40,), longer=90)
    config.augment.flip = False
    data = open_data(config, make_mesh())
    for batch in some(data.train_batches(0), 12):
        for i in np.flatnonzero(batch["index"] == 6):
            assert batch["boxes"][i][:3].tolist() == [[0, 0, 15, 24], [30, 80, 40, 90], [0] * 4]
            assert batch["labels"][i].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert len(data.annotated("train")[6].boxes) == 3  # testing takes them as they are


def test_annotations_of_other_images_and_files_that_are_none(config, tmp_path, coco_root):
    root = annotated_sets.changed_coco(tmp_path, lambda whole: None)
    file = root / "annotations" / "instances_train2017.json"
    name = root / "train2017" / f"{2:012d}.jpg"
    annotated_sets.photograph(3).save(name)
    config.dataset = f"coco:{root}"
    with pytest.raises(UserError, match=r"000002\.jpg.*64×64 pixels, the file has 100×30"):
        some(open_data(config, make_mesh()).train_batches(0), 12)
    config.data.update(on_corrupt="mask", max_corrupt_fraction=1.0)
    data = open_data(config, make_mesh())
    named = {n for b in itertools.islice(data.train_batches(0), 8) for n in b.corrupt}
    assert named == {str(name)}
    file.write_text(file.read_text()[:200])
    with pytest.raises(UserError, match="instances_train2017.json cannot be read"):
        open_data(config, make_mesh())
    with pytest.raises(UserError, match="instances_dev.json is not there.*instances_train2017"):
        coco.read(coco_root, "dev", False, PIXELS)


def test_categories_of_a_set_of_its_own(config, tmp_path):
    """Numbered from 1 on, by their ids; testing must have those of training."""

    def change(whole):
        whole["categories"] = [{"id": 90, "name": "b"}, {"id": 18, "name": "c"}]
        whole["categories"] += [{"id": 1, "name": "a"}]

    config.dataset = f"coco:{annotated_sets.changed_coco(tmp_path, change)}"
    config.data.test_split = "train2017"
    data = open_data(config, make_mesh())
    assert data.facts.label_names == ("background", "a", "c", "b") and data.facts.num_classes == 4
    assert data.annotated("test")[3].labels.tolist() == [1, 2, 3]
    annotated_sets.write_coco(tmp_path / "set", ("val2017",))
    config.data.test_split = "val2017"
    with pytest.raises(UserError, match="test has other categories than training: .*airplane, "):
        open_data(config, make_mesh()).annotated("test")
    with pytest.raises(UserError, match="val2017.json has other categories than .*train2017"):
        coco.read(tmp_path / "set", "train2017+val2017", False, PIXELS)


# ---- Pascal VOC


def test_the_classes_of_pixels(config, voc_root):
    config.task, config.dataset = "segmentation", f"voc:{voc_root}"
    config.data.update(train_split="train2012", test_split="val2012")
    config.detection.masks = False
    data = open_data(config, make_mesh())
    for batch in some(data.train_batches(0), 6):
        assert "boxes" not in batch and batch["classes"].shape == batch["image"].shape[:3]
        for i, (h, w) in enumerate(batch["size"]):
            inside = batch["classes"][i, :h, :w]
            assert set(np.unique(inside)) == {0, 1 + batch["index"][i], 255}
            assert (batch["classes"][i, h:] == 255).all()
            assert (batch["classes"][i, :, w:] == 255).all()
    assert set(np.unique(data.annotated("test")[0].decoded().classes)) == {0, 5, 255}
    assert "classes" not in next(data.evaluation("test"))


def test_what_else_voc_has_not(config, voc_root, tmp_path):
    with pytest.raises(UserError, match="split 'dev2007'.*found test, train, trainval, val"):
        voc.read(voc_root, "dev2007", False, PIXELS)
    config.dataset = f"voc:{voc_root}"
    config.data.update(train_split="train2007", test_split="val2007")
    with pytest.raises(UserError, match="has no masks of objects: expected coco:FOLDER"):
        open_data(config, make_mesh())
    bad = tmp_path / "bad.png"
    Image.fromarray(np.full((4, 4), 77, np.uint8)).save(bad)
    with pytest.raises(UserError, match=r"bad.png: expected the classes of pixels, 0 … 20 and 255"):
        voc.read_classes(bad)


def test_other_names_of_sets(config):
    for name in ("imagenet", "coco:", "s3:x"):
        config.dataset, config.detection.masks = name, False
        with pytest.raises(UserError, match=f"dataset='{name}': expected scenes.*coco:FOLDER"):
            open_data(config, make_mesh())
    config.dataset = "coco:gs://bucket/coco"
    with pytest.raises(UserError, match="expected a folder of this machine"):
        open_data(config, make_mesh())


# ---- TFDS


@pytest.mark.slow
def test_prepared_sets_are_those_of_the_folders(config, coco_root, voc_root, tmp_path):
    for name, root, split, theirs in (
        ("coco/2017", coco_root, "val2017", "validation"),
        ("voc/2007", voc_root, "test2007", "test"),
    ):
        annotated_sets.prepare_tfds(name, root, tmp_path)
        config.update(dataset=f"tfds:{name}", data_dir=str(tmp_path))
        config.data.update(train_split="train", test_split=theirs)
        config.detection.masks = False
        data = open_data(config, make_mesh())
        reader = coco if name.startswith("coco") else voc
        folder = {one.name.split("/")[-1]: one for one in reader.read(root, split, False, PIXELS)}
        assert data.facts.label_names == (COCO if reader is coco else VOC)
        assert len(data.annotated("test")) == len(folder) == 7
        for one in data.annotated("test"):
            same = folder[one.name.split()[-1]]
            np.testing.assert_allclose(one.boxes, same.boxes, atol=0.01)
            for mine, other in zip(one[3:7:2], same[3:7:2], strict=True):
                np.testing.assert_array_equal(mine, other)
            np.testing.assert_array_equal(one.decoded().image, same.decoded().image)
        assert len(some(data.train_batches(0), 3)) == 3
        index = [b["index"][b["valid"]] for b in data.evaluation("test")]
        assert sorted(np.concatenate(index)) == list(range(7))
        assert list(tmp_path.rglob(".index-objects-*"))
