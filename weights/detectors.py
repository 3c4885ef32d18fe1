"""torchvision's detectors and segmenters: which one a file holds, and its arrays by our paths.

The backbone's names are those of `weights.torchvision` behind 'backbone.body.' or 'backbone.'; the
heads have names of their own (`LAYERS`), some of them older ones too.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from errors import UserError
from models.ops.norm import BN_EPSILON
from weights import checkpoints, fit
from weights.architectures import identify
from weights.files import Tensor, readable
from weights.torchvision import COUNTERS, STATISTICS, from_torch, torch_name

BACKBONE = re.compile(r"(?:^|(?<=\.))backbone\.(body\.)?(?=layer1\.0\.conv1\.weight$)")
HEADS = ("rpn.", "roi_heads.", "classifier.", "aux_classifier.")
UNREADABLE = {  # heads that have no module here: a pattern of their arrays, and what they are
    r"^roi_heads\.keypoint": "Keypoint R-CNN",
    r"^head\.classification_head\.bbox_ctrness|^head\.regression_head\.bbox_ctrness": "FCOS",
    r"^head\.(classification|regression)_head": "RetinaNet or SSD",
}
POOLED = 7  # side of what a box head is given
MOST_PIXELS = 10_000  # of a resized image's side
RATIOS = 3  # of the anchors of one size
SEGMENTER = re.compile(r"classifier\.(0\.weight|0\.convs\.0\.0\.weight)")
# Our layer: torchvision's, and the name that it had before version 2 of its module. {n} is one
# less than the number. In a layer 'conv' is followed by 'bn'.
LAYERS = {
    r"fpn/inner(\d)/(conv)": ("backbone.fpn.inner_blocks.{n}.0", "backbone.fpn.inner_blocks.{n}"),
    r"fpn/output(\d)/(conv)": ("backbone.fpn.layer_blocks.{n}.0", "backbone.fpn.layer_blocks.{n}"),
    r"fpn/inner(\d)/(bn)": ("backbone.fpn.inner_blocks.{n}.1",),
    r"fpn/output(\d)/(bn)": ("backbone.fpn.layer_blocks.{n}.1",),
    r"rpn/layer(\d)/(conv)": ("rpn.head.conv.{n}.0", "rpn.head.conv"),
    r"rpn/(scores)": ("rpn.head.cls_logits",),
    r"rpn/(deltas)": ("rpn.head.bbox_pred",),
    r"box_head/layer(\d)/(conv)": ("roi_heads.box_head.{n}.0",),
    r"box_head/layer(\d)/(bn)": ("roi_heads.box_head.{n}.1",),
    r"box_head/(hidden)": ("roi_heads.box_head.5",),
    r"box_head/(hidden1)": ("roi_heads.box_head.fc6",),
    r"box_head/(hidden2)": ("roi_heads.box_head.fc7",),
    r"box_head/(scores)": ("roi_heads.box_predictor.cls_score",),
    r"box_head/(deltas)": ("roi_heads.box_predictor.bbox_pred",),
    r"mask_head/layer(\d)/(conv)": ("roi_heads.mask_head.{n}.0", "roi_heads.mask_head.mask_fcn{m}"),
    r"mask_head/layer(\d)/(bn)": ("roi_heads.mask_head.{n}.1",),
    r"mask_head/(upsampled)": ("roi_heads.mask_predictor.conv5_mask",),
    r"mask_head/(logits)": ("roi_heads.mask_predictor.mask_fcn_logits",),
    r"classifier/branch(\d)/(conv)": ("classifier.0.convs.{n}.0",),
    r"classifier/branch(\d)/(bn)": ("classifier.0.convs.{n}.1",),
    r"classifier/pooled/(conv)": ("classifier.0.convs.4.1",),
    r"classifier/pooled/(bn)": ("classifier.0.convs.4.2",),
    r"classifier/project/(conv)": ("classifier.0.project.0",),
    r"classifier/project/(bn)": ("classifier.0.project.1",),
    r"classifier/last/(conv)": ("classifier.1",),
    r"classifier/last/(bn)": ("classifier.2",),
    r"((?:aux_)?classifier)/hidden/conv": ("{0}.0",),
    r"((?:aux_)?classifier)/hidden/bn": ("{0}.1",),
    r"((?:aux_)?classifier)/logits": ("{0}.4",),
}


class Detector(NamedTuple):
    """A file that holds a detector or a segmenter.

    Attributes:
      path: of the file.
      name: of the network, e.g. 'Mask R-CNN on ResNet-50'.
      kind: 'segmenter', or where a detector's regions are taken from: 'fpn' or 'c4'.
      backbone: fields of `models.create`.
      fields: of `Segmenter`, `FasterRCNN` or `C4` in `detection`.
      label_names: of the classes, the background first; None where no file says them.
      shorter, longer: sides of resized images; 0 where no file says them.
      arrays: the file's.
      epsilon: what its backbone's batch normalisation adds to variances.
      notes: sentences to be logged.
    """

    path: str
    name: str
    kind: str
    backbone: dict[str, Any]
    fields: dict[str, Any]
    label_names: tuple[str, ...] | None
    shorter: int
    longer: int
    arrays: Mapping[str, np.ndarray]
    epsilon: float
    notes: list[str]


def find(tree: Any, metadata: Mapping[str, str], path: Path, part: str = "") -> Detector | None:
    """The detector or segmenter in what a file holds; None if it has none.

    Args:
      tree, part: as `checkpoints.state_dict` takes them.
      metadata: of a safetensors file.

    Raises:
      UserError: its backbone or one of its heads cannot be built here.
    """
    if not _networks(tree):
        return None
    arrays, notes = checkpoints.state_dict(tree, path, part, _networks)
    for pattern, name in UNREADABLE.items():
        if found := [key for key in arrays if re.search(pattern, key)]:
            raise UserError(
                f"{path}: holds {name}, of which there is no head here: "
                f"{checkpoints.listed(found)}. Read are torchvision's Faster and Mask R-CNN on an "
                "FPN, FCN and DeepLabV3, and Faster R-CNN on conv4."
            )
    start = next(match[0] for key in arrays if (match := BACKBONE.match(key)))
    body = {
        key.removeprefix(start): array
        for key, array in arrays.items()
        if key.startswith(start) and not key.startswith("backbone.fpn.")
    }
    network = identify(from_torch(body))
    if network.why_not:
        raise fit.refusal(path, network)
    # FrozenBatchNorm2d counts no batches. torchvision's published networks with it, and those
    # trained from them, add nothing to the variances.
    frozen = not any(key.endswith(COUNTERS[0]) for key in body)
    read = _segmenter if any(SEGMENTER.match(key) for key in arrays) else _detector
    name, kind, fields = read(arrays)
    label_names, shorter, longer = _said(path, metadata)
    return Detector(
        str(path),
        f"{name} on {network.name}",
        kind,
        network.fields
        | {"downsample_in": "3x3", "output_stride": 8 if kind == "segmenter" else 32},
        fields,
        label_names,
        shorter,
        longer,
        arrays,
        0.0 if frozen else BN_EPSILON,
        notes,
    )


def _networks(tree: Any) -> list[checkpoints.Found]:
    """Every detector or segmenter in a tree, without what wrappers put before its names."""
    return list(_each_network(tree))


def _each_network(tree: Any) -> Iterator[checkpoints.Found]:
    for at, arrays in checkpoints.dictionaries(tree):
        prefixes = dict.fromkeys(k[: m.start()] for k in arrays if (m := BACKBONE.search(k)))
        for prefix in prefixes:
            others = tuple(p for p in prefixes if p != prefix and p.startswith(prefix))
            mine = {k for k in arrays if k.startswith(prefix) and not k.startswith(others)}
            own = {k.removeprefix(prefix): a for k, a in arrays.items() if k in mine}
            heads = [k for k in own if k.startswith((*HEADS, "head."))]
            if any(own[k].ndim == 4 for k in heads):  # a classifier's are of two dimensions
                rest = tuple(k for k in arrays if not k.startswith(tuple(prefixes)))
                yield checkpoints.labelled(at, prefix, own, rest)


def _segmenter(arrays):
    atrous = "classifier.0.convs.0.0.weight" in arrays
    fields = {
        "num_classes": _size(arrays, "classifier.4.weight", 0),
        "atrous": atrous,
        "auxiliary": any(key.startswith("aux_classifier.") for key in arrays),
    }
    if atrous:
        fields["width"] = _size(arrays, "classifier.0.convs.0.0.weight", 0)
    return "DeepLabV3" if atrous else "FCN", "segmenter", fields


def _detector(arrays):
    both = {
        "num_classes": _size(arrays, "roi_heads.box_predictor.cls_score.weight", 0),
        "rpn_convs": _count(arrays, r"rpn\.head\.conv(\.\d\.0)?\.weight"),
    }
    if not any(key.startswith(("backbone.fpn.", "roi_heads.box_head.")) for key in arrays):
        sizes = _size(arrays, "rpn.head.cls_logits.weight", 0) // RATIOS
        return "Faster R-CNN without a pyramid (C4)", "c4", both | {"sizes": max(1, sizes)}
    masks = _count(arrays, r"roi_heads\.mask_head\.(mask_fcn\d|\d\.0)\.weight")
    fields = both | {
        "hidden": _size(arrays, "roi_heads.box_predictor.cls_score.weight", 1),
        "width": _size(arrays, "rpn.head.cls_logits.weight", 1),
        "box_convs": _count(arrays, r"roi_heads\.box_head\.\d\.0\.weight"),
        "mask_convs": masks,
        "norm": any(key.startswith("backbone.fpn.inner_blocks.0.1.") for key in arrays),
    }
    return "Mask R-CNN" if masks else "Faster R-CNN", "fpn", fields


def _size(arrays, key, axis):
    """A size that the file's arrays show, or 1: what is missing is named when they are loaded."""
    return arrays[key].shape[axis] if key in arrays and arrays[key].ndim > axis else 1


def _count(arrays, pattern):
    return sum(bool(re.fullmatch(pattern, key)) for key in arrays)


def _said(path, metadata):
    """Classes and sides of images, by the file's metadata or a JSON file beside it."""
    beside = Path(f"{path}.json")
    with readable(beside, "a description, {'label_names': […], 'shorter': 800, 'longer': 1333}"):
        text = metadata.get("description") or (beside.read_text() if beside.is_file() else "{}")
        said = json.loads(text)
        names = said.get("label_names")
        sides = [int(said.get(name, 0)) for name in ("shorter", "longer")]
        if min(sides) < 0 or max(sides) > MOST_PIXELS:
            raise ValueError(f"sides of {sides} pixels")
        return None if names is None else tuple(map(str, names)), *sides


def load(
    detector: Detector, template: Mapping[str, Any], network: str = "that network"
) -> dict[str, Any]:
    """The file's arrays as the variables of a network.

    Args:
      detector: what `find` returned.
      template: `{'params': …, 'batch_stats': …}`, arrays or their shapes.
      network: what the template is of, in words.

    Returns:
      float32 arrays in the template's structure.

    Raises:
      UserError: arrays are missing, unknown or of another shape, as with another head's file.
    """
    wanted = flatten_dict(dict(template), sep="/")
    names = {path: _names(path, detector.arrays) for path in wanted}
    found = {
        path: Tensor(_in_our_layout(path, detector.arrays[name]), name)
        for path, name in names.items()
        if name in detector.arrays
    }
    taken = {tensor.source for tensor in found.values()}
    rest = {k for k in detector.arrays if k not in taken and not k.endswith(COUNTERS)}
    found |= {key: Tensor(detector.arrays[key], key) for key in sorted(rest)}
    if problem := fit.problems(found, wanted, names.__getitem__):
        raise UserError(
            f"{detector.path}: holds {detector.name}, and its arrays are not all of {network}: "
            f"{problem}. Choose a file of torchvision's network, whole and with its own heads."
        )
    arrays = {path: np.asarray(found[path].array, np.float32) for path in wanted}
    for path in wanted:
        if detector.epsilon != BN_EPSILON and re.match(r"params/backbone/.*/scale$", path):
            var = arrays[path.replace("params/", "batch_stats/").replace("/scale", "/var")]
            ratio = (np.float64(var) + BN_EPSILON) / np.maximum(var + detector.epsilon, 1e-38)
            arrays[path] = (arrays[path] * np.sqrt(ratio)).astype(np.float32)
    return unflatten_dict({path: jnp.asarray(array) for path, array in arrays.items()}, sep="/")


def _names(path: str, arrays: Mapping[str, Any]) -> str:
    """The file's name for one of our paths: the one that it has, or today's."""
    collection, _, rest = path.partition("/")
    layer, _, kind = rest.rpartition("/")
    if layer.startswith("backbone/"):
        start = (
            "backbone.body." if any(k.startswith("backbone.body.") for k in arrays) else "backbone."
        )
        return start + torch_name(f"{collection}/{rest.removeprefix('backbone/')}")
    kind = {"kernel": "weight", "scale": "weight", **STATISTICS}.get(kind, kind)
    match, templates = next((m, t) for p, t in LAYERS.items() if (m := re.fullmatch(p, layer)))
    number = int(match[1]) if match[1].isdigit() else 0
    names = [f"{t.format(match[1], n=number - 1, m=number)}.{kind}" for t in templates]
    return next((name for name in names if name in arrays), names[0])


def _in_our_layout(path, array):
    """A kernel `[out, in, h, w]` as `[h, w, in, out]`, and a dense one as `[in, out]`."""
    if array.ndim == 4:  # of a transposed convolution: `[in, out, h, w]`
        doubles = path.endswith("mask_head/upsampled/kernel")
        return array.transpose(*((2, 3, 0, 1) if doubles else (2, 3, 1, 0)))
    if array.ndim == 2 and re.search(r"box_head/hidden1?/kernel$", path):
        # torch flattens channels first.
        side, rest = POOLED, array.shape[1] // POOLED**2
        if array.shape[1] == rest * side * side:
            array = array.reshape(-1, rest, side, side).transpose(0, 2, 3, 1).reshape(array.shape)
    return array.T
