"""Tiny sets of annotated images, and a tiny backbone."""

import pytest

from models import resnet
from models.block import BasicBlock
from tests.support import annotated_sets


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
