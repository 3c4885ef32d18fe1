"""CIFAR-100 with CIFAR-10's recipe and arguments: `--config=configs/cifar100.py:resnet110`."""

from ml_collections import ConfigDict

from configs import cifar10


def get_config(arg: str = "") -> ConfigDict:
    config = cifar10.get_config(arg)
    config.dataset = "cifar100"
    return config
