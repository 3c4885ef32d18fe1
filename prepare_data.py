"""Prepares a data set for training: archives → array_record, by TFDS's own builders.

    python prepare_data.py imagenet2012 --from DIR       # DIR holds ILSVRC2012's two tar files
    python prepare_data.py cifar10                       # downloads, where the network allows it
    python prepare_data.py cifar10 --from DIR            # DIR holds its archive, or cifar10.npz
    python prepare_data.py imagenet2012 --convert --from OLD_DATA_DIR   # TFRecord → array_record
    python prepare_data.py coco                          # or voc: what to fetch, where to put it

TensorFlow is not needed. An interrupted preparation is started again by the same command.
"""

from run import interrupt

if __name__ == "__main__":
    interrupt.ends_at_once()

import gzip
import hashlib
import shutil
import socket
import sys
import tarfile
import typing
import urllib.parse
import urllib.request
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from data import index_cache, small_sets
from data.decode import MAX_PIXELS
from errors import UserError, first_line
from run import command, files

if typing.TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder


# Data set → the config to use, and the records of the complete set.
DATA_SETS = {
    "imagenet2012": ("resnet50", {"train": 1_281_167, "validation": 50_000}),
    "cifar10": ("cifar10", {"train": 50_000, "test": 10_000}),
    "cifar100": ("cifar100", {"train": 50_000, "test": 10_000}),
    "fashion_mnist": ("fashion_mnist", {"train": 60_000, "test": 10_000}),
    "mnist": ("fashion_mnist", {"train": 60_000, "test": 10_000}),
}
# Sets of annotated images are read as they are unpacked: their archives, and what to do with them.
UNPACKED = {
    "coco": """
  http://images.cocodataset.org/zips/train2017.zip
  http://images.cocodataset.org/zips/val2017.zip
  http://images.cocodataset.org/annotations/annotations_trainval2017.zip
all of them in one folder DIR, so that it has train2017/, val2017/ and
annotations/instances_train2017.json, then run
  python main.py --config=configs/detection/coco_r50_fpn.py --config.dataset=coco:DIR""",
    "voc": """
  http://host.robots.ox.ac.uk/pascal/VOC/voc2007/VOCtrainval_06-Nov-2007.tar
  http://host.robots.ox.ac.uk/pascal/VOC/voc2007/VOCtest_06-Nov-2007.tar
  http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar
all of them in one folder, so that VOCdevkit/VOC2007/ and VOCdevkit/VOC2012/ have Annotations/,
ImageSets/ and JPEGImages/, then run
  python main.py --config=configs/detection/voc_r101_c4.py --config.dataset=voc:VOCdevkit""",
}
IMAGENET_ARCHIVES = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
# sha256 of the decompressed IDX files. Debian's archives hold the original deflate streams under
# other gzip headers: with the original name and time put back they have TFDS's checksums.
IDX_CONTENT = {
    "fashion_mnist": {
        "train-images": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    }
}
# `tarfile`'s, `gzip`'s, TFDS's own and, when it cannot write, array_record's.
ARCHIVE_ERRORS: tuple[type[Exception], ...] = (OSError, EOFError, tarfile.TarError, zlib.error)
ARCHIVE_ERRORS += (AssertionError, ValueError, RuntimeError)


def prepare(
    name: str, source: Path | None, data_dir: Path, max_pixels: int = MAX_PIXELS
) -> "DatasetBuilder":
    """Prepares a data set as array_record in `data_dir`; nothing happens when it is there already.

    Args:
      name: one of DATA_SETS.
      source: directory of the archives; None to download them (or, for fashion_mnist, to take
        Debian's).
      data_dir: TFDS's data directory.
      max_pixels: of an image that has to be decoded (some of ImageNet's).
    Returns:
      The TFDS builder of the prepared data set.
    Raises:
      UserError: unknown name; archives that are missing, damaged or another data set's; no
        network.
    """
    if said := UNPACKED.get(name.partition("/")[0]):
        raise UserError(
            f"{name} needs no preparation: its files are read as they are. Fetch and unpack{said} "
            "--config.init_from=WEIGHTS\n(docs/detection.md)"
        )
    if name not in DATA_SETS:
        raise UserError(
            f"unknown data set {name!r}; expected one of {', '.join((*DATA_SETS, *UNPACKED))}"
        )
    import tensorflow_datasets as tfds  # seconds to import: not for --help

    from data import sources, tfds_hook

    with tfds_hook.without_tensorflow(max_pixels):
        with sources.builder_errors(name, data_dir):
            builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        if builder.info.splits:
            return builder
        if name == "fashion_mnist" and source is None and DEBIAN_FASHION_MNIST.is_dir():
            source = DEBIAN_FASHION_MNIST
        if source is None and name == "imagenet2012":
            raise UserError(
                "imagenet2012 cannot be downloaded without an account: get "
                f"{' and '.join(IMAGENET_ARCHIVES)} from https://image-net.org/download-images, "
                "then run\n  python prepare_data.py imagenet2012 --from DIR"
            )
        downloads = data_dir / "downloads" / name
        busy = f"another process is preparing {name}; wait for it"
        with (
            files.explained(downloads, "choose another --data_dir"),
            files.lock(downloads / ".lock", busy),
        ):
            version = Path(builder.data_path)
            for leftover in version.parent.glob(f"incomplete.*_{version.name}"):
                shutil.rmtree(leftover)  # of an interrupted preparation
            _run(builder, source, downloads)
    return builder


def _run(builder: "DatasetBuilder", source: Path | None, downloads: Path) -> None:
    """Runs the builder on verified archives.

    Directories of its own for each data set, and new ones each time: mnist and fashion_mnist
    share file names, and TFDS would take what it once extracted from one for the other.
    """
    import tensorflow_datasets as tfds

    from data import tfds_hook

    manual, extracted = downloads / "manual", downloads / "extracted"
    for stale in (manual, extracted):
        shutil.rmtree(stale, ignore_errors=True)
        stale.mkdir()
    try:
        if source is None and not urllib.request.getproxies():
            # Ends at once where TFDS would try again for minutes; a proxy has its own names.
            host = urllib.parse.urlsplit(next(iter(builder.url_infos))).hostname
            socket.getaddrinfo(host, None)
        repacked = _stage(builder, source, manual) if source else {}
        config = tfds.download.DownloadConfig(
            manual_dir=manual, extract_dir=extracted, try_download_gcs=False
        )
        with tfds_hook.accepting(builder, repacked):
            builder.download_and_prepare(
                download_dir=downloads, download_config=config, file_format="array_record"
            )
    except ARCHIVE_ERRORS as error:
        raise UserError(_what_failed(builder, source, error)) from error
    finally:
        for directory in (extracted, manual):
            shutil.rmtree(directory, ignore_errors=True)


def _what_failed(builder: "DatasetBuilder", source: Path | None, error: Exception) -> str:
    reason = first_line(error)
    if "No space left" in reason:
        return f"{builder.name}: {reason}; free space, then run the same command again"
    if source:
        return f"{builder.name}: cannot prepare from {source}: {reason}; is an archive damaged?"
    urls = "\n  ".join(builder.url_infos)
    return (
        f"{builder.name}: download failed ({reason}). On a machine with a network, fetch\n  {urls}"
        f"\nthen run\n  python prepare_data.py {builder.name} --from DIR"
    )


def _stage(builder: "DatasetBuilder", source: Path, manual: Path) -> dict[str, Path]:
    """Links the verified archives into `manual`; returns those repacked (URL → path)."""
    name = builder.name
    if not source.is_dir():
        raise UserError(f"--from {source}: no such directory")
    wanted = {info.filename: url for url, info in builder.url_infos.items()}
    if name == "imagenet2012":
        wanted = dict.fromkeys(IMAGENET_ARCHIVES, "")
    missing = [filename for filename in wanted if not (source / filename).is_file()]
    if missing:
        raise UserError(f"{source} lacks {', '.join(missing)}; {name} needs {', '.join(wanted)}")
    repacked = {}
    for filename, url in wanted.items():
        archive = (source / filename).resolve()
        (manual / filename).symlink_to(archive)
        # ImageNet's tars take many minutes to hash; TFDS finds damage in reading them.
        if url and not _verify(builder, archive, url):
            repacked[url] = manual / filename
    return repacked


def _verify(builder: "DatasetBuilder", archive: Path, url: str) -> bool:
    """Whether this is TFDS's archive byte for byte; False when only the content is the same.

    Raises:
      UserError: when it is neither.
    """
    info = builder.url_infos[url]
    with open(archive, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest == info.checksum:
        return True
    content = IDX_CONTENT.get(builder.name, {}).get(info.filename.split("-idx")[0])
    try:
        with gzip.open(archive) as file:
            if content and hashlib.file_digest(file, "sha256").hexdigest() == content:
                return False
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{archive} is damaged: {error}; fetch {url} again") from error
    raise UserError(
        f"{archive} is not {builder.name}'s {info.filename} (sha256 {digest[:16]}…, expected "
        f"{info.checksum[:16]}…): damaged, or another data set's; fetch {url}"
    )


def convert(name: str, source: Path, data_dir: Path) -> "DatasetBuilder":
    """Converts a data set that TFDS prepared as TFRecord to array_record in `data_dir`.

    Args:
      name: TFDS name of the data set, not only one of DATA_SETS.
      source: the data directory that holds it, or its version directory.
      data_dir: the data directory to write.
    Returns:
      The TFDS builder of the converted data set.
    Raises:
      UserError: not found, not TFRecord, or damaged.
    """
    import tensorflow_datasets as tfds

    from data import tfrecord

    found = sorted(source.glob("dataset_info.json")) or sorted(
        (source / name).glob("**/dataset_info.json"), key=lambda path: path.stat().st_mtime
    )
    if not found:
        raise UserError(f"no prepared {name} in {source}: expected {source / name}/VERSION/")
    version = found[-1].parent
    parts = version.parts
    below = Path(*parts[parts.index(name) :]) if name in parts else Path(name, version.name)
    tfrecord.convert(version, data_dir / below)
    return tfds.builder_from_directory(data_dir / below)


def packed(name: str, source: Path | None, data_dir: Path) -> tuple[Path, dict[str, int]] | None:
    """One file of a small set: a copy of `source`/NAME.npz, else what `data_dir` has already.

    Returns:
      `(path, images of each split)`; None where neither is there.

    Raises:
      UserError: it is damaged.
    """
    path = small_sets.file_of(name, str(data_dir))
    copy = source / path.name if source else path
    if name not in small_sets.NAMES or not copy.is_file():
        return None
    whole = small_sets.pack(name, str(data_dir), copy)
    return path, {split: len(part.images) for split, part in whole.items()}


def report(name: str, where: object, found: Mapping[str, int], data_dir: Path) -> str:
    """What was prepared, how many records, and the config that uses it."""
    config, records = DATA_SETS.get(name, ("resnet50", {}))
    lines = [f"{name} is prepared in {where}"]
    for split, expected in ({**found} | records).items():
        number = found.get(split, 0)
        line = f"  {split:<12}{number:>12,} records"
        if number != expected:
            line += f"  (the complete set has {expected:,}: are the archives complete?)"
        lines.append(line)
    dataset = f"tfds:{name}" if config == "resnet50" else name
    command = f"python main.py --config=configs/{config}.py --config.dataset={dataset}"
    path = small_sets.file_of(name, str(data_dir))
    if path.is_file():
        lines.append(
            f"{path} is all of it: copy this file to a machine that has no more than NumPy"
        )
    lines += ["use it with", f"  {command} --config.data_dir={data_dir} --workdir=DIR"]
    return "\n".join(lines)


def _refuse_buckets(*folders: Path | None) -> None:
    for folder in folders:
        if folder and files.is_remote(folder):
            raise UserError(
                f"{folder}: TFDS's builders and array_record read and write files of this machine "
                "only. Prepare in a folder of it, then copy the result to the bucket (which can "
                "hold NAME.npz of a small set, and sets prepared as TFRecord)."
            )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = command.Parser("python prepare_data.py", __doc__)
    parser.add_argument("name", help=", ".join((*DATA_SETS, *UNPACKED)))
    source_help = "directory of the archives (with --convert: of the TFRecord files)"
    parser.add_argument("--from", dest="source", type=files.at, metavar="DIR", help=source_help)
    parser.add_argument("--data_dir", default="", help="where to write; default: TFDS's")
    convert_help = "convert a set that is prepared as TFRecord to array_record"
    parser.add_argument("--convert", action="store_true", help=convert_help)
    limit = f"pixels of an image that has to be decoded ({MAX_PIXELS})"
    parser.add_argument("--max_pixels", type=command.positive, default=MAX_PIXELS, help=limit)
    options = parser.parse_args(arguments)
    data_dir = index_cache.data_directory(options.data_dir).absolute()
    source = options.source.expanduser().absolute() if options.source else None
    if options.convert:
        _refuse_buckets(source, data_dir)
        if source is None:
            raise UserError("--convert needs --from DIR, where the TFRecord files lie")
        builder = convert(options.name, source, data_dir)
    elif made := packed(options.name, source, data_dir):
        print(report(options.name, *made, data_dir))
        return
    else:
        _refuse_buckets(source, data_dir)
        builder = prepare(options.name, source, data_dir, options.max_pixels)
        if options.name in small_sets.NAMES:
            small_sets.pack(options.name, str(data_dir))
    found = {split: info.num_examples for split, info in builder.info.splits.items()}
    print(report(builder.name, builder.data_path, found, data_dir))


if __name__ == "__main__":
    sys.exit(command.run(main))
