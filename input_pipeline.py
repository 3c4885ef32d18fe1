"""From config to batches on devices: the only door to data.

Batch k of a run is a function of (seed, k) alone: on one, two or eight processes, with any number
of threads, after any number of restarts. So the position in the data *is* the step. Small sets live
on the devices and are drawn inside the compiled step (`data.resident`); large ones stream from disk
(`data.streamed`). Both give batches
`{'image': uint8 [batch, height, width, channels], 'label': int32 [batch], 'valid': bool [batch]}`.
"""

import typing

from jax.sharding import Mesh
from ml_collections import ConfigDict

from data.facts import tested_size
from errors import UserError
from run.mesh import make_mesh

if typing.TYPE_CHECKING:
    from data.resident import Resident
    from data.streamed import Streamed


def open_data(config: ConfigDict, mesh: Mesh) -> "Resident | Streamed":
    """The data of a config: `feed(step)` for training, `evaluation(split)` for testing, `facts`.

    Args:
      config: complete and checked (`training.check`).
      mesh: the devices that share a batch.

    Raises:
      UserError: the data set is unknown, not prepared, or has fewer images than a batch.
    """
    if config.task != "classification":
        from detection import data as of_objects

        return of_objects.open_data(config, mesh)
    if config.data.resident:
        if config.dataset.partition(":")[0] == "single_scenes":
            from detection.resident import SingleScenes

            return SingleScenes(config, mesh)
        from data.resident import Resident

        return Resident(config, mesh)
    from data.streamed import Streamed  # the decoders' imports are slow, so only when used

    return Streamed(config, mesh)


def classes_and_shape(config: ConfigDict) -> tuple[int, tuple[int, int, int]]:
    """Number of classes and shape of an image, to look at a network.

    Where the data are not there yet, it is said what is assumed instead.
    """
    try:
        facts = open_data(config, make_mesh()).facts
        return facts.num_classes, facts.image_shape
    except UserError as error:
        num_classes = 10 if config.model.stem == "cifar" else 1000
        shape = (*2 * (tested_size(config),), 3)
        print(f"{error}\nWithout the data, this assumes {num_classes} classes, {shape} images.\n")
        return num_classes, shape
