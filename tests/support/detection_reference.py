"""What torchvision's detectors and segmenters find with small networks, stored.

`python -m tests.support.detection_reference` (with torch, torchvision and scikit-learn) writes
tests/support/files/detection_reference.npz: names and shapes of the arrays, for which
`reference_weights` makes the same numbers on both sides, what the last layers are scaled to, and
what is found in photographs.
"""

import json
import pathlib

import numpy as np

from benchmarks.detection_networks import c4, calibrate, segmenters_input
from tests.support import reference_weights

FILE = pathlib.Path(__file__).parent / "files" / "detection_reference.npz"
SHORTER, LONGER = 96, 224
WIDTH, LEVEL, HIDDEN, CLASSES = 8, 16, 32, 6
# Each network's photographs, which lie on one canvas.
NETWORKS = {"mask_rcnn": (0, 2), "faster_rcnn_v2": (0, 2), "c4": (1,)}
NETWORKS |= {"fcn": (0, 2), "deeplabv3": (0, 2)}


def photographs():
    """uint8 `[height, width, 3]`: wide, upright, and wide in another way."""
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    return [china, np.rot90(flower).copy(), flower[100:400, 100:530].copy()]


def state_dict(stored, name):
    """torch key → array of a stored network."""
    shapes = json.loads(str(stored[f"{name}/shapes"]))
    arrays = reference_weights.make({key: tuple(shape) for key, shape in shapes.items()})
    for key, (factor, biases) in json.loads(str(stored[f"{name}/changes"])).items():
        arrays[f"{key}.weight"] *= np.float32(factor)
        arrays[f"{key}.bias"] = np.float32(biases)
    return arrays


def sample(array):
    """About two hundred numbers of any array."""
    flat = np.asarray(array).reshape(-1)
    return flat[:: 5 * max(1, flat.size // 997)]


# ---- With torch


def backbone(basic, dilated):
    """A ResNet of width 8 by torchvision's own means."""
    from torch import nn
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

    class Narrow(ResNet):
        def __init__(self):
            nn.Module.__init__(self)
            self._norm_layer = nn.BatchNorm2d
            self.inplanes, self.dilation, self.groups, self.base_width = WIDTH, 1, 1, 64
            self.conv1 = nn.Conv2d(3, WIDTH, 7, 2, 3, bias=False)
            self.bn1, self.relu = nn.BatchNorm2d(WIDTH), nn.ReLU()
            self.maxpool = nn.MaxPool2d(3, 2, 1)
            block, sizes = (BasicBlock, (2, 2, 2, 2)) if basic else (Bottleneck, (3, 4, 6, 3))
            for i, size in enumerate(sizes):
                stage = self._make_layer(
                    block, WIDTH * 2**i, size, 1 + (i > 0), dilate=dilated and i > 1
                )
                setattr(self, f"layer{i + 1}", stage)

    return Narrow()


def network(name):
    """The torch network, in evaluation mode."""
    from torch.nn import BatchNorm2d
    from torchvision.models import detection, segmentation
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.detection import faster_rcnn, mask_rcnn, rpn
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

    if name in ("fcn", "deeplabv3"):
        layers = {"layer4": "out", "layer3": "aux"}
        body = IntermediateLayerGetter(backbone(False, True), layers)
        of_stage = [4 * WIDTH * 2**i for i in range(4)]
        aux = segmentation.fcn.FCNHead(of_stage[2], CLASSES)
        if name == "fcn":
            return segmentation.FCN(body, segmentation.fcn.FCNHead(of_stage[3], CLASSES), aux)
        head = segmentation.deeplabv3.DeepLabHead(of_stage[3], CLASSES)
        return segmentation.DeepLabV3(body, head, aux)
    sizes = {"min_size": SHORTER, "max_size": LONGER}
    if name == "c4":
        return c4(backbone(True, False), CLASSES, sizes)
    norm = BatchNorm2d if name == "faster_rcnn_v2" else None
    body = BackboneWithFPN(
        backbone(True, False),
        {f"layer{i + 1}": str(i) for i in range(4)},
        [WIDTH * 2**i for i in range(4)],
        LEVEL,
        LastLevelMaxPool(),
        norm_layer=norm,
    )
    predictor = faster_rcnn.FastRCNNPredictor(HIDDEN, CLASSES)
    if name == "faster_rcnn_v2":
        anchors = faster_rcnn._default_anchorgen()
        head = faster_rcnn.FastRCNNConvFCHead((LEVEL, 7, 7), [LEVEL] * 4, [HIDDEN], norm)
        return detection.FasterRCNN(
            body,
            rpn_anchor_generator=anchors,
            rpn_head=rpn.RPNHead(LEVEL, 3, conv_depth=2),
            box_head=head,
            box_predictor=predictor,
            **sizes,
        )
    return detection.MaskRCNN(
        body,
        box_head=faster_rcnn.TwoMLPHead(LEVEL * 49, HIDDEN),
        box_predictor=predictor,
        mask_head=mask_rcnn.MaskRCNNHeads(LEVEL, (LEVEL,) * 4, 1),
        mask_predictor=mask_rcnn.MaskRCNNPredictor(LEVEL, LEVEL, CLASSES),
        **sizes,
    )


def found_by(name, model, image):
    """What a torch network finds in a photograph: name → array, masks and logits sampled."""
    import torch

    if name in ("fcn", "deeplabv3"):
        logits = model(segmenters_input(image, SHORTER)[None])["out"][0].permute(1, 2, 0)
        return {"logits": sample(logits)}
    found = model([torch.tensor(image).permute(2, 0, 1).float() / 255])[0]
    return {k: sample(v) if k == "masks" else v.numpy() for k, v in found.items()}


def main():
    import torch

    stored = {}
    with torch.no_grad():
        for name, used in NETWORKS.items():
            model = network(name).eval()
            shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
            arrays = reference_weights.make({k: tuple(s) for k, s in shapes.items()})
            model.load_state_dict({k: torch.as_tensor(v) for k, v in arrays.items()})
            photos = photographs()
            photo = photos[used[0]]
            changes = calibrate(model, lambda m=model, n=name, p=photo: found_by(n, m, p))
            stored[f"{name}/shapes"] = np.array(json.dumps(shapes))
            stored[f"{name}/changes"] = np.array(json.dumps(changes))
            for i in used:
                found = found_by(name, model, photos[i])
                stored |= {f"{name}/{i}/{key}": value for key, value in found.items()}
                print(name, i, {k: v.shape for k, v in found.items()}, flush=True)
    np.savez_compressed(FILE, **stored)
    print(FILE, FILE.stat().st_size, "bytes, torch", torch.__version__)


if __name__ == "__main__":
    main()
