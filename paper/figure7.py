"""Figure 7: standard deviation of each 3×3 layer's response, plain against residual (section 4.2).

    python -m paper.figure7 --dataset=digits --depths 20 56         # reads figure6's runs
    python -m paper.figure7 --workdirs runs/a runs/b

A layer's response is its output after BN, before the ReLU or the addition, over test images, with
the statistics of testing. Left: in the order of the layers; right: sorted. The options are those of
`paper.figure6`; with the same ones nothing is trained again.
"""

import collections
import functools
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from data.normalization import normalize
from errors import UserError
from input_pipeline import open_data
from paper import degradation, experiment, plots
from run import command, logs, plotting, result
from run.mesh import make_mesh
from run.workdir import Workdir
from testing import opened_run

TITLE = "Figure 7: standard deviations of layer responses"
IMAGES = 1000
LEARNED = 0.9  # of chance level: with a larger test error a network did not learn


def responses(workdir: str, images: int = IMAGES) -> dict[str, Any]:
    """Standard deviation of every 3×3 layer of a run's network over test images.

    Args:
      workdir: of a finished run.
      images: at most this many images of the test split.

    Returns:
      `{'layers': names, 'std': floats}` in the order of the network; `'error'`, the run's test
      error, and `'chance'`, that of guessing, are fractions (None: the run has not ended).

    Raises:
      UserError: the network does not normalise after its convolutions.
    """
    run = opened_run.load(workdir)
    if run.model.preactivation or run.model.variant == "bn_after_addition":
        raise UserError(
            f"{workdir}: this network has no BN between its convolutions and the addition; "
            "figure 7 compares networks of the original form (model.variant='none')."
        )
    batches = open_data(run.config, make_mesh(jax.devices()[:1])).evaluation("test")
    sums, seen = None, 0
    for batch in batches:
        valid = batch["valid"] & (np.cumsum(batch["valid"]) <= images - seen)
        part = _moments(run.model, run.variables, run.facts.normalization, batch["image"], valid)
        part = jax.tree.map(lambda x: np.asarray(x, np.float64), part)
        sums = part if sums is None else jax.tree.map(np.add, sums, part)
        seen += int(valid.sum())
        if seen >= images:
            break
    std = {name: np.sqrt(max(q / n - (s / n) ** 2, 0)) for name, (n, s, q) in sums.items()}
    final = logs.final_line(workdir)
    return {
        "layers": list(std),
        "std": [float(x) for x in std.values()],
        "error": final and final["top1_error"],
        "chance": 1 - 1 / len(run.facts.label_names),
    }


@functools.partial(jax.jit, static_argnums=0)  # one program for all seeds
def _moments(model, variables, normalization, images, valid):
    """Count, sum and sum of squares of each 3×3 layer's response over the valid images."""
    # An OrderedDict keeps the order of the layers through jit, where a dictionary is sorted.
    convs, moments = {}, collections.OrderedDict()

    def record(next_fun, args, kwargs, context):
        output = next_fun(*args, **kwargs)
        name = "/".join(context.module.path)
        if context.method_name != "__call__":
            return output
        kernel = context.module.variables.get("params", {}).get("kernel")
        if kernel is not None and kernel.shape[:-2] == (3, 3):
            convs[_norm_of(name)] = name
        elif isinstance(context.module, nn.BatchNorm) and name in convs:
            weights = valid.astype(jnp.float32).reshape(-1, 1, 1, 1)
            x = output.astype(jnp.float32)
            number = weights.sum() * (x.size / len(valid))
            moments[convs[name]] = (number, (weights * x).sum(), (weights * x * x).sum())
        return output

    x = normalize(images, *normalization)
    with nn.intercept_methods(record):
        model.apply(variables, x, train=False)
    return moments


def _norm_of(conv):
    return conv.replace("stem_conv", "stem_bn").replace("/conv", "/bn")


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the options, trains what is missing, measures and publishes."""
    parser = experiment.parser("figure7", __doc__, depths=[20, 56, 110])
    parser.add_argument("--workdirs", nargs="+", help="existing runs instead of a grid")
    parser.add_argument("--images", type=int, default=IMAGES, help="test images to measure on")
    args = parser.parse_args(argv)
    if args.workdirs:
        configs = [Workdir(w).read_config() for w in args.workdirs]
        runs = [
            {"name": Path(w).name, "seed": config.seed, "workdir": w}
            for w, config in zip(args.workdirs, configs, strict=True)
        ]
        args.dataset, notes = configs[0].dataset, ["from existing workdirs"]
    else:
        grid = degradation.entries(("plain", "resnet"), args.depths)
        runs, notes = experiment.train_grid(args, grid)
    measured: dict[str, list] = {}
    for run in tqdm(runs, desc="layer responses", unit="run", disable=None):
        one = responses(run["workdir"], args.images) | {"seed": run["seed"]}
        measured.setdefault(run["name"], []).append(one)
    series = {name: _over_seeds(of_seeds) for name, of_seeds in measured.items()}
    drawn = [name for name, one in series.items() if one["learned"]] or list(series)
    result.publish(
        args,
        TITLE,
        result.header(args, notes, runs),
        tables(series, drawn),
        figures=[draw(series, drawn, args.out, experiment.suffixes(args))],
        remarks=[
            "Means over seeds; dashed: plain networks, solid: residual ones. A network whose mean "
            f"test error is above {LEARNED:.0%} of chance level did not learn: its responses are "
            "in the table, and are not drawn where others are.",
            "The paper gives no numbers for this figure, only curves: residual networks have "
            "smaller responses than plain ones, deeper residual networks smaller than shallow.",
        ],
        series=series,
    )


def _over_seeds(runs):
    errors = [run["error"] for run in runs if run["error"] is not None]
    return {
        "layers": runs[0]["layers"],
        "std": np.mean([run["std"] for run in runs], axis=0).tolist(),
        "mean": experiment.spread([float(np.mean(run["std"])) for run in runs]),
        "median": experiment.spread([float(np.median(run["std"])) for run in runs]),
        "error": experiment.spread([100 * error for error in errors]) if errors else None,
        "learned": not errors or bool(np.mean(errors) <= LEARNED * runs[0]["chance"]),
        "seeds": [run["seed"] for run in runs],
    }


def tables(series: Mapping[str, Any], drawn: Sequence[str]) -> list[dict[str, Any]]:
    """Mean and median of the layers' standard deviations per network, over seeds."""
    rows = []
    for name, one in series.items():
        spreads = [one[key] and result.ours(one[key]) for key in ("mean", "median", "error")]
        rows.append([name, len(one["std"]), *spreads, "yes" if name in drawn else "no"])
    columns = ["network", "3×3 layers", "mean std", "median std", "test error (%)", "drawn"]
    return [result.table("", columns, rows)]


def draw(
    series: Mapping[str, Any], drawn: Sequence[str], out: str, suffixes: Sequence[str] = ("",)
) -> str:
    """Standard deviations over layers, in the original and in sorted order; a row for a rate."""
    figure, axes = plotting.pyplot().subplots(
        len(suffixes),
        2,
        figsize=(10, 3.8 * len(suffixes)),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    depths = sorted({_depth(name) for name in series})
    for row, suffix in zip(axes, suffixes, strict=True):
        for name in drawn:
            if not name.endswith(suffix):
                continue
            colour = plots.COLOURS[depths.index(_depth(name)) % len(plots.COLOURS)]
            style = {"color": colour, "ls": "--" if name.startswith("plain") else "-", "lw": 1.4}
            std = series[name]["std"]
            for axis, values in zip(row, (std, sorted(std, reverse=True)), strict=True):
                axis.plot(range(1, len(std) + 1), values, label=name.removesuffix(suffix), **style)
        row[0].set(title=f"original order{suffix}", xlabel="layer index")
        row[0].set(ylabel="standard deviation of the response")
        row[1].set(title=f"sorted by magnitude{suffix}", xlabel="layer index (sorted)")
        row[1].legend(fontsize="small")
        for axis in row:
            axis.grid(alpha=0.25)
    axes[0, 0].set_ylim(bottom=0)  # shared by all
    return plots.save(figure, out, "figure7")


def _depth(name):
    numbers = re.findall(r"\d+", name)
    return int(numbers[0]) if numbers else 0


if __name__ == "__main__":
    sys.exit(command.run(main))
