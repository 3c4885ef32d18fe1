"""Checkpoints as training programs leave them, written by torch and stored.

`python -m tests.support.torch_checkpoints` (in an environment with torch) writes
tests/support/files/checkpoints/. The networks are ResNet-8s; their weights are made from names
alone, those called averaged twice as large, so that a reader knows which it has got.
"""

import argparse
import pathlib

import torch

from tests.support import reference_weights
from tests.support.torch_resnet import ResNet

FOLDER = pathlib.Path(__file__).parent / "files" / "checkpoints"
CLASSES, WIDTH = 5, 2


def network(factor=1.0):
    model = ResNet(8, CLASSES, WIDTH, cifar=True)
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    arrays = reference_weights.make(shapes)
    model.load_state_dict({k: factor * torch.from_numpy(v) for k, v in arrays.items()})
    return model


def prefixed(model, prefix):
    return {prefix + name: tensor for name, tensor in model.state_dict().items()}


def main():
    raw, averaged = network(), network(2.0)
    optimizer = torch.optim.SGD(raw.parameters(), 0.1, momentum=0.9)
    arguments = argparse.Namespace(lr=0.1, output_dir=pathlib.Path("here"), data=None)
    ema = torch.optim.swa_utils.AveragedModel(averaged, use_buffers=True)
    files = {
        # PyTorch's ImageNet example.
        "example.pth.tar": {
            "epoch": 90,
            "arch": "resnet8",
            "state_dict": prefixed(raw, "module."),
            "best_acc1": torch.tensor(76.1),
            "optimizer": optimizer.state_dict(),
        },
        # torchvision's reference script with --model-ema.
        "reference.pth": {
            "model": raw.state_dict(),
            "optimizer": optimizer.state_dict(),
            "epoch": 3,
            "args": arguments,
            "model_ema": ema.state_dict(),
        },
        # timm's training script with --model-ema.
        "timm.pth.tar": {
            "epoch": 3,
            "state_dict": raw.state_dict(),
            "args": arguments,
            "state_dict_ema": averaged.state_dict(),
        },
        # Lightning: a module with a network and a criterion in it, compiled.
        "lightning.ckpt": {
            "epoch": 1,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": prefixed(raw, "model._orig_mod.") | {"criterion.weight": torch.ones(5)},
            "hyper_parameters": {"arguments": arguments},
        },
        # `torch.save(model)`: the object itself.
        "module.pth": torch.nn.DataParallel(raw),
    }
    FOLDER.mkdir(exist_ok=True)
    for name, content in files.items():
        # The stream has less around each tensor than the zip archive.
        torch.save(content, FOLDER / name, _use_new_zipfile_serialization=name == "example.pth.tar")
        print(FOLDER / name, (FOLDER / name).stat().st_size, "bytes, torch", torch.__version__)


if __name__ == "__main__":
    main()
