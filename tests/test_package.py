"""The package of `pip install .`, used from an empty folder as somebody else's program uses it."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import models
from tests.support.markdown import code_blocks
from tests.support.reference_weights import write_safetensors
from weights.torchvision import to_torch

ROOT = Path(__file__).parents[1]
INSTALL = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder that holds what pip installs, and nothing else."""
    site = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, *INSTALL, "--target", site, ROOT], check=True, cwd=site)
    return site


@pytest.fixture
def run(site, tmp_path):
    """Runs a program in an empty folder; returns what it prints."""

    def run(code):
        (tmp_path / "program.py").write_text(code)
        environment = os.environ | {"PYTHONPATH": str(site), "XLA_FLAGS": ""}
        done = subprocess.run(
            [sys.executable, "program.py"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.slow
def test_one_name_is_installed(site, run):
    names = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"residual_networks"}
    house = {path.stem for path in ROOT.glob("*.py")} | {path.name for path in ROOT.glob("[a-z]*/")}
    found = run(
        "import sys, pathlib, residual_networks as r\n"
        "r.models, r.weights, r.transforms, r.device_transforms, r.mixup, r.normalization\n"
        "assert pathlib.Path.cwd() not in pathlib.Path(r.__file__).parents\n"
        "assert r.models.create is sys.modules['residual_networks.models'].create\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    assert not set(found.split()) & (house - {"residual_networks"})


@pytest.mark.slow
def test_the_backbone_of_the_readme_as_it_stands(run):
    (example,) = code_blocks(ROOT / "README.md", "python")
    found = run(
        example + "\nprint(logits.shape, *(endpoints[f'stage{i}'].shape for i in range(1, 5)))"
    )
    shapes = [(1, 1000), (1, 200, 334, 256), (1, 100, 167, 512), (1, 50, 84, 1024)]
    assert found.split() == " ".join(map(str, [*shapes, (1, 50, 84, 2048)])).split()


@pytest.mark.slow
def test_a_loop_of_ones_own(run):
    blocks = code_blocks(ROOT / "docs" / "coming_from_elsewhere.md", "python")
    (example,) = [block for block in blocks if "optax" in block]
    run(example.replace('"depth": 50', '"depth": 18, "width": 8').replace("224, 224", "64, 64"))


@pytest.mark.slow
def test_weights_and_errors(run, tmp_path):
    config = {"depth": 18, "width": 4}
    variables = models.init(models.create(config, 7), seed=3)
    write_safetensors(tmp_path / "w.safetensors", to_torch(jax.tree.map(np.asarray, variables)), {})
    found = run(
        "import jax, numpy as np\n"
        "from residual_networks import UserError, models, transforms, weights\n"
        f"model = models.create({config}, 7)\n"
        f"read, _ = weights.load_weights('w.safetensors', {config}, models.init(model))\n"
        "same = jax.tree.map(np.array_equal, read, models.init(model, seed=3))\n"
        "image = transforms.resize_and_crop(np.zeros((9, 5, 3), np.uint8), resize=8, size=4)\n"
        "print(all(jax.tree.leaves(same)), image.shape)\n"
        "try:\n    models.create({'depth': 21}, 7)\nexcept UserError as error:\n    print(error)\n"
    )
    assert found.startswith("True (4, 4, 3)\nmodel.depth=21:")
