"""Pretrained weights on a folder of one's own: which learning rate, and the head alone or all?

    python -m analysis.transfer --data=PATH --init_from=resnet50.safetensors

Trains `configs/finetune.py` at each rate, as a linear probe and in full, chooses by held-out
training images, tests what was chosen, and shows what it confuses (`analysis.confusion`). Each run
has a workdir of its own under `--runs`; stopped, the command goes on where it was. The rates are
those of Chen, Kornblith et al. (SimCLR, ICML 2020, appendix B.8.1) for fine-tuning: 7 from 0.0001
to 0.1, evenly on a logarithmic scale. They fit their linear classifier by L-BFGS; for the head
alone, trained here by SGD, ten times these rates are tried, which is a choice made here.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

import input_pipeline
import train
from analysis import confusion
from configs import command_line, finetune
from run import command, files, logs, result
from run.mesh import make_mesh
from run.workdir import Workdir, digest
from testing import opened_run
from training.check import check

LOG = logging.getLogger("residual")
RATES = tuple(float(f"{rate:.2g}") for rate in np.logspace(-4, -1, 7))
METHODS = {"probe": 10.0, "full": 1.0}  # factor on the rates


class Tried(NamedTuple):
    """One run; errors in percent, None when it diverged."""

    method: str
    rate: float
    workdir: Path
    validation: float | None
    loss: float | None
    test: float | None


def configure(args: Any, method: str, rate: float, held_out: int = 0) -> ConfigDict:
    """The config of one run: `configs/finetune.py` with the options of the command."""
    config = finetune.get_config("probe" if method == "probe" else "")
    config.update(
        dataset=f"folder:{args.data}",
        init_from=args.init_from,
        num_steps=args.steps,
        batch_size=args.batch_size,
        seed=args.seed,
        tensorboard=False,
    )
    config.optim.learning_rate = rate
    config.data.validation_size = held_out
    config = command_line.with_fields(config, ["", *(f"--config.{f}" for f in args.field)])
    return config.copy_and_resolve_references()


def attempt(config: ConfigDict, method: str, runs: str) -> Tried:
    """Trains one run, or reads it when it is finished; a NaN is a result, too."""
    rate = config.optim.learning_rate
    workdir = files.at(runs, f"{method}-{rate:g}-{digest(config)}")
    try:
        test = 100 * train.train(config, str(workdir))["top1_error"]
    except train.Diverged as error:
        LOG.warning("%s: %s", workdir, error)
        return Tried(method, rate, workdir, None, None, None)
    lines = logs.read_lines(Workdir(workdir).metrics)
    last = [line for line in lines if line.get("split") == "validation"][-1]
    return Tried(method, rate, workdir, 100 * last["top1_error"], last["loss"], test)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    p = result.parser("transfer", __doc__, room="analysis")
    p.set_defaults(out="runs/transfer")
    p.add_argument("--data", required=True, help="folder with train/<class>/*, val/<class>/*")
    p.add_argument("--init_from", required=True, help="weight file")
    p.add_argument("--rates", type=float, nargs="+", default=RATES, help="of full fine-tuning")
    p.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    p.add_argument("--steps", type=command.positive, default=500, help="length of each run")
    p.add_argument("--batch_size", type=command.positive, default=64, help="images per step")
    p.add_argument("--held_out", type=float, default=0.1, help="share of images to choose by")
    p.add_argument("--seed", type=int, default=0, help="of every run")
    p.add_argument("--field", action="append", default=[], metavar="NAME=VALUE", help="of a config")
    p.add_argument("--runs", default="runs/transfer", help="folder of the runs' workdirs")
    args = p.parse_args(argv)
    first = configure(args, args.methods[0], args.rates[0])
    mesh = make_mesh()
    check(first, mesh.size)
    data = input_pipeline.open_data(first, mesh)
    number, names = data.split_size("train"), data.facts.label_names
    counts = confusion.training_counts(first, names) or []
    for name, count in zip(names, counts, strict=False):
        LOG.info("%6d images of %s", count, name)
    held_out = max(1, round(args.held_out * number))
    tried = [
        attempt(configure(args, method, rate * METHODS[method], held_out), method, args.runs)
        for method in args.methods
        for rate in args.rates
    ]
    publish(args, tried, number - held_out, held_out)


def publish(args: Any, tried: Sequence[Tried], trained: int, held_out: int) -> None:
    """Writes and prints the table of runs, the classes, and the picture of the best run."""
    head = result.header(args, ["it has no such experiment"], runs=[{"seed": args.seed}])
    head |= {"dataset": f"folder:{args.data}"}
    whole = [one for one in tried if one.validation is not None]
    best = min(whole, key=lambda one: (one.validation, one.loss), default=None)
    columns = ("method", "learning rate", "held-out error (%)", "test error (%)", "note")
    notes = {one.workdir: "diverged: NaN" for one in tried if one.validation is None}
    notes |= {best.workdir: "chosen"} if best else {}
    rows = [
        [one.method, f"{one.rate:g}", one.validation, one.test, notes.get(one.workdir)]
        for one in tried
    ]
    tables = [result.table("Runs", columns, rows)]
    remarks = [f"{args.steps} steps each, {trained} training images; chosen by {held_out} others."]
    details: dict[str, Any] = {}
    if best:
        found = confusion.report(opened_run.load(str(best.workdir)), "test", files.at(args.out))
        columns = ("class", "training images", "tested", "right (%)", "most often taken for")
        tables.append(result.table("Classes of the chosen run", columns, found["classes"]))
        remarks.append(found["summary"])
        details = {"figures": [Path(found["path"]).name], "confusion": found}
    result.publish(args, f"Transfer to {args.data}", head, tables, remarks=remarks, **details)


if __name__ == "__main__":
    sys.exit(command.run(main))
