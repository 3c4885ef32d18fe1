"""Whole runs over image folders and array_records that hold every kind of odd and damaged file."""

import io
import json
import shutil
import struct

import numpy as np
import pytest
from PIL import Image

import evaluate
import input_pipeline
import train
from benchmarks import faults
from configs import digits
from configs.fields import FIELDS
from data import decode, stream
from errors import UserError
from run import logs
from run.mesh import make_mesh
from tests.support import ilsvrc
from tests.support.untrained import make_workdir

OPTIONS = {
    "model.width": 4,
    "augment.kind": "random_resized_crop",
    "data.resident": False,
    "data.image_size": 16,
    "data.normalization": "imagenet",
    "data.test_split": "validation",
    "data.num_threads": 2,
    "data.on_corrupt": "mask",
    "data.max_corrupt_fraction": 0.5,
    "eval.resize": 18,
    "eval.batch_size": 8,
    "tensorboard": False,
}


# Runs of one program share its compilation, as the runs of main.py do.
pytestmark = pytest.mark.usefixtures("compilation_cache")


def make_config(dataset, data_dir, **options):
    config = digits.get_config("resnet8,paper")
    config.update(dataset=dataset, data_dir=str(data_dir))
    config.update_from_flattened_dict(OPTIONS | options)
    return config


# ---- Every kind of file


def file_of(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def odd_files():
    """Kind → an image that is one, though not a plain RGB JPEG; none of them is dark."""
    image = ilsvrc.photograph(0)
    rotated = Image.Exif()
    rotated[0x0112] = 6
    grey = np.asarray(image.convert("L")).astype(np.uint16) << 8
    frames = {"save_all": True, "append_images": [ilsvrc.photograph(1).resize(image.size)]}
    return {
        "cmyk": file_of(image.convert("CMYK"), "JPEG"),
        "grey": file_of(image.convert("L"), "JPEG"),
        "16-bit": file_of(Image.fromarray(grey), "PNG"),
        "rotated": file_of(image, "JPEG", exif=rotated),
        "animated": file_of(image, "WEBP", **frames),
        "animated-gif": file_of(image, "GIF", **frames),
    }


def bad_files():
    """Kind → a file that no image can be made of."""
    whole = file_of(ilsvrc.photograph(0), "JPEG")
    bomb = bytearray(file_of(ilsvrc.photograph(0), "PNG"))
    bomb[16:24] = struct.pack(">II", 60_000, 60_000)  # width and height in IHDR
    return {
        "truncated": whole[: len(whole) // 2],
        "zero-byte": b"",
        "text": b"not an image",
        "bomb": bytes(bomb),
    }


def name_of(kind):
    return f"{ilsvrc.SYNSETS[0]}_{kind}.JPEG"


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """`(dataset, data_dir)` of the same files as array_record and as a folder."""
    root = tmp_path_factory.mktemp("odd")
    extra = {name_of(kind): data for kind, data in (odd_files() | bad_files()).items()}
    records = ilsvrc.prepare(root, extra)
    ilsvrc.write_folder(records, root / "folder")
    return {
        "array_record": ("tfds:imagenet2012", records),
        "folder": (f"folder:{root / 'folder'}", root),
    }


FORMS = pytest.mark.parametrize("form", ["array_record", "folder"])


@pytest.mark.slow
@FORMS
def test_masked_files_are_counted_and_named_and_odd_ones_are_seen(forms, form, tmp_path, caplog):
    size = 18 + len(odd_files()) + len(bad_files())
    config = make_config(*forms[form], batch_size=size, num_steps=2, log_every=1)
    bad = {name_of(kind) for kind in bad_files()}

    def file_names(records):
        return {name.split("/")[-1].split()[-1] for name in records}

    result = train.train(config, tmp_path)
    assert file_names(result["masked_records"]) == bad
    assert result["masked_images"] == len(bad) and result["images"] == ilsvrc.VALIDATION
    first, second, _, final = logs.read_lines(tmp_path / "metrics.jsonl")
    for line in (first, second):  # each is one epoch
        assert line["masked_images"] == len(bad) and file_names(line["masked_records"]) == bad
    assert final["masked_records"] == result["masked_records"]
    *_, summary = caplog.messages
    assert summary.startswith("4 corrupt records were left out: ")
    for name in bad:
        assert name in summary
        assert any("Corrupt record" in line and name in line for line in caplog.messages)

    config.eval.split = "train"
    tested = evaluate.run(config, tmp_path)
    assert file_names(tested["masked_records"]) == bad
    assert (tested["masked_images"], tested["images"]) == (len(bad), size - len(bad))


@FORMS
def test_no_batch_shows_a_black_image(forms, form):
    config = make_config(*forms[form], batch_size=28, **{"augment.kind": "none"})
    data = input_pipeline.open_data(config, make_mesh())
    batch = next(data.feed(0))
    order, drawn = data.draw((), 0, batch)
    assert order == () and (~batch["valid"]).sum() == 4
    np.testing.assert_array_equal(drawn["valid"], batch["valid"])
    images, shown = np.asarray(batch["image"]), np.asarray(drawn["image"])
    valid = np.asarray(batch["valid"])
    np.testing.assert_array_equal(shown[valid], images[valid])
    assert (shown.mean((1, 2, 3)) > 20).all()
    for masked in shown[~valid]:  # BN sees another image twice instead
        assert any(np.array_equal(masked, image) for image in images[valid])


@pytest.mark.slow
@FORMS
def test_each_bad_file_ends_the_run_with_its_name(forms, form, tmp_path):
    dataset, data_dir = forms[form]
    whole = make_config(dataset, data_dir)
    source = input_pipeline.open_data(whole, make_mesh()).source("train")
    index_of = {source[i].name.split("/")[-1].split()[-1]: i for i in range(len(source))}
    for kind in bad_files():
        index = index_of[name_of(kind)]
        split = {"data.train_split": f"train[{index}:{index + 1}]", "data.on_corrupt": "error"}
        config = make_config(dataset, data_dir, batch_size=2, num_steps=1, **split)
        with pytest.raises(UserError, match=rf"corrupt record .*{name_of(kind)}.*repair or remove"):
            train.train(config, tmp_path / kind)


@pytest.fixture
def with_a_large_one(tmp_path):
    """A config of a folder with a small image and one of 50 × 60 in each split."""
    for split in ("train", "val"):
        (tmp_path / "images" / split / "thing").mkdir(parents=True)
        for name, side in (("small", 20), ("large", 50)):
            picture = ilsvrc.photograph(0, side=side).crop((0, 0, side + side // 5, side))
            picture.save(tmp_path / "images" / split / "thing" / f"{name}.png")
    options = {"batch_size": 2, "data.max_pixels": 2999, "data.on_corrupt": "error"}
    return make_config(f"folder:{tmp_path / 'images'}", tmp_path, **options)


TOO_LARGE = r"{}/thing/large\.png.*50 × 60, 3,000 pixels.*limit of 2,999, config\.data\.max_pixels"


def test_an_image_over_the_limit_is_named_wherever_it_is_decoded(with_a_large_one, tmp_path):
    config, mesh = with_a_large_one, make_mesh()
    data = input_pipeline.open_data(config, mesh)
    for kind in ("random_resized_crop", "none"):
        config.augment.kind = kind
        with pytest.raises(UserError, match=TOO_LARGE.format("train")):
            next(data.feed(0))
    make_workdir(config, tmp_path / "run")
    config.eval.scales = (18,)
    for protocol in ("center", "10crop", "multiscale"):
        config.eval.protocol = protocol
        with pytest.raises(UserError, match=TOO_LARGE.format("val")):
            evaluate.run(config, tmp_path / "run")
    config.data.normalization = "per_channel"
    with pytest.raises(UserError, match=TOO_LARGE.format("train")):
        input_pipeline.open_data(config, mesh)
    config.data.max_pixels = 3000
    assert next(input_pipeline.open_data(config, mesh).feed(0))["valid"].all()


def test_an_image_over_the_limit_is_masked(with_a_large_one):
    with_a_large_one.data.on_corrupt = "mask"
    batch = next(input_pipeline.open_data(with_a_large_one, make_mesh()).feed(0))
    assert batch["valid"].sum() == 1


def test_the_default_limit_has_one_value():
    assert FIELDS["data.max_pixels"].default == decode.MAX_PIXELS >= 61_000_000  # cameras have


def test_a_file_larger_than_any_image_is_not_read(tmp_path):
    with open(tmp_path / "x.png", "wb") as file:
        file.truncate(2**40)  # takes no room
    with pytest.raises(decode.DecodeError, match="1,099,511,627,776 bytes.*limit is 1,073,741,824"):
        decode.read(tmp_path / "x.png")


def test_a_file_that_cannot_be_read_is_named(forms, tmp_path):
    folder = shutil.copytree(forms["folder"][0].removeprefix("folder:"), tmp_path / "folder")
    gone = folder / "train" / ilsvrc.SYNSETS[0] / "dangling.jpg"
    gone.symlink_to(tmp_path / "nowhere")
    options = {"data.train_split": "train[:1]", "data.on_corrupt": "error", "batch_size": 2}
    config = make_config(f"folder:{folder}", tmp_path, **options)
    with pytest.raises(UserError, match=r"corrupt record .*dangling\.jpg.*cannot be read"):
        train.train(config, tmp_path / "run")


# ---- Names and limit over the whole run


NUMBER, BATCH, CHECKPOINT = 48, 8, 3


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run, and a copy as it was at its checkpoint, in the middle of a window of the log.

    One record in each of the batches 0, 2 and 5 is corrupt.
    """
    root = tmp_path_factory.mktemp("three")
    order = stream.record_order(NUMBER, 0)
    next_epoch = {order(NUMBER + i) for i in range(2 * BATCH)}
    bad = [
        next(i for i in map(order, range(BATCH * b, BATCH * (b + 1))) if i not in next_epoch)
        for b in (0, 2, 5)
    ]
    for split, number in (("train", NUMBER), ("val", 10)):
        (root / "images" / split / "thing").mkdir(parents=True)
        for i in range(number):
            path = root / "images" / split / "thing" / f"{i:02}.jpg"
            ilsvrc.photograph(i, side=40).save(path)
            if split == "train" and i in bad:
                path.write_bytes(b"damaged")
    options = {"batch_size": BATCH, "num_steps": 6, "log_every": 2, "checkpoint_every": CHECKPOINT}
    config = make_config(f"folder:{root / 'images'}", root, **options)
    whole = root / "whole"
    train.train(config, whole)
    half = shutil.copytree(whole, root / "half")
    shutil.rmtree(half / "checkpoints" / "6")
    lines = logs.read_lines(half / "metrics.jsonl")
    kept = [json.dumps(line) + "\n" for line in lines if line["step"] <= CHECKPOINT]
    (half / "metrics.jsonl").write_text("".join(kept))
    return config, whole, half, [f"train/thing/{i:02}.jpg" for i in bad]


@pytest.mark.slow
def test_a_continued_run_names_what_was_masked_before(interrupted, tmp_path):
    config, whole, half, bad = interrupted
    lines = logs.read_lines(whole / "metrics.jsonl")
    named = {line["step"]: line.get("masked_records") for line in lines if line["split"] == "train"}
    assert named == {2: bad[:1], 4: bad[1:2], 6: bad[2:]}
    assert lines[-1]["masked_records"] == sorted(bad) and lines[-1]["masked_images"] == 3
    workdir = shutil.copytree(half, tmp_path / "run")
    train.train(config, workdir)
    assert faults.differences(workdir, whole) == []


def test_the_limit_counts_over_restarts(interrupted, tmp_path):
    config, _, half, bad = interrupted
    config = config.copy_and_resolve_references()
    config.data.max_corrupt_fraction = 2.5 / NUMBER
    workdir = shutil.copytree(half, tmp_path / "run")
    with pytest.raises(UserError, match="3 of 48 records are corrupt.*max_corrupt_fraction") as why:
        train.train(config, workdir)
    assert all(name in str(why.value) for name in bad)


def test_the_limit_holds_for_each_split_of_an_evaluation(interrupted, tmp_path):
    config, whole, _, _ = interrupted
    config = config.copy_and_resolve_references()
    config.eval.split = "train"
    config.data.max_corrupt_fraction = 2.5 / NUMBER
    with pytest.raises(UserError, match="3 of 48 records are corrupt"):
        evaluate.run(config, whole)
    config.eval.split = "test"
    assert "masked_records" not in evaluate.run(config, shutil.copytree(whole, tmp_path / "run"))
