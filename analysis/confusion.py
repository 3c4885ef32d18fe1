"""What a trained network confuses: the size of each class, the confusion matrix, the worst images.

    python -m analysis.confusion --workdir=runs/x

Of an image folder also how many training images each class has, since a network that has seen few
of a class finds few of it. Writes `confusion.json` and `confusion.png`: on the left the share of
each true class (row) that was taken for each class (column), on the right the images whose own
class got the smallest probability.
"""

import argparse
import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from analysis import subject
from data.class_names import readable
from data.folder import scan
from data.normalization import normalize
from errors import UserError
from run import command, files, plotting
from run.provenance import provenance
from testing.opened_run import OpenedRun

WORST = 12  # images in the picture
NUMBERED = 20  # classes up to which the matrix shows numbers
FOLDER = "folder:"


class Mistake(NamedTuple):
    """One image; `own` is the probability that its class got, `name` that of its file."""

    own: float
    position: int
    image: np.ndarray
    label: int
    predicted: int
    probability: float
    name: str = ""


def measure(run: OpenedRun, split: str) -> tuple[np.ndarray, list[Mistake]]:
    """Tests a network's images one by one, single view.

    Args:
      run: the opened run; its config names the data.
      split: 'train', 'validation' or 'test'.

    Returns:
      `(matrix, worst)`: int64 `[true class, predicted class]`, counts of images; the `WORST` images
      whose own class got least, wrong or not, the worst first.

    Raises:
      UserError: the data cannot be read or have other classes, or a probability is NaN.
    """
    data = subject.open_data(run, split)
    score, classes = _compiled(run.model), run.facts.num_classes
    matrix, worst, start = np.zeros((classes, classes), np.int64), [], 0
    for batch in data.evaluation(split):
        found = np.asarray(score(run.variables, run.facts.normalization, batch["image"]))
        valid, labels = np.flatnonzero(batch["valid"]), batch["label"]
        if not np.isfinite(found[valid]).all():
            raise UserError(
                f"{run.workdir}: the network's probabilities are not finite; its weights or the "
                "statistics of its batch normalisation are damaged, or were never trained."
            )
        for i in valid:
            label, predicted = int(labels[i]), int(found[i].argmax())
            matrix[label, predicted] += 1
            own, best = float(found[i, label]), float(found[i, predicted])
            worst.append(Mistake(own, start + int(i), batch["image"][i], label, predicted, best))
        worst = sorted(worst, key=lambda one: one.own)[:WORST]
        start += len(labels)
    if not matrix.any():
        raise UserError(f"{run.workdir}: its data has no {split!r} images; choose --split.")
    if not run.config.data.resident:
        source = data.source(split)
        worst = [one._replace(name=source[one.position].name) for one in worst]
    return matrix, worst


@functools.lru_cache(maxsize=2)
def _compiled(model: Any) -> Callable[..., jax.Array]:
    @jax.jit
    def score(variables: Any, normalization: Any, images: jax.Array) -> jax.Array:
        logits, _ = model.apply(variables, normalize(images, *normalization), train=False)
        return jax.nn.softmax(jnp.asarray(logits, jnp.float32))

    return score


def training_counts(config: Any, label_names: Sequence[str]) -> list[int] | None:
    """Training images of each class of an image folder, before any are held out; else None."""
    if not config.dataset.startswith(FOLDER):
        return None
    root = files.at(config.dataset.removeprefix(FOLDER))
    classes = scan(root, config.data.train_split, config.data_dir)
    return [len(classes.get(name, ())) for name in label_names]


def by_class(
    label_names: Sequence[str], counts: Sequence[int] | None, matrix: np.ndarray
) -> list[list[Any]]:
    """Rows of class, training images, tested images, share found (%), most frequent mistake."""
    rows = []
    for i, name in enumerate(readable(label_names)):
        tested, others = int(matrix[i].sum()), matrix[i].copy()
        others[i] = 0
        mistake = readable(label_names)[int(others.argmax())] if others.any() else None
        found = 100 * matrix[i, i] / tested if tested else None
        rows.append([name, counts[i] if counts else None, tested, found, mistake])
    return rows


def imbalance(counts: Sequence[int], matrix: np.ndarray) -> str:
    """One sentence on how unequal the classes are, and what that makes of the error."""
    recalls = [row[i] / row.sum() for i, row in enumerate(matrix) if row.any()]
    usual = 1 - matrix.sum(1).max() / matrix.sum()
    return (
        f"The largest class has {max(counts)} images and the smallest {min(counts)}. "
        f"Error {100 * (1 - np.trace(matrix) / matrix.sum()):.2f} %; averaged over classes "
        f"{100 * (1 - np.mean(recalls)):.2f} %; who always says the most frequent class errs in "
        f"{100 * usual:.2f} %."
    )


def draw(
    path: Path, label_names: Sequence[str], matrix: np.ndarray, worst: Sequence[Mistake]
) -> Path:
    """Draws the confusion matrix and the worst images; returns the picture's path."""
    names = [_plain(name) for name in readable(label_names)]
    pyplot = plotting.pyplot()
    figure = pyplot.figure(figsize=(15, 7.5), layout="constrained")
    left, right = figure.subfigures(1, 2)
    axis = left.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set(xlabel="predicted class", ylabel="true class", title="share of each true class")
    if len(names) <= NUMBERED:
        axis.set_xticks(range(len(names)), names, rotation=90)
        axis.set_yticks(range(len(names)), names)
        for (y, x), count in np.ndenumerate(matrix):
            colour = "white" if shares[y, x] > 0.5 else "black"
            axis.text(x, y, str(count), ha="center", va="center", color=colour, fontsize=8)
    right.suptitle("images whose own class got least")
    for cell in right.subplots(3, 4).flat:
        cell.axis("off")
    for cell, one in zip(right.axes, worst, strict=False):
        cell.imshow(one.image.squeeze(), cmap="gray")
        text = f"{names[one.label]} {100 * one.own:.1f} %\ntaken for {names[one.predicted]}"
        cell.set_title(f"{text} {100 * one.probability:.0f} %", fontsize=7)
    return plotting.save(figure, path, dpi=100)


def _plain(name):
    """A name as matplotlib draws it: `$` begins no formula."""
    short = name if len(name) <= 20 else f"{name[:19]}…"
    return short.replace("$", r"\$")


def report(run: OpenedRun, split: str, folder: Path) -> dict[str, Any]:
    """Measures and draws; returns what the JSON holds, with the picture's `path`."""
    matrix, worst = measure(run, split)
    names = run.facts.label_names
    counts = training_counts(run.config, names)
    path = draw(folder / "confusion.png", names, matrix, worst)
    return {
        "workdir": run.workdir,
        "split": split,
        "matrix": matrix.tolist(),
        "classes": by_class(names, counts, matrix),
        "summary": imbalance(counts or matrix.sum(1).tolist(), matrix),
        "worst": [one._asdict() | {"image": None} for one in worst],
        "path": str(path),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = subject.parser("confusion", __doc__, several=False)
    parser.add_argument("--split", choices=subject.SPLITS, default="test", help="images to test")
    args: argparse.Namespace = parser.parse_args(argv)
    [run], folder = subject.open_workdirs(args), files.at(args.out)
    found = report(run, args.split, folder)
    for name, trained, tested, share, mistake in found["classes"]:
        of = "" if trained is None else f", {trained} to train on"
        right = "–" if share is None else f"{share:.1f} %"
        print(f"{name}: {right} of {tested} right{of}; taken for {mistake or 'no other'}")
    for one in found["worst"]:
        print(f"{100 * one['own']:6.2f} %  {one['name'] or one['position']}")
    print(found["summary"])
    text = json.dumps({"header": provenance(args.command)} | found, indent=1) + "\n"
    print(f"{files.write_text(folder / 'confusion.json', text)}, {found['path']}")


if __name__ == "__main__":
    sys.exit(command.run(main))
