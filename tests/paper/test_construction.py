"""The constructed solution: the same function, written down; and blocks that learn the identity."""

import jax
import numpy as np
import pytest

from configs import digits
from errors import UserError
from paper import construction, learning_identity
from tests.support.published import published


@pytest.mark.slow
def test_the_constructed_network_has_the_errors_of_the_shallow_one(tmp_path, data_dir):
    argv = ["--dataset=digits", "--depths", "8", "14", "--steps=4", "--batch_size=32", "--width=4"]
    argv += [f"--runs={tmp_path / 'runs'}", f"--out={tmp_path}", f"--data_dir={data_dir}"]
    argv += ["--learning_rates", "0.1"]
    content = published(construction, argv)
    runs = {run["name"]: run for run in content["runs"]}
    assert {"plain14, constructed, trained on at 0.1", "plain14, random weights"} <= set(runs)
    for family in ("plain", "resnet"):
        shallow, built = runs[f"{family}8"], runs[f"{family}14, constructed"]
        for split in ("training", "final"):
            assert built[split]["top1_error"] == shallow[split]["top1_error"]
            assert built[split]["loss"] == pytest.approx(shallow[split]["loss"], rel=1e-6)
    by_family = {one["family"]: one for one in content["functions"]}
    assert by_family["plain"]["testing"]["difference"] == 0
    assert by_family["resnet"]["training"]["difference"] == 0
    assert by_family["plain"]["training"]["difference"] > 0  # the statistics of each batch
    assert (tmp_path / "construction.svg").stat().st_size > 1000
    again = published(construction, argv)  # read, and not trained again
    assert again["runs"] == content["runs"]

    del argv[3]  # the shallow network alone, which is finished
    content = published(learning_identity, argv)
    assert [row[:3] for row in content["tables"][0]["rows"]] == [
        ["plain8", name, 0.1] for name, *_ in learning_identity.BLOCKS
    ]
    errors = {one["block"]: one["error"] for one in content["learned"]}
    assert errors["residual, F = 0"] == 0 < errors["plain"]
    assert (tmp_path / "learning_identity.svg").stat().st_size > 1000


@pytest.mark.slow
def test_a_block_with_a_zero_branch_is_the_identity_from_the_start():
    config = digits.get_config("resnet8,paper")
    config.update(num_steps=3, batch_size=8)
    config.optim.boundaries = (1, 2)
    x = np.asarray(jax.nn.relu(jax.random.normal(jax.random.key(0), (16, 4, 4, 2))))
    zero = learning_identity.learn_identity(config, x, 0.1, residual=True, zero=True, seed=0)
    assert zero["error"] == 0 and zero["curve"] == [[1, 0.0], [2, 0.0], [3, 0.0]]
    plain = learning_identity.learn_identity(config, x, 0.1, residual=False, zero=False, seed=0)
    assert plain["curve"][0][1] > 0.1


def test_two_depths_are_needed():
    with pytest.raises(UserError, match=r"--depths=\[56, 20\]: expected a shallow and a deeper"):
        construction.main(["--depths", "56", "20"])
