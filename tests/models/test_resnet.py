"""The networks of the paper: exact counts, endpoints, errors in the fields."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from errors import UserError
from tests.support.blocks import random_variables

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
        (200, "B", True, 64_673_832),
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


@pytest.mark.parametrize(
    ("depth", "preactivation", "expected"),
    [(164, True, 1_703_258), (164, False, 1_704_154), (1001, True, 10_327_706)],
)
def test_cifar_networks_of_bottlenecks(depth, preactivation, expected):
    fields = {"stem": "cifar", "width": 16, "depth": depth, "block": "bottleneck"}
    assert count(10, preactivation=preactivation, scan_blocks=True, **fields) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "width_per_group", "groups", "expected"),
    [
        (50, 128, 1, 68_883_240),  # Wide ResNet-50-2
        (101, 128, 1, 126_886_696),
        (50, 4, 32, 25_028_904),  # ResNeXt-50 32×4d
        (101, 8, 32, 88_791_336),
    ],
)
def test_wide_and_grouped_bottlenecks(depth, width_per_group, groups, expected):
    fields = {"width_per_group": width_per_group, "groups": groups, "scan_blocks": True}
    assert count(1000, depth=depth, **fields) == expected


@pytest.mark.slow
def test_the_deep_stem_and_pooled_shortcuts_cost_what_resnet_d_costs():
    assert count(1000, depth=50, stem="deep", shortcut="D", scan_blocks=True) == 25_576_264
    assert count(1000, depth=18, stem="deep", shortcut="D") == 11_708_744


@pytest.mark.slow
@pytest.mark.parametrize("size", [(40, 36), (37, 51)])
def test_resnet_d_is_three_small_convolutions_and_pooled_projections(size):
    model = models.create({"depth": 18, "width": 4, "stem": "deep", "shortcut": "D"}, 5)
    x = jax.random.normal(KEY, (2, *size, 3))
    variables = random_variables(model, x)

    def layer(x, conv, bn, strides=1, *path):
        params, stats = variables["params"], variables["batch_stats"]
        for name in path:
            params, stats = params[name], stats[name]
        kernel = params[conv]["kernel"]
        padding = [(kernel.shape[0] // 2,) * 2] * 2
        y = jax.lax.conv_general_dilated(
            x, kernel, (strides,) * 2, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        p, s = (jax.tree.map(np.asarray, layers[bn]) for layers in (params, stats))
        return (np.asarray(y) - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]

    y = x
    for i, strides in ((1, 2), (2, 1), (3, 1)):
        y = np.maximum(layer(y, f"stem_conv{i}", f"stem_bn{i}", strides), 0)
    endpoints = jax.jit(lambda v: model.apply(v, x, train=False)[1])(variables)
    np.testing.assert_allclose(endpoints["stem"], y, rtol=1e-4, atol=1e-4)
    before = np.asarray(endpoints["stage1"])
    height, width = before.shape[1:3]
    pooled = np.stack(
        [
            [before[:, a : a + 2, b : b + 2].mean((1, 2)) for b in range(0, width, 2)]
            for a in range(0, height, 2)
        ]
    ).transpose(2, 0, 1, 3)
    block = "stage2", "block1"
    shortcut = layer(pooled, "shortcut_conv", "bn_shortcut", 1, *block)
    f = np.maximum(layer(before, "conv1", "bn1", 2, *block), 0)
    f = layer(f, "conv2", "bn2", 1, *block)
    z = np.maximum(shortcut + f, 0)
    f = np.maximum(layer(z, "conv1", "bn1", 1, "stage2", "block2"), 0)
    expected = np.maximum(z + layer(f, "conv2", "bn2", 1, "stage2", "block2"), 0)
    np.testing.assert_allclose(
        endpoints["stage2"], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()
    )


@pytest.mark.slow
def test_resnet_200_pre_activated():
    """Without BN after the four projections, each block's BN before its convolutions."""
    changes = [(64, 64), (256, 128), (512, 256), (1024, 512)]
    total = 3 * 7 * 7 * 64 + 2 * 64 + 2 * 2048 + 2049 * 1000  # stem, last BN, head
    total -= 2 * 64  # the first block's BN is the stem's
    for (before, w), n in zip(changes, (3, 24, 36, 3), strict=True):
        total += before * w + before * 4 * w + (n - 1) * 4 * w * w + n * (9 + 4) * w * w
        total += 2 * (before + 2 * w + (n - 1) * 6 * w)
    assert count(1000, depth=200, preactivation=True) == total


@pytest.mark.parametrize(
    ("depth", "block", "convolutions"),
    [
        (20, "", 2),  # the paper's
        (110, "", 2),
        (44, "", 2),  # 6n+2 only
        (11, "", 3),  # 9n+2 only
        (1001, "", 3),
        (164, "basic", 2),
        (164, "bottleneck", 3),
        (20, "bottleneck", 3),
    ],
)
def test_a_depth_and_its_form_of_block(depth, block, convolutions):
    fields = {"stem": "cifar", "width": 4, "depth": depth, "block": block, "scan_blocks": True}
    params = shapes(10, **fields)["params"]
    stage = params["stage2"].get("block1", params["stage2"].get("blocks"))
    assert f"conv{convolutions}" in stage and f"conv{convolutions + 1}" not in stage


def test_plain_twin_has_the_same_tree():
    fields = {"stem": "cifar", "width": 16, "depth": 20, "shortcut": "A"}
    assert shapes(10, **fields) == shapes(10, **fields, residual=False)


def small(**fields):
    return models.create({"stem": "cifar", "width": 4, "depth": 8, "shortcut": "A"} | fields, 5)


@functools.cache
def images(height=9, width=7, channels=3):
    with jax.ensure_compile_time_eval():  # kept across calls, of which the first may be traced
        return jax.random.normal(jax.random.key(1), (2, height, width, channels))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 3), (2, 3, 1), (33, 17, 3), (65, 2, 3)])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_any_image_size(stem, shape):
    depth = 8 if stem == "cifar" else 18
    model = models.create({"stem": stem, "depth": depth, "width": 4, "shortcut": "A"}, 1)
    x = jnp.ones((2, *shape))
    logits, endpoints = jax.eval_shape(lambda: model.init_with_output(KEY, x, train=False)[0])
    assert logits.shape == (2, 1)
    assert endpoints["logits_map"].shape[-1] == 1


@pytest.mark.slow
def test_mean_of_logits_map_is_logits():
    model = small()
    logits, endpoints = model.apply(model.init(KEY, images(), train=False), images(), train=False)
    np.testing.assert_allclose(endpoints["logits_map"].mean((1, 2)), logits, atol=1e-5)
    assert set(endpoints) == {"stem", "stage1", "stage2", "stage3", "pooled", "logits_map"}


@pytest.mark.slow
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


@pytest.mark.slow
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
        ({"depth": 164}, "27 basic blocks .* 18 bottlenecks .* model.block=basic or bottleneck"),
        ({"depth": 38}, "model.block"),
        ({"depth": 32, "block": "bottleneck"}, "9n\\+2.*the nearest is 29"),
        ({"depth": 29, "block": "basic"}, "6n\\+2.*the nearest is 26"),
        ({"depth": 9 * 2001 + 2}, "n ≤ 2000"),
        ({"depth": 20, "block": "wide"}, "'basic', 'bottleneck'"),
        ({"stem": "imagenet", "depth": 18, "block": "bottleneck"}, "model.block"),
        ({"stem": "imagenet", "depth": 20}, "18, 34, 50, 101, 152"),
        ({"shortcut": "E"}, "'A', 'B', 'C', 'D'"),
        ({"groups": 0}, "groups=0"),
        ({"groups": 2}, "only bottlenecks"),
        ({"stem": "imagenet", "depth": 50, "width": 8, "width_per_group": 4}, "whole"),
        ({"stem": "imagenet", "depth": 50, "groups": 2000, "width_per_group": 64}, "at most 4096"),
        ({"stem": "deep", "depth": 18, "width": 3}, "even number"),
        ({"stem": "deep", "depth": 18, "shortcut": "D", "output_stride": 8}, "shortcut='D'"),
        ({"shortcut": "D", "preactivation": True}, "shortcut='D'"),
        ({"width": 0}, "width=0"),
        ({"dtype": "float16"}, "float16"),
        ({"remat": "all"}, "remat"),
        ({"space_to_depth": True}, "stem='imagenet'"),
        ({"shortcut_scale": float("nan")}, "shortcut_scale"),
        ({"residual": "yes"}, "residual"),
        ({"colour": 1}, "colour"),
        ({"zero_init_residual": True, "residual": False}, "plain"),
        ({"preactivation": True, "variant": "exclusive_gating"}, "preactivation"),
        ({"zero_init_residual": True, "variant": "bn_after_addition"}, "ends in BN"),
        ({"residual": False, "variant": "dropout_shortcut"}, "changes the shortcut"),
        ({"output_stride": 16}, "output_stride=16"),
        ({"bn_group_size": -1}, "bn_group_size=-1"),
        ({"scan_blocks": True, "variant": "dropout_shortcut"}, "scan_blocks"),
    ],
)
def test_errors_name_the_field(fields, named):
    fields = {"stem": "cifar", "depth": 8} | fields
    with pytest.raises(UserError, match=named):
        models.check(fields)
    with pytest.raises(UserError, match=named):
        models.create(fields, 5)


def test_no_classes_is_an_error():
    with pytest.raises(UserError, match="num_classes"):
        models.create({"depth": 50}, 0)


def test_a_right_config_passes():
    models.check({})
    models.check({"stem": "cifar", "depth": 1202, "gate_bias": -6, "variant": "shortcut_gating"})
