"""CIFAR-100 with CIFAR-10's recipe, section 4.2: 64k steps of 128, 45k/5k split, per-pixel mean.

    python main.py --config=configs/cifar100.py:resnet110      # or plain56, resnet1202, …

The argument also takes `goyal` (modern baseline) and `quick`: `:resnet20,goyal`.
"""

from configs import common


def get_config(arg=""):
    config = common.cifar(arg)
    config.dataset = "cifar100"
    return config
