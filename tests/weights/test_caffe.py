"""The authors' `.caffemodel`, written here by a schema of our own.

The network behind it is the independent torch one with Caffe's pooling
(tests/support/torch_resnet.py); its weights are put into Caffe's layers: BGR, a bias in conv1,
BatchNorm with its factor, Scale.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

import models
import weights
from errors import UserError
from tests.support import reference_weights
from tests.weights.test_torchvision import REFERENCE, torch_state
from weights import conventions
from weights.caffe import from_caffe, read_caffe, read_mean_image

CASE = reference_weights.CASES["caffe50"]
FACTOR = 999.98


def caffe_messages(packed=True):
    """The part of caffe.proto that the release uses, by message name."""
    types = {"string": 9, "float": 2, "double": 1, "int64": 3, "int32": 5}
    spec = {
        "BlobShape": [("dim", 1, "int64", True)],
        "BlobProto": [
            *((name, i, "int32", False) for i, name in enumerate(("n", "c", "h", "w"), start=1)),
            ("data", 5, "float", True),
            ("shape", 7, "BlobShape", False),
            ("double_data", 8, "double", True),
        ],
        "LayerParameter": [
            ("name", 1, "string", False),
            ("type", 2, "string", False),
            ("bottom", 3, "string", True),
            ("blobs", 7, "BlobProto", True),
        ],
        "NetParameter": [("name", 1, "string", False), ("layer", 100, "LayerParameter", True)],
    }
    file = descriptor_pb2.FileDescriptorProto(
        name=f"caffe{packed}.proto", package=f"caffe{packed}", syntax="proto2"
    )
    for message, fields in spec.items():
        descriptor = file.message_type.add(name=message)
        for name, number, kind, repeated in fields:
            field = descriptor.field.add(name=name, number=number, label=3 if repeated else 1)
            if kind in types:
                field.type = types[kind]
                field.options.packed = packed and repeated and kind != "string"
            else:
                field.type, field.type_name = 11, f".caffe{packed}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = {n: pool.FindMessageTypeByName(f"caffe{packed}.{n}") for n in spec}
    return {name: message_factory.GetMessageClass(d) for name, d in found.items()}


def caffe_layers(state, deeper_names=False):
    """torch state → Caffe's layers, `[(name, blobs)]`, with the release's naming."""
    stem = state["conv1.weight"][:, ::-1]  # BGR
    bias = np.linspace(-1, 1, len(stem), dtype=np.float32)
    layers = [
        ("conv1", [stem, bias]),
        *batch_norm(state, "bn1", "conv1", bias),
        ("fc1000", [state["fc.weight"], state["fc.bias"]]),
    ]
    prefixes = sorted({key.rsplit(".", 2)[0] for key in state if key.startswith("layer")})
    blocks = sorted({tuple(prefix.split(".")[:2]) for prefix in prefixes})
    for stage, block in blocks:
        letter = "abcdef"[int(block)]
        if deeper_names and int(block):
            letter = f"b{block}"
        name = f"{int(stage[-1]) + 1}{letter}_branch"
        for i, branch in enumerate(("2a", "2b", "2c"), start=1):
            key = f"{stage}.{block}"
            layers.append((f"res{name}{branch}", [state[f"{key}.conv{i}.weight"]]))
            layers += batch_norm(state, f"{key}.bn{i}", f"{name}{branch}")
        if f"{stage}.{block}.downsample.0.weight" in state:
            layers.append((f"res{name}1", [state[f"{stage}.{block}.downsample.0.weight"]]))
            layers += batch_norm(state, f"{stage}.{block}.downsample.1", f"{name}1")
    return layers


def batch_norm(state, key, name, bias=0.0):
    separator = "_" if name == "conv1" else ""
    mean, var = state[f"{key}.running_mean"] + bias, state[f"{key}.running_var"]
    factor = np.array([FACTOR], np.float32)
    return [
        (f"bn{separator}{name}", [mean * factor, var * factor, factor]),
        (f"scale{separator}{name}", [state[f"{key}.weight"], state[f"{key}.bias"]]),
    ]


def write(path, layers, packed=True, legacy_shape=False, double=False):
    messages = caffe_messages(packed)
    net = messages["NetParameter"](name="ResNet-50")
    net.layer.add(name="data", type="Input")
    for name, blobs in layers:
        layer = net.layer.add(name=name, type="X", bottom=["below"])
        for array in blobs:
            fill(layer.blobs.add(), array, legacy_shape, double)
    path.write_bytes(net.SerializeToString())
    return path


def fill(blob, array, legacy_shape=False, double=False):
    (blob.double_data if double else blob.data).extend(array.ravel().tolist())
    if legacy_shape:
        blob.n, blob.c, blob.h, blob.w = (1,) * (4 - array.ndim) + array.shape
    else:
        blob.shape.dim.extend(array.shape)


@pytest.fixture(scope="module")
def state():
    return torch_state(CASE)


@pytest.mark.slow
def test_logits_and_every_stage_equal_the_independent_network(state, tmp_path):
    path = write(tmp_path / "ResNet-50-model.caffemodel", caffe_layers(state))
    model = models.create(CASE.fields, CASE.classes)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.ones((1, 32, 32, 3)), train=False)
    )
    variables, notes = weights.load_weights(path, CASE.fields, shapes)
    assert [note for note in notes if "mean image" in note] and len(notes) == 1
    apply = jax.jit(lambda v, x: model.apply(v, x, train=False))
    logits, endpoints = apply(variables, reference_weights.images(CASE))
    np.testing.assert_allclose(logits, REFERENCE["caffe50/logits"], rtol=0, atol=1e-4)
    for key in ("stem", "stage1", "stage2", "stage3", "stage4"):
        sample = reference_weights.sample(endpoints[key])
        np.testing.assert_allclose(
            sample, REFERENCE[f"caffe50/{key}"], rtol=0, atol=1e-4, err_msg=key
        )


def test_a_padded_pool_or_another_stride_is_noted(state, tmp_path):
    path = write(tmp_path / "x.caffemodel", caffe_layers(state))
    fields = CASE.fields | {"stem_pool": "padded", "downsample_in": "3x3"}
    model = models.create(fields, CASE.classes)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.ones((1, 32, 32, 3)), train=False)
    )
    _, notes = weights.load_weights(path, fields, shapes)
    assert any("--config.model.stem_pool=unpadded" in note for note in notes)
    assert any("--config.model.downsample_in=1x1" in note for note in notes)
    assert conventions(path).stem_pool == "unpadded"


@pytest.mark.parametrize(
    "how", [{"packed": False}, {"legacy_shape": True}, {"double": True}, {"deeper_names": True}]
)
def test_every_way_of_writing_gives_the_same_arrays(how, state, tmp_path):
    small = {k: v for k, v in state.items() if k.startswith(("conv1", "bn1", "fc", "layer1"))}
    names = {"deeper_names": how.pop("deeper_names", False)}
    expected = from_caffe(read_caffe(write(tmp_path / "a.caffemodel", caffe_layers(small))))
    found = from_caffe(
        read_caffe(write(tmp_path / "b.caffemodel", caffe_layers(small, **names), **how))
    )
    assert found.keys() == expected.keys()
    assert "params/stage1/block3/conv2/kernel" in found
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name].array, tensor.array, err_msg=name)


def test_a_factor_of_zero_means_no_statistics():
    blobs = [np.ones(2, np.float32), np.ones(2, np.float32), np.zeros(1, np.float32)]
    tensors = from_caffe({"bn2a_branch1": blobs})
    assert tensors["batch_stats/stage1/block1/bn_shortcut/mean"].array.tolist() == [0, 0]


def test_the_mean_image_is_rgb(tmp_path):
    bgr = np.arange(3 * 4 * 5, dtype=np.float32).reshape(1, 3, 4, 5)
    blob = caffe_messages()["BlobProto"]()
    fill(blob, bgr, legacy_shape=True)
    (tmp_path / "mean.binaryproto").write_bytes(blob.SerializeToString())
    image = read_mean_image(tmp_path / "mean.binaryproto")
    assert image.shape == (4, 5, 3)
    np.testing.assert_array_equal(image[..., 0], bgr[0, 2])


def template(depth, classes):
    fields = CASE.fields | {"depth": depth}
    model = models.create(fields, classes)
    image = jnp.ones((1, 32, 32, 3))
    return fields, jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))


def test_another_depth_and_another_head_are_named_with_both_shapes(state, tmp_path):
    path = write(tmp_path / "x.caffemodel", caffe_layers(state))
    with pytest.raises(UserError, match=r"depth 50 \(3 \+ 4 \+ 6 \+ 3.*depth 101 \(3 \+ 4 \+ 23"):
        weights.load_weights(path, *template(101, CASE.classes))
    with pytest.raises(UserError, match=r"10 classes, \(256, 10\).* 7, \(256, 7\).*replace_head"):
        weights.load_weights(path, *template(50, 7))


@pytest.mark.parametrize("share", [0.2, 0.7, 0.999])
def test_a_truncated_file_is_named(share, state, tmp_path):
    small = {k: v for k, v in state.items() if k.startswith(("conv1", "bn1", "fc"))}
    path = write(tmp_path / "x.caffemodel", caffe_layers(small))
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match=r"x\.caffemodel.*truncated"):
        read_caffe(path)


def test_other_files_are_not_taken_for_one(tmp_path):
    (tmp_path / "empty.caffemodel").write_bytes(b"")
    with pytest.raises(UserError, match="without weights"):
        read_caffe(tmp_path / "empty.caffemodel")
    (tmp_path / "random.caffemodel").write_bytes(np.random.RandomState(0).bytes(4096))
    with pytest.raises(UserError, match="cannot be read"):
        read_caffe(tmp_path / "random.caffemodel")
