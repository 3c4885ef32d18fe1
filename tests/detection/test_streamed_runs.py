"""A whole run of a detector on a tiny COCO from disk: damaged files, a kill, parts of a batch."""

import jax
import pytest

import evaluate
import train
from benchmarks.runs import as_killed_after, differences
from run import logs
from run.mesh import make_mesh
from run.workdir import Workdir
from tests.support import annotated_sets
from tests.support.tiny_recipes import tiny_recipe


@pytest.mark.slow
def test_a_run_leaves_out_what_is_damaged_and_goes_on_in_an_epoch(
    tiny_backbone, compilation_cache, tmp_path, caplog
):
    """Three batches an epoch, each in two parts; killed after the first."""
    root = annotated_sets.write_coco(tmp_path / "coco")
    bad = [str(root / split / f"{4:012d}.jpg") for split in ("train2017", "val2017")]
    for path in bad:
        with open(path, "r+b") as file:
            file.truncate(300)
    config = tiny_recipe("coco_r50_fpn", dataset=f"coco:{root}", init_from="", num_steps=4)
    config.update(batch_size=2, checkpoint_every=1, keep_checkpoints=9)
    config.model.frozen_bn, config.optim.accumulate_steps = False, 2
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
    tested = evaluate.run(Workdir(whole).read_config(), str(whole), mesh)
    assert (tested["AP"], tested["masked_records"]) == (result["AP"], [bad[1]])
    assert f"1 corrupt records were left out: {bad[1]}" in caplog.messages
