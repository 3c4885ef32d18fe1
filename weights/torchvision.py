"""torchvision's and timm's state dicts ↔ our variables, in NumPy.

`stage2/block1/conv1` is `layer2.0.conv1`; kernels `[h, w, in, out]` are `[out, in, h, w]`. Padding,
BN epsilon (1e-5) and eval-time arithmetic are the same. Two things are not in the arrays:
torchvision and timm stride their bottlenecks in the 3×3 (`downsample_in='3x3'`), and torch's
running variances are unbiased, ours biased: what a batch of n positions adds is n/(n−1) apart.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from models.scanned import unstack_blocks
from weights.files import Tensor

# Ours ↔ torch's; every other layer has the same name in both.
TOP_LAYERS = {"stem_conv": "conv1", "stem_bn": "bn1", "head": "fc"}
DEEP_STEM = {  # timm's; the last BN is called as the only one of another stem
    **{"stem_conv1": "conv1.0", "stem_conv2": "conv1.3", "stem_conv3": "conv1.6"},
    **{"stem_bn1": "conv1.1", "stem_bn2": "conv1.4", "stem_bn3": "bn1"},
}
BLOCK_LAYERS = {"shortcut_conv": "downsample.0", "bn_shortcut": "downsample.1"}
POOLED = {"shortcut_conv": "downsample.1", "bn_shortcut": "downsample.2"}  # behind a mean pool
STATISTICS = {"mean": "running_mean", "var": "running_var"}
STATISTICS_FROM_TORCH = {theirs: ours for ours, theirs in STATISTICS.items()}
COUNTER = "num_batches_tracked"
AVERAGES = "n_averaged"  # beside what torch.optim.swa_utils.AveragedModel averages
COUNTERS = (COUNTER, AVERAGES)
KEY = re.compile(r"(?:layer(\d+)\.(\d+)\.)?(.+)\.(weight|bias|running_mean|running_var)")


def from_torch(
    arrays: Mapping[str, np.ndarray], rename: Callable[[str], str] = str
) -> dict[str, Tensor]:
    """Turns a state dict into our names and layout.

    Args:
      arrays: the file's key → array.
      rename: the file's key → torchvision's.

    Returns:
      dict from our path ('params/stage2/block1/conv1/kernel') to `Tensor`. A key that no network of
      ours could have keeps its own name, so that who compares names finds it; counters are left
      out.
    """
    deep = any(key.startswith("conv1.0.") for key in arrays)
    return {
        _our_name(rename(key), array.ndim, deep): Tensor(
            array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T, key
        )
        for key, array in arrays.items()
        if not key.endswith(COUNTERS)
    }


def _our_name(key: str, ndim: int, deep: bool) -> str:
    match = KEY.fullmatch(key)
    if not match:
        return key
    stage, block, layer, kind = match.groups()
    if stage is None:
        names = TOP_LAYERS | DEEP_STEM if deep else TOP_LAYERS
        path = _inverse(names).get(layer, layer)
    else:
        # 'downsample.1' is the convolution where a pool is before it, and else its BN.
        pooled = layer == "downsample.2" or (layer == "downsample.1" and ndim == 4)
        layer = _inverse(POOLED if pooled else BLOCK_LAYERS).get(layer, layer)
        path = f"stage{stage}/block{int(block) + 1}/{layer}"
    if kind in STATISTICS_FROM_TORCH:
        return f"batch_stats/{path}/{STATISTICS_FROM_TORCH[kind]}"
    if kind == "weight":
        kind = "scale" if ndim == 1 else "kernel"
    return f"params/{path}/{kind}"


def _inverse(names: Mapping[str, str]) -> dict[str, str]:
    return {theirs: ours for ours, theirs in names.items()}


def torch_name(path: str, pooled: bool = False) -> str:
    """The torch key of one of our paths: 'params/head/kernel' → 'fc.weight'.

    Args:
      pooled: projections have a mean pool before them (`model.shortcut='D'`).
    """
    _, *modules, kind = path.split("/")
    if len(modules) == 3:
        stage, block, layer = modules
        stage, number = stage.removeprefix("stage"), int(block.removeprefix("block")) - 1
        layer = (POOLED if pooled else BLOCK_LAYERS).get(layer, layer)
        layer = f"layer{stage}.{number}.{layer}"
    else:
        layer = ".".join((TOP_LAYERS | DEEP_STEM).get(module, module) for module in modules)
    kind = {"kernel": "weight", "scale": "weight", **STATISTICS}.get(kind, kind)
    return f"{layer}.{kind}"


def to_torch(variables: Mapping[str, Any], pooled: bool = False) -> dict[str, np.ndarray]:
    """Turns our variables into a state dict that torch loads with `strict=True`.

    Args:
      variables: `{'params': …, 'batch_stats': …}`, blocks unrolled or stacked.
      pooled: as `torch_name`.

    Returns:
      dict from torchvision's keys to float32 arrays, and an int64 `num_batches_tracked` of 0 for
      each BN. Layers that torchvision's networks lack (gates, BN after the addition) keep ours.
    """
    state = {}
    for path, leaf in flatten_dict(unstack_blocks(variables), sep="/").items():
        array = np.asarray(leaf, np.float32)
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        name = torch_name(path, pooled)
        state[name] = np.ascontiguousarray(array)
        if path.endswith("/var"):
            state[name.removesuffix("running_var") + COUNTER] = np.zeros((), np.int64)
    return state
