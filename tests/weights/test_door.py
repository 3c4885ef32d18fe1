"""The door for weight files: what does not fit is named; a head is replaced with permission."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
import weights
from errors import UserError
from tests.support.reference_weights import write_safetensors
from weights import Conventions, conventions
from weights.torchvision import to_torch

CIFAR = {"depth": 8, "stem": "cifar", "width": 4}


def abstract(fields, classes=5, channels=3):
    return _abstract(tuple(fields.items()), classes, channels)


@functools.cache
def _abstract(fields, classes, channels):
    model = models.create(dict(fields), classes)
    images = jnp.zeros((1, 32, 32, channels))
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)


def variables(fields=CIFAR, classes=5, channels=3):
    random = np.random.RandomState(0)
    return jax.tree.map(
        lambda s: random.standard_normal(s.shape).astype(np.float32),
        abstract(fields, classes, channels),
    )


def write(path, fields=CIFAR, classes=5, metadata=None, **changes):
    halves = jax.tree.map(lambda s: np.full(s.shape, 0.5, np.float32), abstract(fields, classes))
    state = to_torch(halves) | changes
    state = {key: array for key, array in state.items() if array is not None}
    write_safetensors(path, state, metadata or {"format": "pt"})
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.safetensors"


def test_an_ending_in_capitals_is_the_same(tmp_path):
    path = write(tmp_path / "WEIGHTS.SAFETENSORS")
    loaded = weights.load_weights(path, CIFAR, abstract(CIFAR))
    assert all((leaf == 0.5).all() for leaf in jax.tree.leaves(loaded))


def test_loads_into_the_template(path):
    write(path)
    template = variables()
    loaded, notes = weights.load_weights(path, CIFAR, template)
    assert notes == []
    assert jax.tree.structure(loaded) == jax.tree.structure(template)
    assert all(np.all(np.asarray(leaf) == 0.5) for leaf in jax.tree.leaves(loaded))


def test_half_precision_files_become_float32(path):
    write(path, **{"fc.weight": np.full((5, 16), 0.25, jnp.bfloat16)})
    loaded, _ = weights.load_weights(path, CIFAR, variables())
    kernel = loaded["params"]["head"]["kernel"]
    assert kernel.dtype == jnp.float32 and kernel[0, 0] == 0.25


@pytest.mark.parametrize(
    ("there", "here", "words"),
    [
        ({"depth": 34}, {"depth": 18}, ["depth 34", "depth 18", "3 + 4 + 6 + 3", "2 + 2 + 2 + 2"]),
        ({"depth": 50}, {"depth": 34}, ["depth 50", "depth 34", "of 3 conv", "of 2 conv"]),
        ({"depth": 50}, {"depth": 101}, ["depth 50", "depth 101", "missing: layer3."]),
        (CIFAR | {"depth": 14}, CIFAR, ["depth 14", "depth 8", "unknown: layer1.1."]),
    ],
)
def test_another_depth_is_named_with_both_shapes(there, here, words, path):
    write(path, there | {"width": 2})
    with pytest.raises(UserError) as error:
        weights.load_weights(path, here, abstract(here | {"width": 2}))
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_missing_and_unknown_names_are_listed(path):
    extra = {"layer1.0.se.fc.weight": np.ones((4, 4), np.float32)}
    write(path, **{"layer2.0.bn1.running_var": None, **extra})
    with pytest.raises(UserError) as error:
        weights.load_weights(path, CIFAR, variables())
    assert "1 missing: layer2.0.bn1.running_var" in str(error.value)
    assert "1 unknown: layer1.0.se.fc.weight" in str(error.value)


def test_another_shortcut_is_seen_by_its_projections(path):
    write(path)
    with pytest.raises(UserError, match=r"unknown: layer2\.0\.downsample\.0\.weight"):
        weights.load_weights(path, CIFAR | {"shortcut": "A"}, abstract(CIFAR | {"shortcut": "A"}))


def test_other_widths_and_channels_name_both_shapes(path):
    write(path)
    wide = CIFAR | {"width": 8}
    with pytest.raises(UserError, match=r"fc\.weight has \(16, 5\), expected \(32, 5\)"):
        weights.load_weights(path, wide, abstract(wide))
    with pytest.raises(UserError, match=r"\(3, 3, 3, 4\), expected \(3, 3, 1, 4\)"):
        weights.load_weights(path, CIFAR, variables(channels=1))


def test_another_number_of_classes_needs_permission(path):
    write(path)
    template = variables(classes=7)
    with pytest.raises(UserError, match=r"5 classes, \(16, 5\).* 7, \(16, 7\).*replace_head"):
        weights.load_weights(path, CIFAR, template)
    loaded, notes = weights.load_weights(path, CIFAR, template, replace_head=True)
    assert notes == [f"{path}: the head of 5 classes is replaced by a new one of 7 classes."]
    np.testing.assert_array_equal(
        loaded["params"]["head"]["kernel"], template["params"]["head"]["kernel"]
    )
    assert np.all(np.asarray(loaded["params"]["stem_conv"]["kernel"]) == 0.5)


def test_a_file_without_a_head_needs_permission(path):
    write(path, **{"fc.weight": None, "fc.bias": None})
    template = variables()
    with pytest.raises(UserError, match=r"fc\.bias.*replace_head=True"):
        weights.load_weights(path, CIFAR, template)
    loaded, notes = weights.load_weights(path, CIFAR, template, replace_head=True)
    assert "has none" in notes[0]
    assert np.any(np.asarray(loaded["params"]["head"]["kernel"]) != 0.5)


def test_permission_does_not_replace_a_head_that_fits(path):
    write(path)
    loaded, notes = weights.load_weights(path, CIFAR, variables(), replace_head=True)
    assert notes == [] and np.all(np.asarray(loaded["params"]["head"]["kernel"]) == 0.5)


def test_torchvisions_stride_is_noted_for_bottlenecks_only(path):
    for depth, expected in ((50, 1), (18, 0)):
        fields = {"depth": depth, "width": 2, "downsample_in": "1x1"}
        write(path, fields)
        _, notes = weights.load_weights(path, fields, abstract(fields))
        assert len(notes) == expected
    assert conventions(path) == Conventions("3x3", "padded", "imagenet")


def test_exported_files_say_how_they_were_trained(path):
    fields = {"depth": 50, "width": 2}
    write(path, fields, metadata={"downsample_in": "1x1", "stem_pool": "padded"})
    _, notes = weights.load_weights(path, fields, abstract(fields))
    assert notes == [] and conventions(path).downsample_in == "1x1"


def test_unknown_kinds_and_absent_files(tmp_path):
    with pytest.raises(UserError, match=r"\.npz.*expected \.safetensors"):
        weights.load_weights(tmp_path / "x.npz", CIFAR, variables())
    with pytest.raises(UserError, match=r"no such file.*Nothing is downloaded"):
        weights.load_weights(tmp_path / "x.pth", CIFAR, variables())
