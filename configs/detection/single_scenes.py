"""A classifier of scenes with one digit each: no download, minutes on two cores.

python main.py --config=configs/detection/single_scenes.py

It is never told where the digit is; `python -m analysis.localization` asks its activation maps.
A narrow ResNet-18 of stride 16, whose maps have 8×8 positions. `:quick` shows in twenty steps that
everything works.
"""

from ml_collections import ConfigDict

from configs.base import base


def get_config(arg: str = "") -> ConfigDict:
    config = base()
    config.update(dataset="single_scenes", batch_size=32, num_steps=1_200)
    config.update(log_every=40, eval_every=400, checkpoint_every=400)
    config.model.update(depth=18, width=16, output_stride=16)
    config.optim.update(name="adamw", learning_rate=2e-3, weight_decay=0.05)
    config.optim.update(schedule="cosine", warmup_steps=100)
    config.augment.update(kind="pad_crop_flip", pad=16, flip=False, pca_noise=0.0)
    config.data.update(resident=True, validation_size=100, test_split="test", image_size=128)
    config.eval.batch_size = 50
    if arg == "quick":
        config.update(batch_size=8, num_steps=20, log_every=5, eval_every=20, checkpoint_every=10)
        config.optim.warmup_steps = 5
    return config
