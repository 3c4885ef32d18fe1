"""The parts of `benchmarks.gpu_session` that no other program does; each prints lines of JSON.

    python -m benchmarks.gpu_worker correctness resnet50:8

A line is printed as soon as its case is measured: `{case: result}`.
"""

import argparse
import functools
import json
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import models
import train
from benchmarks import runs
from benchmarks.step_server import words_of
from benchmarks.whole_step import Contender, Row, take_turns
from configs import recipes
from errors import UserError
from models.block import BasicBlock
from models.identity_mappings import VARIANTS
from models.resnet import architecture
from run import command, determinism, logs
from run.checkpoint import Checkpoints
from run.workdir import Workdir

Cases = Iterator[tuple[str, Any]]

# Name → fields of `config.model`, network of a row: every family that is trained here.
FAMILIES: dict[str, dict[str, Any]] = {
    "as the recipe": {},
    "plain": {"residual": False},
    "shortcut A": {"shortcut": "A"},
    "shortcut C": {"shortcut": "C"},
    "shortcut D": {"shortcut": "D"},
    "deep stem": {"stem": "deep"},
    "unpadded pooling": {"stem_pool": "unpadded"},
    "3×3 downsampling": {"downsample_in": "3x3"},
    "grouped": {"groups": 32, "width_per_group": 4},
    "wide": {"width_per_group": 128},
    "BN groups": {"bn_group_size": 2},
    "pre-activation": {"preactivation": True},
    "scaled": {"shortcut_scale": 0.5, "residual_scale": 0.5},
    **{name: {"variant": name} for name in VARIANTS if name != "none"},
    "space_to_depth": {"space_to_depth": True},
    "scan_blocks": {"scan_blocks": True},
    "remat": {"remat": "block"},
    "dilated": {"output_stride": 8},
}
# XLA's flags and fields of the model, each alone against the step as it is.
FLAGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "as it is": ("", ()),
    "autotune level 0": ("--xla_gpu_autotune_level=0", ()),
    "autotune level 3": ("--xla_gpu_autotune_level=3", ()),
    "no command buffers": ("--xla_gpu_enable_command_buffer=", ()),
    "latency hiding": ("--xla_gpu_enable_latency_hiding_scheduler=true", ()),
    "deterministic": (determinism.FLAG, ()),
    "space_to_depth": ("", ("--fields", "space_to_depth")),
    "scan_blocks": ("", ("--fields", "scan_blocks")),
}
DISPATCHES = (1, 10, 50)
DIGITS = {"tensorboard": False, "log_every": 50, "checkpoint_every": 50, "model.width": 16}


def families(row: Row) -> dict[str, dict[str, Any]]:
    """Those of `FAMILIES` that the network of a row has."""
    found = {}
    for name, fields in FAMILIES.items():
        model = row.recipe(**fields)[0].model
        try:
            models.check(model)
        except UserError:
            continue  # of another stem, or of bottlenecks alone
        block = architecture(model.stem, model.depth, model.block).block
        if not ("downsample_in" in fields and block is BasicBlock):
            found[name] = fields
    return found


def correctness(options: argparse.Namespace) -> Cases:
    """Largest difference of logits and gradients to the CPU's in float32, as a share of its own.

    With matrix products in full float32, so that TF32 is not what is measured.
    """
    row = options.row
    for name, fields in list(families(row).items())[: options.cases]:
        config, size, classes = row.recipe(options.size, **fields)
        exact = models.create({**config.model, "dtype": "float32"}, classes)
        rng = np.random.default_rng(0)
        images = rng.standard_normal((row.batch, size, size, 3), np.float32)
        labels = np.arange(row.batch) % classes
        cpu, device = jax.devices("cpu")[0], jax.devices()[0]
        with jax.default_device(cpu):
            variables = jax.jit(exact.init, static_argnames="train")(
                jax.random.key(0), images[:1], train=False
            )
        expected = _on(cpu, exact, variables, images, labels)
        for dtype in ("float32", "bfloat16"):
            model = models.create({**config.model, "dtype": dtype}, classes)
            logits, gradients = _on(device, model, variables, images, labels)
            found = {"logits": _distance(logits, expected[0])}
            yield f"{name}, {dtype}", found | {"gradients": _distance(gradients, expected[1])}


def _on(device, model, variables, images, labels):
    with jax.default_matmul_precision("float32"):
        logits, grads = _gradients(model, *jax.device_put((variables, images, labels), device))
    flat = np.concatenate([np.ravel(np.asarray(g, np.float64)) for g in jax.tree.leaves(grads)])
    return np.asarray(logits, np.float64), flat


@functools.partial(jax.jit, static_argnums=0)
def _gradients(model, variables, images, labels):
    def loss(params):
        (logits, _), _ = model.apply(
            {**variables, "params": params},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(1)},
        )
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
        return -chosen.mean(), logits

    (_, logits), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    return logits, grads


def _distance(got, expected):
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def same_bits(options: argparse.Namespace) -> Cases:
    """What differs between two runs, and between one and one that is killed and resumed.

    Each run compiles for itself, so that what XLA chooses by trial may differ as between machines.
    """
    quarter = options.steps // 4
    for wanted in (True, False)[: options.cases]:
        fields = DIGITS | {"num_steps": options.steps, "deterministic": wanted}
        fields |= {"log_every": quarter, "checkpoint_every": quarter}
        folder = options.out / f"deterministic-{wanted}"
        one, other, killed = (folder / name for name in ("one", "other", "killed"))
        _start(one, fields).finish()
        run = _start(killed, fields)
        run.wait_until(lambda path=killed: runs.last_step(path) >= 2 * quarter)
        run.kill()
        run.wait()
        step = max(Checkpoints(killed, read_only=True).steps(), default=0)
        _start(killed, fields).finish()
        found = {f"killed after step {step} and resumed": runs.differences(killed, one)}
        if not options.cases:
            _start(other, fields).finish()
            found["second run"] = runs.differences(other, one)
        yield f"deterministic={wanted}", found


def _start(workdir, fields):
    environment = {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "")}
    environment["JAX_COMPILATION_CACHE_DIR"] = f"{workdir}.xla"
    return runs.Run(workdir, fields, env=environment)


def flags(options: argparse.Namespace) -> Cases:
    """Milliseconds a step with each flag alone, and the gain against the step as it is."""
    base = 0.0
    for name, (flag, more) in list(FLAGS.items())[: options.cases]:
        if more and more[1] not in families(options.row):
            continue
        xla = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
        try:
            run = Contender(words_of(options.row, "ours", options.size, more), {"XLA_FLAGS": xla})
        except UserError as error:
            yield name, str(error).splitlines()[0]
            continue
        try:
            wall, _ = take_turns({name: run}, options.repetitions, options.steps)[name]
        finally:
            run.close()
        base = base or wall
        yield name, {"ms": 1e3 * wall, "gain": base / wall - 1}


def dispatches(options: argparse.Namespace) -> Cases:
    """Images/s of real runs on the digits with 1, 10 and 50 steps in a dispatch; medians."""
    for count in DISPATCHES[: options.cases]:
        config = recipes.digits("resnet8")
        fields = {"num_steps": options.steps, "steps_per_dispatch": count}
        config.update_from_flattened_dict(DIGITS | fields)
        workdir = options.out / f"dispatch-{count}"
        train.train(config, workdir)
        lines = logs.read_lines(Workdir(workdir).timing)
        yield (
            f"steps_per_dispatch={count}",
            statistics.median(line["images_per_second"] for line in lines[1:] or lines),
        )


TASKS = {f.__name__: f for f in (correctness, same_bits, flags, dispatches)}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one task and prints its results."""
    parser = command.Parser("python -m benchmarks.gpu_worker", __doc__)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("row", type=Row.parse, nargs="?", help="NETWORK:BATCH[:DTYPE]")
    parser.add_argument("--size", type=int, default=0, help="of images; 0: the recipe's")
    parser.add_argument("--cases", type=int, help="so many of them; default: all")
    parser.add_argument("--steps", type=int, default=20, help="of a turn, or of a run")
    parser.add_argument("--repetitions", type=int, default=3, help="turns")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_session"))
    options = parser.parse_args(argv)
    for case, result in TASKS[options.task](options):
        print(json.dumps({case: result}, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    sys.exit(command.run(main))
