"""The plain twin of ResNet-18 on ImageNet (section 4.1), the paper's recipe.

python main.py --config=configs/plain18.py
"""

from ml_collections import ConfigDict

from configs import recipes


def get_config(arg: str = "") -> ConfigDict:
    return recipes.imagenet("plain18", arg)
