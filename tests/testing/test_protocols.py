"""Testing protocols and precise BN statistics against slow, obvious references."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from PIL import Image

import evaluate
import models
from configs import digits
from data import transforms
from data.feed import padded_batches
from run.mesh import make_mesh
from testing import opened_run, precise_bn, protocols, scores
from tests.support.untrained import make_workdir

CLASSES = 10


def network(seed, shape=(8, 8, 1), per_pixel=True):
    """A random tiny network whose BN statistics are not trivial."""
    fields = {"depth": 8, "stem": "cifar", "width": 4, "shortcut": "A"}
    model = models.create(fields, CLASSES)
    variables = jax.jit(lambda: model.init(jax.random.key(seed), jnp.zeros((1, *shape)), False))()
    head = variables["params"]["head"]
    head["kernel"] = jax.random.normal(jax.random.key(seed + 1), head["kernel"].shape)
    generator = np.random.default_rng(seed)
    mean = generator.uniform(90, 160, shape if per_pixel else shape[-1:]).astype(np.float32)
    return scores.Network(model, variables, (mean, np.full(shape[-1:], 60, np.float32)))


@pytest.fixture(scope="module")
def one():
    return network(0)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (7, 8, 8, 1), np.uint8)


@pytest.fixture(scope="module")
def labels():
    return np.random.default_rng(2).integers(0, CLASSES, 7).astype(np.int32)


def softmax(scores):
    powers = [math.exp(s - max(scores)) for s in scores]
    return np.array([p / sum(powers) for p in powers])


def reference_scores(net, view):
    """Scores of one normalised view [h, w, c]: the mean over positions, position by position."""
    _, endpoints = _apply(net.model)(net.variables, view[None])
    score_map = np.asarray(endpoints["logits_map"][0], np.float64)
    total = np.zeros(net.model.num_classes)
    for row in score_map:
        for position in row:
            total += position
    return total / (score_map.shape[0] * score_map.shape[1])


_COMPILED = {}


def _apply(model):
    if model not in _COMPILED:
        _COMPILED[model] = jax.jit(lambda v, x: model.apply(v, x, train=False))
    return _COMPILED[model]


def normalised(net, image):
    mean, std = net.normalization
    return (image.astype(np.float32) - mean) / std


def reference_single(net, image):
    return softmax(reference_scores(net, normalised(net, image)))


def reference_ten_crop(net, image, pad):
    height, width, channels = image.shape
    padded = np.zeros((height + 2 * pad, width + 2 * pad, channels), np.uint8)
    for y in range(height):
        for x in range(width):
            padded[pad + y, pad + x] = image[y, x]
    total = np.zeros(net.model.num_classes)
    for top, left in ((0, 0), (0, 2 * pad), (2 * pad, 0), (2 * pad, 2 * pad), (pad, pad)):
        crop = padded[top : top + height, left : left + width]
        for view in (crop, crop[:, ::-1]):
            total += softmax(reference_scores(net, normalised(net, view)))
    return total / 10


def reference_multiscale(net, image, scales):
    total = np.zeros(net.model.num_classes)
    for scale in scales:
        for view in (image, image[:, ::-1]):
            x = normalised(net, view)
            resized = [
                np.asarray(
                    Image.fromarray(x[..., c]).resize((scale, scale), Image.Resampling.BILINEAR)
                )
                for c in range(x.shape[-1])
            ]
            total += reference_scores(net, np.stack(resized, -1).astype(np.float32))
    return softmax(total / (2 * len(scales)))


def reference_result(probabilities, labels):
    """Loss and errors, image by image."""
    loss, wrong1, wrong5 = 0.0, 0, 0
    for p, label in zip(probabilities, labels, strict=True):
        loss -= math.log(p[label])
        order = sorted(range(len(p)), key=lambda c: -p[c])
        wrong1 += order[0] != label
        wrong5 += label not in order[:5]
    number = len(labels)
    return loss / number, wrong1 / number, wrong5 / number, number


def check(result, probabilities, labels, tolerance=2e-5):
    expected = reference_result(probabilities, labels)
    found = [result[k] for k in ("loss", "top1_error", "top5_error", "images")]
    np.testing.assert_allclose(found, expected, rtol=tolerance)


def scored(networks, protocol, images, labels, devices=2):
    mesh = make_mesh(jax.devices()[:devices])
    batches = padded_batches(
        {"image": images, "label": labels}, 4
    )  # 7 images: the last batch is partial
    return scores.score(networks, [(protocol, batches)], mesh)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_single_view(one, images, labels, devices):
    result = scored([one], protocols.CENTER, images, labels, devices)
    check(result, [reference_single(one, image) for image in images], labels)


def test_ten_crops(one, images, labels):
    protocol = protocols.Protocol(
        "10crop", lambda x, constants: protocols.ten_crops(x, constants, pad=2)
    )
    result = scored([one], protocol, images, labels)
    check(result, [reference_ten_crop(one, image, pad=2) for image in images], labels)


@pytest.mark.slow
def test_multiscale_averages_scores_over_positions_scales_and_flips(one, images, labels):
    scales = (8, 12, 6)
    protocol = protocols.Protocol(
        "multiscale",
        lambda x, constants: protocols.resized_on_device(x, constants, scales=scales),
        averages_scores=True,
    )
    result = scored([one], protocol, images, labels)
    expected = [reference_multiscale(one, image, scales) for image in images]
    check(result, expected, labels, tolerance=1e-4)


@pytest.mark.slow
def test_an_ensemble_averages_probabilities(one, images, labels):
    other = network(5)
    result = scored([one, other, other], protocols.CENTER, images, labels)
    expected = [
        (reference_single(one, image) + 2 * reference_single(other, image)) / 3 for image in images
    ]
    check(result, expected, labels)


def test_certain_answers_have_a_finite_loss(one, images, labels):
    head = {"kernel": one.variables["params"]["head"]["kernel"] * 1e4, "bias": np.zeros(CLASSES)}
    sure = one._replace(
        variables={**one.variables, "params": {**one.variables["params"]} | {"head": head}}
    )
    assert math.isfinite(scored([sure], protocols.CENTER, images, labels)["loss"])


def test_published_ten_crop_coordinates():
    """256 × 320, crops of 224: corners at 0 and 32 or 96, the center at 16 and 48."""
    y, x = np.mgrid[0:256, 0:320]
    image = np.stack([y, x // 2, x % 2], -1).astype(np.uint8)
    crops = transforms.ten_crop(image, resize=256, size=224)
    tops_lefts = [(c[0, 0, 0], 2 * int(c[0, 0, 1]) + c[0, 0, 2]) for c in crops[:5]]
    assert tops_lefts == [(0, 0), (0, 96), (32, 0), (32, 96), (16, 48)]
    np.testing.assert_array_equal(crops[5:], crops[:5, :, ::-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of several shapes in two classes; returns the folder and [(image, label)]."""
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(3)
    shapes = [(20, 20), (18, 25), (1, 3), (31, 20), (24, 18)]
    kept = []
    for i, (height, width) in enumerate(shapes):
        image = generator.integers(0, 256, (height, width, 3), np.uint8)
        name = f"class{i % 2}"
        for split in ("train", "val"):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root / split / name / f"{i}.png")
        kept.append((image, i % 2))
    return root, kept


def run_of_folder(root, workdir):
    """The config of a network of these pictures, and the network that lies in the workdir."""
    config = digits.get_config("resnet8,paper")
    config.update(dataset=f"folder:{root}", batch_size=2)
    config.model.width = 4
    config.data.update(resident=False, image_size=16, normalization="per_channel", num_threads=1)
    config.data.update(test_split="val")
    config.eval.update(batch_size=4, resize=20, scales=(16, 20))
    run = opened_run.load(make_workdir(config, workdir))
    return config, scores.Network(run.model, run.variables, run.facts.normalization)


def reference_streamed(net, image, scales):
    """Multi-scale probabilities of a picture of any shape, each view a program of its own."""
    height, width, _ = image.shape
    total = np.zeros(net.model.num_classes)
    for scale in scales:
        h, w = transforms.resized_shape(height, width, scale)
        resized = np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR))
        for view in (resized, resized[:, ::-1]):
            total += reference_scores(net, normalised(net, view))
    return softmax(total / (2 * len(scales)))


@pytest.mark.slow
def test_multiscale_of_pictures_of_any_shape(folder, tmp_path):
    root, kept = folder
    config, net = run_of_folder(root, tmp_path)
    config.eval.protocol = "multiscale"
    result = evaluate.run(config, tmp_path)
    order = sorted(range(len(kept)), key=lambda i: kept[i][1])
    expected = [reference_streamed(net, kept[i][0], (16, 20)) for i in order]
    check(result, expected, [kept[i][1] for i in order])


def test_ten_crops_of_pictures(folder, tmp_path):
    root, kept = folder
    config, net = run_of_folder(root, tmp_path)
    config.eval.protocol = "10crop"
    result = evaluate.run(config, tmp_path)
    expected = []
    for image, _ in kept:
        crops = transforms.ten_crop(image, resize=20, size=16)
        expected.append(
            np.mean([softmax(reference_scores(net, normalised(net, c))) for c in crops], 0)
        )
    check(result, expected, [label for _, label in kept])


class Batches:
    """Training data for `precise_bn.statistics`: given batches, no order."""

    feed_spec = P("data")

    def __init__(self, images, size):
        self._images, self._size = images, size

    def feed(self, start_step):
        starts = range(start_step * self._size, len(self._images), self._size)
        return iter([{"image": self._images[i : i + self._size]} for i in starts])

    def initial_order(self):
        return ()

    def draw(self, order, step, batch):
        return order, batch


@pytest.mark.parametrize(("devices", "group"), [(1, 0), (2, 0), (1, 2), (2, 1)])
def test_precise_statistics_are_those_of_all_images(one, devices, group):
    images = np.random.default_rng(4).integers(0, 256, (12, 8, 8, 1), np.uint8)
    mesh = make_mesh(jax.devices()[:devices])
    found = precise_bn.statistics(
        one.model.clone(bn_group_size=group),
        one.variables,
        one.normalization,
        Batches(images, 4),
        3,
        mesh,
    )
    kernel = np.asarray(one.variables["params"]["stem_conv"]["kernel"], np.float64)
    outputs = []
    for image in images:
        x = np.pad(normalised(one, image), ((1, 1), (1, 1), (0, 0))).astype(np.float64)
        for y in range(8):
            for z in range(8):
                outputs.append(np.einsum("hwi,hwio->o", x[y : y + 3, z : z + 3], kernel))
    np.testing.assert_allclose(found["stem_bn"]["mean"], np.mean(outputs, 0), atol=1e-5)
    np.testing.assert_allclose(found["stem_bn"]["var"], np.var(outputs, 0), rtol=1e-4)
