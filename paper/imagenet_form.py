"""What figure 4, table 2 and table 3 share: ImageNet networks, tested with ten crops."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from paper import experiment, from_workdirs, numbers
from run.workdir import Workdir


def parse(
    name: str,
    description: str,
    argv: Sequence[str] | None,
    depths: Mapping[str, Sequence[int]],
) -> argparse.Namespace:
    """The options of `experiment.parser`, `--networks` and `--depths`.

    Args:
      name, description: of the command.
      argv: what was typed.
      depths: the default of `--depths` for `networks` of 'imagenet' and of 'cifar'.
    """
    p = experiment.parser(name, description, dataset="tfds:imagenet2012")
    p.add_argument(
        "--networks",
        choices=("imagenet", "cifar"),
        help="default: cifar for sets of whole arrays (cifar10, digits, …), else imagenet",
    )
    imagenet, cifar = (" ".join(map(str, depths[form])) for form in ("imagenet", "cifar"))
    p.add_argument(
        "--depths", type=int, nargs="+", help=f"default: {imagenet}, or {cifar} for CIFAR's"
    )
    args = p.parse_args(argv)
    if args.networks is None:
        whole = experiment.uses_cifar_networks(args.dataset)
        args.networks = "cifar" if whole else "imagenet"
    if args.depths is None:
        args.depths = depths[args.networks]
    return args


def title(ours: str, dataset: str) -> str:
    """The title of a result: the paper's, which ends in 'on ImageNet', with the data it has."""
    on_imagenet = dataset == numbers.TABLE2_DATASET
    return ours if on_imagenet else f"{ours.removesuffix('ImageNet')}{dataset}"


def train_and_test(
    args: argparse.Namespace, entries: Sequence[experiment.Entry]
) -> tuple[list[dict[str, Any]], list[str]]:
    """`experiment.train_grid`, then the test of these tables: ten crops.

    CIFAR networks keep their single view (section 4.2).

    Returns:
      `(runs, notes)`, with the final errors of the protocol.
    """
    runs, notes = experiment.train_grid(args, entries)
    if args.networks == "cifar":
        return runs, [*notes, "CIFAR networks, single view, instead of ImageNet's with ten crops"]
    for run in runs:
        run["final"] = ten_crop(run["workdir"])
    return runs, notes


def ten_crop(workdir: str) -> dict[str, Any]:
    """Errors of a run with ten crops."""
    config = Workdir(workdir).read_config()
    config.eval.protocol = "10crop"
    return from_workdirs.tested(config, workdir)
