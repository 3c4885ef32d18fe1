"""The same train step in torch, run by `benchmarks.step_time` under an interpreter that has torch.

    PYTHON benchmarks/torch_peer.py '{"stage_sizes": [3, 3, 3], …}'

Imports nothing of this repository. Prints "ready" and the versions after two steps; then answers
each line on standard input, a number of steps, with "wall-seconds processor-seconds" for them.
"""

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


def conv_bn(channels: int, features: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    """Convolution without bias and its batch normalisation."""
    conv = nn.Conv2d(channels, features, kernel_size, stride, kernel_size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(features))


class Block(nn.Module):
    """Basic or bottleneck block; shortcut 'A' zero-pads, 'B' projects."""

    def __init__(self, channels: int, width: int, stride: int, bottleneck: bool, shortcut: str):
        super().__init__()
        self.stride, features = stride, 4 * width if bottleneck else width
        self.extra = features - channels
        if bottleneck:
            layers = [(channels, width, 1, stride), (width, width, 3), (width, features, 1)]
        else:
            layers = [(channels, width, 3, stride), (width, width, 3)]
        self.layers = nn.ModuleList(conv_bn(*layer) for layer in layers)
        changes = stride > 1 or self.extra
        project = changes and shortcut == "B"
        self.projection = conv_bn(channels, features, 1, stride) if project else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, channels, height, width]` in and out."""
        y = x
        for layer in self.layers[:-1]:
            y = F.relu(layer(y), inplace=True)
        y = self.layers[-1](y)
        if self.projection is not None:
            x = self.projection(x)
        elif self.extra or self.stride > 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
        return F.relu(x + y, inplace=True)


def network(
    stage_sizes: Sequence[int], bottleneck: bool, stem: str, shortcut: str, width: int, classes: int
) -> nn.Sequential:
    """Stem, stages, mean and head."""
    imagenet = stem == "imagenet"
    layers = [conv_bn(3, width, *((7, 2) if imagenet else (3, 1))), nn.ReLU(inplace=True)]
    layers += [nn.MaxPool2d(3, 2, 1)] if imagenet else []
    channels = width
    for stage, size in enumerate(stage_sizes):
        for block in range(size):
            stride = 2 if stage and not block else 1
            layers.append(Block(channels, width * 2**stage, stride, bottleneck, shortcut))
            channels = width * 2**stage * (4 if bottleneck else 1)
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return nn.Sequential(*layers)


def main(options: dict[str, Any]) -> None:
    """Serves steps of SGD with momentum on one random batch."""
    torch.manual_seed(0)
    device, half = options["device"], options["dtype"] == "bfloat16"
    if device == "cuda":
        torch.backends.cudnn.benchmark = True  # tries cuDNN's kernels and keeps the fastest
        torch.set_float32_matmul_precision("high")  # TF32, as XLA's default there
    model = network(**options["network"]).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    shape = options["batch"], 3, options["size"], options["size"]
    images = torch.randn(shape, device=device).to(memory_format=torch.channels_last)
    labels = torch.arange(shape[0], device=device) % options["network"]["classes"]
    forward = torch.compile(model) if options["compile"] else model

    def run(steps):
        started, used = time.perf_counter(), time.process_time()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16, enabled=half):
                loss = F.cross_entropy(forward(images), labels)
            loss.backward()
            optimizer.step()
        loss.item()  # waits for the device
        return f"{time.perf_counter() - started} {time.process_time() - used}"

    run(2)
    print(f"ready torch {torch.__version__}", flush=True)
    for line in sys.stdin:
        print(run(int(line)), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
