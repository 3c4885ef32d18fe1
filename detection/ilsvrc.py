"""ILSVRC's boxes: Annotations/CLS-LOC with an XML file for each image of an image folder.

The genuine layout has the images in `ILSVRC/Data/CLS-LOC` and the boxes in
`ILSVRC/Annotations/CLS-LOC`: `train/n01440764/n01440764_10026.xml`,
`val/ILSVRC2012_val_00000001.xml`. Classes are synsets, as the names of the class folders; where
images lie without any, as the original's validation images do, their boxes say the class.
"""

import functools
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

from data import folder as image_folder
from data import splits
from data.sources import FolderSource
from detection.annotated import Annotated, Listed, annotated, decoded_file
from detection.classes import BACKGROUND
from detection.voc import read_boxes
from errors import UserError
from run import files
from run.progress import tqdm

LOG = logging.getLogger("residual")
BELOW = "Annotations/CLS-LOC"


def boxes_folder(root: Path, given: str = "") -> Path:
    """The folder of boxes: the one `given`, or that of the genuine layout around an image folder.

    Raises:
      UserError: it does not exist.
    """
    whole = root.absolute()
    places = [whole.parent.parent / BELOW, whole / BELOW]
    if given:
        places = [files.at(given).expanduser()]
    for place in places:
        if place.is_dir():
            return place
    raise UserError(
        f"{' and '.join(map(str, places))}: no such folder; expected ILSVRC's boxes, with files "
        "such as val/ILSVRC2012_val_00000001.xml and train/n01440764/n01440764_10026.xml."
    )


def with_boxes(
    root: Path, names: Iterable[str], label_names: Sequence[str], folder: Path, max_pixels: int
) -> list[Annotated]:
    """Images of an image folder with the boxes of their own class; labels are from 1 on.

    Args:
      root: the image folder.
      names: of images, as `data.sources.FolderSource` has them.
      label_names: of its classes.
      folder: `boxes_folder`.
      max_pixels: of an image.

    Raises:
      UserError: a file is missing or no such file, an object is not of the data's classes, has no
        box or one outside of the image, or no object is of the image's own class.
    """
    known, found = (BACKGROUND, *label_names), []
    for name in tqdm(list(names), desc="boxes", unit="image", disable=None, leave=False):
        path, (split, *classes, _) = root / name, PurePath(name).parts
        file = boxes_file(folder, split, "".join(classes[:1]), path.stem)
        size, objects = read_boxes(file, known, max_pixels)
        if not (classes or objects):
            raise UserError(f"{file}: has no object, and nothing else says what {path} shows.")
        synset = classes[0] if classes else known[objects[0][1]]
        own = [one for one in objects if known[one[1]] == synset]
        if not own:
            raise UserError(
                f"{file}: no object of {synset}, which {path} shows by its folder; do the "
                "annotations belong to these images?"
            )
        image = functools.partial(decoded_file, path, max_pixels)
        found.append(annotated(image, size, own, str(path)))
    return found


def read(root: Path, split: str, data_dir: str, max_pixels: int) -> Listed:
    """The images of a split with their boxes, in the genuine layout.

    Of training images, those without a file of boxes are left out: ILSVRC has boxes for less than
    half of them.

    Raises:
      UserError: see `with_boxes`.
    """
    (every, label_names), boxes = _names(root, split, data_dir), boxes_folder(root)
    names = [name for name in every if _is_boxed(boxes, PurePath(name))]
    if not names:
        raise UserError(f"{boxes}: has no boxes of any of the {len(every)} images of {split!r}.")
    if left_out := len(every) - len(names):
        LOG.warning("%s: %d of %d images have no boxes.", root / split, left_out, len(every))
    images = with_boxes(root, names, label_names, boxes, max_pixels)
    paths = [root / name for name in names]
    return Listed(images, paths, (BACKGROUND, *label_names), f"{root}, {split}")


def _names(root, split, data_dir):
    """The images of a split, below `root`, and the names of the classes."""
    first = image_folder.split_directory(root, re.split(r"[+\[]", split)[0])
    if files.is_remote(root) or any(entry.is_dir() for entry in first.iterdir()):
        source = FolderSource(root, split, data_dir)
        return source.names, source.label_names

    @functools.cache
    def flat(name: str) -> list[str]:
        directory = image_folder.split_directory(root, name)
        paths = image_folder.images_below(directory, image_folder.EXTENSIONS)
        return [str(path.relative_to(root)) for path in paths]

    pieces = splits.pieces(split, lambda name: len(flat(name)))
    names = [name for piece, start, stop in pieces for name in flat(piece)[start:stop]]
    return names, FolderSource(root, "train", data_dir).label_names


def _is_boxed(boxes, name):
    split, *classes, _ = name.parts
    file = boxes_file(boxes, split, "".join(classes[:1]), name.stem)
    return split != "train" or file.exists()


def boxes_file(folder: Path, split: str, synset: str, stem: str) -> Path:
    """Where the boxes of an image lie, or would: flat, or by classes as of the training images."""
    flat = folder / ("val" if split == "validation" else split)
    of_class = flat / synset / f"{stem}.xml"
    return of_class if of_class.exists() else flat / f"{stem}.xml"
