"""Tiny sets of annotated images."""

import pytest

from tests.support import annotated_sets


@pytest.fixture(scope="session")
def coco_root(tmp_path_factory):
    return annotated_sets.write_coco(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="session")
def voc_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("voc") / "VOCdevkit"
    annotated_sets.write_voc(root, 2012)
    return annotated_sets.write_voc(root, 2007)
