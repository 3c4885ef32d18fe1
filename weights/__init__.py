"""Weight files from elsewhere ↔ our variables: torchvision, timm, Keras, the authors' Caffe models.

`load_weights` reads any of them into a network's variables; `conventions` says what else is known.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from errors import UserError
from models.scanned import STACKED, stack_blocks, unstack_blocks
from weights import caffe, keras, torchvision
from weights.files import Tensor, read_safetensors, read_torch

HEAD = ("params/head/kernel", "params/head/bias")
LISTED = 8  # names in an error message


class Conventions(NamedTuple):
    """What a network's arrays do not say about it; None where the origin leaves it open.

    Attributes:
      downsample_in, stem_pool: the fields of `config.model` that the weights were trained with.
      normalization: the constants that images were normalised with, by `config.data`'s name.
    """

    downsample_in: str | None = None
    stem_pool: str | None = None
    normalization: str | None = None


CONSTANTS = ("imagenet", "caffe")  # normalisations that do not depend on a data set
TORCHVISION = Conventions("3x3", "padded", "imagenet")
KERAS = Conventions("1x1", "padded", "caffe")
# The release subtracts a mean image; 'caffe' is the per-channel stand-in that Keras uses for it.
CAFFE = Conventions("1x1", "unpadded", "caffe")

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".h5", ".hdf5", ".keras", ".caffemodel")


class _File(NamedTuple):
    tensors: dict[str, Tensor]
    conventions: Conventions
    theirs: Callable[[str], str] = str  # our path → the file's name for it, for messages


def _open(path: str | os.PathLike) -> _File:
    path = os.fspath(path)
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: unknown kind of weight file; expected {', '.join(SUFFIXES)}.")
    if not os.path.isfile(path):
        raise UserError(f"{path}: there is no such file. Nothing is downloaded; give a local one.")
    if suffix == ".caffemodel":
        return _File(caffe.from_caffe(caffe.read_caffe(path)), CAFFE)
    if suffix in (".h5", ".hdf5", ".keras"):
        return _File(keras.from_keras(keras.read_keras(path)), KERAS)
    tree, metadata = read_safetensors(path) if suffix == ".safetensors" else (read_torch(path), {})
    arrays = torchvision.state_dict(tree, path)
    known = TORCHVISION
    if "downsample_in" in metadata:  # a file of export.py says how it was trained
        known = Conventions(*map(metadata.get, Conventions._fields))
        if known.normalization not in CONSTANTS:
            known = known._replace(normalization=None)
    return _File(torchvision.from_torch(arrays), known, torchvision.torch_name)


def load_weights(
    path: str | os.PathLike,
    model_config: Mapping[str, Any],
    variables_template: Mapping[str, Any],
    *,
    replace_head: bool = False,
) -> tuple[dict[str, Any], list[str]]:
    """Reads a weight file into the variables of a network.

    Args:
      path: `.safetensors`, `.pth`, `.pt`, `.bin` (torchvision's and timm's names), `.h5`, `.keras`
        (Keras' ResNet50/101/152) or `.caffemodel` (the authors' release).
      model_config: fields of the network, e.g. `config.model`; compared with what the file's origin
        is known to have been trained with.
      variables_template: the network's variables, `{'params': …, 'batch_stats': …}`; a replaced
        head is taken from it.
      replace_head: keep the template's head when the file's has another number of classes or is
        missing.

    Returns:
      `(variables, notes)`: float32 arrays in the template's structure, and sentences to be logged.

    Raises:
      UserError: the file cannot be read; it is of another depth; names are missing or unknown;
        shapes differ; the head differs and may not be replaced.
    """
    file = _open(path)
    template = {name: variables_template[name] for name in ("params", "batch_stats")}
    wanted = flatten_dict(jax.eval_shape(unstack_blocks, template), sep="/")
    wanted = dict(sorted(wanted.items(), key=lambda item: not item[0].startswith("params")))
    found = dict(file.tensors)
    notes = []
    if replace_head:
        notes += _use_template_head(path, found, wanted, template["params"]["head"])
    _check_names(path, found, wanted, file.theirs)
    _check_shapes(path, found, wanted)
    arrays = {name: jnp.asarray(np.asarray(found[name].array, np.float32)) for name in wanted}
    variables = unflatten_dict(arrays, sep="/")
    if any(STACKED in stage for stage in template["params"].values()):
        variables = stack_blocks(variables)
    return variables, notes + _convention_notes(file.conventions, model_config)


def conventions(path: str | os.PathLike) -> Conventions:
    """What the origin of a weight file is known to have been trained with, as `Conventions`.

    Raises:
      UserError: as `load_weights`, for a file that cannot be read.
    """
    return _open(path).conventions


def _use_template_head(
    path: str | os.PathLike, found: dict[str, Tensor], wanted: Mapping[str, Any], head: Mapping
) -> list[str]:
    """Puts the template's head in the place of one that does not fit; returns what to log."""
    present = [found[name].array.shape for name in HEAD if name in found]
    if present == [wanted[name].shape for name in HEAD]:
        return []
    for name in HEAD:
        found[name] = Tensor(np.asarray(head[name.rsplit("/", 1)[-1]]), name)
    old = f"of {present[0][-1]} classes" if present else "(the file has none)"
    return [f"{path}: the head {old} is replaced by a new one of {head['bias'].shape[0]} classes."]


def _check_names(
    path: str | os.PathLike,
    found: Mapping[str, Tensor],
    wanted: Mapping[str, Any],
    theirs: Callable[[str], str],
) -> None:
    missing = [theirs(name) for name in wanted if name not in found]
    unknown = [tensor.source for name, tensor in found.items() if name not in wanted]
    if not missing and not unknown:
        return
    there, here = _blocks(found), _blocks(wanted)
    depths = ""
    if there and there != here:
        depths = (
            f"it holds a network of {_shape(there)}, and config.model describes {_shape(here)}; "
        )
    problems = [
        f"{len(names)} {kind}: {_listed(names)}"
        for kind, names in (("missing", missing), ("unknown", unknown))
        if names
    ]
    advice = "Set model.depth, model.stem and model.shortcut to the file's, or choose another file."
    if not any(name in found for name in HEAD):
        advice = "A file without a head needs replace_head=True."
    raise UserError(f"{path}: does not fit; {depths}{'; '.join(problems)}. {advice}")


def _blocks(names: Iterable[str]) -> Counter[str]:
    """Convolutions of each block: {'stage1/block1': 2, …}."""
    kernels = (re.fullmatch(r"params/(stage\d+/block\d+)/conv\d+/kernel", name) for name in names)
    return Counter(match[1] for match in kernels if match)


def _shape(blocks: Counter[str]) -> str:
    stages = Counter(block.split("/")[0] for block in blocks)
    sizes = " + ".join(str(stages[stage]) for stage in sorted(stages))
    layers = " or ".join(map(str, sorted(set(blocks.values()))))
    return f"depth {2 + blocks.total()} ({sizes} blocks of {layers} convolutions)"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _check_shapes(
    path: str | os.PathLike, found: Mapping[str, Tensor], wanted: Mapping[str, Any]
) -> None:
    wrong = [name for name in wanted if found[name].array.shape != wanted[name].shape]
    if not wrong:
        return
    if set(wrong) <= set(HEAD) and found[HEAD[0]].array.shape[0] == wanted[HEAD[0]].shape[0]:
        there, here = found[HEAD[0]].array.shape, wanted[HEAD[0]].shape
        raise UserError(
            f"{path}: a head of {there[1]} classes, {there}; the data has {here[1]}, {here}. "
            "Allow a new head with replace_head=True, or use data of the file's classes."
        )
    listed = [
        f"{found[name].source} has {found[name].array.shape}, expected {wanted[name].shape}"
        for name in wrong
    ]
    raise UserError(
        f"{path}: {len(wrong)} arrays have another shape (kernels as [height, width, in, out]): "
        f"{_listed(listed)}. Choose the file's model.width, or its number of image channels."
    )


def _convention_notes(known: Conventions, model_config: Mapping[str, Any]) -> list[str]:
    """Sentences about what the weights were trained with and the arrays do not say."""
    fields = dict(model_config)
    notes = []
    has_bottlenecks = fields.get("stem") != "cifar" and fields.get("depth", 50) >= 50
    for name, default, matters in (
        ("downsample_in", "1x1", has_bottlenecks),
        ("stem_pool", "padded", fields.get("stem") != "cifar"),
    ):
        value, expected = fields.get(name, default), getattr(known, name)
        if expected and value != expected and matters:
            notes.append(
                f"These weights were trained with model.{name}={expected}, and config.model has "
                f"{value}: unless that is on purpose, set --config.model.{name}={expected}."
            )
    if known.normalization == "caffe":
        note = "These weights expect RGB pixel values minus ImageNet's channel means, undivided"
        note += " (data.normalization=caffe)"
        if known.stem_pool == "unpadded":
            note += ", or minus the release's mean image (weights.caffe.read_mean_image)"
        notes.append(note + ".")
    return notes
