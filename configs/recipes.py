"""The recipes that the config files share.

A config's argument (what follows the colon in `--config=FILE:ARGUMENT`) is a comma-separated list:
a network (`resnet110`, `plain56`), a modern recipe for the same network (`goyal`, and those of
`MODERN` on ImageNet), `quick` for a run of a few steps that only shows that everything works. On
CIFAR also `followup` for the warm-up of Identity Mappings, and `basic` or `bottleneck` where two
networks have the depth (`resnet164,bottleneck` is the one of Identity Mappings).
"""

import re

from ml_collections import ConfigDict

from configs.base import base
from configs.fields import IMAGENET_STEPS_PER_EPOCH, IMAGENET_TRAIN_IMAGES
from errors import UserError

BLOCKS = ("basic", "bottleneck")


def _parse(arg, default, known):
    """'resnet110,goyal' → ('resnet', 110, {'goyal'})."""
    network, options = default, set()
    for token in filter(None, arg.split(",")):
        if re.fullmatch(r"(resnet|plain)\d+", token):
            network = token
        elif token in known:
            options.add(token)
        else:
            raise UserError(
                f"config argument {token!r}: expected a network like 'resnet20' or 'plain56', "
                f"{', '.join(map(repr, known))}, separated by commas."
            )
    for group in (("goyal", "followup", *MODERN), BLOCKS):
        if len(chosen := sorted(options.intersection(group))) > 1:
            raise UserError(f"config argument {arg!r}: {' and '.join(chosen)} exclude each other.")
    family, depth = re.fullmatch(r"([a-z]+)(\d+)", network).groups()
    return family, int(depth), options


def imagenet(network: str, arg: str = "") -> ConfigDict:
    """The paper's ImageNet recipe, or with `goyal` the baseline of Goyal et al. (1706.02677).

    `MODERN` has the others; they are also of torchvision's form of the network.
    """
    if re.search(r"(resnet|plain)\d", arg):
        raise UserError(f"config argument {arg!r}: the file names the network; use another file.")
    family, depth, options = _parse(arg, network, ("goyal", *MODERN, "quick"))
    config = base()
    config.model.update(depth=depth, residual=family == "resnet", bn_group_size=32)
    if options - {"quick"}:
        config.augment.update(kind="random_resized_crop", pca_noise=0.0)
        _goyal(config, steps_per_epoch=IMAGENET_STEPS_PER_EPOCH, epochs=90)
    for name in options & set(MODERN):
        MODERN[name](config)
        config.model.bn_group_size = 0  # theirs were all images of a device
    if "quick" in options:
        _quick(config)
    return config


def cifar(arg: str = "", default: str = "resnet20", train_images: int = 50_000) -> ConfigDict:
    """The paper's CIFAR recipe: 64k steps, option A, per-pixel mean, pad 4 (section 4.2).

    Both twins of a depth have the same warm-up: the paper's from 110 layers on, which it describes
    for ResNet-110, or with `followup` 400 steps at 0.01 at every depth (Identity Mappings).
    """
    known = ("goyal", "followup", "quick", *BLOCKS)
    family, depth, options = _parse(arg, default, known)
    config = base()
    config.update(batch_size=128, num_steps=64_000, eval_every=2_000)
    config.model.update(
        depth=depth, residual=family == "resnet", shortcut="A", stem="cifar", width=16
    )
    config.model.bn_group_size = 64
    config.model.block = next(iter(options & {*BLOCKS}), "")
    if config.model.block == "bottleneck" or (depth - 2) % 6:
        config.model.shortcut = "B"  # as in the authors' code for these networks
    config.optim.boundaries = (32_000, 48_000)
    if "followup" in options:
        config.optim.update(warmup_form="constant", warmup_steps=400)
    elif depth >= 110:
        config.optim.warmup_until_error = 0.8
    if depth > 110:
        config.model.scan_blocks = True
    config.augment.update(kind="pad_crop_flip", pca_noise=0.0)
    config.data.update(
        resident=True,
        image_size=32,
        normalization="per_pixel",
        validation_size=train_images // 10,
        test_split="test",
    )
    config.eval.update(batch_size=500, scales=(32,))
    if "goyal" in options:
        _goyal(config, steps_per_epoch=train_images / 128, epochs=164)
        config.optim.reference_batch = 128
    if "quick" in options:
        _quick(config)
    return config


def digits(arg: str = "", default: str = "resnet20") -> ConfigDict:
    """The CIFAR networks on scikit-learn's 8×8 digits: a run of about a minute on two cores.

    898 images want more regularisation than the paper's recipe has; `paper` asks for that one, with
    its schedule scaled to 600 steps.
    """
    tokens = list(filter(None, arg.split(",")))
    config = cifar(",".join(t for t in tokens if t != "paper"), default, train_images=898)
    config.dataset = "digits"
    config.augment.update(pad=1, flip=False)  # a mirrored digit is not that digit
    config.data.update(validation_size=0, image_size=8)
    config.eval.scales = (8,)
    if "quick" in tokens:
        return config
    scale_schedule(config, 600 / config.num_steps)
    config.update(log_every=20, eval_every=100, checkpoint_every=100)
    config.eval.update(batch_size=300, training_images=True)
    if not {"paper", "goyal"} & set(tokens):
        config.update(batch_size=64, num_steps=1_300)
        config.optim.update(
            schedule="cosine", weight_decay=1e-3, label_smoothing=0.1, ema_decay=0.99
        )
        config.augment.update(kind="random_resized_crop", area=(0.5, 1.0), mixup=0.3)
    return config


def scale_schedule(config: ConfigDict, factor: float) -> None:
    """Scales a run's length and with it every boundary and warm-up, in place."""
    config.num_steps = max(1, round(config.num_steps * factor))
    config.optim.boundaries = tuple(max(1, round(b * factor)) for b in config.optim.boundaries)
    config.optim.warmup_steps = round(config.optim.warmup_steps * factor)


def _goyal(config, *, steps_per_epoch, epochs):
    """Goyal et al. 2017, sections 2 and 5.1, on the network that `config` already describes."""
    residual = config.model.residual
    config.model.update(downsample_in="3x3", zero_init_residual=residual)
    config.num_steps = round(epochs * steps_per_epoch)
    config.optim.update(
        nesterov=True,
        momentum_form="torch",
        reference_batch=256,
        warmup_steps=round(5 * steps_per_epoch),
        warmup_until_error=0.0,
        boundaries=tuple(round(epochs * f * steps_per_epoch) for f in (1 / 3, 2 / 3, 8 / 9)),
    )


def _modern(config, *, batch_size, epochs, warmup_epochs):
    """What the recipes below have in common: length, warm-up, no Nesterov."""
    epoch = IMAGENET_TRAIN_IMAGES / batch_size
    config.update(batch_size=batch_size, num_steps=round(epochs * epoch))
    config.optim.update(nesterov=False, reference_batch=0, boundaries=())
    config.optim.warmup_steps = round(warmup_epochs * epoch)


def _lars(config):
    """MLPerf's reference for batches of 32,768, on the network and epochs of Goyal et al."""
    _modern(config, batch_size=32_768, epochs=90, warmup_epochs=25)
    config.optim.update(name="lars", learning_rate=31.2, reference_batch=32_768)
    config.optim.update(schedule="polynomial", label_smoothing=0.1)


def _rsb_a3(config):
    """Procedure A3 of "ResNet strikes back" (Wightman et al. 2021, table 2)."""
    _modern(config, batch_size=2_048, epochs=100, warmup_epochs=5)
    config.optim.update(name="lamb", learning_rate=8e-3, schedule="cosine", weight_decay=0.02)
    config.optim.update(epsilon=1e-6, loss="bce", bce_threshold=0.2)
    config.augment.update(policy="rand_augment", magnitude=6.0, mixup=0.1, cutmix=1.0)
    config.data.image_size = 160
    config.eval.update(image_size=224, resize=236)  # a share of 0.95


def _torchvision_v2(config):
    """The recipe of torchvision's second weights (IMAGENET1K_V2)."""
    _modern(config, batch_size=1_024, epochs=600, warmup_epochs=5)
    config.model.zero_init_residual = False
    config.optim.update(learning_rate=0.5, reference_batch=1_024, schedule="cosine")
    # There, every 32 steps with 1 − 2e-5 · 1024 · 32 / 600, which is this at every step.
    config.optim.update(weight_decay=2e-5, label_smoothing=0.1, ema_decay=0.999966)
    config.augment.update(policy="trivial_augment", mixup=0.2, cutmix=1.0, erase=0.1, repeats=4)
    config.data.image_size = 176
    config.eval.update(image_size=224, resize=232)


MODERN = {"lars": _lars, "rsb_a3": _rsb_a3, "torchvision_v2": _torchvision_v2}


def _quick(config):
    scale_schedule(config, 20 / config.num_steps)
    config.update(batch_size=16, log_every=5, eval_every=20, checkpoint_every=10)
    config.eval.batch_size = 16
