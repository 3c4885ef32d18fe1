"""From a config to annotated images on devices: the data of detectors and segmenters."""

from jax.sharding import Mesh
from ml_collections import ConfigDict

from detection.resident import ResidentScenes
from errors import UserError


def open_data(config: ConfigDict, mesh: Mesh) -> ResidentScenes:
    """The data of a config whose task is detection or segmentation.

    Args:
      config: complete and checked; `dataset` is `scenes` or `scenes:SET`.
      mesh: the devices that share a batch.

    Raises:
      UserError: the data set is unknown, not prepared, or has fewer images than a batch.
    """
    kind, _, _ = config.dataset.partition(":")
    if kind == "scenes":
        return ResidentScenes(config, mesh)
    raise UserError(f"dataset={config.dataset!r}: expected scenes or scenes:SET to detect objects.")
