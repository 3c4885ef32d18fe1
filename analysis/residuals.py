"""Do residual branches make small changes, and what does one block matter?

    python -m analysis.residuals --workdir=runs/digits-resnet20-seed0
    python -m analysis.residuals --workdir runs/resnet56-0 runs/resnet56-1 runs/plain56-0

Two explanations that readers of the paper give. (1) "It learns small changes": the norm of f(x)
against the norm of the shortcut, per block. (2) It is an ensemble of paths (Veit et al. 2016): the
error with one block's branch dropped and its shortcut left; with k random blocks dropped; and with
blocks of a stage in another order. A block of a plain network is dropped by making it the identity.
"""

import functools
import sys
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from analysis import lesions, subject
from data.normalization import normalize
from errors import UserError
from run import command, plotting, result
from testing.opened_run import OpenedRun


def branches_and_shortcuts(
    model: nn.Module, variables: Any, images: jax.Array
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """The two summands of every block.

    Args:
      model: a residual network of `models.create` with its blocks one by one.
      variables: its `params` and `batch_stats`.
      images: normalised, `[batch, height, width, channels]`.

    Returns:
      `{'stage1/block1': (f(x), shortcut)}`, both `[batch, h, w, features]`.

    Raises:
      UserError: a plain network has no shortcut to compare with.
    """
    if not model.residual:
        raise UserError("model.residual=False: a plain network has no shortcuts; give a residual.")
    _, state = model.apply(
        variables,
        images,
        train=False,
        capture_intermediates=lambda _, method: method in ("f", "shortcut", "g"),
        mutable=["intermediates"],
    )
    found = {}
    for stage, block in lesions.block_names(variables):
        # The last value of each: a variant's method may call that of the block it varies.
        kept = {name: values[-1] for name, values in state["intermediates"][stage][block].items()}
        shortcut = kept["shortcut"] * (1 - kept["g"]) if "g" in kept else kept["shortcut"]
        found[f"{stage}/{block}"] = (kept["f"], shortcut)
    return found


def branch_norms(
    model: nn.Module, variables: Any, images: jax.Array
) -> dict[str, tuple[jax.Array, jax.Array, jax.Array]]:
    """Norms of `branches_and_shortcuts`, means over images.

    Returns:
      `{'stage1/block1': (branch, shortcut, ratio)}`: L2 norms over positions and channels, and the
      mean of their ratio.
    """
    found = {}
    for name, parts in branches_and_shortcuts(model, variables, images).items():
        branch, shortcut = map(_norm, parts)
        ratio = branch / jnp.maximum(shortcut, jnp.finfo(jnp.float32).tiny)
        found[name] = (branch.mean(), shortcut.mean(), ratio.mean())
    return found


def _norm(x):
    return jnp.sqrt(jnp.square(x.astype(jnp.float32)).sum((1, 2, 3)))


def measure(run: OpenedRun, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Everything of one run: `{'network', 'seed', 'error', 'blocks', 'lesions', 'orders'}`.

    `blocks` are `{'block', 'error_without'}` and, in a residual network, `branch_norm`,
    `shortcut_norm` and `ratio`.
    """
    norms: dict[str, Any] = {}
    if run.model.residual:
        step = jax.jit(functools.partial(branch_norms, run.model))
        sample = normalize(jnp.asarray(images[:256]), *run.facts.normalization)
        norms = jax.tree.map(float, step(run.variables, sample))
    error = lesions.error_of(run, images, labels)
    whole, dropped = lesions.lesion_errors(run, error)
    measured = ("branch_norm", "shortcut_norm", "ratio")
    return {
        "network": subject.network_name(run.config.model),
        "seed": run.config.seed,
        "error": whole,
        "blocks": [
            {"block": name}
            | dict(zip(measured, norms.get(name, ()), strict=False))
            | {"error_without": left}
            for name, left in dropped.items()
        ],
        "lesions": lesions.random_lesions(run, error),
        "orders": lesions.random_orders(run, error),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the options, measures and writes `residuals.json`, `.md`, `.svg` and `.png`."""
    args = subject.parser("residuals", __doc__, images=1000).parse_args(argv)
    runs = subject.open_workdirs(args)
    measured = []
    for run in runs:
        images, labels = subject.load_images(run, args.split, args.images)
        measured.append(measure(run, images, labels))
    subject.publish(
        args,
        runs,
        "Residuals: how large they are, and what a block matters",
        tables(measured),
        _plot(measured),
        measured=measured,
    )


def tables(measured: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One block dropped; k blocks dropped; pairs exchanged. Means and spreads over seeds, in %.

    The blocks of a stage behind its first stand in one row, with their median and their worst.
    """
    networks = subject.by_network(measured)
    rows = []
    for name, seeds in networks.items():
        rows.append([name, "none dropped", None, _percent(one["error"] for one in seeds), None])
        for place, numbers in _places(seeds[0]["blocks"]).items():
            of_seeds = [[one["blocks"][i] for i in numbers] for one in seeds]
            ratios = [_over(np.median, blocks, "ratio") for blocks in of_seeds]
            left, worst = (
                _percent(_over(kind, blocks, "error_without") for blocks in of_seeds)
                for kind in (np.median, np.max)
            )
            rows.append(
                [name, place, subject.spread(ratios), left, worst if len(numbers) > 1 else None]
            )
    columns = ["network", "block", "|f(x)| / |shortcut|", "error without it (%)", "worst (%)"]
    listed = [result.table("One block", columns, rows)]
    for heading, kind, key, column in (
        ("Several blocks dropped at random", "lesions", "blocks", "blocks dropped"),
        ("Blocks of a stage in another order", "orders", "swaps", "pairs exchanged"),
    ):
        counts = sorted({row[key] for one in measured for row in one[kind]})
        rows = [
            [
                count,
                *(
                    _percent(
                        np.mean(row["errors"])
                        for one in s
                        for row in one[kind]
                        if row[key] == count
                    )
                    for s in networks.values()
                ),
            ]
            for count in counts
        ]
        listed.append(result.table(f"{heading}: error (%)", [column, *networks], rows))
    return listed


def _places(blocks):
    """Positions of the blocks by row: `{'stage1, first': [0], 'stage1, median of 8': [1, …]}`."""
    stages: dict[str, list[int]] = {}
    for i, block in enumerate(blocks):
        stages.setdefault(block["block"].partition("/")[0], []).append(i)
    found = {}
    for stage, (first, *others) in stages.items():
        found[f"{stage}, first"] = [first]
        if others:
            found[f"{stage}, median of the other {len(others)}"] = others
    return found


def _over(kind, blocks, key):
    """`kind` of the values of `key`; None where a block has none."""
    values = [block.get(key) for block in blocks]
    return None if None in values else kind(values)


def _percent(errors):
    return subject.spread(None if error is None else 100 * error for error in errors)


def _plot(measured):
    figure, axes = plotting.pyplot().subplots(2, 2, figsize=(12, 9.5), layout="constrained")
    sizes, singles, dropped, orders = axes.ravel()
    longest = subject.deepest([b["block"] for b in one["blocks"]] for one in measured)
    for i, (name, seeds) in enumerate(subject.by_network(measured).items()):
        style = {"color": f"C{i}", "marker": ".", "label": name}
        blocks = subject.places([b["block"] for b in seeds[0]["blocks"]], longest)
        if "ratio" in seeds[0]["blocks"][0]:
            ratios = np.mean([[b["ratio"] for b in one["blocks"]] for one in seeds], 0)
            sizes.plot(blocks, ratios, **style)
        errors = np.array([[b["error_without"] for b in one["blocks"]] for one in seeds], float)
        singles.plot(blocks, 100 * errors.mean(0), **style)
        singles.axhline(100 * np.mean([one["error"] for one in seeds]), color=f"C{i}", ls=":")
        for axis, kind, key in ((dropped, "lesions", "blocks"), (orders, "orders", "tau")):
            points = [row for one in seeds for row in one[kind]]
            x = [np.mean(row[key]) for row in points]
            y = [100 * np.mean(row["errors"]) for row in points]
            axis.plot(x, y, ".", color=f"C{i}", label=name)
    for axis in (sizes, singles):
        subject.mark_stages(axis, longest)
        axis.set(xlabel="block (of the deepest network)")
    sizes.set(ylabel="|f(x)| / |shortcut|", title="size of the residual")
    singles.set(ylabel="error (%)", title="one block dropped (dotted: none)")
    dropped.set(xlabel="blocks dropped at random", ylabel="error (%)", title="several dropped")
    orders.set(xlabel="Kendall's τ with the trained order", ylabel="error (%)", title="reordered")
    orders.invert_xaxis()
    for axis in axes.ravel():
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        subject.legend_below(axis)
    return figure


if __name__ == "__main__":
    sys.exit(command.run(main))
