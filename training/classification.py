"""Classification, the first task: one label of each image (`training.task.Task`)."""

import logging
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

import models
from data import device_transforms, mixup
from data import facts as data_facts
from data.facts import Facts
from data.feed import Batch
from data.keys import Purpose, example_keys, key_for
from data.normalization import Normalization, normalize
from run.compare import differences
from run.mesh import positions
from run.workdir import Workdir
from testing import passes, precise_bn, scores
from testing.opened_run import OpenedRun

LOG = logging.getLogger("residual")
# What only detectors and localization do, and the value that switches it off.
off: dict[str, Any] = {
    "eval.refine_boxes": False,
    "detection.context": False,
    "detection.proposals_from": "",
}


def check(config: ConfigDict) -> None:
    """Raises UserError where the network cannot be built."""
    models.check(config.model)


def create(config: ConfigDict, facts: Facts) -> nn.Module:
    """The network for the classes of the data."""
    return models.create(config.model, facts.num_classes)


def init(model: nn.Module, key: jax.Array, image_shape: tuple[int, int, int]) -> Any:
    """Random variables of a network; `image_shape` is (height, width, channels)."""
    return model.init(key, jnp.zeros((1, *image_shape)), train=False)


def load(config: ConfigDict, facts: Facts, variables: Any, base: Any = None) -> Any:
    """`variables` with the weights of `config.init_from`; a head of other classes stays random.

    Raises:
      UserError: the weight file cannot be read or does not fit the network.
    """
    del base
    import weights  # readers of foreign files, which a run from scratch does without

    head = variables["params"]["head"]
    variables, notes = weights.load_weights(
        config.init_from, config.model, variables, replace_head=config.replace_head
    )
    for note in notes:
        LOG.info(note)
    if not check_labels(config, facts) and config.data.on_change != "accept":
        variables["params"]["head"] = head
        LOG.info("%s: its head, of other classes, is replaced by a new one.", config.init_from)
    return variables


def check_labels(config: ConfigDict, facts: Facts) -> bool:
    """Whether the classes of `config.init_from` are those of the data; True where it names none.

    Another program may have other words for the same classes: its names count where they are the
    data's in another order.

    Raises:
      UserError: they are not, and no new head is allowed.
    """
    import weights

    known = weights.conventions(config.init_from)
    names = known.label_names
    if not names or not (known.own or sorted(names) == sorted(facts.label_names)):
        return True
    there, here = ({"label_names": list(n)} for n in (names, facts.label_names))
    changes = differences(there, here, ("there", "in the data"))
    if not config.replace_head:
        what = "the weights are of other classes; replace_head=True trains a new head"
        data_facts.refuse_change(f"{config.init_from}: {what}", changes, config)
    return not changes


def learned(config: ConfigDict) -> None:
    """All parameters."""
    del config


def sums(config: ConfigDict) -> jax.Array:
    """No error yet."""
    del config
    return jnp.int32(0)


def prepare(
    config: ConfigDict,
    model: nn.Module,
    normalization: Normalization,
    step: jax.Array,
    batch: Batch,
) -> tuple[jax.Array, ...]:
    """Augmented, normalised images, soft targets, weights, labels and which images are valid."""
    augment, images = config.augment, batch["image"]
    keys = example_keys(key_for(config.seed, Purpose.AUGMENT, step), positions(len(images)))
    if augment.kind == "random_resized_crop" and config.data.resident:
        images = device_transforms.random_resized_crop(
            keys, images, area=augment.area, aspect=augment.aspect, flip=augment.flip
        )
    if augment.pca_noise:
        images = device_transforms.pca_noise(keys, images, std=augment.pca_noise)
    images = normalize(images, *normalization)
    if augment.kind == "pad_crop_flip":
        images = device_transforms.pad_crop_flip(keys, images, pad=augment.pad, flip=augment.flip)
    if augment.erase:
        images = mixup.random_erasing(keys, images, probability=augment.erase)
    targets = optax.smooth_labels(
        jax.nn.one_hot(batch["label"], model.num_classes), config.optim.label_smoothing
    )
    images, targets = mixup.mix(
        keys, images, targets, batch["valid"], mixup=augment.mixup, cutmix=augment.cutmix
    )
    return images, targets, batch["weight"], batch["label"], batch["valid"]


def loss(
    config: ConfigDict,
    model: nn.Module,
    variables: Any,
    part: tuple[jax.Array, ...],
    key: jax.Array,
) -> tuple[jax.Array, tuple[Any, jax.Array]]:
    """The loss of a part of the batch, the new BN averages, and the number of errors."""
    images, targets, weights, labels, valid = part
    (logits, _), updated = model.apply(
        variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key}
    )
    total = jnp.sum(weights * example_losses(config.optim, logits, targets))
    errors = jnp.sum(valid & (jnp.argmax(logits, -1) != labels))
    return total, (updated["batch_stats"], errors)


def example_losses(optim: ConfigDict, logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The loss of each image, [batch], for logits and soft targets [batch, classes].

    'softmax' is the cross entropy in nats; 'bce' the mean over the classes of one binary cross
    entropy each, for mixed images with every class above `bce_threshold` present as a whole
    (Wightman et al. 2021).
    """
    if optim.loss == "softmax":
        return optax.softmax_cross_entropy(logits, targets)
    if optim.bce_threshold:
        targets = (targets > optim.bce_threshold).astype(targets.dtype)
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean(axis=-1)


measure = scores.measure


def tested(config: ConfigDict, runs: Sequence[OpenedRun], data: Any, mesh: Mesh) -> dict[str, Any]:
    """What `config.eval` asks of opened runs, whose probabilities are averaged (section 4.1)."""
    split, views = config.eval.split, passes.of(config, data, runs)
    if config.eval.precise_bn:
        runs = [precise_bn.apply(one, config, data, mesh) for one in runs]
    networks = [scores.Network(one.model, one.variables, one.facts.normalization) for one in runs]
    result = scores.score(networks, views, mesh, total=data.split_size(split))
    return data.corrupt.beside(result, split) | {"accuracy": 1 - result["top1_error"]}


def conclude(
    result: dict[str, Any],
    model: nn.Module,
    variables: Any,
    data: Any,
    mesh: Mesh,
    folder: Workdir,
) -> dict[str, Any]:
    """What the last line of a run has besides."""
    del model, variables, data, mesh, folder
    return {"accuracy": 1 - result["top1_error"]}


def said(result: dict[str, Any]) -> str:
    """A result in words."""
    error, error5 = 100 * result["top1_error"], 100 * result["top5_error"]
    return (
        f"accuracy {100 - error:.2f} % (top-1 error {error:.2f} %, top-5 error {error5:.2f} %, "
        f"loss {result['loss']:.4f}, {result['images']} images)"
    )
