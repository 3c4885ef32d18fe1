"""Testing: loss and error of one or several networks over a split, every image exactly once.

    python main.py --mode=evaluate --workdir=runs/x --config.eval.protocol=10crop

The protocols themselves are in `testing/protocols.py`. A pass compiles once per network and shape
of batch: once for the center crop and 10-crop, and for multi-scale testing of streamed images once
per bucket of aspect ratios that occurs (`testing/padded.py`): of photographs up to 2:1 at most 15.
"""

import datetime
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data import corrupt, transforms
from data.decode import DecodeError, decode, image_size
from data.facts import tested_size
from input_pipeline import open_data
from run import provenance
from run.agreement import agreed
from run.checkpoint import checksums
from run.mesh import make_mesh, replicate
from run.progress import tqdm
from run.workdir import Workdir
from testing import fitting, opened_run, padded, precise_bn, protocols, scores
from testing.opened_run import OpenedRun
from training import task
from training.check import check
from training.classification import check_labels
from training.start import adopted


def run(
    config: ConfigDict, workdir: str, mesh: Mesh | None = None, weight_file: bool = False
) -> dict[str, Any]:
    """Tests a workdir (and `config.eval.ensemble`) and writes the result into it.

    The network, its weights and its normalisation come from the workdir; `config` says what to test
    on and how (`dataset`, `data_dir`, `data`, `eval`). With `weight_file` the weights are those of
    `config.init_from`, the network is `config.model` (as `training.start.adopted` changes it), and
    the workdir only takes the result.

    Returns:
      What `evaluation.json` holds: `measure`'s values with protocol, split, networks and device.

    Raises:
      UserError: a workdir holds no finished checkpoint, the classes differ, or the protocol cannot
        work on these images.
    """
    mesh = mesh or make_mesh()
    config = adopted(config) if weight_file else config
    trained = config if weight_file else Workdir(workdir).read_config()
    config = _evaluation_config(config, trained, mesh)
    check(config, mesh.size)
    data, runs = agreed(lambda: _opened(config, workdir, mesh, weight_file), _description)
    if config.task != "classification":
        model, variables = task.tested(config, runs)
        variables = replicate(variables, mesh)
        result = task.of(config).measure(model, variables, data, config.eval.split, mesh)
        result |= question(config, runs) | {"refine_boxes": config.eval.refine_boxes}
        result |= {"crop": config.eval.image_size, "classes_from": list(config.eval.classes_from)}
        return _written(result, workdir, task.of(config).said(result))
    passes = _passes(config, data, runs)
    if config.eval.precise_bn:
        runs = [precise_bn.apply(one, config, data, mesh) for one in runs]
    networks = [scores.Network(one.model, one.variables, one.facts.normalization) for one in runs]
    result = scores.score(networks, passes, mesh, total=data.split_size(config.eval.split))
    result = data.corrupt.beside(result, config.eval.split)
    corrupt.warn_of(result)
    accuracy = {"accuracy": 1 - result["top1_error"]}
    return _written(result | accuracy | question(config, runs), workdir, _said(result))


def _written(result, workdir, said):
    """Writes and prints what was found, in words with when and where."""
    made = {"date": datetime.date.today().isoformat(), "device": provenance.device()}
    result = result | made | {"jax": jax.__version__}
    if jax.process_index() == 0:
        folder = Workdir(workdir)
        folder.write(folder.evaluation, result, indent=2)
        number, protocol = len(result["networks"]), result["protocol"]
        who = result["networks"][0]["workdir"] if number == 1 else f"ensemble of {number}"
        print(f"{who}, {result['dataset']} {result['split']}, {protocol}: {said}.")
    return result


def _said(result):
    return (
        f"top-1 error {100 * result['top1_error']:.2f} %, "
        f"top-5 error {100 * result['top5_error']:.2f} %, "
        f"loss {result['loss']:.4f} ({result['images']} images)"
    )


def _opened(config, workdir, mesh, weight_file):
    """The data to test on and the runs to test, which fit them."""
    others = [task.opened(folder, config.task) for folder in config.eval.ensemble]
    runs = [] if weight_file else [task.opened(workdir, config.task)]
    data = open_data(config, mesh)
    if weight_file:
        of_task = None if config.task == "classification" else task.of(config)
        if of_task is None:
            check_labels(config, data.facts)
        runs = [opened_run.from_weight_file(config, data.facts, of_task)]
    runs += others
    fitting.check(runs, data, config)
    return data, runs


def _description(opened):
    data, runs = opened
    return data.facts.to_dict() | {
        f"network {i}": {"weights": checksums(one.variables)} | one.facts.to_dict()
        for i, one in enumerate(runs)
    }


def _evaluation_config(config, trained, mesh):
    """The run's config with the questions of `config`; the training batch need not fit the mesh."""
    merged = trained.copy_and_resolve_references()
    merged.update(dataset=config.dataset, data_dir=config.data_dir)
    merged.data.update(config.data)
    merged.eval.update(config.eval)
    merged.optim.accumulate_steps = 1
    merged.model.bn_group_size = 0  # of the training batch; precise BN takes the network's own
    merged.augment.update(mixup=0.0, cutmix=0.0, repeats=1)  # what wants a batch of its own size
    if merged.batch_size % mesh.size:
        merged.batch_size = mesh.size * max(1, merged.batch_size // mesh.size)
    return merged


def _passes(config, data, runs):
    """`(protocol, host batches)`, one or several, for the images of the split."""
    e, name = config.eval, config.eval.protocol
    if name == "center":
        return [(protocols.CENTER, data.evaluation(e.split))]
    if name == "10crop":
        return [_ten_crop_pass(config, data)]
    for one in runs:
        protocols.check_scales(one.model, e.scales)
    if config.data.resident:
        views = functools.partial(protocols.resized_on_device, scales=tuple(e.scales))
        return [(protocols.Protocol(name, views, True), data.evaluation(e.split))]
    return _multiscale_passes(config, data)


def _ten_crop_pass(config, data):
    e = config.eval
    if config.data.resident:
        views = functools.partial(protocols.ten_crops, pad=config.augment.pad)
        return protocols.Protocol(e.protocol, views), data.evaluation(e.split)
    size, limit = tested_size(config), config.data.max_pixels

    def transform(encoded):
        image = decode(encoded, limit)
        return transforms.ten_crop(image, resize=e.resize, size=size, max_pixels=limit)

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
        buckets.setdefault(_bucket(source, i, e.scales), []).append(i)
    for bucket, indices in sorted(buckets.items()):
        yield _bucket_pass(data, config, bucket, indices)


def _bucket(source, index, scales):
    try:
        return padded.aspect_bucket(*image_size(source[index].image), scales)
    except (DecodeError, OSError, ValueError, RuntimeError):
        return 0  # the pass itself reports it, as config.data.on_corrupt says


def _bucket_pass(data, config, bucket, indices):
    e = config.eval
    shapes = tuple(padded.bucket_shape(bucket, scale) for scale in e.scales)
    views = functools.partial(protocols.unpacked, shapes=shapes)

    def transform(encoded):
        return padded.pack_scales(decode(encoded, config.data.max_pixels), shapes)

    batches = data.evaluation_with(
        e.split,
        transform,
        (padded.packed_size(shapes),),
        np.asarray(indices),
        smaller=math.ceil(padded.ASPECTS[abs(bucket)] / 2),  # long images take more memory
    )
    return protocols.Protocol(e.protocol, views, True), batches


def question(config: ConfigDict, runs: Sequence[OpenedRun]) -> dict[str, Any]:
    """What a result is an answer to: protocol, images and networks."""
    return {
        "protocol": config.eval.protocol,
        "scales": list(config.eval.scales) if config.eval.protocol == "multiscale" else None,
        "precise_bn": config.eval.precise_bn,
        "dataset": config.dataset,
        "split": config.eval.split,
        "networks": [
            {"workdir": one.workdir, **{n: one.config.model[n] for n in ("depth", "residual")}}
            | {"step": one.step}
            for one in runs
        ],
    }
