"""Fashion-MNIST with the paper's CIFAR recipe: 28×28 grey images, 54k/6k split.

python prepare_data.py fashion_mnist
python main.py --config=configs/fashion_mnist.py:resnet20      # or plain56, …
"""

from ml_collections import ConfigDict

from configs import recipes


def get_config(arg: str = "") -> ConfigDict:
    config = recipes.cifar(arg, train_images=60_000)
    config.dataset = "fashion_mnist"
    config.data.image_size = 28
    config.eval.scales = (28,)
    return config
