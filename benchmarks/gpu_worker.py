"""The parts of `benchmarks.gpu_session` that no other program does; each ends with a line of JSON.

python -m benchmarks.gpu_worker correctness resnet50:8:bfloat16
"""

import argparse
import functools
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import models
from benchmarks import runs
from benchmarks.step_server import words_of
from benchmarks.whole_step import Contender, Row, take_turns
from errors import UserError
from models.block import BottleneckBlock
from models.resnet import architecture
from run import command, determinism, logs
from run.workdir import Workdir

# Name → fields of `config.model`, network of a row: every family that is trained here.
FAMILIES: dict[str, dict[str, Any]] = {
    "as the recipe": {},
    "plain": {"residual": False},
    "shortcut A": {"shortcut": "A"},
    "shortcut C": {"shortcut": "C"},
    "pre-activation": {"preactivation": True},
    "3×3 downsampling": {"downsample_in": "3x3"},
    "space_to_depth": {"space_to_depth": True},
    "scan_blocks": {"scan_blocks": True},
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
DIGITS = {"tensorboard": False, "log_every": 50, "checkpoint_every": 50, "model.width": 16}


def correctness(options: argparse.Namespace) -> dict[str, Any]:
    """Largest difference of logits and gradients to the CPU's in float32, as a share of its own.

    With matrix products in full float32, so that TF32 is not what is measured.
    """
    jax.config.update("jax_default_matmul_precision", "float32")
    row, found = options.row, {}
    for name, fields in list(FAMILIES.items())[: options.families]:
        if name in _inapplicable(row):
            continue
        config, size, classes = row.recipe(options.size, **fields)
        exact = models.create({**config.model, "dtype": "float32"}, classes)
        model = models.create(config.model, classes)
        rng = np.random.default_rng(0)
        images = rng.standard_normal((row.batch, size, size, 3), np.float32)
        labels = np.arange(row.batch) % classes
        cpu, device = jax.devices("cpu")[0], jax.devices()[0]
        with jax.default_device(cpu):
            variables = jax.jit(exact.init, static_argnames="train")(
                jax.random.key(0), images[:1], train=False
            )
        expected = _on(cpu, exact, variables, images, labels)
        got = _on(device, model, variables, images, labels)
        found[name] = {"logits": _distance(got[0], expected[0])}
        found[name]["gradients"] = _distance(got[1], expected[1])
    return found


def _inapplicable(row):
    """What a network has no use for: strides of a bottleneck, the stem of large images."""
    model = row.recipe()[0].model
    table = architecture(model.stem, model.depth)
    missing = set() if table.block is BottleneckBlock else {"3×3 downsampling"}
    return missing | ({"space_to_depth", "dilated"} if model.stem == "cifar" else set())


def _on(device, model, variables, images, labels):
    def loss(params, stats):
        (logits, _), _ = model.apply(
            {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
        )
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
        return -chosen.mean(), logits

    put = jax.device_put(variables, device)
    with jax.default_device(device):
        (_, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
            put["params"], put["batch_stats"]
        )
    flat = np.concatenate([np.ravel(np.asarray(g, np.float64)) for g in jax.tree.leaves(grads)])
    return np.asarray(logits, np.float64), flat


def _distance(got, expected):
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def same_bits(options: argparse.Namespace) -> dict[str, Any]:
    """What differs between two runs, and between one and one that is killed and resumed."""
    found = {}
    for wanted in (False, True):
        fields = DIGITS | {"num_steps": options.steps, "deterministic": wanted}
        fields |= {"log_every": options.steps // 4, "checkpoint_every": options.steps // 4}
        folder = options.out / f"deterministic-{wanted}"
        names = {name: folder / name for name in ("one", "other", "killed")}
        environment = {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "")}
        for name, workdir in names.items():
            run = runs.Run(workdir, fields, env=environment)
            if name == "killed":
                half = functools.partial(_reached, workdir, options.steps // 2)
                if run.wait_until(half):
                    run.kill()
                run.wait()
                run = runs.Run(workdir, fields, env=environment)
            run.finish()
        found[f"deterministic={wanted}"] = {
            "second run": runs.differences(names["other"], names["one"]),
            "killed and resumed": runs.differences(names["killed"], names["one"]),
        }
    return found


def _reached(workdir, step):
    return runs.last_step(workdir) >= step


def flags(options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds a step with each flag alone, and the gain against the step as it is."""
    found: dict[str, Any] = {}
    for name, (flag, more) in FLAGS.items():
        if name in _inapplicable(options.row):
            continue
        xla = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
        try:
            run = Contender(words_of(options.row, "ours", options.size, more), {"XLA_FLAGS": xla})
        except UserError as error:
            found[name] = str(error).splitlines()[0]
            continue
        try:
            wall, _ = take_turns({name: run}, options.repetitions, options.steps)[name]
        finally:
            run.close()
        found[name] = {"ms": 1e3 * wall}
        if "ms" in found.get("as it is", {}):
            found[name]["gain"] = found["as it is"]["ms"] / (1e3 * wall) - 1
    return found


def dispatches(options: argparse.Namespace) -> dict[str, Any]:
    """Images/s of real runs on the digits with 1, 10 and 50 steps in a dispatch; medians."""
    found = {}
    for count in (1, 10, 50):
        fields = DIGITS | {"num_steps": options.steps, "steps_per_dispatch": count}
        workdir = options.out / f"dispatch-{count}"
        environment = {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "")}
        runs.Run(workdir, fields, env=environment).finish()
        lines = logs.read_lines(Workdir(workdir).timing)
        found[f"steps_per_dispatch={count}"] = statistics.median(
            line["images_per_second"] for line in lines[1:] or lines
        )
    return found


TASKS = {f.__name__: f for f in (correctness, same_bits, flags, dispatches)}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one task and prints its result."""
    parser = command.Parser("python -m benchmarks.gpu_worker", __doc__)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("row", type=Row.parse, nargs="?", help="NETWORK:BATCH[:DTYPE]")
    parser.add_argument("--size", type=int, default=0, help="of images; 0: the recipe's")
    parser.add_argument("--families", type=int, help="so many of them; default: all")
    parser.add_argument("--steps", type=int, default=20, help="of a turn, or of a run")
    parser.add_argument("--repetitions", type=int, default=3, help="turns")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_session"))
    options = parser.parse_args(argv)
    print(json.dumps(TASKS[options.task](options)))


if __name__ == "__main__":
    sys.exit(command.run(main))
