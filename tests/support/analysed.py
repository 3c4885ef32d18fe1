"""Small networks with random weights, and what an analysis of a run has written."""

import json
import shlex

import jax
import jax.numpy as jnp

import models

CIFAR = {"depth": 8, "stem": "cifar", "width": 4, "shortcut": "A"}


def random_network(seed=0, side=8, **fields):
    model = models.create(CIFAR | fields, 10)
    shape = (1, side, side, 3)
    variables = jax.jit(lambda: model.init(jax.random.key(seed), jnp.zeros(shape), False))()
    head = variables["params"]["head"]
    head["kernel"] = jax.random.normal(jax.random.key(1), head["kernel"].shape)
    head["bias"] = jax.random.normal(jax.random.key(2), head["bias"].shape)
    return model, variables


def random_images(number=3, side=8):
    return jax.random.normal(jax.random.key(3), (number, side, side, 3))


def outcome(workdir, name):
    folder = workdir / "analysis"
    content = json.loads((folder / f"{name}.json").read_text())
    assert content["title"] in (folder / f"{name}.md").read_text()
    assert all((folder / figure).is_file() for figure in content["figures"])
    words = shlex.split(content["header"]["command"])
    assert words[:4] == ["python", "-m", f"analysis.{name}", f"--workdir={workdir}"]
    return content
