"""Tiny sets of annotated images, and a tiny backbone."""

import pytest

from models import resnet
from models.block import BasicBlock
from tests.support import annotated_sets
from tests.support.ilsvrc import write_localization
from tests.support.tiny_recipes import tiny_recipe


@pytest.fixture(scope="session")
def coco_root(tmp_path_factory):
    return annotated_sets.write_coco(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="session")
def voc_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("voc") / "VOCdevkit"
    annotated_sets.write_voc(root, 2012)
    return annotated_sets.write_voc(root, 2007)


@pytest.fixture(scope="module")
def tiny_backbone():
    """A depth of four blocks, which halves the time that compiling takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.IMAGENET, 10, resnet.Architecture((1, 1, 1, 1), BasicBlock))
        yield


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A config of localization on a miniature in ILSVRC's genuine layout."""
    root = tmp_path_factory.mktemp("ilsvrc")
    config = tiny_recipe("ilsvrc_r101_localization", optim__boundaries=())
    config.update(init_from="", data_dir=str(root), dataset=f"folder:{write_localization(root)}")
    config.data.update(image_size=64, num_threads=1)
    config.augment.update(resize_min=70, resize_max=90)
    config.model.frozen_bn = False
    config.detection.update(sides=(64,), longer=64, anchors=(32,), max_objects=2)
    return config
