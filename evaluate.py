"""Testing: loss and error of one or several networks over a split, every image exactly once.

    python main.py --mode=evaluate --workdir=runs/x --config.eval.protocol=10crop

The protocols themselves are in `protocols.py`. A pass compiles once per network and shape of batch:
once for the center crop and 10-crop, and for multi-scale testing of streamed images once per bucket
of aspect ratios that occurs, at most 15.
"""

import datetime
import functools
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from data import transforms
from data.decode import DecodeError, decode, image_size
from errors import UserError
from input_pipeline import DATA_AXIS, Feed, make_mesh, open_data
from testing import opened_run, precise_bn, protocols
from weights import door as pretrained

LOG = logging.getLogger("residual")
RESULT_FILE = "evaluation.json"
MASKED_SHOWN = 20  # names of corrupt records printed; the files list all
SPLITS = ("test", "validation", "train")


class Network(NamedTuple):
    """One member of an ensemble."""

    model: nn.Module
    variables: Any
    normalization: Any


def measure(model, variables, data, split, mesh):
    """Loss, top-1 and top-5 error over a split, single view.

    Args:
      model: a network of `models.create`.
      variables: its `params` and `batch_stats`.
      data: what `input_pipeline.open_data` returns.
      split: 'train', 'validation' or 'test'.
      mesh: the devices.

    Returns:
      `{'loss', 'top1_error', 'top5_error', 'images'}`: nats and fractions in [0, 1]; with corrupt
      records also `'masked_images'`, their number, and `'masked_records'`, their names.

    Raises:
      UserError: a record is corrupt, or too many are, as `config.data` says.
    """
    network = Network(model, variables, data.facts.normalization)
    result = score([network], [(protocols.CENTER, data.evaluation(split))], mesh)
    return _with_masked(result, data, split)


def _with_masked(result, data, split):
    if result["images"] < data.split_size(split):
        names = data.masked_in_evaluation(split)
        result |= {"masked_images": len(names), "masked_records": names}
    return result


def masked_line(names):
    """What a run says at its end of the corrupt records that it left out."""
    listed = ", ".join(names[:MASKED_SHOWN]) + (", …" if len(names) > MASKED_SHOWN else "")
    return f"{len(names):,} corrupt records were left out: {listed}"


def score(networks, passes, mesh, total=None):
    """Tests networks together: their probabilities are averaged (section 4.1's ensembles).

    Args:
      networks: list of `Network`.
      passes: iterable of `(protocol, host batches)`; their images are counted together.
      mesh: the devices.
      total: number of images, for a progress bar; None shows none.

    Returns:
      `measure`'s values, without the masked ones.

    Raises:
      UserError: there is no valid image.
    """
    sums = None
    with tqdm(total=total, unit="image", disable=None if total else True) as bar:
        for protocol, batches in passes:
            for batch in Feed(batches, mesh):
                scores = [
                    _scores(n.model, protocol, mesh)(n.variables, n.normalization, batch["image"])
                    for n in networks
                ]
                part = _sums(mesh)(scores, batch["label"], batch["valid"])
                sums = part if sums is None else jax.tree.map(jnp.add, sums, part)
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

    return jax.jit(
        jax.shard_map(
            scores,
            mesh=mesh,
            in_specs=(P(), P(), P(DATA_AXIS)),
            out_specs=P(DATA_AXIS),
            check_vma=False,
        )
    )


@functools.lru_cache(maxsize=2)
def _sums(mesh):
    def sums(scores, labels, valid):
        mean = protocols.mean_log_probabilities(jnp.stack(scores))
        return jax.lax.psum(protocols.score_sums(mean, labels, valid), DATA_AXIS)

    return jax.jit(jax.shard_map(sums, mesh=mesh, in_specs=P(DATA_AXIS), out_specs=P()))


def run(config, workdir, mesh=None, weight_file=False):
    """Tests a workdir (and `config.eval.ensemble`) and writes the result into it.

    The network, its weights and its normalisation come from the workdir; `config` says what to test
    on and how (`dataset`, `data_dir`, `data`, `eval`). With `weight_file` the weights are those of
    `config.init_from`, the network is `config.model` (with `pretrained.adopted`), and the workdir
    only takes the result.

    Returns:
      What `evaluation.json` holds: `measure`'s values with protocol, split, networks and device.

    Raises:
      UserError: a workdir holds no finished checkpoint, the classes differ, or the protocol cannot
        work on these images.
    """
    mesh = mesh or make_mesh()
    _validate(config)
    if weight_file:
        config = pretrained.adopted(config)
    members = [opened_run.load(folder) for folder in config.eval.ensemble]
    if weight_file:
        config = _evaluation_config(config, config, mesh)
        data = open_data(config, mesh)
        members = [opened_run.from_weight_file(config, data.facts), *members]
    else:
        members = [opened_run.load(workdir), *members]
        config = _evaluation_config(config, members[0].config, mesh)
        data = open_data(config, mesh)
    for member in members:
        _check_fits(member, members[0], data.facts)
    passes = _passes(config, data, members)
    if config.eval.precise_bn:
        members = [precise_bn.apply(member, config, data, mesh) for member in members]
    networks = [Network(m.model, m.variables, m.facts.normalization) for m in members]
    result = score(networks, passes, mesh, total=data.split_size(config.eval.split))
    result = _with_masked(result, data, config.eval.split)
    if "masked_records" in result:
        LOG.warning(masked_line(result["masked_records"]))
    result = _described(result, config, members)
    if jax.process_index() == 0:
        _write(Path(workdir) / RESULT_FILE, result)
        print(_line(result))
    return result


def _validate(config):
    e = config.eval
    if e.protocol not in protocols.NAMES:
        raise UserError(f"eval.protocol={e.protocol!r}: expected one of {protocols.NAMES}.")
    if e.split not in SPLITS:
        raise UserError(f"eval.split={e.split!r}: expected one of {SPLITS}.")
    if e.precise_bn and e.precise_bn_batches < 1:
        raise UserError(f"eval.precise_bn_batches={e.precise_bn_batches}: expected at least 1.")


def _evaluation_config(config, saved, mesh):
    """The run's config with the questions of `config`; the training batch need not fit the mesh."""
    merged = saved.copy_and_resolve_references()
    merged.update(dataset=config.dataset, data_dir=config.data_dir)
    merged.data.update(config.data)
    merged.eval.update(config.eval)
    merged.optim.accumulate_steps = 1
    if merged.batch_size % mesh.size:
        merged.batch_size = mesh.size * max(1, merged.batch_size // mesh.size)
    return merged


def _check_fits(member, first, facts):
    """Raises UserError unless the data has the member's classes and channels."""
    if member.facts.label_names != first.facts.label_names:
        raise UserError(
            f"{member.workdir} was trained on {_classes(member.facts)}, {first.workdir} on "
            f"{_classes(first.facts)}; an ensemble needs networks of the same classes."
        )
    if member.facts.label_names != facts.label_names:
        raise UserError(
            f"{member.workdir} was trained on {_classes(member.facts)}, and {facts.dataset} has "
            f"{_classes(facts)}; test it on data of the same classes."
        )
    if member.facts.image_shape[-1] != facts.image_shape[-1]:
        raise UserError(
            f"{member.workdir} takes images of {member.facts.image_shape[-1]} channel(s), and "
            f"{facts.dataset} has {facts.image_shape[-1]}."
        )


def _classes(facts):
    names = ", ".join(facts.label_names[:5]) + (", …" if facts.num_classes > 5 else "")
    return f"{facts.num_classes} classes ({names})"


def _passes(config, data, members):
    """`(protocol, host batches)`, one or several, for the images of the split."""
    e, name = config.eval, config.eval.protocol
    if name == "center":
        return [(protocols.CENTER, data.evaluation(e.split))]
    if name == "10crop":
        return [_ten_crop_pass(config, data)]
    for member in members:
        protocols.check_scales(member.model, e.scales)
    if config.data.resident:
        views = functools.partial(protocols.resized_on_device, scales=tuple(e.scales))
        return [(protocols.Protocol(name, views, True), data.evaluation(e.split))]
    return _multiscale_passes(config, data)


def _ten_crop_pass(config, data):
    e = config.eval
    if config.data.resident:
        views = functools.partial(protocols.ten_crops, pad=config.augment.pad)
        return protocols.Protocol(e.protocol, views), data.evaluation(e.split)
    size = config.data.image_size
    if not size <= e.resize:
        raise UserError(
            f"eval.resize={e.resize}: expected at least data.image_size={size}, the crops' side."
        )

    def transform(encoded):
        return transforms.ten_crop(decode(encoded), resize=e.resize, size=size)

    batches = data.evaluation_with(e.split, transform, (10, size, size, 3))
    return protocols.Protocol(e.protocol, protocols.crops_as_they_come), batches


def _multiscale_passes(config, data):
    """One pass per bucket of aspect ratios, so that all images of a batch have one shape.

    A generator: the threads that decode a pass start when its turn comes.
    """
    e = config.eval
    source = data.source(e.split)
    buckets = {}
    for i in tqdm(range(len(source)), desc="image sizes", unit="image", disable=None):
        buckets.setdefault(_bucket(source, i), []).append(i)
    for bucket, indices in sorted(buckets.items()):
        yield _bucket_pass(data, e, bucket, indices)


def _bucket(source, index):
    try:
        return protocols.aspect_bucket(*image_size(source[index].image))
    except (DecodeError, OSError, ValueError, RuntimeError):
        return 0  # the pass itself reports it, as config.data.on_corrupt says


def _bucket_pass(data, e, bucket, indices):
    shapes = tuple(protocols.bucket_shape(bucket, scale) for scale in e.scales)
    views = functools.partial(protocols.unpacked, shapes=shapes)

    def transform(encoded):
        return protocols.pack_scales(decode(encoded), shapes)

    size = sum(3 * height * width for height, width in shapes)
    batches = data.evaluation_with(e.split, transform, (size,), np.asarray(indices))
    return protocols.Protocol(e.protocol, views, True), batches


def question(config, members):
    """What a result is an answer to: protocol, images and networks."""
    return {
        "protocol": config.eval.protocol,
        "scales": list(config.eval.scales) if config.eval.protocol == "multiscale" else None,
        "precise_bn": config.eval.precise_bn,
        "dataset": config.dataset,
        "split": config.eval.split,
        "networks": [
            {"workdir": m.workdir, "depth": m.model.depth, "residual": m.model.residual}
            | {"step": m.step}
            for m in members
        ],
    }


def _described(result, config, members):
    devices = jax.devices()
    return (
        result
        | {"accuracy": 1 - result["top1_error"]}
        | question(config, members)
        | {
            "date": datetime.date.today().isoformat(),
            "device": f"{len(devices)} × {devices[0].device_kind}",
            "jax": jax.__version__,
        }
    )


def _line(result):
    number = len(result["networks"])
    who = result["networks"][0]["workdir"] if number == 1 else f"ensemble of {number}"
    return (
        f"{who}, {result['dataset']} {result['split']}, {result['protocol']}: "
        f"top-1 error {100 * result['top1_error']:.2f} %, "
        f"top-5 error {100 * result['top5_error']:.2f} %, "
        f"loss {result['loss']:.4f} ({result['images']} images)."
    )


def _write(path, result):
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(result, indent=2) + "\n")
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}).") from error
