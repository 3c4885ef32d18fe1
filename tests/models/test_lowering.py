"""What GPU and TPU compilers get, against plain Flax modules."""

import collections
import re

import pytest

from benchmarks.whole_step import Row, WholeStep
from tests.support import families

ROW = Row("resnet18", 2)
SIZE, WIDTH = 32, 4


def operations(traced, platform):
    """How often each operation stands in the program of a traced train step."""
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    # Whole tokens of the program; names of files would stand elsewhere.
    return collections.Counter(re.findall(r"\bstablehlo\.(\w+)", text))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_step_is_that_of_plain_flax_modules(dtype):
    row = ROW._replace(dtype=dtype)
    traced = [step(row, SIZE, width=WIDTH).trace() for step in (WholeStep.of, WholeStep.of_flax)]
    for platform in ("cuda", "tpu"):
        compare(*(operations(one, platform) for one in traced))


def compare(ours, flax):
    assert ours["convolution"] == flax["convolution"] == 3 * 20 - 1
    for name in ("optimization_barrier", "case", "custom_call", "scatter", "sort", "while"):
        assert ours[name] == 0, name
    for name in ("transpose", "reverse", "dot_general"):
        assert ours[name] <= flax[name], name
    # What differs: the stem's maximum is selections, so that its gradient is no sum in free order,
    assert not ours["reduce_window"] and not ours["select_and_scatter"]
    assert flax["select_and_scatter"] == 1
    # and BN is one factor and one summand per channel: as many sums over the images, or fewer.
    assert ours["reduce"] <= flax["reduce"]


@pytest.mark.slow
def test_bn_groups_move_no_array():
    row = Row("resnet18", 4, "bfloat16")
    whole, groups = (
        operations(WholeStep.of(row, SIZE, width=WIDTH, bn_group_size=n).trace(), "cuda")
        for n in (0, 2)
    )
    for name in ("transpose", "concatenate", "slice", "gather", "scatter", "while", "dot_general"):
        assert groups[name] <= whole[name], name
    assert groups["convolution"] == whole["convolution"]


def test_loops_have_xlas_convolutions_too():
    traced = WholeStep.of(Row("resnet20", 2), 8, width=WIDTH, scan_blocks=True).trace()
    for platform in ("cuda", "tpu"):
        found = operations(traced, platform)
        assert found["while"] == 6  # three stages, forward and backward
        assert not found["optimization_barrier"] and not found["case"] and not found["custom_call"]


@pytest.mark.slow
@pytest.mark.parametrize("family", families.FAMILIES)
def test_no_sum_has_a_free_order(family):
    """`tests/benchmarks/test_gpu_program.py` reads the same from the compiled programs."""
    traced = families.step(family).trace()
    for platform in ("cuda", "tpu"):
        found = operations(traced, platform)
        for name in ("scatter", "select_and_scatter", "reduce_window", "sort", "rng"):
            assert not found[name], (platform, name)
        assert not found["custom_call"], platform
