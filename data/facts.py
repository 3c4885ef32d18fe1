"""What a run knows of its data, and what the splits of a config stand for."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from data.normalization import Normalization
from errors import UserError


class Facts(NamedTuple):
    """What a network must know of its training data; a run keeps it beside its weights.

    Attributes:
      dataset: as `config.dataset`.
      label_names: one per class, in the order of the labels.
      image_shape: height, width, channels of a training image.
      normalization: what images are normalised with.
      num_train: training images.
    """

    dataset: str
    label_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    normalization: Normalization
    num_train: int

    @property
    def num_classes(self) -> int:
        """Width of the head."""
        return len(self.label_names)

    def to_dict(self) -> dict[str, Any]:
        """The facts for JSON; `from_dict` is the inverse."""
        return self._asdict() | {"normalization": self.normalization.to_dict()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Facts":
        """The inverse of `to_dict`.

        Raises:
          KeyError, TypeError, ValueError: a field is missing, or of another kind.
        """
        return cls(
            dataset=fields["dataset"],
            label_names=tuple(fields["label_names"]),
            image_shape=tuple(fields["image_shape"]),
            normalization=Normalization.from_dict(fields["normalization"]),
            num_train=fields["num_train"],
        )


def split_of(config: ConfigDict, split: str) -> tuple[str, bool]:
    """The data set's own split behind 'train', 'validation' or 'test'.

    Returns:
      `(name, is_cut)`: with `is_cut` the last `data.validation_size` images are for validation.
    """
    d = config.data
    if split == "test":
        return d.test_split, False
    if split == "validation" and d.validation_split:
        return d.validation_split, False
    return d.train_split, True


def training_share(config: ConfigDict, number: int) -> int:
    """How many of `number` training images are left when `data.validation_size` are held out.

    Raises:
      UserError: none would be left.
    """
    held_out = config.data.validation_size
    if not 0 <= held_out < number:
        raise UserError(
            f"data.validation_size={held_out}: expected 0 … {number - 1}, "
            f"since the training split has {number} images."
        )
    return number - held_out
