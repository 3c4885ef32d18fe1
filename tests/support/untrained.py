"""A workdir as a run leaves it, with random weights: no time goes into training or compiling."""

import jax
import jax.numpy as jnp
import numpy as np

import input_pipeline
import models
from run.checkpoint import Checkpoints
from run.mesh import make_mesh
from run.workdir import Workdir


def make_workdir(config, workdir):
    """Writes config.json, data.json and one checkpoint of step 1."""
    Workdir(workdir).claim(config)
    facts = input_pipeline.open_data(config, make_mesh()).facts
    Workdir(workdir).write_facts(facts.to_dict())
    # On disk the blocks lie one by one.
    model = models.create(config.model, facts.num_classes).clone(scan_blocks=False)
    image = jnp.zeros((1, *facts.image_shape))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
    random = np.random.RandomState(0)

    def draw(path, leaf):
        if path[-1].key in ("kernel", "mean"):
            values = 0.3 * random.standard_normal(leaf.shape)
        else:
            values = random.uniform(0.5, 1.0, leaf.shape)
        return np.asarray(values, np.float32)

    checkpoints = Checkpoints(workdir)
    checkpoints.save(1, jax.tree_util.tree_map_with_path(draw, shapes))
    checkpoints.close()
    return workdir
