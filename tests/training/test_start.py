"""What a run that goes on keeps from its beginning."""

import json
import logging

from configs import base
from run.workdir import Workdir
from training import start


def test_a_field_that_is_newer_than_the_run_keeps_its_default(tiny, tmp_path, caplog):
    folder = Workdir(tmp_path)
    saved = base.to_dict(tiny)
    del saved["model"]["bn_group_size"], saved["eval"]["split"]
    folder.config.write_text(json.dumps(saved))
    tiny.model.bn_group_size, tiny.eval.split = 64, "train"
    assert start.adopted(tiny, folder.begun_config()).model.bn_group_size == 64  # nothing binds yet
    folder.metrics.write_text("{}\n")
    with caplog.at_level(logging.INFO, logger="residual"):
        config = start.adopted(tiny, folder.begun_config())
    assert "before there was model.bn_group_size: it goes on with 0" in caplog.text
    assert (config.model.bn_group_size, config.eval.split) == (0, "train")  # eval is free
    assert tiny.model.bn_group_size == 64
    assert folder.claim(config)
