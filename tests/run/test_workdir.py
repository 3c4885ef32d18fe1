"""Whose folder a workdir is."""

import json

import pytest

import train
from configs import cifar10
from errors import UserError
from run.workdir import Workdir


def test_a_run_older_than_a_field_goes_on_with_its_default(tiny, tmp_path):
    Workdir(tmp_path).claim(tiny)
    saved = Workdir(tmp_path).saved_config()
    del saved["data"]["validation_split"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    (tmp_path / "metrics.jsonl").write_text('{"step": 4}\n')
    Workdir(tmp_path).claim(tiny)
    tiny.data.validation_split = "test"
    with pytest.raises(UserError, match=r"validation_split: '' there, 'test' now"):
        Workdir(tmp_path).claim(tiny)


def test_a_run_that_never_took_a_step_binds_nobody(tiny, tmp_path):
    tiny.batch_size = 0
    Workdir(tmp_path).claim(tiny)
    tiny.batch_size = 32
    Workdir(tmp_path).claim(tiny)
    assert Workdir(tmp_path).saved_config()["batch_size"] == 32
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    tiny.batch_size = 64
    with pytest.raises(UserError, match="batch_size: 32 there, 64 now"):
        Workdir(tmp_path).claim(tiny)


def test_a_network_that_cannot_be_is_refused_before_its_data_and_its_workdir(tmp_path):
    config = cifar10.get_config("resnet21")
    config.data_dir = str(tmp_path / "nothing")
    with pytest.raises(UserError, match="depth=21.*6n"):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_config_that_is_no_json(tmp_path):
    assert Workdir(tmp_path).saved_config() is None
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(UserError, match="cannot be used.*whole"):
        Workdir(tmp_path).saved_config()
