"""Write a trained network in a form that other programs read.

    python export.py --workdir=runs/x --format=stablehlo     # jax.export, any batch size
    python export.py --workdir=runs/x --format=safetensors   # torchvision's key names

StableHLO takes uint8 images `[batch, height, width, channels]`, normalises them itself and returns
`{'logits', 'probabilities'}`, float32 `[batch, classes]`. It needs JAX and nothing of this code:

    network = jax.export.deserialize(bytearray(open('model.stablehlo', 'rb').read()))
    network.call(images)

Beside each file lies a `.json` with class names, image shape and versions. Exit status: 0 done, 1
an error that the message explains, 2 wrong arguments.
"""

import os
import signal
import sys

if __name__ == "__main__":  # the imports below take seconds; `command.run` does it from then on
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from errors import UserError
from run import command, files
from run.workdir import Workdir
from testing.opened_run import OpenedRun, load
from weights.torchvision import to_torch

FORMATS = ("stablehlo", "onnx", "safetensors")
FORMAT_VERSION = 1  # of the names and meanings of inputs, outputs and the .json
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

NO_ONNX = (
    "--format=onnx: left out, because no maintained converter writes these networks correctly. "
    "jax2onnx 0.17.1 was tried: it does not know the switch between the convolutions of a CPU and "
    "of an accelerator (primitive 'platform_index'). Use --format=safetensors, load the file into "
    "torchvision's network with strict=True and export that with torch.onnx."
)


def to_stablehlo(network: OpenedRun) -> bytes:
    """Serializes `images → {'logits', 'probabilities'}` for any batch size (`jax.export`)."""
    mean, std = (np.asarray(constant, np.float32) for constant in network.facts.normalization)

    @jax.jit
    def classify(images: jax.Array) -> dict[str, jax.Array]:
        # Written out, and not shared with the data's code: `export` may not depend on it.
        shape = (1,) * (4 - mean.ndim) + mean.shape
        normalized = (images.astype(jnp.float32) - mean.reshape(shape)) / std.reshape(1, 1, 1, -1)
        logits, _ = network.model.apply(network.variables, normalized, train=False)
        return {"logits": logits, "probabilities": jax.nn.softmax(logits)}

    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *network.facts.image_shape), jnp.uint8)
    exported = jax.export.export(classify, platforms=PLATFORMS)(images)
    return bytes(exported.serialize())


def describe(network: OpenedRun) -> dict[str, Any]:
    """What a user of an exported file must know, as JSON-able fields."""
    facts, model = network.facts, network.config.model
    return {
        "format_version": FORMAT_VERSION,
        "jax": jax.__version__,
        "calling_convention": jax.export.maximum_supported_calling_convention_version,
        "input": {"dtype": "uint8", "shape": ["batch", *facts.image_shape], "order": "RGB"},
        "normalization": facts.normalization.to_dict(),
        "label_names": list(facts.label_names),
        "dataset": facts.dataset,
        "step": network.step,
        "model": model.to_dict(),
    }


def export(network: OpenedRun, kind: str, path: str | os.PathLike) -> None:
    """Writes the network to `path` and its description to `path` + '.json'.

    Args:
      network: the run whose network it is.
      kind: one of `FORMATS`.
      path: file to write; it appears complete or not at all.

    Raises:
      UserError: for ONNX, and when the file cannot be written.
    """
    if kind == "onnx":
        raise UserError(NO_ONNX)
    description = describe(network)
    with files.explained(path, "choose another --output"), files.whole(path) as temporary:
        if kind == "safetensors":
            metadata = {"format": "pt", "format_version": str(FORMAT_VERSION)}
            metadata |= {name: str(value) for name, value in description["model"].items()}
            metadata["normalization"] = network.config.data.normalization
            save_file(to_torch(network.variables), temporary, metadata=metadata)
        else:
            temporary.write_bytes(to_stablehlo(network))
    files.write_text(f"{path}.json", json.dumps(description, indent=2), "choose another --output")


def main(argv: Sequence[str] | None) -> None:
    """Runs the command."""
    parser = command.Parser("python export.py", __doc__)
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--output", default="", help="file (WORKDIR/export/model.FORMAT)")
    parser.add_argument("--which", choices=("last", "best"), default="last", help="checkpoint")
    flags = parser.parse_args(argv)
    path = flags.output or Workdir(flags.workdir).export / f"model.{flags.format}"
    export(load(flags.workdir, which=flags.which), flags.format, path)
    print(f"{path}: {os.path.getsize(path):,} bytes; description in {path}.json")


if __name__ == "__main__":
    sys.exit(command.run(main))
