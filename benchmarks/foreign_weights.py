"""What other libraries' networks compute, and what ours compute with their weights.

    python -m benchmarks.foreign_weights --write=FOLDER     # with torch, timm, transformers
    python -m benchmarks.foreign_weights --write=FOLDER --of=keras    # with keras and a backend
    python -m benchmarks.foreign_weights --write=FOLDER --of=caffe    # with opencv-python < 5
    python -m benchmarks.foreign_weights --compare=FOLDER   # with this repository's requirements

The first three write networks of random weights and statistics, as their libraries save them, with
their logits and stages for two random images of 65 × 50 pixels; and networks that are refused.
Caffe itself is not needed: OpenCV reads and computes its networks. The last describes and loads
each file with `weights` alone, and writes the largest difference, relative to the largest number,
and what is said of the others.
"""

import argparse
import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

STAGES = ("stage1", "stage2", "stage3", "stage4")
TORCHVISION = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "wide_resnet50_2",
    "resnext50_32x4d",
)
TIMM = ("resnet18d", "resnet34", "resnet50c", "resnet50d", "resnext50d_32x4d", "wide_resnet50_2")
SMALL = {"embedding_size": 16, "hidden_sizes": [64, 128, 256, 512], "num_labels": 10}
HUGGING_FACE: dict[str, dict[str, Any]] = {
    "resnet-50": {},
    "resnet-50-1x1": {"downsample_in_bottleneck": True},
    "resnet-18": {
        "layer_type": "basic",
        "depths": [2, 2, 2, 2],
        "hidden_sizes": [64, 128, 256, 512],
    },
    "sharded": SMALL,
    "sharded-bin": SMALL,
}
KERAS = {
    "ResNet50": (".weights.h5", ".keras", ".h5"),
    "ResNet101": (".weights.h5",),
    "ResNet152": (".keras",),
}
REFUSED = {
    "torchvision": (
        "densenet121",
        "regnet_y_400mf",
        "mobilenet_v2",
        "efficientnet_b0",
        "convnext_tiny",
        "vgg11",
        "shufflenet_v2_x1_0",
    ),
    "timm": (
        "seresnet50",
        "ecaresnet50d",
        "resnet50_gn",
        "resnetv2_50",
        "resnetblur50",
        "resnetaa50",
        "resnet10t",
        "resnet26t",
        "resnet50s",
        "res2net50_26w_4s",
        "skresnet18",
        "resnest50d",
        "resnetrs50",
        "tresnet_m",
        "cspresnet50",
        "nf_resnet26",
        "resnet50_clip",
        "vit_tiny_patch16_224",
        "mobilenetv3_small_100",
    ),
    "keras": ("ResNet50V2", "DenseNet121", "EfficientNetB0", "MobileNetV2"),
}

READING = (
    "Networks of random weights and statistics, written by `--write=FOLDER` (also with "
    "`--of=keras` and `--of=caffe`) as their libraries save them; two random images of 65 × 50 "
    "pixels; the largest difference, relative to the largest number."
)


def write(folder: Path) -> None:
    """Writes every network's weights and what it computes."""
    import timm
    import torchvision
    from transformers import ResNetConfig, ResNetForImageClassification

    creators = {"torchvision": torchvision.models.get_model, "timm": timm.create_model}
    for origin, names in (("torchvision", TORCHVISION), ("timm", TIMM)):
        for name in names:
            model = _random(creators[origin](name))
            _save(model.state_dict(), folder / f"{origin}-{name}")
            stages = [model.layer1, model.layer2, model.layer3, model.layer4]
            _record(model, stages, folder, origin, name)
        for name in REFUSED[origin]:
            _save(creators[origin](name).state_dict(), folder / f"refused-{origin}-{name}")
    for name, fields in HUGGING_FACE.items():
        model = _random(ResNetForImageClassification(ResNetConfig(**fields)))
        target = folder / f"huggingface-{name}"
        size = {"max_shard_size": "1MB"} if "sharded" in name else {}
        model.save_pretrained(target, **size)
        if name.endswith("bin"):
            _as_pickles(target)
        _record(model, list(model.resnet.encoder.stages), folder, "huggingface", name)


def _random(model: Any) -> Any:
    """Statistics that are not zero and one; activations keep their size through the depth."""
    import torch

    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.3, 0.7)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


def _save(state: dict[str, Any], target: Path) -> None:
    import torch

    target.mkdir(parents=True, exist_ok=True)
    torch.save(state, target / f"{target.name}.pth")


def _as_pickles(target: Path) -> None:
    """Shards of safetensors as shards of `torch.save`, which transformers no longer writes."""
    import torch
    from safetensors.torch import load_file

    index = target / "model.safetensors.index.json"
    names = json.loads(index.read_text())
    for shard in sorted(set(names["weight_map"].values())):
        torch.save(load_file(target / shard), (target / shard).with_suffix(".bin"))
        (target / shard).unlink()
    for key, shard in names["weight_map"].items():
        names["weight_map"][key] = shard.replace(".safetensors", ".bin")
    (target / "pytorch_model.bin.index.json").write_text(json.dumps(names))
    index.unlink()


def _record(model: Any, stages: list[Any], folder: Path, origin: str, name: str) -> None:
    import torch

    found: dict[str, np.ndarray] = {}
    for key, stage in zip(STAGES, stages, strict=True):
        stage.register_forward_hook(
            lambda _, __, out, key=key: found.update({key: out.permute(0, 2, 3, 1).numpy()})
        )
    images = torch.randn(2, 3, 65, 50)
    with torch.no_grad():
        out = model(images)
    found["logits"] = getattr(out, "logits", out).numpy()
    package = "transformers" if origin == "huggingface" else origin
    _store(folder / f"{origin}-{name}", found, images.permute(0, 2, 3, 1).numpy(), package)


def _store(target: Path, found: dict[str, Any], images: np.ndarray, package: str) -> None:
    """What a network computes for RGB images, beside the folder or file of its weights."""
    path = target.with_name(f"{target.name}.npz")
    arrays: dict[str, Any] = {name: np.asarray(array) for name, array in found.items()}
    by = f"{package} {metadata.version(package)}"
    np.savez(path, images=images, by=np.array(by), **arrays)
    print(path, flush=True)


def write_keras(folder: Path) -> None:
    """Writes Keras' networks, each in some of its three kinds of file."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(1).normal(size=(2, 65, 50, 3)).astype(np.float32)
    for name, endings in KERAS.items():
        create, random = getattr(keras.applications, name), np.random.default_rng(0)
        model = create(weights=None, input_shape=(65, 50, 3), classifier_activation=None)
        outputs = {"logits": model.output}
        for layer in model.layers:
            arrays = layer.get_weights()
            if isinstance(layer, keras.layers.BatchNormalization):
                shape = arrays[0].shape
                shifts = [random.normal(0, 0.1, shape) for _ in range(2)]
                scales = random.uniform(0.3, 0.7, shape), random.uniform(0.5, 1.5, shape)
                layer.set_weights([scales[0], *shifts, scales[1]])
            elif arrays:
                layer.set_weights([arrays[0], random.normal(0, 0.1, arrays[1].shape)])
            if layer.name.endswith("_out"):  # the last block of a stage stays
                outputs[f"stage{int(layer.name[len('conv')]) - 1}"] = layer.output
        found = keras.Model(model.input, outputs).predict(images[..., ::-1], verbose=0)
        for ending in endings:
            target = folder / f"keras-{name.lower()}{ending}"
            (model.save_weights if ending.startswith(".weights") else model.save)(target)
            _store(target, found, images, "keras")
    for name in REFUSED["keras"]:
        model = getattr(keras.applications, name)(weights=None)
        model.save_weights(folder / f"refused-keras-{name.lower()}.weights.h5")


def write_caffe(folder: Path) -> None:
    """Writes ResNet-50 as the authors' release has it; OpenCV reads and computes it."""
    import cv2

    from benchmarks import foreign_caffe

    target = folder / "caffe-resnet50"
    target.mkdir(parents=True, exist_ok=True)
    text, blobs = foreign_caffe.network(np.random.default_rng(0))
    file = target / "ResNet-50-model.caffemodel"
    file.write_bytes(foreign_caffe.file(blobs))
    (folder / "caffe-resnet50.prototxt").write_text(text)
    read = getattr(cv2.dnn, "readNetFromCaffe")  # noqa: B009 (OpenCV 5 has none)
    network = read(str(folder / "caffe-resnet50.prototxt"), str(file))
    images = np.random.default_rng(1).normal(size=(2, 65, 50, 3)).astype(np.float32)
    network.setInput(np.ascontiguousarray(images[..., ::-1].transpose(0, 3, 1, 2)))
    found = network.forward(["fc1000", "res2c_relu", "res3d_relu", "res4f_relu", "res5c_relu"])
    found = [a if a.ndim == 2 else a.transpose(0, 2, 3, 1) for a in found]
    stages = dict(zip(("logits", *STAGES), found, strict=True))
    _store(target, stages, images, "opencv-python-headless")


def compare(folder: Path, report: Path) -> None:
    """Writes two tables: the largest relative differences, and what is said of other networks."""
    import weights
    from benchmarks import reports
    from errors import UserError
    from weights.architectures import READ

    rows = [
        _compared(reference.with_suffix(""), dict(np.load(reference)))
        for reference in sorted(folder.glob("*.npz"))
    ]
    refused = []
    for path in sorted(folder.glob("refused-*")):
        try:
            said = f"**read** as {weights.describe(path).name}"
        except UserError as error:
            said = str(error).partition(": ")[2].replace(f" {READ}", "")
        refused.append([path.name.removeprefix("refused-"), said])
    lines = [reports.environment(), "", READING, ""]
    head = ("file", "computed by", "network", "logits", *STAGES)
    lines += ["## Read", "", *reports.table(head, rows), "", "## Refused", ""]
    lines += [f"Each message begins with the file's name and ends: “{READ}”", ""]
    lines += reports.table(("network", "message"), refused)
    command = "python -m benchmarks.foreign_weights --compare=FOLDER"
    reports.write(report, "Weights from elsewhere", command, lines)


def _compared(path: Path, theirs: dict[str, np.ndarray]) -> list[str]:
    """A row: file, library, network, and the largest relative differences."""
    import jax
    import jax.numpy as jnp

    import models
    import weights

    found = weights.describe(path)
    model = models.create(found.model, found.num_classes)
    image = jnp.zeros((1, 64, 64, 3))
    template = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
    variables, _ = weights.load_weights(path, found.model, template)
    apply = jax.jit(lambda v, x: model.apply(v, x, train=False))
    logits, endpoints = apply(variables, theirs["images"])
    ours = endpoints | {"logits": logits}
    relative = [
        f"{np.abs(ours[k] - theirs[k]).max() / np.abs(theirs[k]).max():.1e}"
        for k in ("logits", *STAGES)
    ]
    return [path.name, str(theirs["by"]), found.name, *relative]


WRITERS = {"torch": write, "keras": write_keras, "caffe": write_caffe}


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", type=Path, help="folder for the files")
    mode.add_argument("--compare", type=Path, help="folder of the files")
    parser.add_argument("--of", choices=WRITERS, default="torch", help="whose networks to write")
    parser.add_argument("--report", type=Path, default=Path(__file__).with_suffix(".md"))
    flags = parser.parse_args()
    if flags.write:
        WRITERS[flags.of](flags.write)
    else:
        compare(flags.compare, flags.report)


if __name__ == "__main__":
    main()
