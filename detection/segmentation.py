"""Semantic segmentation on a dilated backbone: FCN (Long et al. 2015) and DeepLabV3 (Chen et al.).

The heads are torchvision's, which differ from the papers' in having batch normalisation.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from detection.layers import Layer
from detection.resize import resized_batch
from models.ops.conv import conv
from models.padded import OwnSizes
from models.resnet import ResNet

RATES = (12, 24, 36)  # of DeepLabV3's dilated convolutions at output stride 8


class FCNHead(nn.Module):
    """3×3 to a quarter of the channels, and a score of every class."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Array, own: OwnSizes) -> Array:
        """Maps `[batch, height, width, channels]` to `[batch, height, width, classes]`."""
        x = Layer(x.shape[-1] // 4, 3, name="hidden")(x)
        return conv(self.num_classes, 1, use_bias=True, name="logits")(x)


class DeepLabHead(nn.Module):
    """Convolutions of several rates beside the mean over the image, and two more layers."""

    num_classes: int
    width: int = 256

    @nn.compact
    def __call__(self, x: Array, own: OwnSizes) -> Array:
        """Maps `[batch, height, width, channels]` to `[batch, height, width, classes]`."""
        here = own.inside(x)
        mean = jnp.where(here, x, 0).sum((1, 2), keepdims=True) / here.sum((1, 2), keepdims=True)
        branches = [Layer(self.width, 1, name="branch1")(x)]
        for i, rate in enumerate(RATES, start=2):
            branches.append(Layer(self.width, 3, rate, name=f"branch{i}")(x))
        pooled = Layer(self.width, 1, name="pooled")(mean)
        branches.append(jnp.broadcast_to(pooled, branches[0].shape))
        x = Layer(self.width, 1, name="project")(jnp.concatenate(branches, -1))
        x = Layer(self.width, 3, name="last")(x)
        return conv(self.num_classes, 1, use_bias=True, name="logits")(x)


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

    @nn.compact
    def __call__(self, images: Array, sizes: Array) -> Array:
        """Scores images of any sizes, each as if it were alone.

        Args:
          images: normalised `[batch, height, width, 3]`, each in the upper left corner.
          sizes: their own heights and widths, int32 `[batch, 2]`.

        Returns:
          logits, float32 `[batch, height, width, classes]`; beyond an image they mean nothing.
        """
        own = OwnSizes(self.backbone, images.shape[1:3], sizes)
        with own.respected():
            _, endpoints = self.backbone(images, train=False)
            if self.atrous:
                head: nn.Module = DeepLabHead(self.num_classes, self.width, name="classifier")
            else:
                head = FCNHead(self.num_classes, name="classifier")
            logits = head(endpoints["stage4"], own)
            if self.auxiliary and self.is_initializing():
                FCNHead(self.num_classes, name="aux_classifier")(endpoints["stage3"], own)
        return resized_batch(logits, own.of(logits), images.shape[1:3], sizes)
