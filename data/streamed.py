"""Large sets from disk: decoded and cropped on the host's threads, fed two batches ahead."""

import itertools
import logging

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from data import sources, stream
from data.device_transforms import CONSTANTS
from input_pipeline import (
    DATA_AXIS,
    Facts,
    Feed,
    checked_validation_size,
    normalization_for,
    split_of,
)
from run import processes

LOG = logging.getLogger("residual")
NORMALIZATION_SAMPLE = 2_000  # images that the set's own statistics are taken from


class Streamed:
    """A large set: decoded and cropped on the host's threads (`data.stream`)."""

    feed_spec = PartitionSpec(DATA_AXIS)

    def __init__(self, config, mesh):
        self._config = config
        self._mesh = mesh
        self._sources = {}
        self._corrupt = {}  # split → names met by this process
        self._corrupt_in_batch = {}  # training step → names
        self._start_step = 0
        train = self.source("train")
        size = config.data.image_size
        self.facts = Facts(
            dataset=config.dataset,
            label_names=tuple(train.label_names),
            image_shape=(size, size, 3),
            normalization=self._normalization(train),
            num_train=len(train),
        )

    def source(self, split):
        """Records of 'train', 'validation' or 'test': `len` and `[i]` → encoded image and label."""
        if split not in self._sources:
            c = self._config
            name, is_cut = split_of(c, split)
            dataset = c.dataset if ":" in c.dataset else f"tfds:{c.dataset}"
            source = sources.open_source(dataset, name, c.data_dir)
            if is_cut and c.data.validation_size:
                number = len(source)
                cut = number - checked_validation_size(c.data.validation_size, number)
                # Folders are sorted by class, so the held-out images are drawn; the same ones for
                # every seed, as in a published split.
                order = np.random.default_rng(0).permutation(number)
                source = _Subset(source, np.sort(order[:cut] if split == "train" else order[cut:]))
            elif is_cut and split == "validation":
                source = _Subset(source, np.arange(0))
            self._sources[split] = source
        return self._sources[split]

    def split_size(self, split):
        """Number of records in 'train', 'validation' or 'test'."""
        return len(self.source(split))

    def feed(self, start_step):
        """Batches from `start_step` on, two transfers ahead."""
        self._start_step = start_step
        return Feed(self._reported(self._train_batches(start_step), "train"), self._mesh)

    def _train_batches(self, start_step):
        c, a = self._config, self._config.augment
        transform = stream.train_transform(
            kind=a.kind,
            image_size=c.data.image_size,
            flip=a.flip,
            area=a.area,
            aspect=a.aspect,
            resize_min=a.resize_min,
            resize_max=a.resize_max,
        )
        return stream.train_stream(
            self.source("train"),
            transform,
            seed=c.seed,
            batch_size=c.batch_size,
            start_step=start_step,
            **self._host_options(self.facts.image_shape),
        )

    def initial_order(self):
        """Nothing to carry: the host draws the order."""
        return ()

    def draw(self, order, step, batch):
        """The batch as it came; a masked row shows a valid image, so that BN sees no black ones."""
        del step
        if self._config.data.on_corrupt == "mask":
            valid = batch["valid"]
            shown = jnp.where(valid, jnp.arange(len(valid)), jnp.argmax(valid))
            batch = batch | {"image": batch["image"][shown]}
        return order, batch

    def evaluation(self, split):
        """Host batches over a split, resized and center-cropped, the last one padded."""
        c = self._config
        size = c.data.image_size
        transform = stream.eval_transform(resize=max(size, c.eval.resize), image_size=size)
        return self.evaluation_with(split, transform, self.facts.image_shape)

    def evaluation_with(self, split, transform, shape, indices=None):
        """The same with another transform, bytes → uint8 `shape`, over all or some records."""
        source = self.source(split)
        batches = stream.eval_stream(
            source if indices is None else _Subset(source, indices),
            transform,
            batch_size=self._config.eval.batch_size,
            **self._host_options(shape),
        )
        return self._reported(batches, split)

    def masked_in_training(self, first, last):
        """Names of the corrupt records in training batches `first` … `last` − 1, on any process.

        Every process makes the same calls, with increasing steps.
        """
        # A run that continues inside this range has not met the batches before its start.
        missed = max(0, min(last, self._start_step) - first)
        for batch in itertools.islice(self._train_batches(first), missed):
            self._corrupt_in_batch[batch.step] = batch.corrupt
        steps = range(first, last)
        return processes.gathered(n for s in steps for n in self._corrupt_in_batch.pop(s, ()))

    def masked_in_evaluation(self, split):
        """Names of the corrupt records that testing on `split` met, on any process.

        Raises:
          UserError: more than `data.max_corrupt_fraction` of its records.
        """
        names = processes.gathered(self._corrupt.get(split, ()))
        self.check_share(split, names)
        return names

    def check_share(self, split, names):
        """Raises UserError when more than `data.max_corrupt_fraction` of a split is corrupt."""
        stream.check_share(names, self.split_size(split), self._config.data.max_corrupt_fraction)

    def _host_options(self, shape):
        d = self._config.data
        return {
            "image_shape": tuple(shape),
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
            "num_threads": d.num_threads,
            "prefetch": d.prefetch,
            "on_corrupt": d.on_corrupt,
            "max_corrupt_fraction": d.max_corrupt_fraction,
        }

    def _reported(self, batches, split):
        known = self._corrupt.setdefault(split, set())
        for batch in batches:
            for name in sorted(set(batch.corrupt) - known):
                LOG.warning("Corrupt record, masked: %s", name)
            known.update(batch.corrupt)
            if batch.corrupt and split == "train":
                self._corrupt_in_batch[batch.step] = batch.corrupt
            yield batch.arrays

    def _normalization(self, train):
        if self._config.data.normalization in CONSTANTS:
            return normalization_for(self._config, None)
        size = self._config.data.image_size
        every = max(1, len(train) // NORMALIZATION_SAMPLE)
        sample = _Subset(train, np.arange(0, len(train), every)[:NORMALIZATION_SAMPLE])
        batches = stream.eval_stream(
            sample,
            stream.eval_transform(resize=size, image_size=size),
            batch_size=len(sample),
            **self._host_options((size, size, 3)) | {"process_index": 0, "process_count": 1},
        )
        arrays = next(iter(batches)).arrays
        return normalization_for(self._config, arrays["image"][arrays["valid"]])


class _Subset:
    """Some records of a source, in the order of `indices`."""

    def __init__(self, source, indices):
        self._source, self._indices = source, indices
        self.label_names = source.label_names

    def __len__(self):
        return len(self._indices)

    def __getitem__(self, i):
        return self._source[int(self._indices[i])]
