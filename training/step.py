"""The train state and the pure train step `(state, batch) → state`, one device's view of it.

`make_run` compiles it data-parallel: `jit` over `shard_map` on the mesh axis `data`.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from data import device_transforms, mixup
from data.feed import Batch
from data.keys import Purpose, example_keys, key_for
from data.normalization import Normalization, normalize
from run.mesh import DATA_AXIS
from training import optim


@flax.struct.dataclass
class Window:
    """Sums over the steps since the last line of the log (scalars)."""

    loss: jax.Array  # sum over images
    errors: jax.Array  # images whose highest logit is another class
    images: jax.Array  # valid images
    invalid: jax.Array  # masked images
    gradient_norm: jax.Array  # sum over steps
    learning_rate: jax.Array  # of the last step
    steps: jax.Array
    bad_steps: jax.Array  # steps with a NaN or Inf in loss, gradient or update
    first_bad: jax.Array  # [step, loss, gradient norm, learning rate] of the first of them

    @classmethod
    def empty(cls) -> "Window":
        """Zeros."""
        zero, count = jnp.float32(0), jnp.int32(0)
        return cls(
            zero, count, count, count, zero, zero, count, count, jnp.full((4,), -1, jnp.float32)
        )

    def summary(self) -> dict[str, Any]:
        """The values of a training line of metrics.jsonl; means over the good steps."""
        values = {"learning_rate": float(self.learning_rate)}
        if self.steps:
            images = max(int(self.images), 1)
            values = {
                "loss": float(self.loss) / images,
                "top1_error": int(self.errors) / images,
                **values,
                "gradient_norm": float(self.gradient_norm) / int(self.steps),
            }
        if self.invalid:
            values["masked_images"] = int(self.invalid)
        if self.bad_steps:
            values["skipped_steps"] = int(self.bad_steps)
            values["first_skipped_step"] = int(self.first_bad[0])
        return values


@flax.struct.dataclass
class TrainState:
    """Everything that a checkpoint holds. The position in the data is `step`."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any  # {'params', 'batch_stats'}, or empty without optim.ema_decay
    error_average: jax.Array  # for optim.warmup_until_error
    warmed_up: jax.Array
    window: Window

    def evaluation_variables(self) -> Any:
        """The variables to test with: the averaged ones when there are any."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


def create_state(
    config: ConfigDict, model: nn.Module, image_shape: tuple[int, int, int]
) -> TrainState:
    """The state of step 0, a function of `config.seed`; `image_shape` is (height, width, c)."""
    # One program, because each small one costs a compilation. The key is an argument: XLA would
    # draw the numbers of a constant one while compiling. And it runs once, so that on a CPU
    # optimising it costs ten times what it takes.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    init = jax.jit(
        functools.partial(_initial, config, model, image_shape), compiler_options=options
    )
    return init(key_for(config.seed, Purpose.INIT))


def abstract_state(
    config: ConfigDict, model: nn.Module, image_shape: tuple[int, int, int]
) -> TrainState:
    """`create_state`'s shapes and types alone: a tree of `jax.ShapeDtypeStruct`."""
    return jax.eval_shape(
        functools.partial(_initial, config, model, image_shape), jax.random.key(0)
    )


def _initial(config, model, image_shape, key):
    return state_from(config, model.init(key, jnp.zeros((1, *image_shape)), train=False))


def state_from(config: ConfigDict, variables: Any) -> TrainState:
    """A state of step 0 with given `params` and `batch_stats`."""
    params, batch_stats = variables["params"], variables["batch_stats"]
    ema = {"params": params, "batch_stats": batch_stats} if config.optim.ema_decay else {}
    return TrainState(
        step=jnp.int32(0),
        params=params,
        batch_stats=batch_stats,
        opt_state=optim.optimizer(config.optim).init(params),
        ema=jax.tree.map(jnp.copy, ema),  # donated buffers must not be shared
        error_average=jnp.float32(1),
        warmed_up=jnp.bool_(False),
        window=Window.empty(),
    )


def make_train_step(
    config: ConfigDict, model: nn.Module, normalization: Normalization
) -> Callable[[TrainState, Batch], TrainState]:
    """One step on one device's share of the batch, to be called inside shard_map over `data`.

    Returns:
      `step(state, batch) → state`. Gradients are averaged over the valid images of the global
      batch, running BN averages over the devices.
    """
    rate_at = optim.learning_rate(
        config.optim, num_steps=config.num_steps, batch_size=config.batch_size
    )
    optimizer = optim.optimizer(config.optim)

    def step(state, batch):
        total = jax.lax.psum(batch["valid"].sum(), DATA_AXIS)
        images, targets = _prepare(config, model, normalization, state.step, batch)
        weights = batch["valid"] / jnp.maximum(total, 1).astype(jnp.float32)
        parts = (images, targets, weights, batch["label"], batch["valid"])
        grads, batch_stats, loss, errors = _gradients(config, model, state, parts)
        grads, loss, errors = jax.lax.psum((grads, loss, errors), DATA_AXIS)
        batch_stats = jax.lax.pmean(batch_stats, DATA_AXIS)

        rate, error_average, warmed_up = optim.error_warmup(
            config.optim,
            rate_at(state.step),
            state.error_average,
            state.warmed_up,
            errors / jnp.maximum(total, 1),
        )
        norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(
            grads, state.opt_state, state.params, learning_rate=rate
        )
        # An update can overflow where its gradient does not.
        good = jnp.isfinite(jnp.stack([loss, norm, optax.tree.norm(updates)])).all()
        params = optax.apply_updates(state.params, updates)
        ema = _averaged(config, state.ema, {"params": params, "batch_stats": batch_stats})
        # A step with a NaN leaves no trace; what follows from it is the loop's policy.
        new = {
            "params": params,
            "batch_stats": batch_stats,
            "opt_state": opt_state,
            "ema": ema,
            "error_average": error_average,
            "warmed_up": warmed_up,
        }
        old = {name: getattr(state, name) for name in new}
        kept = jax.tree.map(functools.partial(jnp.where, good), new, old)
        invalid = jax.lax.psum((~batch["valid"]).sum(), DATA_AXIS)
        window = _extended(config, state, good, loss * total, errors, total, invalid, norm, rate)
        return state.replace(step=state.step + 1, window=window, **kept)

    return step


def _prepare(config, model, normalization, step, batch):
    """Augmented, normalised images and soft targets for uint8 images and labels."""
    augment = config.augment
    local = batch["image"].shape[0]
    positions = jax.lax.axis_index(DATA_AXIS) * local + jnp.arange(local)
    keys = example_keys(key_for(config.seed, Purpose.AUGMENT, step), positions)
    images = batch["image"]
    if augment.kind == "random_resized_crop" and config.data.resident:
        images = device_transforms.random_resized_crop(
            keys, images, area=augment.area, aspect=augment.aspect, flip=augment.flip
        )
    if augment.pca_noise:
        images = device_transforms.pca_noise(keys, images, std=augment.pca_noise)
    images = normalize(images, *normalization)
    if augment.kind == "pad_crop_flip":
        images = device_transforms.pad_crop_flip(keys, images, pad=augment.pad, flip=augment.flip)
    if augment.erase:
        images = mixup.random_erasing(keys, images, probability=augment.erase)
    targets = optax.smooth_labels(
        jax.nn.one_hot(batch["label"], model.num_classes), config.optim.label_smoothing
    )
    return mixup.mix(
        keys, images, targets, batch["valid"], mixup=augment.mixup, cutmix=augment.cutmix
    )


def _gradients(config, model, state, parts):
    """Gradients, BN averages, loss and errors of this device, part after part of its batch."""
    dropout_key = key_for(config.seed, Purpose.DROPOUT, state.step)
    dropout_key = jax.random.fold_in(dropout_key, jax.lax.axis_index(DATA_AXIS))

    def loss_fn(params, batch_stats, part):
        images, targets, weights, labels, valid = part
        (logits, _), updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        loss = jnp.sum(weights * example_losses(config.optim, logits, targets))
        errors = jnp.sum(valid & (jnp.argmax(logits, -1) != labels))
        return loss, (updated["batch_stats"], errors)

    gradient = jax.value_and_grad(loss_fn, has_aux=True)

    def accumulate(carry, part):
        grads, batch_stats, loss, errors = carry
        (part_loss, (batch_stats, part_errors)), part_grads = gradient(
            state.params, batch_stats, part
        )
        grads = jax.tree.map(jnp.add, grads, part_grads)
        return (grads, batch_stats, loss + part_loss, errors + part_errors), None

    count = config.optim.accumulate_steps
    if count == 1:
        (loss, (batch_stats, errors)), grads = gradient(state.params, state.batch_stats, parts)
        return grads, batch_stats, loss, errors
    split = jax.tree.map(lambda a: a.reshape((count, -1, *a.shape[1:])), parts)
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    start = (zeros, state.batch_stats, jnp.float32(0), jnp.int32(0))
    return jax.lax.scan(accumulate, start, split)[0]


def example_losses(optim: ConfigDict, logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The loss of each image, [batch], for logits and soft targets [batch, classes].

    'softmax' is the cross entropy in nats; 'bce' the mean over the classes of one binary cross
    entropy each, for mixed images with every class above `bce_threshold` present as a whole
    (Wightman et al. 2021).
    """
    if optim.loss == "softmax":
        return optax.softmax_cross_entropy(logits, targets)
    if optim.bce_threshold:
        targets = (targets > optim.bce_threshold).astype(targets.dtype)
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean(axis=-1)


def _averaged(config, ema, new):
    if not ema:
        return ema
    decay = config.optim.ema_decay
    return jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, ema, new)


def _extended(config, state, good, loss, errors, total, invalid, norm, rate):
    fresh = state.step % config.log_every == 0
    old = jax.tree.map(lambda a, b: jnp.where(fresh, a, b), Window.empty(), state.window)
    first_bad = jnp.stack([jnp.float32(state.step + 1), loss / jnp.maximum(total, 1), norm, rate])
    return Window(
        loss=old.loss + jnp.where(good, loss, 0),
        errors=old.errors + jnp.where(good, errors, 0),
        images=old.images + jnp.where(good, total, 0),
        invalid=old.invalid + invalid,
        gradient_norm=old.gradient_norm + jnp.where(good, norm, 0),
        learning_rate=rate,
        steps=old.steps + good,
        bad_steps=old.bad_steps + ~good,
        first_bad=jnp.where(good | (old.bad_steps > 0), old.first_bad, first_bad),
    )


def make_run(
    config: ConfigDict, model: nn.Module, data: Any, mesh: Mesh
) -> Callable[..., tuple[TrainState, Any, Window]]:
    """Compiled `run(state, order, feed, count) → (state, order, window)`: `count` steps at once.

    `state` and `order` are donated. `feed` is what `data.feed` yields: the resident set, or one
    batch (then `count` is 1).
    """
    step = make_train_step(config, model, data.facts.normalization)

    def run(state, order, feed, count):
        def one(carry, _):
            state, order = carry
            order, batch = data.draw(order, state.step, feed)
            return (step(state, batch), order), None

        if count == 1:
            (state, order), _ = one((state, order), None)
        else:
            (state, order), _ = jax.lax.scan(one, (state, order), length=count)
        return state, order, state.window

    @functools.partial(jax.jit, donate_argnums=(0, 1), static_argnums=3)
    def compiled(state, order, feed, count):
        return jax.shard_map(
            functools.partial(run, count=count),
            mesh=mesh,
            in_specs=(P(), P(), data.feed_spec),
            out_specs=P(),
            check_vma=False,
        )(state, order, feed)

    return compiled
