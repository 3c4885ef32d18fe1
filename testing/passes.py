"""The batches of a split as each protocol sees them, for `testing.scores.score`.

A pass compiles once per network and shape of batch: once for the center crop and 10-crop, and for
multi-scale testing of streamed images once per bucket of aspect ratios that occurs
(`testing/padded.py`): of photographs up to 2:1 at most 15.
"""

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data import transforms
from data.decode import DecodeError, decode, image_size
from data.facts import tested_size
from run.progress import tqdm
from testing import padded, protocols
from testing.opened_run import OpenedRun

Pass = tuple[protocols.Protocol, Iterator[dict]]


def of(config: ConfigDict, data: Any, runs: Sequence[OpenedRun]) -> Iterable[Pass]:
    """`(protocol, host batches)`, one or several, for the images of `config.eval.split`.

    Raises:
      UserError: a network cannot work on images of `config.eval.scales`.
    """
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
