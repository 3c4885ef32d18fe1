"""The table of layers against the paper's and independent counts."""

import jax
import jax.numpy as jnp
import pytest

import models
from models.summary import count_multiply_adds, count_parameters, format_table, summary

CIFAR = {"stem": "cifar", "shortcut": "A", "width": 16}
IMAGENET_SHAPE, CIFAR_SHAPE = (224, 224, 3), (32, 32, 3)


def network(classes=10, **fields):
    return models.create(fields, classes)


@pytest.mark.parametrize(
    ("depth", "downsample_in", "multiply_adds"),
    [
        (18, "1x1", 1_814_073_344),
        (34, "1x1", 3_663_761_408),
        (50, "1x1", 3_857_973_248),
        (50, "3x3", 4_089_184_256),
        (101, "1x1", 7_570e6),
        (101, "3x3", 7_801e6),
        (152, "1x1", 11_282e6),
        (152, "3x3", 11_514e6),
    ],
)
def test_imagenet_multiply_adds(depth, downsample_in, multiply_adds):
    model = network(1000, depth=depth, downsample_in=downsample_in)
    assert count_multiply_adds(model, IMAGENET_SHAPE) == pytest.approx(multiply_adds, abs=0.5e6)


@pytest.mark.parametrize(
    ("depth", "millions", "parameters"),
    [
        (20, 40.6, 269_722),
        (32, 68.9, 464_154),
        (44, 97.2, 658_586),
        (56, 125.5, 853_018),
        (110, 252.9, 1_727_962),
    ],
)
def test_cifar_counts(depth, millions, parameters):
    rows = summary(network(depth=depth, **CIFAR), CIFAR_SHAPE)
    assert round(sum(row.multiply_adds for row in rows) / 1e6, 1) == millions
    assert sum(row.parameters for row in rows) == parameters


@pytest.mark.slow
def test_depth_1202_from_a_scanned_network():
    rows = summary(network(depth=1202, scan_blocks=True, remat="segments", **CIFAR), CIFAR_SHAPE)
    assert round(sum(row.multiply_adds for row in rows) / 1e6) == 2829
    assert sum(row.parameters for row in rows) == 19_421_274
    assert len([row for row in rows if row.kind == "Conv"]) == 1201


@pytest.mark.parametrize(
    "fields",
    [
        {"depth": 18, "width": 8, "shortcut": "C"},
        {"depth": 50, "width": 4, "preactivation": True, "output_stride": 8},
        {"depth": 14, "stem": "cifar", "variant": "exclusive_gating"},
        {"depth": 14, "stem": "cifar", "variant": "relu_only_preactivation"},
        {"depth": 20, "stem": "cifar", "residual": False, "scan_blocks": True},
    ],
)
def test_parameters_equal_those_of_the_initialised_network(fields):
    model = network(7, **fields)
    image = jax.ShapeDtypeStruct((1, 33, 47, 1), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    expected = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert count_parameters(model, (33, 47, 1)) == expected


def test_rows_name_shape_and_order():
    rows = {row.name: row for row in summary(network(depth=8, **CIFAR), (31, 20, 3))}
    assert next(iter(rows)) == "stem_conv" and list(rows)[-1] == "head"
    conv = rows["stage2/block1/conv1"]
    assert conv.output_shape == (16, 10, 32)
    assert conv.parameters == 9 * 16 * 32
    assert conv.multiply_adds == 16 * 10 * 32 * 9 * 16
    norm = rows["stage2/block1/bn1"]
    assert (norm.kind, norm.parameters, norm.multiply_adds) == ("BatchNorm", 64, 0)


def test_the_head_counts_once_at_any_image_size():
    head = [row for row in summary(network(depth=8, **CIFAR), (64, 64, 3)) if row.kind == "Dense"]
    assert [(row.output_shape, row.multiply_adds) for row in head] == [((10,), 640)]


def test_dilation_costs_what_it_costs():
    """Without the last stride, stage 4 runs on four times the positions."""
    plain = {r.name: r for r in summary(network(depth=18, width=8), (64, 64, 3))}
    dilated = {
        r.name: r for r in summary(network(depth=18, width=8, output_stride=16), (64, 64, 3))
    }
    name = "stage4/block2/conv2"
    assert dilated[name].multiply_adds == 4 * plain[name].multiply_adds
    assert dilated[name].parameters == plain[name].parameters


def test_table_ends_in_the_totals():
    rows = summary(network(depth=8, **CIFAR), CIFAR_SHAPE)
    lines = format_table(rows).splitlines()
    assert lines[0].split()[0] == "layer"
    assert len(lines) == len(rows) + 4
    total = lines[-1].replace(",", "").split()
    assert total[0] == "total"
    assert int(total[-2]) == sum(row.parameters for row in rows)
    assert int(total[-1]) == sum(row.multiply_adds for row in rows)
    assert any("32 × 32 × 16" in line and "stage1/block1/conv1" in line for line in lines)
