"""The plot of a run's curves says what its lines are."""

import json

import pytest

from configs import base, recipes
from run import curves, files, logs, plotting
from run.workdir import Workdir


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "training batches, augmented and mixed"),
        ({"mixup": 0.0}, "training batches, augmented"),
        ({"mixup": 0.0, "kind": "none"}, "training batches"),
    ],
)
def test_the_legend_says_what_was_done_to_the_training_batches(
    tmp_path, monkeypatch, change, words
):
    workdir, config = Workdir(tmp_path), recipes.digits()
    config.augment.update(change)
    assert config.eval.training_images
    files.write_text(workdir.config, json.dumps(base.to_dict(config)))
    lines = [(10, "train", 0.5), (20, "train", 0.4), (20, logs.TRAINING_IMAGES, 0.1)]
    lines.append((20, "test", 0.2))
    rows = [{"step": s, "split": k, "top1_error": e, "loss": e} for s, k, e in lines]
    files.write_text(workdir.metrics, "".join(json.dumps(row) + "\n" for row in rows))
    drawn = []
    monkeypatch.setattr(plotting, "save", lambda figure, *_, **__: drawn.append(figure))
    curves.plot_curves(workdir)
    for axis in drawn[0].axes:
        shown = {line.get_label(): list(line.get_ydata()) for line in axis.get_lines()}
        assert list(shown) == [words, "test", "training images as they are"]
        assert [len(points) for points in shown.values()] == [2, 1, 1]
