"""Large sets from disk: decoded and cropped on the host's threads, fed two batches ahead."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from data import normalization, sources, stream
from data.corrupt import CorruptRecords, check_share
from data.facts import Facts, Listing, split_of, tested_size, training_share
from data.feed import Batch, Feed
from run.mesh import DATA_AXIS, whole_batch

NORMALIZATION_SAMPLE = 2_000  # images that the set's own statistics are taken from


class Streamed:
    """A large set: decoded and cropped on the host's threads (`data.stream`).

    Attributes:
      facts: what a network must know of the data.
      feed_spec: how `feed` lies on the mesh.
      corrupt: the records that were left out.
    """

    feed_spec = PartitionSpec(DATA_AXIS)

    def __init__(self, config: ConfigDict, mesh: Mesh):
        self._config, self._mesh = config, mesh
        self._whole: dict[str, sources.Source] = {}  # by the data set's names of splits
        self._sources: dict[str, sources.Source] = {}  # by ours
        self._start_step = 0
        self.corrupt = CorruptRecords(config.data.max_corrupt_fraction, self.split_size)
        train = self.source("train")
        size = tested_size(config)
        self.facts = Facts(
            dataset=config.dataset,
            label_names=tuple(train.label_names),
            image_shape=(size, size, 3),
            normalization=normalization.by_name(config.data.normalization, self._sample),
            num_train=len(train),
        )

    def open(self, name: str) -> sources.Source:
        """The records of a split of the data set."""
        c = self._config
        dataset = c.dataset if ":" in c.dataset else f"tfds:{c.dataset}"
        return sources.open_source(dataset, name, c.data_dir)

    def source(self, split: str) -> sources.Source:
        """Records of 'train', 'validation' or 'test': `len` and `[i]` → encoded image and label."""
        if split not in self._sources:
            c = self._config
            name, is_cut = split_of(c, split)
            if name not in self._whole:
                self._whole[name] = self.open(name)
            source = self._whole[name]
            if is_cut and (c.data.validation_size or split == "validation"):
                number = len(source)
                cut = training_share(c, number)
                # Folders are sorted by class, so the held-out images are drawn; the same ones for
                # every seed, as in a published split.
                order = np.random.default_rng(0).permutation(number)
                source = _Subset(source, np.sort(order[:cut] if split == "train" else order[cut:]))
            self._sources[split] = source
        return self._sources[split]

    def split_size(self, split: str) -> int:
        """Number of records in 'train', 'validation' or 'test'."""
        return len(self.source(split))

    def listing(self, split: str) -> Listing:
        """What lies in 'train', 'validation' or 'test'; no image is read."""
        source, (name, _) = self.source(split), split_of(self._config, split)
        if not len(source):
            return Listing(name, 0, "")
        return Listing(name, len(source), source.digest, source.contents)

    def feed(self, start_step: int) -> Feed:
        """Batches from `start_step` on, two transfers ahead."""
        self._start_step = start_step
        return Feed(self.corrupt.watch("train", self.train_batches(start_step)), self._mesh)

    def train_batches(self, start_step: int) -> Iterator[stream.HostBatch]:
        """This process's rows of the training batches from `start_step` on."""
        c = self._config
        used = ("kind", "flip", "area", "aspect", "resize_min", "resize_max", "policy", "magnitude")
        size = c.data.image_size
        transform = stream.train_transform(
            image_size=size,
            max_pixels=c.data.max_pixels,
            **{name: c.augment[name] for name in used},
        )
        return stream.train_stream(
            self.source("train"),
            transform,
            seed=c.seed,
            start_step=start_step,
            repeats=c.augment.repeats,
            image_shape=(size, size, 3),
            **self.host_options(c.batch_size),
        )

    def initial_order(self) -> tuple:
        """Nothing to carry: the host draws the order."""
        return ()

    def draw(self, order: tuple, step: jax.Array, batch: Batch) -> tuple[tuple, Batch]:
        """The batch as it came; a masked row shows a valid image, so that BN sees no black ones."""
        del step
        if self._config.data.on_corrupt == "mask":
            valid = batch["valid"]
            shown = jnp.where(valid, jnp.arange(len(valid)), jnp.argmax(valid))
            batch = batch | {"image": batch["image"][shown]}
        return order, batch

    def evaluation(self, split: str) -> Iterator[Batch]:
        """Host batches over a split, resized and center-cropped, the last one padded."""
        c = self._config
        size = tested_size(c)
        transform = stream.eval_transform(
            resize=max(size, c.eval.resize), image_size=size, max_pixels=c.data.max_pixels
        )
        return self.evaluation_with(split, transform, self.facts.image_shape)

    def evaluation_with(
        self,
        split: str,
        transform: stream.EvalTransform,
        shape: Sequence[int],
        indices: np.ndarray | None = None,
        smaller: int = 1,
    ) -> Iterator[Batch]:
        """The same with another transform, bytes → uint8 `shape`, over all or some records.

        Batches are `smaller` times smaller than `eval.batch_size`, as far as the devices allow.
        """
        source = self.source(split)
        size = max(1, self._config.eval.batch_size // smaller)
        batches = stream.eval_stream(
            source if indices is None else _Subset(source, indices),
            transform,
            image_shape=tuple(shape),
            **self.host_options(whole_batch(size, self._mesh)),
        )
        return self.corrupt.watch(split, batches)

    def masked_in_training(self, first: int, last: int) -> list[str]:
        """Names of the corrupt records in training batches `first` … `last` − 1, on any process.

        Every process makes the same calls, with increasing steps.
        """
        # A run that continues inside this range has not met the batches before its start.
        number = max(0, min(last, self._start_step) - first)
        missed = itertools.islice(self.train_batches(first), number)
        return self.corrupt.of_steps(first, last, missed)

    def host_options(self, batch_size: int) -> dict[str, Any]:
        """What `stream.batches` needs to know of this process and the config."""
        d = self._config.data
        return {
            "batch_size": batch_size,
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
            "num_threads": d.num_threads,
            "prefetch": d.prefetch,
            "on_corrupt": d.on_corrupt,
        }

    def _sample(self) -> np.ndarray:
        """Training images, for statistics: the same on every process."""
        train, d = self.source("train"), self._config.data
        size = d.image_size
        every = max(1, len(train) // NORMALIZATION_SAMPLE)
        sample = _Subset(train, np.arange(0, len(train), every)[:NORMALIZATION_SAMPLE])
        batches = stream.eval_stream(
            sample,
            stream.eval_transform(resize=size, image_size=size, max_pixels=d.max_pixels),
            image_shape=(size, size, 3),
            **self.host_options(len(sample)) | {"process_index": 0, "process_count": 1},
        )
        batch = next(iter(batches))
        check_share(batch.corrupt, len(sample), d.max_corrupt_fraction)
        return batch.arrays["image"][batch.arrays["valid"]]


class _Subset:
    """Some records of a source, in the order of `indices`."""

    def __init__(self, source: sources.Source, indices: np.ndarray):
        self._source, self._indices = source, indices
        self.label_names = source.label_names

    @property
    def digest(self) -> str:
        """That of all records: which of them these are follows from the config."""
        return self._source.digest

    @property
    def contents(self) -> str:
        """That of all records."""
        return self._source.contents

    @property
    def names(self) -> list[str]:
        """Those of an image folder."""
        names = cast(Any, self._source).names
        return [names[i] for i in self._indices]

    @property
    def shapes(self) -> np.ndarray:
        """Those of annotated images (`detection.annotated`)."""
        return cast(Any, self._source).shapes[self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, i: int) -> sources.Record:
        return self._source[int(self._indices[i])]
