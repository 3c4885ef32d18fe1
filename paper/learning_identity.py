"""How near a block of two 3×3 layers comes to the identity when it must learn it (section 3.1).

    python -m paper.learning_identity --dataset=digits --width=4 --steps=1000 --seeds 0 1 2

Plain, from random weights; with a shortcut, from random weights; and with F = 0, which is it from
the start. The loss is |H(x) − x|² / |x|² on activations ≥ 0 of a trained network's first stage,
with the optimiser of its run; `--learning_rates` are the blocks'.
"""

import argparse
import sys
from collections.abc import Sequence
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
from paper import experiment, plots
from run import command, plotting, result
from testing import opened_run
from testing.opened_run import OpenedRun
from training import optim

TITLE = "A block of two 3×3 layers must learn the identity"
ERROR = "|H(x) − x|² / |x|²"
RATES = [0.1, 0.01]
# Name, residual, whether the last BN's scale starts at 0, that is, F = 0.
BLOCKS = (
    ("plain", False, False),
    ("residual, random F", True, False),
    ("residual, F = 0", True, True),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the options, trains what is missing, measures and publishes."""
    p = experiment.parser("learning_identity", __doc__, depths=[20])
    p.set_defaults(learning_rates=RATES)
    args = p.parse_args(argv)
    runs, notes, learned = [], [], []
    for depth in args.depths:
        network = f"plain{depth}"
        for seed in args.seeds:
            config, notes = experiment.configure(args, experiment.Entry(network, network), seed)
            runs.append(experiment.trained(config, network, args.runs))
            learned += of_run(opened_run.load(runs[-1]["workdir"]), args.learning_rates)
    result.publish(
        args,
        TITLE,
        result.header(args, notes, runs),
        [table(learned)],
        figures=[draw(args, learned)],
        remarks=[
            f"{ERROR} of all training images' activations in the first stage, normalised with the "
            "averages; the curves are of training batches. 0 is the identity, 1 what H = 0 has."
        ],
        learned=learned,
    )


def of_run(run: OpenedRun, rates: Sequence[float]) -> list[dict[str, Any]]:
    """What blocks reach on the activations of a trained network's first stage.

    Returns:
      `[{'network', 'block', 'rate', 'seed', 'curve', 'error'}]`, of `learn_identity`.
    """
    seed, network = run.config.seed, subject.network_name(run.config.model)
    images, _ = subject.load_images(run, "train", run.facts.num_train)
    normalized = normalize(images, *run.facts.normalization)
    apply = jax.jit(lambda v, x: run.model.apply(v, x, train=False)[1]["stage1"])
    x = np.asarray(apply(run.variables, normalized))
    grid = [(rate, *block) for rate in rates for block in BLOCKS]
    return [
        {"network": network, "block": name, "rate": rate, "seed": seed}
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


def table(learned: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means and spreads over seeds, a row per block and rate."""
    rows = [
        [*key, subject.spread(one["error"] for one in mine)]
        for key, mine in _by_block(learned).items()
    ]
    return result.table("", ["activations of", "block", "rate", ERROR], rows)


def _by_block(learned):
    found = {}
    for one in learned:
        found.setdefault((one["network"], one["block"], one["rate"]), []).append(one)
    return found


def draw(args: argparse.Namespace, learned: Sequence[dict[str, Any]]) -> str:
    """The error over steps, a curve per block and rate: means over seeds."""
    figure, axis = plotting.pyplot().subplots(figsize=(7, 5), layout="constrained")
    names, rates = (list(dict.fromkeys(one[k] for one in learned)) for k in ("block", "rate"))
    for (network, name, rate), mine in _by_block(learned).items():
        steps, errors = np.mean([one["curve"] for one in mine], 0).T
        style = ("-", "--", ":", "-.")[rates.index(rate) % 4]
        label = f"{name}, rate {rate:g}" + f" ({network})" * (len(args.depths) > 1)
        axis.plot(steps, errors, style, color=plots.COLOURS[names.index(name)], label=label)
    axis.set(title="learning H(x) = x", xlabel="step", ylabel=ERROR, xscale="log")
    axis.set_yscale("symlog", linthresh=1e-5)
    axis.set_ylim(bottom=-2e-6)  # what F = 0 has is on the axis, and nothing is below
    axis.grid(alpha=0.25)
    subject.legend_below(axis)
    return plots.save(figure, args.out, "learning_identity")


if __name__ == "__main__":
    sys.exit(command.run(main))
