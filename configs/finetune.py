"""A pretrained ResNet-50 on an image folder: `PATH/train/<class>/*.jpg`, `PATH/val/<class>/*.jpg`.

python main.py --config=configs/finetune.py --config.dataset=folder:PATH \
    --config.init_from=resnet50.safetensors

All layers are trained, with batch normalisation's statistics frozen; `:probe` trains the head
alone (a linear probe), `:quick` shows in twenty steps that everything works. The weights may be any
that `weights` reads; stride, pooling and normalisation become those of their origin. Without them
the run stops at once. `python -m analysis.transfer` tries rates, and the head alone against all.
"""

from ml_collections import ConfigDict

from configs import recipes
from errors import UserError


def get_config(arg: str = "") -> ConfigDict:
    options = set(filter(None, arg.split(",")))
    if options - {"probe", "quick"}:
        raise UserError(f"config argument {arg!r}: expected 'probe', 'quick', or both.")
    config = recipes.imagenet("resnet50")
    config.update(dataset="folder:PATH", replace_head=True, batch_size=64, num_steps=2_000)
    config.update(eval_every=500, checkpoint_every=500)
    config.model.update(downsample_in="3x3", frozen_bn=True)
    config.optim.update(learning_rate=0.01, schedule="cosine")
    config.optim.warmup_steps = config.get_oneway_ref("num_steps") // 20
    config.optim.update(momentum_form="torch", nesterov=True)
    config.augment.update(kind="random_resized_crop", area=(0.25, 1.0), pca_noise=0.0)
    if "probe" in options:
        config.optim.update(learning_rate=0.1, train_only="head", weight_decay=0.0)
    if "quick" in options:
        config.update(batch_size=16, num_steps=20, log_every=5, eval_every=20, checkpoint_every=10)
        config.eval.batch_size = 16
    return config
