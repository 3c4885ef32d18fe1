"""Data that change between two starts of a run: refused by name, or gone on with on purpose."""

import logging
import shutil

import numpy as np
import pytest

import export
import models
import train
from analysis import subject
from benchmarks.changed_data import CHANGES, draw, draw_classes, swap
from configs import digits
from data import facts, sources
from errors import UserError
from input_pipeline import open_data
from run.checkpoint import Checkpoints
from run.mesh import make_mesh
from run.workdir import Workdir
from testing import fitting, opened_run
from tests.support.untrained import make_workdir
from training import start


@pytest.fixture
def images(tmp_path):
    """An image folder: 4 images to train on and 2 to test on of each of three classes."""
    return draw_classes(tmp_path / "images")


@pytest.fixture
def config(images, tmp_path):
    config = digits.get_config("resnet8,paper")
    config.update(dataset=f"folder:{images}", data_dir=str(tmp_path), batch_size=4)
    config.data.update(resident=False, image_size=8, normalization="per_channel", test_split="val")
    config.eval.batch_size = 2
    return config


def facts_of(config):
    return facts.of_run(open_data(config, make_mesh()))


@pytest.fixture
def workdir(config, tmp_path):
    """A run that has taken its first steps."""
    folder = Workdir(tmp_path / "run")
    start.claim(folder, config, facts_of(config))
    folder.metrics.write_text('{"step": 1, "split": "train"}\n')
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_refused_by_name_and_accepted_on_purpose(
    images, config, workdir, change, caplog
):
    before = workdir.facts.read_bytes()
    act, named = CHANGES[change]
    act(images)
    for index in images.glob(".index*"):  # so fresh that the next scan might believe it
        index.unlink()
    now = facts_of(config)
    with pytest.raises(UserError, match=f"{named}.*data.on_change=accept"):
        start.claim(workdir, config, now)
    assert workdir.facts.read_bytes() == before
    config.data.on_change = "accept"
    start.claim(workdir, config, now)
    assert "the data have changed since the run began" in caplog.text
    config.data.on_change = "error"
    start.claim(workdir, config, now)  # they belong to the run now


def test_data_that_only_moved_are_the_same(images, config):
    """Neither their place nor their time stamps count."""
    before = facts_of(config)
    copy = shutil.copytree(images, images.with_name("copy"))
    config.dataset = f"folder:{copy}"
    assert facts_of(config).splits == before.splits


def test_a_run_of_older_code_goes_on_and_lists_its_data_from_then_on(config, workdir, caplog):
    older = {k: v for k, v in workdir.read_facts().items() if k != "splits"}
    workdir.write_facts(older)
    with caplog.at_level(logging.INFO, "residual"):
        start.claim(workdir, config, facts_of(config))
    assert "lists no files" in caplog.text
    listings = workdir.read_facts()["splits"]
    assert set(listings) == {"train", "validation", "test"}
    for listing in listings.values():
        del listing["contents"]  # as code of a day listed them
    workdir.write_facts(older | {"splits": listings})
    start.claim(workdir, config, facts_of(config))
    assert workdir.read_facts()["splits"]["train"]["contents"]
    workdir.write_facts(older | {"num_train": 11})
    with pytest.raises(UserError, match="num_train: 11 then, 12 now"):
        start.claim(workdir, config, facts_of(config))


def test_a_file_that_is_replaced_by_one_of_the_same_size_is_seen(images, config, monkeypatch):
    """Where the files are few; where they are many, names and sizes must do."""
    before, path = facts_of(config), images / "train/cat/0.png"
    size = path.stat().st_size
    draw(path, 5)
    assert path.stat().st_size == size
    one, other = (f.splits["train"] for f in (before, facts_of(config)))
    assert one.digest == other.digest and one.contents != other.contents
    older = one._replace(contents="")
    assert other.as_far_as(older) == older
    monkeypatch.setattr(sources, "CONTENTS_UP_TO", 12 * size - 1)
    assert facts_of(config).splits["train"] == older


def test_a_damaged_list_of_the_data_is_refused_and_a_missing_one_is_said(config, workdir, caplog):
    workdir.facts.write_text(
        workdir.facts.read_text().replace('"num_train": 12', '"num_train": 13')
    )
    with pytest.raises(UserError, match=r"data\.json: cannot be read .*differs from its checksum"):
        start.claim(workdir, config, facts_of(config))
    workdir.facts.unlink()
    start.claim(workdir, config, facts_of(config))
    assert "data.json is missing" in caplog.text
    start.claim(workdir, config, facts_of(config))


def test_an_analysis_of_changed_data_is_refused_too(images, config, tmp_path, caplog):
    run = opened_run.OpenedRun("run", config, facts_of(config), None, None, 0)
    assert len(subject.load_images(run, "test", 9)[1]) == 6
    swap(images / "val/cat", images / "val/eel")
    for index in images.glob(".index*"):
        index.unlink()
    with pytest.raises(UserError, match="run: the test images have changed.*on_change=accept"):
        subject.load_images(run, "test", 9)
    assert len(subject.load_images(run, "train", 9)[1]) == 9
    config.data.on_change = "accept"
    assert len(subject.load_images(run, "test", 9)[1]) == 6
    assert "the test images have changed" in caplog.text


@pytest.fixture
def exported(tiny, tmp_path):
    """A config that begins with weights that `export.py` wrote, and the facts of its data."""
    network = opened_run.load(str(make_workdir(tiny, tmp_path / "old")))
    tiny.init_from = str(tmp_path / "model.safetensors")
    export.export(network, "safetensors", tiny.init_from)
    return tiny, network.facts, network.variables["params"]["head"]["kernel"]


def head(config, facts):
    model = models.create(config.model, facts.num_classes)
    return np.asarray(start.initial_state(config, model, facts).params["head"]["kernel"])


@pytest.mark.slow
def test_weights_of_the_same_classes_keep_their_head(exported):
    config, then, kernel = exported
    np.testing.assert_array_equal(head(config, then), kernel)


@pytest.mark.slow
def test_a_head_whose_classes_are_in_another_order_is_refused_replaced_or_kept(exported, caplog):
    config, then, kernel = exported
    now = then._replace(label_names=then.label_names[::-1])
    with pytest.raises(UserError, match=r"label_names.0: '0' there, '9' in the data"):
        head(config, now)
    config.replace_head = True
    assert not np.array_equal(head(config, now), kernel)
    config.data.on_change = "accept"
    np.testing.assert_array_equal(head(config, now), kernel)
    config.replace_head = False
    np.testing.assert_array_equal(head(config, now), kernel)
    assert "the weights are of other classes" in caplog.text


def test_the_pixels_of_a_small_set_are_compared(tiny):
    data = open_data(tiny, make_mesh())
    train, test = data.listing("train"), data.listing("test")
    assert (train.images, test.images) == (898, 899) and train.digest != test.digest
    arrays, _ = data.arrays("train")
    arrays["image"][0, 0, 0, 0] ^= 1
    assert data.listing("train").digest != train.digest


def test_testing_refuses_a_changed_split_of_the_runs_own_data(images, config, workdir, caplog):
    def check():
        run = opened_run.OpenedRun(str(workdir), config, then, None, None, 1)
        fitting.check([run], open_data(config, make_mesh()), config)

    then = opened_run.read_facts(workdir)
    (images / "train" / "cat" / "0.png").unlink()  # not what is tested on
    check()
    swap(images / "val" / "cat" / "0.png", images / "val" / "eel" / "0.png")
    with pytest.raises(UserError, match="the test images have changed.*on_change=accept"):
        check()
    config.data.on_change = "accept"
    check()
    assert "the test images have changed" in caplog.text
    config.data.update(on_change="error", test_split="val[:50%]")  # other images on purpose
    check()


def test_a_second_run_writes_nothing_while_the_first_holds_the_lock(tiny, tmp_path):
    first = Checkpoints(tmp_path)
    Workdir(tmp_path).claim(tiny)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    tiny.seed = 7
    with pytest.raises(UserError, match="another process is training in this workdir"):
        train.train(tiny, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    first.close()
