"""What timm's and Hugging Face's own networks compute, stored.

`python -m tests.support.peer_reference` (in an environment with timm and transformers) writes
tests/support/files/peer_reference.npz: keys, logits and samples of every stage, for weights and
images that `reference_weights` makes from names alone.
"""

import pathlib

import numpy as np

from tests.support import reference_weights

FILE = pathlib.Path(__file__).parent / "files" / "peer_reference.npz"
CLASSES, SHAPE = 10, (2, 65, 50, 3)
WIDTHS = {"embedding_size": 4, "hidden_sizes": [16, 32, 64, 128], "num_labels": CLASSES}
BASIC = {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [4, 8, 16, 32]}
HUGGING_FACE = {  # fields of its config
    "basic": WIDTHS | BASIC,
    "bottleneck": WIDTHS,
    "bottleneck_1x1": WIDTHS | {"downsample_in_bottleneck": True},
}
TIMM = {  # ours of the same networks: fields of `config.model`
    "resnet18d": {"depth": 18, "stem": "deep", "shortcut": "D", "width": 8},
    "resnet50c": {"depth": 50, "stem": "deep", "width": 8, "downsample_in": "3x3"},
}


def images():
    return reference_weights.random_of("images").standard_normal(SHAPE).astype(np.float32)


def timm_network(name):
    from timm.models import resnet

    fields = TIMM[name]
    block, sizes = resnet.BasicBlock, (2, 2, 2, 2)
    if fields["depth"] == 50:
        block, sizes = resnet.Bottleneck, (3, 4, 6, 3)
    model = resnet.ResNet(
        block,
        sizes,
        num_classes=CLASSES,
        stem_type="deep",
        stem_width=fields["width"] // 2,
        channels=tuple(fields["width"] * 2**i for i in range(4)),
        avg_down=fields.get("shortcut") == "D",
    )
    return model, [model.layer1, model.layer2, model.layer3, model.layer4]


def huggingface_network(name):
    from transformers import ResNetConfig, ResNetForImageClassification

    model = ResNetForImageClassification(ResNetConfig(**HUGGING_FACE[name]))
    return model, list(model.resnet.encoder.stages)


def main():
    import torch

    stored = {}
    made = [(n, timm_network(n)) for n in TIMM] + [
        (n, huggingface_network(n)) for n in HUGGING_FACE
    ]
    for name, (model, stages) in made:
        shapes = {key: tuple(t.shape) for key, t in model.state_dict().items()}
        arrays = reference_weights.make(shapes)
        model.load_state_dict({k: torch.as_tensor(v) for k, v in arrays.items()}, strict=True)
        for i, stage in enumerate(stages, start=1):
            stage.register_forward_hook(
                lambda _, __, out, key=f"{name}/stage{i}": stored.update(
                    {key: reference_weights.sample(out.permute(0, 2, 3, 1).numpy())}
                )
            )
        with torch.no_grad():
            out = model.eval()(torch.from_numpy(images().transpose(0, 3, 1, 2).copy()))
        stored[f"{name}/logits"] = getattr(out, "logits", out).numpy()
        stored[f"{name}/keys"] = np.array(sorted(shapes))
    np.savez_compressed(FILE, **stored)
    print(FILE, FILE.stat().st_size, "bytes, torch", torch.__version__)


if __name__ == "__main__":
    main()
