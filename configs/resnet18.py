"""ResNet-18 on ImageNet, the paper's recipe; `:goyal` for the modern baseline.

python main.py --config=configs/resnet18.py
"""

from configs import recipes


def get_config(arg=""):
    return recipes.imagenet("resnet18", arg)
