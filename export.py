"""Write a trained network in a form that other programs read.

    python export.py --workdir=runs/x --format=stablehlo      # jax.export, images of any size
    python export.py --workdir=runs/x --format=safetensors    # torchvision's names
    python export.py --workdir=runs/x --format=huggingface    # a folder for from_pretrained
    python export.py --weights=resnet50.pth --format=huggingface --output=folder

StableHLO takes uint8 images `[batch, height, width, channels]`, normalises them itself and returns
`{'logits', 'probabilities'}`, float32 `[batch, classes]`. Batch, height and width are free
(`accepted_shape` says when not); one file serves CPU, CUDA, ROCm and TPU. It needs nothing of this
code, but `pip install jax flatbuffers`:

    import jax.export
    network = jax.export.deserialize(bytearray(open('model.stablehlo', 'rb').read()))
    network.call(images)

Beside each file lies a `.json` with class names, image shape and versions. Exit status: 0 done, 1
an error that the message explains, 2 wrong arguments.
"""

from run import interrupt

if __name__ == "__main__":
    interrupt.ends_at_once()

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from errors import UsageError, UserError
from run import command, files
from run.workdir import Workdir
from testing.opened_run import OpenedRun, load, shorter_side, weights_alone
from weights import huggingface
from weights.torchvision import to_torch

FORMATS = ("stablehlo", "onnx", "safetensors", "huggingface")
FORMAT_VERSION = 2  # of the names and meanings of inputs, outputs and the .json
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
ADVICE = "choose another --output"

NO_ONNX = (
    "--format=onnx: left out, because no maintained converter writes all of these networks. "
    "jax2onnx 0.17.1, tried on 2026-11-25, stops at the ImageNet stem's pool (lax.pad) when the "
    "number of images is free: 'InconclusiveDimensionOperation'. Use --format=safetensors, load "
    "the file into torchvision's network with strict=True and export that with torch.onnx."
)


def to_stablehlo(network: OpenedRun) -> bytes:
    """Serializes `images → {'logits', 'probabilities'}` for images of any shape (`jax.export`)."""
    mean, std = (np.asarray(constant, np.float32) for constant in network.facts.normalization)

    @jax.jit
    def classify(images: jax.Array) -> dict[str, jax.Array]:
        # Written out, and not shared with the data's code: `export` may not depend on it.
        shape = (1,) * (4 - mean.ndim) + mean.shape
        normalized = (images.astype(jnp.float32) - mean.reshape(shape)) / std.reshape(1, 1, 1, -1)
        logits, _ = network.model.apply(network.variables, normalized, train=False)
        return {"logits": logits, "probabilities": jax.nn.softmax(logits)}

    shape = jax.export.symbolic_shape(", ".join(map(str, accepted_shape(network))))
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    exported = jax.export.export(classify, platforms=PLATFORMS)(images)
    return bytes(exported.serialize())


def accepted_shape(network: OpenedRun) -> tuple[str | int, ...]:
    """Batch, height, width and channels of images, by name what is free.

    A mean image fixes height and width. Where a shortcut strides by selecting or averaging pixels,
    or the stem's pool is not padded, they are multiples of the network's stride: JAX cannot show of
    all sizes that the shapes agree.
    """
    model, (height, width, channels) = network.config.model, network.facts.image_shape
    if np.ndim(network.facts.normalization.mean) > 1:
        return ("batch", height, width, channels)
    if model.shortcut in ("B", "C") and model.stem_pool == "padded":
        return ("batch", "height", "width", channels)
    stride = 4 if model.stem == "cifar" else 32
    return ("batch", f"{stride}*height", f"{stride}*width", channels)


def describe(network: OpenedRun) -> dict[str, Any]:
    """What a user of an exported file must know, as JSON-able fields."""
    facts, model = network.facts, network.config.model
    return {
        "format_version": FORMAT_VERSION,
        "jax": jax.__version__,
        "calling_convention": jax.export.maximum_supported_calling_convention_version,
        "input": {"dtype": "uint8", "shape": list(accepted_shape(network)), "order": "RGB"},
        "image_shape": list(facts.image_shape),
        "resize": shorter_side(network.config, facts.image_shape[0]),
        "normalization": facts.normalization.to_dict(),
        "label_names": list(facts.label_names),
        "dataset": facts.dataset,
        "step": network.step,
        "model": model.to_dict(),
    }


def export(network: OpenedRun, kind: str, path: str | os.PathLike) -> None:
    """Writes the network to `path` and its description to `path` + '.json'.

    Args:
      kind: one of `FORMATS`.
      path: file to write, or for Hugging Face a folder; each file appears complete or not at all.

    Raises:
      UserError: for ONNX, for a network that the format cannot have, and when nothing can be
        written.
    """
    if kind == "onnx":
        raise UserError(NO_ONNX)
    description = json.dumps(describe(network), indent=2)
    path = files.at(path)
    if kind == "huggingface":
        _write_huggingface(network, path)
    elif kind == "safetensors":
        metadata = {"format": "pt", "format_version": str(FORMAT_VERSION)}
        metadata |= {name: str(value) for name, value in network.config.model.items()}
        metadata["normalization"] = network.config.data.normalization
        state = to_torch(network.variables, pooled=network.config.model.shortcut == "D")
        _save(path, state, metadata | {"description": description})
    else:
        with files.explained(path, ADVICE), files.whole(path) as temporary:
            temporary.write_bytes(to_stablehlo(network))
    files.write_text(f"{path}.json", description, ADVICE)


def _write_huggingface(network: OpenedRun, folder: Path) -> None:
    """Weights, config.json and, if the means are of channels, preprocessor_config.json."""
    model, facts = network.config.model, network.facts
    huggingface.check(model)
    state = to_torch(network.variables)
    texts = {"config": huggingface.config_json(state, model.downsample_in, facts.label_names)}
    mean, std = facts.normalization
    if np.shape(mean) == (3,):
        resize = shorter_side(network.config, facts.image_shape[0])
        texts["preprocessor_config"] = huggingface.preprocessor_json(
            mean, std, resize, facts.image_shape[0]
        )
    named = {huggingface.huggingface_name(name): array for name, array in state.items()}
    _save(folder / huggingface.WEIGHTS[0], named, {"format": "pt"})
    for name, fields in texts.items():
        files.write_text(folder / f"{name}.json", json.dumps(fields, indent=2), ADVICE)


def _save(path: Path, state: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    with files.explained(path, ADVICE), files.whole(path) as temporary:
        save_file(state, temporary, metadata=metadata)


def main(argv: Sequence[str] | None) -> None:
    """Runs the command."""
    parser = command.Parser("python export.py", __doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", default="", help="folder of the run")
    source.add_argument("--weights", default="", help="weight file or folder of one, without a run")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--output", default="", help="file or folder (WORKDIR/export/model.FORMAT)")
    parser.add_argument("--which", choices=("last", "best"), default="last", help="checkpoint")
    flags = parser.parse_args(argv)
    if flags.weights and not flags.output:
        raise UsageError("--weights=… has no workdir to write into; say where, with --output=…")
    path = files.at(flags.output or Workdir(flags.workdir).export / f"model.{flags.format}")
    if flags.weights:
        network, said = weights_alone(flags.weights)
        print(command.printable(said))
    else:
        network = load(flags.workdir, which=flags.which)
    export(network, flags.format, path)
    size = sum(p.stat().st_size for p in (path.iterdir() if path.is_dir() else [path]))
    print(command.printable(f"{path}: {size:,} bytes; description in {path}.json"))
    if flags.format == "stablehlo":
        print("To read it: pip install jax flatbuffers (jax.export needs both).")


if __name__ == "__main__":
    sys.exit(command.run(main))
