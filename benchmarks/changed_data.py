"""Data that change between two starts of a run: every change is refused, and nothing is written.

`python benchmarks/faults.py --changes`.
"""

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import train
from benchmarks.runs import Folder, as_killed_after, differences
from configs import digits
from errors import UserError

CLASSES = ("cat", "dog", "eel")
OPTIONS = {
    "model.width": 4,
    "batch_size": 4,
    "num_steps": 4,
    "log_every": 1,
    "checkpoint_every": 2,
    "data.resident": False,
    "data.image_size": 8,
    "data.normalization": "per_channel",
    "data.test_split": "val",
    "eval.batch_size": 2,
    "tensorboard": False,
}


def draw(path: Path, seed: int = 0, side: int = 10) -> Path:
    """Writes a random image, and its folder when it is missing; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def draw_classes(root: Path) -> Path:
    """An image folder: 4 images to train on and 2 to test on of each of `CLASSES`; returns it."""
    for split, number in (("train", 4), ("val", 2)):
        for c, name in enumerate(CLASSES):
            for i in range(number):
                draw(root / split / name / f"{i}.png", 10 * c + i, 10 + c)
    return root


def swap(one: Path, other: Path) -> Path:
    """Exchanges the names of two files or folders; returns the first name."""
    one.rename(one.with_name("between"))
    other.rename(one)
    one.with_name("between").rename(other)
    return one


# What is done to a folder of `draw_classes`, and what must be said of it.
CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "an image more": (lambda d: draw(d / "train/cat/9.png"), "num_train: 12 then, 13 now"),
    "an image less": (lambda d: (d / "train/dog/1.png").unlink(), "num_train: 12 then, 11 now"),
    "an image renamed": (
        lambda d: (d / "train/cat/0.png").rename(d / "train/cat/8.png"),
        r"splits.train.digest: '\w+' then",
    ),
    "an image moved": (
        lambda d: (d / "train/cat/0.png").rename(d / "train/eel/8.png"),
        "splits.train.digest",
    ),
    "an image replaced": (lambda d: draw(d / "train/cat/0.png", 5, 30), "splits.train.digest"),
    "an image replaced by one of the same size": (
        lambda d: draw(d / "train/cat/0.png", 5),
        "splits.train.contents",
    ),
    "a class renamed": (
        lambda d: [(d / split / "cat").rename(d / split / "fox") for split in ("train", "val")],
        "label_names.0: 'cat' then, 'dog' now; label_names.1: 'dog' then, 'eel' now",
    ),
    "two classes swapped": (
        lambda d: [swap(d / split / "cat", d / split / "eel") for split in ("train", "val")],
        "splits.train.digest",
    ),
    "two images swapped": (
        lambda d: swap(d / "train/cat/0.png", d / "train/eel/0.png"),
        "splits.train.digest",
    ),
    "a class more": (lambda d: draw(d / "train/ant/0.png"), "label_names.0: 'cat' then, 'ant' now"),
    "a test image more": (lambda d: draw(d / "val/eel/9.png"), "splits.test.images: 6 then, 7 now"),
    "other pixels": (
        lambda d: [draw(path, 99, 10) for path in (d / "train/cat").iterdir()],
        "normalization.mean.0",
    ),
}


def change_data(folder: Folder) -> dict[str, Any]:
    """Starts a stopped run again after each of `CHANGES`; at last with the data as they were."""
    folder = Path(folder)
    original, images = draw_classes(folder / "original"), folder / "images"
    config = digits.get_config("resnet8,paper")
    config.update_from_flattened_dict(OPTIONS)
    config.update(dataset=f"folder:{images}", data_dir=str(folder))
    counts = dict.fromkeys(("ways", "refused", "silent", "not named", "workdir changed"), 0)
    shutil.copytree(original, images)
    train.train(config, str(folder / "whole"))
    half = as_killed_after(2, folder / "whole", folder / "half")
    before = _content(half)
    for name, (act, named) in CHANGES.items():
        shutil.rmtree(images)
        shutil.copytree(original, images)
        act(images)
        counts["ways"] += 1
        try:
            train.train(config, str(half))
            print(f"silent: {name}", flush=True)
            counts["silent"] += 1
        except UserError as error:
            counts["refused"] += 1
            counts["not named"] += not re.search(f"{named}.*data.on_change=accept", str(error))
        counts["workdir changed"] += _content(half) != before
    shutil.rmtree(images)
    shutil.copytree(original, images)
    train.train(config, str(half))
    return counts | {"different": len(differences(half, folder / "whole"))}


def _content(workdir):
    return {
        str(path): hashlib.sha256(path.read_bytes()).digest()
        for path in workdir.rglob("*")
        if path.is_file()
    }
