"""What figure 4, table 2 and table 3 share: ImageNet networks, tested with ten crops."""

from paper import experiment, from_workdirs
from run.workdir import Workdir


def parser(name, description):
    """`experiment.parser` with the choice between ImageNet's networks and CIFAR's."""
    p = experiment.parser(name, description, dataset="tfds:imagenet2012")
    p.add_argument(
        "--networks",
        choices=("imagenet", "cifar"),
        help="default: cifar for sets of whole arrays (cifar10, digits, …), else imagenet",
    )
    return p


def parse(p, argv, *, depths):
    """Parses, and chooses `networks` and the `depths[networks]` that were left open."""
    args = p.parse_args(argv)
    if args.networks is None:
        whole = experiment.uses_cifar_networks(args.dataset)
        args.networks = "cifar" if whole else "imagenet"
    if args.depths is None:
        args.depths = depths[args.networks]
    return args


def train_and_test(args, entries):
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


def ten_crop(workdir):
    """Errors of a run with ten crops."""
    config = Workdir(workdir).read_config()
    config.eval.protocol = "10crop"
    return from_workdirs.tested(config, workdir)
