"""The authors' own release, ResNet-50/101/152 `.caffemodel` → our variables, without Caffe.

A `.caffemodel` is one protobuf message, and only its wire format is needed: fields of varints,
fixed words and length-prefixed bytes, nested. BN is two layers there: `BatchNorm` (mean, variance
and the factor that both are to be divided by) and `Scale` (γ, β). ResNet-50's first convolution has
a bias, which BN takes up. Images are BGR; flipping the stem kernel's input makes that RGB.

What the arrays do not say: images are pixel values minus the release's mean image
(`read_mean_image`), undivided; the first pool is not padded (`model.stem_pool='unpadded'`).
"""

import re
import struct

import numpy as np

from errors import UserError
from weights.files import Tensor

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
# Field numbers of caffe.proto.
NET_LAYERS_V1, NET_LAYER = 2, 100
LAYER_NAME, LAYER_BLOBS = 1, 7
BLOB_LEGACY_SHAPE, BLOB_DATA, BLOB_SHAPE, BLOB_DOUBLES = (1, 2, 3, 4), 5, 7, 8
LAYER = re.compile(r"(res|bn|scale)(\d)([a-z])(\d*)_branch(1|2[abc])")


def read_caffe(path):
    """Reads the layers that have weights.

    Returns:
      dict from layer name to its list of arrays, in Caffe's layout.

    Raises:
      UserError: for a damaged file, or one of Caffe's format before layers had names of types.
    """
    with open(path, "rb") as file:
        message = file.read()
    try:
        net = _fields(message)
        layers = [_fields(layer) for layer in net.get(NET_LAYER, [])]
        named = {
            bytes(layer[LAYER_NAME][0]).decode(): [_blob(blob) for blob in layer[LAYER_BLOBS]]
            for layer in layers
            if LAYER_BLOBS in layer
        }
    except (ValueError, IndexError, KeyError, TypeError, struct.error) as error:
        raise UserError(
            f"{path}: cannot be read as a .caffemodel ({error}). It has {len(message):,} bytes; if "
            "it was copied or downloaded, it is probably truncated: get it again."
        ) from error
    if not named:
        version = " of Caffe's old format (V1 layers)" if NET_LAYERS_V1 in net else ""
        raise UserError(f"{path}: a file{version} without weights; expected ResNet-*-model.")
    return named


def read_mean_image(path):
    """Reads `ResNet_mean.binaryproto`.

    Returns:
      the mean training image, float32 RGB pixel values `[height, width, 3]`. Its mean over the
      positions serves images of other sizes.
    """
    with open(path, "rb") as file:
        message = file.read()
    try:
        blob = _blob(message)
    except (ValueError, IndexError, KeyError, TypeError, struct.error) as error:
        raise UserError(f"{path}: cannot be read as a .binaryproto ({error}).") from error
    image = blob.reshape(blob.shape[-3:])
    return np.ascontiguousarray(image[::-1].transpose(1, 2, 0))


def _fields(message):
    """Splits a protobuf message into its fields: number → list of values, as on the wire."""
    view = memoryview(message)
    fields, position = {}, 0
    while position < len(view):
        key, position = _varint(view, position)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, position = _varint(view, position)
        else:
            if wire == BYTES:
                length, position = _varint(view, position)
            elif wire in (FIXED32, FIXED64):
                length = 4 if wire == FIXED32 else 8
            else:
                raise ValueError(f"wire type {wire} at byte {position}")
            if position + length > len(view):
                raise ValueError(f"a field of {length:,} bytes at byte {position:,} does not fit")
            value, position = view[position : position + length], position + length
        fields.setdefault(number, []).append(value)
    return fields


def _varint(view, position):
    value = shift = 0
    while True:
        byte = view[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
        if shift > 63:
            raise ValueError(f"an integer of more than 64 bits at byte {position:,}")


def _blob(message):
    fields = _fields(message)
    number, dtype = (BLOB_DATA, "<f4") if BLOB_DATA in fields else (BLOB_DOUBLES, "<f8")
    # Packed numbers are one field; unpacked ones are many of four (eight) bytes: joined, the same.
    data = np.frombuffer(b"".join(fields.get(number, [])), dtype).astype(np.float32)
    if BLOB_SHAPE in fields:
        shape = _packed_varints(_fields(fields[BLOB_SHAPE][0]).get(1, []))
    else:
        shape = [fields[number][0] for number in BLOB_LEGACY_SHAPE]
    return data.reshape(shape)


def _packed_varints(values):
    numbers = []
    for value in values:
        if isinstance(value, int):
            numbers.append(value)
            continue
        position = 0
        while position < len(value):
            number, position = _varint(value, position)
            numbers.append(number)
    return numbers


def from_caffe(layers):
    """Turns Caffe's layers into our names and layout.

    Returns:
      dict from our path to `Tensor`; what no network of ours could have keeps its own name.
    """
    tensors = {}
    for name, blobs in layers.items():
        kind, path = _our_path(name)
        if kind == "fc":
            weight = blobs[0].reshape(blobs[0].shape[-2:])
            tensors["params/head/kernel"] = Tensor(weight.T, f"{name}[0]")
            tensors["params/head/bias"] = Tensor(blobs[1].reshape(-1), f"{name}[1]")
        elif kind == "conv":
            kernel = blobs[0].transpose(2, 3, 1, 0)
            kernel = kernel[:, :, ::-1] if path == "stem_conv" else kernel
            tensors[f"params/{path}/kernel"] = Tensor(kernel, f"{name}[0]")
        elif kind == "bn":
            bias = _bias(layers, name)
            tensors |= _statistics(path, name, blobs, bias)
        elif kind == "scale":
            for i, parameter in enumerate(("scale", "bias")):
                tensors[f"params/{path}/{parameter}"] = Tensor(blobs[i].reshape(-1), f"{name}[{i}]")
        else:
            tensors |= {f"{name}[{i}]": Tensor(b, f"{name}[{i}]") for i, b in enumerate(blobs)}
    return tensors


def _bias(layers, bn):
    """Bias of the convolution in front of BN layer `bn` ('bn_conv1', 'bn2a_branch1')."""
    conv = bn.removeprefix("bn_") if bn.startswith("bn_") else "res" + bn.removeprefix("bn")
    blobs = layers.get(conv, [])
    return blobs[1].reshape(-1) if len(blobs) > 1 else 0.0


def _statistics(path, name, blobs, conv_bias):
    mean, var, factor = (blob.reshape(-1) for blob in blobs)
    factor = 1.0 / factor[0] if factor[0] else 0.0
    return {
        f"batch_stats/{path}/mean": Tensor(mean * factor - conv_bias, f"{name}[0]"),
        f"batch_stats/{path}/var": Tensor(var * factor, f"{name}[1]"),
    }


TOP = {
    "conv1": ("conv", "stem_conv"),
    "bn_conv1": ("bn", "stem_bn"),
    "scale_conv1": ("scale", "stem_bn"),
    "fc1000": ("fc", "head"),
}


def _our_path(name):
    """('bn', 'stage2/block2/bn1') of 'bn3b1_branch2a'; (None, None) for a layer we have not."""
    match = LAYER.fullmatch(name)
    if not match:
        return TOP.get(name, (None, None))
    kind, stage, letter, number, branch = match.groups()
    kind = "conv" if kind == "res" else kind
    # ResNet-50 letters its blocks a, b, c …; the deeper ones a, b1, b2, …
    block = int(number) + 1 if number else ord(letter) - ord("a") + 1
    if branch == "1":
        layer = "shortcut_conv" if kind == "conv" else "bn_shortcut"
    else:
        layer = f"{'conv' if kind == 'conv' else 'bn'}{'abc'.index(branch[1]) + 1}"
    return kind, f"stage{int(stage) - 1}/block{block}/{layer}"
