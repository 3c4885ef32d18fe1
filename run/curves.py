"""The plot of a run's curves."""

from run import plotting
from run.logs import read_lines
from run.workdir import Workdir


def plot_curves(workdir: Workdir) -> None:
    """Draws top-1 error and loss over steps from metrics.jsonl into `curves.png`.

    As in the paper's figures, thin lines are training and bold lines are held-out images.
    """
    lines = read_lines(workdir.metrics)
    figure, axes = plotting.pyplot().subplots(1, 2, figsize=(10, 4), layout="constrained")
    panels = (("top1_error", "top-1 error (%)", 100), ("loss", "cross-entropy", 1))
    styles = {"train": ("C0", 1), "validation": ("C1", 2.5), "test": ("C3", 2.5)}
    for axis, (name, title, unit) in zip(axes, panels, strict=True):
        for split, (colour, width) in styles.items():
            points = [
                (line["step"], unit * line[name])
                for line in lines
                if line.get("split") == split and name in line
            ]
            if points:
                marker = "o" if len(points) == 1 else None
                axis.plot(*zip(*points, strict=True), colour, lw=width, marker=marker, label=split)
        axis.set(xlabel="step", ylabel=title)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend()
    plotting.save(figure, workdir.curves, dpi=120)
