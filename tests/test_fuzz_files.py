"""Hostile files: images, folders, weights and workdirs are read or end in a UserError."""

import functools
import io
import json

import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st
from PIL import Image

import predict
from configs import base, recipes
from data import keys, stream
from data.decode import DecodeError, decode, image_size
from data.facts import Facts
from data.sources import open_source
from errors import UserError
from run.workdir import Workdir
from testing import opened_run
from tests.support.fuzzing import counted_cases, fuzz  # noqa: F401 — a fixture
from tests.support.untrained import make_workdir
from weights.files import read_safetensors, read_torch

pytestmark = pytest.mark.usefixtures("counted_cases")
MAX_PIXELS = 2**20  # of a decoded image here, so that a damaged header costs little


# ---- Images


@fuzz("bytes as images", st.binary(max_size=200))
def test_bytes_are_an_image_or_named_as_none(data):
    for prefix in (b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBP"):
        try:
            assert decode(prefix + data, MAX_PIXELS).dtype == np.uint8
        except DecodeError as error:
            assert str(error)


FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MODES = ("RGB", "L", "1", "P", "CMYK", "RGBA", "I;16", "LA")


@functools.cache
def encoded(kind, mode, height, width):
    """An image file as bytes, or None where the format has no such mode."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(pixels)
    image = Image.new(mode, (width, height)) if mode == "I;16" else image.convert(mode)
    file = io.BytesIO()
    try:
        image.save(file, kind)
    except (OSError, KeyError, ValueError):
        return None
    return file.getvalue()


@st.composite
def damaged(draw):
    """An image file with flipped bytes, cut short, or both."""
    data = encoded(draw(st.sampled_from(FORMATS)), draw(st.sampled_from(MODES)), 13, 17)
    assume(data)
    data = bytearray(data)
    for _ in range(draw(st.integers(0, 8))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


@fuzz("damaged images", damaged())
def test_a_damaged_image_is_decoded_or_named(data):
    try:
        height, width = image_size(data)
        image = decode(data, MAX_PIXELS)
        assert image.shape == (height, width, 3)
        assert image.dtype == np.uint8
    except DecodeError as error:
        assert str(error)


LONG = st.sampled_from([(1, 1), (1, 2000), (2000, 1), (2000, 3), (3, 2000), (7, 1999)])
TRANSFORMS = {
    kind: stream.train_transform(kind=kind, image_size=8, flip=True, resize_min=8, resize_max=16)
    for kind in ("random_resized_crop", "scale_jitter", "none", "pad_crop_flip")
}


@fuzz(
    "images of odd sizes",
    st.one_of(LONG, st.tuples(st.integers(1, 60), st.integers(1, 60))),
    st.sampled_from(["JPEG", "PNG"]),
    st.sampled_from(sorted(TRANSFORMS)),
    st.integers(0, 2**40),
)
def test_images_of_every_size_are_cropped(size, kind, transform, position):
    data = encoded(kind, "RGB", *size)
    crop = TRANSFORMS[transform](data, keys.host_generator(0, position))
    centre = stream.eval_transform(resize=9, image_size=8)(data)
    for image in (crop, centre):
        assert (image.shape, image.dtype) == ((8, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An image folder whose one file the fuzzer writes, besides a good one."""
    root = tmp_path_factory.mktemp("images")
    (root / "train" / "thing").mkdir(parents=True)
    (root / "train" / "thing" / "good.png").write_bytes(encoded("PNG", "RGB", 9, 9))
    (root / "train" / "thing" / "odd.jpg").write_bytes(b"")
    return root


@fuzz("image folders", data=st.one_of(st.binary(max_size=60), damaged()))
def test_a_folder_with_any_bytes_trains_or_names_the_record(folder, data):
    (folder / "train" / "thing" / "odd.jpg").write_bytes(data)
    source = open_source(f"folder:{folder}", "train", str(folder))
    options = {"image_shape": (8, 8, 3), "seed": 0, "batch_size": 2, "num_threads": 1}
    batches = {
        policy: stream.train_stream(
            source,
            TRANSFORMS["none"],
            on_corrupt=policy,
            **options,
        )
        for policy in ("mask", "error")
    }
    masked = next(batches["mask"])
    valid = masked.arrays["valid"]
    assert len(masked.corrupt) == (~valid).sum() <= 1
    if valid.all():
        next(batches["error"])
    else:
        assert masked.corrupt[0].endswith("odd.jpg")
        assert not masked.arrays["image"][~valid].any()
        with pytest.raises(UserError, match=r"odd\.jpg"):
            next(batches["error"])


# ---- Files to classify


@pytest.fixture(scope="module")
def network(data_dir, tmp_path_factory):
    """An untrained ResNet-8 for digits."""
    config = recipes.digits("resnet8,paper")
    config.data_dir = data_dir
    config.model.width = 4
    return opened_run.load(make_workdir(config, tmp_path_factory.mktemp("untrained")))


@st.composite
def images(draw):
    """A whole image file of any size from 1×1 to 2000×3."""
    size = draw(st.one_of(LONG, st.tuples(st.integers(1, 60), st.integers(1, 60))))
    return encoded(draw(st.sampled_from(["JPEG", "PNG", "GIF", "BMP"])), "RGB", *size)


@pytest.mark.slow
@fuzz("files to classify", whole=images(), anything=st.one_of(st.binary(max_size=200), damaged()))
def test_any_file_is_classified_or_named(network, tmp_path_factory, whole, anything):
    """A good file, whatever its size, is classified beside one of arbitrary bytes."""
    folder = tmp_path_factory.getbasetemp()
    paths = [folder / "whole", folder / "anything"]
    for path, data in zip(paths, (whole, anything), strict=True):
        path.write_bytes(data)
    good, other = predict.predict(network, paths, batch_size=2)
    assert (good.path, good.error) == (paths[0], "")
    for prediction in (good, other):
        if prediction.error:
            assert prediction.image is None
        else:
            assert prediction.image.shape == (8, 8, 1)
            assert 0 < prediction.probabilities.sum() <= 1.0001
            assert len(set(prediction.labels)) == 5


# ---- Files of runs and weights


@fuzz("weight files", st.binary(max_size=120), st.sampled_from([b"", b"PK\3\4", b"\x80\2"]))
def test_any_bytes_as_a_weight_file_are_refused(tmp_path_factory, data, prefix):
    path = tmp_path_factory.getbasetemp() / "weights"
    path.write_bytes(prefix + data)
    for read in (read_torch, read_safetensors):
        try:
            read(path)
        except UserError as error:
            assert str(path) in str(error)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.sampled_from([*base.base(), *Facts._fields]), st.text(max_size=5)),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=6,
)


@fuzz("workdirs", st.one_of(JSON.map(json.dumps), st.text(max_size=30)))
def test_any_text_as_the_files_of_a_workdir_is_read_or_refused(tmp_path_factory, text):
    workdir = tmp_path_factory.getbasetemp() / "workdir"
    workdir.mkdir(exist_ok=True)
    for name in ("config.json", "data.json"):
        (workdir / name).write_text(text)
    for read in (lambda w: Workdir(w).read_config(), lambda w: opened_run.read_facts(Workdir(w))):
        try:
            read(workdir)
        except UserError as error:
            assert str(error)
