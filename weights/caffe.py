"""The authors' own release, ResNet-50/101/152 `.caffemodel` → our variables, without Caffe.

BN is two layers there: `BatchNorm` (mean, variance and the factor that both are to be divided by)
and `Scale` (γ, β). ResNet-50's first convolution has a bias, which BN takes up. Images are BGR;
flipping the stem kernel's input makes that RGB.

What the arrays do not say: images are pixel values minus the release's mean image
(`read_mean_image`), undivided; the first pool is not padded (`model.stem_pool='unpadded'`).
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory, text_format

from errors import UserError
from weights.files import Tensor, readable

# The part of caffe.proto that holds weights. `layers` is that of the format before layers had names
# of types; `num` … `width` are a blob's shape before there was `shape`.
SCHEMA = """
name: "caffe.proto" package: "caffe"
message_type { name: "BlobShape"
  field { name: "dim" number: 1 label: LABEL_REPEATED type: TYPE_INT64 } }
message_type { name: "BlobProto"
  field { name: "num" number: 1 label: LABEL_OPTIONAL type: TYPE_INT32 }
  field { name: "channels" number: 2 label: LABEL_OPTIONAL type: TYPE_INT32 }
  field { name: "height" number: 3 label: LABEL_OPTIONAL type: TYPE_INT32 }
  field { name: "width" number: 4 label: LABEL_OPTIONAL type: TYPE_INT32 }
  field { name: "data" number: 5 label: LABEL_REPEATED type: TYPE_FLOAT }
  field { name: "shape" number: 7 label: LABEL_OPTIONAL type_name: ".caffe.BlobShape" }
  field { name: "double_data" number: 8 label: LABEL_REPEATED type: TYPE_DOUBLE } }
message_type { name: "LayerParameter"
  field { name: "name" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
  field { name: "blobs" number: 7 label: LABEL_REPEATED type_name: ".caffe.BlobProto" } }
message_type { name: "NetParameter"
  field { name: "layers" number: 2 label: LABEL_REPEATED type: TYPE_BYTES }
  field { name: "layer" number: 100 label: LABEL_REPEATED type_name: ".caffe.LayerParameter" } }
"""
LAYER = re.compile(r"(res|bn|scale)(\d)([a-z])(\d*)_branch(1|2[abc])")


def read_caffe(path: str | os.PathLike) -> dict[str, list[np.ndarray]]:
    """Reads the layers that have weights.

    Returns:
      dict from layer name to its list of arrays, in Caffe's layout.

    Raises:
      UserError: for a damaged file, or one of Caffe's format before layers had names of types.
    """
    with readable(path, "a .caffemodel"):
        net = _message("NetParameter", path)
        layers = {layer.name: list(map(_array, layer.blobs)) for layer in net.layer if layer.blobs}
    if not layers:
        version = " of Caffe's old format (V1 layers)" if net.layers else ""
        raise UserError(f"{path}: a file{version} without weights; expected ResNet-*-model.")
    return layers


def read_mean_image(path: str | os.PathLike) -> np.ndarray:
    """Reads `ResNet_mean.binaryproto`.

    Returns:
      the mean training image, float32 RGB pixel values `[height, width, 3]`. Its mean over the
      positions serves images of other sizes.

    Raises:
      UserError: for a damaged file.
    """
    with readable(path, "a .binaryproto"):
        blob = _array(_message("BlobProto", path))
        image = blob.reshape(blob.shape[-3:])
    return np.ascontiguousarray(image[::-1].transpose(1, 2, 0))


def _message(kind: str, path: str | os.PathLike) -> message.Message:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(SCHEMA, descriptor_pb2.FileDescriptorProto()))
    found = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{kind}"))
    return found.FromString(Path(path).read_bytes())


def _array(blob: message.Message) -> np.ndarray:
    legacy = (blob.num, blob.channels, blob.height, blob.width)
    shape = blob.shape.dim if blob.HasField("shape") else legacy
    return np.array(blob.data or blob.double_data, np.float32).reshape(tuple(shape))


def from_caffe(layers: Mapping[str, list[np.ndarray]]) -> dict[str, Tensor]:
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
            mean, var, factor = (blob.reshape(-1) for blob in blobs)
            scale = 1.0 / factor[0] if factor[0] else 0.0
            mean = mean * scale - _bias(layers, name)
            tensors[f"batch_stats/{path}/mean"] = Tensor(mean, f"{name}[0]")
            tensors[f"batch_stats/{path}/var"] = Tensor(var * scale, f"{name}[1]")
        elif kind == "scale":
            for i, parameter in enumerate(("scale", "bias")):
                tensors[f"params/{path}/{parameter}"] = Tensor(blobs[i].reshape(-1), f"{name}[{i}]")
        else:
            tensors |= {f"{name}[{i}]": Tensor(b, f"{name}[{i}]") for i, b in enumerate(blobs)}
    return tensors


def _bias(layers: Mapping[str, list[np.ndarray]], bn: str) -> np.ndarray | float:
    """Bias of the convolution in front of BN layer `bn` ('bn_conv1', 'bn2a_branch1')."""
    conv = bn.removeprefix("bn_") if bn.startswith("bn_") else "res" + bn.removeprefix("bn")
    blobs = layers.get(conv, [])
    return blobs[1].reshape(-1) if len(blobs) > 1 else 0.0


TOP = {
    "conv1": ("conv", "stem_conv"),
    "bn_conv1": ("bn", "stem_bn"),
    "scale_conv1": ("scale", "stem_bn"),
    "fc1000": ("fc", "head"),
}


def _our_path(name: str) -> tuple[str | None, str | None]:
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
