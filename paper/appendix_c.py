"""Localization part by part: the proposal network alone, R-CNN on its proposals, ensembles.

python -m paper.appendix_c --rpn RUN RUN --rcnn RUN RUN

Tests finished runs of `task=localization` as the rows of table 13. Errors in %: of the box of the
true class, as if it were known, and of five predicted classes; means over runs.
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from data.facts import SPLITS
from errors import UserError
from paper import numbers
from paper.appendix_b import measurer
from run import command, result
from training import task

# Fields of config.eval, and rows of table 13: with the true class, with predicted ones.
SEVERAL: dict[str, Any] = {"protocol": "multiscale"}
ALONE, BOTH = "resnet101, RPN", "resnet101, RPN and R-CNN"
RPN: dict[str, tuple[dict[str, Any], str, str]] = {
    "RPN, 1 crop": ({}, f"{ALONE}, 1 crop", ""),
    "RPN, dense": ({}, "", ""),
    "RPN, dense, several sizes": (SEVERAL, f"{ALONE}, dense", f"{ALONE}, dense, predicted classes"),
}
RCNN: dict[str, tuple[dict[str, Any], str, str]] = {
    "RPN and R-CNN": ({}, "", ""),
    "RPN and R-CNN, several sizes": (SEVERAL, "", BOTH),
}
NAMES = ("localization_error", "top5_localization_error", "top5_class_error")


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the options, tests and publishes."""
    p = result.parser("appendix_c", __doc__)
    p.add_argument("--rpn", nargs="+", required=True, help="finished per-class RPNs; an ensemble")
    p.add_argument("--rcnn", nargs="*", default=[], help="finished R-CNNs; an ensemble")
    p.add_argument("--classes_from", nargs="*", default=[], help="classifiers that name classes")
    p.add_argument("--crop", type=command.positive, required=True, help="side of the one crop")
    p.add_argument("--scales", nargs="+", type=int, required=True, help="shorter sides, pixels")
    p.add_argument("--split", default="test", choices=SPLITS, help="validation chooses scales")
    args = p.parse_args(argv)
    rpn, rcnn = (
        [task.opened(folder, "localization") for folder in folders]
        for folders in (args.rpn, args.rcnn)
    )
    for kind, runs in (("rpn", rpn), ("rcnn", rcnn)):
        for one in runs:
            if one.config.detection.network != kind:
                raise UserError(f"--{kind}: {one.workdir} has another detection.network.")
    config = (rcnn or rpn)[0].config  # its batches have room for warped regions
    args.dataset, config.eval.classes_from = config.dataset, tuple(args.classes_from)
    measure = measurer(config, [*rpn, *rcnn], args)
    rows = []
    for runs, options in ((rpn, RPN), (rcnn, RCNN)):
        groups = [[one] for one in runs], [runs] * (len(runs) > 1)
        for together, tests in zip((False, True), groups, strict=True):
            for name, (fields, own, five) in options.items():
                if not tests:
                    continue
                asked = fields | {"image_size": args.crop if "crop" in name else 0}
                results = [measure(test, asked) for test in tests]
                found = [[one[name] for name in NAMES] for one in results]
                papers = _papers(own, five)
                if together:
                    name += f", ensemble of {len(runs)}"
                    papers = _papers("", "ensemble" if five == BOTH else "")
                rows.append([name, len(tests), *papers, *np.mean(found, 0).tolist()])
    every = [{"seed": one.config.seed} for one in (*rpn, *rcnn)]
    whose = ", ".join(args.classes_from) or "the proposal networks' own scores"
    notes = [
        f"{config.dataset} {args.split} instead of ImageNet localization; ResNet-"
        f"{config.model.depth} instead of ResNet-101; classes are predicted by {whose}",
        f"a crop of {args.crop} instead of 224; shorter sides {args.scales}",
        *(f"{one.workdir}: after {one.step} steps" for one in (*rpn, *rcnn)),
    ]
    columns = ["tested", "tests", "paper, true class", "paper, top-5"]
    columns += ["true class", "top-5", "top-5, class alone"]
    table = result.table("", columns, rows)
    title = "Appendix C: localization part by part"
    result.publish(args, title, result.header(args, notes, every), [table], measured=rows)


def _papers(own, five):
    """What rows of table 13 have with the true class and with predicted ones."""
    return [numbers.TABLE13.get(own, (None, None))[0], numbers.TABLE13.get(five, (None, None))[1]]


if __name__ == "__main__":
    sys.exit(command.run(main))
