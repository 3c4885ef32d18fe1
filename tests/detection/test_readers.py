"""Readers of COCO's and Pascal VOC's files: what is in them, and what is wrong in them."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from detection import coco, voc
from detection.classes import VOC
from errors import UserError
from tests.support import annotated_sets

PIXELS = 2**26


def field(name, value):
    return lambda whole: whole["annotations"][4].__setitem__(name, value)


def without(name):
    return lambda whole: whole["annotations"][4].__delitem__(name) or None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda whole: [], "no list of categories"),
        (lambda whole: {"images": []}, "no list of categories"),
        (without("category_id"), r"annotation 4 \(id 32\): category_id None"),
        (field("category_id", 12), r"annotation 4 .*unknown category_id 12.*1, 2, 3"),
        (lambda whole: whole["categories"][1].update(id=1), "categories have the same id"),
        (without("bbox"), r"annotation 4 .*box \[None\]"),
        (field("bbox", [1, 2, 3]), r"annotation 4 .*box \[\[1, 2, 3\]\]"),
        (field("bbox", [1, 2, float("nan"), 3]), "annotation 4 .*four numbers"),
        (field("bbox", [5, 5, -1, 3]), "annotation 4 .*ends before it begins"),
        (field("bbox", [500, 5, 10, 3]), "annotation 4 .*outside of the image of 100×30"),
        (field("image_id", 7), "annotation 4 .*image_id 7 is none"),
        (field("area", float("nan")), "annotation 4 .*area nan"),
        (field("iscrowd", "yes"), "annotation 4 .*iscrowd 'yes'"),
        (field("bbox", [1, 2, 10**400, 3]), "annotation 4 .*four numbers"),
        (field("bbox", [1, 2, 1e300, 3]), "annotation 4 .*four numbers"),
        (field("bbox", [1, 2, "3", 4]), "annotation 4 .*four numbers"),
        (field("bbox", [1, 2, True, 4]), "annotation 4 .*four numbers"),
        (field("segmentation", [[1, 2, 3, 4, 5, 1e9]]), "annotation 4 .*far from the image"),
        (lambda whole: whole["images"][2].update(width=10**9), "image 2 .*exceeds the limit"),
        (field("segmentation", []), "annotation 4 .*no segmentation"),
        (field("segmentation", [[1, 2, 3, 4]]), "annotation 4 .*three corners"),
        (
            field("segmentation", {"size": [9, 9], "counts": [81]}),
            r"annotation 4 .*\[9, 9\] and 81 .*\[30, 100\]",
        ),
        (field("segmentation", {"size": [30, 100], "counts": "0"}), "annotation 4 .*and 0 pix"),
        (field("segmentation", {"size": [30, 100], "counts": "é"}), "neither polygons nor run"),
        (
            field("segmentation", {"size": [30, 100], "counts": 99 * "o"}),
            "neither polygons nor run",
        ),
        (lambda whole: whole["images"][2].pop("height") and None, "image 2 .*height None"),
        (lambda whole: whole["images"][2].update(id=1000), "image 2 .*second image of id 1000"),
        (lambda whole: whole["images"][2].update(file_name="x.jpg"), "1 of its 7 images .*x.jpg"),
        (lambda whole: whole["images"][2].update(file_name="x\0"), "1 of its 7 images .*x"),
        (lambda whole: whole["images"][2].update(file_name="\ud800"), "1 of its 7 images"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, change, said):
    root = annotated_sets.changed_coco(tmp_path, change)
    if said.startswith("no list"):
        (root / "annotations" / "instances_train2017.json").write_text(json.dumps(change(0)))
    with pytest.raises(UserError, match=f"instances_train2017.json.*{said}"):
        coco.read(root, "train2017", True, PIXELS)


def test_compressed_run_lengths_are_read(coco_root):
    for one in coco.read(coco_root, "val2017[4:]", True, PIXELS):
        for mask in one.masks:
            counts = coco._decompressed(mask["counts"].decode())
            assert sum(counts) == one.size[0] * one.size[1]


# ---- Pascal VOC


def test_voc_is_read_in_the_order_of_its_list(voc_root):
    source = voc.read(voc_root, "trainval2007+test2012[:2]", False, PIXELS)
    assert len(source) == 9 and source.label_names == VOC
    one = source[2].decoded()
    assert one.name.endswith("2007_000002.jpg") and one.image.shape == (64, 64, 3)
    assert one.boxes.tolist() == [[0, 1, 20.5, 25], [1, 1, 21.5, 25]]  # pixels counted from 1
    assert one.labels.tolist() == [1, 8] and one.crowd.tolist() == [False, True]
    assert len(source[0].boxes) == 0
    alone = voc.read(voc_root / "VOC2007", "val", False, PIXELS)
    assert len(alone) == 3 and alone.digest != source.digest


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: root.find("object").remove(root.find("object/name")), "object 0: no name"),
        (lambda root: setattr(root.find("object/name"), "text", "unicorn"), "class 'unicorn'.*cat"),
        (lambda root: root.find("object").remove(root.find("object/bndbox")), "four numbers"),
        (lambda root: setattr(root.find("object/bndbox/xmax"), "text", "?"), "four numbers"),
        (lambda root: setattr(root.find("object/bndbox/xmax"), "text", "nan"), "four numbers"),
        (lambda root: setattr(root.find("object/bndbox/xmin"), "text", "900"), "ends before"),
        (lambda root: setattr(root.find("object/bndbox/xmax"), "text", "1e9"), "four numbers"),
        (lambda root: setattr(root.find("object/difficult"), "text", "2"), "difficult '2'"),
        (lambda root: root.remove(root.find("size")), "0×0 pixels; expected a width and a height"),
    ],
)
def test_what_is_wrong_in_vocs_files_is_named(tmp_path, change, said):
    root = annotated_sets.write_voc(tmp_path)
    file = root / "VOC2007" / "Annotations" / "2007_000001.xml"
    tree = ElementTree.parse(file)
    change(tree.getroot())
    tree.write(file)
    with pytest.raises(UserError, match=f"2007_000001.xml.*{said}"):
        voc.read(root, "train2007", False, PIXELS)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_never_expanded(tmp_path, encoding):
    file = tmp_path / "bomb.xml"
    nested = "".join(f'<!ENTITY a{i + 1} "{10 * f"&a{i};"}">' for i in range(9))
    text = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE a [<!ENTITY a0 "x">{nested}]>'
    file.write_bytes(f"{text}<annotation>&a9;</annotation>".encode(encoding))
    with pytest.raises(UserError, match="bomb.xml.*DOCTYPE"):
        voc.read_boxes(file, VOC, PIXELS)
