"""Weight files from elsewhere ↔ our variables.

torchvision, timm, Hugging Face, Keras, the authors' Caffe models, and what training programs save.
`load_weights` reads any of them into a network's variables; `conventions` says what else is known
of a file, and `describe` what is needed to classify images with nothing but the file.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from errors import UserError
from models.scanned import STACKED, stack_blocks, unstack_blocks
from weights import caffe, checkpoints, detectors, fit, huggingface, keras, torchvision
from weights.architectures import HEAD, identify, telling_name
from weights.detectors import load as load_detector
from weights.files import Tensor, read_safetensors, read_torch
from weights.origins import CAFFE, KERAS, TORCHVISION, Conventions, Description, exported

__all__ = ["Conventions", "Description", "conventions", "describe", "detector", "load_detector"]
__all__ += ["load_weights", "opened"]


class Opened(NamedTuple):
    """A weight file, read, before anybody asks which network it holds.

    Attributes:
      given: as it was named.
      path: of the file that was read, which may lie in the folder that was given.
      part: the one of several networks that was named.
      kind: what its name says.
      tree: what the file holds.
      metadata: of a safetensors file.
    """

    given: str
    path: Path
    part: str
    kind: "_Kind"
    tree: Any
    metadata: Mapping[str, str]


Given = str | os.PathLike | Opened


class _File(NamedTuple):
    """A weight file, read.

    Attributes:
      path: of the file that was read, which may lie in the folder that was given.
      tensors: by our paths.
      origin: in words.
      conventions: what is known of it.
      fields: of `config.model`, where the file says them.
      notes: sentences to be logged.
      theirs: our path → the file's name for it, for messages.
    """

    path: str
    tensors: dict[str, Tensor]
    origin: str
    conventions: Conventions
    fields: Mapping[str, Any] = {}
    notes: tuple[str, ...] = ()
    theirs: Callable[[str], str] = str


class _Kind(NamedTuple):
    """Weight files whose names end alike.

    Attributes:
      endings: of the names.
      read: path → what the file holds, and its metadata.
      open: the same with our names.
    """

    endings: tuple[str, ...]
    read: Callable[[Path], tuple[Any, Mapping[str, str]]]
    open: Callable[[Opened], _File]


def opened(given: Given) -> Opened:
    """Reads a weight file once for all that asks for it; what is opened already comes back.

    Args:
      given: as `load_weights` takes it.

    Raises:
      UserError: the file cannot be read.
    """
    if isinstance(given, Opened):
        return given
    given = os.fspath(given)
    path, part = _located(given)
    kind = next((one for one in KINDS if path.name.lower().endswith(one.endings)), None)
    if kind is None:
        raise UserError(f"{path}: unknown kind of weight file; expected {', '.join(SUFFIXES)}.")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file. Nothing is downloaded; give a local one.")
    fit.check_name(path, telling_name(path))
    return Opened(given, path, part, kind, *kind.read(path))


def _open(given: Given) -> _File:
    file = opened(given)
    return file.kind.open(file)


def _open_caffe(file: Opened) -> _File:
    return _File(str(file.path), caffe.from_caffe(file.tree), "the authors' release", CAFFE)


def _open_keras(file: Opened) -> _File:
    return _File(str(file.path), keras.from_keras(file.tree), "Keras", KERAS)


def _open_torch(file: Opened) -> _File:
    path, tree, metadata = file.path, file.tree, file.metadata
    fit.check_name(path, checkpoints.architecture(tree))
    arrays, notes = checkpoints.state_dict(tree, path, file.part)
    origin, known = "torchvision or timm", TORCHVISION
    rename: Callable[[str], str] = str
    theirs: Callable[[str], str] = torchvision.torch_name
    if huggingface.has_names(arrays):
        origin, rename, theirs = "Hugging Face", huggingface.torchvision_name, _of_huggingface
    fields: Mapping[str, Any] = {}
    if "downsample_in" in metadata:  # a file of export.py says how it was trained
        origin = "export.py"
        known, fields = exported(path, metadata)
    elif origin == "Hugging Face" or path.name in huggingface.WEIGHTS:
        said = huggingface.says(path)
        fit.check_name(path, said.get("architecture", ""))
        known = known.told(said)
        if known.constants and not known.normalization:
            mean, std = known.constants
            notes.append(
                f"{path}: trained on pixels minus {mean}, divided by {std}, for which "
                "data.normalization has no name: predict.py and export.py use them with --weights, "
                "training and testing use data.normalization."
            )
        if origin == "Hugging Face" and "downsample_in" not in said:
            notes.append(
                f"{path}: no config.json beside it, so its bottlenecks are taken to stride in the "
                "3×3 convolution, as is Hugging Face's default."
            )
    tensors = torchvision.from_torch(arrays, rename)
    return _File(str(path), tensors, origin, known, fields, tuple(notes), theirs)


def _of_huggingface(path: str) -> str:
    return huggingface.huggingface_name(torchvision.torch_name(path))


def _located(given: str) -> tuple[Path, str]:
    """The file of 'FILE', 'FOLDER' or 'FILE#PART', and the part."""
    path, _, part = (given, "", "") if os.path.exists(given) else given.partition("#")
    if os.path.isdir(path):
        return huggingface.weight_file(Path(path), SUFFIXES), part
    return Path(path), part


def _read(path: Path) -> tuple[Any, dict[str, str]]:
    if path.suffix.lower() == ".safetensors":
        return read_safetensors(path)
    return read_torch(path), {}


def _read_shards(path: Path) -> tuple[Any, dict[str, str]]:
    return huggingface.read_shards(path, _read), {}


TORCH = _Kind((".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt"), _read, _open_torch)
KINDS = (
    TORCH,
    _Kind((".h5", ".hdf5", ".keras"), lambda path: (keras.read_keras(path), {}), _open_keras),
    _Kind((".caffemodel",), lambda path: (caffe.read_caffe(path), {}), _open_caffe),
    _Kind((huggingface.INDEX,), _read_shards, _open_torch),
)
SUFFIXES = tuple(ending for kind in KINDS for ending in kind.endings)


def load_weights(
    path: Given,
    model_config: Mapping[str, Any],
    variables_template: Mapping[str, Any],
    *,
    replace_head: bool = False,
) -> tuple[dict[str, Any], list[str]]:
    """Reads a weight file into the variables of a network.

    Args:
      path: `.safetensors`, `.pth`, `.pt`, `.bin`, `.tar`, `.ckpt` (torchvision's, timm's or Hugging
        Face's names, alone or in a training checkpoint), `.h5`, `.keras` (Keras'
        ResNet50/101/152), `.caffemodel` (the authors' release), or the folder of one of these.
        'FILE#PART' names one network of a checkpoint that has several. Or what `opened` returned.
      model_config: fields of the network, e.g. `config.model`; compared with what the file's origin
        is known to have been trained with.
      variables_template: the network's variables, `{'params': …, 'batch_stats': …}`; a replaced
        head is taken from it. Of one without a head, the file's is not looked at.
      replace_head: keep the template's head when the file's has another number of classes or is
        missing.

    Returns:
      `(variables, notes)`: float32 arrays in the template's structure, and sentences to be logged.

    Raises:
      UserError: the file cannot be read; it is of another network; names are missing or unknown;
        shapes differ; the head differs and may not be replaced.
    """
    file = _open(path)
    template = {name: variables_template[name] for name in ("params", "batch_stats")}
    wanted = flatten_dict(jax.eval_shape(unstack_blocks, template), sep="/")
    wanted = dict(sorted(wanted.items(), key=lambda item: not item[0].startswith("params")))
    found = dict(file.tensors)
    notes = list(file.notes)
    if "head" not in template["params"]:
        found = {name: tensor for name, tensor in found.items() if name not in HEAD}
    elif replace_head:
        notes += _use_template_head(file.path, found, wanted, template["params"]["head"])
    fit.check(file.path, found, wanted, file.theirs, model_config)
    arrays = {name: jnp.asarray(np.asarray(found[name].array, np.float32)) for name in wanted}
    notes += _nonfinite(file.path, {found[name].source: arrays[name] for name in wanted})
    variables = unflatten_dict(arrays, sep="/")
    if any(STACKED in stage for stage in template["params"].values()):
        variables = stack_blocks(variables)
    return variables, notes + file.conventions.notes(model_config)


def conventions(path: Given) -> Conventions:
    """What the origin of a weight file is known to have been trained with, as `Conventions`.

    Raises:
      UserError: as `load_weights`, for a file that cannot be read.
    """
    return _open(path).conventions


def describe(path: Given) -> Description:
    """What is needed to classify images with nothing but a weight file.

    Raises:
      UserError: the file cannot be read, holds no network that can be built here, or has no head.
    """
    file = _open(path)
    network = identify(file.tensors)
    if network.why_not:
        raise fit.refusal(file.path, network)
    if not all(name in file.tensors for name in HEAD):
        names = " and ".join(map(file.theirs, HEAD))
        foreign = [t.source for name, t in file.tensors.items() if name == t.source]
        others = f", and arrays of no network here: {checkpoints.listed(foreign)}" * bool(foreign)
        raise UserError(
            f"{file.path}: has no head ({names}){others}, so it names no classes. Give a file with "
            "one, or train one on images of yours: --config=configs/finetune.py."
        )
    stem = next(t.array for path, t in file.tensors.items() if path.startswith("params/stem_conv"))
    return file.conventions.describe(
        file.path,
        network.name,
        file.origin,
        network.fields | dict(file.fields),
        channels=stem.shape[2],
        num_classes=file.tensors[HEAD[1]].array.shape[0],
    )


def detector(path: Given) -> detectors.Detector | None:
    """The detector or segmenter of torchvision that a file holds; None if it holds none.

    `load_detector` reads its arrays into the network that it describes.

    Args:
      path: as `load_weights` takes it.

    Raises:
      UserError: the file cannot be read, or its heads are of a network that is not built here.
    """
    file = opened(path)
    if file.kind is not TORCH:
        return None
    found = detectors.find(file.tree, file.metadata, file.path, file.part)
    return found and found._replace(notes=found.notes + _nonfinite(found.path, found.arrays))


def _use_template_head(
    path: str, found: dict[str, Tensor], wanted: Mapping[str, Any], head: Mapping
) -> list[str]:
    """Puts the template's head in the place of one that does not fit; returns what to log."""
    present = [found[name].array.shape for name in HEAD if name in found]
    if present == [wanted[name].shape for name in HEAD]:
        return []
    for name in HEAD:
        found[name] = Tensor(np.asarray(head[name.rsplit("/", 1)[-1]]), name)
    old = f"of {present[0][-1]} classes" if present else "(the file has none)"
    return [f"{path}: the head {old} is replaced by a new one of {head['bias'].shape[0]} classes."]


def _nonfinite(path: str, arrays: Mapping[str, Any]) -> list[str]:
    """A sentence that names the arrays with NaN or Inf in them."""
    bad = [
        f"{name} ({np.isnan(array).sum():,} NaN, {np.isinf(array).sum():,} Inf)"
        for name, array in arrays.items()
        if not np.isfinite(array).all()
    ]
    if not bad:
        return []
    return [f"{path}: WARNING: {len(bad)} arrays are not finite: {checkpoints.listed(bad)}."]
