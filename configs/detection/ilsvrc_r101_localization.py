"""The paper's per-class proposal network (appendix C) on ILSVRC's images with boxes: not run here.

python main.py --config=configs/detection/ilsvrc_r101_localization.py \\
    --config.dataset=folder:ILSVRC/Data/CLS-LOC --config.init_from=resnet101.safetensors

Crops of 224 as in classification, 256 images a step, 8 anchors an image. `:rcnn` learns from its
proposals, `--config.detection.proposals_from=RUN`: one of the best 200 of an image, warped to 224.
The paper does not say which anchors, which rates and how many steps.
"""

from ml_collections import ConfigDict

from configs.detectors import detector, fine_tuned, rcnn, shortened


def get_config(arg: str = "") -> ConfigDict:
    config, words = detector(arg, ("rcnn",))
    fine_tuned(config, 101)
    config.update(task="localization", dataset="folder:ILSVRC/Data/CLS-LOC", num_steps=40_000)
    config.data.test_split = "val"
    config.optim.update(learning_rate=0.01, boundaries=(20_000, 30_000), warmup_steps=1_000)
    config.detection.update(network="rpn", anchors=(64, 128, 192), anchor_samples=8)
    config.detection.update(sides=(256,), longer=640, frozen_stages=0)
    if "rcnn" in words:
        rcnn(config, proposals=200)
        config.eval.batch_size = 1  # of which 1,200 regions are warped
    return shortened(config, words)
