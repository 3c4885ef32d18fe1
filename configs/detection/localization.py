"""A per-class proposal network for scenes with one digit each: no download.

python main.py --config=configs/detection/localization.py --workdir=runs/localization
python main.py --config=configs/detection/localization.py:rcnn \\
    --config.detection.proposals_from=runs/localization

The paper's appendix C, small: learned on crops, tested on whole scenes. `:rcnn` learns to classify
the regions that the finished one proposes. `:quick` shows in twenty steps that everything works.
"""

from ml_collections import ConfigDict

from configs.detectors import detector, rcnn, shortened


def get_config(arg: str = "") -> ConfigDict:
    config, words = detector(arg, ("rcnn",))
    config.update(task="localization", dataset="single_scenes", batch_size=32, num_steps=800)
    config.update(log_every=40, eval_every=400, checkpoint_every=400)
    config.model.update(depth=18, width=16, output_stride=16, sync_bn=True)
    config.optim.update(name="adamw", learning_rate=2e-3, weight_decay=0.05)
    config.optim.update(schedule="cosine", warmup_steps=100, clip_norm=10.0)
    config.augment.flip = False  # a mirrored digit is not that digit
    config.data.update(resident=True, validation_size=100, test_split="test", image_size=112)
    config.detection.update(network="rpn", anchors=(32, 56), anchor_samples=8, frozen_stages=0)
    config.detection.update(sides=(128,), longer=128, max_objects=1)
    config.eval.update(batch_size=50, scales=(112, 128, 144))
    if "rcnn" in words:
        rcnn(config, proposals=8, of_an_image=4)
        config.update(num_steps=240)
        config.optim.warmup_steps = 40
        config.data.image_size, config.eval.batch_size = 64, 20
    return shortened(config, words)
