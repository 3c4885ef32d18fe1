"""ResNet-101 on ImageNet, the paper's recipe; `:goyal` for the modern baseline.

python main.py --config=configs/resnet101.py
"""

from ml_collections import ConfigDict

from configs import recipes


def get_config(arg: str = "") -> ConfigDict:
    return recipes.imagenet("resnet101", arg)
