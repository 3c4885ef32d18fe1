"""ResNet-200 of Identity Mappings on ImageNet, the paper's recipe; `:goyal`, `:lars`, `:rsb_a3` or
`:torchvision_v2` for a modern one (docs/modern_recipes.md).

python main.py --config=configs/resnet200.py --config.model.preactivation=True
"""

from ml_collections import ConfigDict

from configs import recipes


def get_config(arg: str = "") -> ConfigDict:
    return recipes.imagenet("resnet200", arg)
