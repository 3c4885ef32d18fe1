"""An independent ResNet in torch with torchvision's key names, and what it computes, stored.

`python -m tests.support.torch_resnet` (in an environment with torch) writes
tests/support/files/torch_reference.npz: logits, samples of every stage's activations and the
running averages after one training batch, for weights and images that `reference_weights` makes
from names alone. Written for these tests from the paper's table 1; it shares no code with `models`.
"""

import pathlib

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tests.support import reference_weights

STAGES = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


def conv(c_in, c_out, k, stride=1, groups=1):
    return nn.Conv2d(c_in, c_out, k, stride, padding=k // 2, bias=False, groups=groups)


class OptionA(nn.Module):
    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.extra, self.stride = c_out - c_in, stride

    def forward(self, x):
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))


class Block(nn.Module):
    def __init__(self, c_in, c_mid, stride, bottleneck, option_a, stride_in_1x1, inner, groups):
        super().__init__()
        c_out = 4 * c_mid if bottleneck else c_mid
        if bottleneck:
            first, second = (stride, 1) if stride_in_1x1 else (1, stride)
            middle = (inner, inner, 3, second, groups)
            shapes = [(c_in, inner, 1, first), middle, (inner, c_out, 1, 1)]
        else:
            shapes = [(c_in, c_mid, 3, stride), (c_mid, c_out, 3, 1)]
        self.count = len(shapes)
        for i, shape in enumerate(shapes, start=1):
            self.add_module(f"conv{i}", conv(*shape))
            self.add_module(f"bn{i}", nn.BatchNorm2d(shape[1]))
        self.downsample = nn.Identity()
        if stride > 1 or c_in != c_out:
            project = nn.Sequential(conv(c_in, c_out, 1, stride), nn.BatchNorm2d(c_out))
            self.downsample = OptionA(c_in, c_out, stride) if option_a else project

    def forward(self, x):
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = torch.relu(y) if i < self.count else y
        return torch.relu(y + self.downsample(x))


class ResNet(nn.Module):
    """`depth` 18 or 50 with the ImageNet stem, or 6n+2 with `cifar=True` (option A)."""

    def __init__(
        self,
        depth,
        classes,
        width=64,
        cifar=False,
        stride_in_1x1=False,
        caffe_pool=False,
        width_per_group=64,
        groups=1,
    ):
        super().__init__()
        self.cifar = cifar
        self.pool = nn.MaxPool2d(3, 2, padding=0 if caffe_pool else 1, ceil_mode=caffe_pool)
        sizes = ((depth - 2) // 6,) * 3 if cifar else STAGES[depth]
        self.conv1 = conv(3, width, 3) if cifar else conv(3, width, 7, 2)
        self.bn1 = nn.BatchNorm2d(width)
        c_in, self.stages = width, len(sizes)
        for s, size in enumerate(sizes):
            blocks = []
            for b in range(size):
                stride = 2 if s and not b else 1
                mid = width * 2**s
                inner = int(mid * width_per_group / 64) * groups
                form = (depth == 50, cifar, stride_in_1x1, inner, groups)
                block = Block(c_in, mid, stride, *form)
                c_in = mid * (4 if depth == 50 else 1)
                blocks.append(block)
            self.add_module(f"layer{s + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(c_in, classes)

    def forward(self, x):
        endpoints = {}
        x = torch.relu(self.bn1(self.conv1(x)))
        endpoints["stem"] = x
        x = x if self.cifar else self.pool(x)
        for s in range(1, self.stages + 1):
            x = getattr(self, f"layer{s}")(x)
            endpoints[f"stage{s}"] = x
        return self.fc(x.mean((2, 3))), endpoints


def build(case):
    """The network of one of `reference_weights.CASES`, with its weights."""
    network = ResNet(
        case.depth,
        case.classes,
        case.width,
        case.cifar,
        stride_in_1x1=case.downsample_in == "1x1",
        caffe_pool=case.stem_pool == "unpadded",
        width_per_group=case.width_per_group,
        groups=case.groups,
    ).eval()
    shapes = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    weights = reference_weights.make(shapes)
    network.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()}, strict=True)
    return network


def images(case):
    return torch.from_numpy(reference_weights.images(case).transpose(0, 3, 1, 2).copy())


def main():
    stored = {}
    for name, case in reference_weights.CASES.items():
        network = build(case)
        with torch.no_grad():
            logits, endpoints = network(images(case))
            stored[f"{name}/logits"] = logits.numpy()
            for key, x in endpoints.items():
                stored[f"{name}/{key}"] = reference_weights.sample(x.permute(0, 2, 3, 1).numpy())
            network.train()
            network(images(case))
        for key in reference_weights.TRAINED:
            stored[f"{name}/trained/{key}"] = network.state_dict()[key].numpy()
        stored[f"{name}/keys"] = np.array(sorted(network.state_dict()))
    path = pathlib.Path(__file__).parent / "files" / "torch_reference.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **stored)
    print(path, path.stat().st_size, "bytes, torch", torch.__version__)


if __name__ == "__main__":
    main()
