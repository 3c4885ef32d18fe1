"""The networks of the paper: exact counts, the block's equation, one tree in every form."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from errors import UserError
from models import blocks
from models import scanned as stacking
from models.resnet import VARIANTS, segment_length

KEY = jax.random.key(0)


def shapes(num_classes, image=(1, 32, 32, 3), **fields):
    model = models.create(fields, num_classes)
    return jax.eval_shape(lambda: model.init(KEY, jnp.zeros(image), train=False))


def count(num_classes, image=(1, 32, 32, 3), **fields):
    return sum(
        math.prod(leaf.shape)
        for leaf in jax.tree.leaves(shapes(num_classes, image, **fields)["params"])
    )


@pytest.mark.parametrize(
    ("depth", "shortcut", "residual", "expected"),
    [
        (18, "B", True, 11_689_512),
        (34, "B", True, 21_797_672),
        (50, "B", True, 25_557_032),
        (101, "B", True, 44_549_160),
        (152, "B", True, 60_192_808),
        (18, "A", True, 11_515_688),
        (18, "C", True, 12_043_816),
        (34, "A", True, 21_623_848),
        (34, "C", True, 22_716_840),
        (18, "A", False, 11_515_688),
        (34, "A", False, 21_623_848),
    ],
)
def test_imagenet_parameter_counts(depth, shortcut, residual, expected):
    assert count(1000, depth=depth, shortcut=shortcut, residual=residual) == expected
    both = {"depth": depth, "shortcut": shortcut, "residual": residual, "downsample_in": "3x3"}
    assert count(1000, **both) == expected  # v1.5 moves a stride, not a parameter


CIFAR_COUNTS = {
    20: (269_722, 269_434, 272_474),
    32: (464_154, 463_866, 466_906),
    44: (658_586, 658_298, 661_338),
    56: (853_018, 852_730, 855_770),
    110: (1_727_962, 1_727_674, 1_730_714),
    1202: (19_421_274, 19_420_986, 19_424_026),
}


@pytest.mark.parametrize(
    ("depth", "scan_blocks"),
    [(20, False), (32, False), (44, False), (56, False), (110, False), (20, True), (1202, True)],
)
def test_cifar_parameter_counts(depth, scan_blocks):
    colour, grey, projected = CIFAR_COUNTS[depth]
    fields = {"stem": "cifar", "width": 16, "depth": depth, "scan_blocks": scan_blocks}
    assert count(10, shortcut="A", **fields) == colour
    assert count(10, (1, 28, 28, 1), shortcut="A", **fields) == grey
    assert count(10, shortcut="B", **fields) == projected
    assert count(10, shortcut="A", residual=False, **fields) == colour


def test_plain_twin_has_the_same_tree():
    fields = {"stem": "cifar", "width": 16, "depth": 20, "shortcut": "A"}
    assert shapes(10, **fields) == shapes(10, **fields, residual=False)


def test_bottleneck_arithmetic():
    """Two 3×3×256×256 convolutions against 1×1-3×3-1×1 over 256 channels: 16.94 times."""
    params = shapes(1000, depth=50)["params"]["stage1"]["block2"]
    bottleneck = sum(params[f"conv{i}"]["kernel"].size for i in (1, 2, 3))
    wide = blocks.Block(blocks.basic_layers(256, strides=1, dilation=1, downsample_in="1x1"))
    variables = jax.eval_shape(lambda: wide.init(KEY, jnp.zeros((1, 4, 4, 256)), False))
    basic = sum(variables["params"][f"conv{i}"]["kernel"].size for i in (1, 2))
    assert (basic, bottleneck) == (1_179_648, 69_632)
    assert round(basic / bottleneck, 2) == 16.94


def small(**fields):
    return models.create({"stem": "cifar", "width": 4, "depth": 8, "shortcut": "A"} | fields, 5)


@functools.cache
def images(height=9, width=7, channels=3):
    with jax.ensure_compile_time_eval():  # kept across calls, of which the first may be traced
        return jax.random.normal(jax.random.key(1), (2, height, width, channels))


def test_option_a_subsamples_and_appends_zeros():
    block = blocks.Block(
        blocks.basic_layers(8, strides=2, dilation=1, downsample_in="1x1"), shortcut="A"
    )
    x = jax.random.normal(KEY, (2, 5, 7, 3))
    variables = block.init(KEY, x, False)
    _, state = block.apply(variables, x, False, mutable=["intermediates"])
    shortcut = np.asarray(state["intermediates"]["shortcut"][0])
    assert shortcut.shape == (2, 3, 4, 8)
    np.testing.assert_array_equal(shortcut[..., :3], np.asarray(x)[:, ::2, ::2])
    assert not shortcut[..., 3:].any()
    assert not [name for name in variables["params"] if "shortcut" in name]


@pytest.mark.parametrize(("residual_scale", "shortcut_scale"), [(1.0, 1.0), (1.0, 0.5), (0.5, 0.5)])
def test_block_adds_scaled_shortcut_and_branch(residual_scale, shortcut_scale):
    layers = blocks.basic_layers(3, strides=1, dilation=1, downsample_in="1x1")
    block = blocks.Block(
        layers, residual_scale=residual_scale, shortcut_scale=shortcut_scale, shortcut="A"
    )
    x = images()
    variables = block.init(KEY, x, False)
    y, state = block.apply(variables, x, False, mutable=["intermediates"])
    branch = np.asarray(state["intermediates"]["branch"][0])
    expected = np.maximum(shortcut_scale * np.asarray(x) + residual_scale * branch, 0)
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
    plain = blocks.Block(layers, residual=False).apply(variables, x, False)
    np.testing.assert_allclose(plain, np.maximum(branch, 0), rtol=1e-6)


def test_zero_initialised_residual_net_starts_as_its_shortcuts():
    block = blocks.Block(
        blocks.basic_layers(3, strides=1, dilation=1, downsample_in="1x1"), zero_init_residual=True
    )
    y = block.apply(block.init(KEY, images(), False), images(), False)
    np.testing.assert_array_equal(y, np.maximum(images(), 0))


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_train_and_differ(variant):
    def train_logits(model):
        variables = model.init(KEY, images(), train=False)
        (logits, _), _ = model.apply(
            variables, images(), train=True, mutable=["batch_stats"], rngs={"dropout": KEY}
        )
        return logits

    logits = train_logits(small(variant=variant))
    assert np.isfinite(logits).all()
    if variant != "none":
        assert not np.allclose(logits, train_logits(small()))


def test_preactivation_keeps_a_clean_path():
    """With every branch at zero a pre-activated stage of equal shape is the identity."""
    layers = blocks.basic_layers(3, strides=1, dilation=1, downsample_in="1x1")
    block = blocks.Block(layers, placement=blocks.FULL_PREACTIVATION, shortcut="B")
    variables = block.init(KEY, images(), False)
    zeroed = jax.tree.map(jnp.zeros_like, variables["params"])
    y = block.apply({**variables, "params": zeroed}, images(), False)
    np.testing.assert_array_equal(y, images())


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 3), (2, 3, 1), (33, 17, 3), (65, 2, 3)])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_any_image_size(stem, shape):
    depth = 8 if stem == "cifar" else 18
    model = models.create({"stem": stem, "depth": depth, "width": 4, "shortcut": "A"}, 1)
    x = jnp.ones((2, *shape))
    logits, endpoints = jax.eval_shape(lambda: model.init_with_output(KEY, x, train=False)[0])
    assert logits.shape == (2, 1)
    assert endpoints["logits_map"].shape[-1] == 1


def test_mean_of_logits_map_is_logits():
    model = small()
    logits, endpoints = model.apply(model.init(KEY, images(), train=False), images(), train=False)
    np.testing.assert_allclose(endpoints["logits_map"].mean((1, 2)), logits, atol=1e-5)
    assert set(endpoints) == {"stem", "stage1", "stage2", "stage3", "pooled", "logits_map"}


@pytest.mark.parametrize(
    "form",
    [
        {"remat": "block"},
        {"remat": "segments"},
        {"scan_blocks": True},
        {"scan_blocks": True, "remat": "block"},
        {"scan_blocks": True, "remat": "segments"},
    ],
    ids=lambda form: "-".join(map(str, form.values())),
)
def test_forms_compute_the_same(form, monkeypatch):
    """Scanning and recomputing change neither numbers (to rounding) nor the tree on disk."""
    # Five blocks, four of them scanned, make two unequal segments.
    monkeypatch.setattr("models.resnet.KEPT_PER_BLOCK", 0.5)
    base, other = small(depth=32), small(depth=32, **form)
    variables = jax.jit(lambda: base.init(KEY, images(), train=False))()

    def gradients(model, variables):
        def loss(params):
            (logits, _), updated = model.apply(
                {**variables, "params": params}, images(), train=True, mutable=["batch_stats"]
            )
            return jnp.square(logits - 1).sum(), updated["batch_stats"]

        (value, stats), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
        return value, stats, grads

    expected = gradients(base, variables)
    own = stacking.stack_blocks(variables) if other.scan_blocks else variables
    own_init = jax.eval_shape(lambda: other.init(KEY, images(), train=False))
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, own_init)
    found = stacking.unstack_blocks(gradients(other, own))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-4), found, expected
    )


def test_the_stem_over_blocks_of_pixels_has_the_same_parameters_and_numbers():
    fields = {"depth": 18, "width": 4}
    base, other = (models.create(fields | {"space_to_depth": on}, 3) for on in (False, True))
    x = jax.random.normal(KEY, (2, 33, 38, 3))
    variables = jax.jit(lambda: base.init(KEY, x, train=False))()
    own = jax.eval_shape(lambda: other.init(KEY, x, train=False))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, own)
    found, expected = (
        jax.jit(lambda m=m: m.apply(variables, x, train=False))() for m in (other, base)
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, expected
    )


def test_segments_grow_with_the_root_of_the_depth():
    lengths = [segment_length("segments", n) for n in (1, 5, 18, 200, 20_000)]
    assert lengths == [1, 2, 3, 9, 82]
    assert segment_length("block", 18) == 1
    assert segment_length("none", 18) == 18


def test_scanned_blocks_start_differently():
    variables = small(depth=32, scan_blocks=True).init(KEY, images(), train=False)
    kernel = variables["params"]["stage1"]["blocks"]["conv1"]["kernel"]
    assert kernel.shape == (5, 3, 3, 4, 4)
    assert not np.allclose(kernel[0], kernel[1])
    assert jax.tree.map(jnp.shape, stacking.stack_blocks(variables)) == jax.tree.map(
        jnp.shape, variables
    )
    std = np.std(np.asarray(kernel))
    assert 0.8 < std / math.sqrt(2 / (9 * 4)) < 1.2  # He, fan out


def test_bfloat16_keeps_float32_where_it_must():
    model = small(dtype="bfloat16")
    variables = model.init(KEY, images(), train=False)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits, endpoints = model.apply(variables, images(), train=False)
    assert logits.dtype == jnp.float32
    assert endpoints["stage1"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"depth": 21}, "6n\\+2"),
        ({"depth": 2}, "6n\\+2"),
        ({"stem": "imagenet", "depth": 20}, "18, 34, 50, 101, 152"),
        ({"shortcut": "D"}, "'A', 'B', 'C'"),
        ({"width": 0}, "width=0"),
        ({"dtype": "float16"}, "float16"),
        ({"remat": "all"}, "remat"),
        ({"space_to_depth": True}, "stem='imagenet'"),
        ({"shortcut_scale": float("nan")}, "shortcut_scale"),
        ({"residual": "yes"}, "residual"),
        ({"colour": 1}, "colour"),
        ({"zero_init_residual": True, "residual": False}, "plain"),
        ({"preactivation": True, "variant": "exclusive_gating"}, "preactivation"),
    ],
)
def test_errors_name_the_field(fields, named):
    with pytest.raises(UserError, match=named):
        small(**fields)


def test_no_classes_is_an_error():
    with pytest.raises(UserError, match="num_classes"):
        models.create({"depth": 50}, 0)
