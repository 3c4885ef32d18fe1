"""Order, splits and padding of the device-resident path; feeding devices."""

import jax
import numpy as np
import pytest
from PIL import Image

import models
import train
from errors import UserError
from input_pipeline import open_data
from run.mesh import make_mesh
from run.workdir import Workdir
from testing import scores
from testing.opened_run import read_facts
from tests.support.drawn import draw
from training.check import check


@pytest.mark.slow
def test_batches_are_a_function_of_seed_and_step(tiny):
    steps = [0, 1, 27, 28, 60]  # 28 steps an epoch: the order crosses two boundaries
    on_two = draw(tiny, make_mesh(), steps)
    on_one = draw(tiny, make_mesh(jax.devices()[:1]), steps)
    backwards = draw(tiny, make_mesh(), steps[::-1])[::-1]
    for a, b, c in zip(on_two, on_one, backwards, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)
        jax.tree.map(np.testing.assert_array_equal, a, c)
    tiny.seed = 1
    assert not np.array_equal(draw(tiny, make_mesh(), [0])[0]["image"], on_two[0]["image"])


def test_an_epoch_shows_each_image_at_most_once(tiny):
    data = open_data(tiny, make_mesh())
    batches = draw(tiny, make_mesh(), range(data.steps_per_epoch))
    images = np.concatenate([batch["image"].reshape(len(batch["image"]), -1) for batch in batches])
    stored = next(data.feed(0))["image"]
    stored = np.asarray(stored).reshape(len(stored), -1)
    counts = {}
    for row in stored:
        counts[row.tobytes()] = counts.get(row.tobytes(), 0) + 1
    for row in images:
        counts[row.tobytes()] -= 1
    assert min(counts.values()) >= 0
    assert sum(counts.values()) == 898 % 32


def test_copies_of_an_image_lie_in_one_batch(tiny):
    once = draw(tiny, make_mesh(), [0, 1])
    tiny.augment.repeats = 4
    data = open_data(tiny, make_mesh())
    assert data.steps_per_epoch == 898 // 8
    copies = draw(tiny, make_mesh(), [0, 1, 2, 3])
    assert all(batch["image"].shape == (32, 8, 8, 1) for batch in copies)
    for name in ("image", "label"):
        of_copies = [batch[name].reshape(4, 8, *batch[name].shape[1:]) for batch in copies]
        assert all((a == a[0]).all() for a in of_copies)
        np.testing.assert_array_equal(np.concatenate([a[0] for a in of_copies]), once[0][name])


@pytest.mark.slow
def test_images_are_tested_at_a_size_of_their_own(tiny, tmp_path):
    for split, number in (("train", 4), ("test", 2)):
        folder = tmp_path / split / "thing"
        folder.mkdir(parents=True)
        for i in range(number):
            Image.new("RGB", (40, 30), (i, 2, 3)).save(folder / f"{i}.png")
    tiny.update(dataset=f"folder:{tmp_path}", batch_size=4)
    tiny.data.update(resident=False, image_size=16, normalization="per_channel")
    tiny.augment.update(kind="random_resized_crop", policy="trivial_augment", repeats=2)
    tiny.eval.update(image_size=24, resize=25, batch_size=2)
    check(tiny, devices=2)
    data = open_data(tiny, make_mesh())
    assert next(data.feed(0))["image"].shape == (4, 16, 16, 3)
    assert next(data.evaluation("test"))["image"].shape == (2, 24, 24, 3)
    assert data.facts.image_shape == (24, 24, 3)
    model = models.create(tiny.model, 1)
    variables = model.init(jax.random.key(0), jax.numpy.zeros((1, 16, 16, 3)), train=False)
    assert scores.measure(model, variables, data, "test", make_mesh())["images"] == 2


def test_validation_is_held_out(tiny):
    tiny.data.validation_size = 98
    data = open_data(tiny, make_mesh())
    assert data.facts.num_train == 800
    assert data.split_size("validation") == 98
    assert data.split_size("test") == 899


@pytest.mark.parametrize("resident", [True, False])
def test_validation_may_be_a_split_of_its_own(tiny, resident, tmp_path):
    if not resident:
        for split, number in (("train", 3), ("dev", 2), ("test", 1)):
            (tmp_path / split / "a").mkdir(parents=True)
            for i in range(number):
                Image.new("RGB", (8, 8)).save(tmp_path / split / "a" / f"{i}.png")
        tiny.dataset = f"folder:{tmp_path}"
        tiny.data.update(resident=False, image_size=8, normalization="imagenet")
    tiny.data.validation_split = "test" if resident else "dev"
    data = open_data(tiny, make_mesh())
    sizes = [data.split_size(split) for split in ("train", "validation", "test")]
    assert sizes == ([898, 899, 899] if resident else [3, 2, 1])
    tiny.data.validation_size = 1
    with pytest.raises(UserError, match="validation_split=.*validation_size=1: set one"):
        check(tiny, devices=2)


def test_evaluation_shows_every_image_once(tiny):
    tiny.eval.batch_size = 250
    data = open_data(tiny, make_mesh())
    batches = list(data.evaluation("test"))
    assert [batch["valid"].sum() for batch in batches] == [250, 250, 250, 149]
    assert {batch["image"].shape for batch in batches} == {(250, 8, 8, 1)}


def test_an_evaluation_batch_need_not_divide(tiny):
    """It grows; padding is not valid, so that every image still counts once."""
    tiny.eval.batch_size = 299
    check(tiny, devices=2)
    batches = list(open_data(tiny, make_mesh()).evaluation("test"))
    assert {len(batch["label"]) for batch in batches} == {300}
    assert sum(batch["valid"].sum() for batch in batches) == 899


def test_larger_resident_images_are_averaged_in_blocks(tiny):
    whole = open_data(tiny.copy_and_resolve_references(), make_mesh())
    tiny.data.image_size = 4
    halved = open_data(tiny.copy_and_resolve_references(), make_mesh())
    assert halved.facts.image_shape == (4, 4, 1)
    for split in ("train", "test"):
        ours, theirs = (
            np.concatenate([b["image"][b["valid"]] for b in data.evaluation(split)])
            for data in (halved, whole)
        )
        sums = sum(theirs[:, i::2, j::2].astype(int) for i in (0, 1) for j in (0, 1))
        np.testing.assert_array_equal(ours, (sums + 2) // 4)
    assert halved.facts.normalization.mean.shape == (4, 4, 1)
    tiny.data.image_size = 9
    assert open_data(tiny, make_mesh()).facts.image_shape == (8, 8, 1)
    for size in (3, 7):
        tiny.data.image_size = size
        with pytest.raises(UserError, match=f"image_size={size}.*8×8.*1, 2, 4, 8"):
            open_data(tiny, make_mesh())


def test_facts_survive_the_workdir(tiny, tmp_path):
    facts = open_data(tiny, make_mesh()).facts
    Workdir(tmp_path).write_facts(facts.to_dict())
    loaded = read_facts(Workdir(tmp_path))
    assert loaded.label_names == tuple("0123456789")
    np.testing.assert_array_equal(loaded.normalization.mean, facts.normalization.mean)
    assert loaded.image_shape == (8, 8, 1)
    (tmp_path / "data.json").write_text("{")
    with pytest.raises(UserError, match=r"data\.json"):
        read_facts(Workdir(tmp_path))


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("dataset", "imagenet", "imagenet"),
        ("data.validation_size", 898, "validation_size=898"),
        ("data.normalization", "zscore", "zscore"),
        ("augment.kind", "scale_jitter", "scale_jitter"),
        ("data.test_split", "holdout", "holdout"),
    ],
)
def test_errors_name_the_value(tiny, field, value, named):
    with tiny.unlocked():
        tiny.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=named):
        check(tiny, devices=2)
        open_data(tiny, make_mesh()).split_size("test")


@pytest.mark.slow
def test_unprepared_set_says_how_to_prepare_it(tiny, tmp_path):
    tiny.update(dataset="cifar10", data_dir=str(tmp_path))
    with pytest.raises(UserError) as error:
        open_data(tiny, make_mesh())
    assert len(str(error.value).splitlines()) == 2
    assert "python prepare_data.py cifar10" in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("seed", 2**32),
        ("log_every", 2**31),
        ("data.image_size", 0),
        ("data.num_threads", -1),
        ("data.prefetch", -1),
        ("data.max_corrupt_fraction", 1.5),
        ("eval.resize", 0),
        ("augment.pad", -1),
        ("augment.area", (0.5,)),
        ("augment.aspect", ()),
        ("data.test_split", "nope"),
    ],
)
def test_what_no_run_can_work_with_is_refused_before_the_first_step(tiny, tmp_path, field, value):
    tiny.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=rf"{field.split('.')[-1]}=|'nope'"):
        train.train(tiny, tmp_path / "run")
