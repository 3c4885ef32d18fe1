"""What is analysed: the network of a workdir and images of its data; and where results go."""

import argparse
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import input_pipeline
from errors import UserError
from run import command, files
from run.mesh import make_mesh
from run.provenance import provenance
from run.workdir import Workdir
from testing import opened_run
from testing.opened_run import OpenedRun

SPLITS = ("test", "validation", "train")


def parser(name: str, description: str, *, images: int = 0) -> command.Parser:
    """The arguments of `python -m analysis.<name>`; with `images`, a default, also `--images`."""
    p = command.Parser(f"python -m analysis.{name}", description)
    p.add_argument("--workdir", required=True, help="folder of a run with a finished checkpoint")
    p.add_argument("--out", help="folder of the results; default: <workdir>/analysis")
    p.add_argument("--which", choices=("last", "best"), default="last", help="checkpoint")
    if images:
        p.add_argument("--images", type=command.positive, default=images, help="to measure on")
        p.add_argument("--split", choices=SPLITS, default="test", help="where they are from")
    return p


def open_workdir(args: argparse.Namespace) -> tuple[OpenedRun, Path]:
    """The run in `--workdir` and the folder for results.

    Raises:
      UserError: there is no finished checkpoint.
    """
    run = opened_run.load(args.workdir, which=args.which)
    return run, Path(args.out) if args.out else Workdir(args.workdir).analysis


def open_data(run: OpenedRun) -> Any:
    """The data that a network was trained on, for one device, in batches of its training's size.

    Raises:
      UserError: they cannot be read, or their classes are no longer those of the network.
    """
    config = run.config.copy_and_resolve_references()
    config.eval.batch_size = config.batch_size
    data = input_pipeline.open_data(config, make_mesh(jax.devices()[:1]))
    if data.facts.label_names != run.facts.label_names:
        raise UserError(
            f"{run.workdir} was trained on {run.facts.num_classes} classes, and "
            f"{config.dataset} has {data.facts.num_classes} now, or others; expected "
            f"{', '.join(run.facts.label_names[:5])}, …"
        )
    return data


def load_images(run: OpenedRun, split: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The first images of a split of the data that a network was trained on.

    Returns:
      `(images, labels)`: uint8 `[number, height, width, channels]`, int32 `[number]`; fewer when
      the split has fewer.

    Raises:
      UserError: the data cannot be read, or its classes are no longer those of the network.
    """
    data = open_data(run)
    if not data.split_size(split):
        raise UserError(f"{run.workdir}: its data has no {split!r} images; choose --split.")
    needed = -(-number // run.config.batch_size)
    batches = list(itertools.islice(data.evaluation(split), needed))
    valid, images, labels = (
        np.concatenate([batch[key] for batch in batches]) for key in ("valid", "image", "label")
    )
    return images[valid][:number], labels[valid][:number]


def write(path: Path, args: argparse.Namespace, content: dict[str, Any]) -> Path:
    """Writes `content` as JSON with a header, whole or not at all; returns its path."""
    header = provenance(args.command) | {"jax": jax.__version__}
    text = json.dumps({"header": header} | content, indent=1) + "\n"
    return files.write_text(path, text, "choose another --out")


def stages(endpoints: Iterable[str]) -> list[str]:
    """Names of the spatial endpoints in the network's order: 'stem', 'stage1', …"""
    return ["stem", *sorted(name for name in endpoints if name.startswith("stage"))]
