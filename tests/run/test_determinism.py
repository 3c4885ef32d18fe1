"""The flag for sums in a fixed order: asked for in time, refused where it comes too late."""

import os

import jax
import pytest

import main
from configs import recipes
from errors import UserError
from run import determinism
from training.check import check


def test_the_flag_is_added_once_and_the_others_stay(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_other=1")
    assert not determinism.requested()
    for _ in range(2):
        determinism.request()
        assert os.environ["XLA_FLAGS"] == f"--xla_other=1 {determinism.FLAG}"
    monkeypatch.delenv("XLA_FLAGS")
    determinism.request()
    assert os.environ["XLA_FLAGS"] == determinism.FLAG


@pytest.mark.parametrize(("wanted", "expected"), [(True, True), (False, False)])
def test_main_asks_for_it_before_jax_starts(wanted, expected, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setitem(main.MODES, "train", lambda *_: seen.append(determinism.requested()))
    words = ["main.py", "--config=configs/digits.py:resnet8", f"--workdir={tmp_path}"]
    main.main([*words, f"--config.deterministic={wanted}"])
    assert seen == [expected]


def test_on_a_gpu_it_may_come_too_late(monkeypatch):
    config = recipes.digits("resnet8")
    config.deterministic = True
    monkeypatch.setenv("XLA_FLAGS", "")
    check(config, 1)  # on a CPU the order is always fixed
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(UserError, match=f"XLA_FLAGS={determinism.FLAG}"):
        check(config, 1)
    determinism.request()
    check(config, 1)
