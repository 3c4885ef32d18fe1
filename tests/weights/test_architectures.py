"""Other architectures are named from names and shapes; ours are described by config.model's fields.

The names are those of timm 1.0 and torchvision 0.29; the arrays of one block replace ours, or are
added.
"""

import pickle

import jax
import numpy as np
import pytest

import models
import weights
from errors import UserError
from tests.weights.test_door import CIFAR, abstract, write
from weights.architectures import identify
from weights.files import LEGACY_MAGIC
from weights.torchvision import from_torch, to_torch

RESNET50 = {"depth": 50, "width": 4}


def network(fields=RESNET50, **changes):
    """torch key → array of a network of ours, with changes; None leaves an array out."""
    zeros = jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), abstract(fields))
    state = to_torch(zeros, pooled=fields.get("shortcut") == "D") | {
        k.replace("/", "."): v for k, v in changes.items()
    }
    return {key: array for key, array in state.items() if array is not None}


def ones(*shape):
    return np.ones(shape, np.float32)


WITHOUT_STATISTICS = {k: None for k in network() if "running" in k or "tracked" in k}
S_STEM = {
    "conv1.weight": None,
    **{f"conv1.{i}.weight": ones(n, 4, 3, 3) for i, n in ((0, 4), (3, 4), (6, 8))},
}
OTHERS = {
    "SE-ResNet-50": {"layer1.0.se.fc1.weight": ones(4, 16, 1, 1)},
    "ECA-ResNet-50": {"layer1.0.se.conv.weight": ones(1, 1, 3)},
    "SK-ResNet-50": {"layer1.0.conv2.attn.fc_reduce.weight": ones(4, 4, 1, 1)},
    "ResNeSt": {"layer1.0.conv2.fc1.weight": ones(4, 4, 1, 1)},
    "Res2Net": {"layer1.0.convs.0.weight": ones(1, 1, 3, 3)},
    "IBN-ResNet-50": {"layer1.0.bn1.IN.weight": ones(2)},
    "anti-aliased ResNet-50": {"layer2.0.conv3.0.filt": ones(4, 1, 3, 3)},
    "quantised ResNet-50": {"layer1.0.conv1.scale": ones()},
    "ResNet-50 without running averages (group normalisation)": WITHOUT_STATISTICS,
    "ResNet-50-C with a stem of [4, 4, 8] channels": S_STEM,
    "ResNet-50 with a 3×3 stem before 4 stages": {"conv1.weight": ones(4, 3, 3, 3)},
    "CIFAR repository": {"linear.weight": ones(5, 64), "fc.weight": None},
}
NO_RESNETS = {
    "vision transformer": ["cls_token", "blocks.0.attn.qkv.weight"],
    "ResNet v2": ["stem.conv.weight", "stages.0.blocks.0.norm1.weight"],
    "NF-ResNet": ["stem.conv.gain", "stages.0.0.conv1.weight"],
    "byobnet": ["stem.conv1.conv.weight", "stages.0.0.conv1_1x1.conv.weight"],
    "DenseNet": ["features.denseblock1.denselayer1.norm1.weight"],
    "ConvNeXt": ["stages.0.blocks.0.gamma", "stages.0.blocks.0.conv_dw.weight"],
    "EfficientNet": ["conv_stem.weight", "blocks.0.0.conv_dw.weight"],
    "VGG": ["features.0.weight", "classifier.0.weight"],
    "RegNet": ["stem.conv.weight", "s1.b1.conv1.conv.weight"],
    "no ResNet": ["encoder.weight"],
}


@pytest.mark.parametrize("name", OTHERS)
def test_residual_networks_of_other_forms_are_named(name):
    found = identify(from_torch(network(**OTHERS[name])))
    assert name in found.name and found.why_not


@pytest.mark.parametrize("name", NO_RESNETS)
def test_what_is_no_residual_network_is_named(name):
    found = identify(from_torch({key: ones(4) for key in NO_RESNETS[name]}))
    assert name in found.name and NO_RESNETS[name][0] in found.why_not


@pytest.mark.parametrize(
    ("sizes", "name"),
    [((2, 2, 2, 2), "ResNet-26"), ((3, 30, 48, 8), "ResNet-269"), ((1, 2, 9, 1), "1 + 2 + 9 + 1")],
)
def test_depths_that_are_not_in_the_table_have_no_invented_number(sizes, name):
    state = {
        key: array
        for key, array in network().items()
        if not key.startswith("layer") or int(key.split(".")[1]) < sizes[int(key[5]) - 1]
    }
    for stage, size in enumerate(sizes, start=1):
        for block in range(size):
            for i in (1, 2, 3):
                state[f"layer{stage}.{block}.conv{i}.weight"] = state[f"layer1.0.conv{i}.weight"]
    found = identify(from_torch(state))
    assert name in found.name and "no model.depth" in found.why_not


@pytest.mark.parametrize(
    "fields",
    [
        {"depth": 18, "width": 4},
        {"depth": 34, "width": 2, "shortcut": "A"},
        {"depth": 50, "width": 2, "shortcut": "C"},
        {"depth": 101, "width": 2},
        {"depth": 50, "width": 4, "stem": "deep"},
        {"depth": 18, "width": 4, "stem": "deep", "shortcut": "D"},
        {"depth": 50, "width": 16, "groups": 8, "width_per_group": 4},
        {"depth": 50, "width": 4, "width_per_group": 128},
        CIFAR | {"shortcut": "A"},
        CIFAR | {"depth": 14, "preactivation": True, "shortcut": "B"},
    ],
)
def test_fields_of_ours_are_seen(fields):
    found = identify(from_torch(network(fields)))
    assert not found.why_not and f"-{fields['depth']}" in found.name
    assert {name: found.fields[name] for name in fields} == fields
    assert set(found.fields) <= set(models.FIELDS)


def refusal(path, fields=RESNET50):
    with pytest.raises(UserError) as error:
        weights.load_weights(path, fields, abstract(fields))
    return str(error.value)


def test_the_refusal_names_file_network_and_arrays_and_no_field(tmp_path):
    path = write(tmp_path / "x.safetensors", RESNET50, **OTHERS["SE-ResNet-50"])
    words = refusal(path)
    for expected in (str(path), "SE-ResNet-50", "1 unknown: layer1.0.se.fc1.weight", "ResNet-18"):
        assert expected in words
    assert "model." not in words


def test_grouped_and_wide_networks_are_named_with_the_fields_to_set(tmp_path):
    grouped = {"depth": 50, "width": 16, "groups": 8, "width_per_group": 4}
    words = refusal(write(tmp_path / "x.safetensors", grouped), {"depth": 50, "width": 16})
    assert "ResNeXt-50 8x4d" in words
    assert words.endswith("Set model.groups=8, model.width_per_group=4.")


def test_advice_names_the_fields_that_differ_and_no_other(tmp_path):
    path = write(tmp_path / "x.safetensors", {"depth": 34, "width": 2})
    assert refusal(path, {"depth": 18, "width": 2}).endswith("Set model.depth=34.")
    assert refusal(path, {"depth": 34, "width": 4}).endswith("Set model.width=2.")


@pytest.mark.parametrize(
    "name",
    [
        "resnetblur50.pth",
        "resnet50-antialiased.safetensors",
        "resnetaa50.pth",
        "resnetblur18/model.bin",
        "20261126-resnetblur18-224/model_best.pth.tar",
        "resnetaa50/checkpoint-12.pth.tar",
    ],
)
def test_blur_pools_are_refused_by_the_name_of_the_file(name, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    assert "anti-aliased" in refusal(path, CIFAR)


def test_or_by_the_name_that_a_training_program_saved(tmp_path):
    tree = {"arch": "resnetblur50", "epoch": 3}
    parts = (LEGACY_MAGIC, 1001, {"little_endian": True}, tree, [])  # as torch did before 1.6
    (tmp_path / "run.pth").write_bytes(b"".join(map(pickle.dumps, parts)))
    with pytest.raises(UserError, match="'resnetblur50' is the name of an anti-aliased network"):
        weights.describe(tmp_path / "run.pth")


def test_other_names_are_not(tmp_path):
    for name in (
        "resnet50_a1_in1k.safetensors",
        "baa.safetensors",
        "resnet50-0676ba61.safetensors",
    ):
        weights.load_weights(write(tmp_path / name), CIFAR, abstract(CIFAR))
