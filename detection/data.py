"""From a config to annotated images on devices: the data of detectors and segmenters."""

from jax.sharding import Mesh
from ml_collections import ConfigDict

from detection.resident import ResidentScenes
from detection.scenes import KINDS
from detection.streamed import StreamedObjects


def open_data(config: ConfigDict, mesh: Mesh) -> ResidentScenes | StreamedObjects:
    """The data of a config whose task is not classification.

    Args:
      config: complete and checked; `dataset` is `scenes` or `single_scenes`, also with
        `:SET`, `coco:FOLDER`, `voc:FOLDER`, `tfds:NAME` of a set with objects, or `folder:PATH` of
        one with ILSVRC's boxes.
      mesh: the devices that share a batch.

    Raises:
      UserError: the data set is unknown, not prepared, damaged, or has fewer images than a batch.
    """
    kind, _, _ = config.dataset.partition(":")
    return (ResidentScenes if kind in KINDS else StreamedObjects)(config, mesh)
