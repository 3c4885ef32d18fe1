"""ResNet-18 on ImageNet, the paper's recipe; `:goyal`, `:lars`, `:rsb_a3` or `:torchvision_v2`
for a modern one (docs/modern_recipes.md).

python main.py --config=configs/resnet18.py
"""

from ml_collections import ConfigDict

from configs import recipes


def get_config(arg: str = "") -> ConfigDict:
    return recipes.imagenet("resnet18", arg)
