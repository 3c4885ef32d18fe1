"""A miniature ILSVRC2012 in the genuine format, from the two photographs of scikit-learn.

The real names throughout: the tar of synset tars, the flat tar of the validation images, one CMYK
JPEG, one grey JPEG and the PNG that is called .JPEG, as in the original.
"""

import io
import tarfile
from pathlib import Path

import google_crc32c
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

# Synsets of ILSVRC2012; TFDS knows which files of the original are CMYK and which one is a PNG.
SYNSETS = ("n01440764", "n02105855", "n03018349")
PNG_FILE = "n02105855_2933.JPEG"
CMYK_FILE = "n03018349_4028.JPEG"
GREY_FILE = "n01440764_10026.JPEG"
TRAIN_PER_SYNSET = 6
VALIDATION = 10


def photograph(number: int, side: int = 96) -> Image.Image:
    """A piece of one of the photographs; different numbers give different pieces."""
    images = load_sample_images().images
    generator = np.random.default_rng(number)
    image = images[number % len(images)]
    width = side + 16 * (number % 3)
    top = int(generator.integers(image.shape[0] - side))
    left = int(generator.integers(image.shape[1] - width))
    return Image.fromarray(image[top : top + side, left : left + width])


def encoded(number: int, name: str) -> bytes:
    """The file `name`, in the format that the original has under this name."""
    image, buffer = photograph(number), io.BytesIO()
    if name == PNG_FILE:
        image.save(buffer, "PNG")
    elif name == CMYK_FILE:
        image.convert("CMYK").save(buffer, "JPEG", quality=95)
    elif name == GREY_FILE:
        image.convert("L").save(buffer, "JPEG", quality=95)
    else:
        image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def train_files() -> dict[str, dict[str, bytes]]:
    """Synset → file name → content."""
    special = {name[:9]: name for name in (PNG_FILE, CMYK_FILE, GREY_FILE)}
    files: dict[str, dict[str, bytes]] = {}
    for label, synset in enumerate(SYNSETS):
        names = [special[synset]]
        names += [f"{synset}_{number}.JPEG" for number in range(1, TRAIN_PER_SYNSET)]
        files[synset] = {
            name: encoded(label * TRAIN_PER_SYNSET + i, name) for i, name in enumerate(names)
        }
    return files


def validation_files() -> dict[str, bytes]:
    """File name → content."""
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, VALIDATION + 1)]
    return {name: encoded(100 + i, name) for i, name in enumerate(names)}


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def write_archives(directory: Path, extra: dict[str, bytes] | None = None) -> None:
    """ILSVRC2012_img_train.tar (the first synset with `extra` files), ILSVRC2012_img_val.tar."""
    directory.mkdir(parents=True, exist_ok=True)
    files_of = train_files()
    files_of[SYNSETS[0]] |= extra or {}
    synsets = {f"{synset}.tar": _tar(files) for synset, files in files_of.items()}
    (directory / "ILSVRC2012_img_train.tar").write_bytes(_tar(synsets))
    # The original's members are not sorted; labels go by sorted name all the same.
    validation = dict(reversed(validation_files().items()))
    (directory / "ILSVRC2012_img_val.tar").write_bytes(_tar(validation))


def prepare(directory: Path, extra: dict[str, bytes] | None = None) -> Path:
    """Builds the archives, runs prepare_data.py on them; returns TFDS's data directory."""
    import prepare_data

    write_archives(directory / "archives", extra)
    data_dir = directory / "data"
    prepare_data.main(
        ["imagenet2012", "--from", str(directory / "archives"), "--data_dir", str(data_dir)]
    )
    return data_dir


def rewrite_as_tfrecord(data_dir: Path, target: Path) -> None:
    """The same prepared data set as TFDS's default format: same records, same order."""
    from array_record.python import array_record_module

    for info in data_dir.glob("*/*/dataset_info.json"):
        version = target / info.parent.relative_to(data_dir)
        version.mkdir(parents=True)
        for path in info.parent.iterdir():
            if ".array_record-" not in path.name:
                (version / path.name).write_bytes(path.read_bytes())
                continue
            reader = array_record_module.ArrayRecordReader(str(path))
            records = [reader.read([i])[0] for i in range(reader.num_records())]
            name = path.name.replace("array_record", "tfrecord")
            (version / name).write_bytes(b"".join(map(framed, records)))
        text = info.read_text().replace('"array_record"', '"tfrecord"')
        (version / "dataset_info.json").write_text(text)


def records(source):
    """All records of a source."""
    return [source[index] for index in range(len(source))]


def framed(record: bytes) -> bytes:
    """A record as TFRecord frames it."""

    def masked(data: bytes) -> bytes:
        crc = google_crc32c.value(data)
        return (((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32).to_bytes(4, "little")

    length = len(record).to_bytes(8, "little")
    return length + masked(length) + record + masked(record)


def write_folder(data_dir: Path, directory: Path, synsets=None) -> None:
    """The records of a prepared miniature as an image folder: the same bytes under their names.

    Args:
      data_dir: of `prepare`.
      directory: gets train/<synset>/* and val/<synset>/*.
      synsets: class folders to make, even if empty; by default all of the data set's, so that
        the class numbers are the same.
    """
    from data.sources import open_source

    for split, name in (("train", "train"), ("validation", "val")):
        source = open_source("tfds:imagenet2012", split, str(data_dir))
        for synset in synsets or source.label_names:
            (directory / name / synset).mkdir(parents=True, exist_ok=True)
        for index in range(len(source)):
            record = source[index]
            synset, file_name = source.label_names[record.label], record.name.split()[-1]
            (directory / name / synset / file_name).write_bytes(record.image)


OBJECT = """\t<object>
\t\t<name>{name}</name>
\t\t<pose>Unspecified</pose>
\t\t<truncated>0</truncated>
\t\t<difficult>0</difficult>
\t\t<bndbox>
\t\t\t<xmin>{box[0]}</xmin>
\t\t\t<ymin>{box[1]}</ymin>
\t\t\t<xmax>{box[2]}</xmax>
\t\t\t<ymax>{box[3]}</ymax>
\t\t</bndbox>
\t</object>
"""


def xml(content: bytes, stem: str, objects) -> str:
    """The annotation of an image, with objects as (synset, box)."""
    width, height = Image.open(io.BytesIO(content)).size
    listed = "".join(OBJECT.format(name=name, box=box) for name, box in objects)
    return (
        f"<annotation>\n\t<folder>val</folder>\n\t<filename>{stem}</filename>\n\t<source>\n"
        "\t\t<database>ILSVRC_2012</database>\n\t</source>\n\t<size>\n"
        f"\t\t<width>{width}</width>\n\t\t<height>{height}</height>\n\t\t<depth>3</depth>\n"
        f"\t</size>\n\t<segmented>0</segmented>\n{listed}</annotation>\n"
    )


def write_localization(root: Path) -> Path:
    """ILSVRC/Data/CLS-LOC and ILSVRC/Annotations/CLS-LOC; returns the former.

    Validation images lie in folders of their classes, i % 3, and have 1 + i % 2 boxes.
    """
    images, boxes = root / "ILSVRC/Data/CLS-LOC", root / "ILSVRC/Annotations/CLS-LOC"
    placed = {f"train/{s}": (f"train/{s}", s, files) for s, files in train_files().items()}
    for i, (name, content) in enumerate(validation_files().items()):
        synset = SYNSETS[i % 3]
        placed[f"val/{i}"] = (f"val/{synset}", synset, {name: content})
    number = 0
    for key, (below, synset, files) in placed.items():
        flat = below if key.startswith("train") else "val"
        (images / below).mkdir(parents=True, exist_ok=True)
        (boxes / flat).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            stem = name.removesuffix(".JPEG")
            objects = [(synset, (3, 5, 40 + number, 60)), (synset, (50, 50, 80, 96))]
            (images / below / name).write_bytes(content)
            (boxes / flat / f"{stem}.xml").write_text(xml(content, stem, objects[: 1 + number % 2]))
            number += 1
    return images
