"""What a run knows of its data, and what the splits of a config stand for."""

import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from data.normalization import Normalization
from errors import UserError, first_line
from run.compare import differences
from run.workdir import Workdir, not_a_run

LOG = logging.getLogger("residual")
SPLITS = ("train", "validation", "test")


class Listing(NamedTuple):
    """What lies in a split, without reading an image of a large set.

    Attributes:
      split: the data set's own name for it.
      images: their number.
      digest: of the names, labels and sizes of its files, or of the pixels of a small set.
      contents: of the bytes of its files, where they are few (`data.sources`); '' elsewhere.
    """

    split: str
    images: int
    digest: str
    contents: str = ""

    def as_far_as(self, then: "Listing") -> "Listing":
        """Without the contents that `then` does not say: older code did not look at them."""
        return self if then.contents else self._replace(contents="")


class Facts(NamedTuple):
    """What a network must know of its training data; a run keeps it beside its weights.

    Attributes:
      dataset: as `config.dataset`.
      label_names: one per class, in the order of the labels.
      image_shape: height, width, channels of an image in testing.
      normalization: what images are normalised with.
      num_train: training images.
      splits: listing of each of `SPLITS`, where a run keeps them; runs of older code have none.
    """

    dataset: str
    label_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    normalization: Normalization
    num_train: int
    splits: Mapping[str, Listing] = MappingProxyType({})

    @property
    def num_classes(self) -> int:
        """Width of the head."""
        return len(self.label_names)

    def to_dict(self) -> dict[str, Any]:
        """The facts for JSON; `from_dict` is the inverse."""
        return {  # what says most of a change first
            "dataset": self.dataset,
            "label_names": list(self.label_names),
            "num_train": self.num_train,
            "splits": {name: listing._asdict() for name, listing in self.splits.items()},
            "image_shape": list(self.image_shape),
            "normalization": self.normalization.to_dict(),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Facts":
        """The inverse of `to_dict`.

        Raises:
          KeyError, TypeError, ValueError: a field is missing, unknown, or of another kind.
        """
        if unknown := sorted(set(fields) - set(cls._fields)):
            raise ValueError(f"unknown field {unknown[0]}")
        listings = fields.get("splits", {}).items()
        return cls(
            dataset=fields["dataset"],
            label_names=tuple(fields["label_names"]),
            image_shape=tuple(fields["image_shape"]),
            normalization=Normalization.from_dict(fields["normalization"]),
            num_train=fields["num_train"],
            splits={name: Listing(**listing) for name, listing in listings},
        )


def of_run(data: Any) -> Facts:
    """The facts of open data with the listing of every split, as a run keeps them."""
    return data.facts._replace(splits={name: data.listing(name) for name in SPLITS})


def read_facts(folder: Workdir) -> Facts:
    """What the run of a workdir knows of its data.

    Raises:
      UserError: data.json is missing or damaged.
    """
    try:
        return Facts.from_dict(folder.read_facts())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise not_a_run(folder.facts, first_line(error)) from error


def changes(then: Facts, now: Facts) -> list[str]:
    """What differs, as far as `then` says it: runs of older code list fewer facts."""
    known = {
        name: listing.as_far_as(then.splits[name])
        for name, listing in now.splits.items()
        if name in then.splits
    }
    now = now._replace(splits=known)
    return differences(then.to_dict(), now.to_dict(), ("then", "now"))


def refuse_change(what: str, changes: Sequence[str], config: ConfigDict) -> None:
    """Raises UserError when data have changed, or warns where `data.on_change` allows it."""
    if not changes:
        return
    said = f"{what} ({'; '.join(changes)})"
    if config.data.on_change != "accept":
        raise UserError(
            f"{said}. Put the data back as they were, or go on with these on purpose: "
            "data.on_change=accept."
        )
    LOG.warning("%s; data.on_change=accept goes on with them.", said)


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


def tested_size(config: ConfigDict) -> int:
    """Side of the crops in testing, of streamed data."""
    return config.eval.image_size or config.data.image_size


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
