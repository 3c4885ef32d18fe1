"""One door for weight files: `load_weights` reads any of them into a network's variables."""

import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from errors import UserError
from models.scanned import STACKED, stack_blocks, unstack_blocks
from weights import caffe, keras, torchvision
from weights.files import Tensor, read_safetensors, read_torch
from weights.torchvision import flatten

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


class _File(NamedTuple):
    tensors: dict
    conventions: Conventions
    theirs: object  # our path → the file's name for it, for messages


def _open_torch(path):
    return _torch_file(torchvision.state_dict(read_torch(path), path), {})


def _open_safetensors(path):
    arrays, metadata = read_safetensors(path)
    return _torch_file(torchvision.state_dict(arrays, path), metadata)


def _torch_file(arrays, metadata):
    # Files of export.py say how they were trained; the others are torchvision's and timm's.
    conventions = TORCHVISION
    if "downsample_in" in metadata:
        known = {name: metadata.get(name) for name in Conventions._fields}
        if known["normalization"] not in CONSTANTS:
            known["normalization"] = None
        conventions = Conventions(**known)
    return _File(torchvision.from_torch(arrays), conventions, torchvision.torch_name)


def _open_keras(path):
    return _File(keras.from_keras(keras.read_keras(path)), KERAS, str)


def _open_caffe(path):
    return _File(caffe.from_caffe(caffe.read_caffe(path)), CAFFE, str)


READERS = {
    ".safetensors": _open_safetensors,
    ".pth": _open_torch,
    ".pt": _open_torch,
    ".bin": _open_torch,
    ".h5": _open_keras,
    ".hdf5": _open_keras,
    ".keras": _open_keras,
    ".caffemodel": _open_caffe,
}


def _open(path):
    path = os.fspath(path)
    reader = READERS.get(os.path.splitext(path)[1].lower())
    if reader is None:
        raise UserError(f"{path}: unknown kind of weight file; expected {', '.join(READERS)}.")
    if not os.path.isfile(path):
        raise UserError(f"{path}: there is no such file. Nothing is downloaded; give a local one.")
    return reader(path)


def load_weights(path, model_config, variables_template, *, replace_head=False):
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
    wanted = flatten(jax.eval_shape(unstack_blocks, template))
    wanted = dict(sorted(wanted.items(), key=lambda item: not item[0].startswith("params")))
    found = dict(file.tensors)
    notes = []
    if replace_head:
        notes += _use_template_head(path, found, wanted, template["params"]["head"])
    _check_names(path, found, wanted, file.theirs)
    _check_shapes(path, found, wanted)
    variables = _unflatten(
        {name: jnp.asarray(np.asarray(found[name].array, np.float32)) for name in wanted}
    )
    if any(STACKED in stage for stage in template["params"].values()):
        variables = stack_blocks(variables)
    return variables, notes + _convention_notes(file.conventions, model_config)


def conventions(path):
    """What the origin of a weight file is known to have been trained with, as `Conventions`.

    Raises:
      UserError: as `load_weights`, for a file that cannot be read.
    """
    return _open(path).conventions


def _use_template_head(path, found, wanted, head):
    """Puts the template's head in the place of one that does not fit; returns what to log."""
    present = [found[name].array.shape for name in HEAD if name in found]
    if present == [wanted[name].shape for name in HEAD]:
        return []
    for name in HEAD:
        found[name] = Tensor(np.asarray(head[name.rsplit("/", 1)[-1]]), name)
    old = f"of {present[0][-1]} classes" if present else "(the file has none)"
    return [f"{path}: the head {old} is replaced by a new one of {head['bias'].shape[0]} classes."]


def _check_names(path, found, wanted, theirs):
    missing = [theirs(name) for name in wanted if name not in found]
    unknown = [tensor.source for name, tensor in found.items() if name not in wanted]
    if not missing and not unknown:
        return
    there, here = _blocks(found), _blocks(wanted)
    depths = ""
    if there and there != here:
        depths = (
            f"it holds a network of depth {_depth(there)} ({_describe(there)}), and config.model "
            f"describes depth {_depth(here)} ({_describe(here)}); "
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


def _blocks(names):
    """Convolutions of each block: {('stage1', 'block1'): 2, …}."""
    counts = {}
    for name in names:
        collection, *modules, _ = name.split("/")
        if collection == "params" and len(modules) == 3 and modules[2].startswith("conv"):
            block = tuple(modules[:2])
            counts[block] = counts.get(block, 0) + 1
    return counts


def _depth(blocks):
    return 2 + sum(blocks.values())


def _describe(blocks):
    stages = [stage for stage, _ in blocks]
    sizes = " + ".join(str(stages.count(stage)) for stage in sorted(set(stages)))
    layers = " or ".join(map(str, sorted(set(blocks.values()))))
    return f"{sizes} blocks of {layers} convolutions"


def _listed(names):
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _check_shapes(path, found, wanted):
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


def _unflatten(arrays):
    tree = {}
    for path, array in arrays.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = array
    return tree


def _convention_notes(known, model_config):
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
