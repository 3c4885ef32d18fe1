"""Whose folder a workdir is."""

import json

import pytest

import workdirs
from errors import UserError


def test_a_run_older_than_a_field_goes_on_with_its_default(tiny, tmp_path):
    workdirs.claim(tiny, tmp_path)
    saved = workdirs.saved_config(tmp_path)
    del saved["data"]["validation_split"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    workdirs.claim(tiny, tmp_path)
    tiny.data.validation_split = "test"
    with pytest.raises(UserError, match=r"validation_split: None there, 'test' now"):
        workdirs.claim(tiny, tmp_path)


def test_a_config_that_is_no_json(tmp_path):
    assert workdirs.saved_config(tmp_path) is None
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(UserError, match="cannot be used.*whole"):
        workdirs.saved_config(tmp_path)
