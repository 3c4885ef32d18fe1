"""How near a block of two 3×3 layers comes to the identity when it must learn it (section 3.1).

Plain, from random weights; with a shortcut, from random weights; and with F = 0, which is it from
the start. The loss is |H(x) − x|² / |x|² on activations ≥ 0 of a trained network's first stage.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from analysis import subject
from data.normalization import normalize
from models.block import BasicBlock
from models.block_spec import BlockSpec
from testing.opened_run import OpenedRun
from training import optim

RATES = [0.1, 0.01]
# Name, residual, whether the last BN's scale starts at 0, that is, F = 0.
BLOCKS = (
    ("plain", False, False),
    ("residual, random F", True, False),
    ("residual, F = 0", True, True),
)


def of_run(run: OpenedRun, seed: int) -> list[dict[str, Any]]:
    """What blocks reach on the activations of a trained network's first stage.

    Returns:
      `[{'block', 'rate', 'seed', 'curve', 'error'}]`, of `learn_identity`.
    """
    images, _ = subject.load_images(run, "train", run.facts.num_train)
    normalized = normalize(images, *run.facts.normalization)
    apply = jax.jit(lambda v, x: run.model.apply(v, x, train=False)[1]["stage1"])
    x = np.asarray(apply(run.variables, normalized))
    grid = [(rate, *block) for rate in RATES for block in BLOCKS]
    return [
        {"block": name, "rate": rate, "seed": seed}
        | learn_identity(run.config, x, rate, residual, zero, seed)
        for rate, name, residual, zero in tqdm(grid, desc="learning the identity", disable=None)
    ]


def learn_identity(
    config: ConfigDict, x: np.ndarray, rate: float, residual: bool, zero: bool, seed: int
) -> dict[str, Any]:
    """Trains one block of two 3×3 layers to return its input, with the optimiser of a run.

    Args:
      config: of the run: steps, batch, schedule and weight decay are its.
      x: activations ≥ 0, `[number, height, width, channels]`.
      rate: the schedule's first.
      residual, zero: a shortcut; F = 0 at the start.
      seed: of the weights and batches.

    Returns:
      `{'curve': [[step, error], …], 'error'}`: |H(x) − x|² / |x|² of training batches, and in the
      end of all of x, normalised with the averages.
    """
    settings = config.optim.copy_and_resolve_references()
    settings.learning_rate = rate
    size, steps = min(config.batch_size, len(x)), config.num_steps
    spec = BlockSpec(x.shape[-1], shortcut="A", residual=residual, zero_init_residual=zero)
    block, optimizer = BasicBlock(spec), optim.optimizer(settings)
    rate_at = optim.learning_rate(settings, num_steps=steps, batch_size=size)

    def relative(y, x):
        return jnp.square(y - x).sum() / jnp.maximum(jnp.square(x).sum(), 1e-12)

    def loss(params, stats, x):
        y, updated = block.apply(
            {"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"]
        )
        return relative(y, x), updated["batch_stats"]

    @jax.jit
    def train(key, x):
        variables = block.init(key, x[:1], train=False)
        params, stats = variables["params"], variables["batch_stats"]

        def step(carry, i):
            params, stats, state = carry
            batch = jax.random.choice(jax.random.fold_in(key, i), x, (size,), replace=False)
            (error, stats), grads = jax.value_and_grad(loss, has_aux=True)(params, stats, batch)
            update, state = optimizer.update(grads, state, params, learning_rate=rate_at(i))
            return (jax.tree.map(jnp.add, params, update), stats, state), error

        start = (params, stats, optimizer.init(params))
        (params, stats, _), errors = jax.lax.scan(step, start, jnp.arange(steps))
        y = block.apply({"params": params, "batch_stats": stats}, x, train=False)
        return errors, relative(y, x)

    errors, final = train(jax.random.key(seed), jnp.asarray(x))
    shown = sorted({round(i) for i in np.geomspace(1, steps, 60)})
    return {"curve": [[i, float(errors[i - 1])] for i in shown], "error": float(final)}
