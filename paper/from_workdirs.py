"""What tables 4 and 5 share: testing given workdirs with a protocol, each only once."""

import argparse
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

import evaluate
from paper import numbers
from run import command, result
from run.workdir import Workdir
from testing import opened_run

LOG = logging.getLogger("residual")
PAPER_SCALES = (224, 256, 384, 480, 640)


def parser(name: str, description: str) -> command.Parser:
    """`result.parser` with the options of a command that tests existing workdirs."""
    p = result.parser(name, description)
    p.add_argument("--workdirs", nargs="+", required=True, help="folders of finished runs")
    p.add_argument("--protocol", default="multiscale", choices=("center", "10crop", "multiscale"))
    p.add_argument("--scales", type=int, nargs="+", help="shorter sides; default: the config's")
    p.add_argument("--split", default="test", help="test, validation or train")
    p.add_argument("--dataset", help="default: the one that the first workdir was trained on")
    p.add_argument("--data_dir", help="default: the first workdir's")
    p.add_argument("--batch_size", type=int, help="images per evaluation step")
    return p


def publish(
    args: argparse.Namespace,
    title: str,
    groups: Sequence[Sequence[str]],
    tables: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
) -> None:
    """Tests groups of workdirs and publishes.

    Args:
      args: parsed options of `parser`.
      title: of the page.
      groups: lists of workdirs; each is tested as one ensemble.
      tables: from the list of what was measured to the tables.
    """
    known = (result.read(args.out, args.name) or {}).get("measured", [])
    bar = tqdm(groups, desc=args.name, unit="test", disable=None)
    measured = [_measured(args, group, known) for group in bar]
    runs = [{"seed": Workdir(folder).read_config().seed} for folder in args.workdirs]
    args.dataset = measured[0]["dataset"]
    result.publish(
        args,
        title,
        result.header(args, _notes(args, measured[0]), runs),
        tables(measured),
        measured=measured,
    )


def _measured(args, workdirs, known):
    first, *others = workdirs
    config = Workdir(first).read_config()
    config.eval.update(protocol=args.protocol, split=args.split, ensemble=tuple(others))
    if args.scales:
        config.eval.scales = tuple(args.scales)
    if args.batch_size is not None:
        config.eval.batch_size = args.batch_size
    config.update(dataset=args.dataset or config.dataset)
    config.update(data_dir=config.data_dir if args.data_dir is None else args.data_dir)
    model = config.model
    name = f"{'resnet' if model.residual else 'plain'}{model.depth}"
    if model.residual and model.depth == 34:
        name += model.shortcut
    return tested(config, first, known) | {"name": name, "workdir": first}


def tested(
    config: ConfigDict, workdir: str, known: Iterable[dict[str, Any]] = ()
) -> dict[str, Any]:
    """`evaluate.run(config, workdir)`, unless `known` or the workdir's last test answers it.

    Args:
      config: of the workdir, with the protocol in `config.eval`.
      workdir: the folder, and with `config.eval.ensemble` those tested with it.
      known: results of earlier tests.
    """
    runs = [opened_run.load(folder) for folder in (workdir, *config.eval.ensemble)]
    question = evaluate.question(config, runs)
    last = _last(Workdir(workdir))
    for one in (*known, *([last] if last else [])):
        if all(one.get(key) == value for key, value in question.items()):
            return one
    return evaluate.run(config, workdir)


def _last(folder):
    """What the workdir's last test found; None when there is none, or a damaged one."""
    try:
        return folder.read(folder.evaluation)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        LOG.warning("%s: %s; tested again.", folder.evaluation, error)
        return None


def _notes(args, measured):
    """What differs from the paper's test."""
    found = []
    if measured["dataset"] != numbers.TABLE2_DATASET:
        found.append(f"{measured['dataset']} {measured['split']} instead of ImageNet")
    if args.protocol != "multiscale":
        found.append(f"{args.protocol} instead of multi-scale testing")
    elif tuple(measured["scales"]) != PAPER_SCALES:
        found.append(f"shorter sides {measured['scales']} instead of {list(PAPER_SCALES)}")
    return found
