"""The stream: batch k is a function of (seed, k), for any number of processes and threads."""

import io
import itertools
import threading

import numpy as np
import pytest
from PIL import Image

from data import keys, stream, transforms
from data.decode import DecodeError, decode
from data.sources import Record
from errors import UserError
from tests.support import ilsvrc

SIZE = 16
SHAPE = (SIZE, SIZE, 3)
BATCH = 8
NUMBER = 21  # no multiple of the batch: batches straddle epochs
UNREADABLE = DecodeError("cannot be read: I/O error", "photo-x")


class Photographs:
    """A source of small JPEGs; `bad` maps indices to the bytes or the exception found there."""

    label_names = tuple("abc")

    def __init__(self, number=NUMBER, bad=None):
        self._bad = bad or {}
        self._images = []
        for index in range(number):
            buffer = io.BytesIO()
            ilsvrc.photograph(index, side=40).save(buffer, "JPEG")
            self._images.append(buffer.getvalue())

    def __len__(self):
        return len(self._images)

    def __getitem__(self, index):
        data = self._bad.get(index, self._images[index])
        if isinstance(data, Exception):
            raise data
        return Record(data, index, f"photo-{index}")


@pytest.fixture(scope="module")
def photographs():
    return Photographs()


def crops(kind="random_resized_crop", **options):
    options = {"resize_min": 20, "resize_max": 40, "flip": True, **options}
    return stream.train_transform(kind=kind, image_size=SIZE, **options)


def train(source, steps, *, transform=None, **options):
    options = {"seed": 5, "batch_size": BATCH, "num_threads": 2, **options}
    batches = stream.train_stream(source, transform or crops(), image_shape=SHAPE, **options)
    return list(itertools.islice(batches, steps))


def evaluate(source, **options):
    options = {"batch_size": BATCH, "num_threads": 2, **options}
    transform = stream.eval_transform(resize=20, image_size=SIZE)
    return list(stream.eval_stream(source, transform, image_shape=SHAPE, **options))


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.step == other.step
        for name in ("image", "label", "valid"):
            np.testing.assert_array_equal(batch.arrays[name], other.arrays[name])


def joined(parts):
    """The processes' batches → global batches, rows in process order."""
    return [
        stream.HostBatch(
            batches[0].step,
            {name: np.concatenate([b.arrays[name] for b in batches]) for name in batches[0].arrays},
            tuple(name for b in batches for name in b.corrupt),
        )
        for batches in zip(*parts, strict=True)
    ]


# ---- Order is a function


@pytest.mark.parametrize("kind", ["random_resized_crop", "scale_jitter", "none"])
@pytest.mark.parametrize("processes", [2, 4, 8])
def test_global_batches_are_the_same_for_any_number_of_processes(photographs, processes, kind):
    alone = train(photographs, 6, transform=crops(kind), num_threads=0)
    parts = [
        train(photographs, 6, transform=crops(kind), process_index=p, process_count=processes,
              num_threads=1 + p % 3)
        for p in range(processes)
    ]  # fmt: skip
    assert_same(joined(parts), alone)


@pytest.mark.parametrize("policy", ["trivial_augment", "rand_augment"])
@pytest.mark.parametrize("kind", ["random_resized_crop", "pad_crop_flip"])
def test_policies_and_copies_too(photographs, policy, kind):
    transform = crops(kind, policy=policy, magnitude=6.0)
    alone = train(photographs, 6, transform=transform, repeats=2, num_threads=0)
    parts = [
        train(photographs, 6, transform=transform, repeats=2, process_index=p, process_count=4)
        for p in range(4)
    ]
    assert_same(joined(parts), alone)
    late = train(photographs, 2, transform=transform, repeats=2, start_step=4)
    assert_same(late, alone[4:])
    plain = train(photographs, 6, transform=crops(kind), repeats=2)
    assert all(
        (a.arrays["image"] != b.arrays["image"]).any() for a, b in zip(alone, plain, strict=True)
    )


def test_copies_of_an_image_are_rows_apart_and_augmented_anew(photographs):
    number = NUMBER // 4 * 4 * 4 // BATCH  # batches of one epoch of 20 images, 4 copies each
    batches = train(photographs, number, repeats=4)
    for batch in batches:
        labels, images = batch.arrays["label"].reshape(4, 2), batch.arrays["image"]
        assert (labels == labels[0]).all() and labels[0, 0] != labels[0, 1]
        assert len({image.tobytes() for image in images}) == BATCH
    shown = [label for batch in batches for label in batch.arrays["label"][:2].tolist()]
    assert len(set(shown)) == len(shown) == 20  # an epoch shows each image once, in its copies


@pytest.mark.parametrize("threads", [1, 2, 5, 16])
def test_batches_do_not_depend_on_threads_or_prefetch(photographs, threads):
    expected = train(photographs, 6, num_threads=1, prefetch=1)
    assert_same(train(photographs, 6, num_threads=threads, prefetch=threads), expected)


@pytest.mark.parametrize("start", [1, 2, 3, 7])
def test_resuming_is_starting_at_the_step(photographs, start):
    assert_same(train(photographs, 10 - start, start_step=start), train(photographs, 10)[start:])


def test_epochs_are_different_permutations(photographs):
    labels = np.concatenate([b.arrays["label"] for b in train(photographs, NUMBER)])
    epochs = labels[: NUMBER * (len(labels) // NUMBER)].reshape(-1, NUMBER)
    for epoch in epochs:
        assert sorted(epoch) == list(range(NUMBER))
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_seed_and_position_change_order_and_crops(photographs):
    first, second = (train(photographs, 3, seed=seed) for seed in (1, 2))
    assert not all(
        np.array_equal(a.arrays["label"], b.arrays["label"])
        for a, b in zip(first, second, strict=True)
    )
    one = Photographs(number=1)
    images = train(one, 1)[0].arrays["image"]  # eight epochs of one photograph
    assert len({image.tobytes() for image in images}) == BATCH


def test_every_row_is_what_its_position_says(photographs):
    order = stream.record_order(NUMBER, 5)
    for batch in train(photographs, 4):
        for row in range(BATCH):
            position = batch.step * BATCH + row
            record = photographs[order(position)]
            generator = keys.host_generator(5, position)
            expected = crops()(record.image, generator)
            np.testing.assert_array_equal(batch.arrays["image"][row], expected)
            assert batch.arrays["label"][row] == record.label and batch.arrays["valid"][row]


def test_dtypes_and_shapes(photographs):
    arrays = train(photographs, 1, process_count=2)[0].arrays
    assert {name: (a.dtype.name, a.shape) for name, a in arrays.items()} == {
        "image": ("uint8", (4, *SHAPE)),
        "label": ("int32", (4,)),
        "valid": ("bool", (4,)),
    }


# ---- Evaluation


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
@pytest.mark.parametrize("number", [1, 16, 21])
def test_evaluation_counts_every_image_once(processes, number):
    source = Photographs(number)
    parts = [evaluate(source, process_index=p, process_count=processes) for p in range(processes)]
    assert {len(part) for part in parts} == {stream.eval_batches(number, BATCH)}
    batches = joined(parts)
    valid = np.concatenate([b.arrays["valid"] for b in batches])
    labels = np.concatenate([b.arrays["label"] for b in batches])
    images = np.concatenate([b.arrays["image"] for b in batches])
    assert valid.sum() == number and list(labels[valid]) == list(range(number))
    assert not images[~valid].any()
    expected = transforms.resize_and_crop(decode(source[0].image), resize=20, size=SIZE)
    np.testing.assert_array_equal(images[0], expected)
    assert_same(batches, evaluate(source))


def test_evaluation_of_several_crops(photographs):
    batch = next(
        stream.eval_stream(
            photographs,
            lambda data: transforms.ten_crop(decode(data), resize=20, size=SIZE),
            image_shape=(10, *SHAPE),
            batch_size=4,
        )
    )
    assert batch.arrays["image"].shape == (4, 10, *SHAPE)


# ---- Corrupt records


@pytest.mark.parametrize("bad", [b"garbage", b"", UNREADABLE, IndexError("checksum")])
def test_corrupt_record_is_an_error_that_names_it(bad):
    if isinstance(bad, IndexError):  # a bug in a source is not a corrupt record
        with pytest.raises(IndexError):
            train(Photographs(bad={3: bad}), 3)
        return
    for run in (lambda source: train(source, 3), evaluate):
        with pytest.raises(UserError, match=r"(photo-3|photo-x) \(number 3\).*on_corrupt = 'mask'"):
            run(Photographs(bad={3: bad}))


@pytest.mark.parametrize("bad", [b"garbage", UNREADABLE])
def test_corrupt_records_are_masked_counted_and_named(bad):
    source = Photographs(bad={3: bad, 8: bad})
    options = {"on_corrupt": "mask"}
    batches = train(source, 2 * NUMBER, **options)
    valid = np.concatenate([b.arrays["valid"] for b in batches])
    labels = np.concatenate([b.arrays["label"] for b in batches])
    images = np.concatenate([b.arrays["image"] for b in batches])
    assert (~valid).sum() == 2 * 2 * BATCH  # two records in each of the 16 epochs
    assert not {3, 8} & set(labels[valid]) and not images[~valid].any()
    named = [name for b in batches for name in b.corrupt]
    assert len(named) == (~valid).sum()
    assert set(named) == ({"photo-3", "photo-8"} if bad == b"garbage" else {"photo-x"})
    # The other rows are those of an undamaged set.
    whole = np.concatenate([b.arrays["image"] for b in train(Photographs(), 2 * NUMBER)])
    np.testing.assert_array_equal(images[valid], whole[valid])
    parts = [train(source, 6, process_index=p, process_count=4, **options) for p in range(4)]
    assert_same(joined(parts), batches[:6])
    evaluated = evaluate(source, **options)
    assert sum(b.arrays["valid"].sum() for b in evaluated) == NUMBER - 2
    assert {name for b in evaluated for name in b.corrupt} == set(named)


def test_errors_of_the_program_are_never_masked(photographs):
    def broken(data, generator):
        raise ZeroDivisionError("a bug")

    for on_corrupt in ("error", "mask"):
        with pytest.raises(ZeroDivisionError, match="a bug"):
            train(photographs, 1, transform=broken, on_corrupt=on_corrupt)


def test_threads_work_ahead(photographs):
    """With two threads, two batches are in the making at the same time."""
    together = threading.Barrier(2, timeout=20)
    resize = stream.eval_transform(resize=SIZE, image_size=SIZE)

    def meets(data, generator):
        together.wait()
        return resize(data)

    assert len(train(photographs, 2, transform=meets, num_threads=2)) == 2


def test_an_empty_split_is_a_user_error():
    with pytest.raises(UserError, match="empty"):
        train(Photographs(number=0), 1)


def test_kinds_that_augment_on_the_device_only_resize(photographs):
    image = Image.open(io.BytesIO(photographs[0].image))
    expected = transforms.resize_and_crop(np.asarray(image), resize=SIZE, size=SIZE)
    for kind in ("none", "pad_crop_flip"):
        result = crops(kind)(photographs[0].image, keys.host_generator(0, 0))
        assert np.abs(result.astype(int) - expected).max() <= 1
