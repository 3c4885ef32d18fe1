"""One contender of `benchmarks/input_throughput.py`, in a process and an interpreter of its own.

    PYTHON benchmarks/input_contenders.py CONTENDER DIR

Reads the JPEGs of DIR into memory, says `ready`, and then answers each line `run` on stdin with
the CPU seconds and wall seconds of one pass over all images, and `crops PATH` with a file of its
resized crops of fixed boxes (`boxes`), for the comparison of quality.
"""

import concurrent.futures
import importlib.metadata
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

# A pass over all images; the crop of a box of one image, if there is one.
Contender = tuple[Callable[[], None], Callable[[bytes, np.ndarray], np.ndarray] | None]

SIZE, BATCH = 224, 32
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
RESIZE_MIN, RESIZE_MAX = 256, 480


def boxes(height: int, width: int, number: int) -> np.ndarray:
    """Fixed (top, left, height, width) in pixels for the comparison of quality."""
    generator = np.random.default_rng(3)
    sides = generator.integers([150, 150], [height, width], size=(number, 2))
    places = (generator.random((number, 2)) * ([height, width] - sides)).astype(int)
    return np.concatenate([places, sides], axis=1)


# ---- Ours, and the limit


def decode_only(images: list[bytes], threads: int) -> Contender:
    """The limit: libjpeg-turbo decodes every pixel, and nothing else happens."""
    import simplejpeg

    def part(first):
        for data in images[first::threads]:
            simplejpeg.decode_jpeg(data)

    def run():
        if threads == 1:
            part(0)
            return
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            list(pool.map(part, range(threads)))

    return run, None


def ours(images: list[bytes], kind: str, threads: int) -> Contender:
    """The host pipeline itself: decode, crop, resize, flip, batch."""
    from data import keys, stream, transforms
    from data.sources import Record

    class Source:
        label_names = ("photograph",)

        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            return Record(images[index], 0, str(index))

    transform = stream.train_transform(
        kind=kind, image_size=SIZE, flip=True, area=AREA, aspect=ASPECT,
        resize_min=RESIZE_MIN, resize_max=RESIZE_MAX,
    )  # fmt: skip
    positions = iter(range(2**40))

    def run():
        # A pass that ends, so that no work is done ahead of what is counted.
        batches = stream.eval_stream(
            Source(),
            lambda data: transform(data, keys.host_generator(0, next(positions))),
            image_shape=(SIZE, SIZE, 3),
            batch_size=BATCH,
            num_threads=threads,
        )
        for batch in batches:
            assert batch.arrays["valid"].any()

    def crop(data, box):
        return transforms.decode_crop(data, transforms.Box(*map(int, box)), size=SIZE)

    return run, crop


# ---- Peers


def tensorflow(images: list[bytes], mapping: str) -> Contender:
    """tf.data with one thread: decode_and_crop_jpeg + bilinear, the fastest that TF offers."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    def resized_crop(data, window):
        image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
        return tf.cast(tf.image.resize(image, [SIZE, SIZE], "bilinear") + 0.5, tf.uint8)

    def random_resized_crop(data):
        shape = tf.image.extract_jpeg_shape(data)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            shape, tf.zeros([1, 0, 4]), area_range=AREA, aspect_ratio_range=ASPECT,
            min_object_covered=0.0, max_attempts=10, use_image_if_no_bounding_boxes=True,
        )  # fmt: skip
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        return tf.image.random_flip_left_right(resized_crop(data, window))

    def scale_jitter_in_two_steps(data):
        image = tf.image.decode_jpeg(data, channels=3)
        shorter = tf.random.uniform([], RESIZE_MIN, RESIZE_MAX + 1, tf.int32)
        sides = tf.cast(tf.shape(image)[:2], tf.float32)
        sides = tf.cast(sides * tf.cast(shorter, tf.float32) / tf.reduce_min(sides), tf.int32)
        image = tf.image.resize(image, tf.maximum(sides, shorter), "bilinear")
        image = tf.image.random_crop(image, [SIZE, SIZE, 3])
        return tf.cast(tf.image.random_flip_left_right(image) + 0.5, tf.uint8)

    def scale_jitter_in_one_step(data):
        shape = tf.image.extract_jpeg_shape(data)[:2]
        shorter = tf.random.uniform([], RESIZE_MIN, RESIZE_MAX + 1, tf.int32)
        side = SIZE * tf.reduce_min(shape) // shorter
        top, left = (tf.random.uniform([], 0, shape[i] - side + 1, tf.int32) for i in (0, 1))
        window = tf.stack([top, left, side, side])
        return tf.image.random_flip_left_right(resized_crop(data, window))

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    dataset = tf.data.Dataset.from_tensor_slices(images).map(locals()[mapping])
    dataset = dataset.batch(BATCH).with_options(options)

    def run():
        for batch in dataset:
            assert batch.shape[1] == SIZE

    return run, lambda data, box: resized_crop(data, box).numpy()


def torch_pillow(images: list[bytes], normalised: bool) -> Contender:
    """torch's DataLoader over Pillow, as torchvision's RandomResizedCrop does it.

    `normalised` adds what its reference recipe also leaves to the host (ToTensor, Normalize).
    """
    import torch
    from PIL import Image

    torch.set_num_threads(1)
    mean = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)

    class Photographs(torch.utils.data.Dataset):
        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            image = Image.open(io.BytesIO(images[index])).convert("RGB")
            generator, (width, height) = np.random.default_rng(), image.size
            for _ in range(10):
                area = generator.uniform(*AREA) * height * width
                aspect = np.exp(generator.uniform(*np.log(ASPECT)))
                w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
                if 0 < w <= width and 0 < h <= height:
                    break
            else:
                w, h = width, height
            left, top = generator.integers(width - w + 1), generator.integers(height - h + 1)
            image = image.crop((left, top, left + w, top + h))
            image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            if generator.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
            return pixels.float().div_(255).sub_(mean).div_(std) if normalised else pixels

    loader = torch.utils.data.DataLoader(Photographs(), batch_size=BATCH, num_workers=0)

    def run():
        for batch in loader:
            assert batch.shape[-1] == SIZE

    return run, None


CONTENDERS = {
    "limit": lambda images: decode_only(images, 1),
    "limit_2": lambda images: decode_only(images, 2),
    "ours_rrc": lambda images: ours(images, "random_resized_crop", 1),
    "ours_rrc_2": lambda images: ours(images, "random_resized_crop", 2),
    "ours_jitter": lambda images: ours(images, "scale_jitter", 1),
    "tf_rrc": lambda images: tensorflow(images, "random_resized_crop"),
    "tf_jitter": lambda images: tensorflow(images, "scale_jitter_in_two_steps"),
    "tf_jitter_one_step": lambda images: tensorflow(images, "scale_jitter_in_one_step"),
    "torch_rrc": lambda images: torch_pillow(images, normalised=False),
    "torch_rrc_normalised": lambda images: torch_pillow(images, normalised=True),
}


def versions() -> str:
    """The libraries that matter, where installed."""
    found = []
    for name in ("simplejpeg", "opencv-python-headless", "grain", "tensorflow-cpu", "tensorflow",
                 "torch", "pillow", "numpy"):  # fmt: skip
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def main(name: str, directory: str) -> None:
    """Serves the driver until stdin ends."""
    images = [path.read_bytes() for path in sorted(Path(directory).glob("*.jpg"))]
    run, crop = CONTENDERS[name](images)
    run()  # warm up: compilation, thread pools
    print("ready", versions(), flush=True)
    for line in sys.stdin:
        command, _, path = line.strip().partition(" ")
        if command == "crops":
            from PIL import Image

            width, height = Image.open(io.BytesIO(images[0])).size
            pairs = zip(images, boxes(height, width, len(images)), strict=True)
            np.save(path, np.stack([crop(data, box) for data, box in pairs]))
            print("saved", flush=True)
            continue
        cpu, wall = time.process_time(), time.perf_counter()
        run()
        print(time.process_time() - cpu, time.perf_counter() - wall, flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main(*sys.argv[1:])
