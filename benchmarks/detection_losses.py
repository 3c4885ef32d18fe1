"""torchvision's losses in training and ours with the same weights, and all their gradients.

`python -m benchmarks.detection_losses`, where torch and torchvision are installed beside the
project's own requirements, writes benchmarks/detection_losses.md. The networks are those of
`benchmarks.detection_networks`; two photographs of different sizes lie in one array. Both learn
from the same anchors, which torchvision takes as our sampler does, and from all of 60 proposals:
of thousands, two of equal scores but for rounding may have changed places, and one be taken.
Torchvision in float32 and ours are held against torchvision in float64.
Each network can be run for itself (`--networks`); the report keeps the rows of the others.
"""

import functools
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import weights
from benchmarks import reports
from benchmarks.detection_networks import (
    DETECTORS,
    SEGMENTERS,
    calibrate,
    of_others,
    photographs,
    torch_network,
)
from benchmarks.detection_parity import with_torch
from data.normalization import CONSTANTS
from detection import network
from detection.mean_iou import IGNORED
from detection.rpn import Limits
from detection.sampling import REGIONS, Sampling, balanced
from detection.segmentation import AUXILIARY, Segmenter

HEAD = ("network", "BN", "losses", "whose", "Δ of a loss", "arrays", "Δ of a gradient", "of")
LIMITS = Limits(before=2000, after=60)  # of proposals
CLASSES = 21  # of objects, no more than any network here has
ALL = 10**6  # more regions than there are


class Batch(NamedTuple):
    """Images with objects, as `FasterRCNN.losses` takes them, and a class of each pixel.

    Attributes:
      masks: bool `[batch, n, height, width]`.
      pixels: int32 `[batch, height, width]`, 255 where there is none.
    """

    images: np.ndarray
    sizes: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray
    pixels: np.ndarray
    keys: Any


def made(shape: tuple[int, int], classes: int, objects: Sequence[int] = (5, 2)) -> Batch:
    """Two photographs, the second smaller, with so many ellipses on them."""
    random, n = np.random.default_rng(0), max(objects) + 1
    sizes = np.array([shape, (shape[0] * 3 // 4, shape[1] * 5 // 8)], np.int32)
    batch = Batch(
        np.zeros((2, *shape, 3), np.float32),
        sizes,
        np.zeros((2, n, 4), np.float32),
        np.zeros((2, n), np.int32),
        np.zeros((2, n, *shape), bool),
        np.full((2, *shape), IGNORED, np.int32),
        jax.random.split(jax.random.key(7), 2),
    )
    for i, ((height, width), photo) in enumerate(zip(sizes, photographs(), strict=False)):
        constants, (y, x) = CONSTANTS["imagenet"], np.mgrid[:height, :width]
        part = np.float32(photo[y % photo.shape[0], x % photo.shape[1]])
        batch.images[i, :height, :width] = (part - constants.mean) / constants.std
        batch.pixels[i, :height, :width] = 0
        y, x = np.mgrid[: shape[0], : shape[1]]
        for j in range(objects[i]):
            side = np.array([width, height])
            box = np.sort(random.uniform(0, 1, (2, 2)), 0) * side * 0.8
            box[1] += 0.2 * side
            batch.boxes[i, j], batch.labels[i, j] = box.reshape(4), random.integers(1, classes)
            away = ((x, y) - box.mean(0)[:, None, None]) / (box[1] - box[0])[:, None, None]
            batch.masks[i, j] = (away**2).sum(0) < 0.25
            batch.pixels[i][batch.masks[i, j]] = batch.labels[i, j]
    batch.pixels[:, 7:12] = IGNORED
    return batch


# ---- torchvision's


def their_losses(model: Any, batch: Batch, net: Any, frozen: bool) -> tuple[dict, dict]:
    """torchvision's losses, and the gradient of their sum by parameter; zeros where there is none.

    Args:
      net: ours, whose sampling is taken.
      frozen: whether batch normalisation has its stored statistics.
    """
    import torch

    images = training(model, batch, frozen)
    model.zero_grad()
    losses = (_of_detector if hasattr(model, "roi_heads") else _of_segmenter)(
        model, images, batch, net
    )
    sum(losses.values()).backward()
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in model.named_parameters()
    }
    return {k: float(v.detach()) for k, v in losses.items()}, gradients


def training(model: Any, batch: Batch, frozen: bool) -> Any:
    """Lets a network train, but for dropout and frozen normalisation; returns its images."""
    import torch

    for module in model.train().modules():
        if isinstance(module, torch.nn.Dropout) or (frozen and "BatchNorm" in str(type(module))):
            module.eval()
    images = torch.tensor(batch.images).permute(0, 3, 1, 2)
    return images.to(next(model.parameters()).dtype)


def _of_segmenter(model, images, batch, _):
    from torch import tensor
    from torch.nn.functional import cross_entropy

    target, scores = tensor(batch.pixels).long(), model(images)
    names = {"out": ("loss_pixels", 1.0), "aux": ("loss_auxiliary", AUXILIARY)}
    return {
        name: share * cross_entropy(scores[key], target, ignore_index=IGNORED)
        for key, (name, share) in names.items()
    }


def _of_detector(model, images, batch, net):
    from torch import tensor
    from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
    from torchvision.models.detection.image_list import ImageList

    targets = []
    for i, n in enumerate((batch.labels > 0).sum(1)):
        boxes, labels = tensor(batch.boxes[i, :n]).to(images), tensor(batch.labels[i, :n]).long()
        targets.append({"boxes": boxes, "labels": labels, "masks": tensor(batch.masks[i, :n])})
    limits, rpn = net.training_limits, model.rpn
    rpn._pre_nms_top_n["training"], rpn._post_nms_top_n["training"] = limits.before, limits.after
    keys, _ = jax.vmap(jax.random.split, out_axes=1)(batch.keys)
    rpn.fg_bg_sampler = _sampler(keys, net.anchors)
    model.roi_heads.fg_bg_sampler = BalancedPositiveNegativeSampler(ALL, 0.5)
    features = model.backbone(images)
    features = features if isinstance(features, dict) else {"0": features}
    listed = ImageList(images, [tuple(map(int, size)) for size in batch.sizes])
    proposals, of_anchors = model.rpn(listed, features, targets)
    _, of_regions = model.roi_heads(features, proposals, listed.image_sizes, targets)
    return of_anchors | of_regions


def _sampler(keys: Any, sampling: Sampling) -> Callable[[Any], Any]:
    """torchvision's sampler, which takes what `balanced` takes."""
    import torch

    def sampler(labels):
        masks = []
        for key, kinds in zip(keys, labels, strict=True):
            which = [jnp.array(mask) for mask in (kinds >= 1, kinds == 0)]
            taken = balanced(key, *which, sampling)
            mask = torch.zeros(len(kinds), dtype=torch.bool)
            mask[np.asarray(taken.indices)[np.asarray(taken.valid)]] = True
            masks.append((mask & (kinds >= 1), mask & (kinds == 0)))
        return [list(x) for x in zip(*masks, strict=True)]

    return sampler


# ---- Ours


def our_losses(net: Any, variables: Any, batch: Batch) -> tuple[dict, Any]:
    """Our losses, and the gradient of their sum."""
    images, sizes, boxes, labels, masks, pixels, keys = batch
    padded = np.full_like(sizes, images.shape[1:3])
    if isinstance(net, Segmenter):
        given: tuple[Any, ...] = images, padded, pixels
    else:
        given = images, sizes, padded, boxes, labels, np.packbits(masks, -1), keys

    def loss(params, *given):
        both = variables | {"params": params}
        found, _ = net.apply(both, *given, method="losses", mutable=["batch_stats"])
        means = {name: total / count for name, (total, count) in found.items()}
        return sum(means.values()), means

    gradients, losses = jax.jit(jax.grad(loss, has_aux=True))(variables["params"], *given)
    return {k: float(v) for k, v in losses.items()}, gradients


def as_ours(opened: Any, shapes: Any, model: Any, gradients: Any) -> Any:
    """torchvision's gradients in the places of our parameters."""
    arrays = {
        k: v.detach().float().numpy() for k, v in (dict(model.named_buffers()) | gradients).items()
    }
    return weights.load_detector(opened._replace(arrays=arrays), shapes)["params"]


def differences(ours: Any, theirs: Any) -> tuple[float, str, int]:
    """The largest difference as a share of the array's largest number; where; of how many."""
    found = {}
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
    ):
        largest = max(np.abs(b).max(), 1e-6)
        name = "/".join(str(part.key) for part in path)
        found[name] = float(np.abs(np.asarray(a) - b).max() / largest)
    worst = max(found, key=found.__getitem__)
    return found[worst], worst, len(found)


def compared(name: str, shape: tuple[int, int], folder: Path) -> Iterator[Sequence[Any]]:
    """The table's rows of a network."""
    import safetensors.torch
    import torch

    with torch.no_grad():
        model, _ = torch_network(name, min(shape), max(shape))
    batch = made(shape, CLASSES)
    for frozen in (True, False) if name in SEGMENTERS else (True,):
        if not frozen:  # other activations need other last layers
            with torch.no_grad():
                calibrate(model, functools.partial(model, training(model, batch, frozen)))
        path = str(folder / f"{name}.safetensors")
        safetensors.torch.save_file(model.state_dict(), path)
        opened, file = network.open_weights(path), weights.detector(path)
        assert opened and file, f"{path}: no detector"
        net = opened[0].model
        net = net.clone(backbone=net.backbone.clone(frozen_bn=frozen))
        if name in DETECTORS:
            every = REGIONS._replace(number=ALL, share=0.5)
            net = net.clone(training_limits=LIMITS, regions=every)
        found = {"ours": our_losses(net, opened[0].variables, batch)}
        shapes = network.variable_shapes(net)
        as_tree = functools.partial(as_ours, file, shapes, model)
        theirs, gradients = their_losses(model, batch, net, frozen)
        found["torchvision in float32"] = theirs, as_tree(gradients)
        exact, gradients = their_losses(model.double(), batch, net, frozen)
        model.float()  # its numbers are as before
        said = ", ".join(f"{key.removeprefix('loss_')} {value:.4f}" for key, value in exact.items())
        kind = "frozen" if frozen else "of the batch"
        for whose, (losses, tree) in found.items():
            apart, worst, count = differences(tree, as_tree(gradients))
            off = max(abs(losses[key] / value - 1) for key, value in exact.items())
            yield name, kind, said, whose, f"{off:.1e}", count, f"{apart:.1e}", worst


def main(argv: Sequence[str] | None) -> None:
    """Compares the networks, one after the other."""
    parser = reports.parser(__file__, __doc__)
    parser.add_argument("--networks", nargs="+", default=(*SEGMENTERS, *DETECTORS))
    parser.add_argument("--shape", type=int, nargs=2, default=(160, 192), help="of the array")
    flags = parser.parse_args(argv)
    versions, rows = with_torch(), []
    with tempfile.TemporaryDirectory() as folder:
        for name in flags.networks:
            for row in compared(name, tuple(flags.shape), Path(folder)):
                print(*row, flush=True)
                rows.append(row)
    lines = [versions, "", *reports.table(HEAD, of_others(flags.report, rows) + rows)]
    reports.write(flags.report, "Losses and gradients against torchvision", flags.command, lines)


if __name__ == "__main__":
    sys.exit(reports.run(main))
