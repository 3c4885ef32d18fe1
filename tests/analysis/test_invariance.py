"""Convolutions move with the image, to the last bit; where padding reaches they do not."""

import jax
import numpy as np
import pytest

from analysis import invariance
from run import command
from tests.support.analysed import outcome, random_images, random_network


def test_images_move_over_zeros():
    images = np.arange(1, 13, dtype=np.float32).reshape(1, 3, 4, 1)
    right = invariance.shift(images, 1, axis=2)[0, :, :, 0]
    np.testing.assert_array_equal(right, [[0, 1, 2, 3], [0, 5, 6, 7], [0, 9, 10, 11]])
    down = invariance.shift(images, 2, axis=1)[0, :, :, 0]
    np.testing.assert_array_equal(down, [[0] * 4, [0] * 4, [1, 2, 3, 4]])
    assert images.min() == 1 and (invariance.shift(images, 0, axis=1) == images).all()


@pytest.mark.slow
def test_the_border_is_what_padding_reaches(small):
    model, variables = small  # one block per stage: 2·(1 + 2) + 1 = 7 pixels see stage 1
    reach = invariance.reach_of_padding(model, variables, 3)
    assert reach["stem"] == (1, 1)
    assert reach["stage1"] == (1, 3)
    assert reach["stage2"] == (2, 3)
    deep, variables = random_network(depth=2 + 6 * 91, scan_blocks=True)  # sees 2,500 pixels
    assert "stage3" not in invariance.reach_of_padding(deep, variables, 3)


@pytest.mark.slow
@pytest.mark.parametrize("side", [8, 7])
def test_convolutions_are_equivariant_to_the_last_bit(small, side):
    """At whole positions, without the positions that padding reaches: exactly 0; else it is not."""
    model, variables = small
    compiled = jax.jit(lambda v, x: model.apply(v, x, train=False)[1])

    def apply(images):
        return jax.tree.map(np.asarray, compiled(variables, images))

    reach = invariance.reach_of_padding(model, variables, 3)
    images = np.asarray(random_images(5, side))
    _, rows = invariance.measure_equivariance(apply, images, range(6), reach)
    for row in rows:
        for name, (stride, _) in reach.items():
            whole = row["pixels"] % stride == 0
            assert (row[name]["inside"] == 0) == whole, (row["pixels"], name)
            assert (row[name]["border"] > 0) == (row["pixels"] > 0)


def test_a_map_that_moves_with_its_image():
    reference = np.random.default_rng(0).normal(size=(2, 8, 8, 3))
    moved = np.roll(reference, 2, axis=1)  # stride 2: an image shift of 4 pixels of 16
    assert invariance.equivariance_error(moved, reference, 4, 1, 2, 1)["inside"] == 0
    assert invariance.equivariance_error(reference, reference, 4, 1, 2, 1)["inside"] > 0.5
    neither = {"inside": None, "border": None}
    assert invariance.equivariance_error(moved, reference, 16, 1, 2, 1) == neither
    moved[:, 0] = reference[:, -1] = 7  # what lies outside of the other is not compared
    assert invariance.equivariance_error(moved, reference, 4, 1, 2, 0)["inside"] == 0
    moved[:, 2] += 1  # the first row of both: reached by padding
    found = invariance.equivariance_error(moved, reference, 4, 1, 2, 1)
    assert found["inside"] == 0 and found["border"] > 0


def test_relative_change():
    reference = np.array([[3.0, 4.0], [6.0, 8.0]])
    moved = np.array([[3.0, 4.0], [6.0, 13.0]])
    assert invariance.change(moved, reference) == pytest.approx((0 + 0.5) / 2)


@pytest.mark.slow
def test_invariance_of_a_run(workdir):
    argv = [f"--workdir={workdir}", "--images=20", "--max_shift=4"]
    assert command.run(invariance.main, argv) == 0
    [found] = outcome(workdir, "invariance")["measured"]
    invariant, rows = found["invariance"], found["equivariance"]
    assert [row["pixels"] for row in rows] == [row["pixels"] for row in invariant] == [*range(5)]
    assert invariant[0]["logits"] == 0 and invariant[0]["same_answer"] == 1
    assert invariant[3]["logits"] > 0
    assert [row["stem"]["inside"] for row in rows] == [0] * 5
    assert [row["stage2"]["inside"] == 0 for row in rows] == [True, False, True, False, True]
    assert (workdir / "analysis/invariance.png").stat().st_size > 1000
