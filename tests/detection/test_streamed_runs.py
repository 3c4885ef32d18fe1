"""A whole run of a detector on a tiny COCO from disk: damaged files, a kill, parts of a batch."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import evaluate
import main
import predict
import train
from benchmarks.runs import as_killed_after, differences
from detection import draw
from run import logs
from run.mesh import make_mesh
from run.workdir import Workdir
from tests.support import annotated_sets
from tests.support.tiny_recipes import tiny_recipe

NUMBERS = ("AP", "AP50", "mask_AP", "mask_AP50", "images")


@pytest.mark.slow
def test_a_run_leaves_out_what_is_damaged_and_goes_on_in_an_epoch(
    tiny_backbone, compilation_cache, tmp_path, caplog, capsys, monkeypatch
):
    """Three batches an epoch, each in two parts; killed after the first. Then boxes and masks."""

    def of_three_categories(whole):
        whole["categories"] = [one for one in whole["categories"] if one["id"] in (1, 18, 90)]
        return whole

    root = annotated_sets.write_coco(tmp_path / "coco", changed=of_three_categories)
    bad = [str(root / split / f"{4:012d}.jpg") for split in ("train2017", "val2017")]
    for path in bad:
        with open(path, "r+b") as file:
            file.truncate(300)
    config = tiny_recipe("coco_mask_r50_fpn", dataset=f"coco:{root}", init_from="", num_steps=4)
    config.update(batch_size=2, checkpoint_every=1, keep_checkpoints=9)
    config.model.frozen_bn, config.optim.accumulate_steps = False, 2
    config.optim.learning_rate = 1e-4  # or nothing would be found
    config.data.update(on_corrupt="mask", max_corrupt_fraction=0.2)
    config.detection.update(width=8, hidden=8, candidates=(16, 16), proposals=(8, 8), max_objects=6)
    config.detection.update(sides=(48, 64), longer=64, anchor_samples=16, region_samples=8)
    whole, again = tmp_path / "whole", tmp_path / "again"
    mesh = make_mesh(jax.devices()[:1])
    result = train.train(config, whole, mesh)
    assert result["masked_records"] == sorted(bad) and result["images"] == 6
    named = [
        set(line.get("masked_records", ())) for line in logs.read_lines(whole / "metrics.jsonl")
    ]
    assert set.union(*named[:3]) <= {bad[0]} and {bad[0]} in named[:4]
    as_killed_after(1, whole, again)
    train.train(config, again, mesh)
    assert differences(again, whole) == []
    caplog.clear()
    monkeypatch.setattr(evaluate, "make_mesh", lambda: mesh)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")  # the test's own stays
    main.main(["main.py", "--mode=evaluate", f"--workdir={whole}"])
    tested = json.loads(Workdir(whole).evaluation.read_text())
    assert {name: tested[name] for name in NUMBERS} == {name: result[name] for name in NUMBERS}
    assert tested["masked_records"] == [bad[1]]
    assert f"1 corrupt records were left out: {bad[1]}" in caplog.messages
    assert "mask_AP50" in capsys.readouterr().out
    photo, pictures = root / "val2017" / f"{5:012d}.jpg", tmp_path / "pictures"
    seen, objects = [], draw.objects
    monkeypatch.setattr(draw, "objects", lambda *about: seen.append(about[1]) or objects(*about))
    words = [f"--workdir={whole}", str(photo), f"--picture_dir={pictures}", "--min_score=0"]
    words += ["--json", "--refine_boxes", "--scales=48", f"--ensemble={whole}"]
    assert predict.main(words) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    names = {one["name"] for one in entry["detections"]}
    assert names and names <= {"person", "dog", "toothbrush"}
    drawn, image = (np.asarray(Image.open(path)) for path in (entry["picture"], photo))
    (found,) = seen
    assert found.masks.shape == (len(entry["detections"]), *image.shape[:2])
    assert (found.masks > 0.5).any() and (drawn != image).any(-1).mean() > 0.1
