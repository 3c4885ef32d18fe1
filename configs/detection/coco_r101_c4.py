"""The paper's detector on COCO (table 8): AP50 48.4, AP 27.2 on the validation set. Not run here.

python main.py --config=configs/detection/coco_r101_c4.py --config.dataset=coco:DIR \
    --config.init_from=resnet101.safetensors

80,000 images of train2014 and 40,000 of val2014; the 320,000 steps of 8 images, of which the last
80,000 have a tenth of the rate, are the paper's of the proposals.
"""

from ml_collections import ConfigDict

from configs.detectors import c4, shortened


def get_config(arg: str = "") -> ConfigDict:
    config, words = c4(arg)
    config.update(dataset="coco:DIR", batch_size=8, num_steps=320_000)
    config.update(eval_every=40_000, checkpoint_every=2_000)
    config.data.update(train_split="train2014", test_split="val2014")
    config.optim.boundaries = (240_000,)
    config.detection.anchors = (64, 128, 256, 512)
    return shortened(config, words)
