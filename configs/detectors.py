"""What the recipes in `configs/detection/` share."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from configs.base import base
from errors import UserError

COCO_TRAIN_IMAGES = 117_266  # of train2017, those with an object


def detector(arg: str, known: Sequence[str] = ()) -> tuple[ConfigDict, set[str]]:
    """A config with nothing in it that only classification does, and the words of its argument.

    `quick`, which every recipe has, shortens a run to twenty steps that show that all works.

    Raises:
      UserError: for a word that is not known.
    """
    words, known = set(filter(None, arg.split(","))), ("quick", *known)
    if unknown := sorted(words - set(known)):
        listed = ", ".join(map(repr, known))
        raise UserError(f"config argument {unknown[0]!r}: expected one of {listed}.")
    config = base()
    config.task = "detection"
    config.augment.update(kind="none", pca_noise=0.0)
    config.optim.momentum_form = "torch"
    return config, words


def fine_tuned(config: ConfigDict, depth: int) -> None:
    """A backbone of that depth from ImageNet, with the normalisation that it has, in place."""
    config.init_from = f"resnet{depth}.safetensors"
    config.model.update(depth=depth, frozen_bn=True, downsample_in="3x3")
    config.eval.batch_size = 8


def shortened(config: ConfigDict, words: set[str]) -> ConfigDict:
    """The config, or with `quick` twenty steps of it."""
    if "quick" in words:
        config.update(batch_size=4, num_steps=20, log_every=5, eval_every=20, checkpoint_every=10)
        config.optim.update(boundaries=(), warmup_steps=5)
        config.eval.batch_size = 4
    return config


def rcnn(config: ConfigDict, proposals: int, of_an_image: int = 1) -> None:
    """R-CNN on so many proposals of a class (appendix C), instead of the network that proposes.

    Of each image of a step one region, so that those of a step are all of different images; more
    where the pass that proposes them costs most of the time.
    """
    config.detection.update(network="rcnn", region_samples=of_an_image)
    config.detection.proposals = (proposals, proposals)


def coco_fpn(arg: str, masks: bool) -> ConfigDict:
    """torchvision's recipe for a ResNet-50 with a feature pyramid on COCO: 26 epochs of 16 images.

    The rate falls after 16 and 22 epochs. As Detectron's: shorter side 800, the stem and the first
    stage fixed, 512 regions of an image.
    """
    config, words = detector(arg)
    fine_tuned(config, 50)
    epoch = COCO_TRAIN_IMAGES / 16
    config.update(dataset="coco:DIR", batch_size=16, num_steps=round(26 * epoch))
    config.update(eval_every=round(epoch), checkpoint_every=1_000)
    config.data.update(train_split="train2017", test_split="val2017")
    config.optim.update(learning_rate=0.02, warmup_steps=1_000)
    config.optim.boundaries = (round(16 * epoch), round(22 * epoch))
    config.detection.masks = masks
    return shortened(config, words)


def c4(arg: str) -> tuple[ConfigDict, set[str]]:
    """The paper's detector (appendix A): ResNet-101, regions from conv4, shorter side 600.

    Proposals and regions are learned together, in one step, where the paper alternates.
    """
    config, words = detector(arg)
    fine_tuned(config, 101)
    config.model.downsample_in = "1x1"
    config.detection.update(network="c4", sides=(600,), longer=1000, frozen_stages=0)
    config.detection.update(candidates=(12_000, 6_000), proposals=(2_000, 300), region_samples=128)
    config.optim.learning_rate = 0.001
    config.eval.scales = (200, 400, 600, 800, 1000)  # appendix B, with eval.protocol=multiscale
    return config, words
