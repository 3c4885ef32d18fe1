"""What every training command of `paper` shares: arguments, configs, and the grid of runs.

A grid is a list of networks by name, each trained with every rate and seed in a workdir of its own
under `--runs`, which is called after a digest of the run's config: commands that need the same run
share it. Finished runs are read, unfinished ones continued; so a command that was stopped goes on
where it was.
"""

import argparse
import logging
import statistics
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

import train
from configs import cifar10, cifar100, digits, fashion_mnist, mnist_5k, recipes
from configs.fields import FIELDS
from errors import UserError
from run import command, files, logs, result
from run.workdir import Workdir, digest

LOG = logging.getLogger("residual")
RESULTS = ("loss", "top1_error", "top5_error", "images")


class Entry(NamedTuple):
    """One network of a grid.

    Attributes:
      name: of rows, e.g. 'plain56'.
      network: argument of the recipe, e.g. 'plain56'.
      model: fields of `config.model` that differ from the recipe's.
    """

    name: str
    network: str
    model: Mapping[str, Any] = MappingProxyType({})


def parser(
    name: str,
    description: str,
    *,
    depths: Sequence[int] | None = None,
    dataset: str = "cifar10",
) -> command.Parser:
    """`result.parser` with the options that all training commands have.

    Args:
      name, description: of `result.parser`.
      depths: the default of `--depths`; None leaves the option out.
      dataset: the default of `--dataset`.
    """
    p = result.parser(name, description)
    p.add_argument(
        "--dataset", default=dataset, help="cifar10, cifar100, fashion_mnist, digits, folder:PATH …"
    )
    p.add_argument("--data_dir", default="", help="where TFDS keeps prepared data sets")
    if depths:
        p.add_argument("--depths", type=int, nargs="+", default=depths, help="of the networks")
    p.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run per network and seed")
    p.add_argument(
        "--learning_rates", type=float, nargs="+", help="one run each; default: the recipe's rate"
    )
    length = p.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="length of a run; the schedule scales with it")
    length.add_argument("--scale", type=float, help="factor on the length of the recipe's schedule")
    p.add_argument("--batch_size", type=int, help="default: the recipe's")
    p.add_argument(
        "--image_size",
        type=command.positive,
        help="side of the crops (folder:, tfds:); larger images of small sets are averaged to it",
    )
    p.add_argument(
        "--validation_size", type=int, help="bold curve on held-out training images (default: test)"
    )
    p.add_argument("--width", type=int, help="channels of the first stage; default: the recipe's")
    p.add_argument("--bn_group_size", type=int, help="0: all of a device; default: the recipe's")
    p.add_argument("--scan_blocks", action="store_true", help="compile equal blocks once")
    p.add_argument("--runs", default="runs/paper", help="folder of the runs' workdirs")
    return p


def uses_cifar_networks(dataset: str) -> bool:
    """Whether a data set takes the CIFAR networks by default: sets of whole arrays do."""
    return ":" not in dataset


def recipe(dataset: str, network: str, networks: str = "cifar") -> tuple[ConfigDict, list[str]]:
    """The paper's recipe for a network on any data set.

    Args:
      dataset: as `config.dataset`.
      network: e.g. 'plain56' or 'resnet34'.
      networks: 'cifar' (section 4.2) or 'imagenet' (section 3.4).

    Returns:
      `(config, notes)`: notes are sentences for the result.
    """
    if networks == "imagenet":
        config = recipes.imagenet(network)
        config.dataset = dataset
        paper = "tfds:imagenet2012"
        if dataset.startswith("folder:"):
            config.data.test_split = "val"
        elif uses_cifar_networks(dataset):
            config.data.test_split = "test"
    elif dataset == "digits":
        config = digits.get_config(f"{network},paper")
        paper = "CIFAR-10 (digits are 8×8, not 32×32, pixels)"
    else:
        known = {m.__name__: m for m in (cifar10, cifar100, fashion_mnist, mnist_5k)}
        module, paper = known.get(f"configs.{dataset}", cifar10), "cifar10"
        config = module.get_config(network)
        config.dataset = dataset
        if ":" in dataset:
            config.data.update(resident=False, normalization="per_channel")
            config.data.test_split = "val" if dataset.startswith("folder:") else "test"
            config.eval.resize = config.data.image_size
    return config, [] if dataset == paper else [f"{dataset} instead of {paper}"]


def configure(
    args: argparse.Namespace, entry: Entry, seed: int, rate: float | None = None
) -> tuple[ConfigDict, list[str]]:
    """The config of one run of the grid and what was scaled in it; `rate` None: the recipe's.

    A run trains on the full training split, and the curve is that of the test split, as in the
    paper's figures; nothing is selected by it. With `--validation_size` it is that of as many
    images of the training split, which are held out.
    """
    networks = getattr(args, "networks", None) or "cifar"
    config, notes = recipe(args.dataset, entry.network, networks)
    full, batch = config.num_steps, config.batch_size
    paper = "64000 of 128" if networks == "cifar" else "up to 600000 of 256"
    config.update(seed=seed, data_dir=args.data_dir, tensorboard=False)
    config.eval.training_images = True
    _resize(config, args, notes, entry)
    config.model.update(entry.model)
    if not config.model.residual:
        config.model.shortcut = FIELDS["model.shortcut"].default  # it has none: one run, one name
    if rate is not None:
        if rate != config.optim.learning_rate:
            notes.append(f"at learning rate {rate:g}; the recipe's is {config.optim.learning_rate}")
        config.optim.learning_rate = rate
    if args.validation_size:
        config.data.validation_size = args.validation_size
        notes.append(f"the bold curve is of {args.validation_size} held-out training images")
    else:
        config.data.update(validation_size=0, validation_split=config.data.test_split)
        if networks == "cifar":
            notes.append(
                "trained on the whole training split; the bold curve is the test split's error"
            )
    if config.optim.warmup_until_error:
        notes.append(
            f"{config.model.depth} layers, plain or residual: rate "
            f"{config.optim.warmup_learning_rate} until the training error is below "
            f"{100 * config.optim.warmup_until_error:.0f} %, as in section 4.2"
        )
    every = max(1, min(config.eval_every, config.num_steps // 10))
    config.update(
        eval_every=every,
        log_every=max(1, every // 4),
        checkpoint_every=max(every, config.num_steps // 4),
        keep_checkpoints=1,
    )
    if (config.num_steps, config.batch_size) != (64_000, 128):
        notes.append(
            f"{config.num_steps} steps of {config.batch_size} instead of {paper} (the recipe here: "
            f"{full} of {batch}), rate divided by 10 at {_listed(config.optim.boundaries)}"
        )
    return config, notes


def _listed(steps):
    return " and ".join(map(str, steps))


def _resize(config, args, notes, entry):
    factor = args.scale if args.scale is not None else 1.0
    if args.steps is not None:
        factor = args.steps / config.num_steps
    if factor <= 0:
        raise UserError("--steps, --scale: expected a positive number.")
    recipes.scale_schedule(config, factor)
    if args.batch_size is not None:
        config.batch_size = args.batch_size
    whole = config.data.image_size
    if args.image_size is not None and config.data.resident and args.image_size < whole:
        config.data.image_size = args.image_size
        config.augment.pad = max(1, round(config.augment.pad * args.image_size / whole))
        config.eval.scales = (args.image_size,)
        notes.append(
            f"images averaged to {args.image_size}×{args.image_size} pixels, padded by "
            f"{config.augment.pad} for the crops"
        )
    elif args.image_size is not None and not config.data.resident:
        config.data.image_size = args.image_size
        if config.augment.kind == "scale_jitter":
            low, high = (round(args.image_size * side / 224) for side in (256, 480))
            config.augment.update(resize_min=low, resize_max=high)
            config.eval.resize = low
        else:
            config.eval.resize = args.image_size
        notes.append(f"crops of {args.image_size} pixels, resizes in proportion")
    if args.width is not None:
        notes.append(f"{args.width} channels in the first stage instead of {config.model.width}")
        config.model.width = args.width
    if args.bn_group_size is not None:
        images = args.bn_group_size or "all images of a device"
        notes.append(f"BN over {images} instead of {config.model.bn_group_size} images")
        config.model.bn_group_size = args.bn_group_size
    if args.scan_blocks and "dropout" not in entry.model.get("variant", ""):
        config.model.scan_blocks = True


def train_grid(
    args: argparse.Namespace, entries: Sequence[Entry]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Trains (or reads) every network with every rate and seed.

    With several rates a run's name says its own: 'plain56, rate 0.03'.

    Returns:
      `(runs, notes)`: runs as `[{'name', 'seed', 'workdir', 'final', 'training', 'curves'}]`, where
      `final` and `training` are `{'loss', 'top1_error', …}` of the test images and, not augmented,
      of the training images, and `curves` is `{'train': [[step, error %], …], 'validation': …}`;
      notes say what differs from the paper.
    """
    runs, notes = [], []
    rates = args.learning_rates or [None]
    of_a_seed = [
        (Entry(entry.name + suffix, *entry[1:]), rate)
        for rate, suffix in zip(rates, suffixes(args), strict=True)
        for entry in entries
    ]
    # Seed by seed: a stopped grid has whole ones.
    grid = [(seed, entry, rate) for seed in args.seeds for entry, rate in of_a_seed]
    for seed, entry, rate in grid:
        config, run_notes = configure(args, entry, seed, rate)
        notes += [note for note in run_notes if note not in notes]
        LOG.info("run %d of %d: %s, seed %d", len(runs) + 1, len(grid), entry.name, seed)
        runs.append(trained(config, entry.name, args.runs))
    return runs, notes


def trained(config: ConfigDict, name: str, runs: str) -> dict[str, Any]:
    """Trains (or reads) one run below the folder `runs`, as `train_grid` returns it."""
    workdir = workdir_of(config, runs)
    LOG.info("%s, seed %d → %s", name, config.seed, workdir)
    final = train.train(config, workdir)
    lines = logs.read_lines(Workdir(workdir).metrics)
    training = [line for line in lines if line["split"] == logs.TRAINING_IMAGES]
    if not training:
        raise UserError(
            f"{workdir}: this run was trained without eval.training_images, so that its error "
            "on the training images is not known; delete the folder, or take another --runs."
        )
    return {
        "name": name,
        "seed": config.seed,
        "workdir": workdir,
        "final": {k: final[k] for k in RESULTS},
        "training": {k: training[0][k] for k in RESULTS},
        "curves": curves(lines),
    }


def suffixes(args: argparse.Namespace) -> list[str]:
    """What `train_grid` puts behind the names of networks: '' or, of several rates, each."""
    rates = args.learning_rates or [None]
    return [""] if len(rates) == 1 else [f", rate {rate:g}" for rate in rates]


def workdir_of(config: ConfigDict, runs: str) -> str:
    """The folder of a run below `runs`: data set, network, seed and the digest of the config."""
    dataset = "".join(c if c.isalnum() else "_" for c in config.dataset)
    network = f"{'resnet' if config.model.residual else 'plain'}{config.model.depth}"
    return str(files.at(runs, dataset, f"{network}-seed{config.seed}-{digest(config)}"))


def curves(lines: Iterable[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """Error in % over steps, of a run's log: `{'train': [[step, error], …], 'validation': …}`."""
    return {
        split: [
            [line["step"], round(100 * line["top1_error"], 4)]
            for line in lines
            if line["split"] == split
        ]
        for split in ("train", "validation")
    }


def summarise(
    runs: Sequence[Mapping[str, Any]], error: str = "top1_error"
) -> dict[str, dict[str, Any]]:
    """Mean and spread over seeds, `{name: {'mean', 'std', 'values', 'train', 'loss', 'seeds'}}`.

    `mean`, `std` and `values` are of the test images, in %. `train` (in %) and `loss` (in nats) are
    those of the training images, not augmented, each as `{'mean', 'std', 'values'}`.
    """
    summary = {}
    for name in dict.fromkeys(run["name"] for run in runs):
        mine = [run for run in runs if run["name"] == name]
        summary[name] = spread([100 * run["final"][error] for run in mine]) | {
            "train": spread([100 * run["training"][error] for run in mine]),
            "loss": spread([run["training"]["loss"] for run in mine]),
            "seeds": [run["seed"] for run in mine],
        }
    return summary


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard deviation (None of a single value) of `values`, with them."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std, "values": values}
