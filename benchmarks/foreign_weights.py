"""What other libraries' networks compute, and what ours compute with their weights.

    python -m benchmarks.foreign_weights --write=FOLDER     # with torch, timm, transformers
    python -m benchmarks.foreign_weights --compare=FOLDER   # with this repository's requirements

The first writes networks of random weights and statistics, as their libraries save them, with their
logits and stages for two random images of 65 × 50 pixels. The second describes and loads each file
with `weights` alone and prints the largest difference, relative to the largest number.
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
    path = folder / f"{origin}-{name}.npz"
    np.savez(path, **found | {"images": images.permute(0, 2, 3, 1).numpy()})  # type: ignore[arg-type]
    print(path, flush=True)


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


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", type=Path, help="folder for the files")
    mode.add_argument("--compare", type=Path, help="folder of the files")
    flags = parser.parse_args()
    if flags.write:
        write(flags.write)
    else:
        compare(flags.compare)


if __name__ == "__main__":
    main()
