"""The constructed solution (section 1): deeper by layers that do nothing, trained on.

    python -m paper.construction --dataset=digits --width=4 --steps=1200 --seeds 0 1 2

A trained network of `--depths`' first is made as deep as the second by blocks that are the identity
(`analysis.identity`). It has the same training error: so a deeper network need not be worse. It is
trained on, at each of `--learning_rates`, beside the deep network that starts from random weights.

The converse is `paper.learning_identity`: how near one block comes that must learn the identity.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

import models
from analysis import subject
from analysis.identity import identity_block
from data.normalization import normalize
from errors import UserError
from input_pipeline import open_data
from models.block import BasicBlock
from models.resnet import architecture
from paper import experiment, learning_identity, plots
from run import command, files, plotting, result
from run.mesh import make_mesh
from testing import opened_run, scores
from testing.opened_run import OpenedRun
from weights.torchvision import to_torch

TITLE = "The constructed solution: a deeper network that need not be worse"
FAMILIES = ("plain", "resnet")


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the options, trains what is missing, measures and publishes."""
    p = experiment.parser("construction", __doc__, depths=[20, 56])
    p.set_defaults(learning_rates=learning_identity.RATES)
    p.add_argument(
        "--train_on", nargs="*", choices=FAMILIES, default=["plain"], help="families to train on"
    )
    args = p.parse_args(argv)
    if len(args.depths) != 2 or args.depths[0] > args.depths[1]:
        raise UserError(f"--depths={args.depths}: expected a shallow and a deeper network.")
    if any(architecture("cifar", depth).block is not BasicBlock for depth in args.depths):
        raise UserError(f"--depths={args.depths}: expected 6n+2 layers, of basic blocks.")
    runs, notes, functions = [], [], []
    for seed in args.seeds:
        for family in FAMILIES:
            of_family, function, more = _of_a_seed(args, family, seed)
            runs += of_family
            functions.append(function)
            notes += more
    summary = experiment.summarise(runs)
    result.publish(
        args,
        TITLE,
        result.header(args, list(dict.fromkeys(notes)), runs),
        tables(summary, functions),
        figures=[draw(args, runs)],
        remarks=[_remark(args)],
        summary=summary,
        functions=functions,
        runs=runs,
    )


def _remark(args):
    shallow, deep = args.depths
    return (
        f"The constructed network begins with what the network of {shallow} layers learned, and is "
        f"then trained as long as any other: in all twice as long as that of {deep} from random "
        "weights. Same function: the largest difference of any logit over the training images."
    )


def _of_a_seed(args, family, seed):
    """Every run of one family and seed, and how far the constructed function is the same."""
    shallow, deep = (f"{family}{depth}" for depth in args.depths)
    first_rate = args.learning_rates[0]
    config, notes = experiment.configure(args, _entry(shallow), seed, first_rate)
    runs = [experiment.trained(config, shallow, args.runs)]
    run = opened_run.load(runs[0]["workdir"])
    variables = deepened(run, args.depths[1], seed)
    built = run._replace(model=deeper(run, args.depths[1]), variables=variables)
    function = {"family": family, "seed": seed} | same_function(run, built)
    runs.append({"name": f"{deep}, constructed", "seed": seed} | _tested(built))
    if family not in args.train_on:
        return runs, function, notes
    weights = Path(
        args.runs, "deepened", f"{Path(run.workdir).name}-to-{args.depths[1]}.safetensors"
    )
    with files.explained(weights), files.whole(weights) as temporary:
        save_file(to_torch(variables), temporary)
    config, _ = experiment.configure(args, _entry(deep), seed, first_rate)
    runs.append(experiment.trained(config, f"{deep}, random weights", args.runs))
    for rate in args.learning_rates:
        config, more = experiment.configure(args, _entry(deep), seed, rate)
        notes += more
        config.init_from = str(weights)
        name = f"{deep}, constructed, trained on at {rate:g}"
        runs.append(experiment.trained(config, name, args.runs))
    return runs, function, notes


def _tested(run):
    """As `experiment.trained`, of a network that was not trained in a workdir of its own."""
    mesh = make_mesh(jax.devices()[:1])
    data = open_data(run.config, mesh)
    final, training = (
        scores.measure(run.model, run.variables, data, split, mesh) for split in ("test", "train")
    )
    return {"final": final, "training": training, "curves": {"train": [], "validation": []}}


def _entry(network):
    return experiment.Entry(network, network, {"shortcut": "A"})


def deeper(run: OpenedRun, depth: int) -> nn.Module:
    """The network of a run, but of another depth and untrained."""
    return models.create(
        {**run.config.model, "depth": depth, "scan_blocks": False}, run.facts.num_classes
    )


def deepened(run: OpenedRun, depth: int, seed: int) -> dict[str, Any]:
    """Variables of a network of `depth` that computes what the run's network does.

    Each stage's new blocks lie behind the old ones and are the identity. `seed` draws the random
    weights of a residual branch that a scale of 0 silences.

    Args:
      run: a CIFAR network of basic blocks, plain or residual, with 'none' as its variant.
      depth: 6n+2, more than the run's.
    """
    model = run.model
    shape = (1, *run.facts.image_shape)
    fresh = jax.jit(lambda key: deeper(run, depth).init(key, jnp.zeros(shape), train=False))
    variables = jax.tree.map(np.asarray, fresh(jax.random.key(seed)))
    images, _ = subject.load_images(run, "train", run.facts.num_train)
    _, endpoints = _applied(run, images, train=True)
    old = architecture(model.stem, model.depth).stage_sizes
    new = architecture(model.stem, depth).stage_sizes
    made = {name: dict(run.variables[name]) for name in ("params", "batch_stats")}
    for i, (size, target) in enumerate(zip(old, new, strict=True), start=1):
        stage = f"stage{i}"
        activations = np.asarray(endpoints[stage], np.float64)
        mean, var = activations.mean((0, 1, 2)), activations.var((0, 1, 2))
        for collection in made.values():
            collection[stage] = dict(collection[stage])
        for j in range(size + 1, target + 1):
            block = f"block{j}"
            made["params"][stage][block], made["batch_stats"][stage][block] = identity_block(
                variables["params"][stage][block], mean, var, model.residual
            )
    return made


def same_function(run: OpenedRun, built: OpenedRun) -> dict[str, dict[str, float]]:
    """The largest difference between two networks' logits on the run's training images.

    Returns:
      `{'testing', 'training'}`, each `{'difference', 'largest'}`: of the logits and the largest
      logit; in training each batch is normalised by its own statistics.
    """
    images, _ = subject.load_images(run, "train", run.facts.num_train)
    found = {}
    for mode in ("testing", "training"):
        one, other = (_applied(r, images, mode == "training")[0] for r in (run, built))
        found[mode] = {
            "difference": float(np.abs(one - other).max()),
            "largest": float(np.abs(one).max()),
        }
    return found


def _applied(run, images, train):
    """Logits and endpoints of whole training batches; in testing of all images."""
    size = run.config.batch_size

    @jax.jit
    def apply(variables, images):
        x = normalize(images, *run.facts.normalization)
        return run.model.apply(variables, x, train=train, mutable=["batch_stats"])[0]

    last = len(images) // size * size if train and len(images) >= size else len(images)
    parts = [apply(run.variables, images[i : i + size]) for i in range(0, last, size)]
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def tables(
    summary: Mapping[str, Any], functions: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The networks' errors, and how far the function is the same."""
    rows = [
        [name, result.ours(one["train"]), subject.spread(one["loss"]["values"]), result.ours(one)]
        for name, one in summary.items()
    ]
    columns = ["network", "training error (%)", "training loss", "test error (%)"]
    listed = [result.table("Deeper by construction, and by training", columns, rows)]
    rows = [
        [family, mode, _largest(functions, family, mode, "difference"), largest]
        for family in dict.fromkeys(one["family"] for one in functions)
        for mode in ("testing", "training")
        for largest in [_largest(functions, family, mode, "largest")]
    ]
    columns = ["network", "BN's statistics", "largest difference of a logit", "largest logit"]
    listed.append(result.table("Is it the same function before it is trained on?", columns, rows))
    return listed


def _largest(functions, family, mode, key):
    return f"{max(one[mode][key] for one in functions if one['family'] == family):.3g}"


def draw(args: argparse.Namespace, runs: Sequence[dict[str, Any]]) -> str:
    """Training error over steps, a panel per family that was trained on."""
    families = args.train_on or FAMILIES[:1]
    figure, axes = plotting.pyplot().subplots(
        1, len(families), figsize=(6 * len(families), 4), layout="constrained", squeeze=False
    )
    for family, axis in zip(families, axes[0], strict=True):
        mine = [run for run in runs if run["name"].startswith(family) and run["curves"]["train"]]
        for colour, name in zip(
            plots.COLOURS, dict.fromkeys(r["name"] for r in mine), strict=False
        ):
            points = plots.mean_curve([run for run in mine if run["name"] == name], "train")
            axis.plot(*zip(*points, strict=True), color=colour, label=name)
        axis.set(title=f"{family}: augmented training batches", xlabel="step", ylabel="error (%)")
        axis.set_ylim(0, 100)
        axis.grid(alpha=0.25)
        subject.legend_below(axis)
    return plots.save(figure, args.out, "construction")


if __name__ == "__main__":
    sys.exit(command.run(main))
