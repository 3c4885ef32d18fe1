"""Keras' ResNet50, ResNet101 and ResNet152 (v1) → our variables.

Their convolutions have biases, which the BN behind takes up: BN(Wx + b) with running mean m is
BN(Wx) with m − b. Their BN epsilon is 1.001e-5 and ours 1e-5; the running variance takes up the
difference. Their images are BGR; flipping the stem kernel's input makes that RGB. They stride in
the first 1×1, as the paper does.

In a model of one's own on such a backbone, the only fully connected layer is the head, whatever
its name. What an optimiser keeps is passed over.
"""

import io
import os
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from errors import UserError
from models.ops.norm import BN_EPSILON
from weights.files import Tensor, readable

KERAS_BN_EPSILON = 1.001e-5
LAYER = re.compile(r"conv(\d+)_block(\d+)_(\d+)_(conv|bn)")
HEADS = ("predictions", "probs")
OPTIMIZERS = ("optimizer", "optimizer_weights")  # groups beside the layers'
# Keras 3 numbers a layer's variables in the order in which they were made.
VARIABLES = {
    "conv": ("kernel", "bias"),
    "bn": ("gamma", "beta", "moving_mean", "moving_variance"),
    "head": ("kernel", "bias"),
}


def read_keras(path: str | os.PathLike) -> dict[str, dict[str, np.ndarray]]:
    """Reads the layers of a `.h5`, `.weights.h5` or `.keras` file.

    Returns:
      dict from layer name to a dict of its arrays ('kernel', 'bias', 'gamma', …).

    Raises:
      UserError: when h5py is not installed, or the file is damaged.
    """
    try:
        import h5py  # only this format needs it
    except ImportError as error:
        raise UserError(f"{path}: Keras' files need h5py: pip install h5py.") from error
    layers: dict[str, dict[str, np.ndarray]] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith(OPTIMIZERS):
            layer, variable = _names(name, item.parent.attrs)
            layers.setdefault(layer, {})[variable] = np.asarray(item)

    with readable(path, "a Keras file"):
        hdf5: Any = path
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                hdf5 = io.BytesIO(archive.read("model.weights.h5"))
        with h5py.File(hdf5, "r") as file:
            file.visititems(visit)
    return layers


def _names(dataset: str, attributes: Mapping[str, Any]) -> tuple[str, str]:
    """Layer and variable of a dataset, in Keras 3's numbered files and in those before."""
    *_, group, variable = dataset.split("/")
    if group != "vars" or "name" not in attributes:
        return group, variable.split(":")[0]
    layer = str(attributes["name"])
    names = VARIABLES.get(_kind(layer), ())
    number = int(variable)
    return layer, names[number] if number < len(names) else variable


def _kind(layer: str) -> str | None:
    if layer in HEADS:
        return "head"
    return layer.rsplit("_", 1)[-1] if layer.endswith(("_conv", "_bn")) else None


def from_keras(layers: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Tensor]:
    """Turns Keras' layers into our names and layout.

    Returns:
      dict from our path to `Tensor`; what no network of ours could have keeps its own name.
    """
    tensors = {}
    own_head = _own_head(layers)
    for layer, arrays in layers.items():
        kind, path = _kind(layer), _our_path(layer)
        if layer == own_head:
            kind = path = "head"
            arrays = {("bias", "kernel")[a.ndim - 1]: a for a in arrays.values()}
        if path is None or set(arrays) - set(VARIABLES[kind]):
            tensors |= {f"{layer}/{k}": Tensor(v, f"{layer}/{k}") for k, v in arrays.items()}
        elif kind == "head":
            tensors |= {f"params/head/{k}": Tensor(v, f"{layer}/{k}") for k, v in arrays.items()}
        elif kind == "conv":
            kernel = arrays["kernel"]
            kernel = kernel[:, :, ::-1] if path == "stem_conv" else kernel
            tensors[f"params/{path}/kernel"] = Tensor(kernel, f"{layer}/kernel")
        else:
            bias = layers.get(layer.removesuffix("_bn") + "_conv", {}).get("bias", 0.0)
            mean = arrays["moving_mean"] - bias
            var = arrays["moving_variance"].astype(np.float64) + (KERAS_BN_EPSILON - BN_EPSILON)
            tensors |= {
                f"params/{path}/scale": Tensor(arrays["gamma"], f"{layer}/gamma"),
                f"params/{path}/bias": Tensor(arrays["beta"], f"{layer}/beta"),
                f"batch_stats/{path}/mean": Tensor(mean, f"{layer}/moving_mean"),
                f"batch_stats/{path}/var": Tensor(var, f"{layer}/moving_variance"),
            }
    return tensors


def _own_head(layers: Mapping[str, Mapping[str, np.ndarray]]) -> str | None:
    """The only fully connected layer, known by the shapes of a kernel and a bias; else None."""
    found = [
        layer
        for layer, arrays in layers.items()
        if sorted(np.ndim(array) for array in arrays.values()) == [1, 2]
    ]
    return found[0] if len(found) == 1 else None


def _our_path(layer: str) -> str | None:
    """'conv3_block2_1_bn' → 'stage2/block2/bn1'; None for a layer that we have not."""
    top = {"conv1_conv": "stem_conv", "conv1_bn": "stem_bn"} | dict.fromkeys(HEADS, "head")
    match = LAYER.fullmatch(layer)
    if not match:
        return top.get(layer)
    stage, block, number, kind = match.groups()
    names = {("0", "conv"): "shortcut_conv", ("0", "bn"): "bn_shortcut"}
    return f"stage{int(stage) - 1}/block{block}/{names.get((number, kind), kind + number)}"
