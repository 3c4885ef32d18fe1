"""Keras' ResNet50, ResNet101 and ResNet152 (v1) → our variables.

Their convolutions have biases, which the BN behind takes up: BN(Wx + b) with running mean m is
BN(Wx) with m − b. Their BN epsilon is 1.001e-5 and ours 1e-5; the running variance takes up the
difference. Their images are BGR; flipping the stem kernel's input makes that RGB. They stride in
the first 1×1, as the paper does.
"""

import io
import re
import zipfile

import numpy as np

from errors import UserError
from models.ops.norm import BN_EPSILON
from weights.files import Tensor

KERAS_BN_EPSILON = 1.001e-5
LAYER = re.compile(r"conv(\d+)_block(\d+)_(\d+)_(conv|bn)")
HEADS = ("predictions", "probs")
# Keras 3 numbers a layer's variables in the order in which they were made.
VARIABLES = {
    "conv": ("kernel", "bias"),
    "bn": ("gamma", "beta", "moving_mean", "moving_variance"),
    "head": ("kernel", "bias"),
}


def read_keras(path):
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
    layers = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            layer, variable = _names(name, item.parent.attrs)
            layers.setdefault(layer, {})[variable] = np.asarray(item)

    try:
        with h5py.File(_hdf5(path), "r") as file:
            file.visititems(visit)
    except (OSError, KeyError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: cannot be read as a Keras file ({type(error).__name__}: {error}); "
            "if it was copied or downloaded, it is probably truncated: get it again."
        ) from error
    return layers


def _hdf5(path):
    if not zipfile.is_zipfile(path):
        return path
    with zipfile.ZipFile(path) as archive:
        return io.BytesIO(archive.read("model.weights.h5"))


def _names(dataset, attributes):
    """Layer and variable of a dataset, in Keras 3's numbered files and in those before."""
    *_, group, variable = dataset.split("/")
    if group != "vars" or "name" not in attributes:
        return group, variable.split(":")[0]
    layer = str(attributes["name"])
    names = VARIABLES[_kind(layer)] if _kind(layer) else ()
    number = int(variable)
    return layer, names[number] if number < len(names) else variable


def _kind(layer):
    if layer in HEADS:
        return "head"
    return layer.rsplit("_", 1)[-1] if layer.endswith(("_conv", "_bn")) else None


def from_keras(layers):
    """Turns Keras' layers into our names and layout.

    Returns:
      dict from our path to `Tensor`; what no network of ours could have keeps its own name.
    """
    tensors = {}
    for layer, arrays in layers.items():
        kind, path = _kind(layer), _our_path(layer)
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
            tensors |= _batch_norm(path, layer, arrays, bias)
    return tensors


def _batch_norm(path, layer, arrays, conv_bias):
    var = arrays["moving_variance"].astype(np.float64) + (KERAS_BN_EPSILON - BN_EPSILON)
    return {
        f"params/{path}/scale": Tensor(arrays["gamma"], f"{layer}/gamma"),
        f"params/{path}/bias": Tensor(arrays["beta"], f"{layer}/beta"),
        f"batch_stats/{path}/mean": Tensor(
            arrays["moving_mean"] - conv_bias, f"{layer}/moving_mean"
        ),
        f"batch_stats/{path}/var": Tensor(var, f"{layer}/moving_variance"),
    }


def _our_path(layer):
    """'conv3_block2_1_bn' → 'stage2/block2/bn1'; None for a layer that we have not."""
    top = {"conv1_conv": "stem_conv", "conv1_bn": "stem_bn"} | dict.fromkeys(HEADS, "head")
    match = LAYER.fullmatch(layer)
    if not match:
        return top.get(layer)
    stage, block, number, kind = match.groups()
    names = {("0", "conv"): "shortcut_conv", ("0", "bn"): "bn_shortcut"}
    return f"stage{int(stage) - 1}/block{block}/{names.get((number, kind), kind + number)}"
