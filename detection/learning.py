"""What learning to detect and learning to segment share: the backbone, and sums of losses."""

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from data.facts import Facts
from data.feed import Batch, Feed
from data.keys import Purpose, example_keys, key_for
from data.normalization import Normalization, normalize
from detection import draw
from detection.images import MULTIPLE
from detection.losses import Loss
from detection.losses import learned as learned_of
from errors import UserError
from models.padded import inside
from models.scanned import stack_blocks, unstack_blocks
from run import files
from run.mesh import DATA_AXIS, compiled_by_rows, local_rows, positions
from run.progress import tqdm
from run.workdir import Workdir

LOG = logging.getLogger("residual")


def load(config: ConfigDict, facts: Facts, variables: Any, base: Any = None) -> Any:
    """`variables` with the weights of `config.init_from`: a detector's, or a classifier's.

    Of a classifier the backbone is taken, and the rest stays random.

    Raises:
      UserError: the file cannot be read, or does not fit the network or the classes; or it is a
        classifier's, and `variables` are only shapes.
    """
    del base
    import weights  # readers of foreign files

    path, normalization = config.init_from, config.data.normalization
    if normalization != "imagenet":
        raise UserError(
            f"{path}: its images are normalised with {normalization}'s constants; expected weights "
            "of torchvision's or timm's, since detectors and segmenters here take imagenet's."
        )
    file = weights.opened(path)
    if found := weights.detector(file):
        count = found.fields["num_classes"]
        other = count != facts.num_classes and f"{count} classes with the background"
        if found.label_names and tuple(found.label_names) != facts.label_names:
            other = f"other classes ({', '.join(found.label_names)})"
        if other:
            raise UserError(
                f"{path}: its heads are of {other}; {facts.dataset} has {facts.num_classes} "
                f"({', '.join(facts.label_names[:5])}, …). Give the weights of a classifier, whose "
                "backbone is taken, or of a network of these classes."
            )
        d = config.detection
        network = f"the network here (detection.network={d.network}, detection.masks={d.masks}, "
        network += f"model.depth={config.model.depth})"
        template = jax.eval_shape(unstack_blocks, variables)
        loaded = weights.load_detector(found, template, network)
        return stack_blocks(loaded) if config.model.scan_blocks else loaded
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(variables)):
        raise UserError(
            f"{path}: holds no detector or segmenter that could be tested; give the weights of one."
        )
    template = {kind: tree["backbone"] for kind, tree in variables.items()}
    backbone, notes = weights.load_weights(file, config.model, template)
    for note in notes:
        LOG.info(note)
    LOG.info("%s: its backbone is taken; what detects begins with random weights.", path)
    return {kind: tree | {"backbone": backbone[kind]} for kind, tree in variables.items()}


def learned(config: ConfigDict) -> Callable[[Any], Any]:
    """Which parameters change: all, or those beyond the frozen stages and normalisation."""
    frozen = config.detection.frozen_stages, config.model.frozen_bn

    def which(params: Any) -> Any:
        return learned_of(params, *frozen)

    return which


def shown(batch: Batch, normalization: Normalization) -> tuple[jax.Array, jax.Array]:
    """Images as the network takes them, zeros beyond each, and their sizes: 0 of invalid ones."""
    sizes = jnp.where(batch["valid"][:, None], batch["size"], 0)
    return cut(normalize(batch["image"], *normalization), sizes), sizes


def prepared(
    config: ConfigDict, normalization: Normalization, step: jax.Array, batch: Batch
) -> Batch:
    """Normalised `images`, their `sizes` (0 of an invalid one), and a key of each (`keys`)."""
    images, sizes = shown(batch, normalization)
    keys = example_keys(key_for(config.seed, Purpose.SAMPLE, step), positions(len(images)))
    return {"images": images, "sizes": sizes, "keys": keys}


def cut(images: jax.Array, sizes: jax.Array) -> jax.Array:
    """Images `[batch, height, width, 3]` with zeros beyond their own sizes, int32 `[batch, 2]`."""
    return jnp.where(inside(images.shape[1:3], sizes.T)[..., None], images, 0)


def padded(images: jax.Array, sizes: jax.Array, whole: bool = False) -> jax.Array:
    """Sizes with the zeros that count as part of an image: up to 32 pixels, or the `whole` array.

    Statistics of a batch are of whole arrays. Of an invalid image there is nothing else.
    """
    canvas = jnp.array(images.shape[1:3], jnp.int32)[None]
    return jnp.where(whole | (sizes == 0), canvas, -(-sizes // MULTIPLE) * MULTIPLE)


def kept(config: ConfigDict, variables: Any) -> Any:
    """Variables whose frozen parameters have no gradient."""
    params = jax.tree.map(
        lambda changes, x: x if changes else jax.lax.stop_gradient(x),
        learned(config)(variables["params"]),
        variables["params"],
    )
    return variables | {"params": params}


def added(
    config: ConfigDict, found: Mapping[str, Loss], sizes: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A device's share of the loss, and of the sums over images of its parts.

    Args:
      found: sum and count of each part of the loss on this device.
      sizes: of the device's images, int32 `[batch, 2]`; 0 of invalid ones.
    """
    counts = jax.lax.psum({name: count for name, (_, count) in found.items()}, DATA_AXIS)
    turns = config.optim.accumulate_steps
    shares = {n: value / jnp.maximum(counts[n], 1) / turns for n, (value, _) in found.items()}
    images = jax.lax.psum((sizes > 0).all(1).sum(), DATA_AXIS) * turns
    return sum(shares.values()), {name: images * share for name, share in shares.items()}


def outputs(
    apply: Callable[..., Any],
    variables: Any,
    normalization: Normalization,
    batches: Iterator[Batch],
    mesh: Mesh,
    total: int,
) -> Iterator[list[tuple[int, np.ndarray, np.ndarray, Any]]]:
    """What a network says of images that are this process's, batch by batch.

    Args:
      apply: `(variables, images, sizes, batch) → tree` of arrays whose first axis is the images.
      normalization: of the images.
      batches: of `data.evaluation`.
      total: number of images, for a progress bar.

    Yields:
      Of each valid image its index, the size that the network was shown, the original one, and what
      the network says.
    """
    compiled = _compiled(apply, mesh)
    with tqdm(total=total, unit="image", disable=None, leave=False) as bar:
        for batch in Feed(batches, mesh):
            names = ("index", "size", "original", "valid")
            found = compiled(variables, normalization, batch)
            *about, valid, found = local_rows((*(batch[name] for name in names), found))
            yield [
                (
                    int(about[0][i]),
                    about[1][i],
                    about[2][i],
                    jax.tree.map(lambda x, i=i: x[i], found),
                )
                for i in np.flatnonzero(valid)
            ]
            bar.update(min(len(batch["valid"]), total - bar.n))


@functools.lru_cache(maxsize=8)
def _compiled(apply, mesh):
    def find(variables, normalization, batch):
        return apply(variables, *shown(batch, normalization), batch)

    return compiled_by_rows(find, mesh)


def draw_first(
    found: Mapping[int, Any], draw_one: Callable[..., Image.Image], data: Any, folder: Workdir
) -> None:
    """Draws what is found in the first test images of this process into the workdir.

    Args:
      found: by index.
      draw_one: makes a picture of an image and what is found in it.
    """
    if jax.process_index() > 0 or not found:
        return
    annotated = data.annotated("test")
    first = [(annotated[i], found[i]) for i in sorted(found)[: draw.TILES]]
    pictures = [
        draw_one(image() if callable(image := one.image) else image, what) for one, what in first
    ]
    path = folder.detections
    with files.explained(path, "free space"), files.whole(path) as temporary:
        draw.sheet(pictures).save(temporary, "png")
    LOG.info("%s shows what is found in the first test images.", path)
