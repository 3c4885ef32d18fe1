"""What the analysis commands share: options, the test images of a workdir, results and plots."""

import argparse
import datetime
import itertools
import json
import shlex
import sys
from pathlib import Path

import jax
import numpy as np

from errors import UserError
from input_pipeline import open_data
from run import files
from run.mesh import make_mesh
from run.workdir import Workdir
from testing import opened_run

SPLITS = ("test", "validation", "train")


def parser(description, *, images=None):
    """An argument parser with `--workdir` and `--out`, and with `images` a default `--images`."""
    p = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--workdir", required=True, help="folder of a run with a finished checkpoint")
    p.add_argument("--out", help="folder of the results; default: <workdir>/analysis")
    p.add_argument("--which", choices=("last", "best"), default="last", help="checkpoint")
    if images:
        p.add_argument("--images", type=positive, default=images, help="images to measure on")
        p.add_argument("--split", choices=SPLITS, default="test", help="where they are from")
    return p


def positive(text):
    """An argument that is a whole number ≥ 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: expected a number ≥ 1")
    return value


def open_workdir(args):
    """The opened run of `--workdir` and the folder for results.

    Raises:
      UserError: there is no finished checkpoint.
    """
    network = opened_run.load(args.workdir, which=args.which)
    return network, Path(args.out) if args.out else Workdir(args.workdir).analysis


def load_images(network, split, number):
    """The first images of a split of the data that a network was trained on.

    Returns:
      `(images, labels)`: uint8 `[number, height, width, channels]`, int32 `[number]`; fewer when
      the split has fewer.

    Raises:
      UserError: the data cannot be read, or its classes are no longer those of the network.
    """
    config = network.config.copy_and_resolve_references()
    config.eval.batch_size = config.batch_size
    data = open_data(config, make_mesh(jax.devices()[:1]))
    if data.facts.label_names != network.facts.label_names:
        raise UserError(
            f"{network.workdir} was trained on {network.facts.num_classes} classes, and "
            f"{config.dataset} has {data.facts.num_classes} now, or others; expected "
            f"{', '.join(network.facts.label_names[:5])}, …"
        )
    if not data.split_size(split):
        raise UserError(f"{network.workdir}: its data has no {split!r} images; choose --split.")
    needed = -(-number // config.eval.batch_size)
    batches = list(itertools.islice(data.evaluation(split), needed))
    valid = np.concatenate([b["valid"] for b in batches])
    images = np.concatenate([b["image"] for b in batches])[valid][:number]
    labels = np.concatenate([b["label"] for b in batches])[valid][:number]
    return images, labels


def write(out, name, content):
    """Writes `<out>/<name>.json` with a header, atomically; returns its path."""
    header = {
        "command": f"python -m analysis.{name} {shlex.join(sys.argv[1:])}".strip(),
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
    text = json.dumps({"header": header} | content, indent=1) + "\n"
    return files.write_text(Path(out) / f"{name}.json", text, "choose another --out")


def pyplot():
    """matplotlib's pyplot without a display (slow to import, so only when used)."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    return plt


def save(figure, out, name):
    """Writes `<out>/<name>.png`; returns its path."""
    path = Path(out) / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot().close(figure)
    return path


def stages(endpoints):
    """Names of the spatial endpoints in the network's order: 'stem', 'stage1', …"""
    return ["stem", *sorted(name for name in endpoints if name.startswith("stage"))]
