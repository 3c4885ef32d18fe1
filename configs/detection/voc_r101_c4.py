"""The paper's detector on Pascal VOC (table 7): mAP 76.4 of 2007, 73.8 of 2012. Not run here.

python main.py --config=configs/detection/voc_r101_c4.py --config.dataset=voc:VOCdevkit \
    --config.init_from=resnet101.safetensors

Trained on both years' trainval and tested on 2007's test (with 11 points, as was usual). The 73.8
are of 2012's test, which its server scores, after training on 2007's test, too. Steps and rates are
those of Ren et al. 2015, to whom the paper refers.
"""

from ml_collections import ConfigDict

from configs.detectors import c4, shortened


def get_config(arg: str = "") -> ConfigDict:
    config, words = c4(arg)
    config.update(dataset="voc:VOCdevkit", batch_size=2, num_steps=80_000)
    config.update(eval_every=10_000, checkpoint_every=2_000)
    config.data.update(train_split="trainval2007+trainval2012", test_split="test2007")
    config.optim.update(weight_decay=5e-4, boundaries=(60_000,))
    config.detection.anchors = (128, 256, 512)
    return shortened(config, words)
