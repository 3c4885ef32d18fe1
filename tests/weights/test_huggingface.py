"""Hugging Face's folders and timm's names against what transformers and timm computed."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import models
import weights
from configs import base
from data.facts import Facts
from data.normalization import CONSTANTS
from errors import UserError
from tests.support import peer_reference, reference_weights
from tests.support.reference_weights import write_safetensors
from tests.weights.test_door import CIFAR, abstract
from training.classification import check_labels
from weights import huggingface
from weights.torchvision import to_torch

REFERENCE = np.load(peer_reference.FILE)
OURS = {
    "basic": {"depth": 18, "width": 4},
    "bottleneck": {"depth": 50, "width": 4, "downsample_in": "3x3"},
    "bottleneck_1x1": {"depth": 50, "width": 4, "downsample_in": "1x1"},
}
LABELS = {str(i): f"name {i}" for i in range(peer_reference.CLASSES)}
CONFIG = {"model_type": "resnet", "id2label": LABELS}


def state_of(fields, rename=str):
    """A state dict of such a network, with arrays that its keys' names make."""
    zeros = jax.tree.map(
        lambda s: np.broadcast_to(np.float32(0), s.shape), abstract(fields, peer_reference.CLASSES)
    )
    state = to_torch(zeros, pooled=fields.get("shortcut") == "D")
    return reference_weights.make({rename(key): array.shape for key, array in state.items()})


def folder_of(path, name="basic", config=CONFIG, arrays=None, **fields):
    path.mkdir(exist_ok=True)
    config = config | peer_reference.HUGGING_FACE[name] | fields
    (path / "config.json").write_text(json.dumps(config))
    arrays = arrays or state_of(OURS[name], huggingface.huggingface_name)
    write_safetensors(path / "model.safetensors", arrays, {"format": "pt"})
    return path


def agrees(path, name):
    """Loads a file with nothing but what it says; compares with what its library computed."""
    found = weights.describe(path)
    model = models.create(found.model, found.num_classes)
    template = abstract(found.model, found.num_classes)
    variables, notes = weights.load_weights(path, found.model, template)
    apply = jax.jit(lambda v, x: model.apply(v, x, train=False))
    logits, endpoints = apply(variables, jnp.asarray(peer_reference.images()))
    np.testing.assert_allclose(logits, REFERENCE[f"{name}/logits"], rtol=0, atol=1e-4)
    for stage in ("stage1", "stage2", "stage3", "stage4"):
        np.testing.assert_allclose(
            reference_weights.sample(endpoints[stage]),
            REFERENCE[f"{name}/{stage}"],
            rtol=0,
            atol=1e-4,
            err_msg=stage,
        )
    return found, notes


@pytest.mark.slow
def test_a_folder_is_enough(tmp_path):
    found, notes = agrees(folder_of(tmp_path / "basic"), "basic")
    assert notes == [] and found.label_names == tuple(LABELS.values())
    assert found.model["depth"] == 18 and found.normalization == "imagenet"


def test_its_class_names_count_where_they_are_the_datas(tmp_path):
    config = base.base()
    config.init_from = str(folder_of(tmp_path / "basic"))
    names = tuple(LABELS.values())
    facts = Facts("folder:x", names, (32, 32, 3), CONSTANTS["imagenet"], 4)
    assert check_labels(config, facts)
    with pytest.raises(UserError, match=r"label_names.0.*there.*in the data"):
        check_labels(config, facts._replace(label_names=names[::-1]))
    assert check_labels(config, facts._replace(label_names=("n01440764",) * len(names)))
    assert weights.describe(config.init_from).assumed == ("normalisation",)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bottleneck", "bottleneck_1x1"])
def test_the_stride_of_bottlenecks_follows_config_json(name, tmp_path):
    found, _ = agrees(folder_of(tmp_path / "x", name), name)
    assert found.model["downsample_in"] == OURS[name]["downsample_in"]


@pytest.mark.slow
@pytest.mark.parametrize("name", peer_reference.TIMM)
def test_timms_deep_stems_and_pooled_shortcuts(name, tmp_path):
    fields = peer_reference.TIMM[name]
    state = state_of(fields)
    assert sorted(state) == list(REFERENCE[f"{name}/keys"])
    path = tmp_path / f"{name}.safetensors"
    write_safetensors(path, state, {})
    found, notes = agrees(path, name)
    assert notes == [] and {key: found.model[key] for key in fields} == fields


@pytest.mark.parametrize("name", OURS)
def test_names_are_those_of_transformers_both_ways(name):
    state = state_of(OURS[name])
    theirs = [huggingface.huggingface_name(key) for key in state]
    assert sorted(theirs) == list(REFERENCE[f"{name}/keys"])
    assert [huggingface.torchvision_name(key) for key in theirs] == list(state)


@pytest.mark.parametrize("shards", [2, 5])
def test_shards_are_one_file_and_a_missing_one_is_named(shards, tmp_path):
    folder = folder_of(tmp_path / "x")
    whole = weights.conventions(folder)
    arrays = state_of(OURS["basic"], huggingface.huggingface_name)
    (folder / "model.safetensors").unlink()
    names = {}
    for i in range(shards):
        shard = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {key: arrays[key] for key in list(arrays)[i::shards]}
        write_safetensors(folder / shard, part, {"format": "pt"})
        names |= dict.fromkeys(part, shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    template = abstract(OURS["basic"], peer_reference.CLASSES)
    variables, notes = weights.load_weights(folder, OURS["basic"], template)
    assert notes == [] and weights.conventions(index) == whole
    found = to_torch(variables)
    for key, array in arrays.items():
        if not key.endswith("tracked"):
            np.testing.assert_array_equal(found[huggingface.torchvision_name(key)], array)
    (folder / shard).unlink()
    with pytest.raises(UserError, match=rf"names the file '{shard}', which is not beside it"):
        weights.conventions(folder)
    index.write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(UserError, match="not beside it"):
        weights.conventions(folder)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "regnet"}, "model_type='regnet'.*'resnet'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"downsample_in_first_stage": True}, "downsample_in_first_stage=True"),
        ({"id2label": {"a": "b"}}, "config.json"),
    ],
)
def test_another_network_is_refused_by_its_config(config, words, tmp_path):
    folder = folder_of(tmp_path / "x", **config)
    with pytest.raises(UserError, match=words):
        weights.describe(folder)


def test_without_a_config_the_stride_is_assumed_and_said(tmp_path):
    folder = folder_of(tmp_path / "x", "bottleneck")
    (folder / "config.json").unlink()
    template = abstract(OURS["bottleneck"], peer_reference.CLASSES)
    _, notes = weights.load_weights(folder / "model.safetensors", OURS["bottleneck"], template)
    assert len(notes) == 1 and "no config.json" in notes[0]


PROCESSOR = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, (224, 256)),
        ({"size": 288, "crop_pct": 0.95}, (288, 303)),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, (384, 384)),
        (
            {"size": {"shortest_edge": 232}, "crop_size": {"height": 200}, "do_center_crop": True},
            (200, 232),
        ),
        ({}, (224, 256)),
    ],
)
def test_images_are_prepared_as_the_processor_says(fields, expected, tmp_path):
    folder = folder_of(tmp_path / "x")
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | fields))
    found = weights.describe(folder)
    assert (found.image_shape[0], found.resize) == expected
    assert found.normalization == ((127.5,) * 3, (63.75,) * 3)


def test_timms_folder_says_its_size_and_its_architecture(tmp_path):
    fields = {"depth": 18, "width": 4}
    config = {
        "architecture": "resnet18",
        "pretrained_cfg": {
            "input_size": [3, 288, 288],
            "crop_pct": 0.95,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
    }
    folder = folder_of(tmp_path / "x", config=config, arrays=state_of(fields))
    found = weights.describe(folder)
    assert (found.image_shape, found.resize) == ((288, 288, 3), 303)
    assert found.normalization == "imagenet"
    config["architecture"] = "resnetblur18"
    folder_of(tmp_path / "x", config=config, arrays=state_of(fields))
    with pytest.raises(UserError, match="'resnetblur18' is the name of an anti-aliased network"):
        weights.describe(folder)


def test_a_folder_without_weights_or_with_several_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"model\.safetensors.*it has none"):
        weights.conventions(tmp_path)
    arrays = {"conv1.weight": np.ones(2, ml_dtypes.bfloat16)}
    for name in ("a.safetensors", "b.safetensors"):
        write_safetensors(tmp_path / name, arrays, {})
    with pytest.raises(UserError, match=r"it has a\.safetensors, b\.safetensors"):
        weights.conventions(tmp_path)


def test_what_hugging_face_cannot_be_is_refused():
    with pytest.raises(UserError, match=r"model\.stem='cifar'.*'imagenet'"):
        huggingface.check(CIFAR)
