"""The one place that refuses a config."""

import math

import pytest

from configs import base, finetune, recipes
from errors import UserError
from training.check import check


def config_with(recipe, field, value):
    config = recipe()
    with config.unlocked():
        config.update_from_flattened_dict({field: value})
    return config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("seed", 2**32),
        ("batch_size", 0),
        ("num_steps", 2**31),
        ("keep_checkpoints", 0),
        ("steps_per_dispatch", 0),
        ("model.depth", 21),
        ("model.shortcut", "E"),
        ("optim.schedule", "exponential"),
        ("optim.name", "rmsprop"),
        ("optim.loss", "hinge"),
        ("optim.beta2", 1.0),
        ("optim.epsilon", -1.0),
        ("augment.policy", "autoaugment"),
        ("augment.magnitude", 11.0),
        ("augment.repeats", 0),
        ("eval.image_size", -1),
        ("optim.momentum_form", "caffe"),
        ("optim.learning_rate", math.nan),
        ("optim.learning_rate", -0.1),
        ("optim.momentum", 1.0),
        ("optim.boundaries", (20, 10)),
        ("optim.boundaries", (0, 10)),
        ("optim.warmup_steps", 10**9),
        ("optim.accumulate_steps", 0),
        ("optim.label_smoothing", 1.0),
        ("optim.ema_decay", 1.0),
        ("optim.on_nonfinite", "ignore"),
        ("augment.kind", "autoaugment"),
        ("augment.area", (0.5,)),
        ("augment.area", (0.0, 1.0)),
        ("augment.aspect", (2.0, 1.0)),
        ("augment.mixup", -0.1),
        ("augment.erase", 1.1),
        ("augment.pad", -1),
        ("data.image_size", 0),
        ("data.normalization", "zscore"),
        ("data.on_corrupt", "ignore"),
        ("data.max_corrupt_fraction", 1.5),
        ("data.validation_size", -1),
        ("eval.batch_size", 0),
        ("eval.split", "dev"),
        ("eval.protocol", "12crop"),
        ("eval.resize", 0),
        ("eval.precise_bn_batches", 0),
    ],
)
@pytest.mark.parametrize("recipe", [recipes.digits, recipes.cifar])
def test_a_wrong_field_is_named_with_its_value(recipe, field, value):
    with pytest.raises(UserError) as refused:
        check(config_with(recipe, field, value), devices=1)
    assert f"{field}={value!r}" in str(refused.value)
    assert "expected" in str(refused.value) or "nearest" in str(refused.value)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("augment.kind", "scale_jitter", "data.resident=False"),
        ("data.validation_split", "test", "set one of the two"),
        ("data.resident", False, "validation_size"),
        ("batch_size", 127, "the nearest sizes are 126 or 128"),
        ("augment.policy", "trivial_augment", "data.resident=False"),
        ("augment.repeats", 3, "a divisor of batch_size=128"),
        ("eval.image_size", 40, "trained at"),
    ],
)
def test_fields_that_do_not_fit_together(field, value, named):
    config = config_with(recipes.cifar, field, value)
    config.data.validation_size = config.data.validation_size or 5_000
    if field == "data.resident":  # one thing is wrong at a time
        config.data.validation_split = "test"
    with pytest.raises(UserError, match=named):
        check(config, devices=2)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"steps_per_dispatch": 2}, "steps_per_dispatch=2.*resident"),
        ({"augment.resize_min": 100}, "image_size ≤ resize_min"),
        (
            {"augment.kind": "random_resized_crop", "augment.area": (0.5, 2.0)},
            "augment.area.*only data.resident=True",
        ),
        ({"eval.protocol": "10crop", "eval.resize": 200}, "eval.resize=200"),
        ({"eval.protocol": "10crop", "eval.image_size": 288}, "expected at least 288"),
        ({"data.normalization": "per_pixel", "eval.image_size": 288}, "eval.image_size=288"),
        ({"augment.mixup": 0.2, "batch_size": 6}, "odd number"),
    ],
)
def test_streamed_fields_that_do_not_fit_together(fields, named):
    config = recipes.imagenet("resnet50")
    config.update_from_flattened_dict(fields)
    config.eval.batch_size = 4
    with pytest.raises(UserError, match=named):
        check(config, devices=2)


def test_accumulation_divides_the_share_of_a_device():
    config = recipes.cifar()
    config.optim.accumulate_steps = 3
    with pytest.raises(UserError, match="3 accumulation steps"):
        check(config, devices=2)


@pytest.mark.parametrize(
    ("batch", "devices", "parts", "wrong"),
    [
        (256, 1, 1, None),
        (96, 4, 1, None),  # 24 a device: fewer than a group are all
        (96, 1, 2, "48 images at once.*24 images or 0"),
        (80, 1, 1, "model.bn_group_size=32: batch_size=80.*20 images or 0"),
        (80, 1, 5, None),
    ],
)
def test_groups_of_bn_divide_what_a_device_takes_at_once(batch, devices, parts, wrong):
    config = recipes.imagenet("resnet50")
    config.batch_size, config.optim.accumulate_steps = batch, parts
    if wrong is None:
        return check(config, devices)
    with pytest.raises(UserError, match=wrong):
        check(config, devices)
    config.model.frozen_bn = True
    check(config, devices)
    config.model.update(frozen_bn=False, sync_bn=True)
    check(config, devices)
    config.model.update(sync_bn=False, bn_group_size=0)
    check(config, devices)


@pytest.mark.parametrize("config", [base.base(), recipes.digits(), finetune.get_config()])
def test_recipes_pass(config):
    config.data.update(validation_split="")
    check(config, devices=1)
