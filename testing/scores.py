"""Loss and error of one or several classifiers over a split, every image exactly once."""

import collections
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from data.feed import Feed
from errors import UserError
from run.mesh import DATA_AXIS, compiled_by_rows
from run.progress import tqdm
from testing import protocols

IN_FLIGHT = 2  # batches that the host may be ahead of the device


class Network(NamedTuple):
    """A module with its variables, and what its images are normalised with."""

    model: nn.Module
    variables: Any
    normalization: Any


def measure(
    model: nn.Module,
    variables: Any,
    data: Any,
    split: str,
    mesh: Mesh,
    stop: Callable[[], int] | None = None,
) -> dict[str, Any] | None:
    """Loss, top-1 and top-5 error over a split, single view.

    Args:
      model: a network of `models.create`.
      variables: its `params` and `batch_stats`.
      data: what `input_pipeline.open_data` returns.
      split: 'train', 'validation' or 'test'.
      mesh: the devices.
      stop: asked before each batch; what is not 0 ends testing without a result.

    Returns:
      `{'loss', 'top1_error', 'top5_error', 'images'}`: nats and fractions in [0, 1]; with corrupt
      records also `'masked_images'`, their number, and `'masked_records'`, their names. None when
      `stop` ended it.

    Raises:
      UserError: a record is corrupt, or too many are, as `config.data` says.
    """
    network = Network(model, variables, data.facts.normalization)
    result = score([network], [(protocols.CENTER, data.evaluation(split))], mesh, stop=stop)
    return result and data.corrupt.beside(result, split)


def score(
    networks: Sequence[Network],
    passes: Iterable[tuple[protocols.Protocol, Iterable[dict]]],
    mesh: Mesh,
    total: int | None = None,
    stop: Callable[[], int] | None = None,
) -> dict[str, Any] | None:
    """Tests networks together: their probabilities are averaged (section 4.1's ensembles).

    Args:
      passes: `(protocol, host batches)`, one or several; their images are counted together.
      total: number of images, for a progress bar; None shows none.
      stop: as in `measure`, whose values without the masked ones are returned.

    Raises:
      UserError: there is no valid image.
    """
    sums, in_flight = None, collections.deque()
    with tqdm(total=total, unit="image", disable=None if total else True) as bar:
        for protocol, batches in passes:
            for batch in Feed(batches, mesh):
                if stop and stop():
                    return None
                scores = [
                    _scores(n.model, protocol, mesh)(n.variables, n.normalization, batch["image"])
                    for n in networks
                ]
                part = _sums(mesh)(scores, batch["label"], batch["valid"])
                sums = part if sums is None else jax.tree.map(jnp.add, sums, part)
                # A whole split sent ahead fills queues: XLA:CPU's collectives then wait for ever.
                in_flight.append(sums)
                if len(in_flight) > IN_FLIGHT:
                    jax.block_until_ready(in_flight.popleft())
                bar.update(min(len(batch["label"]), (total or 0) - bar.n))
    loss, errors1, errors5, images = (x.item() for x in sums) if sums else (0, 0, 0, 0)
    if not images:
        raise UserError("there is no image to test on; choose another config.eval.split.")
    return {
        "loss": loss / images,
        "top1_error": errors1 / images,
        "top5_error": errors5 / images,
        "images": images,
    }


@functools.lru_cache(maxsize=128)
def _scores(model, protocol, mesh):
    def scores(variables, normalization, images):
        views = protocol.views(images, normalization)
        return protocols.log_probabilities(model, variables, views, protocol.averages_scores)

    return compiled_by_rows(scores, mesh)


@functools.lru_cache(maxsize=2)
def _sums(mesh):
    def sums(scores, labels, valid):
        mean = protocols.mean_log_probabilities(jnp.stack(scores))
        return jax.lax.psum(protocols.score_sums(mean, labels, valid), DATA_AXIS)

    return jax.jit(jax.shard_map(sums, mesh=mesh, in_specs=P(DATA_AXIS), out_specs=P()))
