"""torchvision's detectors and segmenters, and ours with their weights: the largest differences.

`python -m benchmarks.detection_networks`, where torch and torchvision are installed beside the
project's own requirements, writes benchmarks/detection_networks.md. Networks of random weights and
statistics, scaled so that many boxes of several classes survive, are saved by torch and read by
`detection.network`; both find what is in five photographs cut out of scikit-learn's two.
Images have the sizes that torchvision resizes them to; smaller ones take less time, and with
`--shorter=224 --longer=224` one program serves detectors for all photographs. The first photograph
(`--double`) is computed by torchvision in float64, too, from which both are held. C4, which
torchvision has not, is put together from its parts. Each network can be run for itself
(`--networks`); the report keeps the rows of the others.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import reports
from benchmarks.detection_parity import with_torch
from detection import network

C4 = "c4_resnet101"
DETECTORS = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
)
SEGMENTERS = ("fcn_resnet50", "deeplabv3_resnet50")
KINDS = ("boxes", "scores", "labels", "masks", "logits")  # of what is found
HEAD = ("network", "sides", "image", "found", "classes", *(f"Δ {kind}" for kind in KINDS))
TOGETHER = 3  # images in a batch
# Deviations that the last layers' outputs are scaled to; the mean of each becomes 0.
SCALES = {
    "rpn.head.cls_logits": 2.0,
    "rpn.head.bbox_pred": 0.1,
    "roi_heads.box_predictor.cls_score": 2.5,
    "roi_heads.box_predictor.bbox_pred": 0.3,
    "roi_heads.mask_predictor.mask_fcn_logits": 3.0,
    "classifier.4": 3.0,
}


def photographs() -> list[np.ndarray]:
    """Five uint8 images `[height, width, 3]`: wide, upright, square, long and small."""
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    small = Image.fromarray(flower).resize((131, 97), Image.Resampling.BILINEAR)
    upright = np.rot90(flower).copy()
    return [china, upright, flower[60:360, 200:500], china[150:330, :600], np.asarray(small)]


def awkward() -> list[np.ndarray]:
    """uint8 images `[height, width, 3 or 1]`: thin, of a few pixels, of one colour, grey."""
    china, flower, *_ = photographs()
    random = np.random.default_rng(0)
    whole = Image.fromarray(china)
    sizes = [(2000, 40), (40, 2000), (160, 1), (33, 31), (5, 7)]
    thin = [np.asarray(whole.resize(size, Image.Resampling.BILINEAR)) for size in sizes]
    few = [random.integers(0, 256, (*side, 3), np.uint8) for side in ((3, 3), (1, 2), (1, 1))]
    grey = np.asarray(Image.fromarray(flower).convert("L"))[..., None]
    return [*thin, *few, np.zeros((60, 90, 3), np.uint8), grey]


def torch_network(
    name: str, shorter: int, longer: int, images: Sequence[np.ndarray] = ()
) -> tuple[Any, list[Any]]:
    """torchvision's network with random weights and statistics, and the images for it.

    Without images these are the photographs. The first is used to scale the last layers.
    """
    import torch
    from torchvision.models import detection, resnet, segmentation

    torch.manual_seed(0)
    images = images or photographs()
    if name not in SEGMENTERS:
        sizes = {"min_size": shorter, "max_size": longer}
        if name == C4:
            model = c4(resnet.resnet101(), 91, sizes)
        else:
            model = getattr(detection, name)(weights=None, weights_backbone=None, **sizes)
        inputs = [torch.tensor(x).permute(2, 0, 1).float() / 255 for x in images]
    else:
        some = {"aux_loss": True, "num_classes": 21}
        model = getattr(segmentation, name)(weights=None, weights_backbone=None, **some)
        inputs = [segmenters_input(x, shorter) for x in images]
    for place, module in model.eval().named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(0.3, 0.7)
            module.bias.normal_(0, 0.1)
            # With the statistics of their inputs, heads find objects of more classes.
            module.momentum = 1.0
            module.train(place.startswith(("backbone.fpn.", "roi_heads.")))
    found_by(model, inputs[:1])
    calibrate(model.eval(), lambda: found_by(model, inputs[:1]))
    return model, inputs


def c4(body: Any, classes: int, sizes: dict[str, int]) -> Any:
    """Appendix A of the paper from torchvision's parts, on one of its ResNets."""
    from torch import nn
    from torchvision import ops
    from torchvision.models import detection

    body.fc = nn.Identity()

    class Conv4(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.out_channels = body, body.inplanes // 2

        def forward(self, x):
            body = self.body
            x = body.maxpool(body.relu(body.bn1(body.conv1(x))))
            return body.layer3(body.layer2(body.layer1(x)))

    class Pool(nn.Module):
        def forward(self, maps, boxes, _):
            return ops.roi_pool(maps["0"], boxes, 14, 1 / 16)

    class Conv5(nn.Module):
        def forward(self, x):
            return conv4.body.layer4(x).mean((2, 3))

    conv4 = Conv4()
    model = detection.FasterRCNN(
        conv4,
        rpn_anchor_generator=detection.anchor_utils.AnchorGenerator(((128, 256, 512),)),
        rpn_pre_nms_top_n_test=6000,
        rpn_post_nms_top_n_test=300,
        box_head=Conv5(),
        box_predictor=detection.faster_rcnn.FastRCNNPredictor(body.inplanes, classes),
        **sizes,
    )
    model.roi_heads.box_roi_pool = Pool()
    return model


def found_by(model: Any, inputs: Sequence[Any]) -> list[dict[str, np.ndarray]]:
    """What torchvision finds in images that are given together, of each name → array."""
    if hasattr(model, "roi_heads"):
        found = [{k: v.numpy() for k, v in one.items()} for one in model(list(inputs))]
        return [one | ({"masks": one["masks"][:, 0]} if "masks" in one else {}) for one in found]
    return [{"logits": model(x[None])["out"][0].permute(1, 2, 0).numpy()} for x in inputs]


def segmenters_input(image: np.ndarray, shorter: int) -> Any:
    """What torchvision's preset makes of a picture: a tensor `[3, height, width]`.

    The preset refuses one channel, so a grey picture is given as three.
    """
    from torchvision.transforms import functional

    picture = Image.fromarray(np.repeat(image, 3 // image.shape[-1], -1))
    resized = functional.resize(picture, [shorter], antialias=True)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return functional.normalize(functional.to_tensor(resized), mean, std)


def calibrate(model: Any, run: Callable[[], Any]) -> dict[str, tuple[float, list[float]]]:
    """Gives last layers outputs of mean 0 and the deviations in SCALES, one after the other.

    Args:
      model: in torch, in evaluation mode.
      run: applies it to an image.

    Returns:
      By layer: the factor of its weights, and its biases.
    """
    import torch

    changes = {}
    for layer, deviation in SCALES.items():
        module = dict(model.named_modules()).get(layer)
        if module is None:
            continue
        outputs: list[Any] = []
        hook = module.register_forward_hook(lambda _, __, out, kept=outputs: kept.append(out))
        run()
        hook.remove()
        flat = torch.cat([x.movedim(1, -1).reshape(-1, x.shape[1]) for x in outputs])
        mean = flat.mean(0)
        factor = round(float(deviation / (flat - mean).std()), 3)
        biases = [round(x, 3) for x in (factor * (module.bias - mean)).tolist()]
        module.weight.mul_(factor)
        module.bias.copy_(torch.tensor(biases))
        changes[layer] = factor, biases
    return changes


def compared(
    name: str, sides: tuple[int, int], double: int, folder: Path, images: Sequence[np.ndarray]
) -> Iterator[Sequence[Any]]:
    """The table's rows for a network; the last one says how many programs were compiled.

    Args:
      sides: the shorter and the longest of resized images; 0: the network's own.
      double: so many images are held against torchvision in float64.
      images: uint8; with the first, a photograph, the network is prepared.
    """
    import safetensors.torch
    import torch

    kind = "segmenter" if name in SEGMENTERS else "c4" if name == C4 else "fpn"
    shorter, longer = (a or b for a, b in zip(sides, network.KINDS[kind][1:], strict=True))
    said = f"{shorter}, {longer}" if longer else str(shorter)
    with torch.no_grad():
        model, inputs = torch_network(name, shorter, longer, images)
        if name == DETECTORS[0]:
            torch.save(model.state_dict(), path := folder / f"{name}.pth")
        else:
            path = folder / f"{name}.safetensors"
            safetensors.torch.save_file(model.state_dict(), path)
        opened = network.open_weights(str(path), shorter, longer)
        assert opened, f"{path}: no detector"
        net, compiled = opened[0], network.compiled(opened[0].model)
        for i, (image, given) in enumerate(zip(images, inputs, strict=True)):
            if net.longer:
                ours: dict[str, Any] = next(network.find(net, [image]))._asdict()
            else:
                ours = {"logits": next(network.segment(net, [image]))}
            theirs = found_by(model, [given])[0]
            size = "×".join(map(str, image.shape[:2])) + ", grey" * (image.shape[-1] == 1)
            yield name, said, size, *_cells(ours, theirs)
            if i < double:
                exact = found_by(model.double(), [given.double()])[0]
                model.float()  # its numbers are as before
                for whose, found in (("ours", ours), ("torchvision's", theirs)):
                    yield name, said, f"{size}: {whose} from float64", *_cells(found, exact)
        if name == DETECTORS[0]:
            alike = network.find(net, images[:TOGETHER], TOGETHER, together=True)
            for i, theirs in enumerate(found_by(model, inputs[:TOGETHER])):
                cells = _cells(next(alike)._asdict(), theirs)
                yield name, said, f"{i + 1} of {TOGETHER} together", *cells
        programs = f"{compiled._cache_size()} programs compiled"
        yield name, said, programs, *[""] * (len(HEAD) - 3)


def _cells(ours, theirs):
    """How many are found, of how many classes, and the largest difference of each kind.

    Two whose scores differ by less than rounding may have changed places.
    """
    labels = theirs.get("labels", ())
    if len(labels) and len(labels) == len(ours["labels"]):
        apart = np.abs(ours["boxes"][None] - theirs["boxes"][:, None]).max(-1)
        apart[labels[:, None] != ours["labels"][None]] = np.inf
        order = apart.argmin(1)
        if len({*order}) == len(order):
            ours = {kind: x if x is None else x[order] for kind, x in ours.items()}
    cells = [len(labels) or "", len(set(labels)) or ""]
    for kind in KINDS:
        if kind not in theirs:
            cells.append("")
            continue
        a, b = ours[kind], theirs[kind]
        same = a.shape == b.shape
        cells.append(f"{np.abs(a - b).max(initial=0):.1e}" if same else f"{a.shape} ≠ {b.shape}")
    return cells


def of_others(report: Path, rows: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
    """The rows of a report that are of other networks, or of other sizes, than these."""
    lines = report.read_text().splitlines() if report.exists() else []
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    fresh = {(*row[:2],) for row in rows}
    known = {*DETECTORS, *SEGMENTERS, C4}
    return [row for row in cells if row and row[0] in known and (*row[:2],) not in fresh]


def main(argv: Sequence[str] | None) -> None:
    """Compares the networks, one after the other."""
    parser = reports.parser(__file__, __doc__)
    parser.add_argument("--networks", nargs="+", default=(*SEGMENTERS, *DETECTORS, C4))
    parser.add_argument("--shorter", type=int, default=0, help="of resized images; 0: its own")
    parser.add_argument("--longer", type=int, default=0, help="of detectors' images")
    parser.add_argument("--double", type=int, default=1, help="images in float64, too")
    parser.add_argument("--awkward", action="store_true", help="thin, tiny and plain images")
    flags = parser.parse_args(argv)
    made, images = with_torch(), photographs()
    rows: list[Sequence[Any]] = []
    if flags.awkward:
        images = [images[0], *awkward()]
    with tempfile.TemporaryDirectory() as folder:
        for name in flags.networks:
            sides = flags.shorter, flags.longer
            for _, said, *row in compared(name, sides, flags.double, Path(folder), images):
                rows.append((name, said + ", awkward" * flags.awkward, *row))
                print(*rows[-1], flush=True)
    title = "Detectors and segmenters against torchvision"
    lines = [made, "", *reports.table(HEAD, of_others(flags.report, rows) + rows)]
    reports.write(flags.report, title, flags.command, lines)


if __name__ == "__main__":
    sys.exit(reports.run(main))
