"""Learning-rate schedules and optimisers; SGD with momentum in the paper's form and torch's."""

from collections.abc import Callable
from operator import not_
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

HEAD = "head"
STACKED_KERNEL = 5  # axes: blocks, height, width, in, out
# Training error for `warmup_until_error`: a running mean over about the last 20 batches.
ERROR_DECAY = 0.95


def learning_rate(optim: ConfigDict, *, num_steps: int, batch_size: int) -> optax.Schedule:
    """The schedule as a function step → learning rate (a float32 scalar).

    'step' multiplies by `decay_factor` at each of `boundaries`, 'cosine' falls to zero at
    `num_steps`, 'polynomial' as the square of what is left; all start with `warmup_steps` of
    warm-up: 'linear', whose first step has `peak / warmup_steps`, or 'constant' at
    `warmup_learning_rate`. With `reference_batch` the peak is scaled by
    `batch_size / reference_batch`, the linear scaling rule (Goyal et al. 2017, section
    2.1).
    """
    peak = optim.learning_rate
    if optim.reference_batch:
        peak *= batch_size / optim.reference_batch
    drops = dict.fromkeys(optim.boundaries, optim.decay_factor)
    length = max(1, num_steps - optim.warmup_steps)
    after = {
        "step": optax.piecewise_constant_schedule(peak, drops),
        "cosine": optax.cosine_decay_schedule(peak, length),
        "polynomial": optax.polynomial_schedule(peak, 0.0, 2, length),
        "constant": optax.constant_schedule(peak),
    }[optim.schedule]
    start = 0 if optim.schedule == "step" else optim.warmup_steps

    def schedule(step):
        rate = jnp.asarray(after(step - start), jnp.float32)
        if optim.warmup_steps:
            warm = (
                peak * (step + 1) / optim.warmup_steps
                if optim.warmup_form == "linear"
                else min(peak, optim.warmup_learning_rate)
            )
            rate = jnp.where(step < optim.warmup_steps, warm, rate)
        return rate.astype(jnp.float32)

    return schedule


def error_warmup(
    optim: ConfigDict,
    rate: jax.Array,
    error: jax.Array,
    warmed_up: jax.Array,
    step_error: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """ResNet-110's warm-up: a low rate until the training error is below a threshold (section 4.2).

    Args:
      optim: config.optim; nothing happens unless `warmup_until_error` > 0.
      rate: the scheduled learning rate.
      error: running mean of the training top-1 error in [0, 1]; starts at 1.
      warmed_up: whether the threshold has been passed (it is passed once).
      step_error: top-1 error of this step's batch.

    Returns:
      `(rate, error, warmed_up)`: the rate to use in this step and the updated pair.
    """
    if not optim.warmup_until_error:
        return rate, error, warmed_up
    rate = jnp.where(warmed_up, rate, jnp.minimum(rate, optim.warmup_learning_rate))
    error = ERROR_DECAY * error + (1 - ERROR_DECAY) * step_error
    return rate, error, warmed_up | (error < optim.warmup_until_error)


def optimizer(
    optim: ConfigDict, learned: Callable[[Any], Any] | None = None
) -> optax.GradientTransformationExtraArgs:
    """The optimiser `optim.name`; `update` takes `learning_rate` as an extra argument.

    Of optax's parts. Weights decay (`decay_mask`), and weights alone have a trust ratio:

    - 'sgd' with momentum and L2 decay; with g the gradient plus `weight_decay` times the weight,
      'paper' keeps the learning rate inside the velocity, v ← m·v + lr·g, w ← w − v (Caffe, the
      authors' code); 'torch' applies it afterwards, v ← m·v + g, w ← w − lr·v. They differ where
      the rate changes: with 'torch' the old gradients shrink with it at once.
    - 'lars' (You et al. 2017): g times `trust_coefficient`·|w|/|g| for each layer, in the paper's
      form of the velocity.
    - 'adamw' (Loshchilov & Hutter 2019), and 'lamb' (You et al. 2020): AdamW's step, decay
      included, times |w|/|step| for each layer.

    With `learned`, which makes a tree of bool of the parameters', the others stay as they are.
    """
    rate = _scale_by_learning_rate()
    decay = optax.add_decayed_weights(optim.weight_decay, mask=decay_mask)
    velocity = optax.trace(decay=optim.momentum, nesterov=optim.nesterov)
    adam = optax.scale_by_adam(b1=optim.momentum, b2=optim.beta2, eps=optim.epsilon)
    paper = optim.momentum_form == "paper"
    parts = {
        "sgd": (decay, rate, velocity) if paper else (decay, velocity, rate),
        "lars": (decay, _trust_ratio(optim.trust_coefficient), rate, velocity),
        "lamb": (adam, decay, _trust_ratio(1.0), rate),
        "adamw": (adam, decay, rate),
    }
    clip = optax.clip_by_global_norm(optim.clip_norm) if optim.clip_norm else optax.identity()
    steps = [clip, *parts[optim.name]]
    if optim.train_only == "head":
        steps.append(optax.masked(optax.set_to_zero(), not_head))
    if learned:
        steps.append(optax.masked(optax.set_to_zero(), lambda p: jax.tree.map(not_, learned(p))))
    return optax.chain(*steps)


def _trust_ratio(coefficient):
    """optax's, for weights; where `scan_blocks` stacks equal blocks, for each block by itself."""
    layer = optax.scale_by_trust_ratio(trust_coefficient=coefficient)

    def update(updates, state, params=None):
        def scale(update, weight):
            return layer.update(update, state, weight)[0]

        scaled = jax.tree.map(
            lambda u, w: jax.vmap(scale)(u, w) if w.ndim == STACKED_KERNEL else scale(u, w),
            updates,
            params,
        )
        return scaled, state

    return optax.masked(optax.GradientTransformation(layer.init, update), decay_mask)


def decay_mask(params: Any) -> Any:
    """True for the weights of convolutions and fully connected layers, which decay.

    BN scales and offsets and biases do not (the authors' released models; Goyal et al., section
    5.1). Flax gives every such weight, and nothing else, the leaf name 'kernel'.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def not_head(params: Any) -> Any:
    """True for everything but the classifier's parameters."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key != HEAD, params)


def _scale_by_learning_rate():
    def update(updates, state, params=None, *, learning_rate, **_):
        del params
        return jax.tree.map(lambda g: -learning_rate * g, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
