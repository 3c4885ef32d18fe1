"""FCN on Pascal VOC 2012: ResNet-50 of output stride 8. Not run here.

python main.py --config=configs/detection/voc_fcn_r50.py --config.dataset=voc:VOCdevkit \
    --config.init_from=resnet50.safetensors

Published for torchvision's `fcn_resnet50`: mIoU 60.5, but of COCO's images with VOC's classes;
rates and epochs here are its recipe's, without its random crops.
"""

from ml_collections import ConfigDict

from configs.detectors import detector, fine_tuned, shortened


def get_config(arg: str = "") -> ConfigDict:
    config, words = detector(arg)
    fine_tuned(config, 50)
    config.update(task="segmentation", dataset="voc:VOCdevkit", batch_size=16, num_steps=2_745)
    config.update(eval_every=915, checkpoint_every=500)  # 30 epochs of 1,464 images
    config.model.output_stride = 8
    config.data.update(train_split="train2012", test_split="val2012")
    config.optim.update(learning_rate=0.01, schedule="polynomial", warmup_steps=90)
    config.detection.update(network="fcn", frozen_stages=0, longer=1040)
    config.detection.sides = (390, 455, 520, 585, 650, 520)
    return shortened(config, words)
