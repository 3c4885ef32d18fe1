"""Export: StableHLO that runs without this code, safetensors that load back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import export
import models
import weights
from data.normalization import Normalization, normalize
from errors import UserError
from testing import opened_run
from tests.support.reference_weights import write_safetensors
from tests.support.untrained import make_workdir
from tests.weights.test_door import abstract
from weights import conventions
from weights.torchvision import to_torch

ROOT = Path(__file__).parent.parent
ALONE = """
import json, sys
import jax, numpy as np
data = np.load(sys.argv[2])
with open(sys.argv[1], 'rb') as file:
    network = jax.export.deserialize(bytearray(file.read()))
assert 'models' not in sys.modules
out = {}
for batch in (1, 5):
    result = network.call(data['images'][:batch])
    out[str(batch)] = np.asarray(result['logits'])
    assert np.allclose(result['probabilities'].sum(-1), 1, atol=1e-5)
np.savez(sys.argv[3], **out)
"""


@pytest.fixture(scope="module")
def network(tmp_path_factory, data_dir):
    from configs import digits

    config = digits.get_config("resnet8,paper")
    config.data_dir = data_dir
    config.model.width = 4
    return opened_run.load(make_workdir(config, tmp_path_factory.mktemp("export") / "run"))


@pytest.fixture(scope="module")
def images():
    return np.random.RandomState(0).randint(0, 256, (5, 8, 8, 1), np.uint8)


@pytest.mark.slow
def test_stablehlo_runs_without_this_code_at_any_batch_size(network, images, tmp_path):
    path = tmp_path / "model.stablehlo"
    export.export(network, "stablehlo", path)
    np.savez(tmp_path / "in.npz", images=images)
    command = [sys.executable, "-c", ALONE, path, tmp_path / "in.npz", tmp_path / "out.npz"]
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    normalized = normalize(images, *network.facts.normalization)
    apply = jax.jit(lambda v, x: network.model.apply(v, x, train=False)[0])
    expected = apply(network.variables, normalized)
    found = np.load(tmp_path / "out.npz")
    for batch in (1, 5):
        np.testing.assert_allclose(found[str(batch)], expected[:batch], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shortcut", "named", "sizes"),
    [("B", "", ((8, 8), (16, 9), (1, 1))), ("A", "4*", ((8, 8), (16, 12), (4, 4)))],
)
def test_one_stablehlo_file_serves_every_size_and_platform(shortcut, named, sizes, network):
    """With means of channels; the mean image of `network` fixes the size."""
    constants = Normalization(np.full(1, 100, np.float32), np.full(1, 50, np.float32))
    config = network.config.copy_and_resolve_references()
    config.model.shortcut = shortcut
    model = models.create(config.model, 10)
    network = network._replace(
        config=config,
        model=model,
        variables=jax.jit(lambda k, x: model.init(k, x, train=False))(
            jax.random.key(0), jnp.zeros((1, 8, 8, 1))
        ),
        facts=network.facts._replace(normalization=constants),
    )
    exported = jax.export.deserialize(bytearray(export.to_stablehlo(network)))
    assert exported.platforms == ("cpu", "cuda", "rocm", "tpu")
    apply = jax.jit(lambda x: network.model.apply(network.variables, x, train=False)[0])
    random = np.random.RandomState(0)
    for batch, size in enumerate(sizes, start=1):
        images = random.randint(0, 256, (batch, *size, 1), np.uint8)
        logits = apply(normalize(images, *constants))
        np.testing.assert_allclose(exported.call(images)["logits"], logits, rtol=1e-4, atol=1e-4)
    shape = export.describe(network)["input"]["shape"]
    assert shape == ["batch", f"{named}height", f"{named}width", 1]


def test_description_names_what_a_user_must_know(network, tmp_path):
    export.export(network, "safetensors", tmp_path / "deep" / "m.safetensors")
    description = json.loads((tmp_path / "deep" / "m.safetensors.json").read_text())
    assert description["format_version"] == export.FORMAT_VERSION
    assert description["input"]["shape"] == ["batch", 8, 8, 1]
    assert description["label_names"] == [str(i) for i in range(10)]
    assert description["model"]["depth"] == 8 and description["step"] == 1
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == [
        "m.safetensors",
        "m.safetensors.json",
    ]


def test_safetensors_come_back_through_the_door(network, tmp_path):
    path = tmp_path / "m.safetensors"
    export.export(network, "safetensors", path)
    model = models.create(network.config.model, 10)
    template = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)
    )
    loaded, notes = weights.load_weights(path, network.config.model, template)
    assert notes == [] and conventions(path).downsample_in == "1x1"
    jax.tree.map(np.testing.assert_array_equal, loaded, network.variables)


def test_an_exported_file_is_enough(network, tmp_path):
    """Network, classes, size and normalisation of a file of export.py, without its JSON."""
    path = tmp_path / "m.safetensors"
    export.export(network, "safetensors", path)
    (tmp_path / "m.safetensors.json").unlink()
    found, said = opened_run.weights_alone(str(path))
    assert "ResNet-8 of export.py" in said and "10 classes" in said and "Assumed" not in said
    assert found.facts.label_names == network.facts.label_names
    assert found.facts.image_shape == (8, 8, 1)
    np.testing.assert_array_equal(found.facts.normalization.mean, network.facts.normalization.mean)
    assert opened_run.shorter_side(found.config, 8) == 8
    jax.tree.map(np.testing.assert_array_equal, found.variables, network.variables)
    export.export(found, "safetensors", tmp_path / "again.safetensors")
    again, _ = opened_run.weights_alone(str(tmp_path / "again.safetensors"))
    assert again.facts.to_dict() == found.facts.to_dict()


@pytest.mark.slow
def test_huggingface_folders_come_back_and_say_everything(tmp_path):
    fields = {"depth": 18, "width": 4}
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), abstract(fields, 3))
    path = tmp_path / "resnet18.safetensors"
    write_safetensors(path, to_torch(zeros) | {"fc.bias": np.arange(3, dtype=np.float32)}, {})
    network, said = opened_run.weights_alone(str(path))
    assert "normalisation: imagenet" in said and "Assumed" in said
    export.export(network, "huggingface", tmp_path / "folder")
    assert {p.name for p in (tmp_path / "folder").iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert config["layer_type"] == "basic" and config["hidden_sizes"] == [4, 8, 16, 32]
    assert config["id2label"] == {"0": "class 0", "1": "class 1", "2": "class 2"}
    back, said = opened_run.weights_alone(str(tmp_path / "folder"))
    assert "normalisation: imagenet" in said  # not constants that float32 has rounded
    assert back.facts.label_names == network.facts.label_names
    assert back.facts.image_shape == network.facts.image_shape == (224, 224, 3)
    assert opened_run.shorter_side(back.config, 224) == 256 and "Assumed" not in said
    jax.tree.map(np.testing.assert_array_equal, back.variables, network.variables)


def test_hugging_face_has_no_small_images(network, tmp_path):
    with pytest.raises(UserError, match=r"model\.stem='cifar'.*safetensors"):
        export.export(network, "huggingface", tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def test_onnx_says_what_to_do_instead(network, tmp_path):
    with pytest.raises(UserError, match=r"onnx.*safetensors"):
        export.export(network, "onnx", tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_command(network, tmp_path):
    def status(*arguments):
        command = [sys.executable, "export.py", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    target = tmp_path / "x.safetensors"
    done = status(f"--workdir={network.workdir}", "--format=safetensors", f"--output={target}")
    assert done.returncode == 0 and str(target) in done.stdout and target.exists()
    nowhere = status(f"--weights={target}", "--format=stablehlo")
    assert nowhere.returncode == 2 and "--output" in nowhere.stderr
    absent = status(f"--workdir={tmp_path}", "--format=stablehlo")
    assert absent.returncode == 1 and "config.json" in absent.stderr
    assert "Traceback" not in absent.stderr
