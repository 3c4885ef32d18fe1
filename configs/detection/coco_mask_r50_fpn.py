"""Mask R-CNN on COCO. Published: box AP 37.9, mask AP 34.6. Not run here.

python main.py --config=configs/detection/coco_mask_r50_fpn.py --config.dataset=coco:DIR \
    --config.init_from=resnet50.safetensors

The figures are torchvision's, of `maskrcnn_resnet50_fpn` on val2017, whose recipe this is.
"""

from ml_collections import ConfigDict

from configs.detectors import coco_fpn


def get_config(arg: str = "") -> ConfigDict:
    return coco_fpn(arg, masks=True)
