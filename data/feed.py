"""Host batches on their way to the devices."""

import collections
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Batch = dict[str, Any]
DEPTH = 2  # transfers that are under way


class Feed:
    """Places host batches on the devices, `DEPTH` transfers ahead.

    `wait_seconds` is the time that the loop has waited for the host so far.
    """

    def __init__(self, host_batches: Iterable[Batch], mesh: Mesh):
        self._host = iter(host_batches)
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._queue: collections.deque[Batch] = collections.deque()
        self.wait_seconds = 0.0

    def __iter__(self) -> "Feed":
        return self

    def __next__(self) -> Batch:
        while len(self._queue) < DEPTH:
            start = time.perf_counter()
            try:
                batch = next(self._host)
            except StopIteration:
                break
            finally:
                self.wait_seconds += time.perf_counter() - start
            self._queue.append(
                {
                    name: jax.make_array_from_process_local_data(self._sharding, array)
                    for name, array in batch.items()
                }
            )
        if not self._queue:
            raise StopIteration
        return self._queue.popleft()


class ConstantFeed:
    """A feed that is the same at every step and never waits."""

    wait_seconds = 0.0

    def __init__(self, value: Batch):
        self._value = value

    def __next__(self) -> Batch:
        return self._value


def padded_batches(arrays: Batch, batch_size: int) -> Iterator[Batch]:
    """This process's part of each batch; the last batch is filled with `valid = False`.

    Args:
      arrays: host arrays with a row for each image.
      batch_size: of the global batch.
    """
    local = batch_size // jax.process_count()
    for start in range(0, len(next(iter(arrays.values()))), batch_size):
        first = start + jax.process_index() * local
        part = {
            name: array[first : min(first + local, start + batch_size)]
            for name, array in arrays.items()
        }
        missing = local - len(next(iter(part.values())))
        yield {
            name: np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
            for name, array in part.items()
        } | {"valid": np.arange(local) < local - missing}
