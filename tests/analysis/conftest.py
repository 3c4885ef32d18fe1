"""A network with random weights, and a run of two steps."""

import pytest

import train
from configs import digits
from tests.support.analysed import random_network


@pytest.fixture(scope="session")
def small():
    return random_network()


@pytest.fixture(scope="session")
def workdir(tmp_path_factory, data_dir):
    folder = tmp_path_factory.mktemp("run") / "a"
    config = digits.get_config("resnet8,paper")
    config.update(data_dir=data_dir, batch_size=32, num_steps=2, log_every=2, tensorboard=False)
    config.model.width = 4
    config.optim.boundaries = (1,)
    train.train(config, folder)
    return folder
