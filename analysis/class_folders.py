"""Two image folders from a small data set: classes to pretrain on, and unequal ones to transfer to.

    python -m analysis.class_folders --dataset=fashion_mnist --out=runs/fashion

Writes `source/` and `target/`, each with `train/<class>/*.png` and `val/<class>/*.png`. The last
classes of the set are the target's, as many as `--counts` has numbers: of each, that many training
images. So `analysis.transfer` can be tried where there are neither photographs nor published
weights.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data import small_sets
from errors import UserError
from run import command, files, result


def write_class(folder: Path, images: np.ndarray, count: int) -> None:
    """Writes the first `count` of uint8 images `[number, height, width, channels]` as PNG files."""
    with files.explained(folder, "choose another --out"):
        folder.mkdir(parents=True)
        for i, image in enumerate(images[:count]):
            Image.fromarray(image.squeeze()).save(folder / f"{i:05d}.png")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    p = result.parser("class_folders", __doc__, room="analysis", out="runs/folders")
    p.add_argument("--dataset", default="fashion_mnist", help=", ".join(small_sets.NAMES))
    p.add_argument("--data_dir", default="", help="where prepared sets are ('': TFDS's default)")
    p.add_argument("--counts", type=command.positive, nargs="+", default=[400, 200, 100, 50, 25])
    p.add_argument("--source_images", type=command.positive, default=1000, help="of each class")
    p.add_argument("--tested", type=command.positive, default=200, help="val images of each class")
    args = p.parse_args(argv)
    for split, part in (("train", "train"), ("val", "test")):
        whole = small_sets.load(args.dataset, part, args.data_dir)
        names = whole.label_names
        first = len(names) - len(args.counts)
        if first < 2:
            raise UserError(
                f"--counts={args.counts}: {args.dataset} has {len(names)} classes; expected at "
                f"most {len(names) - 2} numbers, so that two classes are left to pretrain on."
            )
        for label, name in enumerate(names):
            kind = "source" if label < first else "target"
            count = args.source_images if kind == "source" else args.counts[label - first]
            folder = files.at(args.out, kind, split, name.replace("/", "-").replace(" ", "-"))
            images = whole.images[whole.labels == label]
            write_class(folder, images, count if split == "train" else args.tested)
    print(f"{files.at(args.out, 'source')}, {files.at(args.out, 'target')}")


if __name__ == "__main__":
    sys.exit(command.run(main))
