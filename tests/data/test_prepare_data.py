"""prepare_data.py: TFDS's own builders on verified archives, without TensorFlow."""

import fcntl
import gzip
import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

import prepare_data
from data import small_sets
from data.decode import decode
from data.sources import open_source
from run import command
from tests.support import ilsvrc

TRAIN, TEST = 12, 8  # records of the miniatures


def idx(array):
    """An array in the IDX format of the MNIST files."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.tobytes()


def pixels(name, number, shape):
    generator = np.random.default_rng(list(name.encode()))
    return generator.integers(0, 256, (number, *shape), np.uint8)


def mnist_archives(name):
    """File name → content of a miniature mnist or fashion_mnist; they differ in content only."""
    files = {}
    for part, number in (("train", TRAIN), ("t10k", TEST)):
        labels = np.arange(number, dtype=np.uint8) % 10
        files[f"{part}-images-idx3-ubyte.gz"] = idx(pixels(name + part, number, (28, 28)))
        files[f"{part}-labels-idx1-ubyte.gz"] = idx(labels)
    return {file: gzip.compress(content, mtime=7) for file, content in files.items()}


def cifar_archive(name):
    """cifar-10-binary.tar.gz or cifar-100-binary.tar.gz, as cs.toronto.edu lays them out."""
    coarse = name == "cifar100"
    folder = "cifar-100-binary" if coarse else "cifar-10-batches-bin"
    train = ["train.bin"] if coarse else [f"data_batch_{i}.bin" for i in range(1, 6)]
    test = ["test.bin"] if coarse else ["test_batch.bin"]
    files = {}
    for part, names, number in (("train", train, TRAIN), ("test", test, TEST)):
        images = pixels(name + part, number, (3, 32, 32))
        rows = [
            bytes([index % 20] * coarse + [index % 10]) + image.tobytes()
            for index, image in enumerate(images)
        ]
        for piece, file in zip(np.array_split(np.arange(number), len(names)), names, strict=True):
            files[file] = b"".join(rows[index] for index in piece)
    if coarse:
        files["coarse_label_names.txt"] = "".join(f"coarse{i}\n" for i in range(20)).encode()
        files["fine_label_names.txt"] = "".join(f"fine{i}\n" for i in range(100)).encode()
    else:
        files["batches.meta.txt"] = "".join(f"class{i}\n" for i in range(10)).encode() + b"\n"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for file, content in files.items():
            entry = tarfile.TarInfo(f"{folder}/{file}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    archive = "cifar-100-binary.tar.gz" if coarse else "cifar-10-binary.tar.gz"
    return {archive: buffer.getvalue()}


def write(directory, files):
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory


@pytest.fixture
def trusted(monkeypatch):
    """Makes TFDS take given files for a set's archives, and miniatures for whole sets."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import checksums
    from tensorflow_datasets.image_classification import mnist

    monkeypatch.setattr(mnist, "_TRAIN_EXAMPLES", TRAIN)
    monkeypatch.setattr(mnist, "_TEST_EXAMPLES", TEST)

    def trust(name, files, data_dir):
        known = tfds.builder(name, data_dir=data_dir).url_infos
        for url, info in list(known.items()):
            content = files[info.filename]
            digest = hashlib.sha256(content).hexdigest()
            monkeypatch.setitem(known, url, checksums.UrlInfo(len(content), digest, info.filename))

    return trust


def run(*arguments):
    return command.run(prepare_data.main, [str(argument) for argument in arguments])


def images_of(name, split, data_dir):
    source = open_source(f"tfds:{name}", split, str(data_dir))
    return {decode(source[i].image).tobytes() for i in range(len(source))}


def rgb(images):
    """The set of images [number, 28, 28] as `decode` gives them."""
    return {np.repeat(image[:, :, None], 3, axis=2).tobytes() for image in images}


def test_mnist_and_fashion_mnist_in_one_data_dir_keep_their_own_pixels(tmp_path, trusted, capsys):
    """They share file names, and TFDS's extraction cache goes by name."""
    for name in ("mnist", "fashion_mnist"):
        files = mnist_archives(name)
        source = write(tmp_path / name, files)
        trusted(name, files, tmp_path / "data")
        assert run(name, "--from", source, "--data_dir", tmp_path / "data") == 0
        output = capsys.readouterr().out
        assert f"{TRAIN} records" in output and f"{TEST} records" in output
        assert f"--config.dataset={name}" in output and "configs/fashion_mnist.py" in output
    for name in ("mnist", "fashion_mnist"):
        for split, part, number in (("train", "train", TRAIN), ("test", "t10k", TEST)):
            expected = rgb(pixels(name + part, number, (28, 28)))
            assert images_of(name, split, tmp_path / "data") == expected


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(name, tmp_path, trusted, capsys):
    files = cifar_archive(name)
    source = write(tmp_path / "archives", files)
    trusted(name, files, tmp_path / "data")
    assert run(name, "--from", source, "--data_dir", tmp_path / "data") == 0
    assert f"configs/{name}.py" in capsys.readouterr().out
    train = open_source(f"tfds:{name}", "train", str(tmp_path / "data"))
    assert len(train) == TRAIN and len(train.label_names) == (100 if name == "cifar100" else 10)
    assert train.label_names[1] == ("fine1" if name == "cifar100" else "class1")
    expected = pixels(name + "train", TRAIN, (3, 32, 32)).transpose(0, 2, 3, 1)
    for position in range(TRAIN):
        record = train[position]
        index = int(record.name.split("train_")[1])
        np.testing.assert_array_equal(decode(record.image), expected[index])
        assert record.label == index % 10


def test_another_sets_archives_are_refused(tmp_path, trusted, capsys):
    right, wrong = mnist_archives("mnist"), mnist_archives("fashion_mnist")
    trusted("mnist", right, tmp_path / "data")
    source = write(tmp_path / "archives", {**right, **wrong})
    assert run("mnist", "--from", source, "--data_dir", tmp_path / "data") == 1
    assert "is not mnist's" in capsys.readouterr().err
    assert not list((tmp_path / "data").glob("mnist/*/dataset_info.json"))
    write(source, right)  # the same command, after the archives have been put right
    assert run("mnist", "--from", source, "--data_dir", tmp_path / "data") == 0


def test_repacked_archives_are_taken_for_their_content(tmp_path, trusted, monkeypatch):
    """As Debian's Fashion-MNIST: same content, another gzip header."""
    import tensorflow_datasets as tfds

    files = mnist_archives("fashion_mnist")
    trusted("fashion_mnist", files, tmp_path / "data")
    content = {name: gzip.decompress(data) for name, data in files.items()}
    hashes = {n.split("-idx")[0]: hashlib.sha256(c).hexdigest() for n, c in content.items()}
    monkeypatch.setitem(prepare_data.IDX_CONTENT, "fashion_mnist", hashes)
    repacked = {name: gzip.compress(data, mtime=0) for name, data in content.items()}
    assert all(repacked[name] != files[name] for name in files)
    source = write(tmp_path / "archives", repacked)
    before = dict(tfds.builder("fashion_mnist", data_dir=tmp_path / "data").url_infos)
    assert run("fashion_mnist", "--from", source, "--data_dir", tmp_path / "data") == 0
    assert tfds.builder("fashion_mnist", data_dir=tmp_path / "x").url_infos == before
    expected = rgb(pixels("fashion_mnisttrain", TRAIN, (28, 28)))
    assert images_of("fashion_mnist", "train", tmp_path / "data") == expected


def test_the_known_content_of_fashion_mnist_is_the_originals():
    """Debian's files with the originals' gzip headers put back have TFDS's checksums."""
    import tensorflow_datasets as tfds

    times = {"t10k": 1504176627, "train": 1504176606}
    if not prepare_data.DEBIAN_FASHION_MNIST.is_dir():
        assert len(prepare_data.IDX_CONTENT["fashion_mnist"]) == 4
        return
    known = tfds.builder("fashion_mnist", data_dir="unused").url_infos.values()
    for info in known:
        data = (prepare_data.DEBIAN_FASHION_MNIST / info.filename).read_bytes()
        content = hashlib.sha256(gzip.decompress(data)).hexdigest()
        part = info.filename.split("-idx")[0]
        assert content == prepare_data.IDX_CONTENT["fashion_mnist"][part]
        time = times[part.split("-")[0]].to_bytes(4, "little")
        name = info.filename.removesuffix(".gz").encode() + b"\0"
        original = data[:3] + b"\x08" + time + data[8:10] + name + data[10:]
        assert hashlib.sha256(original).hexdigest() == info.checksum


def test_imagenet_is_prepared_restarted_and_left_alone(tmp_path, capsys):
    data_dir = tmp_path / "data"
    leftover = data_dir / "imagenet2012" / "incomplete.AB12CD_5.1.0"
    write(leftover, {"imagenet2012-train.array_record-00000-of-00001": b"half"})
    ilsvrc.prepare(tmp_path)
    output = capsys.readouterr().out
    assert not leftover.exists()
    assert "18 records  (the complete set has 1,281,167" in output
    assert "--config.dataset=tfds:imagenet2012" in output and "configs/resnet50.py" in output
    info = next(data_dir.glob("imagenet2012/*/dataset_info.json"))
    before = info.stat().st_mtime_ns
    assert run("imagenet2012", "--data_dir", data_dir) == 0  # needs no archives any more
    assert info.stat().st_mtime_ns == before
    assert "18 records" in capsys.readouterr().out


def test_conversion_by_the_command(tmp_path, capsys):
    prepared = ilsvrc.prepare(tmp_path)
    ilsvrc.rewrite_as_tfrecord(prepared, tmp_path / "old")
    for source in (tmp_path / "old", next((tmp_path / "old").glob("imagenet2012/*"))):
        target = tmp_path / f"new-{source.name}"
        arguments = ["imagenet2012", "--convert", "--from", source, "--data_dir", target]
        assert run(*arguments) == 0
        assert "18 records" in capsys.readouterr().out
        for split in ("train", "validation"):
            new, old = (open_source("tfds:imagenet2012", split, str(d)) for d in (target, prepared))
            assert [new[i] for i in range(len(new))] == [old[i] for i in range(len(old))]
        assert run(*arguments) == 0  # once more does no harm


def test_damaged_archives_are_user_errors(tmp_path, capsys):
    ilsvrc.write_archives(tmp_path)
    path = tmp_path / "ILSVRC2012_img_train.tar"
    path.write_bytes(path.read_bytes()[:30_000])
    arguments = ["imagenet2012", "--from", tmp_path, "--data_dir", tmp_path / "data"]
    assert run(*arguments) == 1
    assert "The archive is damaged" in capsys.readouterr().err  # a member is larger than the file
    ilsvrc.write_archives(tmp_path)
    assert run(*arguments) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["imagenet"], "unknown data set 'imagenet'"),
        *[([name], "its files are read as they are") for name in ("coco", "voc/2007")],
        (["imagenet2012"], "https://image-net.org"),
        (["imagenet2012", "--from", "empty"], "lacks ILSVRC2012_img_train.tar"),
        (["cifar10", "--from", "empty"], "lacks cifar-10-binary.tar.gz"),
        (["cifar10", "--from", "nowhere"], "no such directory"),
        (["cifar10", "--convert"], "--from"),
        (["cifar10", "--convert", "--from", "empty"], "no prepared cifar10"),
    ],
)
def test_wrong_commands_are_user_errors(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    assert run(*arguments, "--data_dir", tmp_path / "data") == 1
    assert (error := capsys.readouterr().err).startswith("error: ") and message in error


def test_no_network_is_said_at_once(tmp_path, monkeypatch, capsys):
    def unknown_host(*arguments):
        raise OSError("Name or service not known")

    monkeypatch.setattr(prepare_data.socket, "getaddrinfo", unknown_host)
    monkeypatch.setattr(prepare_data.urllib.request, "getproxies", dict)
    assert run("cifar100", "--data_dir", tmp_path) == 1
    error = capsys.readouterr().err
    assert "cifar-100-binary.tar.gz" in error and "prepare_data.py cifar100 --from DIR" in error


def test_two_preparations_do_not_meet(tmp_path, capsys):
    ilsvrc.write_archives(tmp_path)
    lock = tmp_path / "data/downloads/imagenet2012/.lock"
    lock.parent.mkdir(parents=True)
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run("imagenet2012", "--from", tmp_path, "--data_dir", tmp_path / "data") == 1
    assert "another process" in capsys.readouterr().err


@pytest.mark.slow
def test_tensorflow_is_never_imported(tmp_path):
    """In a process of its own, which other tests cannot have spoilt."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.support import ilsvrc; from data.sources import open_source\n"
        f"data_dir = ilsvrc.prepare(Path({str(tmp_path)!r}))\n"
        "source = open_source('tfds:imagenet2012', 'train', str(data_dir))\n"
        "assert source[0].image[:2] == bytes([255, 216])\n"
        "from tensorflow_datasets.core.utils import lazy_imports_utils as lazy\n"
        "assert '_module' not in lazy.tensorflow.__dict__\n"
        "assert not {'tensorflow', 'torch', 'apache_beam'} & set(sys.modules)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_another_tfds_is_refused(tmp_path, monkeypatch, capsys):
    from data import tfds_hook

    monkeypatch.setattr(tfds_hook, "PINNED", "0.0.1")
    assert run("cifar10", "--data_dir", tmp_path) == 1
    assert "tensorflow-datasets 0.0.1" in capsys.readouterr().err


def test_a_full_or_unwritable_disk_is_named(tmp_path, small_disk, capsys):
    ilsvrc.write_archives(tmp_path / "archives")
    arguments = ["imagenet2012", "--from", str(tmp_path / "archives"), "--data_dir"]
    folder, set_space = small_disk
    set_space(100)
    assert command.run(prepare_data.main, [*arguments, str(folder)]) == 1
    assert not list(folder.glob("imagenet2012/5*"))
    (tmp_path / "file").write_text("")
    assert command.run(prepare_data.main, [*arguments, str(tmp_path / "file")]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(errors) == 2 and "cannot be written" in errors[1]


def test_a_small_set_is_also_one_file_in_the_records_order(tmp_path, trusted, capsys):
    files = cifar_archive("cifar10")
    trusted("cifar10", files, tmp_path / "data")
    source = write(tmp_path / "archives", files)
    assert run("cifar10", "--from", source, "--data_dir", tmp_path / "data") == 0
    path = small_sets.file_of("cifar10", str(tmp_path / "data"))
    assert str(path) in capsys.readouterr().out
    for split in ("train", "test"):
        records = open_source("tfds:cifar10", split, str(tmp_path / "data"))
        found = small_sets.load("cifar10", split, str(tmp_path / "data"))
        assert found.label_names == records.label_names
        for i, image in enumerate(found.images):
            np.testing.assert_array_equal(image, decode(records[i].image))
            assert found.labels[i] == records[i].label
    path.unlink()  # as a set that older code prepared: made again
    small_sets.load("cifar10", "train", str(tmp_path / "data"))
    path.write_bytes(path.read_bytes()[:-50])
    small_sets.load("cifar10", "train", str(tmp_path / "data"))
    assert len(small_sets.read(path, "cifar10")["test"].images) == TEST

    assert run("cifar10", "--from", path.parent, "--data_dir", tmp_path / "other") == 0
    assert f"{TRAIN} records" in capsys.readouterr().out
    copy = small_sets.file_of("cifar10", str(tmp_path / "other"))
    assert copy.read_bytes() == path.read_bytes()
    assert run("cifar10", "--data_dir", tmp_path / "other") == 0  # it is there already
    copy.write_bytes(b"")
    assert run("cifar10", "--from", copy.parent, "--data_dir", tmp_path / "third") == 1
    assert "is not a whole cifar10" in capsys.readouterr().err
