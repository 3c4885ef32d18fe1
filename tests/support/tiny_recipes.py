"""Detectors' recipes, so small that a run of a few steps is quick."""

from configs import command_line


def tiny_recipe(name, **fields):
    """`configs/detection/NAME.py` of four blocks and a few steps, with other fields, a__b for a.b.

    Its depth needs the fixture `tiny_backbone`.
    """
    config = command_line.recipe(f"configs/detection/{name}.py")
    config.update(batch_size=4, num_steps=2, log_every=1, eval_every=2, checkpoint_every=2)
    config.update(tensorboard=False)
    config.model.update(depth=10, width=4)
    config.optim.warmup_steps = 0
    config.eval.batch_size = 4
    config.update_from_flattened_dict({name.replace("__", "."): v for name, v in fields.items()})
    return config
