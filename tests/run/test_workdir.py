"""Whose folder a workdir is."""

import json

import pytest

import train
from configs import cifar10
from errors import UserError
from run import workdir


def test_a_run_older_than_a_field_goes_on_with_its_default(tiny, tmp_path):
    workdir.claim(tiny, tmp_path)
    saved = workdir.saved_config(tmp_path)
    del saved["data"]["validation_split"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    (tmp_path / "metrics.jsonl").write_text('{"step": 4}\n')
    workdir.claim(tiny, tmp_path)
    tiny.data.validation_split = "test"
    with pytest.raises(UserError, match=r"validation_split: None there, 'test' now"):
        workdir.claim(tiny, tmp_path)


def test_a_run_that_never_took_a_step_binds_nobody(tiny, tmp_path):
    tiny.batch_size = 0
    workdir.claim(tiny, tmp_path)
    tiny.batch_size = 32
    workdir.claim(tiny, tmp_path)
    assert workdir.saved_config(tmp_path)["batch_size"] == 32
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    tiny.batch_size = 64
    with pytest.raises(UserError, match="batch_size: 32 there, 64 now"):
        workdir.claim(tiny, tmp_path)


def test_a_network_that_cannot_be_is_refused_before_its_data_and_its_workdir(tmp_path):
    config = cifar10.get_config("resnet21")
    config.data_dir = str(tmp_path / "nothing")
    with pytest.raises(UserError, match="depth=21.*6n"):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_config_that_is_no_json(tmp_path):
    assert workdir.saved_config(tmp_path) is None
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(UserError, match="cannot be used.*whole"):
        workdir.saved_config(tmp_path)
