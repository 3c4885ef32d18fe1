"""Exact ("precise") BN statistics: averages over training images instead of running averages.

The authors' released models carry such averages, computed after training.
"""

import functools
import logging
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from data.normalization import normalize
from errors import UserError, first_line
from models.ops.norm import BN_MOMENTUM
from run import files
from run.checkpoint import fill, flatten
from run.mesh import DATA_AXIS, to_host
from run.progress import tqdm
from run.workdir import Workdir
from testing.opened_run import OpenedRun

LOG = logging.getLogger("residual")


def apply(run: OpenedRun, config: ConfigDict, data: Any, mesh: Mesh) -> OpenedRun:
    """An opened run whose `batch_stats` are precise ones.

    They are read from the workdir when they were stored for the same run, step and number of
    batches; else computed, and stored with `config.eval.store_precise_bn`.

    Raises:
      UserError: the network never updates its statistics, or the file cannot be written.
    """
    if run.model.frozen_bn:
        raise UserError(
            f"{run.workdir}: model.frozen_bn=True keeps its statistics; eval.precise_bn "
            "cannot replace them."
        )
    batches = config.eval.precise_bn_batches
    folder = Workdir(run.workdir)
    stats = _read(folder, run, batches)
    if stats is None:
        stats = statistics(run.model, run.variables, run.facts.normalization, data, batches, mesh)
        if config.eval.store_precise_bn and jax.process_index() == 0:
            _write(folder, stats, run.step, batches)
    return run._replace(variables={**run.variables, "batch_stats": stats})


def statistics(
    model: nn.Module,
    variables: Any,
    normalization: Any,
    data: Any,
    batches: int,
    mesh: Mesh,
) -> Any:
    """Mean and variance of every BN layer over `batches` training batches.

    Each batch (of `model.bn_group_size`, if that is fewer) is normalised by its own statistics, as
    in training; a layer's mean is the mean over batches (and devices), its variance that of all
    their images together: E[x²] − E[x]².

    Args:
      model, variables, normalization: the network.
      data: what `input_pipeline.open_data` returns; the batches are those of training, without the
        augmentation that happens on the device.
      batches: number of batches of the training batch size.
      mesh: the devices.

    Returns:
      `batch_stats` as NumPy arrays.
    """
    step = _moments(model, data, mesh)
    feed, order = data.feed(0), jax.tree.map(np.asarray, data.initial_order())
    sums = None
    for i in tqdm(range(batches), desc="precise BN", unit="batch", disable=None):
        order, moments = step(variables, normalization, order, i, next(feed))
        sums = moments if sums is None else jax.tree.map(jnp.add, sums, moments)
    means = to_host(jax.tree.map(lambda x: x / batches, sums))
    return _map_layers(
        lambda layer: {
            "mean": layer["mean"],
            "var": np.maximum(layer["var"] - np.square(layer["mean"]), 0),
        },
        means,
    )


def _moments(model, data, mesh):
    """Compiled `(variables, …, batch) → (order, {mean: E[x], var: E[x²]} per layer)`."""
    group = 0 if model.sync_bn else model.bn_group_size
    model = model.clone(sync_bn=False, bn_group_size=0)

    def moments(variables, normalization, order, step, feed):
        order, batch = data.draw(order, step, feed)
        images = normalize(batch["image"], *normalization)
        of_images = functools.partial(moments_of, variables)
        if whole := len(images) // group if group else 0:
            groups = images[: whole * group].reshape(whole, group, *images.shape[1:])
            both = jax.tree.map(lambda x: x.mean(0), jax.lax.map(of_images, groups))
        else:
            both = of_images(images)
        return order, jax.lax.pmean(both, DATA_AXIS)

    def moments_of(variables, images):
        zeros = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
        _, updated = model.apply(
            {"params": variables["params"], "batch_stats": zeros},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        # From zero, one update leaves (1 − momentum) times the batch's own statistics.
        stats = jax.tree.map(lambda x: x / (1 - BN_MOMENTUM), updated["batch_stats"])
        return _map_layers(
            lambda layer: {"mean": layer["mean"], "var": layer["var"] + layer["mean"] ** 2}, stats
        )

    sharded = jax.shard_map(
        moments,
        mesh=mesh,
        in_specs=(P(), P(), P(), P(), data.feed_spec),
        out_specs=P(),
        check_vma=False,
    )
    return jax.jit(sharded)


def _map_layers(convert, stats):
    """Applies `convert` to every BN layer's `{'mean', 'var'}`."""
    return jax.tree.map(convert, stats, is_leaf=lambda node: "mean" in node)


def _read(folder, run, batches):
    """The stored statistics; None when there are none, or others. A zip file has checksums."""
    path = folder.precise_bn
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            owner = str(arrays["run"]) if "run" in arrays else ""  # older code named none
            found = owner, int(arrays["step"]), int(arrays["batches"])
            if found != (folder.run or "", run.step, batches):
                return None
            return fill(run.variables["batch_stats"], dict(arrays))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # damage shows as almost any exception
        LOG.warning("%s: cannot be read (%s); computed again.", path, first_line(error))
        return None


def _write(folder, stats, step, batches):
    path = folder.precise_bn
    facts = {"run": folder.run or "", "step": step, "batches": batches}
    with files.explained(path), files.whole(path) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, **facts, **flatten(stats))
    LOG.info("Precise BN statistics of step %d are in %s.", step, path)
