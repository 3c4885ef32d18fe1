"""ILSVRC's localization error by hand, and its boxes from a miniature in the genuine layout."""

import re

import numpy as np
import pytest

from data.sources import FolderSource
from detection import ilsvrc
from detection.localization import Located, localization_errors
from errors import UserError
from tests.support.ilsvrc import SYNSETS, write_localization

TRUTH = np.array([[0, 0, 10, 10], [50, 50, 60, 60]])
HALF, LESS, SECOND = [0, 0, 10, 5], [0, 0, 10, 4.99], [51, 50, 60, 60]


def located(own, classes, boxes):
    return Located(np.array(own), np.array(classes), np.array(boxes))


def test_a_class_and_its_box_must_both_be_right():
    found = [
        located(HALF, [3, 1], [HALF, LESS]),  # an IoU of exactly 0.5 is right
        located(LESS, [3, 1], [LESS, HALF]),  # the box of another class does not count
        located(SECOND, [0, 1, 2, 4, 3], [LESS] * 4 + [SECOND]),  # fifth; any box of the image
        located(SECOND, [0, 1, 2, 4, 5, 3], [SECOND] * 6),  # sixth is too late
    ]
    assert localization_errors(found, [3] * 4, [TRUTH] * 4) == {
        "localization_error": 25.0,
        "top1_localization_error": 75.0,
        "top5_localization_error": 50.0,
        "top1_class_error": 50.0,
        "top5_class_error": 25.0,
    }


@pytest.fixture
def images(tmp_path):
    return write_localization(tmp_path)


def read(images, split, boxes=""):
    source = FolderSource(images, split, "")
    folder = ilsvrc.boxes_folder(images, boxes)
    return ilsvrc.with_boxes(images, source.names, source.label_names, folder, 10**6), source


def test_the_genuine_layout_is_read(images):
    for split, number in (("train", 18), ("val", 10)):
        found, source = read(images, split)
        assert len(found) == number
        for one, record in zip(found, map(source.__getitem__, range(number)), strict=True):
            assert set(one.labels) == {record.label + 1} and one.name.endswith(record.name)
            assert one.boxes[0, :2].tolist() == [2, 4]  # pixels are counted from 1
            assert one.decoded().image.shape[:2] == one.size
    first = read(images, "val", images.parents[1] / "Annotations/CLS-LOC")[0][0]
    assert first.name.endswith("val/n01440764/ILSVRC2012_val_00000001.JPEG")
    assert first.boxes.tolist() == [[2, 4, 58, 60]]


def test_validation_images_may_lie_flat_as_in_the_original(images):
    before = ilsvrc.read(images, "val[2:]", "", 10**6)
    for path in sorted(images.glob("val/*/*.JPEG")):
        path.rename(images / "val" / path.name)
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
    whole = ilsvrc.read(images, "val", "", 10**6)
    assert whole.label_names == before.label_names and len(whole) == 10
    # By class folders the images have another order.
    found = {one.name.rpartition("/")[2]: one for one in map(whole.__getitem__, range(10))}
    for one in map(before.__getitem__, range(8)):
        flat = found[one.name.rpartition("/")[2]]
        np.testing.assert_array_equal(flat.labels, one.labels)
        np.testing.assert_array_equal(flat.boxes, one.boxes)
    assert len(ilsvrc.read(images, "val[:3]", "", 10**6)) == 3
    file = images.parents[1] / "Annotations/CLS-LOC/val/ILSVRC2012_val_00000001.xml"
    file.write_text(re.sub("<object>.*</object>", "", file.read_text(), flags=re.DOTALL))
    with pytest.raises(UserError, match=f"{file}: has no object"):
        ilsvrc.read(images, "val", "", 10**6)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (f"<name>{SYNSETS[0]}</name>", "<name>n99999999</name>", "object 0: unknown class 'n9999"),
        (f"<name>{SYNSETS[0]}</name>", "", "object 0: no name"),
        (f"<name>{SYNSETS[0]}", f"<name>{SYNSETS[1]}", f"no object of {SYNSETS[0]}, which .*JPEG"),
        ("<xmin>3</xmin>", "", "object 0: box .* expected four numbers"),
        ("<xmin>3</xmin>", "<xmin>300</xmin>", "object 0: .*ends before it begins"),
        ("</annotation>", "", "annotations of an image: "),
        ("<width>", "<breadth>", "annotations of an image: "),
    ],
)
def test_boxes_that_do_not_fit_are_named(images, old, new, said):
    file = images.parents[1] / "Annotations/CLS-LOC/val/ILSVRC2012_val_00000001.xml"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(UserError, match=f"{file}.*{said}"):
        read(images, "val")


def test_missing_boxes_are_named(images):
    folder = images.parents[1] / "Annotations/CLS-LOC"
    (folder / "val/ILSVRC2012_val_00000004.xml").unlink()
    with pytest.raises(UserError, match="val/ILSVRC2012_val_00000004.xml cannot be read"):
        read(images, "val")
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(UserError, match="no such folder; expected ILSVRC's boxes"):
        read(images, "val")
