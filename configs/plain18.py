"""The plain twin of ResNet-18 on ImageNet (section 4.1), the paper's recipe.

python main.py --config=configs/plain18.py
"""

from configs import common


def get_config(arg=""):
    return common.imagenet("plain18", arg)
