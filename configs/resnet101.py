"""ResNet-101 on ImageNet, the paper's recipe; `:goyal` for the modern baseline.

python main.py --config=configs/resnet101.py
"""

from configs import recipes


def get_config(arg=""):
    return recipes.imagenet("resnet101", arg)
