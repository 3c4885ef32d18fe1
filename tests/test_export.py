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
from data.normalization import normalize
from errors import UserError
from testing import opened_run
from tests.support.untrained import make_workdir
from weights import conventions

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


def test_onnx_says_what_to_do_instead(network, tmp_path):
    with pytest.raises(UserError, match=r"onnx.*safetensors"):
        export.export(network, "onnx", tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_command(network, tmp_path):
    def status(*arguments):
        command = [sys.executable, "export.py", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    target = tmp_path / "x.safetensors"
    done = status(f"--workdir={network.workdir}", "--format=safetensors", f"--output={target}")
    assert done.returncode == 0 and str(target) in done.stdout and target.exists()
    absent = status(f"--workdir={tmp_path}", "--format=stablehlo")
    assert absent.returncode == 1 and "config.json" in absent.stderr
    assert "Traceback" not in absent.stderr
