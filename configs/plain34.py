"""The plain twin of ResNet-34 on ImageNet (section 4.1), the paper's recipe.

python main.py --config=configs/plain34.py
"""

from ml_collections import ConfigDict

from configs import recipes


def get_config(arg: str = "") -> ConfigDict:
    return recipes.imagenet("plain34", arg)
