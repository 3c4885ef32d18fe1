"""What tables 7 to 14 share: the paper's numbers, and beside them those of finished detectors."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from errors import UserError
from paper import numbers
from run import logs, result
from run.workdir import Workdir


class Table(NamedTuple):
    """A table of the appendices.

    Attributes:
      title: of the page; "Table 7: …" is `paper.table7`'s.
      rows: the paper's, in %, by what was tested.
      columns: what its numbers are.
      ours: the columns of our runs, and of each the name in a test's result.
      dataset: the paper's, as `config.dataset`.
    """

    title: str
    rows: Mapping[str, Any]
    columns: tuple[str, ...]
    ours: Mapping[str, str]
    dataset: str

    @property
    def name(self) -> str:
        """The command's."""
        return self.title.split(":")[0].replace("Table ", "table")

    def tables(self, measured: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
        """The paper's rows, and below them ours; without any, one that says so."""
        rows = [
            [
                name,
                *(values if isinstance(values, tuple) else (values,)),
                *(None for _ in self.ours),
            ]
            for name, values in self.rows.items()
        ]
        for one in measured or [
            {"name": "ours"} | dict.fromkeys(self.ours.values(), result.NOT_RUN)
        ]:
            values = [one.get(key) for key in self.ours.values()]
            rows.append([one["name"], *(None for _ in self.columns), *values])
        return [result.table("", ["network", *self.columns, *self.ours], rows)]


VOC, COCO = {"ours, mAP": "mAP"}, {"ours, at IoU 0.5": "AP50", "ours": "AP"}
TOP5 = {"ours, top-5": "top5_localization_error"}
TABLES = (
    Table(
        "Table 7: detection on Pascal VOC",
        numbers.TABLE7,
        ("VOC 2007 test", "VOC 2012 test"),
        VOC,
        "Pascal VOC",
    ),
    Table("Table 8: detection on COCO", numbers.TABLE8, ("at IoU 0.5", "AP"), COCO, "COCO"),
    Table(
        "Table 9: COCO with what appendix B adds",
        numbers.TABLE9,
        ("val, at IoU 0.5", "val", "test-dev, at IoU 0.5", "test-dev"),
        COCO,
        "COCO",
    ),
    Table(
        "Table 10: Pascal VOC 2007 with what appendix B adds",
        numbers.TABLE10,
        ("VOC 2007 test",),
        VOC,
        "Pascal VOC 2007",
    ),
    Table(
        "Table 11: Pascal VOC 2012 with what appendix B adds",
        numbers.TABLE11,
        ("VOC 2012 test",),
        VOC,
        "Pascal VOC 2012",
    ),
    Table(
        "Table 12: ImageNet detection",
        numbers.TABLE12,
        ("val2", "test"),
        VOC,
        "ImageNet's 200 classes of detection",
    ),
    Table(
        "Table 13: ImageNet localization, part by part",
        numbers.TABLE13,
        ("error, true class", "top-5 error"),
        {"ours, true class": "localization_error"} | TOP5,
        "ImageNet localization",
    ),
    Table(
        "Table 14: ImageNet localization",
        numbers.TABLE14,
        ("top-5 error, val", "top-5 error, test"),
        TOP5,
        "ImageNet localization",
    ),
)


def main(name: str, description: str, argv: Sequence[str] | None = None) -> None:
    """Parses the options of the command `name`, reads the runs and publishes."""
    [table] = (one for one in TABLES if one.name == name)
    p = result.parser(name, description)
    p.add_argument("--workdirs", nargs="*", default=[], help="folders of finished runs")
    args = p.parse_args(argv)
    measured = [_measured(folder, table) for folder in args.workdirs]
    args.dataset = ", ".join(sorted({one["dataset"] for one in measured})) or None
    notes = [f"{args.dataset} instead of {table.dataset}" if measured else "nothing is run"]
    head = result.header(args, notes, measured)
    result.publish(args, table.title, head, table.tables(measured), measured=measured)


def _measured(folder, table):
    """A run's last test: by `main.py --mode=evaluate`, or else at its end."""
    workdir = Workdir(folder)
    config, last = workdir.read_config(), workdir.evaluation
    tested = workdir.read(last) if last.exists() else logs.final_line(folder)
    if tested is None or not set(table.ours.values()) <= set(tested):
        raise UserError(
            f"{folder}: expected a run whose test has {', '.join(table.ours.values())}; train or "
            "test one, e.g. python main.py --config=configs/detection/scenes.py."
        )
    network = f"resnet{config.model.depth}{_parts(config, tested)}"
    name = f"ours: {network} on {config.dataset}, {folder}"
    return tested | {"name": name, "dataset": config.dataset, "seed": config.seed}


def _parts(config, tested):
    """How a localizer was tested, in the words of table 13."""
    if config.task != "localization":
        return ""
    parts = ["RPN and R-CNN" if config.detection.network == "rcnn" else "RPN"]
    several = tested.get("protocol") == "multiscale"
    parts.append("1 crop" if tested.get("crop") else "several sizes" if several else "dense")
    if (number := len(tested.get("networks", ()))) > 1:
        parts.append(f"ensemble of {number}")
    return "".join(f", {part}" for part in parts)
