"""The plot of a run's curves."""

from collections.abc import Callable
from typing import Any

from run import plotting
from run.logs import TRAINING_IMAGES, error, read_lines
from run.workdir import Workdir


def plot_curves(workdir: Workdir) -> None:
    """Draws error and loss over steps from metrics.jsonl into `curves.png`.

    As in the paper's figures, thin lines are training and bold lines are held-out images. Training
    batches are drawn as they were trained on, and the legend says what was done to them.
    """
    if not plotting.can_draw(workdir.curves.name):
        return
    lines, augment = read_lines(workdir.metrics), workdir.read_config().augment
    treated = {"augmented": augment.kind != "none", "mixed": augment.mixup or augment.cutmix}
    words = " and ".join(word for word, was in treated.items() if was)
    labels = {"train": f"training batches{words and f', {words}'}"}
    labels[TRAINING_IMAGES] = "training images as they are"
    figure, axes = plotting.pyplot().subplots(1, 2, figsize=(10, 4), layout="constrained")
    panels: list[tuple[str, float, Callable[[dict], Any]]] = [
        ("error (%)", 100, error),
        ("loss", 1, lambda line: line.get("loss")),
    ]
    styles = {"train": ("C0", 1), "validation": ("C1", 2.5), "test": ("C3", 2.5)}
    styles[TRAINING_IMAGES] = ("C0", 2.5)
    for axis, (title, unit, value) in zip(axes, panels, strict=True):
        for split, (colour, width) in styles.items():
            points = [
                (line["step"], unit * found)
                for line in lines
                if line.get("split") == split and (found := value(line)) is not None
            ]
            if points:
                marker, label = "o" if len(points) == 1 else None, labels.get(split, split)
                axis.plot(*zip(*points, strict=True), colour, lw=width, marker=marker, label=label)
        axis.set(xlabel="step", ylabel=title)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    plotting.save(figure, workdir.curves, dpi=120)
