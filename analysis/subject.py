"""What is analysed: the network of a workdir and images of its data; and where results go."""

import argparse
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import input_pipeline
from errors import UserError
from run import command, files, plotting, result
from run.mesh import make_mesh
from run.workdir import Workdir
from testing import fitting, opened_run
from testing.opened_run import OpenedRun

SPLITS = ("test", "validation", "train")


def parser(
    name: str,
    description: str,
    *,
    images: int = 0,
    several: bool = True,
    required: bool = True,
) -> command.Parser:
    """The arguments of `python -m analysis.<name>`.

    Args:
      name, description: of `result.parser`.
      images: the default of `--images`; 0 leaves it and `--split` out.
      several: whether `--workdir` may list runs, e.g. the seeds of a network.
      required: whether there is nothing to do without a run.
    """
    p = result.parser(name, description, "analysis", out="<workdir>/analysis")
    many = {"nargs": "+", "help": "finished runs; of several seeds, means and spreads are shown"}
    one = {"help": "folder of a run with a finished checkpoint"}
    p.add_argument("--workdir", required=required, default=[], **(many if several else one))
    p.set_defaults(out="")
    p.add_argument("--which", choices=("last", "best"), default="last", help="checkpoint")
    p.add_argument(
        "--on_change",
        choices=("error", "accept"),
        default="error",
        help="accept: go on with data that have changed since the run began",
    )
    if images:
        p.add_argument("--images", type=command.positive, default=images, help="to measure on")
        p.add_argument("--split", choices=SPLITS, default="test", help="where they are from")
    return p


def open_workdirs(args: argparse.Namespace) -> list[OpenedRun]:
    """The runs in `--workdir`; without `--out`, results go into the first one's folder.

    Raises:
      UserError: one holds no finished checkpoint.
    """
    folders = args.workdir if isinstance(args.workdir, list) else [args.workdir]
    runs = [opened_run.load(folder, which=args.which) for folder in folders]
    for run in runs:
        run.config.data.on_change = args.on_change
    args.out = args.out or str(Workdir(folders[0]).analysis if folders else "results")
    return runs


def network_name(model: Mapping[str, Any]) -> str:
    """What a `config.model` describes, in a few words: 'plain56', 'resnet56, shortcut × 0.5'."""
    parts = [f"{'resnet' if model['residual'] else 'plain'}{model['depth']}"]
    parts += [model["variant"]] * (model["variant"] != "none")
    parts += ["pre-activated"] * model["preactivation"]
    scales = (("shortcut", model["shortcut_scale"]), ("branch", model["residual_scale"]))
    return ", ".join(parts + [f"{name} × {scale:g}" for name, scale in scales if scale != 1])


def by_network(measured: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The seeds of each network."""
    found: dict[str, list[dict[str, Any]]] = {}
    for one in measured:
        found.setdefault(one["network"], []).append(one)
    return found


def by_state(measured: Iterable[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The seeds of each network in each state, 'initialised' or 'trained'."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in measured:
        found.setdefault((one["network"], one["state"]), []).append(one)
    return found


def open_data(run: OpenedRun, split: str) -> Any:
    """The data that a network was trained on, for one device, in batches of its training's size.

    Raises:
      UserError: they cannot be read, or the classes or the split are no longer what they were.
    """
    config = run.config.copy_and_resolve_references()
    config.eval.update(batch_size=config.batch_size, split=split, precise_bn=False)
    data = input_pipeline.open_data(config, make_mesh(jax.devices()[:1]))
    fitting.check([run], data, config)
    return data


def load_images(run: OpenedRun, split: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The first images of a split of the data that a network was trained on.

    Returns:
      `(images, labels)`: uint8 `[number, height, width, channels]`, int32 `[number]`; fewer when
      the split has fewer.

    Raises:
      UserError: see `open_data`; or the split has no image.
    """
    data = open_data(run, split)
    if not data.split_size(split):
        raise UserError(f"{run.workdir}: its data has no {split!r} images; choose --split.")
    needed = -(-number // run.config.batch_size)
    batches = list(itertools.islice(data.evaluation(split), needed))
    valid, images, labels = (
        np.concatenate([batch[key] for batch in batches]) for key in ("valid", "image", "label")
    )
    return images[valid][:number], labels[valid][:number]


def publish(
    args: argparse.Namespace,
    runs: Sequence[OpenedRun],
    title: str,
    tables: Sequence[dict[str, Any]],
    figure: Any = None,
    figures: Sequence[str] = (),
    **details: Any,
) -> None:
    """Writes `<out>/<name>.json` and `.md`, the figure as `.svg` and `.png`; prints the tables.

    Args:
      args: of a `parser`, after `open_workdirs`.
      runs: what was measured.
      title, tables, figures, details: of `run.result.publish`.
      figure: of matplotlib, or None.
    """
    notes = dict.fromkeys(
        f"{network_name(run.config.model)} of width {run.config.model.width}, {run.step} steps of "
        f"{run.config.batch_size}"
        for run in runs
    )
    seeds = getattr(args, "seeds", [run.config.seed for run in runs])  # of random weights, or runs
    args.dataset = ", ".join(dict.fromkeys(run.config.dataset for run in runs))
    if figure:
        path = files.at(args.out, f"{args.name}.svg")
        plotting.save(figure, path.with_suffix(".png"), dpi=120, bbox_inches="tight")
        plotting.save(figure, path, metadata={"Date": None}, bbox_inches="tight")
        figures = [path.name, *figures]
    head = result.header(args, list(notes), [{"seed": seed} for seed in seeds])
    result.publish(args, title, head, tables, figures=figures, **details)


def spread(values: Iterable[float | None]) -> str | None:
    """Mean of finite numbers of any size, and their standard deviation if they are several.

    An exact zero is '0'. None when there is no value.
    """
    kept = [value for value in values if value is not None]
    if not kept:
        return None
    deviation = f" ± {np.std(kept, ddof=1):.2g}" if len(kept) > 1 and np.ptp(kept) else ""
    return f"{np.mean(kept):.3g}{deviation}"


def stages(endpoints: Iterable[str]) -> list[str]:
    """Names of the spatial endpoints in the network's order: 'stem', 'stage1', …"""
    return ["stem", *sorted(name for name in endpoints if name.startswith("stage"))]


def mosaic(images: np.ndarray, side: int) -> np.ndarray:
    """Images side by side until they fill a square: `[1, ≥ side, ≥ side, channels]`.

    Args:
      images: `[number, height, width, channels]`; repeated when there are too few.
      side: in pixels.
    """
    _, height, width, channels = images.shape
    rows, columns = -(-side // height), -(-side // width)
    tiles = np.resize(np.arange(len(images)), rows * columns)
    grid = images[tiles].reshape(rows, columns, height, width, channels)
    return grid.transpose(0, 2, 1, 3, 4).reshape(1, rows * height, columns * width, channels)


def deepest(networks: Iterable[Iterable[str]]) -> list[str]:
    """The network, as names of its blocks, on whose axis all others can be drawn."""
    return max(map(list, networks), key=lambda blocks: (len(set(_stages(blocks))), len(blocks)))


def places(blocks: Iterable[str], axis: Sequence[str]) -> list[float]:
    """Where blocks stand among those of the `deepest` network, counted from 1: stage by stage."""
    ours, theirs = _stages(blocks), _stages(axis)
    return [
        0.5 + theirs.index(s) + (i - ours.index(s) + 0.5) * theirs.count(s) / ours.count(s)
        for i, s in enumerate(ours)
    ]


def _stages(blocks):
    return [block.partition("/")[0] for block in blocks]


def mark_stages(axis: Any, blocks: Sequence[str]) -> None:
    """Draws lines between the stages of `['stage1/block1', …]`, counted from 1; names them."""
    stages = _stages(blocks)
    axis.margins(y=0.1)  # room for the names
    for stage in dict.fromkeys(stages):
        first = stages.index(stage) + 1
        if first > 1:
            axis.axvline(first - 0.5, color="k", lw=0.8, ls="--")
        middle = first + (stages.count(stage) - 1) / 2
        where = {"transform": axis.get_xaxis_transform(), "ha": "center", "va": "top"}
        axis.text(middle, 0.98, stage, fontsize="small", **where)


def legend_below(axis: Any) -> None:
    """A legend under the axes, where it covers no curve."""
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
