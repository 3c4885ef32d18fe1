"""CIFAR-10, the paper's recipe (section 4.2): 64k steps of 128, 45k/5k split, per-pixel mean.

    python main.py --config=configs/cifar10.py:resnet110      # or plain56, resnet164,bottleneck, …

The argument also takes `goyal` (modern baseline), `followup` (the warm-up of Identity Mappings) and
`quick`: `:resnet20,goyal`.
"""

from ml_collections import ConfigDict

from configs import recipes


def get_config(arg: str = "") -> ConfigDict:
    config = recipes.cifar(arg)
    config.dataset = "cifar10"
    return config
