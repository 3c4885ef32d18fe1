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

from data.feed import Batch
from data.keys import Purpose, key_for
from data.normalization import Normalization
from run.mesh import DATA_AXIS
from training import optim, task


@flax.struct.dataclass
class Window:
    """Sums over the steps since the last line of the log (scalars)."""

    loss: jax.Array  # sum over images
    errors: Any  # the task's sums over images: those with another class, or sums by name
    images: jax.Array  # valid images
    invalid: jax.Array  # masked images
    gradient_norm: jax.Array  # sum over steps
    learning_rate: jax.Array  # of the last step
    steps: jax.Array
    bad_steps: jax.Array  # steps with a NaN or Inf in loss, gradient or update
    first_bad: jax.Array  # [step, loss, gradient norm, learning rate] of the first of them

    @classmethod
    def empty(cls, errors: Any) -> "Window":
        """Zeros, which `errors` are already."""
        zero, count = jnp.float32(0), jnp.int32(0)
        return cls(
            zero, errors, count, count, zero, zero, count, count, jnp.full((4,), -1, jnp.float32)
        )

    def summary(self) -> dict[str, Any]:
        """The values of a training line of metrics.jsonl; means over the good steps."""
        values = {"learning_rate": float(self.learning_rate)}
        if self.steps:
            images = max(int(self.images), 1)
            sums = self.errors if isinstance(self.errors, dict) else {"top1_error": self.errors}
            values = {
                "loss": float(self.loss) / images,
                **{name: value.item() / images for name, value in sums.items()},
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
    return state_from(config, task.of(config).init(model, key, image_shape))


def state_from(config: ConfigDict, variables: Any) -> TrainState:
    """A state of step 0 with given `params` and `batch_stats`."""
    params, batch_stats = variables["params"], variables["batch_stats"]
    ema = {"params": params, "batch_stats": batch_stats} if config.optim.ema_decay else {}
    return TrainState(
        step=jnp.int32(0),
        params=params,
        batch_stats=batch_stats,
        opt_state=_optimizer(config).init(params),
        ema=jax.tree.map(jnp.copy, ema),  # donated buffers must not be shared
        error_average=jnp.float32(1),
        warmed_up=jnp.bool_(False),
        window=Window.empty(task.of(config).sums(config)),
    )


def _optimizer(config):
    return optim.optimizer(config.optim, task.of(config).learned(config))


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
    optimizer = _optimizer(config)

    def step(state, batch):
        total = jax.lax.psum(batch["valid"].sum(), DATA_AXIS)
        batch = batch | {"weight": batch["valid"] / jnp.maximum(total, 1).astype(jnp.float32)}
        parts = task.of(config).prepare(config, model, normalization, state.step, batch)
        grads, batch_stats, loss, errors = _gradients(config, model, state, parts)
        grads, loss, errors = jax.lax.psum((grads, loss, errors), DATA_AXIS)
        batch_stats = jax.lax.pmean(batch_stats, DATA_AXIS)

        rate, error_average, warmed_up = optim.error_warmup(
            config.optim,
            rate_at(state.step),
            state.error_average,
            state.warmed_up,
            jax.tree.map(lambda n: n / jnp.maximum(total, 1), errors),
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


def _gradients(config, model, state, parts):
    """Gradients, BN averages, loss and errors of this device, part after part of its batch."""
    dropout_key = key_for(config.seed, Purpose.DROPOUT, state.step)
    dropout_key = jax.random.fold_in(dropout_key, jax.lax.axis_index(DATA_AXIS))

    def loss_fn(params, batch_stats, part):
        variables = {"params": params, "batch_stats": batch_stats}
        return task.of(config).loss(config, model, variables, part, dropout_key)

    gradient = jax.value_and_grad(loss_fn, has_aux=True)

    def accumulate(carry, part):
        grads, batch_stats, loss, errors = carry
        (part_loss, (batch_stats, part_errors)), part_grads = gradient(
            state.params, batch_stats, part
        )
        old, new = (grads, loss, errors), (part_grads, part_loss, part_errors)
        grads, loss, errors = jax.tree.map(jnp.add, old, new)
        return (grads, batch_stats, loss, errors), None

    count = config.optim.accumulate_steps
    if count == 1:
        (loss, (batch_stats, errors)), grads = gradient(state.params, state.batch_stats, parts)
        return grads, batch_stats, loss, errors
    split = jax.tree.map(lambda a: a.reshape((count, -1, *a.shape[1:])), parts)
    zeros, errors = jax.tree.map(jnp.zeros_like, (state.params, state.window.errors))
    start = (zeros, state.batch_stats, jnp.float32(0), errors)
    return jax.lax.scan(accumulate, start, split)[0]


def _averaged(config, ema, new):
    if not ema:
        return ema
    decay = config.optim.ema_decay
    return jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, ema, new)


def _extended(config, state, good, loss, errors, total, invalid, norm, rate):
    fresh = state.step % config.log_every == 0
    empty = Window.empty(jax.tree.map(jnp.zeros_like, errors))
    old = jax.tree.map(lambda a, b: jnp.where(fresh, a, b), empty, state.window)
    first_bad = jnp.stack([jnp.float32(state.step + 1), loss / jnp.maximum(total, 1), norm, rate])
    return Window(
        loss=old.loss + jnp.where(good, loss, 0),
        errors=jax.tree.map(lambda sum, n: sum + jnp.where(good, n, 0), old.errors, errors),
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
