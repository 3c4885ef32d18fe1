"""Whole inference and train steps of detectors at full size, beside torchvision's.

`python -m benchmarks.detection_throughput`, where torch and torchvision are installed beside the
project's own requirements, writes benchmarks/detection_throughput.md. Each contender runs in a
process of its own, with all cores, and they take turns; the weights are the same. Inference goes
from a photograph's bytes to boxes and masks in its pixels. A step learns from one resized
photograph with five objects, by torchvision's recipe: the stem, the first stage and normalisation
stay as they are.
"""

import functools
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from benchmarks import reports
from benchmarks.detection_losses import CLASSES, made
from benchmarks.detection_networks import photographs, torch_network
from benchmarks.detection_parity import with_torch
from benchmarks.whole_step import Contender, jitted_step, take_turns, timed
from configs.detectors import coco_fpn
from data.normalization import CONSTANTS
from detection import images, network
from detection.batches import blank
from run.mesh import make_mesh, replicate
from training import step as train_step

HEAD = ("network", "what", "contender", "s an image", "processor s", "images/s", "ours / it")
WORKS = {"find": "inference", "learn": "a train step"}
OURS, THEIRS = "ours", "torchvision"
CONTENDERS = (OURS, THEIRS, f"{THEIRS}, channels last")
RATE = 1e-6  # of learning: random weights diverge with the recipe's
Sides = tuple[int, int]  # the shorter and the longest of resized images
Work = Callable[[], Any]


def ours(name: str, path: str, sides: Sides, kind: str) -> Work:
    """What one turn of ours computes, of one of WORKS."""
    opened = network.open_weights(path, *sides)
    assert opened, f"{path}: no detector"
    net = opened[0]
    if kind == "find":
        return lambda: next(network.find(net, photographs()[:1]))
    config = coco_fpn("", masks=name.startswith("mask"))
    config.batch_size = 1
    config.optim.learning_rate = RATE
    model = net.model.clone(backbone=net.model.backbone.clone(frozen_bn=True))
    mesh = make_mesh(jax.devices()[:1])
    compiled = jitted_step(config, model, CONSTANTS["imagenet"], mesh)
    # Compiled: what is donated must not be the same zero twice.
    start = jax.jit(functools.partial(train_step.state_from, config))(net.variables)
    state = replicate(start, mesh)
    batch = jax.device_put(_row(sides, config.detection.masks))

    def learn() -> None:
        nonlocal state
        state = jax.block_until_ready(compiled(state, batch))

    return learn


def theirs(name: str, path: str, sides: Sides, kind: str, channels_last: bool) -> Work:
    """What one turn of torchvision's computes."""
    import safetensors.torch
    import torch
    from torchvision.models import detection

    torch.set_num_threads(os.cpu_count() or 1)
    sizes = {"min_size": sides[0], "max_size": sides[1], "_skip_resize": kind == "learn"}
    model = getattr(detection, name)(weights=None, weights_backbone=None, **sizes)
    model.load_state_dict(safetensors.torch.load_file(path))
    if channels_last:
        model.to(memory_format=torch.channels_last)

    def shown(image: np.ndarray) -> list[Any]:
        return [torch.tensor(image).permute(2, 0, 1).float() / 255]

    if kind == "find":
        model.eval()

        def find() -> Any:
            with torch.inference_mode():
                return model(shown(photographs()[0]))

        return find
    image, boxes, labels, masks = _annotated(sides)
    objects = {"boxes": boxes, "labels": labels.astype(np.int64), "masks": masks}
    for module in model.train().modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval().requires_grad_(False)
    for module in (model.backbone.body.conv1, model.backbone.body.layer1):
        module.requires_grad_(False)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learned, RATE, momentum=0.9, weight_decay=1e-4)

    def learn() -> None:
        losses = model(shown(image), [{k: torch.tensor(v) for k, v in objects.items()}])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    return learn


def _annotated(sides):
    """A resized photograph, uint8, and its objects' boxes, labels and masks."""
    photo = photographs()[0]
    height, width = images.resized_size(*photo.shape[:2], *sides)
    image = np.array(Image.fromarray(photo).resize((width, height)))
    batch = made((height, width), CLASSES, (5, 0))
    return image, *(x[0, :5] for x in (batch.boxes, batch.labels, batch.masks))


def _row(sides, with_masks):
    """The same as a batch of one, as `detection.data` makes them."""
    image, boxes, labels, masks = _annotated(sides)
    shape = image.shape[:2]
    canvas = images.canvas(*shape, *sides)
    batch = blank(1, canvas, len(boxes), with_masks, False) | {"valid": np.ones(1, bool)}
    batch["image"][0, : shape[0], : shape[1]] = image
    batch["size"][0], batch["boxes"][0], batch["labels"][0] = shape, boxes, labels
    if with_masks:
        beyond = [(0, whole - own) for whole, own in zip(canvas, shape, strict=True)]
        batch["masks"][0] = np.packbits(np.pad(masks, [(0, 0), *beyond]), axis=-1)
    return batch


def serve(name: str, path: str, sides: Sides, kind: str, contender: str) -> None:
    """Works twice, says 'ready', then answers each number of turns with its seconds."""
    if contender == OURS:
        work = ours(name, path, sides, kind)
    else:
        work = theirs(name, path, sides, kind, contender != THEIRS)

    def turns(count: int) -> None:
        for _ in range(count):
            work()

    turns(2)
    print("ready", flush=True)
    for line in sys.stdin:
        print(*timed(functools.partial(turns, int(line))), flush=True)


def measured(
    name: str, sides: Sides, kind: str, repetitions: int, folder: str
) -> list[Sequence[Any]]:
    """Rows of the table: medians of each contender."""
    import safetensors.torch
    import torch

    path = f"{folder}/{name}.safetensors"
    if not Path(path).exists():
        with torch.no_grad():
            safetensors.torch.save_file(torch_network(name, *sides)[0].state_dict(), path)
    words = [sys.executable, "-m", "benchmarks.detection_throughput", "--serve", path, kind]
    more = [f"--networks={name}", f"--shorter={sides[0]}", f"--longer={sides[1]}"]
    runs = {c: Contender([*words, c, *more], {}) for c in CONTENDERS}
    try:
        times = take_turns(runs, repetitions)
    finally:
        for run in runs.values():
            run.close()
    rows: list[Sequence[Any]] = []
    for contender, (wall, processor) in times.items():
        ratio = times[OURS][0] / wall
        numbers = f"{wall:.2f}", f"{processor:.2f}", f"{1 / wall:.3f}", f"{ratio:.2f}"
        rows.append((name, WORKS[kind], contender, *numbers))
        print(*rows[-1], sep=", ", flush=True)
    return rows


def main(argv: Sequence[str] | None) -> None:
    """Measures both works of each network and writes the table."""
    parser = reports.parser(__file__, __doc__ or "")
    both = [f"{kind}_resnet50_fpn" for kind in ("fasterrcnn", "maskrcnn")]
    parser.add_argument("--networks", nargs="+", default=both)
    parser.add_argument("--works", nargs="+", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--shorter", type=int, default=800, help="of resized images")
    parser.add_argument("--longer", type=int, default=1333, help="of resized images")
    parser.add_argument("--repetitions", type=int, default=5, help="turns of each contender")
    parser.add_argument("--serve", nargs=3, help="weights, work and contender: used by itself")
    flags = parser.parse_args(argv)
    sides = flags.shorter, flags.longer
    if flags.serve:
        serve(flags.networks[0], flags.serve[0], sides, *flags.serve[1:])
        return
    made_with, rows = with_torch(), []
    with tempfile.TemporaryDirectory() as folder:
        for name in flags.networks:
            for kind in flags.works:
                rows += measured(name, sides, kind, flags.repetitions, folder)
    lines = [made_with, f"Sides of {sides[0]}, {sides[1]}.", "", *reports.table(HEAD, rows)]
    reports.write(flags.report, "Detectors' throughput beside torchvision", flags.command, lines)


if __name__ == "__main__":
    sys.exit(reports.run(main))
