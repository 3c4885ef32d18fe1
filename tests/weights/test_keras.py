"""Keras' ResNet50 against the numbers that Keras itself computed with the same weights."""

import pathlib
import sys
import zipfile

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
import weights
from errors import UserError
from tests.support import keras_reference
from weights import conventions
from weights.architectures import identify
from weights.keras import from_keras, read_keras

REFERENCE = np.load(pathlib.Path(__file__).parents[1] / "support" / "files" / "keras_reference.npz")
FIELDS = {"depth": 50}


def write_by_name(group, layers):
    """`model.save_weights('x.h5')` of Keras 2: layer/layer/variable:0."""
    for layer, arrays in layers.items():
        for name, array in arrays.items():
            group[f"{layer}/{layer}/{name}:0"] = array


def write_numbered(group, layers):
    """Keras 3: layers/<class>_<number>/vars/<index>, the layer's name in an attribute."""
    for i, (layer, arrays) in enumerate(layers.items()):
        variables = group.create_group(f"layers/layer_{i}/vars")
        variables.attrs["name"] = layer
        for j, array in enumerate(arrays.values()):
            variables[str(j)] = array


@pytest.fixture(scope="module")
def layers():
    return keras_reference.layers()


@pytest.mark.slow
def test_logits_and_every_stage_equal_keras(layers, tmp_path):
    path = tmp_path / "resnet50.h5"
    with h5py.File(path, "w") as file:
        write_by_name(file, layers)
    model = models.create(FIELDS, keras_reference.CLASSES)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.ones((1, 32, 32, 3)), train=False)
    )
    variables, notes = weights.load_weights(path, FIELDS, shapes)
    assert any("data.normalization=caffe" in note for note in notes)
    apply = jax.jit(lambda v, x: model.apply(v, x, train=False))
    logits, endpoints = apply(variables, keras_reference.images())
    np.testing.assert_allclose(logits[0], REFERENCE["logits"], rtol=0, atol=1e-4)
    for key in ("stage1", "stage2", "stage3", "stage4"):
        flat = np.asarray(endpoints[key]).reshape(-1)
        np.testing.assert_allclose(
            flat[:: flat.size // 199], REFERENCE[key], rtol=0, atol=1e-4, err_msg=key
        )


def some(layers):
    names = ("conv1_conv", "conv1_bn", "conv2_block1_0_conv", "conv2_block1_0_bn", "predictions")
    return {name: layers[name] for name in names}


def assert_equal_layers(found, expected):
    assert found.keys() == expected.keys()
    for layer, arrays in expected.items():
        assert found[layer].keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[layer][name], array)


@pytest.mark.parametrize("root", ["", "model_weights"])
def test_whole_models_and_weights_alone(root, layers, tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        write_by_name(file.require_group(root) if root else file, some(layers))
    assert_equal_layers(read_keras(tmp_path / "x.h5"), some(layers))


def test_numbered_files_of_keras_3(layers, tmp_path):
    with h5py.File(tmp_path / "model.weights.h5", "w") as file:
        write_numbered(file, some(layers))
    assert_equal_layers(read_keras(tmp_path / "model.weights.h5"), some(layers))
    with zipfile.ZipFile(tmp_path / "x.keras", "w") as archive:
        archive.write(tmp_path / "model.weights.h5", "model.weights.h5")
    assert_equal_layers(read_keras(tmp_path / "x.keras"), some(layers))
    assert conventions(tmp_path / "x.keras").downsample_in == "1x1"


@pytest.mark.parametrize("write", [write_by_name, write_numbered])
def test_the_only_dense_layer_is_the_head_whatever_its_name(write, layers, tmp_path):
    head, names = layers["predictions"], ("params/head/kernel", "params/head/bias")
    own = {"conv1_conv": layers["conv1_conv"], "my_dense": head}
    with h5py.File(tmp_path / "x.h5", "w") as file:
        write(file, own)
        file["optimizer/vars/0"] = file["optimizer_weights/sgd/momentum"] = np.zeros(3)
    found = from_keras(read_keras(tmp_path / "x.h5"))
    assert found.keys() == {"params/stem_conv/kernel", *names}
    for name, array in zip(names, (head["kernel"], head["bias"]), strict=True):
        np.testing.assert_array_equal(found[name].array, array)
    assert found[names[0]].source.startswith("my_dense/")
    two = from_keras(own | {"another": head})
    assert names[0] not in two and "another/kernel" in two


def test_bias_and_epsilon_go_into_batch_norm(layers):
    tensors = from_keras(some(layers))
    assert "params/stem_conv/bias" not in tensors
    mean = layers["conv1_bn"]["moving_mean"] - layers["conv1_conv"]["bias"]
    np.testing.assert_array_equal(tensors["batch_stats/stem_bn/mean"].array, mean)
    var = tensors["batch_stats/stage1/block1/bn_shortcut/var"].array
    theirs = layers["conv2_block1_0_bn"]["moving_variance"].astype(np.float64)
    np.testing.assert_allclose(var + 1e-5, theirs + 1.001e-5, rtol=1e-12)


def test_unknown_layers_keep_their_names(layers):
    tensors = from_keras(some(layers) | {"conv2_block1_preact_bn": {"gamma": np.ones(3)}})
    assert "conv2_block1_preact_bn/gamma" in tensors


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        ("conv2_block1_preact_bn", "ResNet-50 of version 2 (pre-activation, Keras)"),
        ("pool2_conv", "a DenseNet of Keras, not ResNet-50"),
    ],
)
def test_keras_other_networks_are_named(layer, name, layers):
    network = identify(from_keras(layers | {layer: {"kernel": np.ones((1, 1, 2, 2))}}))
    assert network.name == name and network.why_not


def test_damage_and_a_missing_h5py_are_explained(tmp_path, monkeypatch):
    (tmp_path / "x.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 40)
    with pytest.raises(UserError, match=r"x\.h5.*truncated"):
        read_keras(tmp_path / "x.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match="pip install h5py"):
        read_keras(tmp_path / "x.h5")


@pytest.mark.slow
def test_another_depth_and_another_head_are_named_with_both_shapes(layers, tmp_path):
    path = tmp_path / "resnet50.h5"
    with h5py.File(path, "w") as file:
        for layer, arrays in layers.items():
            for name, array in arrays.items():  # shapes alone: zeros that take no room
                file.create_dataset(f"{layer}/{layer}/{name}:0", array.shape, "float32")

    def load(depth, classes):
        model = models.create({"depth": depth}, classes)
        image = jnp.ones((1, 32, 32, 3))
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
        weights.load_weights(path, {"depth": depth}, shapes)

    with pytest.raises(UserError, match=r"depth 50 \(3 \+ 4 \+ 6 \+ 3.*depth 101 \(3 \+ 4 \+ 23"):
        load(101, keras_reference.CLASSES)
    with pytest.raises(UserError, match=r"10 classes, \(2048, 10\).* 7, \(2048, 7\).*replace_head"):
        load(50, 7)
