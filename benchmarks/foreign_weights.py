"""What other libraries' networks compute, and what ours compute with their weights.

    python -m benchmarks.foreign_weights --write=FOLDER     # with torch, timm, transformers
    python -m benchmarks.foreign_weights --write=FOLDER --of=caffe    # with opencv-python < 5
    python -m benchmarks.foreign_weights --compare=FOLDER   # with this repository's requirements

The first writes networks of random weights and statistics, as their libraries save them, with their
logits and stages for two random images of 65 × 50 pixels. Caffe itself is not needed: OpenCV reads
and computes its networks. The last describes and loads each file with `weights` alone and prints
the largest difference, relative to the largest number.
"""

import argparse
import json
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


def write(folder: Path) -> None:
    """Writes every network's weights and what it computes."""
    import timm
    import torchvision
    from transformers import ResNetConfig, ResNetForImageClassification

    for library, names in ((torchvision.models, TORCHVISION), (timm, TIMM)):
        origin = "timm" if library is timm else "torchvision"
        for name in names:
            model = library.create_model(name) if library is timm else getattr(library, name)()
            model = _random(model)
            _save(model.state_dict(), folder / f"{origin}-{name}")
            _record(
                model,
                [model.layer1, model.layer2, model.layer3, model.layer4],
                folder,
                origin,
                name,
            )
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
    _store(folder / f"{origin}-{name}", found, images.permute(0, 2, 3, 1).numpy())


def _store(target: Path, found: dict[str, Any], images: np.ndarray) -> None:
    """What a network computes for RGB images, beside the folder of its weights."""
    path = target.with_name(f"{target.name}.npz")
    arrays: dict[str, Any] = {name: np.asarray(array) for name, array in found.items()}
    np.savez(path, images=images, **arrays)
    print(path, flush=True)


def write_caffe(folder: Path) -> None:
    """Writes ResNet-50 as the authors' release has it; OpenCV reads and computes it."""
    import cv2

    target = folder / "caffe-resnet50"
    target.mkdir(parents=True, exist_ok=True)
    text, blobs = _caffe_network(np.random.default_rng(0))
    file = target / "ResNet-50-model.caffemodel"
    file.write_bytes(_caffe_file(blobs))
    (folder / "caffe-resnet50.prototxt").write_text(text)
    read = getattr(cv2.dnn, "readNetFromCaffe")  # noqa: B009 (OpenCV 5 has none)
    network = read(str(folder / "caffe-resnet50.prototxt"), str(file))
    images = np.random.default_rng(1).normal(size=(2, 65, 50, 3)).astype(np.float32)
    network.setInput(np.ascontiguousarray(images[..., ::-1].transpose(0, 3, 1, 2)))
    found = network.forward(["fc1000", "res2c_relu", "res3d_relu", "res4f_relu", "res5c_relu"])
    found = [a if a.ndim == 2 else a.transpose(0, 2, 3, 1) for a in found]
    _store(target, dict(zip(("logits", *STAGES), found, strict=True)), images)


def _caffe_network(random: np.random.Generator) -> tuple[str, dict[str, list[np.ndarray]]]:
    """The text of a network for Caffe, and each layer's arrays."""
    lines = ['name: "ResNet-50" input: "data"', "input_shape { dim: 2 dim: 3 dim: 65 dim: 50 }"]
    blobs: dict[str, list[np.ndarray]] = {}

    def add(kind, name, bottoms, options="", arrays=()):
        below = " ".join(f'bottom: "{b}"' for b in bottoms)
        lines.append(f'layer {{ name: "{name}" type: "{kind}" {below} top: "{name}" {options} }}')
        blobs[name] = [np.asarray(array, np.float32) for array in arrays]
        return name

    def convolution(below, name, channels, out, size, stride, bias=False):
        """Convolution, BatchNorm with its factor, Scale."""
        layer, end = ("conv1", "_conv1") if name == "conv1" else (f"res{name}", name)
        kernel = random.normal(
            0, (2 / (size * size * channels)) ** 0.5, (out, channels, size, size)
        )
        options = f"num_output: {out} kernel_size: {size} stride: {stride} pad: {size // 2}"
        options = f"convolution_param {{ {options} bias_term: {str(bias).lower()} }}"
        top = add(
            "Convolution", layer, [below], options, [kernel, random.normal(0, 0.1, out)][: 1 + bias]
        )
        factor = 999.98
        statistics = [factor * random.normal(0, 0.1, out), factor * random.uniform(0.5, 1.5, out)]
        top = add("BatchNorm", f"bn{end}", [top], "", [*statistics, [factor]])
        affine = [random.uniform(0.3, 0.7, out), random.normal(0, 0.1, out)]
        return add("Scale", f"scale{end}", [top], "scale_param { bias_term: true }", affine)

    top = add("ReLU", "conv1_relu", [convolution("data", "conv1", 3, 64, 7, 2, bias=True)])
    top = add("Pooling", "pool1", [top], "pooling_param { pool: MAX kernel_size: 3 stride: 2 }")
    channels = 64
    for stage, count in enumerate((3, 4, 6, 3), start=2):
        for i in range(count):
            name, width = f"{stage}{'abcdef'[i]}", 2 ** (stage + 4)
            stride, shortcut = 1 + (i == 0 and stage > 2), top
            if i == 0:
                shortcut = convolution(top, f"{name}_branch1", channels, 4 * width, 1, stride)
            for branch, out, size in (("2a", width, 1), ("2b", width, 3), ("2c", 4 * width, 1)):
                top = convolution(top, f"{name}_branch{branch}", channels, out, size, stride)
                channels, stride = out, 1
                if branch != "2c":
                    top = add("ReLU", f"{top}_relu", [top])
            top = add("ReLU", f"res{name}_relu", [add("Eltwise", f"res{name}", [shortcut, top])])
    top = add("Pooling", "pool5", [top], "pooling_param { pool: AVE global_pooling: true }")
    head = [random.normal(0, 0.02, (10, 2048)), random.normal(0, 0.1, 10)]
    add("InnerProduct", "fc1000", [top], "inner_product_param { num_output: 10 }", head)
    return "\n".join(lines), blobs


def _caffe_file(blobs: dict[str, list[np.ndarray]]) -> bytes:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

    from weights.caffe import SCHEMA

    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(SCHEMA, descriptor_pb2.FileDescriptorProto()))
    net = message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.NetParameter"))()
    for name, arrays in blobs.items():
        layer = net.layer.add(name=name)
        for array in arrays:
            layer.blobs.add(data=array.ravel(), shape={"dim": array.shape})
    return net.SerializeToString()


def compare(folder: Path) -> None:
    """Prints a table: file, network, and the largest relative differences."""
    import jax
    import jax.numpy as jnp

    import models
    import weights

    print("| file | network | logits | " + " | ".join(STAGES) + " |")
    print("|---|---|---|" + "---|" * len(STAGES))
    for reference in sorted(folder.glob("*.npz")):
        theirs = np.load(reference)
        found = weights.describe(reference.with_suffix(""))
        model = models.create(found.model, found.num_classes)
        shape = jnp.zeros((1, 64, 64, 3))
        template = jax.eval_shape(
            lambda m=model, x=shape: m.init(jax.random.key(0), x, train=False)
        )
        variables, _ = weights.load_weights(reference.with_suffix(""), found.model, template)
        apply = jax.jit(lambda v, x, m=model: m.apply(v, x, train=False))
        logits, endpoints = apply(variables, theirs["images"])
        ours = endpoints | {"logits": logits}
        relative = [
            f"{np.abs(ours[k] - theirs[k]).max() / np.abs(theirs[k]).max():.1e}"
            for k in ("logits", *STAGES)
        ]
        print(f"| {reference.stem} | {found.name} | {' | '.join(relative)} |", flush=True)


WRITERS = {"torch": write, "caffe": write_caffe}


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", type=Path, help="folder for the files")
    mode.add_argument("--compare", type=Path, help="folder of the files")
    parser.add_argument("--of", choices=WRITERS, default="torch", help="whose networks to write")
    flags = parser.parse_args()
    if flags.write:
        WRITERS[flags.of](flags.write)
    else:
        compare(flags.compare)


if __name__ == "__main__":
    main()
