"""Semantic segmentation on a dilated backbone: FCN (Long et al. 2015) and DeepLabV3 (Chen et al.).

The heads are torchvision's, which differ from the papers' in having batch normalisation.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from detection.layers import Layer, dropped
from detection.losses import Loss, pixel_losses
from detection.resize import resized_batch
from models.ops.conv import conv
from models.padded import OwnSizes
from models.resnet import ResNet

RATES = (12, 24, 36)  # of DeepLabV3's dilated convolutions at output stride 8
AUXILIARY = 0.5  # share of the auxiliary head in the loss, torchvision's


class FCNHead(nn.Module):
    """3×3 to a quarter of the channels, and a score of every class."""

    num_classes: int

    @nn.compact
    def __call__(
        self, x: Array, own: OwnSizes, train: bool = False, keys: Array | None = None
    ) -> Array:
        """Maps `[batch, height, width, channels]` to `[batch, height, width, classes]`.

        `train` is of the BN (`Layer`'s), `keys` `[batch]` are of dropout.
        """
        x = dropped(Layer(x.shape[-1] // 4, 3, name="hidden")(x, train), keys, 0.1)
        return _logits(self.num_classes)(x)


class DeepLabHead(nn.Module):
    """Convolutions of several rates beside the mean over the image, and two more layers."""

    num_classes: int
    width: int = 256

    @nn.compact
    def __call__(
        self, x: Array, own: OwnSizes, train: bool = False, keys: Array | None = None
    ) -> Array:
        """As `FCNHead`."""
        here = own.inside(x)
        mean = jnp.where(here, x, 0).sum((1, 2), keepdims=True) / here.sum((1, 2), keepdims=True)
        branches = [Layer(self.width, 1, name="branch1")(x, train)]
        for i, rate in enumerate(RATES, start=2):
            branches.append(Layer(self.width, 3, rate, name=f"branch{i}")(x, train))
        pooled = Layer(self.width, 1, name="pooled")(mean, train)
        branches.append(jnp.broadcast_to(pooled, branches[0].shape))
        x = Layer(self.width, 1, name="project")(jnp.concatenate(branches, -1), train)
        x = Layer(self.width, 3, name="last")(dropped(x, keys, 0.5), train)
        return _logits(self.num_classes)(x)


def _logits(num_classes):
    """The last layer of a head, with torchvision's initial weights: within ±1/√channels.

    With much smaller ones nearly no gradient of which class a pixel has reaches the layers before,
    which then learn from object or background alone.
    """
    uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    return conv(num_classes, 1, use_bias=True, kernel_init=uniform, name="logits")


class Segmenter(nn.Module):
    """A score of every class at every pixel.

    Attributes:
      backbone: a `ResNet` without a head, usually of output stride 8.
      num_classes: with the background.
      atrous: DeepLabV3's head instead of FCN's.
      width: channels of DeepLabV3's layers.
      auxiliary: has a second FCN head, on stage 3, which only training uses.
    """

    backbone: ResNet
    num_classes: int
    atrous: bool = False
    width: int = 256
    auxiliary: bool = False

    def setup(self) -> None:
        """Makes the heads."""
        head = DeepLabHead(self.num_classes, self.width) if self.atrous else None
        self.classifier = head or FCNHead(self.num_classes)
        if self.auxiliary:
            self.aux_classifier = FCNHead(self.num_classes)

    def __call__(self, images: Array, sizes: Array) -> Array:
        """Scores images of any sizes, each as if it were alone.

        Args:
          images: normalised `[batch, height, width, 3]`, each in the upper left corner.
          sizes: their own heights and widths, int32 `[batch, 2]`.

        Returns:
          logits, float32 `[batch, height, width, classes]`; beyond an image they mean nothing.
        """
        return self._scores(images, sizes, self.is_initializing())[0]

    def losses(
        self, images: Array, sizes: Array, targets: Array, keys: Array | None = None
    ) -> dict[str, Loss]:
        """The training losses of a batch, each as its sum and its count.

        A loss is the sum over the count, both added up over all devices before they are divided.
        The auxiliary head's counts half. Batch normalisation is the backbone's: `frozen_bn`, or
        statistics of the batch; with these, `sizes` should be the array's for all images.

        Args:
          images, sizes: as for scoring; an image of size 0 counts 0.
          targets: int `[batch, height, width]`, classes, or 255 where there is none.
          keys: one of each image, `[batch]`, for dropout; None: nothing is dropped.
        """
        whole = jnp.array([images.shape[1:3]], sizes.dtype)
        shown = jnp.where((sizes > 0).all(1, keepdims=True), sizes, whole)
        train = {"train": True, "keys": keys}
        scores = self._scores(images, shown, self.auxiliary, **train)
        found = [pixel_losses(logits, targets, sizes) for logits in scores]
        names, shares = ("loss_pixels", "loss_auxiliary"), (1.0, AUXILIARY)
        return {
            name: (share * total, count)
            for name, share, (total, count) in zip(names, shares, found, strict=False)
        }

    def _scores(self, images, sizes, auxiliary, train=False, keys=None):
        """The logits, and those of the auxiliary head if there is one and they are wanted."""
        own = OwnSizes(self.backbone, images.shape[1:3], sizes)
        both = None if keys is None else jax.vmap(jax.random.split, out_axes=1)(keys)
        heads = [(self.classifier, "stage4")]
        if self.auxiliary and auxiliary:
            heads.append((self.aux_classifier, "stage3"))
        bn = train and not self.backbone.frozen_bn
        with own.respected():
            _, endpoints = self.backbone(images, train=train)
            scores = [
                head(endpoints[stage], own, bn, None if both is None else both[i])
                for i, (head, stage) in enumerate(heads)
            ]
        return [resized_batch(x, own.of(x), images.shape[1:3], sizes) for x in scores]
