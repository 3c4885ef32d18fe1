"""scikit-learn's handwritten digits: 898 training and 899 test images of 8×8, no download.

    python main.py --config=configs/digits.py      # ResNet-20, about a minute on two cores

The argument takes a network (`plain56`, `resnet110`, …), `paper` for section 4.2's recipe scaled to
600 steps instead of the one for few images, `followup` (the warm-up of Identity Mappings), `goyal`
and `quick`: `:plain56,paper`.
"""

from ml_collections import ConfigDict

from configs import recipes


def get_config(arg: str = "") -> ConfigDict:
    return recipes.digits(arg)
