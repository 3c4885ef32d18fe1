"""Tiny COCO and Pascal VOC in the genuine formats, from the two photographs of scikit-learn."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from detection.classes import COCO, VOC

SIZES = ((60, 80), (80, 60), (64, 64), (30, 100), (60, 80), (50, 70), (90, 40))  # height, width


def photograph(number: int) -> Image.Image:
    """A piece of a photograph, of one of `SIZES`."""
    image = load_sample_images().images[number % 2]
    height, width = SIZES[number % len(SIZES)]
    top = 17 * number % 300
    return Image.fromarray(image[top : top + height, 3 * number : 3 * number + width])


def coco_annotations(number: int = len(SIZES), first: int = 0) -> dict:
    """What instances_<split>.json has: image i has i objects, the last one of many a crowd."""
    images, annotations = [], []
    for i in range(first, first + number):
        height, width = SIZES[i % len(SIZES)]
        images.append(
            {"id": 1000 + i, "file_name": f"{i:012d}.jpg", "height": height, "width": width}
        )
        for k in range(i - first):
            left, top, w, h = 2.5 * k, 3.0 * k, 12.25 + k, 10.5
            crowd = int(k == 3)
            polygon = [left, top, left + w, top, left + w, top + h, left, top + h]
            counts = [5, 3 * height, height * width - 5 - 3 * height]
            annotations.append(
                {"id": 10 * i + k + 1, "image_id": 1000 + i, "bbox": [left, top, w, h]}
                | {"category_id": (1, 18, 90)[k % 3], "iscrowd": crowd, "area": w * h - 1}
                | {"segmentation": {"size": [height, width], "counts": counts} if crowd
                   else [polygon]}
            )  # fmt: skip
    categories = [{"id": i, "name": name} for i, name in enumerate(COCO) if i and name != "-"]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(root: Path, splits=("train2017", "val2017"), changed=lambda whole: whole) -> Path:
    """FOLDER/annotations/instances_<split>.json and FOLDER/<split>/*.jpg."""
    for split in splits:
        whole = coco_annotations()
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        (root / split).mkdir(exist_ok=True)
        for i, image in enumerate(whole["images"]):
            photograph(i).save(root / split / image["file_name"], quality=95)
        text = json.dumps(changed(whole))
        (root / "annotations" / f"instances_{split}.json").write_text(text)
    return root


def changed_coco(tmp_path: Path, change) -> Path:
    """A COCO set after `change(whole)`."""

    def changed(whole):
        return change(whole) or whole

    return write_coco(tmp_path / "set", ("train2017",), changed)


def voc_object(name: str, box, difficult: int = 0) -> str:
    """An object of an annotation; a part of it has a box of its own."""
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    corners = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    return (
        f"<object><name>{name}</name><pose>Left</pose><truncated>0</truncated>"
        f"<difficult>{difficult}</difficult><bndbox>{corners}</bndbox><part><name>head</name>"
        "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>"
    )


def write_voc(root: Path, year: int = 2007) -> Path:
    """VOCdevkit/VOC<year>: trainval, train, val, test; image i has i % 3 objects."""
    folder = root / f"VOC{year}"
    for part in ("Annotations", "JPEGImages", "SegmentationClass", "ImageSets/Main",
                 "ImageSets/Segmentation"):  # fmt: skip
        (folder / part).mkdir(parents=True, exist_ok=True)
    names = [f"{year}_{i:06d}" for i in range(len(SIZES))]
    for i, name in enumerate(names):
        height, width = SIZES[i]
        photograph(i).save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
        objects = "".join(
            voc_object(VOC[1 + 7 * k], (1 + k, 2, 20.5 + k, 25), difficult=k) for k in range(i % 3)
        )
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        text = f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"
        (folder / "Annotations" / f"{name}.xml").write_text(text)
        classes = np.zeros((height, width), np.uint8)
        classes[5:20, 10:25], classes[5:20, 25] = 1 + i, 255
        image = Image.fromarray(classes, "P")
        image.putpalette([value for i in range(256) for value in (i, 255 - i, 7)])
        image.save(folder / "SegmentationClass" / f"{name}.png")
    lists = {"trainval": names, "train": names[:4], "val": names[4:], "test": names}
    for name, members in lists.items():
        for kind in ("Main", "Segmentation"):
            (folder / "ImageSets" / kind / f"{name}.txt").write_text("\n".join(members) + "\n")
    return root


def prepare_tfds(name: str, root: Path, data_dir: Path) -> None:
    """TFDS's own builder over the tiny set in `root`, prepared as array_record."""
    import tensorflow_datasets as tfds

    from data import tfds_hook

    with tfds_hook.without_tensorflow():
        builder = tfds.builder(name, data_dir=str(data_dir), file_format="array_record")
        if name.startswith("voc"):
            parts = {"train": (root.parent, "train"), "test": (root.parent, "test")}
        else:
            from tensorflow_datasets.object_detection.coco import AnnotationType

            kinds = AnnotationType.BBOXES, None
            parts = {"train": (root, root, "train2017", *kinds)}
            parts["validation"] = (root, root, "val2017", *kinds)
        examples = builder._generate_examples
        builder._split_generators = lambda _: {
            s: examples(*map(str_of, p)) for s, p in parts.items()
        }
        builder.download_and_prepare()


def str_of(value):
    """Paths as TFDS's builders take them."""
    return str(value) if isinstance(value, Path) else value
