"""A detector of the digits in 1,000 made scenes: no download, ten minutes on two cores.

python main.py --config=configs/detection/scenes.py

A narrow ResNet-18 with a feature pyramid, from random weights. `:masks` has a mask head too, `:fcn`
segments instead, `:quick` shows in twenty steps that everything works.
"""

from ml_collections import ConfigDict

from configs.detectors import detector, shortened


def get_config(arg: str = "") -> ConfigDict:
    config, words = detector(arg, ("masks", "fcn"))
    config.update(dataset="scenes", batch_size=8, num_steps=2_000)
    config.update(log_every=50, eval_every=500, checkpoint_every=500)
    config.model.update(depth=18, width=16, sync_bn=True)
    config.optim.update(name="adamw", learning_rate=2e-3, schedule="cosine", warmup_steps=100)
    config.optim.update(clip_norm=10.0, ema_decay=0.995)
    config.augment.flip = False  # a mirrored digit is not that digit
    config.data.update(resident=True, validation_size=100, test_split="test", image_size=128)
    config.detection.update(width=64, hidden=256, anchors=(12, 20, 32, 48, 64), frozen_stages=0)
    config.detection.update(anchor_samples=64, region_samples=32, max_objects=6)
    config.detection.update(candidates=(100, 100), proposals=(64, 64), sides=(128,), longer=128)
    config.detection.masks = "masks" in words
    if "fcn" in words:
        config.task, config.detection.network = "segmentation", "fcn"
        config.model.output_stride, config.num_steps = 8, 3_000
    config.eval.update(batch_size=20, scales=(112, 128, 144))
    return shortened(config, words)
