"""ResNet-152 on ImageNet, the paper's recipe; `:goyal` for the modern baseline.

python main.py --config=configs/resnet152.py
"""

from ml_collections import ConfigDict

from configs import recipes


def get_config(arg: str = "") -> ConfigDict:
    return recipes.imagenet("resnet152", arg)
