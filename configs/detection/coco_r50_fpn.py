"""Faster R-CNN on COCO: ResNet-50, feature pyramid. Published: box AP 37.0. Not run here.

python main.py --config=configs/detection/coco_r50_fpn.py --config.dataset=coco:DIR \
    --config.init_from=resnet50.safetensors

The figure is torchvision's, of `fasterrcnn_resnet50_fpn` on val2017, whose recipe this is. `DIR`
has `annotations/instances_train2017.json`, `train2017/` and so on.
"""

from ml_collections import ConfigDict

from configs.detectors import coco_fpn


def get_config(arg: str = "") -> ConfigDict:
    return coco_fpn(arg, masks=False)
